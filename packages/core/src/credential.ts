// How a token travels in a header: reading it, taking it off the request, writing it, and the challenge when it is refused.

import type { IncomingHttpHeaders, IncomingMessage } from 'node:http';

import { type AuthCode, AuthError, ClusterError } from './errors.ts';

/** The header that carries the token: the raw token in `X-Client-Id`, or `Bearer <token>` in `Authorization` (RFC 6750). */
export type TokenHeader = 'x-client-id' | 'authorization';

/** What the guard reads of a request: `http.IncomingMessage` and `http2.Http2ServerRequest` fit. */
export interface IncomingRequest {
  readonly method?: string | undefined;
  readonly headers: IncomingHttpHeaders;
  readonly rawHeaders: string[];
  readonly headersDistinct?: NodeJS.Dict<string[]>;
  /** For the functions of `authorize`; `originalUrl` where a framework changes `url` on the way. */
  readonly url?: string | undefined;
  readonly originalUrl?: string;
  /** The connection: for as long as it lives, its last accepted token is compared instead of hashed. */
  readonly socket?: object | null;
  readonly httpVersionMajor?: number;
  /** With HTTP/2 the connection is its session; `socket` is another object for each request. */
  readonly stream?: { readonly session?: object | undefined } | null;
}

/** Why a token is refused: the code for the caller, the reason (and what the cluster said) for the operator. */
export interface Refusal {
  readonly code: AuthCode;
  readonly reason: string;
  readonly detail?: string;
}

export type Credential = { readonly token: string } | Refusal;

interface Taken {
  readonly credential: Credential;
  removed: boolean;
}

// A later guard on the same request must still see what an earlier one took off; per header, since each is read on its own. It is kept in a
// private field of the request, which ends with it and which no other code, no inspect and no JSON can see. A constructor that returns the request
// is how JavaScript adds such a field to an object that somebody else made. A WeakMap hides it as well, at several times the price
// (docs/decisions/006).
class RequestFields {
  constructor(request: object) {
    return request;
  }
}
class TakenFields extends RequestFields {
  readonly #taken: Record<TokenHeader, Taken | undefined> = { 'x-client-id': undefined, authorization: undefined };

  static of(request: object): Record<TokenHeader, Taken | undefined> {
    return (#taken in request ? request : new TakenFields(request)).#taken;
  }
}

/** Reads the token of a request, and takes its header off unless `leave` says otherwise. */
export function takeCredential(request: IncomingRequest, header: TokenHeader, leave: boolean): Credential {
  const taken = TakenFields.of(request);
  const entry = (taken[header] ??= { credential: readCredential(request.rawHeaders, header), removed: false });
  if (!leave && !entry.removed) {
    removeHeader(request, header);
    entry.removed = true;
  }
  return entry.credential;
}

// Counted in rawHeaders: Node keeps the first of two Authorization headers and joins two X-Client-Id headers.
function readCredential(rawHeaders: readonly string[], header: TokenHeader): Credential {
  let value: string | undefined;
  for (let at = 0; at < rawHeaders.length; at += 2) {
    if (!isHeader(rawHeaders[at], header)) continue;
    if (value !== undefined) return { code: 'invalid_token', reason: 'header_repeated' };
    value = rawHeaders[at + 1] ?? '';
  }
  if (value === undefined || value === '') return { code: 'missing_token', reason: 'no_token' };
  if (header === 'x-client-id') return { token: value };

  const [scheme = ''] = value.split(/[ \t]/, 1);
  if (scheme.toLowerCase() !== 'bearer') return { code: 'missing_token', reason: 'other_scheme' };
  // One space, and from there on the token alone (RFC 6750 §2.1, and stricter than RFC 9110 §11.4).
  if (value[scheme.length] === '\t') return { code: 'invalid_token', reason: 'not_a_jwt' };
  const token = value.slice(scheme.length + 1);
  return token === '' ? { code: 'missing_token', reason: 'no_token' } : { token };
}

/**
 * Whether this header shows a token of ours, good or bad. Wide, since it only says who decides, and what is kept from public routes: in
 * `Authorization`, where other schemes have theirs, whatever has a ServiceAccount's claims in it, however it is spelt.
 */
export function showsToken(request: IncomingRequest, header: TokenHeader): boolean {
  const credential = takeCredential(request, header, true);
  const code = 'code' in credential ? credential.code : undefined;
  if (header === 'x-client-id' || code === 'invalid_token') return code !== 'missing_token';
  const text = 'code' in credential ? sentIn(request.rawHeaders, header) : credential.token;
  // A Bearer token with a comma, white space or a control character counts as ours, as a repeated header does: it may be two that were joined.
  const isBroken = code === undefined && /[^!-+\--~]/.test(text);
  return isBroken || showsOurs(text);
}

const spellings: Readonly<Record<TokenHeader, string>> = { 'x-client-id': 'X-Client-Id', authorization: 'Authorization' };

/** Why there is no credential: a token of ours in the header that this guard does not read is a mistake of whoever set up the caller. */
export function explained(refusal: Refusal, { rawHeaders }: IncomingRequest, header: TokenHeader): Refusal {
  const other = header === 'authorization' ? 'x-client-id' : 'authorization';
  if (refusal.reason !== 'no_token' || !showsOurs(sentIn(rawHeaders, other))) return refusal;
  const detail = `It stands in ${spellings[other]}, and this guard reads ${spellings[header]}`;
  return { ...refusal, reason: 'token_in_other_header', detail };
}

const sentIn = (rawHeaders: readonly string[], header: TokenHeader): string =>
  rawHeaders.filter((_, at) => at % 2 === 1 && isHeader(rawHeaders[at - 1], header)).join();

// A claim of tokens that are bound, or one of those that Secrets hold.
const ourClaims = /"kubernetes\.io[^"]*"\s*:/;
const showsOurs = (text: string): boolean =>
  text.split(/[^\w-]+/).some((part) => ourClaims.test(Buffer.from(part, 'base64url').toString('latin1')));

function removeHeader(request: IncomingRequest, header: TokenHeader): void {
  // Read first, since Node makes them of rawHeaders when they are first read.
  const { headers, rawHeaders } = request;
  const { message, count, distinct } = (node ??= lookAtNode());
  const isMessage = request instanceof message;
  if (isMessage) request.headers = without(headers, header);
  else delete headers[header];
  // Hardly anybody reads headersDistinct, so it is not made only to take one out of it.
  const isCounted = isMessage && count !== undefined && distinct !== undefined;
  const made = isCounted ? fieldsOf(request)[distinct] : request.headersDistinct;
  delete (made as IncomingRequest['headersDistinct'])?.[header];
  dropPairs(rawHeaders, header);
  if (isCounted) fieldsOf(request)[count] = Math.min(Number(fieldsOf(request)[count]), rawHeaders.length);
}

// In place, since whoever holds the array must find no token there either; by hand, as splice makes an array of what it takes out.
function dropPairs(rawHeaders: string[], header: TokenHeader): void {
  let kept = 0;
  for (let at = 0; at < rawHeaders.length; at += 2) {
    const [name = '', value = ''] = [rawHeaders[at], rawHeaders[at + 1]];
    if (isHeader(name, header)) continue;
    if (kept < at) {
      rawHeaders[kept] = name;
      rawHeaders[kept + 1] = value;
    }
    kept += 2;
  }
  while (rawHeaders.length > kept) rawHeaders.pop();
}

const fieldsOf = (request: object): Record<symbol, unknown> => request as Record<symbol, unknown>;

interface NodeHttp {
  readonly message: typeof IncomingMessage;
  /** How many of rawHeaders headersDistinct is made of. */
  readonly count: symbol | undefined;
  /** Where it is once it was read. */
  readonly distinct: symbol | undefined;
}

let node: NodeHttp | undefined;

// Node has no public names for the two; should it drop these, headersDistinct is made after all. Looked at with the first request, which
// has loaded node:http.
function lookAtNode(): NodeHttp {
  const message = process.getBuiltinModule('node:http').IncomingMessage;
  const empty = Reflect.construct(message, [undefined]) as IncomingMessage;
  void empty.headersDistinct;
  const find = (name: string): symbol | undefined => Object.getOwnPropertySymbols(empty).find(({ description }) => description === name);
  return { message, count: find('kHeadersCount'), distinct: find('kHeadersDistinct') };
}

// To delete from an object makes it slow for all that read it later, and costs more than a copy. Whoever holds the old one finds no token there.
function without(headers: IncomingHttpHeaders, header: TokenHeader): IncomingHttpHeaders {
  const others: IncomingHttpHeaders = {};
  for (const name in headers) {
    if (name !== header) others[name] = headers[name];
  }
  if (header in headers) headers[header] = undefined;
  return others;
}

function isHeader(name: string | undefined, header: TokenHeader): boolean {
  return name?.length === header.length && name.toLowerCase() === header;
}

/** The value that carries a token in this header. */
export function formatCredential(token: string, header: TokenHeader): string {
  return header === 'authorization' ? `Bearer ${token}` : token;
}

interface Answer {
  readonly status: number;
  readonly challenge: string;
}

// RFC 6750 §3: each Bearer challenge has a parameter, and none of them an error code where no token was sent.
const answers: Readonly<Record<TokenHeader, Readonly<Record<AuthCode, Answer>>>> = {
  'x-client-id': {
    missing_token: { status: 401, challenge: 'ServiceAccount header="X-Client-Id"' },
    invalid_token: { status: 403, challenge: 'ServiceAccount header="X-Client-Id", error="invalid_token"' },
    caller_not_allowed: { status: 403, challenge: 'ServiceAccount header="X-Client-Id", error="caller_not_allowed"' },
  },
  authorization: {
    missing_token: { status: 401, challenge: 'Bearer realm="kubernetes"' },
    invalid_token: { status: 401, challenge: 'Bearer realm="kubernetes", error="invalid_token"' },
    caller_not_allowed: { status: 403, challenge: 'Bearer realm="kubernetes", error="insufficient_scope"' },
  },
};

/** The refusal as it goes to the caller: status, challenge, and nothing of what was found out. */
export function refusalError(code: AuthCode, request: IncomingRequest, header: TokenHeader): AuthError {
  const { status, challenge } = answers[header][code];
  return new AuthError(code, status, { 'www-authenticate': challenge, ...closing(request) });
}

/** The answer when the cluster could not be asked. The wait differs from answer to answer, so that callers do not come back as one. */
export function unavailableError(request: IncomingRequest): ClusterError {
  return new ClusterError({ 'retry-after': String(1 + Math.floor(Math.random() * 5)), ...closing(request) });
}

// The guard reads no body, and Node would go on swallowing the upload of a refused request to keep the connection.
// HTTP/2 (which has pseudo-headers) resets the stream instead, and forbids the header.
function closing({ headers }: IncomingRequest): Record<string, string> {
  const hasBody = headers['transfer-encoding'] !== undefined || (headers['content-length'] ?? '0') !== '0';
  return hasBody && headers[':method'] === undefined
    ? { 'cache-control': 'no-store', connection: 'close' }
    : { 'cache-control': 'no-store' };
}

/** What a guarded answer carries so that no shared cache keeps it (RFC 9111 §3.5 covers `Authorization` only). */
export function responseHeadersFor(header: TokenHeader): Readonly<Record<string, string>> {
  return Object.freeze(header === 'x-client-id' ? { 'cache-control': 'private', vary: 'X-Client-Id' } : {});
}

/**
 * For adapters: what a header of the answer becomes where something has set it before. `Vary` gets longer; `private` does not replace a
 * `Cache-Control` that is as strict already (RFC 9111 §5.2.2: with field names, `private` is about these alone). All else is replaced.
 */
export function mergeHeader(name: string, before: number | string | readonly string[] | undefined, value: string): string {
  if (before === undefined || (name !== 'vary' && value !== 'private')) return value;
  const text = [before].flat().join(', ');
  const unquoted = text.replaceAll(/"[^"]*"/g, '""').toLowerCase();
  const members = new Set(unquoted.split(',').map((member) => member.trim()));
  const isDone = (...ones: readonly string[]): boolean => ones.some((one) => members.has(one));
  if (name !== 'vary') return isDone('no-store', 'private') ? text : value;
  return isDone('*', value.toLowerCase()) ? text : `${text}, ${value}`;
}

/** Whether an answer refuses the token itself, so that a newer one could help; a caller who may not call is refused for good. */
export function refusesToken(status: number, challenge: string | readonly string[] | null | undefined): boolean {
  if (status !== 401 && status !== 403) return false;
  const [, error] = /\berror="?(\w+)/.exec(String(challenge)) ?? [];
  return error === 'invalid_token' || (status === 401 && error !== 'caller_not_allowed' && error !== 'insufficient_scope');
}
