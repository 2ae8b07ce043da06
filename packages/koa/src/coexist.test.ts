import assert from 'node:assert/strict';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { once } from 'node:events';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import { holdObserveTimeout } from '@k8s-sa-auth/testing/adapter-cases';
import { Router } from '@koa/router';
import Koa, { type Context, type Middleware } from 'koa';

import { type Answer, ask } from './fixtures/ask.ts';
import { signIn, userOf } from './fixtures/users.ts';
import { type GuardOptions, k8sSaAuth, type KoaGuard } from './index.ts';

holdObserveTimeout();

let authority: Authority;
let pod: Pod;
let app: Koa;
let guard: KoaGuard | undefined;
let server: Server | undefined;
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
  app = new Koa();
  app.silent = true;
  decisions = [];
});
afterEach(async () => {
  server?.close().closeAllConnections();
  await authority.recover();
  await guard?.close();
});

interface Credentials {
  readonly token?: string;
  readonly user?: string;
}

const userJwt: Middleware = async (ctx, next) => {
  ctx.state['user'] = await userOf(ctx.get('authorization'));
  await next();
};
const answer = (ctx: Pick<Context, 'body' | 'state'>): void => {
  ctx.body = `${ctx.state['caller']?.serviceAccount ?? 'nobody'}, ${ctx.state['user'] ?? 'nobody'}`;
};

async function send({ token, user }: Credentials, path = '/'): Promise<Answer> {
  const headers = { ...(token && { 'x-client-id': token }), ...(user && { authorization: `Bearer ${user}` }) };
  return ask(origin, path, { headers });
}
const outcome = async (credentials: Credentials, path?: string): Promise<string> => {
  const { status, text } = await send(credentials, path);
  return status === 200 ? text : String(status);
};

async function start(options: Partial<GuardOptions>, declare: (guard: KoaGuard) => void): Promise<void> {
  guard = k8sSaAuth({ audience: 'shop', allow: ['api/api'], apiServer: pod.apiServer, ...options });
  declare(guard);
  server = app.listen(0, '127.0.0.1');
  await once(server, 'listening');
  // The server listens on a port.
  origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

describe('guard.or', () => {
  const either = (options: Partial<GuardOptions> = {}): Promise<void> => start(options, (ours) => app.use(ours.or(userJwt)).use(answer));

  it('lets a service in, and a user', async () => {
    await either();
    assert.equal(await outcome({ token: api }), 'api/api, nobody');
    assert.equal(await outcome({ user: jane }), 'nobody, jane');
  });

  it('leaves requests without a token to the other scheme, and asks nobody about them', async () => {
    await either();
    const { status, headers } = await send({});
    assert.deepEqual([status, headers['www-authenticate']], [401, 'Bearer realm="users", ServiceAccount header="X-Client-Id"']);
    assert.equal(await outcome({ user: 'garbage' }), '401');
    assert.deepEqual(decisions, []);
  });

  it('stands first in a route of a wrapped router, and decides there in the place of the guard around it', async () => {
    await start({}, (ours) => {
      const router = new Router();
      router.use((_ctx, next) => next());
      router.get('/orders/:order', ours.or(userJwt), answer);
      router.get('/internal', answer);
      app.use(ours.wrap(router));
    });
    assert.equal(await outcome({ user: jane }, '/orders/7'), 'nobody, jane');
    assert.equal(await outcome({ token: api }, '/orders/7'), 'api/api, nobody');
    assert.partialDeepStrictEqual(decisions, [{ request: { route: '/orders/:order' } }]);
    assert.equal(await outcome({}, '/orders/7'), '401');
    assert.equal(await outcome({ token: stranger }, '/orders/7'), '403');
    assert.equal(await outcome({ user: jane }, '/internal'), '401');
    assert.equal(await outcome({ token: api }, '/internal'), 'api/api, nobody');
  });

  it('lets all that a scheme awaits happen before it is left', async () => {
    const steps: string[] = [];
    await start({}, (ours) => {
      const router = new Router();
      const around: Middleware = async (_ctx, next) => {
        steps.push('before');
        await next();
        steps.push('behind');
      };
      router.get('/', ours.or(around), (ctx) => {
        steps.push('handler');
        ctx.body = '';
      });
      app.use(ours.wrap(router));
    });
    await send({});
    assert.deepEqual(steps, ['before', 'handler', 'behind']);
  });

  it('takes a scheme that fails, or goes no further, for no pass', async () => {
    await start({}, (ours) => {
      const observing = ours.with({ allow: 'any', mode: 'observe' });
      const router = new Router();
      router.get(
        '/rejects',
        ours.or(() => Promise.reject(new Error('no'))),
        answer,
      );
      router.get(
        '/throws',
        observing.or(() => JSON.parse('no')),
        answer,
      );
      router.get(
        '/stops',
        ours.or((ctx) => ctx.redirect('/sign-in')),
        answer,
      );
      app.use(ours.wrap(router));
    });
    assert.equal(await outcome({}, '/rejects'), '500');
    assert.equal(await outcome({ token: api }, '/throws'), '500');
    assert.equal(await outcome({}, '/stops'), '302');
  });

  it('refuses what is no middleware when it is made', async () => {
    await start({}, (ours) => assert.throws(() => ours.or(JSON.parse('{}')), { name: 'TypeError', message: /takes middleware/ }));
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
});

describe('the guard and another scheme in a chain', () => {
  it('want both', async () => {
    await start({}, (ours) => app.use(ours).use(userJwt).use(answer));
    assert.equal(await outcome({ token: api, user: jane }), 'api/api, jane');
    assert.equal(await outcome({ token: api }), '401');
    assert.equal(await outcome({ user: jane }), '401');
    assert.equal(await outcome({ token: stranger, user: jane }), '403');
  });

  it('leave the other one alone to decide while the guard observes', async () => {
    await start({ mode: 'observe' }, (ours) => app.use(ours).use(userJwt).use(answer));
    assert.equal(await outcome({ user: jane }), 'nobody, jane');
    assert.equal(await outcome({ token: api }), '401');
  });
});
