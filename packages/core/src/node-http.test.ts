// An adapter in a few lines, proved by the cases that every adapter must pass; and the recipe for `upgrade`, which middleware never sees.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type IncomingMessage, request, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { json } from 'node:stream/consumers';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import { runAdapterCases } from '@k8s-sa-auth/testing/adapter-cases';

import { AuthError, type AuthorizedRequest, type Caller, ClusterError, createGuard, type Guard, mergeHeader } from './index.ts';

type Params = AuthorizedRequest['params'];

// The adapter: who calls, with what belongs on the response set on it before anything else is done.
async function admit(guard: Guard, req: IncomingMessage, res: ServerResponse, params?: Params): Promise<Caller | undefined> {
  try {
    const caller = await guard.check(req, undefined, params);
    if (caller !== undefined) {
      for (const [name, value] of Object.entries(guard.responseHeaders)) res.setHeader(name, mergeHeader(name, res.getHeader(name), value));
    }
    return caller;
  } catch (error) {
    if (error instanceof AuthError || error instanceof ClusterError) {
      for (const [name, value] of Object.entries(error.headers)) res.setHeader(name, value);
    }
    throw error;
  }
}

function answer(res: ServerResponse, status: number, text: string): void {
  res.statusCode = status;
  res.end(text);
}

runAdapterCases({
  name: 'node:http',
  async start({ guard: options, ops, orders, errorHandler, handle }) {
    const guard = createGuard(options);
    const opsGuard = guard.with(ops);
    const ordersGuard = guard.with(orders);

    async function route(req: IncomingMessage, res: ServerResponse): Promise<void> {
      res.setHeader('vary', 'Origin');
      const { 'x-cache-control': cacheControl } = req.headers;
      if (cacheControl !== undefined) res.setHeader('cache-control', cacheControl);
      const path = `${req.method === 'HEAD' ? 'GET' : req.method} ${req.url?.split('?', 1)[0]}`;
      let caller: Caller | undefined;
      if (path.endsWith(' /guarded') || path.endsWith(' /both')) caller = await admit(guard, req, res);
      if (path.endsWith(' /ops') || path.endsWith(' /both')) caller = await admit(opsGuard, req, res);
      const [, encoded] = /^GET \/orders\/([^/]+)$/.exec(path) ?? [];
      const order = encoded === undefined ? undefined : decodeURIComponent(encoded);
      if (order !== undefined) caller = await admit(ordersGuard, req, res, { order });
      if (order !== undefined) answer(res, 200, JSON.stringify(handle(req, caller, { order })));
      else if (path === 'POST /guarded') answer(res, 200, JSON.stringify(handle(req, caller, await json(req))));
      else if (/^GET \/(guarded|ops|both|public)$/.test(path)) answer(res, 200, JSON.stringify(handle(req, caller)));
      else answer(res, 404, 'Not found');
    }

    const server = createServer((req, res) => {
      route(req, res).catch((error: unknown) => {
        const isRefusal = error instanceof AuthError || error instanceof ClusterError;
        const text = isRefusal ? error.message : 'Internal Server Error';
        answer(res, isRefusal ? error.status : 500, errorHandler === 'custom' ? 'failed' : text);
      });
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    return {
      url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
      async close() {
        server.closeAllConnections();
        server.close();
        await guard.close();
      },
    };
  },
});

describe('guard.check in an upgrade listener', () => {
  let authority: Authority;
  let pod: Pod;
  let guard: Guard;
  let port = 0;
  let upgraded: (Caller | undefined)[] = [];
  const server = createServer();

  server.on('upgrade', (req, socket) => {
    socket.on('error', () => undefined);
    guard.check(req).then(
      (caller) => {
        upgraded.push(caller);
        socket.end('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n');
      },
      (error: unknown) => {
        const isRefusal = error instanceof AuthError || error instanceof ClusterError;
        const headers = Object.entries({ ...(isRefusal && error.headers), connection: 'close', 'content-length': '0' });
        const lines = headers.map(([name, value]) => `${name}: ${value}\r\n`);
        socket.end(`HTTP/1.1 ${isRefusal ? error.status : 500} Refused\r\n${lines.join('')}\r\n`);
      },
    );
  });

  before(async () => {
    authority = await createAuthority();
    pod = await authority.pod('store/store');
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    ({ port } = server.address() as AddressInfo);
  });
  after(async () => {
    server.close();
    await authority.close();
  });
  beforeEach(() => {
    upgraded = [];
    guard = createGuard({
      audience: 'store',
      allow: ['api/api'],
      apiServer: pod.apiServer,
      logger: { info: () => {}, warn: () => {}, error: () => {} },
    });
  });
  afterEach(async () => {
    await authority.recover();
    await guard.close();
  });

  function upgrade(headers: Readonly<Record<string, string>>): Promise<IncomingMessage> {
    return new Promise((resolve, reject) => {
      const outgoing = request({ host: '127.0.0.1', port, headers: { connection: 'Upgrade', upgrade: 'echo', ...headers } });
      outgoing.on('upgrade', (res, socket) => {
        socket.destroy();
        resolve(res);
      });
      outgoing.on('response', (res) => {
        res.resume();
        resolve(res);
      });
      outgoing.on('error', reject);
      outgoing.end();
    });
  }

  it('upgrades the connection of a good caller', async () => {
    const token = await authority.token('api/api', { audience: 'store', pod: 'api-0' });
    const { statusCode } = await upgrade({ 'x-client-id': token });
    assert.equal(statusCode, 101);
    assert.equal(upgraded[0]?.serviceAccount, 'api/api');
  });

  it('answers 401 with the challenge where there is no token', async () => {
    const { statusCode, headers } = await upgrade({});
    assert.equal(statusCode, 401);
    assert.equal(headers['www-authenticate'], 'ServiceAccount header="X-Client-Id"');
    assert.equal(headers['cache-control'], 'no-store');
    assert.deepEqual(upgraded, []);
  });

  it('answers 403 to a stranger', async () => {
    const token = await authority.token('else/stranger', { audience: 'store', pod: 'stranger-0' });
    const { statusCode, headers } = await upgrade({ 'x-client-id': token });
    assert.equal(statusCode, 403);
    assert.equal(headers['www-authenticate'], 'ServiceAccount header="X-Client-Id", error="caller_not_allowed"');
    assert.deepEqual(upgraded, []);
  });

  it('answers 503 while the cluster is away', async () => {
    authority.fail('outage');
    const token = await authority.token('api/api', { audience: 'store', pod: 'api-0' });
    const { statusCode, headers } = await upgrade({ 'x-client-id': token });
    assert.equal(statusCode, 503);
    assert.match(headers['retry-after'] ?? '', /^[1-5]$/);
    assert.deepEqual(upgraded, []);
  });
});

describe('guard.hasToken', () => {
  let authority: Authority;
  let guard: Guard;
  const withHeaders = (...rawHeaders: readonly string[]): Parameters<Guard['hasToken']>[0] => ({
    headers: {},
    rawHeaders: [...rawHeaders],
  });

  before(async () => {
    authority = await createAuthority();
    const { apiServer } = await authority.pod('store/store');
    guard = createGuard({ audience: 'store', allow: ['api/api'], apiServer });
  });
  after(async () => {
    await guard.close();
    await authority.close();
  });

  it('sees whatever stands in the header, good or bad', () => {
    assert.equal(guard.hasToken(withHeaders('X-Client-Id', 'garbage')), true);
    assert.equal(guard.hasToken(withHeaders('x-client-id', '', 'X-CLIENT-ID', '')), true);
  });

  it('sees none where the header is absent or empty, or is another', () => {
    assert.equal(guard.hasToken(withHeaders()), false);
    assert.equal(guard.hasToken(withHeaders('X-Client-Id', '')), false);
    assert.equal(guard.hasToken(withHeaders('Authorization', 'Bearer garbage')), false);
  });

  it('tells its tokens from others in Authorization, by what they claim, and takes no other scheme’s off a public route', async (t) => {
    const { apiServer } = await authority.pod('store/store');
    const bearers = createGuard({ audience: 'store', allow: ['api/api'], header: 'authorization', apiServer });
    t.after(() => bearers.close());
    const token = await authority.token('api/api', { audience: 'store', pod: 'api-0' });
    const elsewhere = await authority.token('api/api', { audience: 'else', pod: 'api-0' });
    const [header = '', payload = ''] = token.split('.');
    const claims = { iss: 'https://login.example', aud: 'store', exp: 2e9 };
    const user = `${header}.${Buffer.from(JSON.stringify(claims)).toString('base64url')}.c2ln`;
    const shows = (...values: readonly string[]): boolean => {
      const shown = withHeaders(...values.flatMap((value) => ['Authorization', value]));
      const isShown = bearers.hasToken(shown);
      bearers.discard(shown);
      assert.equal(shown.rawHeaders.length, isShown ? 0 : values.length * 2);
      return isShown;
    };
    const encode = (value: object): string => Buffer.from(JSON.stringify(value)).toString('base64url');
    const secret = `${header}.${encode({ iss: 'kubernetes/serviceaccount', 'kubernetes.io/serviceaccount/namespace': 'api' })}.c2ln`;
    const endless = `${header}.${encode({ 'kubernetes.io': { namespace: 'api', serviceaccount: { name: 'api' } } })}.c2ln`;
    const client = `${header}.${encode({ aud: 'kubernetes', groups: ['kubernetes.io'], azp: 'kubernetes.io' })}.c2ln`;
    for (const ours of [
      `Bearer ${token}`,
      `bearer ${header}.${payload}.Zm9yZ2Vk`,
      `Bearer ${elsewhere}`,
      `Bearer ${secret}`,
      `Bearer ${endless}`,
      `Bearer  ${token}`,
      `Bearer ${token}, Bearer ${token}`,
      `Bearer ${token} junk`,
      `Bearer "${token}"`,
      `Bearer: ${token}`,
      `Basic b3BzOnM=, Bearer ${token}`,
      `Token ${token}`,
      token,
      `Bearer ${user}, x`,
      `Bearer ${user},${user}`,
    ]) {
      assert.equal(shows(ours), true, ours);
    }
    assert.equal(shows(`Bearer ${user}`, `Bearer ${user}`), true);
    for (const theirs of [
      `Bearer ${user}`,
      `Bearer ${client}`,
      'Bearer opaque',
      `Bearer ${header}.!.`,
      'Basic b3BzOnM=',
      'Digest username="kubernetes.io", realm="x", uri="/", response="6629fae49393a05397450978507c4ef1"',
      'Bearer ',
      '',
    ]) {
      assert.equal(shows(theirs), false, theirs);
    }
  });

  it('takes nothing off, and sees what a guard has taken off', async () => {
    const token = await authority.token('api/api', { audience: 'store', pod: 'api-0' });
    const req = withHeaders('X-Client-Id', token);
    assert.equal(guard.hasToken(req), true);
    assert.deepEqual(req.rawHeaders, ['X-Client-Id', token]);
    await guard.check(req);
    assert.deepEqual(req.rawHeaders, []);
    assert.equal(guard.hasToken(req), true);
  });

  it('stands beside what tells whether passing proves anything', () => {
    assert.equal(guard.enforced, true);
    assert.equal(guard.with({ allow: 'any', mode: 'observe' }).enforced, false);
  });
});
