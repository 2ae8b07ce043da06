// The guard and the client as Koa middleware, and how a guard is laid around a router.

import {
  AuthError,
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
  AuthCode,
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

const guards = new WeakSet<object>();

function asMiddleware(guard: Guard): KoaGuard {
  const middleware: Middleware<CallerState> = async (ctx, next) => {
    try {
      const caller = await guard.check(ctx.req, routeOf(ctx as object));
      if (caller !== undefined) {
        ctx.state.caller = caller;
        const { vary, ...headers } = guard.responseHeaders;
        ctx.set(headers);
        if (vary !== undefined) ctx.vary(vary);
      }
    } catch (error) {
      // On the response before it is thrown: custom error handlers drop `error.headers`.
      if (error instanceof AuthError || error instanceof ClusterError) ctx.set(error.headers);
      throw error;
    }
    await next();
  };
  const koaGuard: KoaGuard = Object.assign(middleware, {
    with: (route: RouteGuard) => asMiddleware(guard.with(route)),
    wrap: (router: RouterLike) => wrapRouter(koaGuard, router),
    ready: (signal?: AbortSignal) => guard.ready(signal),
    close: () => guard.close(),
    [Symbol.asyncDispose]: () => guard.close(),
  });
  guards.add(koaGuard);
  return koaGuard;
}

// Where @koa/router leaves the pattern of the route that it chose.
function routeOf(ctx: { readonly _matchedRoute?: unknown }): string | undefined {
  return typeof ctx._matchedRoute === 'string' ? ctx._matchedRoute : undefined;
}

interface Layer {
  readonly methods: readonly string[];
  readonly stack: readonly unknown[];
}

interface Match {
  readonly route: boolean;
  readonly pathAndMethod: readonly Layer[];
}

// The router itself decides what it answers: by path, `routerPath`, host, method, and what was added since. So the guard is not laid before
// it by a guess of our own, but at the head of the layers that the router has chosen, before any of them runs.
function wrapRouter(guard: KoaGuard, router: RouterLike): Middleware {
  if (typeof router?.routes !== 'function' || typeof router.match !== 'function' || Object.hasOwn(router, 'routes')) {
    throw new TypeError('guard.wrap(router) takes a router of @koa/router, not its routes(): app.use(guard.wrap(router))');
  }
  const guarded = Object.create(router, {
    match: {
      value: (path: string, method: string): Match => {
        const match = router.match(path, method) as Match;
        return match.route && !match.pathAndMethod.every(beginsWithGuard) ? withGuard(match, guard) : match;
      },
    },
  }) as RouterLike;
  const dispatch = guarded.routes() as Middleware;
  // A function of its own: from the `router` property of that one, another router would take the bare layers.
  return (ctx, next) => dispatch(ctx, next);
}

// A layer for all methods is `router.use`: it runs only beside a route, and is guarded by what guards the route.
function beginsWithGuard({ methods, stack }: Layer): boolean {
  const first = stack.find((step) => typeof step === 'function' && !('param' in step));
  return methods.length === 0 || (first !== undefined && guards.has(first as Middleware));
}

// At the head of each layer, since an exclusive router runs only one of them; once for each request.
function withGuard(match: Match, guard: KoaGuard): Match {
  let isGuarded = false;
  const once: Middleware = (ctx, next) => {
    if (isGuarded) return next();
    isGuarded = true;
    return guard(ctx, next);
  };
  const guardLayer = (layer: Layer): Layer => Object.create(layer, { stack: { value: [once, ...layer.stack] } }) as Layer;
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
