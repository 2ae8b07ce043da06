// The only place that reads a request's body: what a real API server says of a body that is broken, of another kind or of the wrong
// type, what it drops, and what it records as set in managedFields.
import { parseAllDocuments } from 'yaml';
import { isRecord } from './json.ts';
import type { JsonRecord } from './json.ts';
import { JsonSyntaxError, parseJson } from './json-syntax.ts';
import type { ParsedJson } from './json-syntax.ts';
import { isRegistered } from './resources.ts';
import { structOf } from './schemas.ts';
import { badRequest, StatusError, unrecognized } from './status.ts';

/** What a field of an API type may hold. */
export type Shape =
  | 'string'
  | 'int32'
  | 'int64'
  | 'bool'
  | 'time'
  | 'bytes'
  | 'any'
  | { readonly list: Shape; readonly name?: string }
  | { readonly map: Shape }
  | Struct;

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

/** A body as it was parsed, and what strict parsing would say of it. */
export interface ParsedBody {
  readonly object: JsonRecord;
  /** What a strict parser says of the text itself. */
  readonly faults: readonly string[];
  readonly duplicates?: ParsedJson['duplicates'];
  readonly numbers?: ParsedJson['numbers'];
}

/** A body as it was understood, empty fields left out. */
export interface DecodedBody {
  readonly object: JsonRecord;
  /** Fields that are unknown or stand twice: refused by strict validation, else warned of. */
  readonly faults: readonly string[];
}

const metadata: Struct = {
  struct: 'ObjectMeta',
  fields: {
    name: 'string',
    generateName: 'string',
    namespace: 'string',
    selfLink: 'string',
    uid: 'string',
    resourceVersion: 'string',
    generation: 'int64',
    creationTimestamp: 'time',
    deletionTimestamp: 'time',
    deletionGracePeriodSeconds: 'int64',
    labels: { map: 'string' },
    annotations: { map: 'string' },
    ownerReferences: { list: structOf('OwnerReference') },
    finalizers: { list: 'string' },
    managedFields: 'any',
  },
};

/** Makes a type of the usual form: kind, apiVersion, metadata, and what is given. */
export function bodyType(kind: string, apiVersion: string, fields: Readonly<Record<string, Shape>>): BodyType {
  return { kind, apiVersion, shape: { struct: kind, fields: { kind: 'string', apiVersion: 'string', metadata, ...fields } } };
}

/** Parses a body, JSON or YAML, and checks that it is of this kind. Throws a 400 {@link StatusError}. */
export function parseBody(type: Pick<BodyType, 'kind' | 'apiVersion'>, body: string, yaml: boolean): ParsedBody {
  const parsed = yaml ? parseYamlBody(type, body) : parseJsonBody(type, body);
  const kind = isText(parsed.object['kind']) ? parsed.object['kind'] : type.kind;
  const apiVersion = isText(parsed.object['apiVersion']) ? parsed.object['apiVersion'] : type.apiVersion;
  if (apiVersion.split('/').length > 2) throw unrecognized(type.kind, body, `unexpected GroupVersion string: ${apiVersion}`);
  const version = versionOf({ apiVersion });
  const refuse = (why: string): StatusError => badRequest(`${kind} in version "${version}" cannot be handled as a ${type.kind}: ${why}`);
  const wrong = describeWrongType(type, { kind, apiVersion });
  if (wrong !== undefined) throw refuse(wrong);
  if (apiVersion !== type.apiVersion) {
    throw badRequest(`the API version in the data (${apiVersion}) does not match the expected API version (${type.apiVersion})`);
  }
  return parsed;
}

/** Go's words where an object says that it is of another kind, or of a version that there is not. */
export function describeWrongType(type: Pick<BodyType, 'kind' | 'apiVersion'>, { kind, apiVersion }: JsonRecord): string | undefined {
  const [ownKind, ownVersion] = [isText(kind) ? kind : type.kind, isText(apiVersion) ? apiVersion : type.apiVersion];
  if (!isRegistered(ownVersion, ownKind)) {
    const scheme = 'in scheme "k8s.io/kubernetes/pkg/api/legacyscheme/scheme.go:30"';
    return `no kind "${ownKind}" is registered for version "${ownVersion}" ${scheme}`;
  }
  if (ownKind === type.kind && groupOf({ apiVersion: ownVersion }) === groupOf(type)) return undefined;
  // Go's names of both types: the package of the first is its version, that of the second its group.
  const [internal = ''] = (groupOf(type) || 'core').split('.');
  return `converting (${versionOf({ apiVersion: ownVersion })}.${ownKind}) to (${internal}.${type.kind}): unknown conversion`;
}

/** Decodes a body that was parsed, its fields in the type's order. Throws a 400 {@link StatusError}. */
export function decodeBody(
  type: BodyType,
  { object, faults, duplicates = [], numbers = new Map() }: ParsedBody,
  refuse: (message: string) => Error = (message) => refuseBody(type, message),
): DecodedBody {
  const reading: Reading = { faults: [...faults], duplicates: new Set(duplicates), numbers, refuse, keepsOrder: false };
  return { object: decodeStruct(object, type.shape, { path: '', indexed: '' }, reading), faults: reading.faults };
}

/** Decodes an object of a kind that is kept: what has no place in its type is dropped, the rest stays in its order. Throws as decodeBody. */
export function decodeObject(
  type: Pick<BodyType, 'kind' | 'apiVersion'>,
  { object, faults, duplicates = [], numbers = new Map() }: ParsedBody,
  refuse: (message: string) => Error = (message) => refuseBody(type, message),
): DecodedBody {
  const reading: Reading = { faults: [...faults], duplicates: new Set(duplicates), numbers, refuse, keepsOrder: true };
  return { object: decodeStruct(object, structOf(type.kind), { path: '', indexed: '' }, reading), faults: reading.faults };
}

/** The 400 for a body that cannot be of this type. */
export function refuseBody(type: Pick<BodyType, 'kind' | 'apiVersion'>, message: string): StatusError {
  return badRequest(`${type.kind} in version "${versionOf(type)}" cannot be handled as a ${type.kind}: ${message}`);
}

/** Go's words for what strict validation refuses. */
export function formatFaults(faults: readonly string[]): string {
  return `strict decoding error: ${faults.join(', ')}`;
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
  const isPointer = (name: string): boolean => {
    const inner = 'fields' in shape ? shape.fields[name] : undefined;
    return typeof inner === 'object' && 'struct' in inner && inner.pointer === true;
  };
  const isSet = (name: string, one: unknown): boolean => one !== null && (!isRecord(one) || Object.keys(one).length > 0 || isPointer(name));
  const entries = Object.entries(value).filter(([name, one]) => isSet(name, one));
  const named = entries.map(([name, one]) => {
    const inner = 'map' in shape ? shape.map : (shape.fields[name] ?? 'any');
    return [`f:${name}`, ownFields(one, inner)] as const;
  });
  const isMarked = named.length > 0 && ('map' in shape || shape.pointer === true);
  return { ...(isMarked ? { '.': {} } : {}), ...Object.fromEntries(named) };
}

function versionOf({ apiVersion }: Pick<BodyType, 'apiVersion'>): string {
  return apiVersion.split('/').at(-1) ?? '';
}

function groupOf({ apiVersion }: Pick<BodyType, 'apiVersion'>): string {
  return apiVersion.includes('/') ? (apiVersion.split('/')[0] ?? '') : '';
}

function parseJsonBody(type: Pick<BodyType, 'kind'>, body: string): ParsedBody {
  try {
    const { value, duplicates, numbers } = parseJson(body);
    return { object: readTyped(type, value, body), faults: [], duplicates, numbers };
  } catch (error) {
    throw error instanceof JsonSyntaxError
      ? unrecognized(type.kind, body, `couldn't get version/kind; json parse error: ${error.message}`)
      : error;
  }
}

function parseYamlBody(type: Pick<BodyType, 'kind'>, body: string): ParsedBody {
  // Of several documents the first counts. YAML 1.1, in which `yes` is a boolean, is Go's.
  const [document] = parseAllDocuments(body, { version: '1.1' });
  if (document === undefined || 'empty' in document) return { object: {}, faults: [] };
  const faults: string[] = [];
  for (const { code, linePos, pos } of document.errors) {
    const [{ line } = { line: 1 }] = linePos ?? [];
    if (code !== 'DUPLICATE_KEY')
      throw unrecognized(type.kind, body, `yaml: ${line > 1 ? `line ${line}: ` : ''}${yamlErrors[code] ?? otherYamlError}`);
    const [, key = ''] = /^["']?([^"':\s]+)/.exec(body.slice(pos[0])) ?? [];
    faults.push(`line ${line}: key "${key}" already set in map`);
  }
  try {
    return { object: readTyped(type, document.toJS() ?? null, body), faults };
  } catch (error) {
    // An alias that stands for nothing.
    const [, anchor] = /alias.*: (.+)$/.exec(error instanceof ReferenceError ? error.message : '') ?? [];
    throw anchor === undefined ? error : unrecognized(type.kind, body, `yaml: unknown anchor '${anchor}' referenced`);
  }
}

// Go's words for what the parser here tells in others; for what is left, the likeliest.
const yamlErrors: Readonly<Record<string, string>> = {
  BAD_DIRECTIVE: 'could not find expected directive name',
  BLOCK_AS_IMPLICIT_KEY: 'mapping values are not allowed in this context',
  MISSING_CHAR: 'found unexpected end of stream',
  TAB_AS_INDENT: 'found character that cannot start any token',
};
const otherYamlError = 'did not find expected node content';

// Go looks for kind and apiVersion before it looks at anything else.
function readTyped(type: Pick<BodyType, 'kind'>, value: unknown, body: string): JsonRecord {
  const refuse = (what: string, where: string): StatusError =>
    unrecognized(type.kind, body, `couldn't get version/kind; json parse error: json: cannot unmarshal ${what} into Go ${where}`);
  if (value === null) return {};
  if (!isRecord(value)) {
    throw refuse(
      goType(value),
      'value of type struct { APIVersion string "json:\\"apiVersion,omitempty\\""; Kind string "json:\\"kind,omitempty\\"" }',
    );
  }
  for (const name of ['apiVersion', 'kind']) {
    const one = value[name];
    if (one !== undefined && one !== null && typeof one !== 'string') throw refuse(goType(one), `struct field .${name} of type string`);
  }
  return value;
}

interface Reading {
  readonly faults: string[];
  readonly duplicates: ReadonlySet<string>;
  readonly numbers: ParsedJson['numbers'];
  readonly refuse: (message: string) => Error;
  /** Whether fields stay in the order in which they were sent, not in the type's. */
  readonly keepsOrder: boolean;
}

/** Where a field is: as errors of type tell it, and with the indices of lists, as strict validation does. */
interface Place {
  readonly path: string;
  readonly indexed: string;
}

function decodeStruct(value: JsonRecord, shape: Struct, { path, indexed }: Place, reading: Reading): JsonRecord {
  const within = (outer: string, name: string): string => (outer === '' ? name : `${outer}.${name}`);
  const decoded = new Map<string, unknown>();
  for (const name of Object.keys(value)) {
    const inner = Object.hasOwn(shape.fields, name) ? shape.fields[name] : undefined;
    const place = { path: within(path, name), indexed: within(indexed, name), struct: shape.struct };
    if (inner === undefined) reading.faults.push(`unknown field "${place.indexed}"`);
    else {
      if (reading.duplicates.has(place.indexed)) reading.faults.push(`duplicate field "${place.indexed}"`);
      const one = decodeField(value[name], inner, place, reading);
      if (!isEmpty(one, inner, name)) decoded.set(name, one);
    }
  }
  if (reading.keepsOrder) return Object.fromEntries(decoded);
  return Object.fromEntries(Object.keys(shape.fields).flatMap((name) => (decoded.has(name) ? [[name, decoded.get(name)]] : [])));
}

function decodeField(value: unknown, shape: Shape, at: Place & { readonly struct: string }, reading: Reading): unknown {
  const refuse = (expected: string): Error => {
    const literal = reading.numbers.get(at.indexed) ?? String(value);
    const what = typeof value === 'number' && expected.startsWith('int') ? `number ${literal}` : goType(value);
    return reading.refuse(`json: cannot unmarshal ${what} into Go struct field ${at.struct}.${at.path} of type ${expected}`);
  };
  if (value === null || value === undefined || shape === 'any') return value ?? undefined;
  if (typeof shape === 'string') {
    if (isOf(shape, value, reading.numbers.has(at.indexed))) return value;
    if (shape === 'time') {
      if (typeof value === 'string') throw reading.refuse(describeTimeError(value));
      throw reading.refuse(`json: cannot unmarshal ${goType(value)} into Go value of type string`);
    }
    if (shape !== 'bytes') throw refuse(shape);
    throw typeof value === 'string' ? reading.refuse(`illegal base64 data at input byte ${badByteOf(value)}`) : refuse('[]uint8');
  }
  if ('list' in shape) {
    if (!Array.isArray(value)) throw refuse(goName(shape));
    const empty = shape.list === 'string' ? '' : {};
    return value.map(
      (one: unknown, index) => decodeField(one, shape.list, { ...at, indexed: `${at.indexed}[${index}]` }, reading) ?? empty,
    );
  }
  if (!isRecord(value)) throw refuse(goName(shape));
  if ('struct' in shape) return decodeStruct(value, shape, at, reading);
  // Go's errors of type name the fields of types, not the keys of maps.
  const entries = Object.entries(value).map(([key, one]) => {
    if (reading.duplicates.has(`${at.indexed}.${key}`)) reading.faults.push(`duplicate field "${at.indexed}.${key}"`);
    const read = decodeField(one, shape.map, { ...at, indexed: `${at.indexed}.${key}` }, reading);
    return [key, read ?? (typeof shape.map === 'string' ? '' : {})] as const;
  });
  return Object.fromEntries(entries);
}

function isOf(shape: Extract<Shape, string>, value: unknown, isOddlyWritten: boolean): boolean {
  if (shape === 'bool') return typeof value === 'boolean';
  if (shape === 'int32' || shape === 'int64') {
    const limit = shape === 'int32' ? 2 ** 31 : 2 ** 63;
    return typeof value === 'number' && Number.isInteger(value) && !isOddlyWritten && value >= -limit && value < limit;
  }
  if (typeof value !== 'string') return false;
  if (shape === 'time') return /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/.test(value);
  return shape !== 'bytes' || badByteOf(value) === undefined;
}

function describeTimeError(value: string): string {
  const quoted = JSON.stringify(value);
  return `parsing time ${quoted} as "2006-01-02T15:04:05Z07:00": cannot parse ${quoted} as "2006"`;
}

// Go's base64 knows no URL alphabet, skips line ends and wants its padding.
function badByteOf(text: string): number | undefined {
  const found = /[^A-Za-z0-9+/=\r\n]/.exec(text);
  if (found !== null) return found.index;
  const digits = text.replaceAll(/[\r\n]/g, '');
  if (digits.length % 4 === 0 && /^[^=]*={0,2}$/.test(digits)) return undefined;
  const padding = digits.indexOf('=');
  return padding < 0 ? digits.length - (digits.length % 4) : padding;
}

// The booleans that are no pointers: of them, as of texts, lists and maps, Go leaves out what is empty.
const plainBooleans = new Set([
  'allowed',
  'authenticated',
  'denied',
  'hostIPC',
  'hostNetwork',
  'hostPID',
  'paused',
  'publishNotReadyAddresses',
  'readOnly',
  'stdin',
  'stdinOnce',
  'tty',
  'unschedulable',
]);

function isEmpty(value: unknown, shape: Shape, name: string): boolean {
  if (value === undefined || value === '') return true;
  if (value === false) return plainBooleans.has(name);
  // Go's omitempty keeps a pointer to zero, and nearly each integer of these types is one.
  if (typeof value === 'number') return false;
  if (Array.isArray(value)) return value.length === 0;
  return typeof shape !== 'string' && 'map' in shape && isRecord(value) && Object.keys(value).length === 0;
}

function goName(shape: Shape): string {
  if (shape === 'time') return 'v1.Time';
  if (shape === 'bytes') return '[]uint8';
  if (typeof shape === 'string') return shape;
  if ('struct' in shape) return `v1.${shape.struct}`;
  return 'list' in shape ? (shape.name ?? `[]${goName(shape.list)}`) : `map[string]${goName(shape.map)}`;
}

/** How Go calls the type of a JSON value. */
export function goType(value: unknown): string {
  if (Array.isArray(value)) return 'array';
  return typeof value === 'boolean' ? 'bool' : typeof value;
}

function isText(value: unknown): value is string {
  return typeof value === 'string' && value !== '';
}
