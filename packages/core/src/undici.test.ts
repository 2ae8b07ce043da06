import assert from 'node:assert/strict';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { EventEmitter } from 'node:events';
import { readFileSync } from 'node:fs';
import { Duplex, Readable, Writable } from 'node:stream';
import { after, afterEach, before, beforeEach, describe, it, mock as nodeMock } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import { Agent, type Dispatcher, interceptors, MockAgent, request } from 'undici';
import * as undici7 from 'undici7';

import { mount, type Mount } from './fixtures/mount.ts';
import { redirect, refuse, serve, type Service } from './fixtures/service.ts';
import { createServiceClient, type ServiceClient } from './service-client.ts';
import { tokenReloadChannel } from './token-file.ts';
import { createInterceptor } from './undici.ts';

let authority: Authority;
let api: Pod;
let shop: Service;
let foreign: Service;
let client: ServiceClient;
let token: string;

before(async () => {
  authority = await createAuthority();
  api = await authority.pod('api/api', { tokens: { shop: 'shop' } });
});
after(() => authority.close());
beforeEach(async () => {
  [shop, foreign] = await Promise.all([serve(), serve()]);
  client = createServiceClient({ targets: [{ origin: shop.named, tokenFile: api.tokenFile('shop') }] });
  token = readFileSync(api.tokenFile('shop'), 'utf8');
});
afterEach(async () => {
  await Promise.all([client, shop, foreign].map((one) => one.close()));
});

describe('createInterceptor on undici 8', () => {
  async function get(path: string, dispatcher: Agent, options: object = {}): Promise<number> {
    const { statusCode, body } = await request(`${shop.named}${path}`, { dispatcher, ...options });
    await body.dump();
    return statusCode;
  }
  const agent = (...more: Parameters<Agent['compose']>): Agent => new Agent().compose(...more) as Agent;

  it('puts the token on requests to a target', async () => {
    await get('/', agent(createInterceptor(client)));
    assert.deepEqual(shop.tokens(), [token]);
  });

  it('waits for a token that is not loaded yet', async () => {
    const fresh = createServiceClient({ targets: [{ origin: shop.named, tokenFile: api.tokenFile('shop') }] });
    await get('/', agent(createInterceptor(fresh)));
    assert.deepEqual(shop.tokens(), [token]);
    await fresh.close();
  });

  it('waits no longer than a second for a refusal to end, so that its connection is free for the second try', async () => {
    const mounted = mount(token);
    const own = createServiceClient({ targets: [{ origin: shop.named, tokenFile: mounted.path }] });
    await own.ready();
    const newer = await authority.token('api/api', { audience: 'shop', pod: 'newer' });
    shop.answer = ({ headers }, response) => {
      if (headers['x-client-id'] === newer) {
        response.end('ok');
        return;
      }
      mounted.replace(newer);
      response.writeHead(401, { 'www-authenticate': 'Bearer error="invalid_token"' }).write('it never ends');
    };
    const { setTimeout: inTime } = globalThis;
    const deadlines: (() => void)[] = [];
    nodeMock.method(globalThis, 'setTimeout', (run: () => void, ms: number, ...rest: []) => {
      if (ms === 1_000) deadlines.push(run);
      return inTime(run, ms === 1_000 ? 0 : ms, ...rest);
    });
    try {
      const dispatcher = new Agent({ connections: 1 }).compose(createInterceptor(own)) as Agent;
      assert.equal(await get('/', dispatcher), 200);
      assert.equal(deadlines.length, 1);
    } finally {
      nodeMock.restoreAll();
      mounted.remove();
      await own.close();
    }
  });

  it('lets requests to other origins pass untouched', async () => {
    await request(foreign.named, { dispatcher: agent(createInterceptor(client)), headers: { 'x-client-id': 'own' } });
    assert.deepEqual(foreign.tokens(), ['own']);
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
    shop.answer = redirect(302, '/to');
    assert.equal(await get('/from', agent(createInterceptor(client), interceptors.redirect({ maxRedirections: 3 }))), 200);
    assert.deepEqual(shop.tokens(), [token, token]);
  });

  it('takes nothing to another origin, listed before redirect()', async () => {
    shop.answer = redirect(302, foreign.named);
    assert.equal(await get('/from', agent(createInterceptor(client), interceptors.redirect({ maxRedirections: 3 }))), 200);
    assert.deepEqual(foreign.tokens(), [undefined]);
  });

  it('takes nothing to another origin, listed after redirect(): the redirect is the answer', async () => {
    shop.answer = redirect(302, foreign.named);
    assert.equal(await get('/from', agent(interceptors.redirect({ maxRedirections: 3 }), createInterceptor(client))), 302);
    assert.deepEqual(foreign.tokens(), []);
  });

  it('takes nothing to another origin where the request itself asks for redirects', async () => {
    shop.answer = redirect(302, foreign.named);
    const dispatcher = agent(interceptors.redirect({ maxRedirections: 3 }), createInterceptor(client));
    assert.equal(await get('/from', dispatcher, { maxRedirections: 5 }), 302);
    assert.deepEqual(foreign.tokens(), []);
  });

  it('sees the name behind dns(), listed after it', async () => {
    await get('/', agent(interceptors.dns(), createInterceptor(client)));
    assert.deepEqual(shop.tokens(), [token]);
  });

  it('sends nothing where dns() has turned the name into an address', async () => {
    await get('/', agent(createInterceptor(client), interceptors.dns()));
    assert.deepEqual(shop.tokens(), [undefined]);
  });

  it('fails the request where there is no token', async () => {
    const pod = await authority.pod('api/api', { tokens: { wrong: 'https://kubernetes.default.svc.cluster.local' } });
    const wrong = createServiceClient({
      targets: [{ origin: shop.named, tokenFile: pod.tokenFile('wrong') }],
      logger: { info() {}, warn() {}, error() {} },
    });
    await assert.rejects(get('/', agent(createInterceptor(wrong))), { name: 'TokenFileError', code: 'token_not_sendable' });
    assert.deepEqual(shop.tokens(), []);
    await wrong.close();
  });

  it('waits for a token no longer than the request’s signal', async () => {
    const fresh = createServiceClient({
      targets: [{ origin: shop.named, tokenFile: `${api.tokenFile('shop')}-late` }],
      logger: { info() {}, warn() {}, error() {} },
    });
    const controller = new AbortController();
    const asked = get('/', agent(createInterceptor(fresh)), { signal: controller.signal });
    setImmediate(() => controller.abort(new Error('enough')));
    await assert.rejects(asked, { message: 'enough' });
    await fresh.close();
    assert.deepEqual(shop.tokens(), []);
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
    const { statusCode, body } = await undici7.request(`${shop.named}${path}`, { dispatcher });
    await body.dump();
    return statusCode;
  }

  it('puts the token on requests to a target', async () => {
    await get('/', new undici7.Agent().compose(interceptor()));
    assert.deepEqual(shop.tokens(), [token]);
  });

  it('puts the token on what its fetch sends', async () => {
    await undici7.fetch(shop.named, { dispatcher: new undici7.Agent().compose(interceptor()) });
    assert.deepEqual(shop.tokens(), [token]);
  });

  it('takes nothing to another origin, listed before redirect()', async () => {
    shop.answer = redirect(302, foreign.named);
    const dispatcher = new undici7.Agent().compose(interceptor(), undici7.interceptors.redirect({ maxRedirections: 3 }));
    assert.equal(await get('/from', dispatcher), 200);
    assert.deepEqual(foreign.tokens(), [undefined]);
  });

  it('takes nothing to another origin, listed after redirect(): the redirect is the answer', async () => {
    shop.answer = redirect(302, foreign.named);
    const dispatcher = new undici7.Agent().compose(undici7.interceptors.redirect({ maxRedirections: 3 }), interceptor());
    assert.equal(await get('/from', dispatcher), 302);
    assert.deepEqual(foreign.tokens(), []);
  });

  it('fails the request where there is no token', async () => {
    await client.close();
    await assert.rejects(get('/', new undici7.Agent().compose(interceptor())), { name: 'TokenFileError' });
    assert.deepEqual(shop.tokens(), []);
  });
});

describe('createInterceptor, refused, on undici 8', () => {
  let mounted: Mount;
  let newer: string;
  let agent: Agent;

  const mint = (expirationSeconds: number): Promise<string> =>
    authority.token('api/api', { audience: 'shop', pod: 'api-0', expirationSeconds });

  // The client has the old token, the file the new one, and nothing has told the client.
  beforeEach(async () => {
    token = await mint(600);
    newer = await mint(1_200);
    mounted = mount(token);
    await client.close();
    client = createServiceClient({ targets: [{ origin: shop.named, tokenFile: mounted.path }] });
    await client.ready();
    mounted.replace(newer);
    agent = new Agent();
  });
  afterEach(async () => {
    mounted.remove();
    await agent.close();
  });

  async function send(options: Partial<Parameters<typeof request>[1]> = {}): Promise<string> {
    const dispatcher = agent.compose(createInterceptor(client));
    const { statusCode, body } = await request(shop.named, { dispatcher, ...options });
    return `${statusCode} ${await body.text()}`;
  }

  it('sends once more with a newer token after a 401', async () => {
    shop.answer = refuse('unauthorized', () => newer);
    assert.equal(await send(), '200 ok');
    assert.deepEqual(shop.tokens(), [token, newer]);
  });

  it('sends once more after a 403 whose challenge says invalid_token', async () => {
    shop.answer = refuse('clientId', () => newer);
    assert.equal(await send(), '200 ok');
    assert.deepEqual(shop.tokens(), [token, newer]);
  });

  it('hands the refusal on, whole, after caller_not_allowed', async () => {
    shop.answer = refuse('notAllowed');
    assert.equal(await send(), '403 refused');
    assert.deepEqual(shop.tokens(), [token]);
  });

  it('hands the refusal on, whole, where the file has no other token', async () => {
    mounted.replace(token);
    shop.answer = refuse('clientId');
    assert.equal(await send(), '403 refused');
    assert.deepEqual(shop.tokens(), [token]);
  });

  it('hands on a refusal without a body', async () => {
    mounted.replace(token);
    shop.answer = (_request, response) => response.writeHead(401, { 'content-length': '0' }).end();
    assert.equal(await send(), '401 ');
  });

  it('hands on a refusal whose connection is cut', async () => {
    mounted.replace(token);
    shop.answer = (_request, response) => {
      response.writeHead(401, { 'content-length': '10' });
      response.write('refu', () => response.destroy());
    };
    await assert.rejects(send(), { code: 'UND_ERR_SOCKET' });
  });

  it('never sends a third time', async () => {
    const newest = await mint(1_800);
    shop.answer = (incoming, response) => {
      mounted.replace(newest);
      refuse('clientId')(incoming, response);
    };
    assert.equal(await send(), '403 refused');
    assert.deepEqual(shop.tokens(), [token, newest]);
  });

  it('sends a string again', async () => {
    shop.answer = refuse('clientId', () => newer);
    assert.equal(await send({ method: 'POST', body: 'one' }), '200 ok');
    assert.deepEqual(
      shop.arrived.map(({ body }) => body),
      ['one', 'one'],
    );
  });

  it('sends bytes again', async () => {
    shop.answer = refuse('clientId', () => newer);
    assert.equal(await send({ method: 'POST', body: Buffer.from('one') }), '200 ok');
    assert.deepEqual(
      shop.arrived.map(({ body }) => body),
      ['one', 'one'],
    );
  });

  it('never sends a stream again', async () => {
    shop.answer = refuse('clientId', () => newer);
    assert.equal(await send({ method: 'POST', body: Readable.from(['one']) }), '403 refused');
    assert.deepEqual(shop.tokens(), [token]);
  });

  it('keeps headers that can be read once only', async () => {
    shop.answer = refuse('clientId', () => newer);
    const headers = new Map([['accept', 'a']]).entries();
    assert.equal(await send({ headers }), '200 ok');
    assert.deepEqual(
      shop.headers.map(({ accept }) => accept),
      [['a'], ['a']],
    );
  });

  it('gives up reading a refusal that does not end, once the request was sent again', async () => {
    const cut: Promise<unknown>[] = [];
    shop.answer = (incoming, response) => {
      cut.push(new Promise((resolve) => response.once('close', resolve)));
      if (incoming.headers['x-client-id'] === newer) response.end('ok');
      else response.writeHead(401).write('x'.repeat(100_000));
    };
    assert.equal(await send(), '200 ok');
    await cut[0];
  });

  it('can be aborted while it looks', async () => {
    const controller = new AbortController();
    shop.answer = (incoming, response) => {
      refuse('clientId')(incoming, response);
      response.once('finish', () => controller.abort(new Error('enough')));
    };
    await assert.rejects(send({ signal: controller.signal }), { message: 'enough' });
    assert.ok(shop.arrived.length <= 2);
  });

  it('sends a request of undici’s fetch again', async () => {
    shop.answer = refuse('clientId', () => newer);
    const dispatcher = agent.compose(createInterceptor(client));
    const { fetch: undiciFetch } = await import('undici');
    assert.equal(await (await undiciFetch(shop.named, { dispatcher })).text(), 'ok');
    assert.deepEqual(shop.tokens(), [token, newer]);
  });

  it('works below retry()', async () => {
    shop.answer = refuse('clientId', () => newer);
    const dispatcher = agent.compose(createInterceptor(client), interceptors.retry());
    assert.equal(await send({ dispatcher }), '200 ok');
    assert.deepEqual(shop.tokens(), [token, newer]);
  });

  it('works above retry()', async () => {
    shop.answer = refuse('clientId', () => newer);
    const dispatcher = agent.compose(interceptors.retry(), createInterceptor(client));
    assert.equal(await send({ dispatcher }), '200 ok');
    assert.deepEqual(shop.tokens(), [token, newer]);
  });

  it('works below redirect()', async () => {
    shop.answer = (incoming, response) =>
      incoming.headers['x-client-id'] === newer ? redirect(307, '/to')(incoming, response) : refuse('clientId')(incoming, response);
    const dispatcher = agent.compose(createInterceptor(client), interceptors.redirect({ maxRedirections: 3 }));
    const { body } = await request(`${shop.named}/from`, { dispatcher });
    assert.equal(await body.text(), 'arrived');
    assert.deepEqual(shop.tokens(), [token, newer, newer]);
  });

  it('works on a MockAgent, which does not wait', async () => {
    const mock = new MockAgent();
    mock.disableNetConnect();
    const pool = mock.get(shop.named);
    pool
      .intercept({ path: '/' })
      .reply(403, 'refused', { headers: { 'www-authenticate': 'ServiceAccount header="X-Client-Id", error="invalid_token"' } });
    pool.intercept({ path: '/', headers: { 'x-client-id': newer } }).reply(200, 'ok');
    assert.equal(await send({ dispatcher: mock.compose(createInterceptor(client)) }), '200 ok');
    mock.assertNoPendingInterceptors();
    await mock.close();
  });

  it('works in stream()', async () => {
    shop.answer = refuse('clientId', () => newer);
    const dispatcher = agent.compose(createInterceptor(client));
    const answers: number[] = [];
    await dispatcher.stream({ origin: shop.named, path: '/', method: 'GET' }, ({ statusCode }) => {
      answers.push(statusCode);
      return new Writable({ write: (_chunk, _encoding, done) => done() });
    });
    assert.deepEqual(answers, [200]);
  });

  it('fails a request whose stream() factory throws on the refusal', async () => {
    mounted.replace(token);
    shop.answer = refuse('clientId');
    const dispatcher = agent.compose(createInterceptor(client));
    const streamed = dispatcher.stream({ origin: shop.named, path: '/', method: 'GET' }, () => {
      throw new Error('mine');
    });
    await assert.rejects(streamed, { message: 'mine' });
  });
});

// Every order in which a dispatcher may tell what happens, since some do not wait.
describe('createInterceptor, told step by step', () => {
  let mounted: Mount;
  let newer: string;
  let sent: Sent[];
  let told: string[];
  let dispatch: Dispatcher.Dispatch;

  interface Sent {
    readonly options: Dispatcher.DispatchOptions;
    readonly handler: Required<Dispatcher.DispatchHandler>;
    readonly controller: Dispatcher.DispatchController;
  }

  const controllerOf = (): Dispatcher.DispatchController => ({
    aborted: false,
    paused: false,
    reason: null,
    abort: ({ message }) => void told.push(`abort: ${message}`),
    pause: () => void told.push('pause'),
    resume: () => void told.push('resume'),
  });
  const handler: Dispatcher.DispatchHandler = {
    onResponseStart: (_controller, status) => void told.push(`start ${status}`),
    onResponseData: (_controller, chunk) => void told.push(`data ${chunk.length}`),
    onResponseEnd: () => void told.push('end'),
    onResponseError: (_controller, { message }) => void told.push(`error: ${message}`),
  };
  const until = async (isDone: () => boolean): Promise<void> => {
    while (!isDone()) await new Promise(setImmediate);
  };
  const ask = (options: object = {}, by = handler): boolean => dispatch({ origin: shop.named, path: '/', method: 'GET', ...options }, by);
  const refuseTo = (at: number): Sent => {
    const { handler: relay, controller } = sent[at] ?? assert.fail('it was not sent');
    relay.onResponseStart(controller, 401, {}, '');
    return sent[at] as Sent;
  };
  const over = (one: ServiceClient): Dispatcher.Dispatch =>
    createInterceptor(one)((options, relay) => {
      sent.push({ options, handler: relay as Required<Dispatcher.DispatchHandler>, controller: controllerOf() });
      return true;
    });
  const tokens = (): unknown[] => sent.map(({ options }) => (options.headers as Record<string, unknown> | undefined)?.['x-client-id']);

  beforeEach(async () => {
    token = await authority.token('api/api', { audience: 'shop', pod: 'api-0', expirationSeconds: 600 });
    newer = await authority.token('api/api', { audience: 'shop', pod: 'api-0', expirationSeconds: 1_200 });
    mounted = mount(token);
    await client.close();
    client = createServiceClient({ targets: [{ origin: shop.named, tokenFile: mounted.path }] });
    await client.ready();
    mounted.replace(newer);
    [sent, told] = [[], []];
    dispatch = over(client);
  });
  afterEach(() => {
    nodeMock.timers.reset();
    mounted.remove();
  });

  it('tells of the second answer alone', async () => {
    ask();
    const { handler: first, controller } = refuseTo(0);
    first.onResponseData(controller, Buffer.from('refused'));
    assert.deepEqual(told, ['pause']);
    await until(() => told.includes('resume'));
    first.onResponseData(controller, Buffer.from('refused'));
    first.onResponseEnd(controller, {});
    first.onResponseError(controller, new Error('late'));
    const { handler: second, controller: other } = sent[1] ?? assert.fail('it was not sent');
    second.onResponseStart(other, 200, {}, '');
    second.onResponseEnd(other, {});
    assert.deepEqual(told, ['pause', 'resume', 'start 200', 'end']);
    assert.deepEqual(tokens(), [token, newer]);
  });

  it('tells of the second refusal, and does not look again', async () => {
    ask();
    refuseTo(0);
    await until(() => sent.length === 2);
    mounted.replace(await authority.token('api/api', { audience: 'shop', pod: 'api-0', expirationSeconds: 1_800 }));
    told = [];
    refuseTo(1);
    assert.deepEqual(told, ['start 401']);
  });

  it('sends nothing again for a request that has failed while it looked', async () => {
    const looked = Promise.withResolvers<unknown>();
    subscribe(tokenReloadChannel, looked.resolve);
    ask();
    const { handler: first, controller } = refuseTo(0);
    first.onResponseError(controller, new Error('cut'));
    await looked.promise.finally(() => unsubscribe(tokenReloadChannel, looked.resolve));
    for (let turn = 0; turn < 3; turn++) await new Promise(setImmediate);
    assert.deepEqual(told, ['pause', 'error: cut']);
    assert.equal(sent.length, 1);
  });

  it('fails a request whose handler throws on a refusal that is over', async () => {
    mounted.replace(token);
    ask(
      {},
      {
        ...handler,
        onResponseStart: () => {
          throw new Error('mine');
        },
      },
    );
    const { handler: first, controller } = refuseTo(0);
    first.onResponseEnd(controller, {});
    await until(() => told.length > 1);
    assert.deepEqual(told, ['pause', 'error: mine']);
  });

  it('gives a refusal a second to end, and 64 KiB', async () => {
    nodeMock.timers.enable({ apis: ['setTimeout'] });
    const dropping = async (): Promise<Sent> => {
      [sent, told] = [[], []];
      mounted.replace(newer);
      ask();
      const first = refuseTo(0);
      await until(() => told.includes('resume'));
      told = [];
      return first;
    };
    const { handler: first, controller } = await dropping();
    first.onResponseData(controller, Buffer.alloc(65_536));
    nodeMock.timers.tick(999);
    assert.deepEqual(told, []);
    first.onResponseData(controller, Buffer.alloc(1));
    assert.deepEqual(told, ['abort: The refusal is too long to be read']);
    nodeMock.timers.tick(1);
    assert.deepEqual(told.slice(1), ['abort: The refusal does not end']);
  });

  for (const end of ['onResponseEnd', 'onResponseError'] as const) {
    it(`has no deadline for a refusal that is over by ${end}`, async () => {
      nodeMock.timers.enable({ apis: ['setTimeout'] });
      ask();
      const { handler: first, controller } = refuseTo(0);
      await until(() => told.includes('resume'));
      if (end === 'onResponseEnd') first.onResponseEnd(controller, {});
      else first.onResponseError(controller, new Error('cut'));
      nodeMock.timers.tick(1_000);
      assert.deepEqual(told, ['pause', 'resume']);
    });
  }

  it('has no deadline for a refusal that was over before it was sent again', async () => {
    nodeMock.timers.enable({ apis: ['setTimeout'] });
    ask();
    const { handler: first, controller } = refuseTo(0);
    first.onResponseEnd(controller, {});
    await until(() => told.includes('resume'));
    nodeMock.timers.tick(1_000);
    assert.deepEqual(told, ['pause', 'resume']);
  });

  it('tells the log of a token that is refused, until an answer that is one and refuses it not', async () => {
    const lines: string[] = [];
    const add =
      (level: string) =>
      (details: object, message: string): void =>
        void lines.push(`${level} ${(details as { kind: string }).kind} ${message}`);
    const logger = { info: add('info'), warn: add('warn'), error: add('error') };
    const own = createServiceClient({ targets: [{ origin: shop.named, tokenFile: mounted.path }], logger });
    nodeMock.timers.enable({ apis: ['Date'], now: Date.now() });
    try {
      await own.ready();
      dispatch = over(own);
      ask();
      refuseTo(0);
      await until(() => lines.length === 1);
      assert.match(lines[0] ?? '', /^warn token_refused http:\/\/localhost:\d+ answers 401 to the token in /);
      ask();
      const { handler: early, controller } = sent[1] ?? assert.fail('it was not sent');
      early.onResponseStart(controller, 103, {}, '');
      assert.equal(lines.length, 1);
      early.onResponseStart(controller, 200, {}, '');
      assert.match(lines[1] ?? '', /^info token_refused .* no longer refuses the token in /);
      nodeMock.timers.tick(10_000);
      ask({ method: 'POST', body: Readable.from(['one']) });
      refuseTo(2);
      await until(() => lines.length === 3);
      ask();
      const { handler: upgraded } = sent[3] ?? assert.fail('it was not sent');
      upgraded.onRequestUpgrade(controller, 101, {}, new Duplex());
      assert.match(lines[3] ?? '', /^info token_refused /);
      assert.ok(!lines.join().includes(newer));
    } finally {
      await own.close();
    }
  });

  it('never sends a stream again, nor where it had to wait for the token', async () => {
    const fresh = createServiceClient({ targets: [{ origin: shop.named, tokenFile: mounted.path }] });
    dispatch = over(fresh);
    ask({ method: 'POST', body: Readable.from(['one']) });
    assert.equal(sent.length, 0);
    await until(() => sent.length === 1);
    refuseTo(0);
    assert.deepEqual(told, ['start 401']);
    await fresh.close();
  });

  it('waits for a token whatever ends the request in the place of a signal', async () => {
    const fresh = createServiceClient({ targets: [{ origin: shop.named, tokenFile: mounted.path }] });
    dispatch = over(fresh);
    ask({ signal: new EventEmitter() });
    await until(() => sent.length + told.length > 0);
    assert.deepEqual([tokens(), told], [[newer], []]);
    await fresh.close();
  });

  it('carries nothing where a redirect leads, after another request has ended within its end', () => {
    ask(
      { origin: foreign.origin },
      {
        ...handler,
        onResponseEnd: () => {
          ask({ origin: foreign.origin, path: '/one' });
          const { handler: inner, controller } = sent[1] ?? assert.fail('it was not sent');
          inner.onResponseStart(controller, 200, {}, '');
          inner.onResponseEnd(controller, {});
          ask({ path: '/two' });
        },
      },
    );
    const { handler: first, controller } = sent[0] ?? assert.fail('it was not sent');
    first.onResponseStart(controller, 302, { location: shop.named }, '');
    first.onResponseEnd(controller, {});
    assert.deepEqual(tokens(), [undefined, undefined, undefined]);
    ask();
    assert.deepEqual(tokens().slice(3), [token]);
  });
});

describe('createInterceptor, refused, on undici 7', () => {
  let mounted: Mount;
  let newer: string;
  let agent: undici7.Agent;

  beforeEach(async () => {
    newer = await authority.token('api/api', { audience: 'shop', pod: 'api-0', expirationSeconds: 1_200 });
    mounted = mount(token);
    await client.close();
    client = createServiceClient({ targets: [{ origin: shop.named, tokenFile: mounted.path }] });
    await client.ready();
    mounted.replace(newer);
    agent = new undici7.Agent();
  });
  afterEach(async () => {
    mounted.remove();
    await agent.close();
  });

  const composed = (): undici7.Dispatcher =>
    agent.compose(createInterceptor(client) as unknown as undici7.Dispatcher.DispatcherComposeInterceptor);

  it('sends once more with a newer token', async () => {
    shop.answer = refuse('clientId', () => newer);
    const { body } = await undici7.request(shop.named, { dispatcher: composed(), method: 'POST', body: 'one' });
    assert.equal(await body.text(), 'ok');
    assert.deepEqual(
      shop.arrived.map((arrived) => [arrived.token, arrived.body]),
      [
        [token, 'one'],
        [newer, 'one'],
      ],
    );
  });

  it('hands the refusal on, whole, where the file has no other token', async () => {
    mounted.replace(token);
    shop.answer = refuse('clientId');
    const { statusCode, body } = await undici7.request(shop.named, { dispatcher: composed() });
    assert.equal(`${statusCode} ${await body.text()}`, '403 refused');
    assert.deepEqual(shop.tokens(), [token]);
  });

  it('notes that the newer token is refused too, and when it no longer is', async () => {
    const refusedSince = (): Date | undefined => client.status()[0]?.refusedSince;
    shop.answer = refuse('clientId');
    await (await undici7.request(shop.named, { dispatcher: composed() })).body.dump();
    while (refusedSince() === undefined) await new Promise(setImmediate);
    assert.deepEqual(shop.tokens(), [token, newer]);
    shop.answer = refuse('scope');
    await (await undici7.request(shop.named, { dispatcher: composed() })).body.dump();
    assert.equal(refusedSince(), undefined);
  });

  it('never sends a stream again', async () => {
    shop.answer = refuse('clientId', () => newer);
    const options = { dispatcher: composed(), method: 'POST', body: Readable.from(['one']) } as const;
    const { statusCode, body } = await undici7.request(shop.named, options);
    assert.equal(`${statusCode} ${await body.text()}`, '403 refused');
    assert.deepEqual(shop.tokens(), [token]);
  });

  it('sends a request of its fetch again', async () => {
    shop.answer = refuse('clientId', () => newer);
    assert.equal(await (await undici7.fetch(shop.named, { dispatcher: composed() })).text(), 'ok');
    assert.deepEqual(shop.tokens(), [token, newer]);
  });

  it('works on a MockAgent, which does not wait', async () => {
    const mock = new undici7.MockAgent();
    mock.disableNetConnect();
    const pool = mock.get(shop.named);
    pool.intercept({ path: '/' }).reply(401, 'refused');
    pool.intercept({ path: '/', headers: { 'x-client-id': newer } }).reply(200, 'ok');
    const interceptor = createInterceptor(client) as unknown as undici7.Dispatcher.DispatcherComposeInterceptor;
    const { body } = await undici7.request(shop.named, { dispatcher: mock.compose(interceptor) });
    assert.equal(await body.text(), 'ok');
    await mock.close();
  });
});
