// The only place that reads a request's body: what a real API server says of a body that is broken, of another kind or of the wrong
// type, what it drops, and what it records as set in managedFields.
import { parse as parseYaml } from 'yaml';
import { isRecord } from './json.ts';
import type { JsonRecord } from './json.ts';
import { badRequest, StatusError } from './status.ts';

/** What a field of an API type may hold. */
export type Shape = 'string' | 'integer' | 'boolean' | 'any' | { readonly list: Shape } | { readonly map: Shape } | Struct;

/** An API type; `pointer` where Go has a pointer to it, which managedFields shows. */
export interface Struct {
  readonly struct: string;
  readonly fields: Readonly<Record<string, Shape>>;
  readonly pointer?: boolean;
}

/** The type that a path takes. */
export interface BodyType {
  readonly kind: string;
  readonly apiVersion: string;
  readonly shape: Struct;
}

/** A body as it was understood: fields in the type's order, empty ones left out. */
export interface DecodedBody {
  readonly object: JsonRecord;
  readonly warnings: readonly string[];
}

const metadata: Struct = {
  struct: 'ObjectMeta',
  fields: {
    name: 'string',
    generateName: 'string',
    namespace: 'string',
    uid: 'string',
    resourceVersion: 'string',
    creationTimestamp: 'string',
    labels: { map: 'string' },
    annotations: { map: 'string' },
    managedFields: 'any',
  },
};

/** Makes a type of the usual form: kind, apiVersion, metadata, and what is given. */
export function bodyType(kind: string, apiVersion: string, fields: Readonly<Record<string, Shape>>): BodyType {
  return { kind, apiVersion, shape: { struct: kind, fields: { kind: 'string', apiVersion: 'string', metadata, ...fields } } };
}

/**
 * Decodes a body, JSON or YAML, with the words of a real API server for what it cannot take.
 * Throws a 400 {@link StatusError}. `strict` is `?fieldValidation=Strict`.
 */
export function decodeBody(
  type: BodyType,
  body: string,
  { yaml, strict }: { readonly yaml: boolean; readonly strict: boolean },
): DecodedBody {
  return decodeValue(type, decodeText(type, body, yaml), { strict, duplicates: yaml ? [] : findDuplicates(body) });
}

/** Parses a body, JSON or YAML, and checks that it is of this kind. Throws a 400 {@link StatusError}. */
export function decodeText(type: Pick<BodyType, 'kind' | 'apiVersion'>, body: string, yaml: boolean): JsonRecord {
  const value = parseBody(type, body, yaml);
  const { kind, apiVersion } = value;
  if (isText(apiVersion) && apiVersion !== type.apiVersion) {
    throw badRequest(`the API version in the data (${apiVersion}) does not match the expected API version (${type.apiVersion})`);
  }
  const version = type.apiVersion.split('/').at(-1);
  if (isText(kind) && kind !== type.kind) {
    const scheme = 'in scheme "k8s.io/kubernetes/pkg/api/legacyscheme/scheme.go:30"';
    const registered = `no kind "${kind}" is registered for version "${type.apiVersion}" ${scheme}`;
    throw badRequest(`${kind} in version "${version}" cannot be handled as a ${type.kind}: ${registered}`);
  }
  return value;
}

/** Decodes a body that was parsed. Throws a 400 {@link StatusError}. */
export function decodeValue(
  type: BodyType,
  value: JsonRecord,
  { strict, duplicates = [] }: { readonly strict: boolean; readonly duplicates?: readonly string[] },
): DecodedBody {
  const version = type.apiVersion.split('/').at(-1);
  const warnings = duplicates.map((path) => `duplicate field "${path}"`);
  const refuse = (message: string): StatusError =>
    badRequest(`${type.kind} in version "${version}" cannot be handled as a ${type.kind}: ${message}`);
  const object = decodeStruct(value, type.shape, '', warnings, refuse);
  if (strict && warnings.length > 0) throw refuse(`strict decoding error: ${warnings.join(', ')}`);
  return { object, warnings };
}

/** Formats metadata.managedFields as the server sets them for an object that was posted with this user agent. */
export function formatManagedFields(
  type: BodyType,
  object: JsonRecord,
  { manager, time, subresource }: { readonly manager: string; readonly time: string; readonly subresource?: string },
): readonly object[] {
  const sent = { ...object };
  delete sent['kind'];
  delete sent['apiVersion'];
  const { labels, annotations } = isRecord(sent['metadata']) ? sent['metadata'] : {};
  const described: Record<string, unknown> = {};
  if (labels !== undefined || annotations !== undefined) {
    described['f:metadata'] = {
      ...(annotations === undefined ? {} : { 'f:annotations': ownFields(annotations, { map: 'string' }) }),
      ...(labels === undefined ? {} : { 'f:labels': ownFields(labels, { map: 'string' }) }),
    };
  }
  delete sent['metadata'];
  const fields = ownFields(sent, type.shape);
  return [
    {
      manager,
      operation: 'Update',
      apiVersion: type.apiVersion,
      time,
      fieldsType: 'FieldsV1',
      fieldsV1: { ...described, ...fields },
      ...(subresource === undefined ? {} : { subresource }),
    },
  ];
}

function ownFields(value: unknown, shape: Shape): object {
  if (!isRecord(value) || typeof shape === 'string' || 'list' in shape) return {};
  const entries = Object.entries(value).filter(([, one]) => one !== null && !(isRecord(one) && Object.keys(one).length === 0));
  const named = entries.map(([name, one]) => {
    const inner = 'map' in shape ? shape.map : (shape.fields[name] ?? 'any');
    return [`f:${name}`, ownFields(one, inner)] as const;
  });
  return { ...('map' in shape || shape.pointer === true ? { '.': {} } : {}), ...Object.fromEntries(named) };
}

function parseBody(type: Pick<BodyType, 'kind'>, body: string, yaml: boolean): JsonRecord {
  const unrecognized = (why: string): StatusError =>
    badRequest(
      `the object provided is unrecognized (must be of type ${type.kind}): couldn't get version/kind; json parse error: ${why} (${summarize(body)})`,
    );
  let value: unknown;
  try {
    value = yaml ? parseYaml(body) : JSON.parse(body);
  } catch (error) {
    throw unrecognized(describeSyntaxError(body, error));
  }
  if (isRecord(value)) return value;
  const target = 'struct { APIVersion string "json:\\"apiVersion,omitempty\\""; Kind string "json:\\"kind,omitempty\\"" }';
  throw unrecognized(`json: cannot unmarshal ${goType(value)} into Go value of type ${target}`);
}

/** The fields that stand more than once in a JSON object, which a parser takes without a word; the last one counts. */
function findDuplicates(body: string): readonly string[] {
  const open: { readonly path: string; readonly keys: Set<string>; last: string }[] = [];
  const found: string[] = [];
  for (const [token, key] of body.matchAll(/("(?:[^"\\]|\\.)*")\s*:|"(?:[^"\\]|\\.)*"|[{}[\]]/g)) {
    const inner = open.at(-1);
    if (token === '{' || token === '[') {
      const path = inner === undefined || inner.last === '' ? '' : `${inner.path}${inner.last}.`;
      open.push({ path: token === '{' ? path : (inner?.path ?? ''), keys: new Set(), last: '' });
    } else if (token === '}' || token === ']') open.pop();
    else if (key !== undefined && inner !== undefined) {
      inner.last = JSON.parse(key);
      if (inner.keys.has(inner.last)) found.push(`${inner.path}${inner.last}`);
      inner.keys.add(inner.last);
    }
  }
  return found;
}

// Go and V8 word syntax errors differently; where the text simply ends, which is the usual case, they can be matched.
function describeSyntaxError(body: string, error: unknown): string {
  const message = error instanceof Error ? error.message : '';
  const [, position] = /position (\d+)/.exec(message) ?? [];
  const at = position === undefined ? undefined : Number(position);
  if (/end of JSON|Unterminated/.test(message) || (at !== undefined && at >= body.trimEnd().length)) return 'unexpected end of JSON input';
  const [, token] = /token '(.)'/u.exec(message) ?? [];
  const character = token ?? (at === undefined ? (body.trimStart()[0] ?? '') : (body[at] ?? ''));
  return `invalid character '${character}' looking for beginning of value`;
}

// apimachinery, runtime/serializer/recognizer: thirty bytes of what it could not read, in hex unless it looks like an object.
function summarize(body: string): string {
  const bytes = Buffer.from(body);
  if (bytes.length === 0) return '<empty>';
  const start = bytes.subarray(0, 30);
  return `${start.toString(bytes[0] === 0x7b ? 'utf8' : 'hex')}${bytes.length > 30 ? ' ...' : ''}`;
}

type Refuse = (message: string) => StatusError;

function decodeStruct(value: JsonRecord, shape: Struct, path: string, warnings: string[], refuse: Refuse): JsonRecord {
  for (const name of Object.keys(value)) {
    if (!Object.hasOwn(shape.fields, name)) warnings.push(`unknown field "${path}${name}"`);
  }
  const decoded: [string, unknown][] = [];
  for (const [name, inner] of Object.entries(shape.fields)) {
    if (!Object.hasOwn(value, name)) continue;
    const one = decodeField(value[name], inner, { path: `${path}${name}`, struct: shape.struct }, warnings, refuse);
    if (!isEmpty(one, inner)) decoded.push([name, one]);
  }
  return Object.fromEntries(decoded);
}

function decodeField(
  value: unknown,
  shape: Shape,
  at: { readonly path: string; readonly struct: string },
  warnings: string[],
  refuse: Refuse,
): unknown {
  const mismatch = (expected: string): StatusError => {
    const what = typeof value === 'number' ? `number${expected === 'int64' ? ` ${value}` : ''}` : goType(value);
    return refuse(`json: cannot unmarshal ${what} into Go struct field ${at.struct}.${at.path} of type ${expected}`);
  };
  if (value === null || value === undefined || shape === 'any') return value ?? undefined;
  if (shape === 'string') {
    if (typeof value !== 'string') throw mismatch('string');
    return value;
  }
  if (shape === 'boolean') {
    if (typeof value !== 'boolean') throw mismatch('bool');
    return value;
  }
  if (shape === 'integer') {
    if (!Number.isInteger(value)) throw mismatch('int64');
    return value;
  }
  if ('list' in shape) {
    if (!Array.isArray(value)) throw mismatch(`[]${goName(shape.list)}`);
    return value.map((one: unknown) => decodeField(one, shape.list, at, warnings, refuse) ?? '');
  }
  if (!isRecord(value)) throw mismatch(goName(shape));
  if ('struct' in shape) return decodeStruct(value, shape, `${at.path}.`, warnings, refuse);
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, decodeField(one, shape.map, at, warnings, refuse)]));
}

function isEmpty(value: unknown, shape: Shape): boolean {
  if (value === undefined || value === '' || value === false) return true;
  // Go's omitempty keeps a pointer to zero, and each integer of these types is one.
  if (typeof value === 'number') return false;
  if (Array.isArray(value)) return value.length === 0;
  return typeof shape !== 'string' && 'map' in shape && isRecord(value) && Object.keys(value).length === 0;
}

function goName(shape: Shape): string {
  if (typeof shape === 'string') return shape;
  if ('struct' in shape) return `v1.${shape.struct}`;
  return 'list' in shape ? `[]${goName(shape.list)}` : `map[string]${goName(shape.map)}`;
}

function goType(value: unknown): string {
  if (Array.isArray(value)) return 'array';
  return typeof value === 'boolean' ? 'bool' : typeof value;
}

function isText(value: unknown): value is string {
  return typeof value === 'string' && value !== '';
}
