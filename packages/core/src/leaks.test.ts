// Attempts to get a token onto a foreign wire, judged by what arrived there. docs/calling.md has them as a table.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer as createHttpServer, request as httpRequest } from 'node:http';
import { type AddressInfo, connect, createServer, type Server } from 'node:net';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';
import { inspect } from 'node:util';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import * as undici8 from 'undici';
import * as undici7 from 'undici7';

import { redirect, serve, type Service } from './fixtures/service.ts';
import { createServiceClient, type ServiceClient } from './service-client.ts';
import { createInterceptor } from './undici.ts';

let authority: Authority;
let api: Pod;
let token: string;
let bankToken: string;
let shop: Service;
let foreign: Service;
let client: ServiceClient;

before(async () => {
  authority = await createAuthority();
  api = await authority.pod('api/api', { tokens: { shop: 'shop', bank: 'bank' } });
  token = readFileSync(api.tokenFile('shop'), 'utf8');
  bankToken = readFileSync(api.tokenFile('bank'), 'utf8');
});
after(() => authority.close());
beforeEach(async () => {
  [shop, foreign] = await Promise.all([serve(), serve()]);
  client = createServiceClient({ targets: [{ origin: shop.origin, tokenFile: api.tokenFile('shop') }] });
  await client.ready();
});
afterEach(() => Promise.all([client, shop, foreign].map((one) => one.close())));

// All that arrives at a port, whatever it speaks.
async function listenRaw(): Promise<{ readonly port: number; readonly bytes: () => string; readonly server: Server }> {
  let bytes = '';
  const server = createServer((socket) => {
    socket.on('error', () => {});
    socket.on('data', (chunk) => {
      bytes += chunk.toString('latin1');
      socket.end();
    });
  });
  server.listen(0);
  await once(server, 'listening');
  return { port: (server.address() as AddressInfo).port, bytes: () => bytes, server };
}

describe('serviceFetch, where a redirect leads', () => {
  const from = (): Promise<Response> => client.serviceFetch(`${shop.origin}/from`);
  const post = (): Promise<Response> => client.serviceFetch(`${shop.origin}/from`, { method: 'POST', body: 'one' });
  const elsewhere = { name: 'TypeError', message: /a token for one origin is not taken to another/ };

  async function follows(): Promise<void> {
    assert.equal(await (await from()).text(), 'arrived');
    assert.deepEqual(shop.tokens(), [token, token]);
  }
  async function stops(answer: Promise<Response>, error = elsewhere): Promise<void> {
    await assert.rejects(answer, error);
    assert.deepEqual(foreign.arrived, []);
    assert.equal(shop.arrived.length, 1);
  }

  it('goes along to a relative path', async () => {
    shop.answer = redirect(302, 'to');
    await follows();
  });
  it('goes along to the same origin in full', async () => {
    shop.answer = redirect(302, `${shop.origin}/to`);
    await follows();
  });
  it('goes along to the same origin without its scheme', async () => {
    shop.answer = redirect(302, `${shop.origin.slice('http:'.length)}/to`);
    await follows();
  });
  it('does not go to another port with a 301', async () => {
    shop.answer = redirect(301, `${foreign.origin}/to`);
    await stops(from());
  });
  it('does not go to another port with a 302', async () => {
    shop.answer = redirect(302, `${foreign.origin}/to`);
    await stops(post());
  });
  it('does not go to another port with a 303', async () => {
    shop.answer = redirect(303, `${foreign.origin}/to`);
    await stops(post());
  });
  it('does not go to another port with a 307', async () => {
    shop.answer = redirect(307, `${foreign.origin}/to`);
    await stops(post());
  });
  it('does not go to another port with a 308', async () => {
    shop.answer = redirect(308, `${foreign.origin}/to`);
    await stops(post());
  });
  it('does not go to another name of the same host', async () => {
    shop.answer = redirect(302, `${shop.named}/to`);
    await stops(from());
  });
  it('does not go to another host without its scheme', async () => {
    shop.answer = redirect(302, `${foreign.origin.slice('http:'.length)}/to`);
    await stops(from());
  });
  it('does not go where backslashes make a host', async () => {
    shop.answer = redirect(302, `\\\\${foreign.origin.slice('http://'.length)}/to`);
    await stops(from());
  });
  it('does not go to another scheme', async () => {
    shop.answer = redirect(302, `${shop.origin.replace('http:', 'https:')}/to`);
    await stops(from());
  });
  it('does not go from https to http', async () => {
    const asked: string[] = [];
    const secure = createServiceClient({
      targets: [{ origin: 'https://app.shop', tokenFile: api.tokenFile('shop') }],
      fetch: (input) => {
        asked.push(new Request(input).url);
        return Promise.resolve(new Response(null, { status: 302, headers: { location: 'http://app.shop/to' } }));
      },
    });
    await assert.rejects(secure.serviceFetch('https://app.shop/from'), elsewhere);
    assert.deepEqual(asked, ['https://app.shop/from']);
    await secure.close();
  });
  it('goes by redirect as fetch reads it: as text, and past what a subclass says', async () => {
    shop.answer = redirect(307, `${foreign.origin}/to`);
    for (const follow of [Object('follow'), ['follow']]) {
      await assert.rejects(client.serviceFetch(`${shop.origin}/from`, { redirect: follow }), elsewhere);
    }
    const disguised = Object.defineProperty(new Request(`${shop.origin}/from`), 'redirect', { value: 'manual' });
    await assert.rejects(client.serviceFetch(disguised), elsewhere);
    assert.deepEqual(foreign.arrived, []);
  });
  it('goes where it was looked at, whatever is no Request of this fetch would be sent as', async () => {
    const disguised = { url: shop.origin, toString: () => foreign.origin } as unknown as Request;
    await client.serviceFetch(disguised);
    const eight = createServiceClient({
      targets: [{ origin: shop.origin, tokenFile: api.tokenFile('shop') }],
      fetch: undici8.fetch as unknown as typeof fetch,
    });
    await eight.serviceFetch(Object.defineProperty(new undici8.Request(foreign.origin), 'url', { value: shop.origin }));
    await eight.serviceFetch(new Request(`${shop.origin}/to`, { method: 'POST', body: 'x', headers: { 'x-mine': 'mine' } }));
    await eight.close();
    assert.deepEqual(foreign.arrived, []);
    assert.deepEqual(shop.tokens(), [token, token, token]);
    assert.partialDeepStrictEqual(shop.arrived[2], { method: 'POST', url: '/to', body: 'x' });
    assert.deepEqual(shop.headers[2]?.['x-mine'], ['mine']);
  });
  it('is told of by no error where a service sends it back in Location', async () => {
    const { host } = new URL(shop.origin);
    for (const location of [`http://u:${token}@${host}/`, `http://:${token}@${host}/`, `http://${token}@${host}/`, `http://[${token}`]) {
      shop.answer = redirect(302, location);
      await assert.rejects(from(), (error) => {
        assert.ok(error instanceof TypeError && !inspect(error, { showHidden: true, depth: Infinity }).includes(token));
        return true;
      });
    }
  });
  it('does not go to an origin with the named one as its user', async () => {
    shop.answer = redirect(302, `http://127.0.0.1@${foreign.origin.slice('http://'.length)}/to`);
    await stops(from(), { name: 'TypeError', message: /no URL to be followed/ });
  });
  it('does not go to a second hop elsewhere', async () => {
    shop.answer = (request, response) =>
      response.writeHead(302, { location: request.url === '/from' ? '/again' : `${foreign.origin}/to` }).end();
    await assert.rejects(from(), elsewhere);
    assert.deepEqual(shop.tokens(), [token, token]);
    assert.deepEqual(foreign.arrived, []);
  });
});

describe('serviceFetch, origins that look alike', () => {
  const port = (): string => new URL(shop.origin).port;
  const refuses = async (url: string): Promise<void> => {
    await assert.rejects(client.serviceFetch(url), { name: 'TypeError', message: /^No token is sent to/ });
    assert.deepEqual([shop.arrived, foreign.arrived], [[], []]);
  };
  const goesTo = async (url: string): Promise<void> => {
    await client.serviceFetch(url);
    assert.deepEqual(shop.tokens(), [token]);
  };

  it('takes the host after a user for the host', () => refuses(`${shop.origin}@${foreign.origin.slice('http://'.length)}/`));
  it('takes another port for another origin', () => refuses(foreign.origin));
  it('takes no port for port 80', () => refuses('http://127.0.0.1/'));
  it('takes another name for another origin', () => refuses(shop.named));
  it('takes IPv6 for another origin', () => refuses(`http://[::1]:${port()}/`));
  it('takes an IPv4 address written as IPv6 for another origin', () => refuses(`http://[::ffff:127.0.0.1]:${port()}/`));
  it('takes a shorter spelling of the same address for the same origin', () => goesTo(`http://127.1:${port()}/`));
  it('takes another case of the scheme for the same origin', () => goesTo(`HTTP://127.0.0.1:${port()}/`));

  const named = (origin: string): ((url: string) => Promise<string>) => {
    const other = createServiceClient({
      targets: [{ origin, tokenFile: api.tokenFile('shop') }],
      fetch: (input, init) =>
        Promise.resolve(new Response(`${new Request(input).url} ${new Headers(init?.headers).get('x-client-id') === token}`)),
    });
    return (url) =>
      other
        .serviceFetch(url)
        .then((answer) => answer.text())
        .finally(() => other.close());
  };
  const refusal = { name: 'TypeError', message: /^No token is sent to/ };

  it('takes a trailing dot for another host', () => assert.rejects(named('http://app.shop')('http://app.shop./'), refusal));
  it('takes a longer name for another host', () => assert.rejects(named('http://app.shop')('http://app.shop.example/'), refusal));
  it('takes a letter that looks alike for another host', () => assert.rejects(named('http://app.shop')('http://аpp.shop/'), refusal));
  it('takes https for another origin', () => assert.rejects(named('http://app.shop')('https://app.shop/'), refusal));
  it('takes the default port for none', async () =>
    assert.equal(await named('http://app.shop')('http://app.shop:80/'), 'http://app.shop/ true'));
  it('takes upper case for lower case', async () =>
    assert.equal(await named('http://app.shop')('http://APP.Shop/'), 'http://app.shop/ true'));
  it('takes a name and its punycode for one', async () =>
    assert.equal(await named('http://bücher.shop')('http://xn--bcher-kva.shop/'), 'http://xn--bcher-kva.shop/ true'));
  it('takes long and short IPv6 for one', async () =>
    assert.equal(await named('http://[::1]:8080')('http://[0:0:0:0:0:0:0:1]:8080/'), 'http://[::1]:8080/ true'));
});

// The types of the two majors differ in what they name; both have what is used here.
const asEight = undici7 as unknown as typeof undici8;

describeInterceptor('undici 8', undici8);
describeInterceptor('undici 7', asEight);

function describeInterceptor(name: string, undici: typeof undici8): void {
  const { Agent, Client, interceptors, Pool } = undici;
  const follow = (): undici8.Dispatcher.DispatcherComposeInterceptor => interceptors.redirect({ maxRedirections: 3 });
  let opened: undici8.Dispatcher[];
  const open = <T extends undici8.Dispatcher>(dispatcher: T): T => {
    opened.push(dispatcher);
    return dispatcher;
  };
  const agent = (...chain: undici8.Dispatcher.DispatcherComposeInterceptor[]): undici8.Dispatcher => open(new Agent()).compose(...chain);

  async function get(url: string, dispatcher: undici8.Dispatcher, headers?: Record<string, string>): Promise<number> {
    const { statusCode, body } = await undici.request(url, { dispatcher, ...(headers && { headers }) });
    await body.dump();
    return statusCode;
  }

  describe(`createInterceptor on ${name}, where a redirect leads`, () => {
    beforeEach(() => {
      opened = [];
    });
    afterEach(() => Promise.all(opened.map((dispatcher) => dispatcher.destroy())));

    const goes = async (status: number): Promise<void> => {
      shop.answer = redirect(status, `${foreign.origin}/to`);
      assert.equal(await get(`${shop.origin}/from`, agent(createInterceptor(client), follow())), 200);
      assert.deepEqual(foreign.tokens(), [undefined]);
    };
    it('carries nothing to another port with a 301', () => goes(301));
    it('carries nothing to another port with a 302', () => goes(302));
    it('carries nothing to another port with a 303', () => goes(303));
    it('carries nothing to another port with a 307', () => goes(307));
    it('carries nothing to another port with a 308', () => goes(308));

    it('carries nothing to another name of the same host', async () => {
      shop.answer = redirect(302, `${shop.named}/to`);
      await get(`${shop.origin}/from`, agent(createInterceptor(client), follow()));
      assert.deepEqual(shop.tokens(), [token, undefined]);
    });

    it('carries nothing to another host without its scheme', async () => {
      shop.answer = redirect(302, `//${foreign.named.slice('http://'.length)}/to`);
      await get(`${shop.origin}/from`, agent(createInterceptor(client), follow()));
      assert.deepEqual(foreign.tokens(), [undefined]);
    });

    it('carries it to a relative path', async () => {
      shop.answer = redirect(302, 'to');
      await get(`${shop.origin}/from`, agent(createInterceptor(client), follow()));
      assert.deepEqual(shop.tokens(), [token, token]);
    });

    it('carries nothing to another scheme', async () => {
      const raw = await listenRaw();
      shop.answer = redirect(302, `https://localhost:${raw.port}/to`);
      await assert.rejects(get(`${shop.origin}/from`, agent(createInterceptor(client), follow())));
      assert.ok(raw.bytes().length > 0);
      assert.ok(!raw.bytes().includes(token));
      raw.server.close();
    });

    it('carries nothing from one target to another, through retry() too', async () => {
      await client.close();
      client = createServiceClient({
        targets: [
          { origin: shop.origin, tokenFile: api.tokenFile('shop') },
          { origin: foreign.origin, tokenFile: api.tokenFile('bank') },
        ],
      });
      shop.answer = redirect(302, `${foreign.origin}/to`);
      const dispatcher = agent(createInterceptor(client), interceptors.retry(), follow());
      await get(`${shop.origin}/from`, dispatcher);
      assert.deepEqual(foreign.tokens(), [undefined]);
      await get(foreign.origin, dispatcher);
      assert.deepEqual(foreign.tokens(), [undefined, bankToken]);
    });

    it('tells no target the token of another where a Pool sends to its own host, whatever the redirect says', async () => {
      await client.close();
      client = createServiceClient({
        targets: [
          { origin: shop.origin, tokenFile: api.tokenFile('shop') },
          { origin: foreign.origin, tokenFile: api.tokenFile('bank') },
        ],
      });
      shop.answer = redirect(302, `${foreign.origin}/to`);
      const pool = open(new Pool(shop.origin)).compose(createInterceptor(client), follow());
      await get(`${shop.origin}/from`, pool);
      assert.equal(shop.arrived.length, 2);
      assert.ok(!shop.tokens().includes(bankToken));
    });

    const withBank = async (): Promise<void> => {
      await client.close();
      client = createServiceClient({
        targets: [
          { origin: shop.origin, tokenFile: api.tokenFile('shop') },
          { origin: foreign.origin, tokenFile: api.tokenFile('bank') },
        ],
      });
    };

    it('carries nothing from an origin that is not named to one that is, nor on from there', async () => {
      await withBank();
      const third = await serve();
      const dispatcher = agent(createInterceptor(client), follow());
      const statuses = [300, 301, 302, 303, 307, 308];
      for (const status of statuses) {
        third.answer = redirect(status, `${foreign.origin}/to`);
        await get(`${third.origin}/from`, dispatcher);
        shop.answer = redirect(status, `${third.origin}/from`);
        await get(`${shop.origin}/from`, dispatcher);
      }
      await third.close();
      const nothing = statuses.flatMap(() => [undefined, undefined]);
      assert.deepEqual([shop.tokens(), third.tokens(), foreign.tokens()], [statuses.map(() => token), nothing, nothing]);
    });

    it('takes for a redirect what is dispatched as one ends, and nothing else', async () => {
      await withBank();
      let next: Promise<number> | undefined;
      // As a limiter does, which goes on with the next request in the end of the last.
      const limit: undici8.Dispatcher.DispatcherComposeInterceptor = (dispatch) => (options, handler) =>
        dispatch(
          options,
          new Proxy(handler, {
            get(inner, event) {
              const value: unknown = Reflect.get(inner, event);
              if (typeof value !== 'function') return value;
              return (...args: unknown[]): unknown => {
                if (event === 'onResponseEnd') next ??= get(foreign.origin, dispatcher);
                return Reflect.apply(value, inner, args);
              };
            },
          }),
        );
      const dispatcher = agent(createInterceptor(client), limit);
      await get(shop.origin, dispatcher);
      await next;
      assert.deepEqual([shop.tokens(), foreign.tokens()], [[token], [bankToken]]);
      // Neither leads anywhere.
      for (const [status, headers] of [
        [404, { location: '/to' }],
        [304, {}],
      ] as const) {
        next = undefined;
        shop.answer = (_request, response) => void response.writeHead(status, headers).end();
        await get(shop.origin, dispatcher);
        await (next as Promise<unknown> | undefined);
      }
      assert.deepEqual(foreign.tokens(), [bankToken, bankToken, bankToken]);
    });

    it('goes where it was decided to go, whatever becomes of the URL while there is no token yet', async () => {
      await withBank();
      const third = await serve();
      const dispatcher = agent(createInterceptor(client));
      const origin = new URL(shop.origin);
      const headers: Record<string, string> = { 'x-mine': 'mine' };
      const asked = [shop, foreign, third].map((service) => {
        origin.port = new URL(service.origin).port;
        return dispatcher.request({ origin, path: '/', method: 'GET', headers }).then(({ body }) => body.dump());
      });
      headers['x-mine'] = 'another';
      origin.port = '1';
      await Promise.all(asked);
      await third.close();
      assert.deepEqual([shop.tokens(), foreign.tokens(), third.tokens()], [[token], [bankToken], [undefined]]);
      assert.deepEqual(shop.headers[0]?.['x-mine'], ['mine']);
    });

    it('goes by what the origin was when it was looked at', async () => {
      await client.ready();
      const changing = Object.defineProperty(new URL(foreign.origin), 'origin', { value: shop.origin });
      const { body } = await agent(createInterceptor(client)).request({ origin: changing, path: '/', method: 'GET' });
      await body.dump();
      assert.deepEqual([shop.tokens(), foreign.tokens()], [[token], []]);
    });

    it('does not follow at all, listed after redirect()', async () => {
      shop.answer = redirect(302, `${foreign.origin}/to`);
      assert.equal(await get(`${shop.origin}/from`, agent(follow(), createInterceptor(client))), 302);
      assert.deepEqual(foreign.arrived, []);
    });
  });

  describe(`createInterceptor on ${name}, origins that look alike`, () => {
    beforeEach(() => {
      opened = [];
    });
    afterEach(() => Promise.all(opened.map((dispatcher) => dispatcher.destroy())));

    it('takes the host after a user for the host', async () => {
      const { host } = new URL(foreign.origin);
      await agent(createInterceptor(client))
        .request({ origin: `${shop.origin}@${host}`, path: '/', method: 'GET' })
        .catch(() => {});
      assert.deepEqual([shop.tokens(), foreign.tokens().filter(Boolean)], [[], []]);
    });

    it('takes another name for another origin', async () => {
      await get(shop.named, agent(createInterceptor(client)));
      assert.deepEqual(shop.tokens(), [undefined]);
    });

    it('takes an origin with a slash for the same', async () => {
      const dispatcher = agent(createInterceptor(client));
      await dispatcher.request({ origin: new URL(`${shop.origin}/`), path: '/', method: 'GET' });
      await dispatcher.request({ origin: `${shop.origin}/`, path: '/', method: 'GET' });
      assert.deepEqual(shop.tokens(), [token, token]);
    });

    it('takes no path that could become a host on its way through a proxy', async () => {
      const seen: (string | undefined)[] = [];
      const proxy = createHttpServer((request, response) => {
        seen.push(request.url, String(request.headers['x-client-id']));
        response.end();
      }).listen(0);
      await once(proxy, 'listening');
      const uri = `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`;
      const through = open(new undici.ProxyAgent({ uri, proxyTunnel: false })).compose(createInterceptor(client));
      const origin = new URL(shop.origin).origin;
      await through.request({ origin, path: '.example/', method: 'GET' }).catch(() => {});
      assert.ok(!seen.includes(token));
      proxy.closeAllConnections();
      proxy.close();
    });
  });

  describe(`createInterceptor on ${name}, through a proxy`, () => {
    let proxy: ReturnType<typeof createHttpServer>;
    let uri: string;
    let seen: string[];
    beforeEach(async () => {
      opened = [];
      seen = [];
      // Tunnels what asks for it, and answers what does not.
      proxy = createHttpServer((request, response) => {
        seen.push(`${request.method} ${request.url} ${request.headers['x-client-id'] === token}`);
        httpRequest(String(request.url), { method: request.method, headers: request.headers }, (answer) => {
          response.writeHead(answer.statusCode ?? 502);
          answer.pipe(response);
        }).end();
      });
      proxy.on('connect', (request, socket) => {
        seen.push(`CONNECT ${request.url} ${request.headers['x-client-id'] !== undefined}`);
        const { hostname, port } = new URL(`http://${request.url}`);
        const upstream = connect(Number(port || 80), hostname, () => {
          socket.write('HTTP/1.1 200 OK\r\n\r\n');
          upstream.pipe(socket).pipe(upstream);
        });
        upstream.on('error', () => socket.destroy());
        socket.on('error', () => upstream.destroy());
      });
      proxy.listen(0, '127.0.0.1');
      await once(proxy, 'listening');
      uri = `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`;
    });
    afterEach(async () => {
      await Promise.all(opened.map((dispatcher) => dispatcher.destroy()));
      proxy.closeAllConnections();
      proxy.close();
    });

    it('reaches the named origin through a tunnel, and the CONNECT has no token', async () => {
      await get(shop.origin, open(new undici.ProxyAgent({ uri, proxyTunnel: true })).compose(createInterceptor(client)));
      assert.deepEqual(shop.tokens(), [token]);
      assert.deepEqual(seen, [`CONNECT ${new URL(shop.origin).host} false`]);
    });

    it('reaches the named origin without a tunnel, where the proxy reads it', async () => {
      await get(shop.origin, open(new undici.ProxyAgent({ uri, proxyTunnel: false })).compose(createInterceptor(client)));
      assert.deepEqual(shop.tokens(), [token]);
      assert.deepEqual(seen, [`GET ${shop.origin}/ true`]);
    });

    it('carries nothing to another origin through the same proxy', async () => {
      await get(foreign.origin, open(new undici.ProxyAgent({ uri, proxyTunnel: false })).compose(createInterceptor(client)));
      assert.deepEqual(foreign.tokens(), [undefined]);
      assert.deepEqual(seen, [`GET ${foreign.origin}/ false`]);
    });

    it('reaches the named origin through the proxy of the environment', async () => {
      const dispatcher = open(new undici.EnvHttpProxyAgent({ httpProxy: uri, noProxy: '' })).compose(createInterceptor(client));
      await get(shop.origin, dispatcher);
      await get(foreign.origin, dispatcher);
      assert.deepEqual([shop.tokens(), foreign.tokens()], [[token], [undefined]]);
      assert.equal(seen.length, 2);
    });
  });

  describe(`createInterceptor on ${name}, with undici’s own interceptors`, () => {
    beforeEach(() => {
      opened = [];
    });
    afterEach(() => Promise.all(opened.map((dispatcher) => dispatcher.destroy())));

    const namedClient = async (): Promise<void> => {
      await client.close();
      client = createServiceClient({ targets: [{ origin: shop.named, tokenFile: api.tokenFile('shop') }] });
    };

    it('sends it, listed after dns()', async () => {
      await namedClient();
      await get(shop.named, agent(interceptors.dns(), createInterceptor(client)));
      assert.deepEqual(shop.tokens(), [token]);
    });

    it('sends nothing, listed before dns()', async () => {
      await namedClient();
      await get(shop.named, agent(createInterceptor(client), interceptors.dns()));
      assert.deepEqual(shop.tokens(), [undefined]);
    });

    it('carries nothing elsewhere with dns() and redirect() around it', async () => {
      await namedClient();
      shop.answer = redirect(302, `${foreign.named}/to`);
      await get(`${shop.named}/from`, agent(interceptors.dns(), createInterceptor(client), follow()));
      assert.deepEqual([shop.tokens(), foreign.tokens()], [[token], [undefined]]);
    });

    const failsOnce = (): void => {
      shop.answer = (_request, response) => response.writeHead(shop.arrived.length === 1 ? 503 : 200).end();
    };
    const retry = (): undici8.Dispatcher.DispatcherComposeInterceptor => interceptors.retry({ minTimeout: 1 });

    it('sends it again with retry(), listed after it', async () => {
      failsOnce();
      assert.equal(await get(shop.origin, agent(retry(), createInterceptor(client))), 200);
      assert.deepEqual(shop.tokens(), [token, token]);
    });

    it('sends it again with retry(), listed before it', async () => {
      failsOnce();
      assert.equal(await get(shop.origin, agent(createInterceptor(client), retry())), 200);
      assert.deepEqual(shop.tokens(), [token, token]);
    });

    // What one of our guards says of its answers.
    const guarded = (): void => {
      shop.answer = ({ headers }, response) => {
        const cacheControl = ['private', 'max-age=60'];
        response.writeHead(200, { 'cache-control': cacheControl.join(', '), vary: 'X-Client-Id' }).end(String(headers['x-client-id']));
      };
    };

    it('shares no guarded answer with a request that has no token, listed after cache()', async () => {
      guarded();
      const store = new undici.cacheStores.MemoryCacheStore();
      await get(shop.origin, agent(interceptors.cache({ store }), createInterceptor(client)));
      await get(shop.origin, agent(interceptors.cache({ store })));
      assert.deepEqual(shop.tokens(), [token, undefined]);
    });

    it('shares no guarded answer with a request that has no token, listed before cache()', async () => {
      guarded();
      const store = new undici.cacheStores.MemoryCacheStore();
      await get(shop.origin, agent(createInterceptor(client), interceptors.cache({ store })));
      await get(shop.origin, agent(interceptors.cache({ store })));
      assert.deepEqual(shop.tokens(), [token, undefined]);
    });
  });

  describe(`createInterceptor on ${name}, a Client of another host`, () => {
    beforeEach(() => {
      opened = [];
    });
    afterEach(() => Promise.all(opened.map((dispatcher) => dispatcher.destroy())));

    it('sends to its own origin where the request names none', async () => {
      const dispatcher = open(new Client(foreign.origin)).compose(createInterceptor(client));
      const { body } = await dispatcher.request({ path: '/', method: 'GET' });
      await body.dump();
      assert.deepEqual(foreign.tokens(), [undefined]);
    });
  });
}

describe('createInterceptor on undici 8, a Pool of another host', () => {
  it('carries nothing there, whatever origin a request names', async () => {
    const pool = new undici8.Pool(foreign.origin);
    const dispatcher = pool.compose(createInterceptor(client));
    const { body } = await dispatcher.request({ origin: shop.origin, path: '/', method: 'GET' });
    await body.dump();
    assert.deepEqual(foreign.tokens(), [undefined]);
    await pool.close();
  });

  it('carries nothing to one of several hosts, whatever origin a request names', async () => {
    for (const pool of [new undici8.BalancedPool([foreign.origin]), new undici8.RoundRobinPool(foreign.origin)]) {
      const { body } = await pool.compose(createInterceptor(client)).request({ origin: shop.origin, path: '/', method: 'GET' });
      await body.dump();
      await pool.close();
    }
    assert.deepEqual(foreign.tokens(), [undefined, undefined]);
  });
});
