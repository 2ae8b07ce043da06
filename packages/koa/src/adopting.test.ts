import assert from 'node:assert/strict';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { once } from 'node:events';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';

import { createServiceClient, type ServiceClient } from '@k8s-sa-auth/core';
import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import { holdObserveTimeout } from '@k8s-sa-auth/testing/adapter-cases';
import { Router } from '@koa/router';
import Koa, { type Middleware } from 'koa';

import { k8sSaAuth, type KoaGuard, type RouteGuard } from './index.ts';

holdObserveTimeout();

interface Told {
  readonly outcome: string;
  readonly enforced: boolean;
  readonly reason?: string;
  readonly caller?: { readonly serviceAccount: string };
}

// docs/adopting.md, as it is walked: one service, whose callers are an api, a job, and a script that nobody thought of.
describe('adopting', () => {
  let authority: Authority;
  let shop: Pod;
  let api: Pod;
  let job: Pod;
  let stranger: Pod;
  let server: Server | undefined;
  let guard: KoaGuard | undefined;
  let origin: string;
  let told: string[];
  let clients: ServiceClient[];
  const listen = (decision: unknown): void => {
    const { outcome, enforced, reason, caller } = decision as Told;
    told.push(`${enforced ? '' : 'would be '}${outcome} ${caller?.serviceAccount ?? reason}`);
  };

  before(async () => {
    authority = await createAuthority();
    shop = await authority.pod('shop/shop');
    api = await authority.pod('api/api', { tokens: { shop: 'shop' } });
    job = await authority.pod('jobs/report', { tokens: { shop: 'shop' } });
    stranger = await authority.pod('else/script', { tokens: { shop: 'shop' } });
    subscribe('k8s-sa-auth:decision', listen);
  });
  after(async () => {
    unsubscribe('k8s-sa-auth:decision', listen);
    await authority.close();
  });
  beforeEach(() => {
    clients = [];
  });
  afterEach(async () => {
    await Promise.all(clients.map((client) => client.close()));
    await end();
  });

  async function end(): Promise<void> {
    server?.close().closeAllConnections();
    await guard?.close();
  }

  // The next version of the service is deployed.
  async function deploy(options?: RouteGuard, writing?: RouteGuard, older: readonly Middleware[] = []): Promise<void> {
    await end();
    guard = options && k8sSaAuth({ audience: 'shop', apiServer: shop.apiServer, ...options });
    const app = new Koa();
    app.silent = true;
    const router = new Router();
    router.get('/orders', ...older, (ctx) => void (ctx.body = 'orders'));
    router.post('/orders', ...(guard && writing ? [guard.with(writing)] : []), (ctx) => void (ctx.body = 'ordered'));
    app.use(new Router().get('/healthz', (ctx) => void (ctx.body = 'ok')).routes());
    app.use(guard ? guard.wrap(router) : router.routes());
    server = app.listen(0, '127.0.0.1');
    await once(server, 'listening');
    // The server listens on a port.
    origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    told = [];
  }

  // A caller before step 1, and one that has taken it.
  const plain = async (path = '/orders', method = 'GET'): Promise<number> => (await fetch(origin + path, { method })).status;
  async function sending(pod: Pod, method = 'GET'): Promise<number> {
    const client = createServiceClient({ targets: [{ origin, tokenFile: pod.tokenFile('shop') }] });
    clients.push(client);
    return (await client.serviceFetch(`${origin}/orders`, { method })).status;
  }

  it('goes from nothing to enforcing, and back', async () => {
    await deploy();
    assert.equal(await plain(), 200);
    assert.equal(await sending(api), 200, 'a callee that knows nothing of it ignores the token');

    await deploy({ allow: 'any', mode: 'observe' });
    assert.deepEqual([await plain(), await sending(api), await sending(job), await plain('/healthz')], [200, 200, 200, 200]);
    assert.deepEqual(told, ['would be refused no_token', 'would be allowed api/api', 'would be allowed jobs/report']);

    await deploy({ allow: ['api/api'], mode: 'observe' });
    assert.deepEqual([await sending(api), await sending(job), await sending(stranger)], [200, 200, 200]);
    assert.equal(told.filter((line) => line.startsWith('would be refused')).length, 2);

    await deploy({ allow: ['api/api', 'jobs/*'], mode: 'observe' });
    assert.deepEqual([await sending(api), await sending(job)], [200, 200]);
    assert.deepEqual(told, ['would be allowed api/api', 'would be allowed jobs/report'], 'it is safe to enforce');

    await deploy({ allow: ['api/api', 'jobs/*'], mode: 'observe' }, { allow: ['api/api'], mode: 'enforce' });
    assert.deepEqual([await plain('/orders', 'POST'), await sending(job, 'POST'), await sending(api, 'POST')], [401, 403, 200]);
    assert.deepEqual([await plain(), await sending(stranger)], [200, 200], 'the other route observes still');

    await deploy({ allow: ['api/api', 'jobs/*'] });
    assert.deepEqual([await sending(api), await sending(job), await plain('/healthz')], [200, 200, 200]);
    assert.deepEqual([await plain(), await sending(stranger)], [401, 403]);

    await deploy({ allow: ['api/api', 'jobs/*'], mode: 'observe' });
    assert.deepEqual([await plain(), await sending(stranger)], [200, 200]);
  });

  it('keeps an older scheme deciding while the guard observes, and needs both until it goes', async () => {
    const withKey = async (sent?: string, token?: string): Promise<number> => {
      const headers = { ...(sent && { 'x-api-key': sent }), ...(token && { 'x-client-id': token }) };
      return (await fetch(`${origin}/orders`, { headers })).status;
    };
    const key: Middleware = async (ctx, next) => {
      if (ctx.get('x-api-key') !== 'the old key') ctx.throw(401);
      await next();
    };
    const token = await authority.token('api/api', { audience: 'shop', pod: 'api-9' });
    await deploy({ allow: ['api/api'], mode: 'observe' }, undefined, [key]);
    assert.deepEqual([await withKey('the old key'), await withKey('the old key', token), await withKey(undefined, token)], [200, 200, 401]);
    await deploy({ allow: ['api/api'] }, undefined, [key]);
    assert.deepEqual([await withKey('the old key'), await withKey('the old key', token), await withKey(undefined, token)], [401, 200, 401]);
  });
});
