// Every way of calling with the token. docs/calling.md has the recipes.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { request as httpRequest } from 'node:http';
import { PassThrough, Readable, Writable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { pipeline } from 'node:stream/promises';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import { create } from 'axios';
import got from 'got';
import * as undici8 from 'undici';
import * as undici7 from 'undici7';

import { redirect, serve, type Service } from './fixtures/service.ts';
import { createServiceClient, type ServiceClient } from './service-client.ts';
import { createInterceptor } from './undici.ts';

let authority: Authority;
let api: Pod;
let token: string;
let shop: Service;
let client: ServiceClient;

before(async () => {
  authority = await createAuthority();
  api = await authority.pod('api/api', { tokens: { shop: 'shop' } });
  token = readFileSync(api.tokenFile('shop'), 'utf8');
});
after(() => authority.close());
beforeEach(async () => {
  shop = await serve();
  client = createServiceClient({ targets: [{ origin: shop.origin, tokenFile: api.tokenFile('shop') }] });
});
afterEach(() => Promise.all([client, shop].map((one) => one.close())));

describe('target().headers()', () => {
  it('is for node:http', async () => {
    const { promise, resolve } = Promise.withResolvers<number | undefined>();
    const headers = await client.target(shop.origin).headers();
    httpRequest(`${shop.origin}/orders`, { headers }, (answer) => {
      answer.resume();
      resolve(answer.statusCode);
    }).end();
    assert.equal(await promise, 200);
    assert.deepEqual(shop.tokens(), [token]);
  });

  it('is for axios, by an interceptor, with redirects off', async () => {
    const http = create({ baseURL: shop.origin, maxRedirects: 0 });
    http.interceptors.request.use(async (config) => {
      config.headers.set(await client.target(http.getUri(config)).headers());
      return config;
    });
    assert.equal((await http.get('/orders')).data, 'ok');
    assert.deepEqual(shop.tokens(), [token]);

    await assert.rejects(http.get('http://127.0.0.1:1/'), { name: 'TypeError', message: /^No token is sent to/ });
    shop.answer = redirect(302, 'http://127.0.0.1:1/');
    await assert.rejects(http.get('/from'), { message: 'Request failed with status code 302' });
  });

  it('is for got, by a hook, with redirects off', async () => {
    const http = got.extend({
      prefixUrl: shop.origin,
      followRedirect: false,
      hooks: {
        beforeRequest: [
          async (options) => {
            Object.assign(options.headers, await client.target(options.url ?? '').headers());
          },
        ],
      },
    });
    assert.equal(await http('orders').text(), 'ok');
    assert.deepEqual(shop.tokens(), [token]);

    shop.answer = redirect(302, 'http://127.0.0.1:1/');
    assert.equal((await http('from')).statusCode, 302);
  });
});

describe('serviceFetch', () => {
  it('calls undici’s own fetch, which has a dispatcher', async () => {
    const agent = new undici8.Agent();
    const own = createServiceClient({
      targets: [{ origin: shop.origin, tokenFile: api.tokenFile('shop') }],
      fetch: ((input: string, init: undici8.RequestInit) =>
        undici8.fetch(input, { ...init, dispatcher: agent })) as unknown as typeof fetch,
    });
    assert.equal(await (await own.serviceFetch(shop.origin)).text(), 'ok');
    assert.deepEqual(shop.tokens(), [token]);
    await Promise.all([own.close(), agent.close()]);
  });

  it('takes headers as an object, pairs, Headers, a Map or nothing', async () => {
    await client.serviceFetch(shop.origin, { headers: { 'X-Client-Id': 'forged', accept: 'a' } });
    await client.serviceFetch(shop.origin, {
      headers: [
        ['X-CLIENT-ID', 'forged'],
        ['accept', 'a'],
      ],
    });
    await client.serviceFetch(shop.origin, { headers: new Headers({ 'x-client-id': 'forged', accept: 'a' }) });
    const map = new Map([
      ['x-client-id', 'forged'],
      ['accept', 'a'],
    ]);
    await client.serviceFetch(shop.origin, { headers: map as unknown as Headers });
    await client.serviceFetch(shop.origin);
    assert.deepEqual(
      shop.headers.map(({ 'x-client-id': id, accept }) => [id, accept]),
      [
        [[token], ['a']],
        [[token], ['a']],
        [[token], ['a']],
        [[token], ['a']],
        [[token], ['*/*']],
      ],
    );
  });
});

describeUndici('undici 8', undici8);
// The types of the two majors differ in what they name; both have what is used here.
describeUndici('undici 7', undici7 as unknown as typeof undici8);

function describeUndici(name: string, undici: typeof undici8): void {
  describe(`createInterceptor on ${name}`, () => {
    let opened: undici8.Dispatcher[];
    const compose = (dispatcher: undici8.Dispatcher): undici8.Dispatcher => {
      opened.push(dispatcher);
      return dispatcher.compose(createInterceptor(client));
    };
    const options = { path: '/orders', method: 'GET' } as const;
    const origin = (): string => new URL(shop.origin).origin;
    const arrivedOnce = (): void => assert.deepEqual([shop.tokens(), shop.arrived[0]?.url], [[token], '/orders']);

    beforeEach(() => {
      opened = [];
    });
    afterEach(() => Promise.all(opened.map((dispatcher) => dispatcher.close())));

    it('serves request()', async () => {
      const { body } = await undici.request(`${shop.origin}/orders`, { dispatcher: compose(new undici.Agent()) });
      assert.equal(await body.text(), 'ok');
      arrivedOnce();
    });

    it('serves fetch(), with a body too', async () => {
      const dispatcher = compose(new undici.Agent());
      assert.equal(await (await undici.fetch(`${shop.origin}/orders`, { dispatcher, method: 'POST', body: 'one' })).text(), 'ok');
      arrivedOnce();
      assert.equal(shop.arrived[0]?.body, 'one');
    });

    it('serves stream()', async () => {
      let received = '';
      await undici.stream(
        `${shop.origin}/orders`,
        { dispatcher: compose(new undici.Agent()), method: 'GET' },
        () =>
          new Writable({
            write(chunk: Buffer, _encoding, done) {
              received += chunk.toString();
              done();
            },
          }),
      );
      assert.equal(received, 'ok');
      arrivedOnce();
    });

    it('serves pipeline()', async () => {
      const dispatcher = compose(new undici.Agent());
      const out = new PassThrough();
      const duplex = undici.pipeline(`${shop.origin}/orders`, { dispatcher, method: 'POST' }, ({ body }) => body);
      const received = text(out);
      await pipeline(Readable.from(['one']), duplex, out);
      assert.equal(await received, 'ok');
      arrivedOnce();
      assert.equal(shop.arrived[0]?.body, 'one');
    });

    it('serves a Pool', async () => {
      const { body } = await compose(new undici.Pool(shop.origin)).request({ origin: origin(), ...options });
      await body.dump();
      arrivedOnce();
    });

    it('serves a Client', async () => {
      const { body } = await compose(new undici.Client(shop.origin)).request({ origin: origin(), ...options });
      await body.dump();
      arrivedOnce();
    });

    it('serves the global dispatcher', async () => {
      const usual = undici.getGlobalDispatcher();
      undici.setGlobalDispatcher(compose(new undici.Agent()));
      try {
        await (await undici.request(`${shop.origin}/orders`)).body.dump();
      } finally {
        undici.setGlobalDispatcher(usual);
      }
      arrivedOnce();
    });

    it('serves a MockAgent', async () => {
      const agent = new undici.MockAgent();
      agent.disableNetConnect();
      agent
        .get(shop.origin)
        .intercept({ path: '/orders', headers: { 'x-client-id': token } })
        .reply(200, 'mocked');
      const { body } = await undici.request(`${shop.origin}/orders`, { dispatcher: compose(agent) });
      assert.equal(await body.text(), 'mocked');
    });

    it('serves HTTP/1.1 pipelining', async () => {
      const dispatcher = compose(new undici.Client(shop.origin, { pipelining: 4 }));
      await Promise.all(Array.from({ length: 8 }, async () => (await dispatcher.request({ origin: origin(), ...options })).body.dump()));
      assert.deepEqual(new Set(shop.tokens()), new Set([token]));
      assert.equal(shop.arrived.length, 8);
    });

    it('takes headers as an object, a flat array, pairs, Headers, a Map, an iterable or nothing', async () => {
      const dispatcher = compose(new undici.Agent());
      const send = async (headers: unknown): Promise<void> => {
        const { body } = await dispatcher.request({ origin: origin(), ...options, headers: headers as Record<string, string> });
        await body.dump();
      };
      const pairs = [
        ['X-Client-Id', 'forged'],
        ['accept', 'a'],
      ] as const;
      await send(Object.fromEntries(pairs));
      await send(pairs.flat());
      await send(pairs);
      await send(new Headers(Object.fromEntries(pairs)));
      await send(new Map(pairs));
      await send(new Map(pairs).entries());
      await send({ ...Object.fromEntries(pairs), via: ['a', 'b'] });
      await send(undefined);
      await send(null);
      assert.deepEqual(
        shop.headers.map(({ 'x-client-id': id, accept, via }) => [id, accept, via]),
        [
          [[token], ['a'], undefined],
          [[token], ['a'], undefined],
          [[token], ['a'], undefined],
          [[token], ['a'], undefined],
          [[token], ['a'], undefined],
          [[token], ['a'], undefined],
          [[token], ['a'], ['a', 'b']],
          [[token], undefined, undefined],
          [[token], undefined, undefined],
        ],
      );
    });
  });
}

describe('createInterceptor on undici 8', () => {
  it('knows the origin of a Client or Pool where a request names none', async () => {
    const pool = new undici8.Pool(shop.origin);
    const { body } = await pool.compose(createInterceptor(client)).request({ path: '/', method: 'GET' });
    await body.dump();
    assert.deepEqual(shop.tokens(), [token]);
    await pool.close();
  });
});
