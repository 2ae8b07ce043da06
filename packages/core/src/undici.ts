// The token on requests made with undici 7 or 8. An entry of its own: only its users need undici's types. Imports no undici.

import type { Dispatcher } from 'undici';

import { formatCredential } from './credential.ts';
import { type ServiceClient, targetFinder } from './service-client.ts';

/**
 * An undici interceptor that puts a target's token on every request to its origins and lets all else pass untouched.
 *
 * It looks at the origin of each dispatch, so list it after `dns()` (which turns origins into addresses) and before `redirect()`
 * (so that each hop is looked at): `agent.compose(dns(), createInterceptor(client), redirect())`. Listed after `redirect()` it turns
 * redirects of named origins off, since that interceptor would carry the token along: the 3xx is the answer.
 */
export function createInterceptor(client: ServiceClient): Dispatcher.DispatcherComposeInterceptor {
  const findTarget = targetFinder(client);
  return (dispatch) => (options, handler) => {
    const target = options.origin === undefined ? undefined : findTarget(originOf(options.origin));
    if (target === undefined) return dispatch(options, handler);

    const { header, file } = target;
    const send = (token: string): boolean =>
      dispatch({ ...options, headers: replaceHeader(options.headers, header, formatCredential(token, header)), ...noRedirect }, handler);

    const token = file.peek();
    if (token !== undefined) return send(token);
    file
      .token()
      .then(send)
      .catch((error: Error) => handler.onResponseError?.(inertController(error), error));
    return true;
  };
}

// Read by an inner redirect(); an outer one has taken it off already. Not among the types of DispatchOptions.
const noRedirect = { maxRedirections: 0 };

function originOf(origin: string | URL): string {
  return typeof origin === 'string' ? (URL.parse(origin)?.origin ?? origin) : origin.origin;
}

type Headers = Dispatcher.DispatchOptions['headers'];

// Headers come as an object, a flat array of names and values, an iterable of pairs (`Headers`, `Map`), or not at all.
function replaceHeader(headers: Headers, name: string, value: string): string[] {
  const flat: string[] = [name, value];
  const add = (key: string, item: unknown): void => {
    if (item === undefined || item === null || key.toLowerCase() === name) return;
    for (const one of Array.isArray(item) ? item : [item]) flat.push(key, String(one));
  };
  if (Array.isArray(headers)) {
    for (let at = 0; at < headers.length; at += 2) add(String(headers[at]), headers[at + 1]);
  } else if (headers && Symbol.iterator in headers) {
    for (const [key, item] of headers) add(key, item);
  } else {
    for (const [key, item] of Object.entries(headers ?? {})) add(key, item);
  }
  return flat;
}

// A request that was never dispatched cannot be paused or aborted.
function inertController(reason: Error): Dispatcher.DispatchController {
  return { aborted: true, paused: false, reason, abort: () => {}, pause: () => {}, resume: () => {} };
}
