import assert from 'node:assert/strict';
import { createServer, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import { Agent, interceptors, request } from 'undici';
import * as undici7 from 'undici7';

import { createServiceClient, type ServiceClient } from './service-client.ts';
import { createInterceptor } from './undici.ts';

interface Service {
  readonly origin: string;
  readonly tokens: (string | undefined)[];
  readonly headers: NodeJS.Dict<string[]>[];
  answer: (response: ServerResponse) => void;
  readonly server: Server;
}

let authority: Authority;
let api: Pod;
let shop: Service;
let foreign: Service;
let client: ServiceClient;
let token: string;

async function serve(): Promise<Service> {
  const server = createServer((incoming, response) => {
    service.tokens.push(incoming.headers['x-client-id'] as string | undefined);
    service.headers.push(incoming.headersDistinct);
    if (incoming.url === '/from') service.answer(response);
    else response.end('ok');
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const origin = `http://localhost:${(server.address() as AddressInfo).port}`;
  const service: Service = { origin, tokens: [], headers: [], answer: (response) => void response.end('ok'), server };
  return service;
}

const redirectTo = (location: string) => (response: ServerResponse) => void response.writeHead(302, { location }).end();

before(async () => {
  authority = await createAuthority();
  api = await authority.pod('api/api', { tokens: { shop: 'shop' } });
});
after(() => authority.close());
beforeEach(async () => {
  [shop, foreign] = await Promise.all([serve(), serve()]);
  client = createServiceClient({ targets: [{ origin: shop.origin, tokenFile: api.tokenFile('shop') }] });
  token = (await client.target(shop.origin).headers())['x-client-id'] ?? '';
});
afterEach(async () => {
  await client.close();
  for (const { server } of [shop, foreign]) {
    server.closeAllConnections();
    server.close();
  }
});

describe('createInterceptor on undici 8', () => {
  async function get(path: string, dispatcher: Agent, options: object = {}): Promise<number> {
    const { statusCode, body } = await request(`${shop.origin}${path}`, { dispatcher, ...options });
    await body.dump();
    return statusCode;
  }
  const agent = (...more: Parameters<Agent['compose']>): Agent => new Agent().compose(...more) as Agent;

  it('puts the token on requests to a target', async () => {
    await get('/', agent(createInterceptor(client)));
    assert.deepEqual(shop.tokens, [token]);
  });

  it('waits for a token that is not loaded yet', async () => {
    const fresh = createServiceClient({ targets: [{ origin: shop.origin, tokenFile: api.tokenFile('shop') }] });
    await get('/', agent(createInterceptor(fresh)));
    assert.deepEqual(shop.tokens, [token]);
    await fresh.close();
  });

  it('lets requests to other origins pass untouched', async () => {
    await request(foreign.origin, { dispatcher: agent(createInterceptor(client)), headers: { 'x-client-id': 'own' } });
    assert.deepEqual(foreign.tokens, ['own']);
  });

  it('replaces the header however headers are given', async () => {
    const dispatcher = agent(createInterceptor(client));
    await get('/', dispatcher, { headers: { 'X-Client-Id': 'forged', accept: 'a' } });
    await get('/', dispatcher, { headers: ['x-client-id', 'forged', 'accept', 'a'] });
    await get('/', dispatcher, { headers: new Headers({ 'x-client-id': 'forged', accept: 'a' }) });
    await get('/', dispatcher, {
      headers: new Map([
        ['X-CLIENT-ID', 'forged'],
        ['accept', 'a'],
      ]),
    });
    await get('/', dispatcher, { headers: null });
    assert.deepEqual(
      shop.headers.map((headers) => headers['x-client-id']),
      Array.from({ length: 5 }, () => [token]),
    );
    assert.deepEqual(
      shop.headers.map(({ accept }) => accept),
      [['a'], ['a'], ['a'], ['a'], undefined],
    );
  });

  it('leaves the headers that it was handed as they were', async () => {
    const headers = { 'x-client-id': 'forged' };
    await get('/', agent(createInterceptor(client)), { headers });
    assert.deepEqual(headers, { 'x-client-id': 'forged' });
  });

  it('keeps a header that is sent twice', async () => {
    await get('/', agent(createInterceptor(client)), { headers: { via: ['a', 'b'] } });
    assert.deepEqual(shop.headers[0]?.['via'], ['a', 'b']);
  });

  it('takes the token along within the origin, listed before redirect()', async () => {
    shop.answer = redirectTo('/to');
    assert.equal(await get('/from', agent(createInterceptor(client), interceptors.redirect({ maxRedirections: 3 }))), 200);
    assert.deepEqual(shop.tokens, [token, token]);
  });

  it('takes nothing to another origin, listed before redirect()', async () => {
    shop.answer = redirectTo(foreign.origin);
    assert.equal(await get('/from', agent(createInterceptor(client), interceptors.redirect({ maxRedirections: 3 }))), 200);
    assert.deepEqual(foreign.tokens, [undefined]);
  });

  it('takes nothing to another origin, listed after redirect(): the redirect is the answer', async () => {
    shop.answer = redirectTo(foreign.origin);
    assert.equal(await get('/from', agent(interceptors.redirect({ maxRedirections: 3 }), createInterceptor(client))), 302);
    assert.deepEqual(foreign.tokens, []);
  });

  it('takes nothing to another origin where the request itself asks for redirects', async () => {
    shop.answer = redirectTo(foreign.origin);
    const dispatcher = agent(interceptors.redirect({ maxRedirections: 3 }), createInterceptor(client));
    assert.equal(await get('/from', dispatcher, { maxRedirections: 5 }), 302);
    assert.deepEqual(foreign.tokens, []);
  });

  it('sees the name behind dns(), listed after it', async () => {
    await get('/', agent(interceptors.dns(), createInterceptor(client)));
    assert.deepEqual(shop.tokens, [token]);
  });

  it('sends nothing where dns() has turned the name into an address', async () => {
    await get('/', agent(createInterceptor(client), interceptors.dns()));
    assert.deepEqual(shop.tokens, [undefined]);
  });

  it('fails the request where there is no token', async () => {
    const pod = await authority.pod('api/api', { tokens: { wrong: 'https://kubernetes.default.svc.cluster.local' } });
    const wrong = createServiceClient({
      targets: [{ origin: shop.origin, tokenFile: pod.tokenFile('wrong') }],
      logger: { info() {}, warn() {}, error() {} },
    });
    await assert.rejects(get('/', agent(createInterceptor(wrong))), { name: 'TokenFileError', code: 'token_not_sendable' });
    assert.deepEqual(shop.tokens, []);
    await wrong.close();
  });

  it('takes no client but ours', () => {
    assert.throws(() => createInterceptor({ ...client, serviceFetch: fetch }), { name: 'TypeError', message: /createServiceClient/ });
  });
});

describe('createInterceptor on undici 7', () => {
  // The types of the two majors differ in what they name; the interceptor is one function.
  const interceptor = (): undici7.Dispatcher.DispatcherComposeInterceptor =>
    createInterceptor(client) as unknown as undici7.Dispatcher.DispatcherComposeInterceptor;
  async function get(path: string, dispatcher: undici7.Dispatcher): Promise<number> {
    const { statusCode, body } = await undici7.request(`${shop.origin}${path}`, { dispatcher });
    await body.dump();
    return statusCode;
  }

  it('puts the token on requests to a target', async () => {
    await get('/', new undici7.Agent().compose(interceptor()));
    assert.deepEqual(shop.tokens, [token]);
  });

  it('puts the token on what its fetch sends', async () => {
    await undici7.fetch(shop.origin, { dispatcher: new undici7.Agent().compose(interceptor()) });
    assert.deepEqual(shop.tokens, [token]);
  });

  it('takes nothing to another origin, listed before redirect()', async () => {
    shop.answer = redirectTo(foreign.origin);
    const dispatcher = new undici7.Agent().compose(interceptor(), undici7.interceptors.redirect({ maxRedirections: 3 }));
    assert.equal(await get('/from', dispatcher), 200);
    assert.deepEqual(foreign.tokens, [undefined]);
  });

  it('takes nothing to another origin, listed after redirect(): the redirect is the answer', async () => {
    shop.answer = redirectTo(foreign.origin);
    const dispatcher = new undici7.Agent().compose(undici7.interceptors.redirect({ maxRedirections: 3 }), interceptor());
    assert.equal(await get('/from', dispatcher), 302);
    assert.deepEqual(foreign.tokens, []);
  });

  it('fails the request where there is no token', async () => {
    await client.close();
    await assert.rejects(get('/', new undici7.Agent().compose(interceptor())), { name: 'TokenFileError' });
    assert.deepEqual(shop.tokens, []);
  });
});
