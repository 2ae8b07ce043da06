import assert from 'node:assert/strict';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import fastify, { type FastifyInstance, type RouteOptions } from 'fastify';

import { as, ask } from './fixtures/ask.ts';
import { callerOf, k8sSaAuth } from './index.ts';

describe('config.k8sSaAuth', () => {
  let authority: Authority;
  let pod: Pod;
  let app: FastifyInstance;
  let api: string;
  let ops: string;

  before(async () => {
    authority = await createAuthority();
    pod = await authority.pod('store/store');
    api = await authority.token('api/api', { audience: 'store', pod: 'api-0' });
    ops = await authority.token('ops/admin', { audience: ['store', 'admin'], pod: 'ops-0' });
  });
  after(() => authority.close());
  beforeEach(() => {
    app = fastify();
  });
  afterEach(() => app.close());

  const standard = () => ({ audience: 'store', allow: ['api/api'], apiServer: pod.apiServer });
  const optIn = () => ({ routes: 'opt-in' as const, apiServer: pod.apiServer });
  const listen = () => app.listen({ port: 0, host: '127.0.0.1' });
  // What a type check does not see: JSON, JavaScript, a spread.
  const unchecked = (config: object): RouteOptions => ({ method: 'GET', url: '/x', config, handler: () => 'open' });
  const refusal = (message: RegExp) => ({ name: 'TypeError', message });

  it('makes a route public with false, and takes the token off it all the same', async () => {
    await app.register(k8sSaAuth, standard());
    app.get('/healthz', { config: { k8sSaAuth: false } }, (request) => [
      request.headers['x-client-id'] ?? 'none',
      request.caller ?? 'nobody',
    ]);
    const origin = await listen();
    assert.equal((await ask(origin, '/healthz')).status, 200);
    assert.equal((await ask(origin, '/healthz', as(api))).text, '["none","nobody"]');
  });

  it('guards as the plugin says with true', async () => {
    await app.register(k8sSaAuth, { ...standard(), routes: 'opt-in' });
    app.get('/x', { config: { k8sSaAuth: true } }, () => 'x');
    app.get('/silent', () => 'silent');
    const origin = await listen();
    assert.equal((await ask(origin, '/x')).status, 401);
    assert.equal((await ask(origin, '/x', as(ops))).status, 403);
    assert.equal((await ask(origin, '/x', as(api))).text, 'x');
    assert.equal((await ask(origin, '/silent')).text, 'silent');
    assert.equal((await ask(origin, '/nowhere')).status, 404);
  });

  it('lets a route replace what the plugin says, name by name', async () => {
    await app.register(k8sSaAuth, standard());
    app.get('/admin', { config: { k8sSaAuth: { audience: 'admin', allow: ['ops/*'] } } }, (request) => callerOf(request).audiences.join());
    app.get('/both', { config: { k8sSaAuth: { allow: ['ops/admin'] } } }, (request) => callerOf(request).audiences.join());
    const origin = await listen();
    assert.equal((await ask(origin, '/admin', as(ops))).text, 'admin');
    assert.equal((await ask(origin, '/admin', as(api))).status, 403);
    assert.equal((await ask(origin, '/both', as(ops))).text, 'store');
    assert.equal((await ask(origin, '/both', as(api))).status, 403);
  });

  it('guards the HEAD route that Fastify adds, and a route of several methods', async () => {
    await app.register(k8sSaAuth, standard());
    app.get('/x', () => 'x');
    app.get('/healthz', { config: { k8sSaAuth: false } }, () => 'ok');
    app.route({ method: ['PUT', 'DELETE'], url: '/x', config: { k8sSaAuth: { allow: ['ops/*'] } }, handler: () => 'done' });
    const origin = await listen();
    assert.equal((await ask(origin, '/x', { method: 'HEAD' })).status, 401);
    assert.equal((await ask(origin, '/x', { ...as(api), method: 'HEAD' })).status, 200);
    assert.equal((await ask(origin, '/healthz', { method: 'HEAD' })).status, 200);
    assert.equal((await ask(origin, '/x', { ...as(api), method: 'DELETE' })).status, 403);
    assert.equal((await ask(origin, '/x', { ...as(ops), method: 'PUT' })).status, 200);
  });

  it('fails at start, naming the route, on a value that is not understood', async () => {
    await app.register(k8sSaAuth, standard());
    assert.throws(() => app.route(unchecked({ k8sSaAuth: undefined })), refusal(/^GET \/x: config\.k8sSaAuth is undefined/));
    assert.throws(() => app.route(unchecked({ k8sSaAuth: null })), refusal(/^GET \/x: config\.k8sSaAuth is null/));
    assert.throws(() => app.route(unchecked({ k8sSaAuth: 'any' })), refusal(/^GET \/x: config\.k8sSaAuth is any/));
    assert.throws(() => app.route(unchecked({ k8sSaAuth: 0 })), refusal(/^GET \/x: config\.k8sSaAuth is 0/));
    assert.throws(() => app.route(unchecked({ k8sSaAuth: ['ops/*'] })), refusal(/^GET \/x: /));
    assert.throws(() => app.route(unchecked({ k8sSaAuth: {} })), refusal(/^GET \/x: "allow" says who may call/));
    assert.throws(() => app.route(unchecked({ k8sSaAuth: { allow: [] } })), refusal(/^GET \/x: "allow"/));
    assert.throws(() => app.route(unchecked({ k8sSaAuth: { allow: undefined } })), refusal(/^GET \/x: "allow" is undefined/));
    assert.throws(() => app.route(unchecked({ k8sSaAuth: { allow: 'any', audiance: 'x' } })), refusal(/^GET \/x: .*"audiance"/));
    assert.throws(() => app.route(unchecked({ k8sSaAuth: { allow: 'any', header: 'authorization' } })), refusal(/^GET \/x: .*"header"/));
    assert.throws(() => app.route(unchecked({ k8sSaAuth: () => true })), refusal(/^GET \/x: /));
  });

  it('fails at start on a name that is misspelt', async () => {
    await app.register(k8sSaAuth, standard());
    assert.throws(() => app.route(unchecked({ k8sSAAuth: false })), refusal(/^GET \/x: config\.k8sSAAuth .* write config\.k8sSaAuth$/));
    assert.throws(() => app.route(unchecked({ 'k8s-sa-auth': false })), refusal(/config\.k8s-sa-auth/));
    assert.throws(() => app.route(unchecked({ k8sAuth: { allow: 'any' } })), refusal(/config\.k8sAuth/));
    assert.throws(() => app.route(unchecked({ k8sSaAuht: { allow: 'any' } })), refusal(/config\.k8sSaAuht/));
    assert.throws(() => app.route(unchecked({ saAuth: { allow: 'any' } })), refusal(/config\.saAuth/));
    assert.throws(() => app.route(unchecked({ k8sasAuth: { allow: 'any' } })), refusal(/config\.k8sasAuth/));
    app.route(unchecked({ visaAuth: true, k8sProbe: true, rateLimit: { max: 7 } }));
    assert.throws(() => app.route(unchecked({ k8sSaAuth: false, K8sSaAuth: true })), refusal(/config\.K8sSaAuth/));
  });

  it('fails at start on these where routes opt in, too', async () => {
    await app.register(k8sSaAuth, optIn());
    assert.throws(() => app.route(unchecked({ k8sSaAuth: undefined })), refusal(/^GET \/x: config\.k8sSaAuth is undefined/));
    assert.throws(
      () => app.route(unchecked({ k8sSaAuth: true })),
      refusal(/^GET \/x: config\.k8sSaAuth is true\. Write \{ audience, allow \}/),
    );
    assert.throws(() => app.route(unchecked({ k8sSaAuth: { allow: 'any' } })), refusal(/^GET \/x: "audience" is required/));
    assert.throws(() => app.route(unchecked({ k8sAuth: { audience: 'admin', allow: 'any' } })), refusal(/config\.k8sAuth/));
  });

  it('fails at start on a route of a nested scope', async () => {
    await app.register(k8sSaAuth, standard());
    const nested = async (v1: FastifyInstance): Promise<void> => {
      v1.route(unchecked({ k8sSaAuth: 'false' }));
    };
    await assert.rejects(async () => app.register(nested, { prefix: '/v1' }), refusal(/^GET \/v1\/x: config\.k8sSaAuth is false/));
  });

  it('answers 500, never open, where such a route was declared before the plugin', async () => {
    const errors: string[] = [];
    app.setErrorHandler((error: Error, _request, reply) => {
      errors.push(error.message);
      return reply.code(500).send('failed');
    });
    app.route(unchecked({ k8sSaAuth: undefined }));
    app.route({ ...unchecked({ k8sSaAuth: { allow: [] } }), url: '/y' });
    app.route({ ...unchecked({ k8ssaauth: false }), url: '/z' });
    await app.register(k8sSaAuth, standard());
    const origin = await listen();
    assert.equal((await ask(origin, '/x', as(api))).text, 'failed');
    assert.equal((await ask(origin, '/y', as(api))).text, 'failed');
    assert.equal((await ask(origin, '/z', as(api))).text, 'failed');
    assert.deepEqual(
      errors.map((message) => message.replace(/[.:].*/, '')),
      ['config', '"allow" is an empty list', 'config'],
    );
  });

  it('answers 500 where a later hook breaks the config', async () => {
    await app.register(k8sSaAuth, standard());
    app.addHook('onRoute', (route) => {
      Object.assign(route, { config: { k8sSaAuth: 'public' } });
    });
    app.get('/x', () => 'open');
    const origin = await listen();
    assert.equal((await ask(origin, '/x', as(api))).status, 500);
  });

  it('lets routes alone name the audience where they opt in', async () => {
    await app.register(k8sSaAuth, optIn());
    app.get('/silent', (request) => request.headers['x-client-id'] ?? 'taken off');
    app.get('/public', { config: { k8sSaAuth: false } }, () => 'public');
    app.get('/admin', { config: { k8sSaAuth: { audience: 'admin', allow: ['ops/*'] } } }, (request) => callerOf(request).serviceAccount);
    const origin = await listen();
    assert.equal((await ask(origin, '/silent', as(api))).text, 'taken off');
    assert.equal((await ask(origin, '/public')).text, 'public');
    assert.equal((await ask(origin, '/admin')).status, 401);
    assert.equal((await ask(origin, '/admin', as(api))).status, 403);
    assert.equal((await ask(origin, '/admin', as(ops))).text, 'ops/admin');
    assert.equal((await ask(origin, '/nowhere')).status, 404);
  });

  it('lets a nested scope opt in under a registration for all', async () => {
    await app.register(k8sSaAuth, standard());
    await app.register(
      async (mixed) => {
        await mixed.register(k8sSaAuth, { routes: 'opt-in' });
        mixed.get('/silent', () => 'silent');
        mixed.get('/inherits', { config: { k8sSaAuth: { allow: ['ops/*'] } } }, (request) => callerOf(request).audiences.join());
        assert.throws(() => mixed.route(unchecked({ k8sSaAuth: true })), refusal(/^GET \/mixed\/x: config\.k8sSaAuth is true/));
      },
      { prefix: '/mixed' },
    );
    const origin = await listen();
    assert.equal((await ask(origin, '/mixed/silent')).text, 'silent');
    assert.equal((await ask(origin, '/mixed/inherits')).status, 401);
    assert.equal((await ask(origin, '/mixed/inherits', as(ops))).text, 'store');
    assert.equal((await ask(origin, '/mixed/nowhere')).status, 401);
  });

  it('lets a nested scope guard all under a registration where routes opt in', async () => {
    await app.register(k8sSaAuth, optIn());
    app.get('/outer', () => 'outer');
    await app.register(
      async (guarded) => {
        await guarded.register(k8sSaAuth, { audience: 'store', allow: ['api/api'] });
        guarded.get('/inner', () => 'inner');
        // Which the outer one, without an audience, would not take.
        guarded.get('/same', { config: { k8sSaAuth: true } }, () => 'same');
      },
      { prefix: '/guarded' },
    );
    const origin = await listen();
    assert.equal((await ask(origin, '/outer')).text, 'outer');
    assert.equal((await ask(origin, '/guarded/inner')).status, 401);
    assert.equal((await ask(origin, '/guarded/inner', as(api))).text, 'inner');
    assert.equal((await ask(origin, '/guarded/same')).status, 401);
  });

  it('asks a predicate about the pattern of the matched route', async () => {
    await app.register(k8sSaAuth, {
      ...standard(),
      allow: ({ serviceAccount }, { method, route }) => serviceAccount === 'api/api' && method === 'GET' && route === '/items/:id',
    });
    app.get('/items/:id', () => 'item');
    app.get('/items/all', () => 'all');
    const origin = await listen();
    assert.equal((await ask(origin, '/items/7', as(api))).text, 'item');
    assert.equal((await ask(origin, '/items/all', as(api))).status, 403);
    assert.equal((await ask(origin, '/items/7', { ...as(api), method: 'HEAD' })).status, 403);
    assert.equal((await ask(origin, '/nowhere', as(api))).status, 403);
  });

  it('binds to the matched route, however the path is spelt', async () => {
    const tolerant = fastify({ routerOptions: { caseSensitive: false, ignoreDuplicateSlashes: true, ignoreTrailingSlash: true } });
    await tolerant.register(k8sSaAuth, standard());
    tolerant.get('/public', { config: { k8sSaAuth: false } }, () => 'public');
    tolerant.get('/admin', { config: { k8sSaAuth: { audience: 'admin', allow: ['ops/*'] } } }, () => 'admin');
    const origin = await tolerant.listen({ port: 0, host: '127.0.0.1' });
    assert.equal((await ask(origin, '/%61dmin', as(api))).status, 403);
    assert.equal((await ask(origin, '/ADMIN', as(api))).status, 403);
    assert.equal((await ask(origin, '//admin', as(api))).status, 403);
    assert.equal((await ask(origin, '/admin/', as(api))).status, 403);
    assert.equal((await ask(origin, '/admin?/public', as(api))).status, 403);
    assert.equal((await ask(origin, '/public/../admin', as(api))).status, 404);
    assert.equal((await ask(origin, '/public%2f..%2fadmin', as(api))).status, 404);
    assert.equal((await ask(origin, '/admin;x', as(api))).status, 404);
    assert.equal((await ask(origin, '/%61DMIN/', as(ops))).text, 'admin');
    assert.equal((await ask(origin, '/Public//')).text, 'public');
    assert.equal((await ask(origin, '/%zz')).status, 400);
    await tolerant.close();
  });

  it('guards routes that differ in host or version alone', async () => {
    await app.register(k8sSaAuth, standard());
    const admin = { audience: 'admin', allow: ['ops/*'] };
    app.get('/x', { constraints: { host: 'admin.shop' }, config: { k8sSaAuth: admin } }, () => 'admin');
    app.get('/x', { constraints: { version: '2.0.0' }, config: { k8sSaAuth: false } }, () => 'version 2');
    app.get('/x', () => 'x');
    const origin = await listen();
    const withHeaders = (token: string, headers: object) => ({ headers: { 'x-client-id': token, ...headers } });
    assert.equal((await ask(origin, '/x', withHeaders(api, { host: 'admin.shop' }))).status, 403);
    assert.equal((await ask(origin, '/x', withHeaders(ops, { host: 'admin.shop' }))).text, 'admin');
    assert.equal((await ask(origin, '/x', withHeaders('', { 'accept-version': '2.x' }))).text, 'version 2');
    assert.equal((await ask(origin, '/x', withHeaders(ops, {}))).status, 403);
    assert.equal((await ask(origin, '/x', withHeaders(api, {}))).text, 'x');
  });
});
