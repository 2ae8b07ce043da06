import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type IncomingMessage, request as openRequest, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import { Router } from '@koa/router';
import Koa from 'koa';

import { as, ask } from './fixtures/ask.ts';
import { AuthError, type CallerState, callerOf, k8sSaAuth, k8sSaAuthClient, type KoaGuard } from './index.ts';

let authority: Authority;
let pod: Pod;
let app: Koa<CallerState>;
let guard: KoaGuard;
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
  app = new Koa<CallerState>();
  guard = k8sSaAuth({ audience: 'store', allow: ['api/api'], apiServer: pod.apiServer });
});
afterEach(async () => {
  for (const server of servers) server.close().closeAllConnections();
  servers = [];
  await guard.close();
});

async function originOf(server: Server): Promise<string> {
  servers = [...servers, server];
  await once(server, 'listening');
  // The server listens on a port.
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}
const listen = () => originOf(app.listen(0, '127.0.0.1'));

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
    app.use((ctx, next) => {
      if (ctx.path !== '/healthz') return next();
      ctx.body = ctx.get('x-client-id');
      return undefined;
    });
    app.use(guard);
    app.use((ctx) => {
      ctx.body = [ctx.state.caller.serviceAccount, callerOf(ctx).name, ctx.get('x-client-id')];
    });
    const origin = await listen();
    assert.equal((await ask(origin, '/healthz', as('mine'))).text, 'mine');
    assert.equal((await ask(origin, '/x')).status, 401);
    assert.equal((await ask(origin, '/x', as(api))).text, '["api/api","api",""]');
  });

  it('leaves the caller that a guard before it has proven, where it only observes', async () => {
    app.use(guard).use(guard.with({ allow: ['ops/*'], mode: 'observe' }));
    app.use((ctx) => {
      ctx.body = callerOf(ctx).serviceAccount;
    });
    assert.equal((await ask(await listen(), '/x', as(api))).text, 'api/api');
  });

  it('asks the cluster nothing more when it is closed, or its scope has ended', async () => {
    const router = new Router<CallerState>();
    const closed = k8sSaAuth({ audience: 'store', allow: ['api/api'], apiServer: pod.apiServer });
    router.get('/closed', closed);
    const scoped = k8sSaAuth({ audience: 'store', allow: ['api/api'], apiServer: pod.apiServer });
    router.get('/scoped', scoped);
    await closed.close();
    // What `await using` does.
    await scoped[Symbol.asyncDispose]();
    app.use(router.routes());
    const origin = await listen();
    assert.deepEqual([(await ask(origin, '/closed', as(api))).status, (await ask(origin, '/scoped', as(api))).status], [503, 503]);
  });

  it('waits until it is ready no longer than the signal', async (t) => {
    const logger = { info: () => {}, warn: () => {}, error: () => {} };
    const own = k8sSaAuth({ audience: 'store', allow: ['api/api'], apiServer: pod.apiServer, logger });
    t.after(() => own.close());
    await assert.rejects(own.ready(AbortSignal.abort(new Error('enough'))), { message: 'enough' });
  });

  it('adds up with the guards before it, on a token that they have taken off', async () => {
    const router = new Router<CallerState>();
    router.get('/admin', admin(), (ctx) => {
      ctx.body = ctx.state.caller.audiences;
    });
    router.get('/both', admin(), guard, (ctx) => {
      ctx.body = 'nobody';
    });
    app.use(guard.with({ allow: 'any' })).use(router.routes());
    const origin = await listen();
    assert.equal((await ask(origin, '/admin')).status, 401);
    assert.equal((await ask(origin, '/admin', as(api))).status, 403);
    assert.equal((await ask(origin, '/both', as(ops))).status, 403);
    const answer = await ask(origin, '/admin', as(ops));
    assert.equal(answer.text, '["admin"]');
    assert.equal(answer.headers.vary, 'X-Client-Id');
    assert.equal(answer.headers['cache-control'], 'private');
  });

  it('adds up with a guard of another header', async () => {
    const bearer = k8sSaAuth({ audience: 'admin', allow: ['ops/*'], header: 'authorization', apiServer: pod.apiServer });
    app.use(guard).use(bearer);
    app.use((ctx) => {
      ctx.body = ctx.state.caller.name;
    });
    const origin = await listen();
    const both = (clientId: string, token: string) => ({ headers: { 'x-client-id': clientId, authorization: `Bearer ${token}` } });
    assert.equal((await ask(origin, '/x', both(api, ops))).text, 'admin');
    assert.equal((await ask(origin, '/x', both(api, api))).headers['www-authenticate'], 'Bearer realm="kubernetes", error="invalid_token"');
    assert.equal((await ask(origin, '/x', both(ops, ops))).status, 403);
    await bearer.close();
  });

  it('guards a router as its first layer', async () => {
    const router = new Router<CallerState>({ prefix: '/v1' });
    router.use(guard);
    router.get('/x', (ctx) => {
      ctx.body = callerOf(ctx).serviceAccount;
    });
    app.use(router.routes());
    const origin = await listen();
    assert.equal((await ask(origin, '/v1/x')).status, 401);
    assert.equal((await ask(origin, '/v1/nowhere')).status, 404);
    assert.equal((await ask(origin, '/v1/x', as(api))).text, 'api/api');
  });

  it('tells a predicate the route that it stands in, and never one that let the request pass before', async () => {
    const asked: (string | undefined)[] = [];
    const asking = guard.with({
      allow: (_caller, { route }) => {
        asked.push(route);
        return true;
      },
    });
    const passing = new Router();
    passing.get('/:section', (_ctx, next) => next());
    const router = new Router<CallerState>();
    router.use(asking);
    router.get('/items', asking, (ctx) => {
      ctx.body = 'items';
    });
    router.get(/^\/orders/, asking, (ctx) => {
      ctx.body = 'orders';
    });
    app.use(passing.routes()).use(asking).use(router.routes());
    const origin = await listen();
    assert.equal((await ask(origin, '/items', as(api))).text, 'items');
    assert.deepEqual(asked, [undefined, undefined, '/items']);
    assert.equal((await ask(origin, '/orders/7', as(api))).text, 'orders');
    assert.deepEqual(asked.slice(3), [undefined, undefined, undefined]);
  });

  it('throws what error middleware can answer, and keeps the challenge', async () => {
    app.use(async (ctx, next) => {
      try {
        await next();
      } catch (error) {
        ctx.status = 418;
        ctx.body = error instanceof AuthError ? error.code : String(error);
      }
    });
    app.use(guard);
    const answer = await ask(await listen(), '/x', as(ops));
    assert.deepEqual([answer.status, answer.text], [418, 'caller_not_allowed']);
    assert.equal(answer.headers['www-authenticate'], 'ServiceAccount header="X-Client-Id", error="caller_not_allowed"');
    assert.equal(answer.headers['cache-control'], 'no-store');
  });

  it('lets middleware before it set status and headers of the error', async () => {
    app.use(async (_ctx, next) => {
      try {
        await next();
      } catch (error) {
        // As @koa/cors does.
        if (error instanceof AuthError) {
          const headers = { ...error.headers, 'access-control-allow-origin': '*', vary: 'Origin' };
          Object.assign(error, { status: 404, headers });
        }
        throw error;
      }
    });
    app.use(guard);
    app.silent = true;
    const answer = await ask(await listen(), '/x');
    assert.equal(answer.status, 404);
    assert.equal(answer.headers.vary, 'Origin');
    assert.equal(answer.headers['www-authenticate'], 'ServiceAccount header="X-Client-Id"');
  });

  it('tells error listeners in one line', async () => {
    const heard: unknown[] = [];
    app.on('error', (error: unknown) => void heard.push(error instanceof Error ? error.stack : error));
    app.use(guard);
    await ask(await listen(), '/x');
    assert.deepEqual(heard, ['AuthError: A ServiceAccount token is required']);
  });

  it('keeps a Vary that is there, and adds its header once', async () => {
    app.use((ctx, next) => {
      ctx.vary('Origin');
      return next();
    });
    app.use(guard).use(guard);
    app.use((ctx) => {
      ctx.vary('Accept');
      ctx.body = 'x';
    });
    assert.equal((await ask(await listen(), '/x', as(api))).headers.vary, 'Origin, X-Client-Id, Accept');
  });

  it('goes on where something else has answered meanwhile', async () => {
    const reached = Promise.withResolvers<string>();
    app.use(async (ctx, next) => {
      ctx.respond = false;
      ctx.res.end('too slow');
      await next();
    });
    app.use(guard);
    app.use((ctx) => reached.resolve(ctx.state.caller.name));
    const origin = await listen();
    assert.equal((await ask(origin, '/x', as(api))).text, 'too slow');
    assert.equal(await reached.promise, 'api');
    assert.equal((await ask(origin, '/x')).text, 'too slow');
  });

  it('has no caller where no guard stands, where callerOf is a 500', async () => {
    const messages: string[] = [];
    app.on('error', (error: Error) => messages.push(error.message));
    app.use((ctx) => {
      ctx.body = callerOf(ctx).name;
    });
    assert.equal((await ask(await listen(), '/x', as(api))).status, 500);
    assert.match(messages.join(), /^callerOf: nobody was proven/);
  });

  it('says what to write where it was given to app.use without a call', async () => {
    const errors: unknown[] = [];
    app.on('error', (error) => errors.push(error));
    app.use(k8sSaAuth as unknown as Koa.Middleware<CallerState>);
    assert.equal((await ask(await listen(), '/x', as(api))).status, 500);
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
    const shop = await originOf(createServer((request) => arrived.resolve(request)).listen(0, '127.0.0.1'));
    const failed = Promise.withResolvers<unknown>();
    const client = k8sSaAuthClient({ targets: [{ origin: shop, tokenFile: pod.tokenFile('shop') }] });
    t.after(() => client.close());
    const calling = new Koa();
    calling.use(client).use((ctx) => ctx.serviceFetch(`${shop}/slow`).then(() => undefined, failed.resolve));
    const origin = await originOf(calling.listen(0, '127.0.0.1'));
    const caller = openRequest(`${origin}/call`).on('error', () => undefined);
    caller.end();
    const downstream = await arrived.promise;
    const gone = new Promise((resolve) => downstream.on('error', resolve));
    caller.destroy();
    assert.match(String(await gone), /aborted/);
    assert.match(String(await failed.promise), /AbortError: The caller hung up/);
  });

  it('calls a target with its token', async (t) => {
    const shop = await originOf(createServer((request, response) => response.end(request.headers['x-client-id'])).listen(0, '127.0.0.1'));
    const client = k8sSaAuthClient({ targets: [{ origin: shop, tokenFile: pod.tokenFile('shop') }] });
    t.after(() => client.close());
    const calling = new Koa();
    calling.use(client).use(async (ctx) => {
      ctx.body = await (await ctx.serviceFetch(`${shop}/x`)).text();
    });
    const { text } = await ask(await originOf(calling.listen(0, '127.0.0.1')), '/call');
    assert.deepEqual(await client.target(shop).headers(), { 'x-client-id': text });
  });
});
