// A service of nested Koa routers, as users write them.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';

import { type Authority, createAuthority } from '@k8s-sa-auth/testing';
import { Router } from '@koa/router';
import Koa from 'koa';

import { as, ask } from './fixtures/ask.ts';
import { type CallerState, callerOf, k8sSaAuth, type KoaGuard } from './index.ts';

interface SecretState extends CallerState {
  secret?: string | undefined;
}

function createSecrets(): Router<SecretState> {
  const values = new Map([['db', 'postgres']]);
  const router = new Router<SecretState>({ prefix: '/secrets' });
  router.param('id', async (id, ctx, next) => {
    ctx.state.secret = values.get(id);
    if (ctx.state.secret !== undefined) await next();
  });
  router.get('/:id', (ctx) => {
    ctx.body = { value: ctx.state.secret, for: ctx.state.caller.serviceAccount };
  });
  router.put('/:id', (ctx) => {
    ctx.status = 204;
  });
  return router;
}

function createAdmin(guard: KoaGuard): Router<CallerState> {
  const admin = guard.with({ audience: 'secret-store-admin', allow: ['ops/*'] });
  const router = new Router<CallerState>({ prefix: '/admin' });
  router.get('/audit', admin, (ctx) => {
    ctx.body = callerOf(ctx).audiences;
  });
  router.del('/keys/:id', admin, (ctx) => {
    ctx.status = 204;
  });
  return router;
}

function createStore(guard: KoaGuard): Koa {
  const open = new Router();
  open.get('/healthz', (ctx) => {
    ctx.body = { ok: true };
  });
  open.get('/readyz', async (ctx) => {
    await guard.ready(AbortSignal.timeout(1_000));
    ctx.body = { ready: true };
  });
  const secrets = createSecrets();
  const v1 = new Router({ prefix: '/v1' });
  v1.use(secrets.routes(), secrets.allowedMethods());
  v1.use(createAdmin(guard).routes());
  v1.get('/metrics', guard.with({ allow: ['monitoring/prometheus'] }), (ctx) => {
    ctx.body = 'secrets_total 1';
  });
  const app = new Koa();
  app.silent = true;
  app.use(guard.wrap(v1)).use(v1.allowedMethods());
  app.use(open.routes());
  return app;
}

describe('a service of nested routers', () => {
  let authority: Authority;
  let guard: KoaGuard;
  let server: Server;
  let origin: string;

  before(async () => {
    authority = await createAuthority();
    const { apiServer } = await authority.pod('store/store');
    guard = k8sSaAuth({ audience: 'secret-store', allow: ['api/api'], apiServer });
    server = createStore(guard).listen(0, '127.0.0.1');
    await once(server, 'listening');
    // The server listens on a port.
    origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  });
  after(async () => {
    server.close();
    await guard.close();
    await authority.close();
  });

  const token = async (serviceAccount: string, audience: string) => as(await authority.token(serviceAccount, { audience, pod: 'pod-0' }));

  it('serves its callers', async () => {
    const caller = await token('api/api', 'secret-store');
    assert.equal((await ask(origin, '/v1/secrets/db', caller)).text, '{"value":"postgres","for":"api/api"}');
    assert.equal((await ask(origin, '/v1/secrets/db', { ...caller, method: 'PUT' })).status, 204);
    assert.equal((await ask(origin, '/v1/secrets/none', caller)).status, 404);
    assert.equal((await ask(origin, '/v1/secrets/none')).status, 401);
    assert.equal((await ask(origin, '/v1/secrets/db', { method: 'POST' })).status, 405);
  });

  it('serves its operators and its monitoring, each on routes of their own', async () => {
    const operator = await token('ops/alice', 'secret-store-admin');
    assert.equal((await ask(origin, '/v1/admin/audit', operator)).text, '["secret-store-admin"]');
    assert.equal((await ask(origin, '/v1/admin/keys/7', { ...operator, method: 'DELETE' })).status, 204);
    assert.equal((await ask(origin, '/v1/admin/audit', await token('api/api', 'secret-store'))).status, 403);
    assert.equal((await ask(origin, '/v1/secrets/db', operator)).status, 403);
    assert.equal((await ask(origin, '/v1/metrics', await token('monitoring/prometheus', 'secret-store'))).text, 'secrets_total 1');
    assert.equal((await ask(origin, '/v1/metrics', await token('api/api', 'secret-store'))).status, 403);
  });

  it('serves everybody where it says so', async () => {
    assert.equal((await ask(origin, '/healthz')).text, '{"ok":true}');
    assert.equal((await ask(origin, '/readyz')).text, '{"ready":true}');
    assert.equal((await ask(origin, '/nowhere')).status, 404);
  });
});
