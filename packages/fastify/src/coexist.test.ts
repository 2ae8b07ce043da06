import assert from 'node:assert/strict';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';

import fastifyAuth, { type FastifyAuthFunction } from '@fastify/auth';
import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import { holdObserveTimeout } from '@k8s-sa-auth/testing/adapter-cases';
import fastify, { type FastifyInstance, type FastifyRequest } from 'fastify';

import { type Answer, ask } from './fixtures/ask.ts';
import { signIn, userOf } from './fixtures/users.ts';
import { type FastifyGuard, k8sSaAuth, type K8sSaAuthOptions } from './index.ts';

holdObserveTimeout();

let authority: Authority;
let pod: Pod;
let app: FastifyInstance;
let api: string;
let stranger: string;
let jane: string;
let origin: string;
let decisions: Readonly<Record<string, unknown>>[] = [];
const listen = (decision: unknown): void => void decisions.push(decision as Readonly<Record<string, unknown>>);

before(async () => {
  authority = await createAuthority();
  pod = await authority.pod('shop/shop');
  api = await authority.token('api/api', { audience: 'shop', pod: 'api-0' });
  stranger = await authority.token('else/stranger', { audience: 'shop', pod: 'stranger-0' });
  jane = await signIn('jane');
  subscribe('k8s-sa-auth:decision', listen);
});
after(async () => {
  unsubscribe('k8s-sa-auth:decision', listen);
  await authority.close();
});
beforeEach(() => {
  app = fastify();
  decisions = [];
});
afterEach(async () => {
  await authority.recover();
  await app.close();
});

const users = new WeakMap<object, string>();
const userJwt = async (request: FastifyRequest): Promise<void> => {
  users.set(request, await userOf(request.headers.authorization));
};
const whoami = (request: FastifyRequest): string => `${request.caller?.serviceAccount ?? 'nobody'}, ${users.get(request) ?? 'nobody'}`;

interface Credentials {
  readonly token?: string;
  readonly user?: string;
}

async function send({ token, user }: Credentials, path = '/'): Promise<Answer> {
  const headers = { ...(token && { 'x-client-id': token }), ...(user && { authorization: `Bearer ${user}` }) };
  return ask(origin, path, { headers });
}
const outcome = async (credentials: Credentials, path?: string): Promise<string> => {
  const { status, text } = await send(credentials, path);
  return status === 200 ? text : String(status);
};

async function start(options: Partial<K8sSaAuthOptions>, declare: (guard: FastifyGuard) => void): Promise<void> {
  await app.register(k8sSaAuth, {
    audience: 'shop',
    allow: ['api/api'],
    routes: 'opt-in',
    apiServer: pod.apiServer,
    ...options,
  } as K8sSaAuthOptions);
  await app.register(fastifyAuth);
  declare(app.k8sSaAuth);
  origin = await app.listen({ port: 0, host: '127.0.0.1' });
}

const both = 'Bearer realm="users", ServiceAccount header="X-Client-Id"';

describe('app.k8sSaAuth.or', () => {
  const either = (options: Partial<K8sSaAuthOptions> = {}) =>
    start(options, (guard) => app.get('/', { onRequest: guard.or(userJwt) }, whoami));

  it('lets a service in, and a user', async () => {
    await either();
    assert.equal(await outcome({ token: api }), 'api/api, nobody');
    assert.equal(await outcome({ user: jane }), 'nobody, jane');
  });

  it('leaves requests without a token to the other scheme, and asks nobody about them', async () => {
    await either();
    const { status, headers } = await send({});
    assert.deepEqual([status, headers['www-authenticate']], [401, both]);
    assert.equal(await outcome({ user: 'garbage' }), '401');
    assert.deepEqual(decisions, []);
  });

  it('keeps ServiceAccount tokens from public routes, and leaves what other schemes have in Authorization', async () => {
    await start({ routes: 'all', header: 'authorization' }, () =>
      app.get('/', { config: { k8sSaAuth: false } }, ({ headers }) => headers.authorization ?? 'none'),
    );
    const seen = async (authorization: string): Promise<string> => (await ask(origin, '/', { headers: { authorization } })).text;
    for (const ours of [`Bearer ${api}`, `Bearer  ${api}`, `Bearer ${api} junk`, `Bearer ${api}, Bearer ${api}`, `Token ${api}`]) {
      assert.equal(await seen(ours), 'none');
    }
    for (const theirs of ['Basic b3BzOnM=', `Bearer ${jane}`]) assert.equal(await seen(theirs), theirs);
  });

  it('stands in a route that the registration leaves alone', async () => {
    await start({ routes: 'all' }, (guard) => {
      app.get('/', { config: { k8sSaAuth: false }, onRequest: guard.or(userJwt) }, whoami);
      app.get('/added', { onRequest: guard.or(userJwt) }, whoami);
    });
    assert.equal(await outcome({ user: jane }), 'nobody, jane');
    assert.equal(await outcome({ token: api }), 'api/api, nobody');
    assert.equal(await outcome({ user: jane }, '/added'), '401');
  });

  it('asks a scheme that calls back', async () => {
    await start({ mode: 'observe' }, (guard) => {
      app.get('/passes', { onRequest: guard.or((_request, _reply, done) => done()) }, whoami);
      app.get(
        '/refuses',
        { onRequest: guard.or((_request, _reply, done) => done(Object.assign(new Error('no'), { statusCode: 401 }))) },
        whoami,
      );
    });
    assert.equal(await outcome({}, '/passes'), 'nobody, nobody');
    assert.equal(await outcome({ token: api }, '/refuses'), '401');
  });

  it('asks a scheme that calls back, and returns null meanwhile', async () => {
    const later: Parameters<FastifyGuard['or']>[0] = (_request, _reply, done) => {
      setImmediate(done);
      return null;
    };
    await start({}, (guard) => app.get('/', { onRequest: guard.or(later) }, whoami));
    assert.equal(await outcome({}), 'nobody, nobody');
  });

  it('tells of the route that it stands in, while it observes too', async () => {
    await start({}, (guard) => {
      app.get('/orders/:order', { onRequest: guard.or(userJwt) }, whoami);
      app.get('/seen/:order', { onRequest: guard.with({ allow: 'any', mode: 'observe' }).or(userJwt) }, whoami);
      app.get('/alone/:order', { onRequest: guard }, whoami);
    });
    for (const path of ['/orders/7', '/seen/7', '/alone/7']) await send({ token: api }, path);
    assert.deepEqual(
      decisions.map(({ request }) => request),
      ['/orders/:order', '/seen/:order', '/alone/:order'].map((route) => ({ method: 'GET', route })),
    );
  });

  it('takes a scheme that fails for no pass', async () => {
    await start({}, (guard) => {
      app.get('/rejects', { onRequest: guard.or(() => Promise.reject()) }, whoami);
      app.get('/throws', { onRequest: guard.or(() => JSON.parse('no')) }, whoami);
    });
    assert.equal(await outcome({}, '/rejects'), '500');
    assert.equal(await outcome({}, '/throws'), '500');
  });

  it('lets the other scheme answer', async () => {
    await start({}, (guard) => app.get('/', { onRequest: guard.or(async (_request, reply) => reply.redirect('/sign-in')) }, whoami));
    const { status, headers } = await send({});
    assert.deepEqual([status, headers.location], [302, '/sign-in']);
  });

  it('refuses what is no hook when it is made', async () => {
    await start({}, (guard) => assert.throws(() => guard.or(JSON.parse('{}')), { name: 'TypeError', message: /takes a hook/ }));
  });

  it('refuses a guard that only observes in the place of the other scheme: without a token, everybody would pass', async () => {
    await start({}, (ours) => {
      const observing = ours.with({ allow: 'any', mode: 'observe' });
      assert.equal(observing.enforced, false);
      assert.throws(() => ours.or(observing), { name: 'TypeError', message: /only observes/ });
      const enforcing = ours.with({ allow: 'any' });
      assert.equal(enforcing.enforced, true);
      assert.doesNotThrow(() => observing.or(enforcing));
    });
  });

  it('answers 500 where the guard has no audience', async () => {
    await app.register(k8sSaAuth, { routes: 'opt-in', apiServer: pod.apiServer });
    assert.equal(app.k8sSaAuth.enforced, true);
    app.get('/', { onRequest: app.k8sSaAuth.or(userJwt) }, whoami);
    origin = await app.listen({ port: 0, host: '127.0.0.1' });
    assert.equal(await outcome({ user: jane }), '500');
  });
});

describe('app.k8sSaAuth in app.auth of @fastify/auth', () => {
  const schemes = (guard: FastifyGuard): readonly FastifyAuthFunction[][] => [
    [guard, userJwt],
    [userJwt, guard],
  ];
  const combine = (relation: 'or' | 'and', options: Partial<K8sSaAuthOptions> = {}) =>
    start(options, (guard) => {
      const [first = [], last = []] = schemes(guard);
      app.get('/first', { onRequest: app.auth(first, { relation }) }, whoami);
      app.get('/last', { onRequest: app.auth(last, { relation }) }, whoami);
    });

  it('is one of two, of which one will do', async () => {
    await combine('or');
    assert.equal(await outcome({ token: api }, '/first'), 'api/api, nobody');
    assert.equal(await outcome({ token: api }, '/last'), 'api/api, nobody');
    assert.equal(await outcome({ user: jane }, '/first'), 'nobody, jane');
    assert.equal(await outcome({ user: jane }, '/last'), 'nobody, jane');
    assert.equal(await outcome({ token: stranger, user: jane }, '/first'), 'nobody, jane');
    assert.equal(await outcome({}, '/first'), '401');
    assert.equal(await outcome({}, '/last'), '401');
  });

  it('is one of two, of which both must', async () => {
    await combine('and');
    assert.equal(await outcome({ token: api, user: jane }, '/first'), 'api/api, jane');
    assert.equal(await outcome({ token: api, user: jane }, '/last'), 'api/api, jane');
    assert.equal(await outcome({ token: api }, '/first'), '401');
    assert.equal(await outcome({ token: api }, '/last'), '401');
    assert.equal(await outcome({ user: jane }, '/first'), '401');
    assert.equal(await outcome({ token: stranger, user: jane }, '/last'), '403');
  });

  it('answers services where it stands last; else they get the answer of the last one', async () => {
    await combine('or');
    assert.equal(await outcome({ token: stranger }, '/last'), '403');
    assert.equal(await outcome({ token: stranger }, '/first'), '401');
    authority.fail('outage');
    const token = await authority.token('api/api', { audience: 'shop', pod: 'api-1' });
    const { status, headers } = await send({ token }, '/last');
    assert.equal(status, 503);
    assert.match(String(headers['retry-after']), /^[1-5]$/);
    assert.equal(await outcome({ token }, '/first'), '401');
    assert.equal(await outcome({ user: jane }, '/first'), 'nobody, jane');
    assert.equal(await outcome({ user: jane }, '/last'), 'nobody, jane');
    assert.equal(await outcome({ token, user: jane }, '/first'), 'nobody, jane');
    assert.equal(await outcome({ token, user: jane }, '/last'), 'nobody, jane');
  });

  it('adds its challenge to that of a scheme before it', async () => {
    const asking: FastifyAuthFunction = async (_request, reply) => {
      reply.header('www-authenticate', 'Bearer realm="users"');
      throw new Error('Sign in');
    };
    await start({}, (guard) => {
      app.get('/', { onRequest: app.auth([asking, guard]) }, whoami);
      app.get('/two', { onRequest: app.auth([asking, guard, guard.with({ allow: ['ops/*'] })]) }, whoami);
      app.get('/ours', { onRequest: app.auth([guard, guard.with({ allow: ['ops/*'] })]) }, whoami);
    });
    assert.equal((await send({})).headers['www-authenticate'], both);
    const { headers } = await send({ token: stranger }, '/two');
    assert.equal(headers['www-authenticate'], 'Bearer realm="users", ServiceAccount header="X-Client-Id", error="caller_not_allowed"');
    const { headers: ours } = await send({ token: stranger }, '/ours');
    assert.equal(ours['www-authenticate'], 'ServiceAccount header="X-Client-Id", error="caller_not_allowed"');
  });

  it('fails where its predicate does, rather than pass', async () => {
    await combine('or', { allow: () => Promise.reject() });
    assert.notEqual((await send({ token: api }, '/last')).status, 200);
    assert.notEqual((await send({ token: api }, '/first')).status, 200);
  });

  it('lets all pass while it observes: safe beside a scheme that must pass too, and an open door beside an alternative', async () => {
    await start({ mode: 'observe' }, (guard) => {
      app.get('/and', { onRequest: app.auth([guard, userJwt], { relation: 'and' }) }, whoami);
      app.get('/or', { onRequest: app.auth([userJwt, guard]) }, whoami);
    });
    assert.equal(await outcome({}, '/and'), '401');
    assert.equal(await outcome({ user: jane }, '/and'), 'nobody, jane');
    assert.equal(await outcome({}, '/or'), 'nobody, nobody');
  });
});
