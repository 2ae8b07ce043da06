// The client's fetch: which request carries the token, which is sent once more, and which redirect is followed.

import type { ServerResponse } from 'node:http';

import { formatCredential, refusesToken } from './credential.ts';
import type { NamedTarget } from './service-client.ts';

const maxRedirections = 20;

/** `findTarget` throws on an origin that is not named. */
export function createServiceFetch(findTarget: (url: URL) => NamedTarget, chosen: typeof fetch | undefined): typeof fetch {
  return async (input, given) => {
    // Read once: what is looked at is what is sent.
    const init = { ...given };
    const request = typeof input === 'object' && 'url' in input ? input : undefined;
    let url = new URL(typeof input === 'object' && 'url' in input ? urlOf(input) : input);
    const { header, file } = findTarget(url);
    const { origin } = url;
    const follow = (init.redirect ?? request?.redirect ?? 'follow') === 'follow';
    const headers = new Headers(init.headers ?? request?.headers);
    let options: RequestInit = { ...init, ...(follow && { redirect: 'manual' }) };
    let sentAgain = false;

    for (let hops = 0; ; hops++) {
      const first = hops === 0 ? request : undefined;
      const send = (token: string): Promise<Response> => {
        headers.set(header, formatCredential(token, header));
        return (chosen ?? fetch)(first ?? url.href, { ...options, headers });
      };
      const token = await file.token();
      let answer = await send(token);

      if (follow && answer.redirected) {
        throw new TypeError('The "fetch" option follows redirects by itself, with the token: it must obey redirect: "manual"');
      }
      const challenge = answer.headers.get('www-authenticate');
      if (!sentAgain && refusesToken(answer.status, challenge) && canSendAgain(options.body ?? first?.body)) {
        const newer = await file.tokenAfter(token);
        if (newer !== undefined) {
          sentAgain = true;
          await discard(answer);
          answer = await send(newer);
        }
      }

      const location = follow && isRedirect(answer.status) ? answer.headers.get('location') : null;
      if (location === null) return answer;
      await discard(answer);
      url = new URL(location, url);
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

// Past what a subclass says of itself: fetch goes by the request, not by its properties.
function urlOf(request: { readonly url: string }): string {
  return request instanceof Request ? Reflect.get(Request.prototype, 'url', request) : request.url;
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
export function fetchFor(response: ServerResponse, serviceFetch: typeof fetch): typeof fetch {
  let gone: AbortController | undefined;
  return (input, init) => {
    if (gone === undefined) {
      const controller = new AbortController();
      gone = controller;
      const abort = (): void => {
        if (!response.writableFinished) controller.abort(new DOMException('The caller hung up', 'AbortError'));
      };
      if (response.closed) abort();
      else response.once('close', abort);
    }
    const signal = init?.signal ?? (typeof input === 'object' && 'signal' in input ? input.signal : undefined);
    return serviceFetch(input, { ...init, signal: signal ? AbortSignal.any([signal, gone.signal]) : gone.signal });
  };
}
