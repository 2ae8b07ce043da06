import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type RequestListener, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import express, { type Express } from 'express';

import { as, ask } from './fixtures/ask.ts';
import { type ExpressGuard, k8sSaAuth } from './index.ts';

let authority: Authority;
let pod: Pod;
let app: Express;
let guard: ExpressGuard;
let servers: readonly Server[] = [];
let api: string;

before(async () => {
  authority = await createAuthority();
  pod = await authority.pod('store/store');
  api = await authority.token('api/api', { audience: 'store', pod: 'api-0' });
});
after(() => authority.close());
beforeEach(() => {
  // Silences what Express prints of each error.
  app = express().set('env', 'test');
  guard = k8sSaAuth({ audience: 'store', allow: ['api/api'], apiServer: pod.apiServer });
});
afterEach(async () => {
  for (const server of servers) server.close().closeAllConnections();
  servers = [];
  await guard.close();
});

async function listen(listener: RequestListener): Promise<string> {
  const server = createServer(listener);
  servers = [...servers, server];
  await once(server.listen(0, '127.0.0.1'), 'listening');
  // The server listens on a port.
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

const admin = () => guard.with({ audience: 'admin', allow: ['ops/*'] });

describe('k8sSaAuth, by path', () => {
  it('opens no door, however a path is spelt', async () => {
    app.get('/public', (_request, response) => void response.send('public'));
    app.use(guard);
    app.get('/admin', admin(), (_request, response) => void response.send('admin'));
    app.get('/:section', (request, response) => void response.send(`section ${request.params.section}`));
    const origin = await listen(app);
    assert.equal((await ask(origin, '/%61dmin')).status, 401);
    assert.equal((await ask(origin, '/ADMIN')).status, 401);
    assert.equal((await ask(origin, '/ADMIN', as(api))).status, 403);
    assert.equal((await ask(origin, '/admin/', as(api))).status, 403);
    assert.equal((await ask(origin, '//admin')).status, 401);
    assert.equal((await ask(origin, '//admin', as(api))).status, 404);
    assert.equal((await ask(origin, '/public/../admin')).status, 401);
    assert.equal((await ask(origin, '/admin%2f')).status, 401);
    assert.equal((await ask(origin, '/%zz')).status, 401);
    assert.equal((await ask(origin, 'http://elsewhere/admin')).status, 401);
    assert.equal((await ask(origin, '*', { method: 'OPTIONS' })).status, 401);
    assert.equal((await ask(origin, '/%61dmin', as(api))).text, 'section admin');
    assert.equal((await ask(origin, '/PUBLIC/')).text, 'public');
  });

  it('opens no door in its own route, whatever the settings of the router', async () => {
    const exact = express.Router({ caseSensitive: true, strict: true });
    exact.get('/admin', guard, (_request, response) => void response.send('admin'));
    app.use(exact);
    const origin = await listen(app);
    assert.equal((await ask(origin, '/admin')).status, 401);
    assert.equal((await ask(origin, '/ADMIN')).status, 404);
    assert.equal((await ask(origin, '/admin/')).status, 404);
    assert.equal((await ask(origin, '/admin', as(api))).text, 'admin');
  });

  it('guards the path that it is mounted on, in the spellings that Express takes for it', async () => {
    app.use('/admin', guard);
    app.use('/admin', (_request, response) => void response.send('admin'));
    const origin = await listen(app);
    assert.equal((await ask(origin, '/admin')).status, 401);
    assert.equal((await ask(origin, '/Admin/x')).status, 401);
    assert.equal((await ask(origin, '/admin/../x')).status, 401);
    assert.equal((await ask(origin, 'http://elsewhere/admin')).status, 401);
    assert.equal((await ask(origin, '/%61dmin')).status, 404);
    assert.equal((await ask(origin, '//admin')).status, 404);
    assert.equal((await ask(origin, '/adminx')).status, 404);
  });

  it('guards files in every spelling where it is mounted together with what serves them', async () => {
    app.use('/files', guard, express.static(import.meta.dirname));
    const origin = await listen(app);
    assert.equal((await ask(origin, '/files/index.ts')).status, 401);
    assert.equal((await ask(origin, '/FILES/%69ndex.ts')).status, 401);
    assert.equal((await ask(origin, '/files//index.ts')).status, 401);
    assert.equal((await ask(origin, '/%66iles/index.ts')).status, 404);
    assert.equal((await ask(origin, '//files/index.ts')).status, 404);
    assert.equal((await ask(origin, '/files/index.ts', as(api))).status, 200);
  });
});
