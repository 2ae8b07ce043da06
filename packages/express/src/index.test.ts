import assert from 'node:assert/strict';
import { once } from 'node:events';
import {
  createServer,
  type IncomingMessage,
  request as openRequest,
  type RequestListener,
  type Server,
  type ServerResponse,
} from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import express, { type ErrorRequestHandler, type Express, type RequestHandler } from 'express';

import { as, ask } from './fixtures/ask.ts';
import { AuthError, type Caller, callerOf, ClusterError, type ExpressGuard, k8sSaAuth, k8sSaAuthClient } from './index.ts';

let authority: Authority;
let pod: Pod;
let app: Express;
let guard: ExpressGuard;
let servers: readonly Server[] = [];
let api: string;
let ops: string;

before(async () => {
  authority = await createAuthority();
  pod = await authority.pod('store/store', { tokens: { shop: 'shop' } });
  api = await authority.token('api/api', { audience: 'store', pod: 'api-0' });
  ops = await authority.token('ops/admin', { audience: ['store', 'admin'], pod: 'ops-0' });
});
after(() => authority.close());
beforeEach(() => {
  // Silences what Express prints of each error.
  app = express().set('env', 'test');
  guard = k8sSaAuth({ audience: 'store', allow: ['api/api'], apiServer: pod.apiServer });
});
afterEach(async () => {
  for (const server of servers) server.close().closeAllConnections();
  servers = [];
  await guard.close();
});

async function listen(listener: RequestListener): Promise<string> {
  const server = createServer(listener);
  servers = [...servers, server];
  await once(server.listen(0, '127.0.0.1'), 'listening');
  // The server listens on a port.
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

const anyone = () => guard.with({ allow: 'any' });
const admin = () => guard.with({ audience: 'admin', allow: ['ops/*'] });

describe('k8sSaAuth', () => {
  it('says at the start, before any request, that it may not review tokens', async () => {
    const powerless = await authority.pod('other/other', { reviews: false });
    const warned = Promise.withResolvers<string>();
    const logger = { info: () => {}, warn: (_details: object, message: string) => warned.resolve(message), error: () => {} };
    const other = k8sSaAuth({ audience: 'store', allow: ['api/api'], apiServer: powerless.apiServer, logger });
    assert.match(await warned.promise, /system:auth-delegator/);
    await other.close();
  });

  it('guards what stands behind it, and nothing before it', async () => {
    app.get('/healthz', (request, response) => void response.send(request.headers['x-client-id'] ?? 'none'));
    app.use(guard);
    app.get(
      '/x',
      (request, response) => void response.json([callerOf(request).serviceAccount, request.headers['x-client-id'] ?? 'taken off']),
    );
    const origin = await listen(app);
    assert.equal((await ask(origin, '/healthz', as('mine'))).text, 'mine');
    assert.equal((await ask(origin, '/x')).status, 401);
    assert.equal((await ask(origin, '/nowhere')).status, 401);
    assert.equal((await ask(origin, '/x', as(api))).text, '["api/api","taken off"]');
    assert.equal((await ask(origin, '/nowhere', as(api))).status, 404);
  });

  it('fails, for a remembered caller as for a new one, where nobody may be told who called', async () => {
    let thrown: unknown;
    let runs = 0;
    app.use((request, _response, next) => {
      Object.defineProperty(request, 'caller', {
        set() {
          throw thrown;
        },
      });
      next();
    });
    app.get('/x', guard, (_request, response) => {
      runs += 1;
      response.send('in');
    });
    const origin = await listen(app);
    for (thrown of ['route', 'router', undefined, null, 0, new Error('no')]) {
      for (const time of ['first', 'second']) assert.equal((await ask(origin, '/x', as(api))).status, 500, `${String(thrown)}, ${time}`);
    }
    assert.equal(runs, 0);
  });

  it('leaves the caller that a guard before it has proven, where it only observes', async () => {
    app.use(guard);
    const observing = guard.with({ allow: ['ops/*'], mode: 'observe' });
    app.get('/x', observing, (request, response) => void response.send(callerOf(request).serviceAccount));
    assert.equal((await ask(await listen(app), '/x', as(api))).text, 'api/api');
  });

  it('asks the cluster nothing more when it is closed, or its scope has ended', async () => {
    const closed = k8sSaAuth({ audience: 'store', allow: ['api/api'], apiServer: pod.apiServer });
    app.use('/closed', closed);
    const scoped = k8sSaAuth({ audience: 'store', allow: ['api/api'], apiServer: pod.apiServer });
    app.use('/scoped', scoped);
    await closed.close();
    // What `await using` does.
    await scoped[Symbol.asyncDispose]();
    const origin = await listen(app);
    assert.deepEqual([(await ask(origin, '/closed', as(api))).status, (await ask(origin, '/scoped', as(api))).status], [503, 503]);
  });

  it('waits until it is ready no longer than the signal', async (t) => {
    const logger = { info: () => {}, warn: () => {}, error: () => {} };
    const own = k8sSaAuth({ audience: 'store', allow: ['api/api'], apiServer: pod.apiServer, logger });
    t.after(() => own.close());
    await assert.rejects(own.ready(AbortSignal.abort(new Error('enough'))), { message: 'enough' });
  });

  it('adds up with the guards before it, on a token that they have taken off', async () => {
    app.use(anyone());
    app.get('/x', (request, response) => void response.json(callerOf(request).audiences));
    app.get('/admin', admin(), (request, response) => void response.json(callerOf(request).audiences));
    app.get('/admin/:id', admin(), (request, response) => void response.send(request.params.id));
    app.get('/both', admin(), guard, (_request, response) => void response.send('nobody'));
    const origin = await listen(app);
    assert.equal((await ask(origin, '/x', as(ops))).text, '["store"]');
    assert.equal((await ask(origin, '/admin')).status, 401);
    assert.equal((await ask(origin, '/admin', as(api))).status, 403);
    assert.equal((await ask(origin, '/admin/7', as(ops))).text, '7');
    assert.equal((await ask(origin, '/both', as(ops))).status, 403);
    const answer = await ask(origin, '/admin', as(ops));
    assert.equal(answer.text, '["admin"]');
    assert.equal(answer.headers.vary, 'X-Client-Id');
    assert.equal(answer.headers['cache-control'], 'private');
  });

  it('adds up with a guard of another header', async () => {
    const bearer = k8sSaAuth({ audience: 'admin', allow: ['ops/*'], header: 'authorization', apiServer: pod.apiServer });
    app.use(guard, bearer);
    app.get('/x', (request, response) => void response.json([callerOf(request).serviceAccount, Object.keys(request.headers).toSorted()]));
    const origin = await listen(app);
    const both = (clientId: string, token: string) => ({ headers: { 'x-client-id': clientId, authorization: `Bearer ${token}` } });
    assert.equal((await ask(origin, '/x', both(api, ops))).text, '["ops/admin",["connection","host"]]');
    assert.equal((await ask(origin, '/x', both(api, api))).headers['www-authenticate'], 'Bearer realm="kubernetes", error="invalid_token"');
    assert.equal((await ask(origin, '/x', both(ops, ops))).status, 403);
    assert.equal((await ask(origin, '/x', as(api))).status, 401);
    await bearer.close();
  });

  it('guards routers and apps that are mounted behind it', async () => {
    const secrets = express.Router();
    secrets.get('/:id', (request, response) => void response.send(`${request.caller?.name} ${request.params.id}`));
    const sub = express();
    sub.get('/x', (request, response) => void response.send(request.caller?.name));
    app.use('/secrets', guard, secrets);
    app.use('/again', guard, secrets);
    app.use('/sub', guard, sub);
    const origin = await listen(app);
    assert.equal((await ask(origin, '/secrets/7')).status, 401);
    assert.equal((await ask(origin, '/again/7')).status, 401);
    assert.equal((await ask(origin, '/sub/x')).status, 401);
    assert.equal((await ask(origin, '/sub/nowhere')).status, 401);
    assert.equal((await ask(origin, '/secrets/7', as(api))).text, 'api 7');
    assert.equal((await ask(origin, '/again/8', as(api))).text, 'api 8');
    assert.equal((await ask(origin, '/sub/x', as(api))).text, 'api');
  });

  it('guards within a router and within a mounted app', async () => {
    const router = express.Router();
    router.get('/public', (_request, response) => void response.send('public'));
    router.use(guard);
    router.route('/x').all((_request, response) => void response.send('x'));
    const sub = express();
    sub.use(admin());
    sub.get('/x', (request, response) => void response.send(callerOf(request).audiences.join()));
    router.use('/sub', sub);
    app.use('/v1', router);
    const origin = await listen(app);
    assert.equal((await ask(origin, '/v1/public')).text, 'public');
    assert.equal((await ask(origin, '/v1/x', { method: 'DELETE' })).status, 401);
    assert.equal((await ask(origin, '/v1/x', as(api))).text, 'x');
    assert.equal((await ask(origin, '/v1/sub/x', as(api))).status, 403);
    assert.equal((await ask(origin, '/v1/sub/x', as(ops))).status, 403);
  });

  it('guards the HEAD that Express answers for a GET', async () => {
    app.get('/x', guard, (_request, response) => void response.send('x'));
    const origin = await listen(app);
    assert.equal((await ask(origin, '/x', { method: 'HEAD' })).status, 401);
    assert.equal((await ask(origin, '/x', { ...as(api), method: 'HEAD' })).status, 200);
  });

  it('tells a predicate the route that it stands in, and never one that let the request pass before', async () => {
    const asked: (string | undefined)[] = [];
    const allow = (_caller: Caller, { route }: { readonly route: string | undefined }): boolean => {
      asked.push(route);
      return true;
    };
    const remembering = guard.with({ allow });
    app.get('/:section', (_request, _response, next) => next());
    app.use(remembering);
    app.get('/items', remembering, (_request, response) => void response.send('items'));
    app.get(/^\/regular/, remembering, (_request, response) => void response.send('regular'));
    const origin = await listen(app);
    assert.equal((await ask(origin, '/items', as(api))).text, 'items');
    assert.equal((await ask(origin, '/regular', as(api))).text, 'regular');
    assert.deepEqual(asked, [undefined, '/items', undefined, undefined]);
  });

  it('works behind a body parser', async () => {
    app.use(express.json(), guard);
    app.post('/x', (request, response) => void response.json(request.body));
    const origin = await listen(app);
    const body = { method: 'POST', body: '{"a":1}' };
    assert.equal((await ask(origin, '/x', { ...body, headers: { 'content-type': 'application/json' } })).status, 401);
    assert.equal(
      (await ask(origin, '/x', { ...body, headers: { 'content-type': 'application/json', 'x-client-id': api } })).text,
      '{"a":1}',
    );
  });

  it('lets error-handling middleware answer, and keeps the challenge', async (t) => {
    const seen: unknown[] = [];
    const handler: ErrorRequestHandler = (error: unknown, _request, response, _next) => {
      seen.push(error instanceof AuthError || error instanceof ClusterError ? error.code : error);
      response.status(418).json({ custom: true });
    };
    app.use(guard);
    app.use(handler);
    const origin = await listen(app);
    const refused = await ask(origin, '/x', as(ops));
    assert.deepEqual([refused.status, refused.text], [418, '{"custom":true}']);
    assert.equal(refused.headers['www-authenticate'], 'ServiceAccount header="X-Client-Id", error="caller_not_allowed"');
    const fault = authority.fail('forbidden');
    t.after(() => fault[Symbol.dispose]());
    const unavailable = await ask(origin, '/x', as(await authority.token('api/api', { audience: 'store', pod: 'api-1' })));
    assert.match(unavailable.headers['retry-after'] ?? '', /^[1-5]$/);
    assert.deepEqual(seen, ['caller_not_allowed', 'review_unavailable']);
  });

  it('adds its header to a Vary that is there, once', async () => {
    app.use((_request, response, next) => {
      response.vary('Origin');
      next();
    });
    app.use(guard, anyone());
    app.get('/x', (_request, response) => void response.vary('Accept').send('x'));
    const answer = await ask(await listen(app), '/x', as(api));
    assert.equal(answer.headers.vary, 'Origin, X-Client-Id, Accept');
  });

  it('is a 500 where an allow predicate throws', async () => {
    app.use(
      guard.with({
        allow: () => {
          throw new Error('no database');
        },
      }),
    );
    app.get('/x', (_request, response) => void response.send('open'));
    app.use(((_error: unknown, _request, response, _next) => void response.sendStatus(500)) satisfies ErrorRequestHandler);
    assert.equal((await ask(await listen(app), '/x', as(api))).status, 500);
  });

  it('goes on where something else has answered meanwhile', async () => {
    const reached = Promise.withResolvers<string | undefined>();
    const refused = Promise.withResolvers<unknown>();
    app.use((_request, response, next) => {
      response.send('too slow');
      next();
    });
    app.use(guard);
    app.use((request) => reached.resolve(request.caller?.name));
    app.use(((error: unknown, _request, _response, _next) => refused.resolve(error)) satisfies ErrorRequestHandler);
    const origin = await listen(app);
    assert.equal((await ask(origin, '/x', as(api))).text, 'too slow');
    assert.equal(await reached.promise, 'api');
    assert.equal((await ask(origin, '/x')).text, 'too slow');
    assert.ok((await refused.promise) instanceof AuthError);
  });

  it('has no caller where no guard stands, where callerOf is a 500', async () => {
    app.get('/public', (request, response) => void response.send(callerOf(request).name));
    app.use(((error: Error, _request, response, _next) => void response.status(500).send(error.message)) satisfies ErrorRequestHandler);
    const answer = await ask(await listen(app), '/public', as(api));
    assert.equal(answer.status, 500);
    assert.match(answer.text, /^callerOf: nobody was proven/);
  });

  it('is plain middleware, which calls next once', async () => {
    const nexts: unknown[] = [];
    const origin = await listen((request: IncomingMessage & { caller?: Caller }, response: ServerResponse) => {
      guard(request, response, (error) => {
        nexts.push(error instanceof AuthError ? error.code : error);
        response.statusCode = error instanceof AuthError ? error.status : 200;
        response.end(request.caller?.serviceAccount);
      });
    });
    assert.equal((await ask(origin, '/x')).status, 401);
    assert.equal((await ask(origin, '/x', as(api))).text, 'api/api');
    assert.deepEqual(nexts, ['missing_token', undefined]);
  });

  it('says what to write where it was given to app.use without a call', async () => {
    const errors: unknown[] = [];
    const noting: ErrorRequestHandler = (error, _request, _response, next) => {
      errors.push(error);
      next(error);
    };
    app.use(k8sSaAuth as unknown as RequestHandler, noting);
    assert.equal((await ask(await listen(app), '/x', as(api))).status, 500);
    assert.match(
      String(errors),
      /^TypeError: The guard was given a request .*: call it once, with options, and give app\.use what it returns$/,
    );
  });

  it('throws a TypeError on options that are not understood', () => {
    const make = (options: object) => () => k8sSaAuth(JSON.parse(JSON.stringify(options)));
    assert.throws(make({ allow: 'any' }), { name: 'TypeError', message: /"audience" is required/ });
    assert.throws(make({ audience: 'store' }), { name: 'TypeError', message: /"allow" says who may call/ });
    assert.throws(() => guard.with(JSON.parse('{ "allow": "any", "header": "authorization" }')), /does not know "header"/);
  });
});

describe('k8sSaAuthClient', () => {
  it('gives each request a serviceFetch that ends when its caller hangs up', async (t) => {
    const arrived = Promise.withResolvers<IncomingMessage>();
    const shop = await listen((request) => arrived.resolve(request));
    const failed = Promise.withResolvers<unknown>();
    const client = k8sSaAuthClient({ targets: [{ origin: shop, tokenFile: pod.tokenFile('shop') }] });
    t.after(() => client.close());
    app.use(client);
    app.get('/call', (request) => void request.serviceFetch(`${shop}/slow`).catch(failed.resolve));
    const origin = await listen(app);
    const caller = openRequest(`${origin}/call`).on('error', () => undefined);
    caller.end();
    const downstream = await arrived.promise;
    const gone = new Promise((resolve) => downstream.on('error', resolve));
    caller.destroy();
    assert.match(String(await gone), /aborted/);
    assert.match(String(await failed.promise), /AbortError: The caller hung up/);
  });

  it('calls a target with its token', async (t) => {
    const shop = await listen((request, response) => response.end(request.headers['x-client-id']));
    const client = k8sSaAuthClient({ targets: [{ origin: shop, tokenFile: pod.tokenFile('shop') }] });
    t.after(() => client.close());
    app.use(client);
    app.get('/call', (request, response) =>
      request
        .serviceFetch(`${shop}/x`)
        .then((answer) => answer.text())
        .then((body) => void response.send(body)),
    );
    const { text: sent } = await ask(await listen(app), '/call');
    assert.deepEqual(await client.target(shop).headers(), { 'x-client-id': sent });
  });
});
