// The guard and the client as Express middleware. Imports nothing of Express: Express 4 and 5, Connect and Nest call it alike.

import type { IncomingMessage, ServerResponse } from 'node:http';

import {
  AuthError,
  type AuthorizedRequest,
  type Caller,
  type ClientOptions,
  checkScheme,
  ClusterError,
  createGuard,
  createServiceClient,
  fetchFor,
  type Guard,
  type GuardOptions,
  mergeHeader,
  type RouteGuard,
  type ServiceClient,
} from '@k8s-sa-auth/core';

export type {
  Allow,
  AllowPredicate,
  AskedFor,
  Attribute,
  AuthCode,
  Authorize,
  AuthorizedRequest,
  Caller,
  CallerPattern,
  ClientOptions,
  GuardOptions,
  Logger,
  RouteGuard,
  ServiceClient,
} from '@k8s-sa-auth/core';
export { AuthError, ClusterError, TokenFileError } from '@k8s-sa-auth/core';

declare global {
  namespace Express {
    interface Request {
      /** Who sent the request; undefined where nobody was proven: on public routes, and while observing. */
      caller?: Caller;
      /** The client's `serviceFetch`, cancelled when the caller hangs up. Only behind `app.use(k8sSaAuthClient(…))`. */
      serviceFetch: typeof fetch;
    }
  }
}

type Handler = (req: IncomingMessage, res: ServerResponse, next: (error?: unknown) => void) => void;

/** Middleware: `app.use('/secrets', guard, secrets)`. Guards in a chain add up, each on the same token; public routes stand before them. */
export interface ExpressGuard extends Handler, AsyncDisposable {
  /** A guard for routes that decide something for themselves. Throws a TypeError on options that are not understood. */
  with(route: RouteGuard): ExpressGuard;
  /**
   * This guard or another scheme: it decides requests that show a token in its header, `other` decides the rest. While it observes, `other`
   * decides them all. `app.get('/orders', guard.or(userJwt), orders)`
   */
  or<Req extends IncomingMessage, Res extends ServerResponse>(
    other: (req: Req, res: Res, next: (error?: unknown) => void) => unknown,
  ): (req: Req, res: Res, next: (error?: unknown) => void) => void;
  /** False in observe mode: that a request passes then says nothing about who sent it. */
  readonly enforced: boolean;
  /** For a readiness probe: see `Guard.ready`. */
  ready(signal?: AbortSignal): Promise<void>;
  /** Drops the connections to the API server; see `Guard.close`. Those made by `with` share them. */
  close(): Promise<void>;
}

/** Throws a TypeError that says what to write if the options are not understood, or if there is no API server to ask. */
export function k8sSaAuth(options: GuardOptions): ExpressGuard {
  const guard = createGuard(options);
  // Not awaited: a cluster that cannot be asked must not keep the service from starting. The guard warns.
  setImmediate(() => void guard.ready().catch(() => undefined)).unref();
  return asMiddleware(guard);
}

function asMiddleware(guard: Guard): ExpressGuard {
  function pass(req: IncomingMessage, res: ServerResponse, caller: Caller | undefined): void {
    if (caller === undefined) return;
    (req as { caller?: Caller }).caller = caller;
    setHeaders(res, guard.responseHeaders);
  }

  // The error to pass on. Never a falsy value or a word, which Express would take for "go on".
  function refuse(req: IncomingMessage, res: ServerResponse, error: unknown): Error {
    // On the response before it is passed on: custom error handlers drop `error.headers`.
    if (error instanceof AuthError || error instanceof ClusterError) {
      setHeaders(res, error.headers);
      // Express reads a body to its end before it answers an error, unless the request is finished; this one's connection ends instead.
      // https://github.com/pillarjs/finalhandler/blob/v2.1.1/index.js#L282
      if (error.headers['connection'] === 'close') Object.assign(req, { finished: true });
    }
    return error instanceof Error ? error : new Error('The guard failed', { cause: error });
  }

  const handler: Handler = (req, res, next) => decide(req, res, next, handler);

  function decide(req: IncomingMessage, res: ServerResponse, next: (error?: unknown) => void, self: object): void {
    const caller = guard.checkNow(req, routeOf(req, self), (req as { params?: AuthorizedRequest['params'] }).params);
    if ('then' in caller) {
      caller
        .then((late) => pass(req, res, late))
        .then(
          () => next(),
          (error: unknown) => next(refuse(req, res, error)),
        );
      return;
    }
    try {
      pass(req, res, caller);
    } catch (error) {
      return next(refuse(req, res, error));
    }
    next();
  }

  function alternative<Req extends IncomingMessage, Res extends ServerResponse>(
    other: (req: Req, res: Res, next: (error?: unknown) => void) => unknown,
  ): (req: Req, res: Res, next: (error?: unknown) => void) => void {
    checkScheme(other, 'guard.or(other)', 'middleware');
    return function either(req, res, next) {
      const isOurs = guard.hasToken(req);
      if (isOurs && guard.enforced) return decide(req, res, next, either);
      setHeaders(res, guard.responseHeaders);
      const ask = (error?: unknown): void => {
        if (error === undefined) void askOther(() => other(req, res, next), next);
        else next(error);
      };
      if (isOurs) decide(req, res, ask, either);
      else ask();
    };
  }

  return Object.assign(handler, {
    with: (route: RouteGuard) => asMiddleware(guard.with(route)),
    or: alternative,
    enforced: guard.enforced,
    ready: (signal?: AbortSignal) => guard.ready(signal),
    close: () => guard.close(),
    [Symbol.asyncDispose]: () => guard.close(),
  });
}

// It may be asked outside the turn in which Express catches errors. A falsy error or a word would mean "go on".
async function askOther(ask: () => unknown, next: (error: unknown) => void): Promise<void> {
  try {
    await ask();
  } catch (error) {
    next(error instanceof Error ? error : new Error('The other scheme failed', { cause: error }));
  }
}

function setHeaders(res: ServerResponse, headers: Readonly<Record<string, string>>): void {
  // Something else has answered meanwhile, such as a time-out. To set a header now would throw where nobody catches it.
  if (res.headersSent) return;
  for (const name in headers) res.setHeader(name, mergeHeader(name, res.getHeader(name), headers[name] ?? ''));
}

interface Route {
  readonly path?: unknown;
  readonly stack?: readonly { readonly handle?: unknown }[];
}

// Known where the guard stands in the route itself: Express leaves a route on the request after it has let it pass.
// Without `baseUrl`, which is part of the URL.
function routeOf({ route }: IncomingMessage & { readonly route?: Route }, handler: object): string | undefined {
  const isOurs = route?.stack?.some(({ handle }) => handle === handler) === true;
  return isOurs && typeof route.path === 'string' ? route.path : undefined;
}

/** The client, and middleware that gives each request a `req.serviceFetch` that ends with it: `app.use(client)`. */
export interface ExpressClient extends Handler, ServiceClient {}

/** Throws a TypeError on options that are not understood. Returns at once and follows the token files from then on. */
export function k8sSaAuthClient(options: ClientOptions): ExpressClient {
  const client = createServiceClient(options);
  const handler: Handler = (req, res, next) => {
    Object.assign(req, { serviceFetch: fetchFor(res, client.serviceFetch) });
    next();
  };
  return Object.assign(handler, client);
}

/** The caller of a guarded request. Throws (a 500) on a route without a guard, or behind one that only observes. */
export function callerOf(req: { readonly caller?: Caller | undefined }): Caller {
  if (req.caller !== undefined) return req.caller;
  throw new Error('callerOf: nobody was proven on this route. It is public, or its guard only observes');
}
