// The kubelet rotates, a service is called without a pause, and no request is lost.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { setImmediate as nextTurn } from 'node:timers/promises';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import { Agent, request } from 'undici';

import { AuthError, createGuard, createServiceClient, type Guard, type ServiceClient } from './index.ts';
import { createInterceptor } from './undici.ts';

const rotations = 200;

describe('200 rotations under load', () => {
  let authority: Authority;
  let api: Pod;
  let guard: Guard;
  let server: Server;
  let client: ServiceClient;
  let origin: string;
  let tokens: Set<string>;

  before(async () => {
    authority = await createAuthority();
    api = await authority.pod('api/api', { tokens: { shop: 'shop' } });
    const shop = await authority.pod('shop/shop');
    guard = createGuard({ audience: 'shop', allow: ['api/api'], apiServer: shop.apiServer });
    tokens = new Set();
    server = createServer((incoming, response) => {
      tokens.add(String(incoming.headers['x-client-id']));
      guard.check(incoming).then(
        () => response.end('ok'),
        (error: unknown) => response.writeHead(error instanceof AuthError ? error.status : 500).end(),
      );
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    client = createServiceClient({ targets: [{ origin, tokenFile: api.tokenFile('shop') }] });
    await client.ready();
  });
  after(async () => {
    await client.close();
    server.closeAllConnections();
    server.close();
    await guard.close();
    await authority.close();
  });

  it('lose no call of serviceFetch, and none through the interceptor', async () => {
    const agent = new Agent();
    const dispatcher = agent.compose(createInterceptor(client));
    const answers = { serviceFetch: [] as number[], interceptor: [] as number[] };
    let isRotating = true;
    const keepFetching = async (): Promise<void> => {
      while (isRotating) {
        const answer = await client.serviceFetch(origin);
        await answer.text();
        answers.serviceFetch.push(answer.status);
      }
    };
    const keepRequesting = async (): Promise<void> => {
      while (isRotating) {
        const { statusCode, body } = await request(origin, { dispatcher });
        await body.dump();
        answers.interceptor.push(statusCode);
      }
    };
    const callers = Promise.all([keepFetching(), keepRequesting(), keepRequesting()]);
    for (let rotation = 0; rotation < rotations; rotation++) {
      await api.rotate();
      const rotated = readFileSync(api.tokenFile('shop'), 'utf8');
      while (!tokens.has(rotated)) await nextTurn();
    }
    isRotating = false;
    await callers;
    await agent.close();

    assert.ok(tokens.size >= rotations, `${tokens.size} tokens`);
    assert.ok(answers.serviceFetch.length + answers.interceptor.length >= rotations);
    assert.deepEqual(new Set(answers.serviceFetch), new Set([200]));
    assert.deepEqual(new Set(answers.interceptor), new Set([200]));
  });
});
