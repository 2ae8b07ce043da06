// One request on its way to its answer: who asks, for what, and its body in the forms in which it may have been sent.
import type { IncomingMessage } from 'node:http';
import { parse as parseYaml } from 'yaml';
import type { Wanted } from './answer.ts';
import { decodeBody, decodeObject, describeWrongType, formatFaults, goType, parseBody, refuseBody } from './decoding.ts';
import type { BodyType, DecodedBody, ParsedBody } from './decoding.ts';
import { readRecord, readText } from './json.ts';
import type { JsonRecord } from './json.ts';
import { JsonSyntaxError, parseJson } from './json-syntax.ts';
import type { ParsedJson } from './json-syntax.ts';
import { decodeProtobuf, protobufType } from './protobuf.ts';
import type { UserInfo } from './rbac.ts';
import { badRequest, invalid, StatusError } from './status.ts';
import type { FieldError } from './status.ts';
import type { Target } from './target.ts';

/** A request and what has been found out about it. */
export interface Exchange {
  readonly request: IncomingMessage;
  readonly target: Target;
  /** `undefined` where it was too large. */
  readonly body: Buffer | undefined;
  user: UserInfo | undefined;
  readonly warnings: string[];
  readonly wanted: Wanted;
}

const sizeLimit = 3 * 1024 * 1024;

/** Reads the body of a review or a token request. Throws a {@link StatusError}. */
export function decode(exchange: Exchange, type: BodyType): DecodedBody {
  return validate(exchange, type, (parsed) => decodeBody(type, parsed));
}

/** Reads the body of an object of a kind that is kept. Throws a {@link StatusError}. */
export function readObject(exchange: Exchange, type: Pick<BodyType, 'kind' | 'apiVersion'>): JsonRecord {
  return validate(exchange, type, (parsed) => decodeObject(type, parsed)).object;
}

/** Decodes what became of an object by a patch, as far as it is of its type. Throws a 422 {@link StatusError} with the patch in it. */
export function readPatched(
  exchange: Exchange,
  type: Pick<BodyType, 'kind' | 'apiVersion'>,
  patched: JsonRecord,
  shown: string,
): JsonRecord {
  const validation = readValidation(exchange);
  const refuse = (why: string): StatusError =>
    invalid('', '', '', [{ field: 'patch', message: `Invalid value: ${JSON.stringify(shown)}: ${why}` }]);
  const wrong = describeWrongType(type, patched);
  if (wrong !== undefined) throw refuse(wrong);
  const { object, faults } = decodeObject(type, { object: patched, faults: [] }, (message) => refuse(message));
  if (validation === 'Strict' && faults.length > 0) throw refuse(formatFaults(faults));
  if (validation === 'Warn') exchange.warnings.push(...faults);
  return object;
}

function validate(
  exchange: Exchange,
  type: Pick<BodyType, 'kind' | 'apiVersion'>,
  understand: (parsed: ParsedBody) => DecodedBody,
): DecodedBody {
  const { mediaType, body } = open(exchange);
  const validation = readValidation(exchange);
  const isYaml = mediaType === 'application/yaml';
  const parsed =
    mediaType === protobufType ? { object: decodeProtobuf(body, type.kind), faults: [] } : parseBody(type, body.toString(), isYaml);
  const decoded = understand(parsed);
  if (validation === 'Strict' && decoded.faults.length > 0) throw refuseBody(type, formatFaults(decoded.faults));
  if (validation === 'Warn') exchange.warnings.push(...decoded.faults);
  return decoded;
}

/** Reads a patch. Throws a {@link StatusError}. */
export function readPatch(exchange: Exchange): unknown {
  const mediaType = mediaTypeOf(exchange.request);
  readValidation(exchange);
  const body = whole(exchange).toString();
  if (mediaType === 'application/apply-patch+yaml') return readApplied(body);
  const at = mediaType === 'application/strategic-merge-patch+json' ? '' : 'error decoding patch: ';
  const isList = mediaType === 'application/json-patch+json';
  const value = parse(body, at);
  if (value === null && mediaType === 'application/merge-patch+json') throw badRequest('Invalid JSON Patch');
  if (Array.isArray(value) === isList && typeof value === 'object') return value ?? {};
  const target = isList ? '[]handlers.jsonPatchOp' : 'map[string]interface {}';
  throw badRequest(`${at}json: cannot unmarshal ${goType(value)} into Go value of type ${target}`);
}

function readApplied(body: string): JsonRecord {
  let value: unknown;
  try {
    value = parseYaml(body);
  } catch (error) {
    const [reason] = (error instanceof Error ? error.message : String(error)).split('\n');
    throw badRequest(`error decoding YAML: error converting YAML to JSON: yaml: ${reason}`);
  }
  const applied = readRecord(value);
  if (readText(applied['kind']) === '' || readText(applied['apiVersion']) === '') {
    throw badRequest(`invalid object type: /${readText(applied['apiVersion'])}, Kind=${readText(applied['kind'])}`);
  }
  return applied;
}

const deletionType: BodyType = {
  kind: 'DeleteOptions',
  apiVersion: 'v1',
  shape: {
    struct: 'DeleteOptions',
    fields: {
      kind: 'string',
      apiVersion: 'string',
      gracePeriodSeconds: 'int64',
      preconditions: { struct: 'Preconditions', fields: { uid: 'string', resourceVersion: 'string' } },
      orphanDependents: 'bool',
      propagationPolicy: 'string',
      dryRun: { list: 'string' },
      ignoreStoreReadErrorWithClusterBreakingPotential: 'bool',
    },
  },
};

/** Reads the options of a deletion: the body's, and without one the query's. Throws a {@link StatusError}. */
export function readDeletion(exchange: Exchange): JsonRecord {
  const { query } = exchange.target;
  const bytes = whole(exchange);
  if (bytes.length === 0) {
    const seconds = query.get('gracePeriodSeconds') ?? '';
    if (!/^([+-]?\d+)?$/.test(seconds)) throw badRequest(`strconv.ParseInt: parsing ${JSON.stringify(seconds)}: invalid syntax`);
    const policy = query.get('propagationPolicy') ?? '';
    return checkDeletion({
      ...(seconds === '' ? {} : { gracePeriodSeconds: Number(seconds) }),
      ...(policy === '' ? {} : { propagationPolicy: policy }),
    });
  }
  if (mediaTypeOf(exchange.request) === protobufType) return decodeProtobuf(bytes, 'DeleteOptions');
  const { value, numbers, duplicates } = parseJsonBody(bytes.toString(), "couldn't get version/kind; json parse error: ");
  const sent = readRecord(value);
  const [kind, apiVersion] = [readText(sent['kind']) || 'DeleteOptions', readText(sent['apiVersion']) || 'v1'];
  if (kind !== 'DeleteOptions') {
    const scheme = 'in scheme "k8s.io/kubernetes/pkg/api/legacyscheme/scheme.go:30"';
    throw badRequest(`no kind "${kind}" is registered for version "${apiVersion}" ${scheme}`);
  }
  const parsed = { object: sent, faults: [], duplicates, numbers };
  return checkDeletion(decodeBody(deletionType, parsed, (message) => badRequest(message)).object);
}

function checkDeletion(options: JsonRecord): JsonRecord {
  const policy = options['propagationPolicy'];
  if (policy !== undefined && options['orphanDependents'] !== undefined) {
    const both = `Invalid value: ${JSON.stringify(policy)}: orphanDependents and deletionPropagation cannot be both set`;
    throw invalid('DeleteOptions', 'meta.k8s.io', '', [{ field: 'propagationPolicy', message: both }]);
  }
  if (policy === undefined || ['Background', 'Foreground', 'Orphan'].includes(readText(policy))) return options;
  const supported = 'supported values: "Foreground", "Background", "Orphan", "nil"';
  const message = `Unsupported value: ${JSON.stringify(policy)}: ${supported}`;
  throw invalid('DeleteOptions', 'meta.k8s.io', '', [{ field: 'propagationPolicy', message }]);
}

function parse(body: string, at: string): unknown {
  return parseJsonBody(body, at).value;
}

function parseJsonBody(body: string, at: string): ParsedJson {
  try {
    return parseJson(body);
  } catch (error) {
    throw error instanceof JsonSyntaxError ? badRequest(`${at}${error.message}`) : error;
  }
}

/** Reads a body that may be anything, or missing. Throws a {@link StatusError}. */
export function readAny(exchange: Exchange): unknown {
  const mediaType = mediaTypeOf(exchange.request);
  const bytes = whole(exchange);
  if (bytes.length === 0) return undefined;
  if (mediaType === protobufType) return decodeProtobuf(bytes, 'DeleteOptions');
  const body = bytes.toString();
  try {
    return mediaType.endsWith('yaml') ? parseYaml(body) : JSON.parse(body);
  } catch (error) {
    throw badRequest(`error decoding the body: ${error instanceof Error ? error.message : String(error)}`);
  }
}

/** The body's media type in lower case, without its parameters; empty where they are no parameters. */
export function mediaTypeOf({ headers }: IncomingMessage): string {
  const [type = '', ...parameters] = (headers['content-type'] || 'application/json').split(';').map((one) => one.trim());
  return parameters.every((one) => one === '' || one.includes('=')) ? type.toLowerCase() : '';
}

/** Who a change is attributed to: the User-Agent up to its version. */
export function managerOf({ headers }: IncomingMessage): string {
  return (headers['user-agent'] ?? 'unknown').split('/')[0] ?? 'unknown';
}

/** Reads a request's body to its end; `undefined` where it is larger than an API server takes. */
export async function readBody(request: IncomingMessage): Promise<Buffer | undefined> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request) {
    if (!Buffer.isBuffer(chunk)) continue;
    size += chunk.length;
    if (size <= sizeLimit) chunks.push(chunk);
  }
  return size <= sizeLimit ? Buffer.concat(chunks) : undefined;
}

function open(exchange: Exchange): { readonly mediaType: string; readonly body: Buffer } {
  const mediaType = mediaTypeOf(exchange.request);
  if (!['application/json', 'application/yaml', protobufType].includes(mediaType)) {
    throw unsupported(`application/json, application/yaml, ${protobufType}`);
  }
  return { mediaType, body: whole(exchange) };
}

function whole({ body }: Exchange): Buffer {
  if (body === undefined) throw new StatusError(413, 'RequestEntityTooLarge', `Request entity too large: limit is ${sizeLimit}`);
  return body;
}

function unsupported(accepted: string): StatusError {
  const message = `the body of the request was in an unknown format - accepted media types include: ${accepted}`;
  return new StatusError(415, 'UnsupportedMediaType', message);
}

const optionKinds: Readonly<Record<string, string>> = { POST: 'CreateOptions', PUT: 'UpdateOptions', PATCH: 'PatchOptions' };

function readValidation({ request, target }: Exchange): string {
  const validation = target.query.get('fieldValidation') ?? '';
  const supported = (values: readonly string[]): string => `supported values: ${values.map((one) => JSON.stringify(one)).join(', ')}`;
  const known = ['', 'Ignore', 'Strict', 'Warn'];
  const dryRun = target.query.getAll('dryRun').filter((one) => one !== '');
  const errors = [
    ...checkPatchOptions(request, target),
    ...checkManager(target.query.get('fieldManager') ?? ''),
    ...(dryRun.every((one) => one === 'All')
      ? []
      : [{ field: 'dryRun', message: `Unsupported value: ${JSON.stringify(dryRun)}: ${supported(['All'])}` }]),
    ...(known.includes(validation)
      ? []
      : [{ field: 'fieldValidation', message: `Unsupported value: ${JSON.stringify(validation)}: ${supported(known)}` }]),
  ];
  if (errors.length > 0) throw invalid(optionKinds[request.method ?? ''] ?? 'CreateOptions', 'meta.k8s.io', '', errors);
  return validation === '' ? 'Warn' : validation;
}

function checkManager(manager: string): readonly FieldError[] {
  const field = 'fieldManager';
  return Buffer.byteLength(manager) > 128 ? [{ field, message: 'Too long: may not be more than 128 bytes' }] : [];
}

function checkPatchOptions(request: IncomingMessage, { query }: Target): readonly FieldError[] {
  if (request.method !== 'PATCH') return [];
  const isApply = mediaTypeOf(request) === 'application/apply-patch+yaml';
  if (!isApply && query.has('force')) return [{ field: 'force', message: 'Forbidden: may not be specified for non-apply patch' }];
  if (!isApply || (query.get('fieldManager') ?? '') !== '') return [];
  return [{ field: 'fieldManager', message: 'Required value: is required for apply patch' }];
}
