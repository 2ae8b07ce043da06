import assert from 'node:assert/strict';
import { once } from 'node:events';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import { Router, type RouterMiddleware } from '@koa/router';
import Koa from 'koa';

import { as, ask } from './fixtures/ask.ts';
import { type Authorize, type CallerState, k8sSaAuth, type KoaGuard } from './index.ts';

describe('authorize', () => {
  let authority: Authority;
  let pod: Pod;
  let app: Koa;
  let guard: KoaGuard;
  let server: Server | undefined;
  let api: string;

  before(async () => {
    authority = await createAuthority({ manifests: join(import.meta.dirname, 'fixtures', 'orders.yaml') });
    pod = await authority.pod('store/store');
    api = await authority.token('api/api', { audience: 'store', pod: 'api-0' });
  });
  after(() => authority.close());
  beforeEach(() => {
    app = new Koa();
    app.silent = true;
    guard = k8sSaAuth({ audience: 'store', allow: ['api/api'], apiServer: pod.apiServer });
  });
  afterEach(async () => {
    server?.close().closeAllConnections();
    await guard.close();
  });

  async function listen(): Promise<string> {
    server = app.listen(0, '127.0.0.1');
    await once(server, 'listening');
    // The server listens on a port.
    return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  }

  const readsOrder: Authorize = {
    verb: 'get',
    group: 'shop.example',
    resource: 'orders',
    namespace: 'shop',
    name: ({ params }) => params['order'],
  };
  const orders = (): KoaGuard => guard.with({ allow: 'any', authorize: readsOrder });
  const answer: RouterMiddleware = (ctx) => {
    ctx.body = `order ${ctx.params['order']}`;
  };
  const status = async (origin: string, path: string): Promise<number> => (await ask(origin, path, as(api))).status;

  it('knows the parameters where the guard is laid around a router', async () => {
    const router = new Router<CallerState>();
    router.get('/orders/:order', answer);
    app.use(orders().wrap(router));
    const origin = await listen();
    assert.equal((await ask(origin, '/orders/7', as(api))).text, 'order 7');
    assert.equal(await status(origin, '/orders/8'), 403);
  });

  it('knows them where a route’s own guard is asked before router.use and router.param', async () => {
    const steps: string[] = [];
    const router = new Router<CallerState>();
    router.use(async (_ctx, next) => {
      steps.push('use');
      await next();
    });
    router.param('order', async (order, _ctx, next) => {
      steps.push(`param ${order}`);
      await next();
    });
    router.get('/orders/:order', orders(), answer);
    app.use(guard.wrap(router));
    const origin = await listen();
    assert.equal(await status(origin, '/orders/8'), 403);
    assert.deepEqual(steps, []);
    assert.equal((await ask(origin, '/orders/7', as(api))).text, 'order 7');
    assert.deepEqual(steps, ['use', 'param 7']);
  });

  it('asks again about what router.param, or a router.use before the route, has made of them', async () => {
    const router = new Router<CallerState>();
    router.param('order', (order, ctx, next) => {
      if (order === '7') ctx.params['order'] = ctx.get('x-alias') || order;
      return next();
    });
    router.use('/changed/:order', (ctx, next) => {
      ctx.params['other'] = 'changed';
      return next();
    });
    const byOther: Authorize = { ...readsOrder, name: ({ params }) => (params['other'] === undefined ? '7' : '8') };
    router.get('/own/:order', orders(), answer);
    router.get('/around/:order', answer);
    router.get('/changed/:order', guard.with({ allow: 'any', authorize: byOther }), answer);
    router.get('/several/:order', orders(), (_ctx, next) => next());
    router.get('/several/:order', orders(), answer);
    app.use(orders().wrap(router));
    const origin = await listen();
    for (const path of ['/own/7', '/around/7', '/several/7']) {
      assert.equal(await status(origin, path), 200, path);
      assert.equal((await ask(origin, path, { headers: { ...as(api).headers, 'x-alias': '8' } })).status, 403, path);
    }
    assert.equal(await status(origin, '/changed/7'), 403);
  });

  it('knows them as what the router runs before a route has read them too', async () => {
    const router = new Router<CallerState>();
    const pass: RouterMiddleware = (_ctx, next) => next();
    router.use('/:order', pass).use('/orders/:order', pass).get('/orders/{*rest}', answer);
    app.use(orders().wrap(router));
    const origin = await listen();
    assert.equal((await ask(origin, '/orders/7/x', as(api))).text, 'order 7');
    assert.equal(await status(origin, '/orders/8/7'), 403);
  });

  it('knows those of the prefix, and of the routers around', async () => {
    const inner = new Router();
    inner.get('/orders/:order', answer);
    const outer = new Router<CallerState>({ prefix: '/shops/:shop' });
    outer.use(inner.routes());
    app.use(guard.with({ allow: 'any', authorize: { ...readsOrder, namespace: ({ params }) => params['shop'] } }).wrap(outer));
    const origin = await listen();
    assert.equal((await ask(origin, '/shops/shop/orders/7', as(api))).text, 'order 7');
    assert.equal(await status(origin, '/shops/bank/orders/7'), 403);
  });

  it('knows them in router.use, for all below', async () => {
    const inner = new Router();
    inner.get('/lines', answer);
    const router = new Router<CallerState>();
    router.use('/orders/:order', orders(), inner.routes());
    app.use(router.routes());
    const origin = await listen();
    assert.equal((await ask(origin, '/orders/7/lines', as(api))).text, 'order 7');
    assert.equal(await status(origin, '/orders/8/lines'), 403);
  });

  it('knows them in each of several routes that answer one request, for its own pattern', async () => {
    const router = new Router<CallerState>();
    router.get('/:kind/7', guard, (_ctx, next) => next());
    router.get('/orders/:order', orders(), answer);
    app.use(guard.wrap(router));
    assert.equal((await ask(await listen(), '/orders/7', as(api))).text, 'order 7');
  });

  it('refuses where it is not known yet which of several routes will answer', async () => {
    const router = new Router<CallerState>();
    router.get('/:order/:part', (_ctx, next) => next());
    router.get('/orders/:order', answer);
    app.use(orders().wrap(router));
    assert.equal(await status(await listen(), '/orders/7'), 403);
  });

  it('takes the route that an exclusive router chooses', async () => {
    const router = new Router<CallerState>({ exclusive: true });
    router.get('/:order/:part', answer);
    router.get('/orders/:order', answer);
    app.use(orders().wrap(router));
    const origin = await listen();
    assert.equal((await ask(origin, '/orders/7', as(api))).text, 'order 7');
    assert.equal(await status(origin, '/orders/8'), 403);
  });

  it('refuses where parameters were left by another router', async () => {
    const earlier = new Router();
    earlier.get('/:order/:part', (_ctx, next) => next());
    const behind = new Router<CallerState>();
    behind.get('/7/:order', answer);
    app.use(earlier.routes()).use(orders()).use(behind.routes());
    assert.equal(await status(await listen(), '/7/8'), 403);
  });

  it('looks at the path as it was sent, whatever is made of it since', async () => {
    const router = new Router<CallerState>();
    router.get('/orders/:order', answer);
    app.use((ctx, next) => {
      if (ctx.path === '/orders/8') ctx.path = '/orders/7';
      return next();
    });
    app.use(guard.with({ allow: 'any', authorize: { ...readsOrder, name: ({ path }) => path?.slice('/orders/'.length) } }).wrap(router));
    const origin = await listen();
    assert.equal((await ask(origin, '/orders/7', as(api))).text, 'order 7');
    assert.equal(await status(origin, '/orders/8'), 403);
  });

  it('refuses where there are none', async () => {
    const router = new Router<CallerState>();
    router.get('/orders/:order', answer);
    app.use(orders()).use(router.routes());
    assert.equal(await status(await listen(), '/orders/7'), 403);
  });
});
