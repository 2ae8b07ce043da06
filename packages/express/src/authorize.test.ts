import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import express, { type Express, type RequestHandler } from 'express';

import { as, ask } from './fixtures/ask.ts';
import { type Authorize, type ExpressGuard, k8sSaAuth } from './index.ts';

describe('authorize', () => {
  let authority: Authority;
  let pod: Pod;
  let app: Express;
  let guard: ExpressGuard;
  let server: Server | undefined;
  let api: string;

  before(async () => {
    authority = await createAuthority({ manifests: join(import.meta.dirname, 'fixtures', 'orders.yaml') });
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
    server?.close().closeAllConnections();
    await guard.close();
  });

  async function listen(): Promise<string> {
    server = createServer(app);
    await once(server.listen(0, '127.0.0.1'), 'listening');
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
  const orders = (): ExpressGuard => guard.with({ allow: 'any', authorize: readsOrder });
  const answer: RequestHandler<{ order?: string }> = (request, response) => void response.send(`order ${request.params.order}`);
  const status = async (origin: string, path: string): Promise<number> => (await ask(origin, path, as(api))).status;

  it('knows the parameters of what it is mounted at, together with its handler', async () => {
    app.use('/orders/:order', orders(), answer);
    const origin = await listen();
    assert.equal((await ask(origin, '/orders/7/lines', as(api))).text, 'order 7');
    assert.equal(await status(origin, '/orders/8/lines'), 403);
    assert.equal(await status(origin, '/orders/8/7'), 403);
  });

  it('knows those of a router around only where that is asked for, and refuses otherwise', async () => {
    const merging = express.Router({ mergeParams: true }).get('/lines', orders(), answer);
    const plain = express.Router().get('/lines', orders(), answer);
    app.use('/orders/:order', merging).use('/bare/:order', plain);
    const origin = await listen();
    assert.equal((await ask(origin, '/orders/7/lines', as(api))).text, 'order 7');
    assert.equal(await status(origin, '/orders/8/lines'), 403);
    assert.equal(await status(origin, '/bare/7/lines'), 403);
  });

  it('refuses where there are none, though another route had some', async () => {
    app.get('/:order/:part', (_request, _response, next) => next());
    app.use(orders());
    app.get('/7/:order', answer);
    const origin = await listen();
    assert.equal(await status(origin, '/7/8'), 403);
  });

  it('knows what a wildcard took as a list, which is a mistake of ours unless it is made a text', async () => {
    const path = ({ params }: { readonly params: object }): string => Object.values(params).flat().join('/');
    app.get('/list/*order', orders(), answer);
    app.get('/text/*order', guard.with({ allow: 'any', authorize: { ...readsOrder, name: path } }), answer);
    const origin = await listen();
    assert.equal(await status(origin, '/list/7'), 500);
    assert.equal(await status(origin, '/text/7'), 200);
    assert.equal(await status(origin, '/text/7/8'), 403);
  });
});
