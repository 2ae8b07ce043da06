// The guard and the client as Fastify plugins: which registration decides a request, and how a decision becomes a reply.

import {
  AuthError,
  type AuthorizedRequest,
  type Caller,
  type ClientOptions,
  checkScheme,
  ClusterError,
  createGuard,
  createOptInGuard,
  createServiceClient,
  type Guard,
  type GuardOptions,
  mergeHeader,
  type OptInGuard,
  type RouteGuard,
  type ServiceClient,
} from '@k8s-sa-auth/core';
import type {
  FastifyContextConfig,
  FastifyInstance,
  FastifyPluginAsync,
  FastifyReply,
  FastifyRequest,
  onRequestAsyncHookHandler,
} from 'fastify';
import fastifyPlugin from 'fastify-plugin';

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

type OptIn = Omit<GuardOptions, 'audience' | 'allow'> & { readonly routes: 'opt-in'; readonly audience?: never; readonly allow?: never };

/** `routes: 'all'` (the default) guards every route and every 404; `'opt-in'` guards the routes whose config says so. */
export type K8sSaAuthOptions = OptIn | (GuardOptions & { readonly routes?: 'all' | 'opt-in' });

/** Another scheme, as a hook of either style: it throws, rejects or calls back with an error where it refuses. */
type Scheme = (this: FastifyInstance, request: FastifyRequest, reply: FastifyReply, done: (error?: Error) => void) => unknown;

/**
 * An `onRequest` hook: `{ onRequest: app.k8sSaAuth.with({ … }) }`. While it observes it lets everybody pass, so it must then be none of the
 * alternatives of `app.auth([…])`: use `or`.
 */
export interface FastifyGuard extends onRequestAsyncHookHandler {
  /** A guard for routes that decide something for themselves. Throws a TypeError on options that are not understood. */
  with(route: RouteGuard): FastifyGuard;
  /**
   * This guard or another scheme: it decides requests that show a token in its header, `other` decides the rest. While it observes, `other`
   * decides them all. `{ config: { k8sSaAuth: false }, onRequest: app.k8sSaAuth.or(userJwt) }`
   */
  or(other: Scheme): onRequestAsyncHookHandler;
  /** False in observe mode: that a request passes then says nothing about who sent it. */
  readonly enforced: boolean;
  /** For a readiness probe: see `Guard.ready`. */
  ready(signal?: AbortSignal): Promise<void>;
}

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Who may call this route. `false`: public. `true`: as the plugin says. Any other value fails at start. */
    k8sSaAuth?: RouteGuard | boolean;
  }
  interface FastifyRequest {
    /** Who sent the request; undefined where nobody was proven: on public routes, and while observing. */
    caller: Caller | undefined;
  }
  interface FastifyInstance {
    /** The guard of this scope, as a hook: `app.k8sSaAuth.with({ … })`. Only after `app.register(k8sSaAuth, …)`. */
    k8sSaAuth: FastifyGuard;
    /** The client's `serviceFetch`. Only after `app.register(k8sSaAuthClient, …)`. A request that ends does not cancel it. */
    serviceFetch: typeof fetch;
    /** The client itself, closed with the app. Only after `app.register(k8sSaAuthClient, …)`. */
    serviceClient: ServiceClient;
  }
}

// What a nested registration shares with the one around it: connection, memory, and what is inherited.
const bases = new WeakMap<FastifyGuard, Guard | OptInGuard>();

// Wide: a name that is not seen to be misspelt is a route without its guard.
const likeOurs = /^(?:k8s[-_]?s?a|sa[-_]?auth)/i;

async function guardPlugin(app: FastifyInstance, options: K8sSaAuthOptions): Promise<void> {
  if (Object.hasOwn(app, 'k8sSaAuth')) {
    throw new Error('k8sSaAuth is registered twice in one scope, so neither could decide. Register it once, or in a nested scope');
  }
  const { routes = 'all', ...rest } = options;
  if (routes !== 'all' && routes !== 'opt-in') throw new TypeError(`"routes" is 'all' or 'opt-in', not ${JSON.stringify(routes)}`);
  const outer = app.hasDecorator('k8sSaAuth') ? bases.get(app.k8sSaAuth) : undefined;
  const hasDefault = routes === 'all' || 'allow' in rest || 'audience' in rest;
  const base = createBase(app, rest, hasDefault, outer);
  const standard = hasDefault && 'check' in base ? base : undefined;
  const compiled = new WeakMap<RouteGuard, Guard>();
  const understood = new WeakMap<FastifyContextConfig, { readonly own: unknown; readonly guard: Guard | undefined }>();

  // Read once for each route, and anew where what it says is another value by now.
  function guardOf(config: FastifyContextConfig): Guard | undefined {
    const { k8sSaAuth: own } = config;
    const known = understood.get(config);
    if (known !== undefined && known.own === own) return known.guard;
    const guard = readConfig(config, own);
    understood.set(config, { own, guard });
    return guard;
  }

  // The guard of a route, or undefined where it is public. Throws a TypeError on a config that is not understood.
  function readConfig(config: FastifyContextConfig, own: FastifyContextConfig['k8sSaAuth']): Guard | undefined {
    const misspelt = Object.keys(config).find((key) => key !== 'k8sSaAuth' && likeOurs.test(key));
    if (misspelt !== undefined) throw new TypeError(`config.${misspelt} is not known: write config.k8sSaAuth`);
    if (!('k8sSaAuth' in config)) return routes === 'all' ? standard : undefined;
    if (own === false) return undefined;
    if (own === true && standard !== undefined) return standard;
    if (typeof own !== 'object' || own === null) {
      const inherits = standard === undefined ? '' : ', or true for what the plugin says';
      throw new TypeError(`config.k8sSaAuth is ${String(own)}. Write { audience, allow }, or false for a public route${inherits}`);
    }
    let guard = compiled.get(own);
    if (guard === undefined) {
      guard = base.with(own);
      compiled.set(own, guard);
    }
    return guard;
  }

  const guard = asHook(standard ?? unnamed, base);
  bases.set(guard, base);
  // Fails where somebody else has named a caller: on public routes theirs would pass for ours.
  if (!app.hasDecorator('k8sSaAuth')) app.decorateRequest('caller', undefined);
  app.decorate('k8sSaAuth', guard);

  app.addHook('onRoute', function checkConfig(route) {
    if (this.k8sSaAuth !== guard) return;
    try {
      guardOf(route.config ?? {});
    } catch (error) {
      if (error instanceof TypeError) error.message = `${String(route.method)} ${route.url}: ${error.message}`;
      throw error;
    }
  });

  function decide(request: FastifyRequest, reply: FastifyReply): undefined | Promise<undefined> {
    // A registration nearer to the route decides in the place of those around it.
    if (request.server.k8sSaAuth !== guard) return undefined;
    const { config, url } = request.routeOptions;
    const chosen = guardOf(config);
    if (chosen !== undefined) return admit(chosen, request, reply, url);
    base.discard(request.raw);
    return undefined;
  }

  // A hook may call back or return a promise; called back, a remembered caller costs none.
  app.addHook('onRequest', function k8sSaAuthGuard(request, reply, done) {
    const waiting = decide(request, reply);
    if (waiting === undefined) done();
    return waiting;
  });

  if (outer === undefined) {
    // Not awaited: a cluster that cannot be asked must not keep the service from starting. The guard warns.
    app.addHook('onReady', async () => void base.ready().catch(() => undefined));
    app.addHook('onClose', () => base.close());
  }
}

function createBase(
  app: FastifyInstance,
  options: Omit<K8sSaAuthOptions, 'routes'>,
  hasDefault: boolean,
  outer: Guard | OptInGuard | undefined,
): Guard | OptInGuard {
  if (outer === undefined) {
    const logged = { ...loggerOf(app), ...options };
    return hasDefault ? createGuard(logged as GuardOptions) : createOptInGuard(logged);
  }
  // Never asked without a default: it only carries what its routes inherit.
  const route = hasDefault ? options : { ...options, allow: () => false };
  return outer.with(route as RouteGuard);
}

// An app without a logger has one whose methods are all the same, and do nothing: warnings are better than silence.
function loggerOf({ log }: FastifyInstance): Pick<GuardOptions, 'logger'> {
  return log.info === log.error ? {} : { logger: log };
}

type Check = Pick<Guard, 'checkNow' | 'enforced' | 'hasToken' | 'responseHeaders'>;

// `app.k8sSaAuth` itself, where the routes alone name who may call.
const unnamed: Check = {
  checkNow: () =>
    Promise.reject(new TypeError('k8sSaAuth was registered without an audience: use app.k8sSaAuth.with({ audience, allow })')),
  hasToken: () => true,
  enforced: true,
  responseHeaders: {},
};

function asHook(guard: Check, base: Guard | OptInGuard): FastifyGuard {
  return Object.assign(
    async function k8sSaAuthGuard(this: FastifyInstance, request: FastifyRequest, reply: FastifyReply): Promise<void> {
      await admit(guard, request, reply, request.routeOptions.url);
    },
    {
      with: (route: RouteGuard): FastifyGuard => {
        const own = base.with(route);
        return asHook(own, own);
      },
      or(other: Scheme): onRequestAsyncHookHandler {
        checkScheme(other, 'app.k8sSaAuth.or(other)', 'a hook');
        return async function k8sSaAuthOr(this: FastifyInstance, request, reply) {
          const isOurs = guard.hasToken(request.raw);
          if (isOurs) await admit(guard, request, reply, request.routeOptions.url);
          if (isOurs && guard.enforced) return;
          setHeaders(reply, guard.responseHeaders);
          await runHook(other, this, request, reply);
        };
      },
      enforced: guard.enforced,
      ready: (signal?: AbortSignal): Promise<void> => base.ready(signal),
    },
  );
}

function runHook(hook: Scheme, app: FastifyInstance, request: FastifyRequest, reply: FastifyReply): Promise<void> {
  return new Promise((resolve, reject) => {
    const waiting = hook.call(app, request, reply, (error) => (error ? reject(error) : resolve()));
    if (typeof waiting === 'object' && waiting !== null && 'then' in waiting) Promise.resolve(waiting).then(() => resolve(), reject);
  });
}

// Undefined once the request is admitted, or a promise of it where there is something to wait for.
function admit(guard: Check, request: FastifyRequest, reply: FastifyReply, route: string | undefined): undefined | Promise<undefined> {
  const caller = guard.checkNow(request.raw, route, request.params as AuthorizedRequest['params']);
  if (!('then' in caller)) return pass(guard, request, reply, caller);
  return caller.then(
    (late) => pass(guard, request, reply, late),
    (error: unknown) => refuse(reply, error),
  );
}

function pass(guard: Check, request: FastifyRequest, reply: FastifyReply, caller: Caller | undefined): undefined {
  if (caller === undefined) return;
  request.caller = caller;
  setHeaders(reply, guard.responseHeaders);
}

function setHeaders(reply: FastifyReply, headers: Readonly<Record<string, string>>): void {
  for (const name in headers) reply.header(name, mergeHeader(name, reply.getHeader(name), headers[name] ?? ''));
}

function refuse(reply: FastifyReply, error: unknown): Promise<never> {
  // On the reply before it is passed on: custom error handlers drop `error.headers`.
  if (error instanceof AuthError || error instanceof ClusterError) reply.headers(withChallenges(reply, error));
  return Promise.reject(error);
}

const ourChallenge = /(?:^|, *)(?:ServiceAccount header="X-Client-Id"|Bearer realm="kubernetes")(?:, error="\w+")?/g;

// What another scheme of `app.auth` has asked for stays beside ours (RFC 9110 §11.6.1); on the error too, whose headers Fastify sets again.
// Of several guards the last one speaks: its refusal is the answer.
function withChallenges(reply: FastifyReply, error: AuthError | ClusterError): Readonly<Record<string, string>> {
  const { 'www-authenticate': ours } = error.headers;
  const before = reply.getHeader('www-authenticate');
  if (ours === undefined || before === undefined) return error.headers;
  const theirs = [before].flat().join(', ').replace(ourChallenge, '');
  const challenge = theirs === '' ? ours : `${theirs}, ${ours}`;
  return Object.assign(error, { headers: { ...error.headers, 'www-authenticate': challenge } }).headers;
}

/**
 * Guards the scope that it is registered in: `await app.register(k8sSaAuth, { audience: 'secret-store', allow: ['api/api'] })`.
 * A registration in a nested scope decides there, over the same connection and memory.
 * Fails to load with a TypeError if its options, or a route's `config.k8sSaAuth`, are not understood.
 */
export const k8sSaAuth: FastifyPluginAsync<K8sSaAuthOptions> = fastifyPlugin(guardPlugin, { fastify: '5.x', name: '@k8s-sa-auth/fastify' });

export default k8sSaAuth;

async function clientPlugin(app: FastifyInstance, options: ClientOptions): Promise<void> {
  const client = createServiceClient({ ...loggerOf(app), ...options });
  // Before a decoration can fail, as that of a second registration does.
  app.addHook('onClose', () => client.close());
  app.decorate('serviceClient', client);
  app.decorate('serviceFetch', client.serviceFetch);
}

/** `app.serviceFetch(…)` and `app.serviceClient`, which end with the app: `await app.register(k8sSaAuthClient, { targets })`. */
export const k8sSaAuthClient: FastifyPluginAsync<ClientOptions> = fastifyPlugin(clientPlugin, {
  fastify: '5.x',
  name: '@k8s-sa-auth/fastify-client',
});

/** The caller of a guarded request. Throws (a 500) on a route without a guard, or behind one that only observes. */
export function callerOf(request: { readonly caller: Caller | undefined }): Caller {
  if (request.caller !== undefined) return request.caller;
  throw new Error('callerOf: nobody was proven on this route. It is public, or its guard only observes');
}
