// Programs as users write them: a service with mixed routes, one that calls three others, and a unit test.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import fastify, { type FastifyInstance, type FastifyPluginAsync } from 'fastify';

import { as, ask } from './fixtures/ask.ts';
import { callerOf, type ClientOptions, type K8sSaAuthOptions, k8sSaAuth, k8sSaAuthClient } from './index.ts';

const listen = (app: FastifyInstance) => app.listen({ port: 0, host: '127.0.0.1' });

describe('a service with mixed routes', () => {
  const admin: FastifyPluginAsync = async (app) => {
    await app.register(k8sSaAuth, { audience: 'secret-store-admin', allow: ['ops/*'] });
    app.get('/audit', (request) => ({ by: callerOf(request).username }));
    app.delete<{ Params: { id: string } }>('/secrets/:id', async (_request, reply) => reply.code(204).send());
    app.get('/version', { config: { k8sSaAuth: false } }, () => ({ version: '1.0.0' }));
  };

  async function createStore(options: Pick<K8sSaAuthOptions, 'apiServer'>): Promise<FastifyInstance> {
    const app = fastify();
    await app.register(k8sSaAuth, { ...options, audience: 'secret-store', allow: ['api/api', { namespace: 'batch' }] });
    app.get<{ Params: { id: string } }>('/secrets/:id', (request) => ({ id: request.params.id, for: callerOf(request).serviceAccount }));
    app.post<{ Body: { value: string } }>(
      '/secrets',
      { schema: { body: { type: 'object', required: ['value'], properties: { value: { type: 'string' } } } } },
      async (request, reply) => reply.code(201).send({ length: request.body.value.length }),
    );
    app.get('/metrics', { config: { k8sSaAuth: { allow: ['monitoring/prometheus'] } } }, () => 'secrets_total 7');
    app.get('/healthz', { config: { k8sSaAuth: false } }, () => ({ ok: true }));
    app.get('/readyz', { config: { k8sSaAuth: false } }, async () => {
      await app.k8sSaAuth.ready(AbortSignal.timeout(1_000));
      return { ready: true };
    });
    await app.register(admin, { prefix: '/admin' });
    return app;
  }

  let authority: Authority;
  let app: FastifyInstance;
  let origin: string;

  before(async () => {
    authority = await createAuthority();
    app = await createStore({ apiServer: (await authority.pod('store/store')).apiServer });
    origin = await listen(app);
  });
  after(async () => {
    await app.close();
    await authority.close();
  });

  const token = async (serviceAccount: string, audience: string) => as(await authority.token(serviceAccount, { audience, pod: 'pod-0' }));

  it('serves its callers', async () => {
    const caller = await token('api/api', 'secret-store');
    assert.equal((await ask(origin, '/secrets/db', caller)).text, '{"id":"db","for":"api/api"}');
    const posted = { method: 'POST', headers: { ...caller.headers, 'content-type': 'application/json' }, body: '{"value":"abc"}' };
    assert.equal((await ask(origin, '/secrets', posted)).text, '{"length":3}');
    assert.equal((await ask(origin, '/secrets', { ...posted, body: '{}' })).status, 400);
    assert.equal((await ask(origin, '/secrets/db', await token('batch/nightly', 'secret-store'))).status, 200);
  });

  it('serves its operators and its monitoring, each on routes of their own', async () => {
    const operator = await token('ops/alice', 'secret-store-admin');
    assert.equal((await ask(origin, '/admin/audit', operator)).text, '{"by":"system:serviceaccount:ops:alice"}');
    assert.equal((await ask(origin, '/admin/secrets/db', { ...operator, method: 'DELETE' })).status, 204);
    assert.equal((await ask(origin, '/secrets/db', operator)).status, 403);
    assert.equal((await ask(origin, '/admin/audit', await token('api/api', 'secret-store'))).status, 403);
    assert.equal((await ask(origin, '/metrics', await token('monitoring/prometheus', 'secret-store'))).status, 200);
    assert.equal((await ask(origin, '/metrics', await token('api/api', 'secret-store'))).status, 403);
  });

  it('serves everybody where it says so', async () => {
    assert.equal((await ask(origin, '/healthz')).text, '{"ok":true}');
    assert.equal((await ask(origin, '/readyz')).text, '{"ready":true}');
    assert.equal((await ask(origin, '/admin/version')).text, '{"version":"1.0.0"}');
    assert.equal((await ask(origin, '/nowhere')).status, 401);
  });
});

describe('a service with three targets', () => {
  function createGateway(options: ClientOptions & { readonly urls: Readonly<Record<'orders' | 'stock' | 'legacy', string>> }) {
    const { urls, ...client } = options;
    const app = fastify();
    app.register(k8sSaAuthClient, client);
    app.get('/page', async () => {
      const [orders, stock] = await Promise.all([app.serviceFetch(`${urls.orders}/7`), app.serviceFetch(new URL('/7', urls.stock))]);
      return { orders: await orders.json(), stock: await stock.json() };
    });
    app.get('/legacy', async () => {
      const headers = await app.serviceClient.target(urls.legacy).headers();
      return (await fetch(urls.legacy, { headers, redirect: 'error' })).json();
    });
    app.get<{ Querystring: { url: string } }>('/proxy', (request) => app.serviceFetch(request.query.url).then((answer) => answer.json()));
    app.get('/healthz', () => app.serviceClient.status().map(({ audience, error }) => ({ audience, error })));
    return app;
  }

  let authority: Authority;
  let pod: Pod;
  let services: readonly Server[] = [];

  before(async () => {
    authority = await createAuthority();
    pod = await authority.pod('shop/gateway', { tokens: { orders: 'orders', stock: 'stock', legacy: 'legacy' } });
  });
  after(async () => {
    for (const service of services) service.close().closeAllConnections();
    await authority.close();
  });

  // Answers with the audiences of the tokens that came, by header.
  async function startService(): Promise<string> {
    const audienceOf = (token: string): unknown => JSON.parse(Buffer.from(token.split('.')[1] ?? '', 'base64url').toString()).aud;
    const service = createServer(({ headers: { 'x-client-id': clientId, authorization } }, response) => {
      const tokens = [clientId, authorization?.replace('Bearer ', '')].flat().filter((token) => token !== undefined);
      response.end(JSON.stringify(tokens.map(audienceOf)));
    });
    services = [...services, service];
    await once(service.listen(0, '127.0.0.1'), 'listening');
    // The server listens on a port.
    return `http://127.0.0.1:${(service.address() as AddressInfo).port}`;
  }

  it('sends each its own token, and nobody else any', async () => {
    const urls = { orders: await startService(), stock: await startService(), legacy: await startService() };
    const stranger = await startService();
    const app = createGateway({
      urls,
      targets: [
        { origin: [urls.orders, 'http://app.orders'], tokenFile: pod.tokenFile('orders') },
        { origin: urls.stock, tokenFile: pod.tokenFile('stock') },
        { origin: urls.legacy, tokenFile: pod.tokenFile('legacy'), header: 'authorization' },
      ],
    });
    assert.deepEqual((await app.inject('/page')).json(), { orders: [['orders']], stock: [['stock']] });
    assert.deepEqual((await app.inject('/legacy')).json(), [['legacy']]);
    const refused = await app.inject({ url: '/proxy', query: { url: `${stranger}/x` } });
    assert.equal(refused.statusCode, 500);
    assert.match(refused.json<{ message: string }>().message, /No token is sent to http/);
    assert.deepEqual((await app.inject('/healthz')).json(), [{ audience: 'orders' }, { audience: 'stock' }, { audience: 'legacy' }]);
    await app.close();
  });
});

// What a user's test needs: an authority, a pod for the service, and tokens for its callers.
describe('a unit test of a service', () => {
  async function createStore(options: { readonly apiServer: Pod['apiServer'] }): Promise<FastifyInstance> {
    const app = fastify();
    await app.register(k8sSaAuth, { audience: 'store', allow: ['api/api'], ...options });
    app.get('/secret', (request) => `for ${callerOf(request).serviceAccount}`);
    return app;
  }

  it('refuses a deleted caller, on the next review', async (t) => {
    const authority = await createAuthority();
    t.after(() => authority.close());
    const store = await authority.pod('store/store');
    const app = await createStore({ apiServer: store.apiServer });
    const token = await authority.token('api/api', { audience: 'store', pod: 'api-0' });
    const other = await authority.token('api/api', { audience: 'store', pod: 'api-0' });

    const answer = await app.inject({ url: '/secret', headers: { 'x-client-id': token } });
    assert.equal(answer.body, 'for api/api');

    await authority.delete('pod', 'api/api-0');
    assert.equal((await app.inject({ url: '/secret', headers: { 'x-client-id': other } })).statusCode, 403);
    await app.close();
  });
});
