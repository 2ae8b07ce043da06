import assert from 'node:assert/strict';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify';

import { as, ask } from './fixtures/ask.ts';
import { callerOf, k8sSaAuth } from './index.ts';

let authority: Authority;
let pod: Pod;
let app: FastifyInstance;
let api: string;
let ops: string;

before(async () => {
  authority = await createAuthority();
  pod = await authority.pod('store/store');
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

describe('app.k8sSaAuth', () => {
  it('is an onRequest hook of its own', async () => {
    await app.register(k8sSaAuth, { routes: 'opt-in', apiServer: pod.apiServer });
    const admin = app.k8sSaAuth.with({ audience: 'admin', allow: ['ops/*'] });
    app.get<{ Params: { id: string } }>('/admin/:id', { onRequest: admin }, (request) => `${callerOf(request).name} ${request.params.id}`);
    app.get('/own', { onRequest: [admin.with({ allow: ['api/api'] }), admin] }, () => 'nobody');
    app.post<{ Body: { a: number }; Reply: string }>('/admin', { onRequest: admin }, (request) => String(request.body.a));
    const origin = await listen();
    assert.equal((await ask(origin, '/admin', { ...as(api), method: 'POST', body: '{}' })).status, 403);
    assert.equal((await ask(origin, '/admin/7')).status, 401);
    assert.equal((await ask(origin, '/admin/7', as(api))).status, 403);
    assert.equal((await ask(origin, '/admin/7', as(ops))).text, 'admin 7');
    assert.equal((await ask(origin, '/own', as(ops))).status, 403);
  });

  it('adds up with the guard of its scope, which has taken the token off', async () => {
    await app.register(k8sSaAuth, { ...standard(), allow: 'any' });
    app.get('/admin', { onRequest: app.k8sSaAuth.with({ audience: 'admin', allow: ['ops/*'] }) }, (request) =>
      callerOf(request).audiences.join(),
    );
    const origin = await listen();
    assert.equal((await ask(origin, '/admin', as(api))).status, 403);
    const answer = await ask(origin, '/admin', as(ops));
    assert.equal(answer.text, 'admin');
    assert.equal(answer.headers.vary, 'X-Client-Id');
  });

  it('guards a scope as its onRequest hook', async () => {
    await app.register(k8sSaAuth, { ...standard(), routes: 'opt-in' });
    await app.register(async (scope) => {
      scope.addHook('onRequest', scope.k8sSaAuth);
      scope.get('/x', () => 'x');
    });
    const origin = await listen();
    assert.equal((await ask(origin, '/x')).status, 401);
    assert.equal((await ask(origin, '/x', as(api))).text, 'x');
  });

  it('refuses options that are not understood when it is made', async () => {
    await app.register(k8sSaAuth, standard());
    assert.throws(() => app.k8sSaAuth.with({ allow: [] }), TypeError);
    assert.throws(() => app.k8sSaAuth.with(JSON.parse('{ "allow": "any", "audiance": "admin" }')), /"audiance"/);
  });

  it('answers 500 where it has no audience', async () => {
    await app.register(k8sSaAuth, { routes: 'opt-in', apiServer: pod.apiServer });
    app.get('/x', { onRequest: app.k8sSaAuth }, () => 'open');
    const origin = await listen();
    const answer = await ask(origin, '/x', as(api));
    assert.equal(answer.status, 500);
    assert.match(answer.text, /without an audience/);
  });

  it('is one of several schemes', async () => {
    await app.register(k8sSaAuth, { ...standard(), routes: 'opt-in' });
    type Scheme = (this: FastifyInstance, request: FastifyRequest, reply: FastifyReply, done: (error?: Error) => void) => unknown;
    // As @fastify/auth calls them: the first that passes will do.
    const auth = (schemes: readonly Scheme[]) =>
      async function anyOf(this: FastifyInstance, request: FastifyRequest, reply: FastifyReply): Promise<void> {
        let last: unknown;
        for (const scheme of schemes) {
          try {
            await scheme.call(this, request, reply, () => undefined);
            return;
          } catch (error) {
            last = error;
          }
        }
        throw last;
      };
    const password: Scheme = async (request) => {
      if (request.headers.authorization !== 'Basic b3BzOm9wcw==') throw Object.assign(new Error('no password'), { statusCode: 401 });
    };
    const whoami = (request: FastifyRequest): string => request.caller?.serviceAccount ?? 'by password';
    app.get('/first', { preHandler: auth([app.k8sSaAuth, password]) }, whoami);
    app.get('/last', { preHandler: auth([password, app.k8sSaAuth]) }, whoami);
    const origin = await listen();
    const byPassword = { headers: { authorization: 'Basic b3BzOm9wcw==' } };
    assert.equal((await ask(origin, '/first', as(api))).text, 'api/api');
    assert.equal((await ask(origin, '/last', as(api))).text, 'api/api');
    assert.equal((await ask(origin, '/first', byPassword)).text, 'by password');
    assert.equal((await ask(origin, '/last', byPassword)).text, 'by password');
    assert.match((await ask(origin, '/first')).text, /no password/);
    assert.equal((await ask(origin, '/last', as(ops))).status, 403);
  });

  it('is ready when the cluster lets it review tokens', async () => {
    await app.register(k8sSaAuth, standard());
    await app.k8sSaAuth.ready();
    await app.register(async (inner) => {
      await inner.register(k8sSaAuth, { audience: 'admin', allow: ['ops/*'] });
      await inner.k8sSaAuth.ready(AbortSignal.timeout(5_000));
    });
  });
});
