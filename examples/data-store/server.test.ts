import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { createServer, type RequestListener, type Server } from 'node:http';
import { after, before, beforeEach, describe, it } from 'node:test';

import { type Authority, createAuthority } from '@k8s-sa-auth/testing';

import { choosePorts, createLauncher, manifestOf, type Service } from '../demo/services.ts';
import { type Answer, send } from '../demo/steps.ts';

const { signal } = new AbortController();
let authority: Authority;
let dataStore: Service;
let secretStore: Server;
let answer: RequestListener;
let token: string;

before(async () => {
  authority = await createAuthority({ manifests: manifestOf('data-store') });
  const [port = 0, secretStorePort = 0] = await choosePorts([0, 0]);
  secretStore = createServer((request, response) => answer(request, response));
  await once(secretStore.listen(secretStorePort, '127.0.0.1'), 'listening');
  const [pod = assert.fail('no pod')] = authority.pods;
  dataStore = await createLauncher(authority, signal).start({
    name: 'data-store',
    pod,
    port,
    env: { SECRET_STORE_CONNSTRING: `http://127.0.0.1:${secretStorePort}` },
  });
  const api = await authority.pod('api/api', { tokens: { sent: 'data-store' }, reviews: false });
  token = await readFile(api.tokenFile('sent'), 'utf8');
});

beforeEach(() => {
  answer = (_request, response) => response.end('Hello');
});

after(async () => {
  await authority.close();
  secretStore.close();
});

const get = (path: string): Promise<Answer> => send(`${dataStore.url}${path}`, { token, signal });

describe('data-store', () => {
  it('greets api', async () => {
    const { status, body } = await get('/');
    assert.deepEqual([status, body], [200, 'Hello from data store. You have been authenticated']);
  });

  it('tells api who it is', async () => {
    const { serviceAccount, audiences } = JSON.parse((await get('/whoami')).body) as Readonly<Record<string, unknown>>;
    assert.deepEqual([serviceAccount, audiences], ['api/api', ['data-store']]);
  });

  it('wants a token on every route', async () => {
    assert.equal((await send(dataStore.url, { signal })).status, 401);
    assert.equal((await send(`${dataStore.url}/secret`, { signal })).status, 401);
  });

  it('passes a refusal of secret-store on with its status', async () => {
    answer = (_request, response) => {
      response.writeHead(403, { 'content-type': 'application/json' }).end('{"code":"caller_not_allowed"}');
    };
    const { status, code } = await get('/secret');
    assert.deepEqual([status, code], [403, 'caller_not_allowed']);
  });

  it('does not hand its caller’s token on', async () => {
    let sent: unknown;
    answer = (request, response) => {
      sent = request.headers['x-client-id'];
      response.end();
    };
    assert.equal((await get('/secret')).status, 200);
    assert.equal(typeof sent, 'string');
    assert.ok(sent !== token);
  });

  it('answers 502 when secret-store hangs up', async () => {
    answer = (request) => request.socket.destroy();
    assert.equal((await get('/secret')).status, 502);
  });

  it('answers its probes without a token', async () => {
    assert.equal((await send(`${dataStore.url}/healthz`, { signal })).status, 200);
    assert.equal((await send(`${dataStore.url}/readyz`, { signal })).status, 204);
  });

  it('ends cleanly on SIGTERM', async () => {
    assert.equal(await dataStore.stop(), 0);
  });
});
