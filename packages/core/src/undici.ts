// The token on requests made with undici 7 or 8. An entry of its own: only its users need undici's types. Imports no undici.

import type { Duplex } from 'node:stream';

import type { Dispatcher } from 'undici';

import { unlessAborted } from './abort.ts';
import { formatCredential, refusesToken } from './credential.ts';
import { type NamedTarget, type ServiceClient, targetFinder } from './service-client.ts';
import { canSendAgain } from './service-fetch.ts';

/**
 * An undici interceptor that puts a target's token on every request to its origins and lets all else pass untouched. Where a service
 * refuses the token and the file has a newer one, the request is sent once more, unless its body is a stream or an iterable. Without a
 * token that may be sent, requests fail with a TokenFileError. Throws a TypeError on what `createServiceClient` did not make.
 *
 * It looks at the origin of each dispatch, so list it after `dns()` (which turns origins into addresses) and before `redirect()`
 * (so that each hop is looked at): `agent.compose(dns(), createInterceptor(client), redirect())`. A redirect from one origin to another
 * carries nothing. Listed after `redirect()` it turns redirects of named origins off, since that interceptor would carry the token
 * along: the 3xx is the answer. `fetch` begins anew for each redirect: over the interceptor give it `redirect: 'manual'`, or use `serviceFetch`.
 */
export function createInterceptor(client: ServiceClient): Dispatcher.DispatcherComposeInterceptor {
  const findTarget = targetFinder(client);
  // With the origin by which it was found, which is the one that is dispatched: a URL object may be another's, and change.
  const targetOf = (given: string | URL | null | undefined): readonly [NamedTarget, string] | undefined => {
    const text = (typeof given === 'string' ? given : given?.origin) ?? '';
    const asWritten = findTarget(text);
    if (asWritten !== undefined) return [asWritten, text];
    const origin = URL.parse(text)?.origin ?? '';
    const target = findTarget(origin);
    return target && [target, origin];
  };

  // A Client or Pool sends to its own origin, whatever the request says. Undici 8 tells it, and null for a pool of several.
  return (dispatch: Dispatcher.Dispatch, ownOrigin?: string | null) => {
    const chain: Chain = { dispatch, redirecting: undefined };

    return (options, handler) => {
      const found = targetOf(ownOrigin === undefined ? options.origin : ownOrigin);
      const isRedirect = chain.redirecting !== undefined && chain.redirecting.by !== found?.[0];
      // Without a slash, a proxy could take the path for a part of the host.
      if (found === undefined || isRedirect || options.path?.startsWith('/') !== true) {
        return dispatch(options, new Relay(chain, undefined, options, handler, undefined, false));
      }
      const [target, origin] = found;

      const token = target.file.peek();
      if (token !== undefined) return send(chain, target, token, { ...options, origin }, handler, canSendAgain(options.body));
      // As it is now: its owner may go on to use it for another one.
      const kept = { ...options, origin, headers: withHeader(options.headers, target.header, '') };
      unlessAborted(target.file.token(), signalOf(options))
        .then((late) => send(chain, target, late, kept, handler, canSendAgain(kept.body)))
        .catch((error: Error) => handler.onResponseError?.(inertController(error), error));
      return true;
    };
  };
}

/** What the requests through one composed dispatcher share. */
interface Chain {
  readonly dispatch: Dispatcher.Dispatch;
  /**
   * Set while the end of a redirect is handed on, for it is from within that call that `redirect()` dispatches the next hop. `by`: the target
   * that redirects, if it is one.
   */
  redirecting: { readonly by: NamedTarget | undefined } | undefined;
}

type Options = Dispatcher.DispatchOptions;
type Handler = Dispatcher.DispatchHandler;
type Controller = Dispatcher.DispatchController;
type ResponseHeaders = Parameters<NonNullable<Handler['onResponseStart']>>[2];

function send(chain: Chain, target: NamedTarget, token: string, options: Options, handler: Handler, mayAgain: boolean): boolean {
  const headers = withHeader(options.headers, target.header, formatCredential(token, target.header));
  // Read by an inner redirect(); an outer one has taken it off already. Not among the types of DispatchOptions.
  const sent = { ...options, headers, maxRedirections: 0 };
  return chain.dispatch(sent, new Relay(chain, target, sent, handler, token, mayAgain));
}

// What `request` and its like were given. Not among the types of DispatchOptions; undici takes an EventEmitter too, which ends no wait.
function signalOf(options: Options): AbortSignal | undefined {
  const { signal } = options as { readonly signal?: unknown };
  return signal instanceof AbortSignal ? signal : undefined;
}

type Headers = Dispatcher.DispatchOptions['headers'];

// Headers come as an object, a flat array of names and values, an iterable of pairs (`Headers`, `Map`), or not at all. They are copied:
// those of a request that is sent again must not have been used up.
function withHeader(headers: Headers, name: string, value: string): Record<string, string | string[] | undefined> | string[] {
  const isName = (key: string): boolean => key.length === name.length && key.toLowerCase() === name;
  if (headers && Symbol.iterator in headers) {
    const flat = [name, value];
    const pairs = Array.isArray(headers) && !Array.isArray(headers[0]) ? pairsOf(headers) : (headers as Iterable<[string, string]>);
    for (const [key, item] of pairs) if (!isName(key)) flat.push(key, item);
    return flat;
  }
  const own = { ...headers } as Record<string, string | string[] | undefined>;
  for (const key in own) if (isName(key)) delete own[key];
  own[name] = value;
  return own;
}

function* pairsOf(flat: readonly string[]): Generator<[string, string]> {
  for (let at = 0; at < flat.length; at += 2) yield [flat[at], flat[at + 1]] as [string, string];
}

const maxDroppedBytes = 65_536;
const maxDroppingMs = 1_000;

/** A response that refuses the token. */
interface Refusal {
  /** What the handler would be told, while we look for a newer token; then nothing. */
  held: (() => void)[] | undefined;
  isOver: boolean;
  /** Once the request has been sent again, the refusal is read to its end, for the sake of its connection, and nobody is told. */
  droppedBytes: number | undefined;
  deadline?: NodeJS.Timeout;
}

/** Hands everything on to a handler; a refusal of the token only once it is known that there is no newer one. For an origin that is not named, it only looks on. */
class Relay implements Handler {
  readonly #chain: Chain;
  readonly #target: NamedTarget | undefined;
  readonly #options: Options;
  readonly #handler: Handler;
  readonly #token: string | undefined;
  readonly #mayAgain: boolean;
  #refusal: Refusal | undefined;
  #isRedirect = false;

  /** `token` is the one that was sent; `mayAgain`: the request can be sent once more with a newer one. */
  constructor(
    chain: Chain,
    target: NamedTarget | undefined,
    options: Options,
    handler: Handler,
    token: string | undefined,
    mayAgain: boolean,
  ) {
    this.#chain = chain;
    this.#target = target;
    this.#options = options;
    this.#handler = handler;
    this.#token = token;
    this.#mayAgain = mayAgain;
  }

  onRequestStart(controller: Controller, context: unknown): void {
    this.#handler.onRequestStart?.(controller, context);
  }

  onBodySent(chunk: Buffer): void {
    this.#handler.onBodySent?.(chunk);
  }

  onRequestSent(): void {
    this.#handler.onRequestSent?.();
  }

  onResponseStarted(): void {
    this.#handler.onResponseStarted?.();
  }

  onRequestUpgrade(controller: Controller, statusCode: number, headers: ResponseHeaders, socket: Duplex): void {
    this.#note(statusCode, headers);
    this.#handler.onRequestUpgrade?.(controller, statusCode, headers, socket);
  }

  onResponseStart(controller: Controller, statusCode: number, headers: ResponseHeaders, statusMessage?: string): void {
    this.#isRedirect = statusCode >= 300 && statusCode <= 399 && headers['location'] !== undefined;
    const [target, token] = [this.#target, this.#token];
    if (target === undefined || token === undefined || !this.#mayAgain || !refusesToken(statusCode, headers['www-authenticate'])) {
      this.#start(controller, statusCode, headers, statusMessage);
      return;
    }
    controller.pause();
    const start = (): void => this.#start(controller, statusCode, headers, statusMessage);
    this.#refusal = { held: [start], isOver: false, droppedBytes: undefined };
    void this.#decide(controller, this.#refusal, target, token);
  }

  onResponseData(controller: Controller, chunk: Buffer): void {
    const refusal = this.#refusal;
    if (refusal?.held !== undefined) {
      refusal.held.push(() => this.#handler.onResponseData?.(controller, chunk));
    } else if (refusal?.droppedBytes === undefined) {
      this.#handler.onResponseData?.(controller, chunk);
    } else {
      refusal.droppedBytes += chunk.length;
      if (refusal.droppedBytes > maxDroppedBytes) controller.abort(new Error('The refusal is too long to be read'));
    }
  }

  onResponseEnd(controller: Controller, trailers: ResponseHeaders): void {
    const refusal = this.#refusal;
    if (refusal !== undefined) {
      refusal.isOver = true;
      clearTimeout(refusal.deadline);
    }
    if (refusal?.held !== undefined) refusal.held.push(() => this.#end(controller, trailers));
    else if (refusal?.droppedBytes === undefined) this.#end(controller, trailers);
  }

  onResponseError(controller: Controller, error: Error): void {
    clearTimeout(this.#refusal?.deadline);
    if (this.#refusal !== undefined) this.#refusal.held = undefined;
    if (this.#refusal?.droppedBytes === undefined) this.#handler.onResponseError?.(controller, error);
  }

  #start(controller: Controller, statusCode: number, headers: ResponseHeaders, statusMessage: string | undefined): void {
    this.#note(statusCode, headers);
    this.#handler.onResponseStart?.(controller, statusCode, headers, statusMessage);
  }

  #note(status: number, headers: ResponseHeaders): void {
    if (this.#token !== undefined)
      this.#target?.answers.note(String(this.#options.origin), this.#token, status, headers['www-authenticate']);
  }

  #end(controller: Controller, trailers: ResponseHeaders): void {
    const before = this.#chain.redirecting;
    if (this.#isRedirect) this.#chain.redirecting = { by: this.#target };
    try {
      this.#handler.onResponseEnd?.(controller, trailers);
    } finally {
      this.#chain.redirecting = before;
    }
  }

  // The refusal may fail meanwhile, or end in spite of the pause. What the handler throws is an error of the request, as in undici.
  async #decide(controller: Controller, refusal: Refusal, target: NamedTarget, refused: string): Promise<void> {
    try {
      const newer = await target.file.tokenAfter(refused);
      const { held } = refusal;
      if (held === undefined) return;
      refusal.held = undefined;
      if (newer === undefined) {
        for (const step of held) step();
      } else {
        refusal.droppedBytes = 0;
        const abort = (): void => controller.abort(new Error('The refusal does not end'));
        if (!refusal.isOver) refusal.deadline = setTimeout(abort, maxDroppingMs).unref();
        send(this.#chain, target, newer, this.#options, this.#handler, false);
      }
      controller.resume();
    } catch (error) {
      if (refusal.isOver) this.onResponseError(controller, error as Error);
      else controller.abort(error as Error);
    }
  }
}

// A request that was never dispatched cannot be paused or aborted.
function inertController(reason: Error): Controller {
  return { aborted: true, paused: false, reason, abort: () => {}, pause: () => {}, resume: () => {} };
}
