// The only place that narrows what was parsed: JSON and YAML hold anything, and what is of another type counts as absent.

/** A JSON object. */
export type JsonRecord = Readonly<Record<string, unknown>>;

/** Says whether a value is a JSON object. */
export function isRecord(value: unknown): value is JsonRecord {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Reads an object; anything else is an empty one. */
export function readRecord(value: unknown): JsonRecord {
  return isRecord(value) ? value : {};
}

/** Reads a string; anything else is an empty one. */
export function readText(value: unknown): string {
  return typeof value === 'string' ? value : '';
}

/** Reads a string, or a list of which the strings count. */
export function readTexts(value: unknown): readonly string[] {
  return (Array.isArray(value) ? value : [value]).filter((one): one is string => typeof one === 'string');
}

/** Reads a list of which the objects count; anything else is an empty one. */
export function readList(value: unknown): readonly JsonRecord[] {
  return Array.isArray(value) ? value.filter(isRecord) : [];
}
