import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import fastify, { type FastifyInstance, type FastifyRequest } from 'fastify';

import { as, ask } from './fixtures/ask.ts';
import { type Authorize, k8sSaAuth } from './index.ts';

describe('authorize', () => {
  let authority: Authority;
  let pod: Pod;
  let app: FastifyInstance;
  let api: string;

  before(async () => {
    authority = await createAuthority({ manifests: join(import.meta.dirname, 'fixtures', 'orders.yaml') });
    pod = await authority.pod('store/store');
    api = await authority.token('api/api', { audience: 'store', pod: 'api-0' });
  });
  after(() => authority.close());
  beforeEach(() => {
    app = fastify();
  });
  afterEach(() => app.close());

  const readsOrder: Authorize = {
    verb: 'get',
    group: 'shop.example',
    resource: 'orders',
    namespace: 'shop',
    name: ({ params }) => params['order'],
  };
  const standard = () => ({ audience: 'store', allow: ['api/api'], apiServer: pod.apiServer });
  const listen = () => app.listen({ port: 0, host: '127.0.0.1' });
  type OrderRequest = FastifyRequest<{ Params: { order: string } }>;
  const answer = ({ params }: OrderRequest): string => `order ${params.order}`;
  const status = async (origin: string, path: string): Promise<number> => (await ask(origin, path, as(api))).status;

  it('knows the parameters of every route, and refuses the 404s, which have none', async () => {
    await app.register(k8sSaAuth, { ...standard(), authorize: readsOrder });
    app.get('/orders/:order', answer);
    app.get('/about', { config: { k8sSaAuth: { allow: 'any', authorize: false } } }, () => 'about');
    const origin = await listen();
    assert.equal((await ask(origin, '/orders/7', as(api))).text, 'order 7');
    assert.equal(await status(origin, '/orders/8'), 403);
    assert.equal(await status(origin, '/nowhere'), 403);
    assert.equal((await ask(origin, '/about', as(api))).text, 'about');
  });

  it('knows those of the prefixes around a route', async () => {
    await app.register(k8sSaAuth, { routes: 'opt-in', apiServer: pod.apiServer, authorize: readsOrder });
    await app.register(async (scope) => scope.get('/lines', { config: { k8sSaAuth: { audience: 'store', allow: 'any' } } }, answer), {
      prefix: '/orders/:order',
    });
    const origin = await listen();
    assert.equal((await ask(origin, '/orders/7/lines', as(api))).text, 'order 7');
    assert.equal(await status(origin, '/orders/8/lines'), 403);
  });

  it('is inherited by a registration in a nested scope, which may drop it', async () => {
    await app.register(k8sSaAuth, { ...standard(), authorize: readsOrder });
    await app.register(async (scope) => {
      await scope.register(k8sSaAuth, { audience: 'store', allow: 'any' });
      scope.get('/orders/:order', answer);
    });
    await app.register(async (scope) => {
      await scope.register(k8sSaAuth, { audience: 'store', allow: 'any', authorize: false });
      scope.get('/open/:order', answer);
    });
    const origin = await listen();
    assert.equal(await status(origin, '/orders/7'), 200);
    assert.equal(await status(origin, '/orders/8'), 403);
    assert.equal(await status(origin, '/open/8'), 200);
  });

  it('fails at start where a route asks for something that is not understood', async () => {
    await app.register(k8sSaAuth, standard());
    const config = JSON.parse('{ "k8sSaAuth": { "allow": "any", "authorize": { "verb": "get", "resources": "orders" } } }');
    assert.throws(() => app.get('/orders/:order', { config }, answer), /GET \/orders\/:order: "authorize" does not know "resources"/);
  });

  it('is a mistake of ours behind a schema that has made a number of the parameter', async () => {
    await app.register(k8sSaAuth, { ...standard(), routes: 'opt-in' });
    const schema = { params: { type: 'object', properties: { order: { type: 'integer' } } } };
    const guard = app.k8sSaAuth.with({ allow: 'any', authorize: readsOrder });
    app.get('/first/:order', { schema, onRequest: guard }, () => 'order');
    app.get('/last/:order', { schema, preHandler: guard }, () => 'order');
    const origin = await listen();
    assert.equal(await status(origin, '/first/7'), 200);
    assert.equal(await status(origin, '/last/7'), 500);
  });
});
