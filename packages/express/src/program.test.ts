// A service of several Express routers, as users write them.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';

import { type Authority, createAuthority } from '@k8s-sa-auth/testing';
import express, { type ErrorRequestHandler, type Express, Router } from 'express';

import { as, ask } from './fixtures/ask.ts';
import { callerOf, type ExpressGuard, k8sSaAuth } from './index.ts';

function createSecrets(): Router {
  const router = Router();
  const values = new Map([['db', 'postgres']]);
  router.use(express.json());
  router.param('id', (_req, res, next, id: string) => {
    if (values.has(id)) next();
    else res.sendStatus(404);
  });
  router.get('/:id', (req, res) => {
    res.json({ value: values.get(req.params.id), for: callerOf(req).serviceAccount });
  });
  router.post('/', (req, res) => {
    const { id, value }: { readonly id?: unknown; readonly value?: unknown } = req.body;
    values.set(String(id), String(value));
    res.status(201).json({ by: req.caller?.pod?.name });
  });
  return router;
}

function createAdmin(): Router {
  const router = Router({ caseSensitive: true, strict: true });
  router.get('/audit', (req, res) => void res.json(callerOf(req).audiences));
  router
    .route('/keys')
    .get((_req, res) => void res.json([]))
    .delete((_req, res) => void res.sendStatus(204));
  return router;
}

function createStore(guard: ExpressGuard): Express {
  const app = express().disable('x-powered-by');
  app.get('/healthz', (_req, res) => void res.json({ ok: true }));
  app.get('/readyz', (_req, res, next) => {
    guard.ready(AbortSignal.timeout(1_000)).then(() => res.json({ ready: true }), next);
  });
  const admin = guard.with({ audience: 'secret-store-admin', allow: ['ops/*'] });
  app.use('/admin', admin, createAdmin());
  app.get('/metrics', guard.with({ allow: ['monitoring/prometheus'] }), (_req, res) => void res.type('text').send('secrets_total 1'));
  app.use('/secrets', guard, createSecrets());
  app.use(guard);
  const failed: ErrorRequestHandler = (error: { readonly status?: number; readonly code?: string }, _req, res, _next) => {
    res.status(error.status ?? 500).json({ code: error.code ?? 'failed' });
  };
  app.use(failed);
  return app;
}

describe('a service of several routers', () => {
  let authority: Authority;
  let guard: ExpressGuard;
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
    const headers = { ...caller.headers, 'content-type': 'application/json' };
    assert.equal((await ask(origin, '/secrets/db', caller)).text, '{"value":"postgres","for":"api/api"}');
    const posted = await ask(origin, '/secrets', { method: 'POST', headers, body: '{"id":"mail","value":"smtp"}' });
    assert.equal(posted.text, '{"by":"pod-0"}');
    assert.equal((await ask(origin, '/secrets/mail', caller)).text, '{"value":"smtp","for":"api/api"}');
    assert.equal((await ask(origin, '/secrets/none', caller)).status, 404);
    assert.equal((await ask(origin, '/secrets', { method: 'POST', headers, body: '{' })).status, 400);
  });

  it('serves its operators and its monitoring, each on routes of their own', async () => {
    const operator = await token('ops/alice', 'secret-store-admin');
    assert.equal((await ask(origin, '/admin/audit', operator)).text, '["secret-store-admin"]');
    assert.equal((await ask(origin, '/admin/keys', { ...operator, method: 'DELETE' })).status, 204);
    assert.equal((await ask(origin, '/admin/AUDIT')).text, '{"code":"missing_token"}');
    assert.equal((await ask(origin, '/admin/audit', await token('api/api', 'secret-store'))).text, '{"code":"invalid_token"}');
    assert.equal((await ask(origin, '/metrics', await token('monitoring/prometheus', 'secret-store'))).text, 'secrets_total 1');
    assert.equal((await ask(origin, '/metrics', await token('api/api', 'secret-store'))).text, '{"code":"caller_not_allowed"}');
  });

  it('serves everybody where it says so', async () => {
    assert.equal((await ask(origin, '/healthz')).text, '{"ok":true}');
    assert.equal((await ask(origin, '/readyz')).text, '{"ready":true}');
    assert.equal((await ask(origin, '/secrets/none')).status, 401);
    assert.equal((await ask(origin, '/nowhere')).status, 401);
  });
});
