import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type RequestListener, type Server } from 'node:http';
import { after, before, beforeEach, describe, it } from 'node:test';

import { type Authority, createAuthority } from '@k8s-sa-auth/testing';

import { choosePorts, createLauncher, manifestOf, type Service } from '../demo/services.ts';
import { send } from '../demo/steps.ts';

const { signal } = new AbortController();
let authority: Authority;
let api: Service;
let downstream: Server;
let ports: readonly number[];
let answer: RequestListener;
let audience: unknown;

// One server in the place of both: it is called by two names, which are two origins.
before(async () => {
  authority = await createAuthority({ manifests: manifestOf('api') });
  ports = await choosePorts([0, 0]);
  const [port = 0, downstreamPort = 0] = ports;
  downstream = createServer((request, response) => {
    audience = audienceOf(String(request.headers['x-client-id']));
    answer(request, response);
  });
  await once(downstream.listen(downstreamPort, '127.0.0.1'), 'listening');
  const [pod = assert.fail('no pod')] = authority.pods;
  api = await createLauncher(authority, signal).start({
    name: 'api',
    pod,
    port,
    env: {
      SECRET_STORE_CONNSTRING: `http://127.0.0.1:${downstreamPort}`,
      DATA_STORE_CONNSTRING: `http://localhost:${downstreamPort}`,
    },
  });
});

beforeEach(() => {
  audience = undefined;
  answer = (_request, response) => response.end('Hello');
});

after(async () => {
  await authority.close();
  downstream.close();
});

function audienceOf(token: string): unknown {
  const [, payload = ''] = token.split('.');
  const { aud }: { readonly aud?: unknown } = Object(JSON.parse(Buffer.from(payload, 'base64url').toString()));
  return aud;
}

describe('api', () => {
  it('passes on what secret-store says, and sends it the token for that', async () => {
    assert.deepEqual(await send(api.url, { signal }), { status: 200, code: undefined, retryAfter: undefined, body: 'Hello' });
    assert.deepEqual(audience, ['secret-store']);
  });

  it('sends data-store another token', async () => {
    assert.equal((await send(`${api.url}/data`, { signal })).status, 200);
    assert.deepEqual(audience, ['data-store']);
  });

  it('passes a refusal on with its status', async () => {
    answer = (_request, response) => {
      response.writeHead(403, { 'content-type': 'application/json' }).end('{"code":"caller_not_allowed"}');
    };
    const { status, code } = await send(api.url, { signal });
    assert.deepEqual([status, code], [403, 'caller_not_allowed']);
  });

  it('passes on that nobody knows, and when to come back', async () => {
    answer = (_request, response) => response.writeHead(503, { 'retry-after': '3' }).end();
    const { status, retryAfter } = await send(api.url, { signal });
    assert.deepEqual([status, retryAfter], [503, '3']);
  });

  it('answers 502 when secret-store hangs up', async () => {
    answer = (request) => request.socket.destroy();
    const { status, body } = await send(api.url, { signal });
    assert.deepEqual([status, body], [502, 'secret-store gave no answer']);
  });

  it('answers 502 when secret-store sends it elsewhere, and does not go there', async () => {
    const [, downstreamPort] = ports;
    let requests = 0;
    answer = (_request, response) => {
      requests += 1;
      response.writeHead(307, { location: `http://localhost:${downstreamPort}/` }).end();
    };
    assert.equal((await send(api.url, { signal })).status, 502);
    assert.equal(requests, 1);
  });

  it('answers 502 when nobody listens', async () => {
    const [, downstreamPort] = ports;
    downstream.closeAllConnections();
    await new Promise((resolve) => void downstream.close(resolve));
    assert.equal((await send(api.url, { signal })).status, 502);
    await once(downstream.listen(downstreamPort, '127.0.0.1'), 'listening');
  });

  it('answers its probes', async () => {
    assert.equal((await send(`${api.url}/healthz`, { signal })).status, 200);
    assert.equal((await send(`${api.url}/readyz`, { signal })).status, 204);
  });

  it('ends cleanly on SIGTERM', async () => {
    assert.equal(await api.stop(), 0);
  });
});
