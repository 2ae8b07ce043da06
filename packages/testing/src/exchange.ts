// One request on its way to its answer: who asks, for what, and its body in the forms in which it may have been sent.
import type { IncomingMessage } from 'node:http';
import { parse as parseYaml } from 'yaml';
import { checkAcceptable } from './answer.ts';
import { decodeValue, decodeBody, decodeText } from './decoding.ts';
import type { BodyType, DecodedBody } from './decoding.ts';
import type { JsonRecord } from './json.ts';
import { decodeProtobuf, protobufType } from './protobuf.ts';
import type { UserInfo } from './rbac.ts';
import { badRequest, StatusError } from './status.ts';
import type { Target } from './target.ts';

/** A request and what has been found out about it. */
export interface Exchange {
  readonly request: IncomingMessage;
  readonly target: Target;
  /** `undefined` where it was too large. */
  readonly body: Buffer | undefined;
  user: UserInfo | undefined;
  readonly warnings: string[];
}

const sizeLimit = 3 * 1024 * 1024;

/** Reads the body of a review or a token request. Throws a {@link StatusError}. */
export function decode(exchange: Exchange, type: BodyType): DecodedBody {
  const { mediaType, body } = open(exchange);
  const validation = readValidation(exchange);
  const options = { yaml: mediaType === 'application/yaml', strict: validation === 'Strict' };
  const decoded =
    mediaType === protobufType ? decodeValue(type, decodeProtobuf(body, type.kind), options) : decodeBody(type, body.toString(), options);
  if (validation === 'Warn') exchange.warnings.push(...decoded.warnings);
  return decoded;
}

/** Reads the body of an object of this kind, whatever fields it has. Throws a {@link StatusError}. */
export function readObject(exchange: Exchange, type: Pick<BodyType, 'kind' | 'apiVersion'>): JsonRecord {
  const { mediaType, body } = open(exchange);
  readValidation(exchange);
  if (mediaType === protobufType) return decodeProtobuf(body, type.kind);
  return decodeText(type, body.toString(), mediaType === 'application/yaml');
}

/** Reads a body that may be anything, or missing: a patch, or the options of a deletion. Throws a {@link StatusError}. */
export function readAny(exchange: Exchange): unknown {
  checkAcceptable(exchange.request);
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

/** The body's media type, without its parameters. */
export function mediaTypeOf({ headers }: IncomingMessage): string {
  return (headers['content-type'] ?? 'application/json').split(';')[0]?.trim() ?? '';
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
  checkAcceptable(exchange.request);
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

function readValidation({ target }: Exchange): string {
  const validation = target.query.get('fieldValidation') ?? 'Warn';
  if (!['Ignore', 'Strict', 'Warn'].includes(validation)) throw badRequest(`invalid fieldValidation "${validation}"`);
  return validation;
}
