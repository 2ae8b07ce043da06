import assert from 'node:assert/strict';
import { createServer, type IncomingMessage, request as httpRequest, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, afterEach, before, beforeEach, describe, it, mock } from 'node:test';
import { inspect } from 'node:util';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';

import { type ClientOptions, createServiceClient, type ServiceClient, type TargetOptions } from './service-client.ts';
import { fetchFor } from './service-fetch.ts';

interface Arrived {
  readonly method: string | undefined;
  readonly url: string | undefined;
  readonly token: string | undefined;
  readonly authorization: string | undefined;
  readonly body: string;
}

let authority: Authority;
let api: Pod;
let token: string;
let shop: Service;
let foreign: Service;
let clients: ServiceClient[];

interface Service {
  readonly origin: string;
  readonly arrived: Arrived[];
  answer: (request: IncomingMessage, response: ServerResponse) => void;
  readonly server: Server;
}

// A service that notes what arrives.
async function serve(): Promise<Service> {
  const arrived: Arrived[] = [];
  const server = createServer((request, response) => {
    let body = '';
    request.setEncoding('utf8').on('data', (chunk: string) => (body += chunk));
    request.on('end', () => {
      const { authorization, 'x-client-id': id } = request.headers;
      arrived.push({ method: request.method, url: request.url, token: id === undefined ? undefined : String(id), authorization, body });
      service.answer(request, response);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const service: Service = {
    origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    arrived,
    answer: (_request, response) => void response.end('ok'),
    server,
  };
  return service;
}

function redirect(status: number, location: string): Service['answer'] {
  return (request, response) => {
    if (request.url === '/from') response.writeHead(status, { location }).end();
    else response.end('arrived');
  };
}

function clientOf(...targets: TargetOptions[]): ServiceClient {
  const client = createServiceClient({ targets, logger: { info: () => {}, warn: () => {}, error: () => {} } });
  clients.push(client);
  return client;
}

const shopClient = (): ServiceClient => clientOf({ origin: shop.origin, tokenFile: api.tokenFile('shop') });

before(async () => {
  authority = await createAuthority();
  api = await authority.pod('api/api', { tokens: { shop: 'shop', bank: 'bank' } });
  token = await clientTokenOf('shop');
});
after(() => authority.close());

async function clientTokenOf(file: string): Promise<string> {
  const client = createServiceClient({ targets: [{ origin: 'http://x', tokenFile: api.tokenFile(file) }] });
  const headers = await client.target('http://x').headers();
  await client.close();
  return headers['x-client-id'] ?? assert.fail();
}

beforeEach(async () => {
  clients = [];
  [shop, foreign] = await Promise.all([serve(), serve()]);
});
afterEach(async () => {
  mock.timers.reset();
  await Promise.all(clients.map((client) => client.close()));
  for (const { server } of [shop, foreign]) {
    server.closeAllConnections();
    server.close();
  }
});

describe('createServiceClient, its options', () => {
  const rejects = (options: unknown, message: RegExp): void =>
    assert.throws(() => createServiceClient(options as ClientOptions), { name: 'TypeError', message });

  it('requires targets', () => rejects({}, /"targets" is required/));
  it('refuses no targets', () => rejects({ targets: [] }, /"targets" is required/));
  it('refuses an unknown option', () => rejects({ targets: [], target: 1 }, /does not know "target"/));
  it('refuses an unknown option of a target', () =>
    rejects({ targets: [{ origin: 'http://x', tokenFile: '/t', audience: 'x' }] }, /does not know "audience"/));
  it('requires an origin', () => rejects({ targets: [{ tokenFile: '/t' }] }, /"origin" is required/));
  it('requires a token file', () => rejects({ targets: [{ origin: 'http://x' }] }, /"tokenFile" is required/));
  it('refuses a path in an origin', () =>
    rejects({ targets: [{ origin: 'http://x/a', tokenFile: '/t' }] }, /"http:\/\/x\/a" is not an origin/));
  it('refuses a user in an origin', () => rejects({ targets: [{ origin: 'http://u@x', tokenFile: '/t' }] }, /is not an origin/));
  it('refuses a query in an origin', () => rejects({ targets: [{ origin: 'http://x?', tokenFile: '/t' }] }, /is not an origin/));
  it('refuses another scheme', () => rejects({ targets: [{ origin: 'ftp://x', tokenFile: '/t' }] }, /is not an origin/));
  it('refuses a host alone', () => rejects({ targets: [{ origin: 'app.shop', tokenFile: '/t' }] }, /is not an origin/));
  it('refuses another header', () => rejects({ targets: [{ origin: 'http://x', tokenFile: '/t', header: 'cookie' }] }, /"header" is/));
  it('refuses an origin that is named twice, in another spelling too', () =>
    rejects(
      {
        targets: [
          { origin: 'http://x', tokenFile: '/a' },
          { origin: 'HTTP://X:80/', tokenFile: '/b' },
        ],
      },
      /http:\/\/x is named twice/,
    ));
});

describe('serviceFetch', () => {
  it('sends the target’s token', async () => {
    const { serviceFetch } = shopClient();
    assert.equal((await serviceFetch(`${shop.origin}/secrets?x=1`)).status, 200);
    assert.deepEqual(shop.arrived, [{ method: 'GET', url: '/secrets?x=1', token, authorization: undefined, body: '' }]);
  });

  it('sends it as a bearer token where the target says so', async () => {
    const client = clientOf({ origin: shop.origin, tokenFile: api.tokenFile('shop'), header: 'authorization' });
    await client.serviceFetch(shop.origin);
    assert.equal(shop.arrived[0]?.authorization, `Bearer ${token}`);
    assert.equal(shop.arrived[0]?.token, undefined);
  });

  it('replaces a header of that name, and leaves what it was handed as it was', async () => {
    const headers = new Headers({ 'x-client-id': 'forged', accept: 'text/plain' });
    await shopClient().serviceFetch(shop.origin, { headers });
    assert.equal(shop.arrived[0]?.token, token);
    assert.equal(headers.get('x-client-id'), 'forged');
  });

  it('takes a Request, with its method, headers and body', async () => {
    const request = new Request(`${shop.origin}/orders`, { method: 'POST', body: 'one', headers: { 'x-client-id': 'forged' } });
    await shopClient().serviceFetch(request);
    assert.deepEqual(shop.arrived, [{ method: 'POST', url: '/orders', token, authorization: undefined, body: 'one' }]);
  });

  it('takes a URL', async () => {
    await shopClient().serviceFetch(new URL('/a', shop.origin));
    assert.equal(shop.arrived[0]?.url, '/a');
  });

  it('rejects an origin that is not named, without a word to it', async () => {
    await assert.rejects(shopClient().serviceFetch(foreign.origin), {
      name: 'TypeError',
      message: new RegExp(`^No token is sent to ${foreign.origin}: it is not named`),
    });
    assert.deepEqual(foreign.arrived, []);
  });

  it('rejects an origin that only looks alike', async () => {
    const client = clientOf({ origin: 'http://app.shop', tokenFile: api.tokenFile('shop') });
    await assert.rejects(client.serviceFetch('http://app.shop@127.0.0.1/'), TypeError);
    await assert.rejects(client.serviceFetch('http://app.shop.:80/'), TypeError);
    await assert.rejects(client.serviceFetch('https://app.shop/'), TypeError);
    await assert.rejects(client.serviceFetch('http://app.shop:8080/'), TypeError);
    await assert.rejects(client.serviceFetch('http://app.shop.evil/'), TypeError);
  });

  it('follows a redirect within the origin, with the token', async () => {
    shop.answer = redirect(302, '/to');
    assert.equal(await (await shopClient().serviceFetch(`${shop.origin}/from`)).text(), 'arrived');
    assert.deepEqual(
      shop.arrived.map((arrived) => [arrived.url, arrived.token]),
      [
        ['/from', token],
        ['/to', token],
      ],
    );
  });

  it('does not follow a redirect to another origin', async () => {
    shop.answer = redirect(307, `${foreign.origin}/to`);
    await assert.rejects(shopClient().serviceFetch(`${shop.origin}/from`), {
      name: 'TypeError',
      message: /a token for one origin is not taken to another/,
    });
    assert.deepEqual(foreign.arrived, []);
  });

  it('does not follow a redirect from one target to another', async () => {
    const client = clientOf(
      { origin: shop.origin, tokenFile: api.tokenFile('shop') },
      { origin: foreign.origin, tokenFile: api.tokenFile('bank') },
    );
    shop.answer = redirect(302, foreign.origin);
    await assert.rejects(client.serviceFetch(`${shop.origin}/from`), TypeError);
    assert.deepEqual(foreign.arrived, []);
  });

  it('hands a redirect back where it is asked to', async () => {
    shop.answer = redirect(302, foreign.origin);
    const answer = await shopClient().serviceFetch(`${shop.origin}/from`, { redirect: 'manual' });
    assert.equal(answer.status, 302);
  });

  it('makes a GET of a POST on 302, and sends a POST again on 307', async () => {
    shop.answer = redirect(302, '/to');
    await shopClient().serviceFetch(`${shop.origin}/from`, { method: 'POST', body: 'one' });
    shop.answer = redirect(307, '/to');
    await shopClient().serviceFetch(`${shop.origin}/from`, { method: 'POST', body: 'two' });
    assert.deepEqual(
      shop.arrived.map(({ method, url, body }) => [method, url, body]),
      [
        ['POST', '/from', 'one'],
        ['GET', '/to', ''],
        ['POST', '/from', 'two'],
        ['POST', '/to', 'two'],
      ],
    );
  });

  it('does not send a stream again', async () => {
    shop.answer = redirect(307, '/to');
    const request = new Request(`${shop.origin}/from`, { method: 'POST', body: 'one' });
    await assert.rejects(shopClient().serviceFetch(request), { name: 'TypeError', message: /a stream cannot be sent again/ });
  });

  it('follows no circle for ever', async () => {
    shop.answer = redirect(302, '/from');
    await assert.rejects(shopClient().serviceFetch(`${shop.origin}/from`), { message: /redirects more than 20 times/ });
    assert.equal(shop.arrived.length, 21);
  });

  it('gives each target its own token', async () => {
    const client = clientOf(
      { origin: shop.origin, tokenFile: api.tokenFile('shop') },
      { origin: foreign.origin, tokenFile: api.tokenFile('bank') },
    );
    await client.serviceFetch(shop.origin);
    await client.serviceFetch(foreign.origin);
    assert.equal(shop.arrived[0]?.token, token);
    assert.equal(foreign.arrived[0]?.token, await clientTokenOf('bank'));
    assert.notEqual(shop.arrived[0]?.token, foreign.arrived[0]?.token);
  });

  it('calls the fetch that it was given', async () => {
    const asked: unknown[] = [];
    const client = createServiceClient({
      targets: [{ origin: 'http://app.shop', tokenFile: api.tokenFile('shop') }],
      fetch: (input, init) => {
        asked.push(input, new Headers(init?.headers).get('x-client-id'));
        return Promise.resolve(new Response('ok'));
      },
    });
    clients.push(client);
    await client.serviceFetch('http://app.shop/a');
    assert.deepEqual(asked, ['http://app.shop/a', token]);
  });

  it('rejects with what is wrong with the token file', async () => {
    const pod = await authority.pod('api/api', { tokens: { wrong: 'https://kubernetes.default.svc.cluster.local' } });
    const client = clientOf({ origin: shop.origin, tokenFile: pod.tokenFile('wrong') });
    await assert.rejects(client.serviceFetch(shop.origin), { name: 'TokenFileError', code: 'token_not_sendable' });
    assert.deepEqual(shop.arrived, []);
  });
});

describe('a service client', () => {
  it('gives headers for other clients', async () => {
    const headers = await shopClient().target(`${shop.origin}/any/path`).headers();
    await new Promise((resolve) => httpRequest(shop.origin, { headers }, resolve).end());
    assert.deepEqual(headers, { 'x-client-id': token });
    assert.equal(shop.arrived[0]?.token, token);
  });

  it('knows no target of another origin', () => {
    assert.throws(() => shopClient().target(foreign.origin), { name: 'TypeError', message: /is not named in "targets"/ });
    assert.throws(() => shopClient().target('not a url'), TypeError);
  });

  it('tells the state of each target, and no token', async () => {
    const client = shopClient();
    await client.ready();
    const [status] = client.status();
    assert.equal(status?.audience, 'shop');
    assert.deepEqual(status.origins, [shop.origin]);
    assert.ok((status.expiresAt?.getTime() ?? 0) > Date.now());
    assert.ok((status.reloadedAt?.getTime() ?? 0) <= Date.now());
    assert.equal(status.error, undefined);
    assert.ok(!inspect(client, { depth: 20, showHidden: true }).includes(token));
    assert.ok(!JSON.stringify([client, client.status()]).includes(token));
  });

  it('is ready when every target has a live token, and says which has none', async () => {
    const client = clientOf(
      { origin: shop.origin, tokenFile: api.tokenFile('shop') },
      { origin: foreign.origin, tokenFile: '/absent/token' },
    );
    await assert.rejects(client.ready(AbortSignal.abort(new Error('too long'))), { message: 'too long' });
    assert.equal((await shopClient().ready(), client.status().length), 2);
  });

  it('sends nothing after close', async () => {
    const client = shopClient();
    await client.serviceFetch(shop.origin);
    await client.close();
    await assert.rejects(client.serviceFetch(shop.origin), { name: 'TokenFileError', message: /is closed/ });
  });
});

describe('fetchFor', () => {
  it('cancels what was called when the caller hangs up', async () => {
    const called = new Promise<void>((resolve) => {
      shop.answer = () => resolve();
    });
    const { serviceFetch } = shopClient();
    const outcome = new Promise((resolve) => {
      foreign.answer = (_request, response) => resolve(fetchFor(response, serviceFetch)(shop.origin).catch((error: Error) => error.name));
    });
    const caller = httpRequest(foreign.origin).on('error', () => {});
    caller.end();
    await called;
    caller.destroy();
    assert.equal(await outcome, 'AbortError');
  });

  it('keeps the signal that it was given', async () => {
    const { serviceFetch } = shopClient();
    const outcome = new Promise((resolve) => {
      foreign.answer = (_request, response) => {
        const signal = AbortSignal.abort(new Error('mine'));
        resolve(fetchFor(response, serviceFetch)(shop.origin, { signal }).catch((error: Error) => error.message));
        response.end();
      };
    });
    httpRequest(foreign.origin).end();
    assert.equal(await outcome, 'mine');
  });
});
