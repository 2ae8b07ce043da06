import assert from 'node:assert/strict';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { once } from 'node:events';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import { holdObserveTimeout } from '@k8s-sa-auth/testing/adapter-cases';
import express, { type Express, type Request, type RequestHandler } from 'express';

import { type Answer, ask } from './fixtures/ask.ts';
import { signIn, userOf } from './fixtures/users.ts';
import { type ExpressGuard, type GuardOptions, k8sSaAuth } from './index.ts';

holdObserveTimeout();

let authority: Authority;
let pod: Pod;
let app: Express;
let guard: ExpressGuard | undefined;
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
  // Silences what Express prints of each error.
  app = express().set('env', 'test');
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

const users = new WeakMap<object, string>();
const userJwt: RequestHandler = async (request, _response, next) => {
  users.set(request, await userOf(request.headers.authorization));
  next();
};
const whoami = (request: Request): string => `${request.caller?.serviceAccount ?? 'nobody'}, ${users.get(request) ?? 'nobody'}`;
const answer: RequestHandler = (request, response) => void response.send(whoami(request));

async function send({ token, user }: Credentials, path = '/'): Promise<Answer> {
  const headers = { ...(token && { 'x-client-id': token }), ...(user && { authorization: `Bearer ${user}` }) };
  return ask(origin, path, { headers });
}
const outcome = async (credentials: Credentials, path?: string): Promise<string> => {
  const { status, text } = await send(credentials, path);
  return status === 200 ? text : String(status);
};

async function start(options: Partial<GuardOptions>, declare: (guard: ExpressGuard) => void): Promise<void> {
  guard = k8sSaAuth({ audience: 'shop', allow: ['api/api'], apiServer: pod.apiServer, ...options });
  declare(guard);
  server = createServer(app);
  await once(server.listen(0, '127.0.0.1'), 'listening');
  // The server listens on a port.
  origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

describe('guard.or', () => {
  const either = (options: Partial<GuardOptions> = {}): Promise<void> => start(options, (ours) => app.get('/', ours.or(userJwt), answer));

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

  it('fails where nobody may be told who called, while it observes too', async () => {
    app.use((request, _response, next) => {
      Object.defineProperty(request, 'caller', {
        set() {
          throw new Error('no');
        },
      });
      next();
    });
    await start({ mode: 'observe' }, (ours) =>
      app.get(
        '/',
        ours.or((_request, _response, next) => next()),
        answer,
      ),
    );
    assert.equal(await outcome({ token: api }), '500');
  });

  it('tells of the route that it stands in, while it observes too', async () => {
    await start({}, (ours) => {
      app.get('/orders/:order', ours.or(userJwt), answer);
      app.get('/seen/:order', ours.with({ allow: 'any', mode: 'observe' }).or(userJwt), answer);
    });
    for (const path of ['/orders/7', '/seen/7']) await send({ token: api }, path);
    assert.deepEqual(
      decisions.map(({ request }) => request),
      ['/orders/:order', '/seen/:order'].map((route) => ({ method: 'GET', route })),
    );
  });

  it('knows the route where it stands in it, for events and for authorize', async () => {
    await start({}, (ours) => app.get('/orders/:order', ours.or(userJwt), answer));
    assert.equal(await outcome({ token: api }, '/orders/7'), 'api/api, nobody');
    assert.partialDeepStrictEqual(decisions, [{ request: { route: '/orders/:order' } }]);
  });

  it('stands before a router, for all below', async () => {
    await start({}, (ours) => app.use('/shop', ours.or(userJwt), express.Router().get('/orders', answer)));
    assert.equal(await outcome({ user: jane }, '/shop/orders'), 'nobody, jane');
    assert.equal(await outcome({ token: api }, '/shop/orders'), 'api/api, nobody');
    assert.equal(await outcome({}, '/shop/orders'), '401');
  });

  it('takes a scheme that fails for no pass, while it observes too', async () => {
    await start({}, (ours) => {
      const observing = ours.with({ allow: 'any', mode: 'observe' });
      const rejects: RequestHandler = () => Promise.reject();
      const throws: RequestHandler = () => {
        throw Object.assign(new Error('no'), { status: 401 });
      };
      const says: RequestHandler = () => Promise.reject('route');
      app.get('/rejects', ours.or(rejects), answer).get('/throws', ours.or(throws), answer).get('/says', ours.or(says), answer);
      app.get('/late/rejects', observing.or(rejects), answer).get('/late/throws', observing.or(throws), answer);
    });
    assert.equal(await outcome({}, '/rejects'), '500');
    assert.equal(await outcome({}, '/throws'), '401');
    assert.equal(await outcome({}, '/says'), '500');
    assert.equal(await outcome({ token: api }, '/late/rejects'), '500');
    assert.equal(await outcome({ token: api }, '/late/throws'), '401');
  });

  it('lets the other scheme answer, or go to the next route', async () => {
    await start({}, (ours) => {
      app.get(
        '/answers',
        ours.or((_request, response) => response.writeHead(302, { location: '/sign-in' }).end()),
        answer,
      );
      app.get(
        '/',
        ours.or((_request, _response, next) => next('route')),
        answer,
      );
      app.get('/', (_request, response) => void response.send('the next route'));
    });
    const { status, headers } = await send({}, '/answers');
    assert.deepEqual([status, headers.location], [302, '/sign-in']);
    assert.equal(await outcome({}), 'the next route');
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
    await start({}, (ours) => app.get('/', ours, userJwt, answer));
    assert.equal(await outcome({ token: api, user: jane }), 'api/api, jane');
    assert.equal(await outcome({ token: api }), '401');
    assert.equal(await outcome({ user: jane }), '401');
    assert.equal(await outcome({ token: stranger, user: jane }), '403');
  });

  it('leave the other one alone to decide while the guard observes', async () => {
    await start({ mode: 'observe' }, (ours) => app.get('/', ours, userJwt, answer));
    assert.equal(await outcome({ user: jane }), 'nobody, jane');
    assert.equal(await outcome({ token: api }), '401');
  });
});
