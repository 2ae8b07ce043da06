import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { connect } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';
import { promisify } from 'node:util';

import { processStatus } from '@k8s-sa-auth/core';
import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import fastify, { type FastifyInstance } from 'fastify';
import fastifyPlugin from 'fastify-plugin';

import { as, ask } from './fixtures/ask.ts';
import defaultExport, { AuthError, callerOf, ClusterError, k8sSaAuth, k8sSaAuthClient } from './index.ts';

let authority: Authority;
let pod: Pod;
let app: FastifyInstance;
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
  app = fastify();
});
afterEach(() => app.close());

const standard = () => ({ audience: 'store', allow: ['api/api'], apiServer: pod.apiServer });
const listen = () => app.listen({ port: 0, host: '127.0.0.1' });

describe('k8sSaAuth', () => {
  it('is the default export too', () => {
    assert.equal(defaultExport, k8sSaAuth);
  });

  it('fails to load with a TypeError on options that are not understood', async () => {
    const load = (options: object) => async () => fastify().register(k8sSaAuth, JSON.parse(JSON.stringify(options)));
    const { apiServer } = pod;
    const refusal = (message: RegExp) => ({ name: 'TypeError', message });
    await assert.rejects(load({ apiServer }), refusal(/"audience" is required/));
    await assert.rejects(load({ apiServer, audience: 'store' }), refusal(/"allow" says who may call/));
    await assert.rejects(load({ ...standard(), audiance: 'store' }), refusal(/does not know "audiance"/));
    await assert.rejects(load({ ...standard(), prefix: '/v1' }), refusal(/does not know "prefix"/));
    await assert.rejects(load({ ...standard(), routes: 'optin' }), refusal(/"routes" is 'all' or 'opt-in', not "optin"/));
    await assert.rejects(load({ apiServer, routes: 'opt-in', audience: 'store' }), refusal(/"allow" says who may call/));
    await assert.rejects(load({ apiServer, routes: 'opt-in', allow: 'any' }), refusal(/"audience" is required/));
  });

  it('fails to load where a nested registration names what only the outermost can say', async () => {
    await app.register(k8sSaAuth, standard());
    const nested = (options: object) => async () =>
      app.register(async (inner) => {
        await inner.register(k8sSaAuth, JSON.parse(JSON.stringify(options)));
      });
    await assert.rejects(nested({ audience: 'admin', allow: 'any', header: 'authorization' }), /does not know "header"/);
  });

  it('fails to load where a nested registration that opts in names it', async () => {
    await app.register(k8sSaAuth, standard());
    const nested = async (inner: FastifyInstance): Promise<void> => {
      await inner.register(k8sSaAuth, { routes: 'opt-in', forwardToken: true });
    };
    await assert.rejects(async () => app.register(nested), /does not know "forwardToken"/);
  });

  it('fails to load where requests have a caller of another kind', async () => {
    app.decorateRequest('caller', undefined);
    await assert.rejects(async () => app.register(k8sSaAuth, standard()), { code: 'FST_ERR_DEC_ALREADY_PRESENT' });
  });

  it('is a plugin that others can depend on', async () => {
    const dependent = fastifyPlugin(async () => {}, { dependencies: ['@k8s-sa-auth/fastify'] });
    await assert.rejects(async () => fastify().register(dependent), /@k8s-sa-auth\/fastify/);
    await app.register(k8sSaAuth, standard()).register(dependent);
  });

  it('decides before the body is read, and before what comes later', async () => {
    const steps: string[] = [];
    app.addHook('preParsing', async () => void steps.push('preParsing'));
    await app.register(k8sSaAuth, standard());
    app.addHook('onRequest', async (request) => void steps.push(`onRequest ${request.caller?.name}`));
    app.post('/x', (request) => request.body);
    const origin = await listen();
    const body = { method: 'POST', body: '{"a":1}' };
    const headers = { 'content-type': 'application/json' };
    assert.equal((await ask(origin, '/x', { ...body, headers })).status, 401);
    assert.deepEqual(steps, []);
    assert.equal((await ask(origin, '/x', { ...body, headers: { ...headers, 'x-client-id': api } })).text, '{"a":1}');
    assert.deepEqual(steps, ['onRequest api', 'preParsing']);
  });

  it('gives an error handler what it needs, and keeps the challenge whatever that answers', async () => {
    const seen: unknown[] = [];
    await app.register(k8sSaAuth, standard());
    app.setErrorHandler((error, _request, reply) => {
      seen.push(error instanceof AuthError ? error.code : error);
      return reply.code(418).send('custom');
    });
    app.get('/x', () => 'x');
    const origin = await listen();
    const answer = await ask(origin, '/x', as(ops));
    assert.deepEqual([answer.status, answer.text], [418, 'custom']);
    assert.equal(answer.headers['www-authenticate'], 'ServiceAccount header="X-Client-Id", error="caller_not_allowed"');
    assert.equal(answer.headers['cache-control'], 'no-store');
    assert.deepEqual(seen, ['caller_not_allowed']);
  });

  it('lets the error handler of the matched scope answer', async (t) => {
    await app.register(k8sSaAuth, standard());
    app.setErrorHandler((_error, _request, reply) => reply.send('outer'));
    await app.register(
      async (v1) => {
        v1.setErrorHandler((error, _request, reply) => reply.send(error instanceof ClusterError ? 'unavailable' : 'v1'));
        v1.get('/x', () => 'x');
      },
      { prefix: '/v1' },
    );
    const origin = await listen();
    assert.equal((await ask(origin, '/v1/x')).text, 'v1');
    assert.equal((await ask(origin, '/nowhere')).text, 'outer');
    const fault = authority.fail('forbidden');
    t.after(() => fault[Symbol.dispose]());
    assert.equal(
      (await ask(origin, '/v1/x', as(await authority.token('api/api', { audience: 'store', pod: 'api-1' })))).text,
      'unavailable',
    );
  });

  it('keeps the Vary of a hook before it, in answers and in refusals', async () => {
    app.addHook('onRequest', async (_request, reply) => void reply.header('vary', 'Origin'));
    await app.register(k8sSaAuth, standard());
    app.get('/x', () => 'x');
    const origin = await listen();
    assert.equal((await ask(origin, '/x', as(api))).headers.vary, 'Origin, X-Client-Id');
    assert.equal((await ask(origin, '/x')).headers.vary, 'Origin');
  });

  it('keeps several values of Vary, and adds its own once', async () => {
    app.addHook('onRequest', async (_request, reply) => void reply.header('vary', ['Origin', 'x-client-id']));
    await app.register(k8sSaAuth, standard());
    app.get('/x', () => 'x');
    const { headers } = await ask(await listen(), '/x', as(api));
    assert.equal(headers.vary, 'Origin, x-client-id');
    assert.equal(headers['cache-control'], 'private');
  });

  it('has no caller on a public route, where callerOf is a 500', async () => {
    await app.register(k8sSaAuth, standard());
    app.get('/public', { config: { k8sSaAuth: false } }, (request) => callerOf(request).name);
    const answer = await ask(await listen(), '/public', as(api));
    assert.equal(answer.status, 500);
    assert.match(answer.text, /callerOf: nobody was proven on this route/);
  });

  it('leaves the caller that a guard before it has proven, where it only observes', async () => {
    await app.register(k8sSaAuth, standard());
    const onRequest = app.k8sSaAuth.with({ allow: ['ops/*'], mode: 'observe' });
    app.get('/x', { onRequest }, (request) => callerOf(request).serviceAccount);
    assert.equal((await ask(await listen(), '/x', as(api))).text, 'api/api');
  });

  it('waits until it is ready no longer than the signal', async () => {
    await app.register(k8sSaAuth, { ...standard(), logger: { info: () => {}, warn: () => {}, error: () => {} } });
    await assert.rejects(app.k8sSaAuth.ready(AbortSignal.abort(new Error('enough'))), { message: 'enough' });
  });

  it('guards app.inject', async () => {
    await app.register(k8sSaAuth, standard());
    app.get('/x', (request) => [callerOf(request).serviceAccount, request.headers['x-client-id'] ?? 'taken off']);
    assert.equal((await app.inject('/x')).statusCode, 401);
    const answer = await app.inject({ url: '/x', headers: { 'X-Client-Id': api } });
    assert.deepEqual(answer.json(), ['api/api', 'taken off']);
  });

  it('starts without permission to review, and warns the app’s log', async () => {
    const lines: string[] = [];
    const warned = Promise.withResolvers<void>();
    const logged = fastify({
      logger: {
        level: 'warn',
        stream: {
          write(line: string) {
            lines.push(line);
            warned.resolve();
          },
        },
      },
    });
    const powerless = await authority.pod('other/other', { reviews: false });
    await logged.register(k8sSaAuth, { ...standard(), apiServer: powerless.apiServer });
    logged.get('/x', () => 'x');
    await logged.ready();
    await warned.promise;
    assert.match(lines.join(''), /system:auth-delegator/);
    assert.equal((await logged.inject({ url: '/x', headers: { 'x-client-id': api } })).statusCode, 503);
    await logged.close();
  });

  it('warns its own logger where it has one, not the app’s', async () => {
    const warned = Promise.withResolvers<string>();
    const logger = { info: () => {}, warn: (_details: object, message: string) => warned.resolve(message), error: () => {} };
    const lines: string[] = [];
    const logged = fastify({ logger: { level: 'warn', stream: { write: (line: string) => void lines.push(line) } } });
    const powerless = await authority.pod('other/own', { reviews: false });
    await logged.register(k8sSaAuth, { ...standard(), apiServer: powerless.apiServer, logger });
    await logged.ready();
    assert.match(await warned.promise, /system:auth-delegator/);
    await logged.close();
    assert.deepEqual(lines, []);
  });

  it('warns the process where the app has no log', async () => {
    const warnings: string[] = [];
    const warned = Promise.withResolvers<void>();
    const collect = ({ name, message }: Error): void => {
      if (name === 'K8sSaAuthWarning') warned.resolve(void warnings.push(message));
    };
    process.on('warning', collect);
    const powerless = await authority.pod('other/silent', { reviews: false });
    const silent = fastify();
    try {
      await silent.register(k8sSaAuth, { ...standard(), apiServer: powerless.apiServer });
      await silent.ready();
      await warned.promise;
      assert.match(warnings.join(''), /system:auth-delegator/);
    } finally {
      process.off('warning', collect);
      await silent.close();
    }
  });

  it('asks the cluster nothing more when the app is closed', async () => {
    const closed = fastify();
    await closed.register(k8sSaAuth, standard());
    app.get('/x', { onRequest: closed.k8sSaAuth }, () => 'x');
    const stranger = await authority.token('api/api', { audience: 'store', pod: 'api-2' });
    assert.equal((await app.inject({ url: '/x', headers: { 'x-client-id': api } })).statusCode, 200);
    await closed.close();
    assert.equal((await app.inject({ url: '/x', headers: { 'x-client-id': stranger } })).statusCode, 503);
  });

  it('guards HTTP/2', async () => {
    const secure = fastify({ http2: true });
    await secure.register(k8sSaAuth, standard());
    secure.get('/x', (request) => [callerOf(request).name, request.headers['x-client-id'] ?? 'taken off']);
    secure.post('/x', (request) => request.body);
    const session = connect(await secure.listen({ port: 0, host: '127.0.0.1' }));
    const send = async (headers: Readonly<Record<string, string>>, body?: string) => {
      const stream = session.request({ ':path': '/x', ...headers }, { endStream: body === undefined });
      if (body !== undefined) stream.end(body);
      const [answered = {}]: Record<string, unknown>[] = await once(stream, 'response');
      return { headers: answered, text: await text(stream).catch(() => 'reset') };
    };
    const refused = await send({});
    assert.equal(refused.headers[':status'], 401);
    assert.equal(refused.headers['www-authenticate'], 'ServiceAccount header="X-Client-Id"');
    const posted = { ':method': 'POST', 'content-type': 'application/json' };
    assert.equal((await send(posted, '{"a":1}')).headers[':status'], 401);
    assert.equal((await send({ 'x-client-id': api })).text, '["api","taken off"]');
    assert.equal((await send({ ...posted, 'x-client-id': api }, '{"a":1}')).text, '{"a":1}');
    assert.equal((await send({ 'x-client-id': ops })).headers[':status'], 403);
    session.close();
    await secure.close();
  });

  it('keeps no process alive', async () => {
    const program = `
      import fastify from 'fastify';
      import { k8sSaAuth, k8sSaAuthClient } from ${JSON.stringify(import.meta.resolve('./index.ts'))};
      const [token, tokenFile] = process.argv.slice(-2);
      const app = fastify();
      await app.register(k8sSaAuth, { audience: 'store', allow: ['api/api'] });
      await app.register(k8sSaAuthClient, { targets: [{ origin: 'http://shop', tokenFile }] });
      app.get('/x', (request) => request.caller.serviceAccount);
      await app.serviceClient.ready();
      await app.k8sSaAuth.ready();
      console.log((await app.inject({ url: '/x', headers: { 'x-client-id': token } })).body);
    `;
    const run = promisify(execFile);
    const options = { env: { ...process.env, ...pod.env }, cwd: import.meta.dirname, timeout: 20_000 };
    const arguments_ = ['--input-type=module', '--eval', program, api, pod.tokenFile('shop')];
    assert.equal((await run(process.execPath, arguments_, options)).stdout, 'api/api\n');
    const closing = ['--input-type=module', '--eval', `${program}; await app.close();`, api, pod.tokenFile('shop')];
    assert.equal((await run(process.execPath, closing, options)).stdout, 'api/api\n');
  });
});

describe('k8sSaAuthClient', () => {
  it('leaves no client behind where it is registered twice', async () => {
    const targets = [{ origin: 'http://app.shop', tokenFile: pod.tokenFile('shop') }];
    const twice = fastify();
    await twice.register(k8sSaAuthClient, { targets });
    await assert.rejects(async () => twice.register(k8sSaAuthClient, { targets }), { code: 'FST_ERR_DEC_ALREADY_PRESENT' });
    await twice.close();
    assert.deepEqual(processStatus().targets, []);
  });

  it('calls a target with its token, and ends with the app', async () => {
    const shop = createServer((request, response) => response.end(String(request.headers['x-client-id'])));
    await once(shop.listen(0, '127.0.0.1'), 'listening');
    // The server listens on a port.
    const origin = `http://127.0.0.1:${(shop.address() as AddressInfo).port}`;
    await app.register(k8sSaAuthClient, { targets: [{ origin, tokenFile: pod.tokenFile('shop') }] });
    app.get('/call', async () => (await app.serviceFetch(`${origin}/`)).text());
    const answer = await app.inject('/call');
    assert.deepEqual(await app.serviceClient.target(origin).headers(), { 'x-client-id': answer.body });
    assert.equal(app.serviceClient.status()[0]?.audience, 'shop');
    const { serviceFetch } = app;
    await app.close();
    await assert.rejects(serviceFetch(`${origin}/`));
    shop.close();
    shop.closeAllConnections();
  });

  it('fails to load with a TypeError on options that are not understood', async () => {
    await assert.rejects(async () => app.register(k8sSaAuthClient, { targets: [] }), {
      name: 'TypeError',
      message: /"targets" is required/,
    });
  });
});
