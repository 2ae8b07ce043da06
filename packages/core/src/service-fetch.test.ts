import assert from 'node:assert/strict';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { getEventListeners } from 'node:events';
import { readFileSync } from 'node:fs';
import { request as httpRequest } from 'node:http';
import { connect as connectHttp2, constants, createServer as createHttp2Server } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { after, afterEach, before, beforeEach, describe, it, mock } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';

import { mount, type Mount } from './fixtures/mount.ts';
import { redirect, refuse, serve, type Service } from './fixtures/service.ts';
import { createServiceClient, type ServiceClient, type TargetOptions } from './service-client.ts';
import { fetchFor } from './service-fetch.ts';
import { tokenReloadChannel } from './token-file.ts';

let authority: Authority;
let api: Pod;
let token: string;
let shop: Service;
let foreign: Service;
let clients: ServiceClient[];

function clientOf(...targets: TargetOptions[]): ServiceClient {
  const client = createServiceClient({ targets, logger: { info: () => {}, warn: () => {}, error: () => {} } });
  clients.push(client);
  return client;
}

const shopClient = (): ServiceClient => clientOf({ origin: shop.origin, tokenFile: api.tokenFile('shop') });

before(async () => {
  authority = await createAuthority();
  api = await authority.pod('api/api', { tokens: { shop: 'shop', bank: 'bank' } });
});
after(() => authority.close());

beforeEach(async () => {
  clients = [];
  [shop, foreign] = await Promise.all([serve(), serve()]);
  token = readFileSync(api.tokenFile('shop'), 'utf8');
});
afterEach(async () => {
  await Promise.all([...clients, shop, foreign].map((one) => one.close()));
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

  it('goes by what a Request is, not by what a subclass says of it', async () => {
    const disguised = Object.defineProperty(new Request(foreign.origin), 'url', { value: shop.origin });
    await assert.rejects(shopClient().serviceFetch(disguised), TypeError);
    assert.deepEqual(foreign.arrived, []);
  });

  it('reads what it is handed once', async () => {
    shop.answer = redirect(302, foreign.origin);
    let reads = 0;
    const init = {
      get redirect(): 'manual' | 'follow' {
        reads += 1;
        return reads === 1 ? 'manual' : 'follow';
      },
    };
    assert.equal((await shopClient().serviceFetch(`${shop.origin}/from`, init)).status, 302);
    assert.deepEqual(foreign.arrived, []);
  });

  it('takes what fetch takes for an init: what it inherits, and a Request', async () => {
    const { serviceFetch } = shopClient();
    await serviceFetch(`${shop.origin}/one`, Object.create({ method: 'DELETE' }) as RequestInit);
    await serviceFetch(`${shop.origin}/two`, new Request(foreign.origin, { method: 'POST', body: 'x', headers: { 'x-mine': 'mine' } }));
    assert.partialDeepStrictEqual(shop.arrived, [
      { method: 'DELETE', url: '/one' },
      { method: 'POST', url: '/two', body: 'x' },
    ]);
    assert.deepEqual(shop.headers[1]?.['x-mine'], ['mine']);
    assert.deepEqual(foreign.arrived, []);
    shop.answer = redirect(302, '/to');
    const from = `${shop.origin}/from`;
    assert.equal((await serviceFetch(from, new Request(foreign.origin, { redirect: 'manual' }))).status, 302);
    const aborted = new Request(foreign.origin, { signal: AbortSignal.abort() });
    await assert.rejects(serviceFetch(from, aborted), { name: 'AbortError' });
  });

  it('sends a body as it was when it was called', async () => {
    const { serviceFetch } = shopClient();
    const bytes = Buffer.from('first');
    const buffer = Uint8Array.from(bytes).buffer;
    const fields = new URLSearchParams({ a: 'first' });
    const form = new FormData();
    form.set('a', new Blob(['first']), 'name');
    const answers = [bytes, buffer, fields, form].map((body) => serviceFetch(shop.origin, { method: 'POST', body }));
    bytes.fill('X');
    new Uint8Array(buffer).fill(0);
    fields.set('a', 'X');
    form.set('a', 'X');
    await Promise.all(answers);
    const bodies = shop.arrived.map(({ body }) => body).toSorted((one, other) => one.length - other.length);
    assert.deepEqual(bodies.slice(0, 3), ['first', 'first', 'a=first']);
    assert.match(bodies[3] ?? '', /filename="name"[^]*first/);
  });

  it('stops waiting for a token when its signal aborts', async () => {
    const client = clientOf({ origin: shop.origin, tokenFile: '/absent/token' });
    const controller = new AbortController();
    const answer = client.serviceFetch(shop.origin, { signal: controller.signal });
    controller.abort(new Error('mine'));
    await assert.rejects(answer, { message: 'mine' });
    await assert.rejects(client.serviceFetch(new Request(shop.origin, { signal: AbortSignal.abort() })), { name: 'AbortError' });
    await assert.rejects(client.ready(controller.signal), { message: 'mine' });
    assert.equal(getEventListeners(controller.signal, 'abort').length, 0);
  });

  it('leaves nothing on a signal that does not abort', async () => {
    const client = shopClient();
    const { signal } = new AbortController();
    for (let time = 0; time < 3; time++) await client.ready(signal);
    assert.equal(getEventListeners(signal, 'abort').length, 0);
  });

  it('reads Location as fetch does, in UTF-8', async () => {
    shop.answer = (request, response) =>
      request.url === '/from'
        ? void response.writeHead(302, { location: Buffer.from('/café').toString('latin1') }).end()
        : void response.end('ok');
    await shopClient().serviceFetch(`${shop.origin}/from`);
    assert.deepEqual(
      shop.arrived.map(({ url }) => url),
      ['/from', '/caf%C3%A9'],
    );
  });

  it('says so where the fetch that it was given follows redirects by itself', async () => {
    shop.answer = redirect(302, '/to');
    const client = createServiceClient({
      targets: [{ origin: shop.origin, tokenFile: api.tokenFile('shop') }],
      fetch: (input, init) => fetch(input, { ...init, redirect: 'follow' }),
    });
    clients.push(client);
    await assert.rejects(client.serviceFetch(`${shop.origin}/from`), { name: 'TypeError', message: /must obey redirect: "manual"/ });
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
    const answer = await shopClient().serviceFetch(`${shop.origin}/from`);
    assert.deepEqual([answer.redirected, answer.url, await answer.text()], [true, `${shop.origin}/to`, 'arrived']);
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
    assert.deepEqual([answer.status, answer.redirected], [302, false]);
  });

  it('rejects a redirect where it is asked to', async () => {
    shop.answer = redirect(302, '/to');
    const { serviceFetch } = shopClient();
    await assert.rejects(serviceFetch(`${shop.origin}/from`, { redirect: 'error' }), TypeError);
    await assert.rejects(serviceFetch(new Request(`${shop.origin}/from`, { redirect: 'error' })), TypeError);
    assert.equal(shop.arrived.length, 2);
  });

  it('takes for a redirect what fetch does: no other status that has a Location', async () => {
    for (const status of [201, 300, 304, 305]) {
      shop.answer = redirect(status, '/to');
      assert.equal((await shopClient().serviceFetch(`${shop.origin}/from`)).status, status);
    }
    assert.equal(shop.arrived.length, 4);
  });

  it('follows with the method that fetch would', async () => {
    const { serviceFetch } = shopClient();
    for (const [status, method] of [
      [302, 'PUT'],
      [303, 'PUT'],
      [303, 'HEAD'],
      [302, 'post'],
    ] as const) {
      shop.answer = redirect(status, '/to');
      await serviceFetch(`${shop.origin}/from`, { method, ...(method !== 'HEAD' && { body: 'one' }) });
    }
    assert.deepEqual(
      shop.arrived.filter(({ url }) => url === '/to').map(({ method, body }) => [method, body]),
      [
        ['PUT', 'one'],
        ['GET', ''],
        ['HEAD', ''],
        ['GET', ''],
      ],
    );
  });

  it('tells nothing of a body that it leaves behind', async () => {
    shop.answer = redirect(303, '/to');
    const names = ['content-encoding', 'content-language', 'content-location', 'content-type', 'content-length'];
    const headers = { ...Object.fromEntries(names.map((name) => [name, 'x'])), 'content-length': '3', accept: 'a' };
    await shopClient().serviceFetch(`${shop.origin}/from`, { method: 'POST', body: 'one', headers });
    const [first = {}, second = {}] = shop.headers;
    assert.ok(names.every((name) => name in first));
    assert.deepEqual([names.filter((name) => name in second), second['accept']], [[], ['a']]);
  });

  it('follows a Request, until its signal aborts', async () => {
    const controller = new AbortController();
    shop.answer = (request, response) => {
      if (request.url === '/from') response.writeHead(302, { location: '/to' }).end();
      else controller.abort(new Error('mine'));
    };
    const request = new Request(`${shop.origin}/from`, { signal: controller.signal });
    await assert.rejects(shopClient().serviceFetch(request), { message: 'mine' });
    assert.deepEqual(shop.tokens(), [token, token]);
  });

  it('lets go of the connection of a redirect that does not end', async () => {
    const closed = Promise.withResolvers<void>();
    shop.answer = (request, response) => {
      if (request.url === '/from') {
        response.writeHead(302, { location: '/to' }).write('it never ends');
        response.once('close', closed.resolve);
      } else response.end('arrived');
    };
    assert.equal(await (await shopClient().serviceFetch(`${shop.origin}/from`)).text(), 'arrived');
    await closed.promise;
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
    assert.equal(foreign.arrived[0]?.token, readFileSync(api.tokenFile('bank'), 'utf8'));
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

describe('serviceFetch, refused', () => {
  let mounted: Mount;
  let newer: string;
  let client: ServiceClient;

  const mint = (expirationSeconds: number): Promise<string> =>
    authority.token('api/api', { audience: 'shop', pod: 'api-0', expirationSeconds });

  // The client has the old token, the file the new one, and nothing has told the client.
  beforeEach(async () => {
    mounted = mount(await mint(600));
    newer = await mint(1_200);
    client = clientOf({ origin: shop.origin, tokenFile: mounted.path });
    await client.ready();
    token = readFileSync(mounted.path, 'utf8');
    mounted.replace(newer);
  });
  afterEach(() => mounted.remove());

  const post = (body: NonNullable<RequestInit['body']>): Promise<Response> => client.serviceFetch(shop.origin, { method: 'POST', body });
  const bodies = (): readonly string[] => shop.arrived.map(({ body }) => body);

  it('sends once more with a newer token after a 401', async () => {
    shop.answer = refuse('unauthorized', () => newer);
    assert.equal(await (await client.serviceFetch(shop.origin)).text(), 'ok');
    assert.deepEqual(shop.tokens(), [token, newer]);
  });

  it('sends once more after a bearer challenge that says invalid_token', async () => {
    client = clientOf({ origin: shop.origin, tokenFile: mounted.path, header: 'authorization' });
    mounted.replace(token);
    await client.ready();
    mounted.replace(newer);
    shop.answer = refuse('bearer', () => newer);
    assert.equal((await client.serviceFetch(shop.origin)).status, 200);
    assert.deepEqual(
      shop.arrived.map(({ authorization }) => authorization),
      [`Bearer ${token}`, `Bearer ${newer}`],
    );
  });

  it('sends once more after a 403 whose challenge says invalid_token', async () => {
    shop.answer = refuse('clientId', () => newer);
    assert.equal((await client.serviceFetch(shop.origin)).status, 200);
    assert.deepEqual(shop.tokens(), [token, newer]);
  });

  it('does not after caller_not_allowed', async () => {
    shop.answer = refuse('notAllowed');
    assert.equal(await (await client.serviceFetch(shop.origin)).text(), 'refused');
    assert.deepEqual(shop.tokens(), [token]);
  });

  it('does not after insufficient_scope', async () => {
    shop.answer = refuse('scope');
    assert.equal((await client.serviceFetch(shop.origin)).status, 403);
    assert.deepEqual(shop.tokens(), [token]);
  });

  it('does not after a 403 without a challenge', async () => {
    shop.answer = refuse('plain');
    assert.equal((await client.serviceFetch(shop.origin)).status, 403);
    assert.deepEqual(shop.tokens(), [token]);
  });

  it('does not where the file has no other token', async () => {
    mounted.replace(token);
    shop.answer = refuse('clientId');
    assert.equal(await (await client.serviceFetch(shop.origin)).text(), 'refused');
    assert.deepEqual(shop.tokens(), [token]);
  });

  it('never sends a third time', async () => {
    const newest = await mint(1_800);
    shop.answer = (request, response) => {
      mounted.replace(newest);
      refuse('clientId')(request, response);
    };
    mounted.replace(newer);
    assert.equal((await client.serviceFetch(shop.origin)).status, 403);
    assert.deepEqual(shop.tokens(), [token, newest]);
  });

  it('looks at the file at most once a second', async () => {
    mounted.replace(token);
    let reloads = 0;
    const count = (): void => void reloads++;
    subscribe(tokenReloadChannel, count);
    shop.answer = refuse('clientId');
    await Promise.all(Array.from({ length: 20 }, () => client.serviceFetch(shop.origin)));
    await client.serviceFetch(shop.origin);
    unsubscribe(tokenReloadChannel, count);
    assert.equal(reloads, 1);
    assert.equal(shop.arrived.length, 21);
  });

  it('lets go of the connection of a refusal that does not end', async () => {
    const closed = Promise.withResolvers<void>();
    shop.answer = ({ headers }, response) => {
      if (headers['x-client-id'] === newer) response.end('ok');
      else {
        response.writeHead(401).write('it never ends');
        response.once('close', closed.resolve);
      }
    };
    assert.equal(await (await client.serviceFetch(shop.origin)).text(), 'ok');
    await closed.promise;
  });

  it('sends once more only once, however many hops there are', async () => {
    const newest = await mint(1_800);
    shop.answer = (request, response) => {
      if (request.headers['x-client-id'] === newest) return void response.end('ok');
      if (request.headers['x-client-id'] === token) return refuse('clientId')(request, response);
      if (request.url === '/from') return redirect(307, '/to')(request, response);
      mounted.replace(newest);
      // The file is read again.
      mock.timers.enable({ apis: ['Date'], now: Date.now() + 300_000 });
      refuse('clientId')(request, response);
    };
    const answer = await client.serviceFetch(`${shop.origin}/from`).finally(() => mock.timers.reset());
    assert.equal(answer.status, 403);
    assert.deepEqual(shop.tokens(), [token, newer, newer]);
  });

  it('takes the newer token along to the next hop of a redirect', async () => {
    shop.answer = (request, response) =>
      request.headers['x-client-id'] === newer ? redirect(307, '/to')(request, response) : refuse('clientId')(request, response);
    assert.equal(await (await client.serviceFetch(`${shop.origin}/from`)).text(), 'arrived');
    assert.deepEqual(shop.tokens(), [token, newer, newer]);
  });

  it('sends a string again', async () => {
    shop.answer = refuse('clientId', () => newer);
    assert.equal((await post('one')).status, 200);
    assert.deepEqual(bodies(), ['one', 'one']);
  });

  it('sends bytes again', async () => {
    shop.answer = refuse('clientId', () => newer);
    assert.equal((await post(new TextEncoder().encode('one'))).status, 200);
    assert.deepEqual(bodies(), ['one', 'one']);
  });

  it('sends URLSearchParams again', async () => {
    shop.answer = refuse('clientId', () => newer);
    assert.equal((await post(new URLSearchParams({ a: '1' }))).status, 200);
    assert.deepEqual(bodies(), ['a=1', 'a=1']);
  });

  it('sends a Blob again', async () => {
    shop.answer = refuse('clientId', () => newer);
    assert.equal((await post(new Blob(['one']))).status, 200);
    assert.deepEqual(bodies(), ['one', 'one']);
  });

  it('sends FormData again', async () => {
    const form = new FormData();
    form.set('a', 'one');
    shop.answer = refuse('clientId', () => newer);
    assert.equal((await post(form)).status, 200);
    assert.equal(bodies().filter((body) => body.includes('name="a"\r\n\r\none')).length, 2);
  });

  it('sends a Request without a body again', async () => {
    shop.answer = refuse('clientId', () => newer);
    assert.equal((await client.serviceFetch(new Request(shop.origin))).status, 200);
    assert.deepEqual(shop.tokens(), [token, newer]);
  });

  it('never sends a stream again', async () => {
    shop.answer = refuse('clientId', () => newer);
    const init = { method: 'POST', body: new Blob(['one']).stream(), duplex: 'half' };
    assert.equal((await client.serviceFetch(shop.origin, init as RequestInit)).status, 403);
    assert.deepEqual(bodies(), ['one']);
  });

  it('never sends the body of a Request again', async () => {
    shop.answer = refuse('clientId', () => newer);
    assert.equal((await client.serviceFetch(new Request(shop.origin, { method: 'POST', body: 'one' }))).status, 403);
    assert.deepEqual(bodies(), ['one']);
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

  it('cancels what was called when the caller resets its HTTP/2 stream, and what is called after that', async () => {
    let arrived = 0;
    const { serviceFetch } = shopClient();
    const reset = Promise.withResolvers<void>();
    const outcomes = new Promise<readonly unknown[]>((resolve) => {
      const server = createHttp2Server((_request, response) => {
        const call = (): Promise<unknown> => fetchFor(response, serviceFetch)(shop.origin).catch((error: Error) => error.name);
        const first = call();
        response.once(
          'close',
          () =>
            void Promise.all([first, call()])
              .then(resolve)
              .then(() => server.close()),
        );
      });
      server.listen(0, '127.0.0.1', () => {
        const session = connectHttp2(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
        const stream = session.request({ ':path': '/' }).on('error', () => {});
        void reset.promise.then(() => {
          stream.close(constants.NGHTTP2_CANCEL);
          session.close();
        });
      });
    });
    shop.answer = () => {
      arrived += 1;
      reset.resolve();
    };
    assert.deepEqual(await outcomes, ['AbortError', 'AbortError']);
    assert.equal(arrived, 1);
  });

  it('cancels nothing of an HTTP/2 response that is finished', async () => {
    const { serviceFetch } = shopClient();
    const outcome = new Promise<unknown>((resolve) => {
      const server = createHttp2Server((_request, response) => {
        const scoped = fetchFor(response, serviceFetch);
        const first = scoped(shop.origin);
        response.end('done');
        response.once('close', () => void first.then(({ status }) => resolve(status)).then(() => server.close()));
      });
      server.listen(0, '127.0.0.1', () => {
        const session = connectHttp2(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
        session
          .request({ ':path': '/' })
          .resume()
          .once('end', () => session.close());
      });
    });
    assert.equal(await outcome, 200);
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

  it('keeps the signal of a Request that it was given', async () => {
    const { serviceFetch } = shopClient();
    const outcome = new Promise((resolve) => {
      foreign.answer = (_request, response) => {
        const request = new Request(shop.origin, { signal: AbortSignal.abort(new Error('mine')) });
        resolve(fetchFor(response, serviceFetch)(request).catch((error: Error) => error.message));
        response.end();
      };
    });
    httpRequest(foreign.origin).end();
    assert.equal(await outcome, 'mine');
  });

  it('cancels what was called with a signal of its own too', async () => {
    const called = Promise.withResolvers<void>();
    shop.answer = () => called.resolve();
    const { serviceFetch } = shopClient();
    const { signal } = new AbortController();
    const outcome = new Promise((resolve) => {
      foreign.answer = (_request, response) =>
        resolve(fetchFor(response, serviceFetch)(shop.origin, { signal }).catch((error: Error) => error.name));
    });
    const caller = httpRequest(foreign.origin).on('error', () => {});
    caller.end();
    await called.promise;
    caller.destroy();
    assert.equal(await outcome, 'AbortError');
  });
});
