// The client's fetch: which request carries the token, which is sent once more, and which redirect is followed.

import type { ServerResponse } from 'node:http';
import type { Http2ServerResponse } from 'node:http2';

import { unlessAborted } from './abort.ts';
import { formatCredential, refusesToken } from './credential.ts';
import type { NamedTarget } from './service-client.ts';

const maxRedirections = 20;

/** `findTarget` throws on an origin that is not named. */
export function createServiceFetch(findTarget: (url: URL) => NamedTarget, chosen: typeof fetch | undefined): typeof fetch {
  return async (input, given) => {
    // Read once, before anything is waited for: what is looked at is what is sent, whatever becomes of it meanwhile.
    const request = typeof input === 'object' && 'url' in input ? input : undefined;
    // A Request of the built-in fetch goes to that as it is. One for another fetch, or made by another, is taken apart by its members.
    const whole = request instanceof Request && chosen === undefined ? request : undefined;
    const init = { ...(whole === undefined && request !== undefined && initOf(request)), ...(given && initOf(given)) };
    if (init.body) init.body = copyOf(init.body);
    const own = <K extends keyof Request>(name: K): Request[K] | undefined => whole && Reflect.get(Request.prototype, name, whole);
    let url = new URL(request === undefined ? input : (own('url') ?? request.url));
    const { header, file, answers } = findTarget(url);
    const { origin } = url;
    // As text, which is what fetch makes of whatever else it is.
    const redirect: unknown = init.redirect ?? own('redirect') ?? 'follow';
    const mode = String(redirect) as NonNullable<RequestInit['redirect']>;
    const follow = mode === 'follow';
    const headers = new Headers(init.headers ?? own('headers'));
    const signal = init.signal ?? own('signal');
    let options: RequestInit = { ...init, redirect: follow ? 'manual' : mode };
    let sentAgain = false;

    for (let hops = 0; ; hops++) {
      const first = hops === 0 ? whole : undefined;
      const send = (token: string): Promise<Response> => {
        headers.set(header, formatCredential(token, header));
        return (chosen ?? fetch)(first ?? url.href, { ...options, headers });
      };
      let token = file.peek() ?? (await unlessAborted(file.token(), signal));
      let answer = await send(token);

      if (follow && answer.redirected) {
        throw new TypeError('The "fetch" option follows redirects by itself, with the token: it must obey redirect: "manual"');
      }
      let challenge = answer.headers.get('www-authenticate');
      if (!sentAgain && refusesToken(answer.status, challenge) && canSendAgain(options.body ?? first?.body)) {
        const newer = await file.tokenAfter(token);
        if (newer !== undefined) {
          sentAgain = true;
          await discard(answer);
          token = newer;
          answer = await send(token);
          challenge = answer.headers.get('www-authenticate');
        }
      }
      answers.note(origin, token, answer.status, challenge);

      const location = follow && isRedirect(answer.status) ? answer.headers.get('location') : null;
      // As fetch would say, which has followed none itself.
      if (location === null) return hops === 0 ? answer : Object.defineProperty(answer, 'redirected', { value: true });
      await discard(answer);
      url = readLocation(location, url);
      if (url.origin !== origin) {
        throw new TypeError(
          `${origin} redirects to ${url.origin}: a token for one origin is not taken to another. Call that origin by its own target`,
        );
      }
      if (hops === maxRedirections) throw new TypeError(`${origin} redirects more than ${maxRedirections} times`);
      options = redirected(answer.status, headers, options, first);
    }
  };
}

// What fetch reads by name, whoever has it: own, or inherited as from a `Request` that is taken for an init.
const members = [
  'method',
  'headers',
  'body',
  'redirect',
  'signal',
  'credentials',
  'cache',
  'mode',
  'referrer',
  'referrerPolicy',
  'integrity',
  'keepalive',
  'duplex',
  'dispatcher',
] as const;

function initOf(given: object): RequestInit {
  const init: Record<string, unknown> = { ...given };
  for (const name of members) {
    if (Object.hasOwn(given, name)) continue;
    const value: unknown = Reflect.get(given, name);
    if (value !== undefined && value !== null) init[name] = value;
  }
  return init;
}

// Bytes and fields that their owner may change: fetch takes them as they are when it is called.
function copyOf(body: NonNullable<RequestInit['body']>): NonNullable<RequestInit['body']> {
  if (body instanceof ArrayBuffer) return body.slice(0);
  if (ArrayBuffer.isView(body)) return new Uint8Array(body.buffer, body.byteOffset, body.byteLength).slice();
  if (body instanceof URLSearchParams) return new URLSearchParams(body);
  if (!(body instanceof FormData)) return body;
  const copy = new FormData();
  // A file keeps its name.
  for (const [name, value] of body) copy.append(name, value);
  return copy;
}

// RFC 9110 §10.2.2, in UTF-8 where it is no ASCII. What is told of it is its origin alone: the rest may repeat what was sent.
function readLocation(location: string, from: URL): URL {
  const url = URL.parse(Buffer.from(location, 'latin1').toString(), from.href);
  if (url === null || url.username !== '' || url.password !== '') {
    throw new TypeError(`${from.origin} redirects to what is no URL to be followed: it cannot be read, or has a user in it`);
  }
  return url;
}

/** Whether a body is still whole after it was sent: a stream, an iterable, and the body of a `Request` are not. */
export function canSendAgain(body: unknown): boolean {
  if (body === undefined || body === null || typeof body === 'string') return true;
  return [ArrayBuffer, URLSearchParams, FormData, Blob].some((kind) => body instanceof kind) || ArrayBuffer.isView(body);
}

// A body that nobody reads holds its connection. That it cannot be cancelled says that it is over.
async function discard(answer: Response): Promise<void> {
  await answer.body?.cancel().catch(() => {});
}

const isRedirect = (status: number): boolean => [301, 302, 303, 307, 308].includes(status);

// https://fetch.spec.whatwg.org/#http-redirect-fetch: which requests become a GET, and which body can be sent again.
function redirected(status: number, headers: Headers, options: RequestInit, request: Request | undefined): RequestInit {
  const method = (options.method ?? request?.method ?? 'GET').toUpperCase();
  const signal = options.signal ?? request?.signal;
  const { body: given, ...rest }: RequestInit = { ...options, method, ...(signal && { signal }) };
  if (((status === 301 || status === 302) && method === 'POST') || (status === 303 && method !== 'GET' && method !== 'HEAD')) {
    for (const name of ['content-encoding', 'content-language', 'content-location', 'content-type', 'content-length']) headers.delete(name);
    return { ...rest, method: 'GET' };
  }
  const body = given ?? request?.body;
  if (!canSendAgain(body)) {
    throw new TypeError(`A redirect with status ${status} needs the body once more, and a stream cannot be sent again`);
  }
  return { ...rest, ...(body && { body }) };
}

/** The client's fetch for one incoming request: what it called is cancelled when its caller hangs up before the response is finished. */
export function fetchFor(response: ServerResponse | Http2ServerResponse, serviceFetch: typeof fetch): typeof fetch {
  let gone: AbortController | undefined;
  return (input, init) => {
    if (gone === undefined) {
      const controller = new AbortController();
      gone = controller;
      // With HTTP/2 the stream knows: there each response says that it is finished.
      const stream = 'stream' in response ? response.stream : undefined;
      const abort = (): void => {
        const isCut = stream === undefined ? !response.writableFinished : stream.aborted;
        if (isCut) controller.abort(new DOMException('The caller hung up', 'AbortError'));
      };
      if (stream === undefined ? (response as ServerResponse).closed : stream.closed) abort();
      else response.once('close', abort);
    }
    const signal = init?.signal ?? (typeof input === 'object' && 'signal' in input ? input.signal : undefined);
    return serviceFetch(input, { ...init, signal: signal ? AbortSignal.any([signal, gone.signal]) : gone.signal });
  };
}
