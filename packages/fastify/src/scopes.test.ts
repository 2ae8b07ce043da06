import assert from 'node:assert/strict';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import fastify, { type FastifyInstance } from 'fastify';
import fastifyPlugin from 'fastify-plugin';

import { as, ask } from './fixtures/ask.ts';
import { callerOf, k8sSaAuth } from './index.ts';

describe('k8sSaAuth, by scope', () => {
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
  const reviews = () => authority.calls.filter(({ resource }) => resource === 'tokenreviews').length;

  it('guards routes that were declared before it and after it', async () => {
    app.get('/before', () => 'before');
    await app.register(k8sSaAuth, standard());
    app.get('/after', () => 'after');
    const origin = await listen();
    assert.equal((await ask(origin, '/before')).status, 401);
    assert.equal((await ask(origin, '/after')).status, 401);
    assert.equal((await ask(origin, '/before', as(api))).text, 'before');
    assert.equal((await ask(origin, '/after', as(api))).text, 'after');
  });

  it('guards without an awaited registration', async () => {
    app.register(k8sSaAuth, standard());
    app.get('/secret', (request) => callerOf(request).serviceAccount);
    const origin = await listen();
    assert.equal((await ask(origin, '/secret')).status, 401);
    assert.equal((await ask(origin, '/secret', as(api))).text, 'api/api');
  });

  it('guards a scope that was loaded before it', async () => {
    await app.register(async (early) => {
      early.get('/early', (request) => callerOf(request).serviceAccount);
      await early.register(async (deeper) => {
        deeper.get('/deeper', () => 'deeper');
      });
    });
    await app.register(k8sSaAuth, standard());
    const origin = await listen();
    assert.equal((await ask(origin, '/early')).status, 401);
    assert.equal((await ask(origin, '/deeper')).status, 401);
    assert.equal((await ask(origin, '/early', as(api))).text, 'api/api');
  });

  it('guards scopes within it, with and without a prefix, and through fastify-plugin', async () => {
    await app.register(k8sSaAuth, standard());
    await app.register(
      async (v1) => {
        v1.get('/x', () => 'x');
      },
      { prefix: '/v1' },
    );
    await app.register(
      fastifyPlugin(async (open) => {
        open.get('/y', () => 'y');
      }),
    );
    const origin = await listen();
    assert.equal((await ask(origin, '/v1/x')).status, 401);
    assert.equal((await ask(origin, '/y')).status, 401);
    assert.equal((await ask(origin, '/v1/x', as(api))).text, 'x');
  });

  it('leaves the scopes beside and around it alone', async () => {
    app.get('/around', () => 'around');
    await app.register(async (guarded) => {
      await guarded.register(k8sSaAuth, standard());
      guarded.get('/guarded', () => 'guarded');
    });
    await app.register(async (beside) => {
      beside.get('/beside', (request) => request.headers['x-client-id'] ?? 'no header');
    });
    const origin = await listen();
    assert.equal((await ask(origin, '/around')).status, 200);
    assert.equal((await ask(origin, '/beside', as('anything'))).text, 'anything');
    assert.equal((await ask(origin, '/guarded')).status, 401);
  });

  it('lets the nearest registration decide', async () => {
    await app.register(k8sSaAuth, standard());
    app.get('/outer', () => 'outer');
    await app.register(
      async (admin) => {
        admin.get('/before', () => 'before');
        await admin.register(k8sSaAuth, { audience: 'admin', allow: ['ops/*'] });
        admin.get('/inner', (request) => callerOf(request).audiences.join());
        await admin.register(async (deeper) => {
          deeper.get('/deeper', () => 'deeper');
        });
      },
      { prefix: '/admin' },
    );
    const origin = await listen();
    assert.equal((await ask(origin, '/outer', as(ops))).status, 403);
    assert.equal((await ask(origin, '/admin/inner', as(api))).status, 403);
    assert.equal((await ask(origin, '/admin/before', as(api))).status, 403);
    assert.equal((await ask(origin, '/admin/deeper', as(api))).status, 403);
    assert.equal((await ask(origin, '/admin/inner', as(ops))).text, 'admin');
    assert.equal((await ask(origin, '/admin/before', as(ops))).text, 'before');
  });

  it('lets a nested scope that was loaded before the outer registration decide for itself', async () => {
    await app.register(
      async (admin) => {
        await admin.register(k8sSaAuth, { ...standard(), audience: 'admin', allow: ['ops/*'] });
        admin.get('/inner', () => 'inner');
      },
      { prefix: '/admin' },
    );
    await app.register(k8sSaAuth, standard());
    app.get('/outer', () => 'outer');
    const origin = await listen();
    assert.equal((await ask(origin, '/admin/inner', as(api))).status, 403);
    assert.equal((await ask(origin, '/admin/inner', as(ops))).text, 'inner');
    assert.equal((await ask(origin, '/outer', as(api))).text, 'outer');
  });

  it('shares connection and memory with the registration around it', async () => {
    await app.register(k8sSaAuth, { ...standard(), allow: 'any' });
    app.get('/outer', () => 'outer');
    await app.register(async (inner) => {
      await inner.register(k8sSaAuth, { allow: ['ops/*'], audience: 'store' });
      inner.get('/inner', () => 'inner');
    });
    const origin = await listen();
    const asked = reviews();
    assert.equal((await ask(origin, '/outer', as(ops))).status, 200);
    assert.equal((await ask(origin, '/inner', as(ops))).status, 200);
    assert.equal((await ask(origin, '/outer', as(api))).status, 200);
    assert.equal((await ask(origin, '/inner', as(api))).status, 403);
    assert.equal(reviews() - asked, 2);
  });

  it('asks again for another audience', async () => {
    await app.register(k8sSaAuth, { ...standard(), allow: 'any' });
    app.get('/outer', () => 'outer');
    app.get('/admin', { config: { k8sSaAuth: { audience: 'admin', allow: 'any' } } }, (request) => callerOf(request).audiences.join());
    const origin = await listen();
    const asked = reviews();
    assert.equal((await ask(origin, '/outer', as(ops))).status, 200);
    assert.equal((await ask(origin, '/admin', as(ops))).text, 'admin');
    assert.equal(reviews() - asked, 2);
  });

  it('keeps the memories of siblings apart', async () => {
    await app.register(async (one) => {
      await one.register(k8sSaAuth, standard());
      one.get('/one', () => 'one');
    });
    await app.register(async (other) => {
      await other.register(k8sSaAuth, { ...standard(), header: 'authorization' });
      other.get('/other', (request) => request.headers['x-client-id'] ?? 'taken off');
    });
    const origin = await listen();
    assert.equal((await ask(origin, '/one', as(api))).status, 200);
    assert.equal((await ask(origin, '/other', as(api))).status, 401);
    const both = { headers: { authorization: `Bearer ${api}`, 'x-client-id': 'mine' } };
    assert.equal((await ask(origin, '/other', both)).text, 'mine');
  });

  it('inherits mode and requirePod from the registration around it', async () => {
    const unbound = await authority.token('api/api', { audience: 'store' });
    await app.register(k8sSaAuth, { ...standard(), requirePod: false });
    await app.register(async (inner) => {
      await inner.register(k8sSaAuth, { audience: 'store', allow: ['api/*'] });
      inner.get('/inherits', () => 'in');
    });
    await app.register(async (inner) => {
      await inner.register(k8sSaAuth, { audience: 'store', allow: ['api/*'], requirePod: true });
      inner.get('/replaces', () => 'in');
    });
    const origin = await listen();
    assert.equal((await ask(origin, '/inherits', as(unbound))).status, 200);
    assert.equal((await ask(origin, '/replaces', as(unbound))).status, 403);
  });

  it('guards what is not found, at the root and below it', async () => {
    await app.register(k8sSaAuth, standard());
    app.setNotFoundHandler((_request, reply) => reply.code(404).send('root'));
    await app.register(
      async (v1) => {
        v1.setNotFoundHandler((_request, reply) => reply.code(404).send('v1'));
      },
      { prefix: '/v1' },
    );
    const origin = await listen();
    assert.equal((await ask(origin, '/nowhere')).status, 401);
    assert.equal((await ask(origin, '/v1/nowhere')).status, 401);
    assert.equal((await ask(origin, '/nowhere', as(api))).text, 'root');
    assert.equal((await ask(origin, '/v1/nowhere', as(api))).text, 'v1');
  });

  it('guards what Fastify itself does not find', async () => {
    await app.register(k8sSaAuth, standard());
    const origin = await listen();
    assert.equal((await ask(origin, '/nowhere')).status, 401);
    assert.equal((await ask(origin, '/nowhere', { method: 'POST', body: 'x' })).status, 401);
    assert.equal((await ask(origin, '/nowhere', as(api))).status, 404);
  });

  it('guards what is not found in a nested scope by the registration there', async () => {
    await app.register(k8sSaAuth, standard());
    await app.register(
      async (admin) => {
        await admin.register(k8sSaAuth, { audience: 'admin', allow: ['ops/*'] });
        admin.setNotFoundHandler((_request, reply) => reply.code(404).send('admin'));
      },
      { prefix: '/admin' },
    );
    const origin = await listen();
    assert.equal((await ask(origin, '/admin/nowhere', as(api))).status, 403);
    assert.equal((await ask(origin, '/admin/nowhere', as(ops))).text, 'admin');
    assert.equal((await ask(origin, '/nowhere', as(ops))).status, 403);
  });

  it('leaves what is not found around a nested scope alone', async () => {
    await app.register(
      async (guarded) => {
        await guarded.register(k8sSaAuth, standard());
      },
      { prefix: '/v1' },
    );
    const origin = await listen();
    assert.equal((await ask(origin, '/nowhere')).status, 404);
  });

  it('refuses to be registered twice in one scope', async () => {
    await app.register(k8sSaAuth, standard());
    await assert.rejects(async () => app.register(k8sSaAuth, standard()), /registered twice in one scope/);
  });

  it('refuses to be registered twice in one scope by a plugin that breaks the encapsulation', async () => {
    await app.register(k8sSaAuth, standard());
    const plugin = fastifyPlugin(async (same: FastifyInstance) => {
      await same.register(k8sSaAuth, standard());
    });
    await assert.rejects(async () => app.register(plugin), /registered twice in one scope/);
  });
});
