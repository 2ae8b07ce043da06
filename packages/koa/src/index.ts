// The guard and the client as Koa middleware, and how a guard is laid around a router.

import { isDeepStrictEqual } from 'node:util';

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

/** The state of a guarded request: `new Router<CallerState>()`. While a guard observes, `caller` may be absent in spite of its type: read `caller?.…`. */
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
   * This guard or another scheme: it decides requests that show a token in its header, `other` decides the rest. While it observes, `other`
   * decides them all. `router.get('/orders', guard.or(userJwt), orders)`
   */
  or(other: Middleware): Middleware;
  /**
   * The routes of a router, guarded: exactly what a route of this router answers, all else passes by. In place of `router.routes()`.
   * Where every route that will run begins with a guard of its own, those decide instead.
   */
  wrap(router: RouterLike): Middleware;
  /** False in observe mode: that a request passes then says nothing about who sent it. */
  readonly enforced: boolean;
  /** For a readiness probe: see `Guard.ready`. */
  ready(signal?: AbortSignal): Promise<void>;
  /** Drops the connections to the API server; see `Guard.close`. Those made by `with` share them. */
  close(): Promise<void>;
}

/** Throws a TypeError that says what to write if the options are not understood, or if there is no API server to ask. */
export function k8sSaAuth(options: GuardOptions): KoaGuard {
  const guard = createGuard(options);
  // Not awaited: a cluster that cannot be asked must not keep the service from starting. The guard warns.
  setImmediate(() => void guard.ready().catch(() => undefined)).unref();
  return asMiddleware(guard);
}

type Context = Parameters<KoaGuard>[0];
type Next = () => Promise<unknown>;
type Params = AuthorizedRequest['params'];
const noParams: Params = {};

// What each guard does with a request, by its middleware: a guard is known where it stands in a route, and can be asked before its turn.
type Step = (ctx: Context, next: Next, route: string | undefined, params: Params | (() => Params)) => unknown;
const steps = new WeakMap<object, Step>();

function asMiddleware(guard: Guard): KoaGuard {
  const pass = (ctx: Context, caller: Caller | undefined): void => {
    if (caller === undefined) return;
    ctx.state.caller = caller;
    setHeaders(ctx, guard.responseHeaders);
  };
  const refuse = (ctx: Context, error: unknown): Promise<never> => {
    // On the response before it is passed on: custom error handlers drop `error.headers`.
    if (error instanceof AuthError || error instanceof ClusterError) ctx.set(error.headers);
    return Promise.reject(error);
  };
  const admit = (ctx: Context, route: string | undefined, params: Params | (() => Params)): void | Promise<void> => {
    // What a mount or a rewrite has made of it since is not what was sent, which is what `authorize` looks at; Express keeps it itself.
    if (ctx.req.url !== ctx.originalUrl) Object.assign(ctx.req, { originalUrl: ctx.originalUrl });
    const caller = guard.checkNow(ctx.req, route, params);
    if (!('then' in caller)) return pass(ctx, caller);
    return caller.then(
      (late) => pass(ctx, late),
      (error: unknown) => refuse(ctx, error),
    );
  };
  const step: Step = (ctx, next, route, params) => {
    const waiting = admit(ctx, route, params);
    return waiting === undefined ? next() : waiting.then(next);
  };
  const koaGuard: KoaGuard = Object.assign(inPlace(step), {
    with: (route: RouteGuard) => asMiddleware(guard.with(route)),
    or(other: Middleware): Middleware {
      checkScheme(other, 'guard.or(other)', 'middleware');
      return inPlace((ctx, next, route, params) => {
        const isOurs = guard.hasToken(ctx.req);
        if (isOurs && guard.enforced) return step(ctx, next, route, params);
        setHeaders(ctx, guard.responseHeaders);
        const ask = (): Promise<unknown> => Promise.resolve(other(ctx, next));
        return isOurs ? step(ctx, ask, route, params) : ask();
      });
    },
    enforced: guard.enforced,
    wrap: (router: RouterLike) => wrapRouter(step, router),
    ready: (signal?: AbortSignal) => guard.ready(signal),
    close: () => guard.close(),
    [Symbol.asyncDispose]: () => guard.close(),
  });
  return koaGuard;
}

function inPlace(step: Step): Middleware<CallerState> {
  const middleware: Middleware<CallerState> = (ctx, next) => {
    const layer = layerOf(ctx as object, middleware);
    return step(ctx, next, layer && isRoute(layer) ? patternOf(layer) : undefined, layer === undefined ? noParams : paramsOf(ctx));
  };
  steps.set(middleware, step);
  return middleware;
}

function setHeaders({ res }: Context, headers: Readonly<Record<string, string>>): void {
  if (res.headersSent) return;
  for (const name in headers) res.setHeader(name, mergeHeader(name, res.getHeader(name), headers[name] ?? ''));
}

interface Layer {
  readonly path: unknown;
  readonly methods: readonly string[];
  readonly stack: readonly unknown[];
  captures(path: string): string[];
  params(path: string, captures: string[], existing: Params): Params;
}

interface Match {
  readonly route: boolean;
  readonly pathAndMethod: readonly Layer[];
}

// A layer for all methods is `router.use`.
const isRoute = ({ methods }: Layer): boolean => methods.length > 0;
const patternOf = (layer: Layer | undefined): string | undefined => (typeof layer?.path === 'string' ? layer.path : undefined);

const paramsOf = (ctx: object): Params => (ctx as { readonly params?: Params }).params ?? noParams;

// Known where the guard stands in the router itself: @koa/router leaves pattern and parameters on the context after its route has let the
// request pass.
function layerOf(ctx: { readonly matched?: readonly Layer[]; readonly _matchedRoute?: unknown }, guard: object): Layer | undefined {
  return ctx.matched?.find((layer) => layer.path === ctx._matchedRoute && layer.stack.includes(guard));
}

// The router itself decides what it answers: by path, `routerPath`, host, method, and what was added since. So the guard is not laid before
// it by a guess of our own, but at the head of the layers that the router has chosen, before any of them runs.
function wrapRouter(step: Step, router: RouterLike): Middleware {
  const hint = 'guard.wrap(router) takes a router of @koa/router, not its routes(): app.use(guard.wrap(router))';
  if (typeof router?.routes !== 'function' || typeof router.match !== 'function') throw new TypeError(hint);
  const guarded = Object.create(router, {
    match: {
      value: (path: string, method: string): Match => {
        const match = router.match(path, method) as Match;
        return match.route ? withGuard(match, path, step, router.exclusive === true) : match;
      },
    },
  }) as RouterLike;
  const dispatch = guarded.routes() as Middleware & { readonly router?: unknown };
  // Its own routes() would answer without asking our match().
  if (dispatch.router !== guarded) throw new TypeError(hint);
  // A function of its own: from the `router` property of that one, another router would take the bare layers.
  return (ctx, next) => dispatch(ctx, next);
}

const isParam = (step: unknown): boolean => typeof step === 'function' && 'param' in step;

// A layer's own guard stands first, but for what `router.param` puts before all else.
function ownGuard({ stack }: Layer): object | undefined {
  const first = stack[stack.findLastIndex(isParam) + 1];
  return typeof first === 'function' && steps.has(first) ? first : undefined;
}

// At the head of each layer, since an exclusive router runs only one of them; once for each request. Where every route has a guard of its
// own, the first route's is asked before what `router.use` and `router.param` put in front of it.
function withGuard(match: Match, path: string, standard: Step, isExclusive: boolean): Match {
  const routes = match.pathAndMethod.filter(isRoute);
  const owns = routes.map(ownGuard);
  const own = owns.includes(undefined) ? undefined : owns[0];
  const decide = (own && steps.get(own)) ?? standard;
  // Which of several routes will answer is not known at the first layer; a guard of its own speaks for its own route.
  const known = own !== undefined || routes.length === 1 ? routes[0] : undefined;
  let isAdmitted = false;
  let asked: Params | undefined;
  // As the route will have them: what runs first may be a layer of another pattern, and each adds to those before it.
  const paramsAt = (ctx: object, layer: Layer): Params => {
    const run = isExclusive ? [layer] : match.pathAndMethod.slice(0, match.pathAndMethod.indexOf(layer) + 1);
    return run.reduce<Params>((before, one) => one.params(path, one.captures(path), before), { ...paramsOf(ctx) });
  };
  const once =
    (layer: Layer | undefined): Middleware<CallerState> =>
    async (ctx, next) => {
      if (isAdmitted) return next();
      const go = (): Promise<unknown> => {
        isAdmitted = true;
        return next();
      };
      const params = (): Params => (layer === undefined ? noParams : (asked = paramsAt(ctx, layer)));
      return decide(ctx, go, patternOf(layer), params);
    };
  // Asked again where `router.param`, or what `router.use` put before the route, has made something else of what was asked about.
  const again =
    (layer: Layer): Middleware<CallerState> =>
    async (ctx, next) => {
      const params = paramsOf(ctx);
      return asked === undefined || isDeepStrictEqual({ ...asked }, { ...params }) ? next() : decide(ctx, next, patternOf(layer), params);
    };
  const guardStack = (layer: Layer): readonly unknown[] => {
    if (!isRoute(layer)) return [once(known), ...layer.stack];
    const first = ownGuard(layer);
    const handlers = layer.stack.findLastIndex(isParam) + 1;
    if (first === undefined || (own === undefined && !isExclusive)) {
      return [once(isExclusive ? layer : known), ...layer.stack.toSpliced(handlers, 0, again(layer))];
    }
    // A guard of its own comes where it stands once more, if something before it may have changed the parameters.
    if (layer !== known) return handlers === 0 ? layer.stack : [first, ...layer.stack];
    return [once(layer), ...layer.stack.toSpliced(handlers, 1, again(layer))];
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
