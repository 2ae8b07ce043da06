// The guard and the client as Koa middleware, and how a guard is laid around a router.

import {
  AuthError,
  type AuthorizedRequest,
  type Caller,
  type ClientOptions,
  ClusterError,
  createGuard,
  createServiceClient,
  fetchFor,
  type Guard,
  type GuardOptions,
  type RouteGuard,
  type ServiceClient,
} from '@k8s-sa-auth/core';
import type { Middleware } from 'koa';

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

/** The state of a guarded request: `new Router<CallerState>()`. While observing, `caller` may be absent: ask `callerOf`. */
export interface CallerState {
  caller: Caller;
}

/** A router of `@koa/router`: `routes()` asks `this.match()` which layers run. */
export interface RouterLike {
  routes(): unknown;
  match(path: string, method: string): { readonly route: boolean };
  readonly exclusive?: boolean;
}

/** Middleware. Guards in a chain add up, each on the same token; public routes stand before them. */
export interface KoaGuard extends Middleware<CallerState>, AsyncDisposable {
  /** A guard for routes that decide something for themselves. Throws a TypeError on options that are not understood. */
  with(route: RouteGuard): KoaGuard;
  /**
   * The routes of a router, guarded: exactly what a route of this router answers, all else passes by. In place of `router.routes()`.
   * Where every route that will run begins with a guard of its own, those decide instead.
   */
  wrap(router: RouterLike): Middleware;
  /** For a readiness probe: see `Guard.ready`. */
  ready(signal?: AbortSignal): Promise<void>;
  close(): Promise<void>;
}

/** Throws a TypeError that says what to write if the options are not understood, or if there is no API server to ask. */
export function k8sSaAuth(options: GuardOptions): KoaGuard {
  const guard = createGuard(options);
  // Not awaited: a cluster that cannot be asked must not keep the service from starting. The guard warns.
  setImmediate(() => void guard.ready().catch(() => undefined)).unref();
  return asMiddleware(guard);
}

// How each guard admits a request, by its middleware: a guard is known where it stands in a route, and can be asked before its turn.
type Admit = (ctx: Parameters<KoaGuard>[0], route: string | undefined) => void | Promise<void>;
const admits = new WeakMap<object, Admit>();

function asMiddleware(guard: Guard): KoaGuard {
  const pass = (ctx: Parameters<Admit>[0], caller: Caller | undefined): void => {
    if (caller === undefined) return;
    ctx.state.caller = caller;
    setHeaders(ctx, guard.responseHeaders);
  };
  const refuse = (ctx: Parameters<Admit>[0], error: unknown): never => {
    // On the response before it is thrown: custom error handlers drop `error.headers`.
    if (error instanceof AuthError || error instanceof ClusterError) ctx.set(error.headers);
    throw error;
  };
  const admit: Admit = (ctx, route) => {
    try {
      const caller = guard.checkNow(ctx.req, route, (ctx as { params?: AuthorizedRequest['params'] }).params);
      if (!(caller instanceof Promise)) return pass(ctx, caller);
      return caller.then(
        (late) => pass(ctx, late),
        (error: unknown) => refuse(ctx, error),
      );
    } catch (error) {
      return refuse(ctx, error);
    }
  };
  const middleware: Middleware<CallerState> = (ctx, next) => {
    const waiting = admit(ctx, routeOf(ctx as object, middleware));
    return waiting === undefined ? next() : waiting.then(next);
  };
  const koaGuard: KoaGuard = Object.assign(middleware, {
    with: (route: RouteGuard) => asMiddleware(guard.with(route)),
    wrap: (router: RouterLike) => wrapRouter(admit, router),
    ready: (signal?: AbortSignal) => guard.ready(signal),
    close: () => guard.close(),
    [Symbol.asyncDispose]: () => guard.close(),
  });
  admits.set(middleware, admit);
  return koaGuard;
}

function setHeaders(ctx: Parameters<Admit>[0], headers: Readonly<Record<string, string>>): void {
  for (const name in headers) {
    const value = headers[name] ?? '';
    if (name === 'vary' && ctx.res.hasHeader(name)) ctx.vary(value);
    else ctx.set(name, value);
  }
}

interface Layer {
  readonly path: unknown;
  readonly methods: readonly string[];
  readonly stack: readonly unknown[];
}

interface Match {
  readonly route: boolean;
  readonly pathAndMethod: readonly Layer[];
}

// A layer for all methods is `router.use`.
const isRoute = ({ methods }: Layer): boolean => methods.length > 0;
const patternOf = (layer: Layer | undefined): string | undefined => (typeof layer?.path === 'string' ? layer.path : undefined);

// Known where the guard stands in the route itself: @koa/router leaves a pattern on the context after its route has let the request pass.
function routeOf(ctx: { readonly matched?: readonly Layer[]; readonly _matchedRoute?: unknown }, guard: object): string | undefined {
  return patternOf(ctx.matched?.find((layer) => isRoute(layer) && layer.path === ctx._matchedRoute && layer.stack.includes(guard)));
}

// The router itself decides what it answers: by path, `routerPath`, host, method, and what was added since. So the guard is not laid before
// it by a guess of our own, but at the head of the layers that the router has chosen, before any of them runs.
function wrapRouter(admit: Admit, router: RouterLike): Middleware {
  const hint = 'guard.wrap(router) takes a router of @koa/router, not its routes(): app.use(guard.wrap(router))';
  if (typeof router?.routes !== 'function' || typeof router.match !== 'function') throw new TypeError(hint);
  const guarded = Object.create(router, {
    match: {
      value: (path: string, method: string): Match => {
        const match = router.match(path, method) as Match;
        return match.route ? withGuard(match, admit, router.exclusive === true) : match;
      },
    },
  }) as RouterLike;
  const dispatch = guarded.routes() as Middleware & { readonly router?: unknown };
  // Its own routes() would answer without asking our match().
  if (dispatch.router !== guarded) throw new TypeError(hint);
  // A function of its own: from the `router` property of that one, another router would take the bare layers.
  return (ctx, next) => dispatch(ctx, next);
}

// A layer's own guard stands first, but for what `router.param` puts before all else.
function ownGuard({ stack }: Layer): object | undefined {
  const first = stack.find((step) => typeof step === 'function' && !('param' in step));
  return typeof first === 'function' && admits.has(first) ? first : undefined;
}

// At the head of each layer, since an exclusive router runs only one of them; once for each request. Where every route has a guard of its
// own, the first route's is asked before what `router.use` and `router.param` put in front of it.
function withGuard(match: Match, standard: Admit, isExclusive: boolean): Match {
  const routes = match.pathAndMethod.filter(isRoute);
  const owns = routes.map(ownGuard);
  const own = owns.includes(undefined) ? undefined : owns[0];
  const admit = (own && admits.get(own)) ?? standard;
  // Which of several routes will answer is not known at the first layer; a guard of its own speaks for its own route.
  const known = own !== undefined || routes.length === 1 ? routes[0] : undefined;
  let isAdmitted = false;
  const once =
    (route: string | undefined): Middleware<CallerState> =>
    async (ctx, next) => {
      if (!isAdmitted) await admit(ctx, route);
      isAdmitted = true;
      await next();
    };
  const guardStack = (layer: Layer): readonly unknown[] => {
    const first = isRoute(layer) ? ownGuard(layer) : undefined;
    if (first === undefined || (own === undefined && !isExclusive)) {
      return [once(patternOf(isExclusive && isRoute(layer) ? layer : known)), ...layer.stack];
    }
    return [layer === known ? once(patternOf(layer)) : first, ...layer.stack.filter((step) => step !== first)];
  };
  const guardLayer = (layer: Layer): Layer => Object.create(layer, { stack: { value: guardStack(layer) } }) as Layer;
  return { ...match, pathAndMethod: match.pathAndMethod.map(guardLayer) };
}

/** The client, and middleware that gives each request a `ctx.serviceFetch` that ends with it: `app.use(client)`. */
export interface KoaClient extends Middleware<object, { serviceFetch: typeof fetch }>, ServiceClient {}

/** Throws a TypeError on options that are not understood. Returns at once and follows the token files from then on. */
export function k8sSaAuthClient(options: ClientOptions): KoaClient {
  const client = createServiceClient(options);
  const middleware: Middleware<object, { serviceFetch: typeof fetch }> = (ctx, next) => {
    ctx.serviceFetch = fetchFor(ctx.res, client.serviceFetch);
    return next();
  };
  return Object.assign(middleware, client);
}

/** The caller of a guarded request. Throws (a 500) on a route without a guard, or behind one that only observes. */
export function callerOf(ctx: { readonly state: { readonly caller?: Caller | undefined } }): Caller {
  if (ctx.state.caller !== undefined) return ctx.state.caller;
  throw new Error('callerOf: nobody was proven on this route. It is public, or its guard only observes');
}
