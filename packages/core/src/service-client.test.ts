import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { request as httpRequest } from 'node:http';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';
import { inspect } from 'node:util';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';

import { serve, type Service } from './fixtures/service.ts';
import { type ClientOptions, createServiceClient, type ServiceClient, type TargetOptions } from './service-client.ts';

let authority: Authority;
let api: Pod;
let token: string;
let shop: Service;
let foreign: Service;
let clients: ServiceClient[];

function clientOf(...targets: TargetOptions[]): ServiceClient {
  const client = createServiceClient({ targets, logger: { info: () => {}, warn: () => {}, error: () => {} } });
  clients.push(client);
  return client;
}

const shopClient = (): ServiceClient => clientOf({ origin: shop.origin, tokenFile: api.tokenFile('shop') });

before(async () => {
  authority = await createAuthority();
  api = await authority.pod('api/api', { tokens: { shop: 'shop', bank: 'bank' } });
});
after(() => authority.close());

beforeEach(async () => {
  clients = [];
  [shop, foreign] = await Promise.all([serve(), serve()]);
  token = readFileSync(api.tokenFile('shop'), 'utf8');
});
afterEach(async () => {
  await Promise.all([...clients, shop, foreign].map((one) => one.close()));
});

describe('createServiceClient, its options', () => {
  const rejects = (options: unknown, message: RegExp): void =>
    assert.throws(() => createServiceClient(options as ClientOptions), { name: 'TypeError', message });

  it('requires targets', () => rejects({}, /"targets" is required/));
  it('refuses no targets', () => rejects({ targets: [] }, /"targets" is required/));
  it('refuses an unknown option', () => rejects({ targets: [], target: 1 }, /does not know "target"/));
  it('refuses an unknown option of a target', () =>
    rejects({ targets: [{ origin: 'http://x', tokenFile: '/t', audience: 'x' }] }, /does not know "audience"/));
  it('refuses a fetch that is none', () =>
    rejects({ targets: [{ origin: 'http://x', tokenFile: '/t' }], fetch: 'fetch' }, /"fetch" takes/));
  it('requires an origin', () => {
    rejects({ targets: [{ tokenFile: '/t' }] }, /"origin" is required/);
    rejects({ targets: [{ origin: [], tokenFile: '/t' }] }, /"origin" is required/);
  });
  it('requires a token file', () => {
    rejects({ targets: [{ origin: 'http://x' }] }, /"tokenFile" is required/);
    rejects({ targets: [{ origin: 'http://x', tokenFile: '' }] }, /"tokenFile" is required/);
  });
  it('refuses a path in an origin', () =>
    rejects({ targets: [{ origin: 'http://x/a', tokenFile: '/t' }] }, /"http:\/\/x\/a" is not an origin/));
  it('refuses a user in an origin', () => rejects({ targets: [{ origin: 'http://u@x', tokenFile: '/t' }] }, /is not an origin/));
  it('refuses a query or a fragment in an origin, though it is empty', () => {
    rejects({ targets: [{ origin: 'http://x?', tokenFile: '/t' }] }, /is not an origin/);
    rejects({ targets: [{ origin: 'http://x/#', tokenFile: '/t' }] }, /is not an origin/);
  });
  it('refuses another scheme', () => rejects({ targets: [{ origin: 'ftp://x', tokenFile: '/t' }] }, /is not an origin/));
  it('refuses a host alone', () => rejects({ targets: [{ origin: 'app.shop', tokenFile: '/t' }] }, /is not an origin/));
  it('refuses another header', () =>
    rejects(
      { targets: [{ origin: 'http://x', tokenFile: '/t', header: 'cookie' }] },
      /"header" of the target http:\/\/x is .*, not "cookie"/,
    ));
  it('refuses a pattern', () => rejects({ targets: [{ origin: 'http://*.shop', tokenFile: '/t' }] }, /is not an origin: .*no pattern/));
  it('refuses an origin that is named twice, in another spelling too', () =>
    rejects(
      {
        targets: [
          { origin: 'http://x', tokenFile: '/a' },
          { origin: 'HTTP://X:80/', tokenFile: '/b' },
        ],
      },
      /http:\/\/x is named twice/,
    ));
});

describe('a service client', () => {
  it('gives headers for other clients', async () => {
    const headers = await shopClient().target(`${shop.origin}/any/path`).headers();
    await new Promise((resolve) => httpRequest(shop.origin, { headers }, resolve).end());
    assert.deepEqual(headers, { 'x-client-id': token });
    assert.equal(shop.arrived[0]?.token, token);
  });

  it('knows no target of another origin', () => {
    assert.throws(() => shopClient().target(foreign.origin), { name: 'TypeError', message: /is not named in "targets"/ });
    assert.throws(() => shopClient().target('not a url'), TypeError);
  });

  it('tells the state of each target, and no token', async () => {
    const client = shopClient();
    await client.ready();
    const [status] = client.status();
    assert.equal(status?.audience, 'shop');
    assert.deepEqual(status.origins, [shop.origin]);
    assert.ok((status.expiresAt?.getTime() ?? 0) > Date.now());
    assert.ok((status.reloadedAt?.getTime() ?? 0) <= Date.now());
    assert.equal(status.error, undefined);
    assert.ok(!inspect(client, { depth: 20, showHidden: true }).includes(token));
    assert.ok(!JSON.stringify([client, client.status()]).includes(token));
  });

  it('is ready when every target has a live token, and says which has none', async () => {
    const client = clientOf(
      { origin: shop.origin, tokenFile: api.tokenFile('shop') },
      { origin: foreign.origin, tokenFile: '/absent/token' },
    );
    await assert.rejects(client.ready(AbortSignal.abort(new Error('too long'))), { message: 'too long' });
    assert.equal((await shopClient().ready(), client.status().length), 2);
    const pod = await authority.pod('api/api', { tokens: { shop: 'shop', wrong: 'https://kubernetes.default.svc.cluster.local' } });
    const half = clientOf(
      { origin: shop.origin, tokenFile: pod.tokenFile('shop') },
      { origin: foreign.origin, tokenFile: pod.tokenFile('wrong') },
    );
    await assert.rejects(half.ready(), { name: 'TokenFileError', path: pod.tokenFile('wrong') });
  });

  it('sends nothing after close', async () => {
    const client = shopClient();
    await client.serviceFetch(shop.origin);
    await client.close();
    await assert.rejects(client.serviceFetch(shop.origin), { name: 'TokenFileError', message: /is closed/ });
  });

  it('is closed where its scope ends', async () => {
    const client = shopClient();
    await client.serviceFetch(shop.origin);
    // What `await using` does.
    await client[Symbol.asyncDispose]();
    await assert.rejects(client.serviceFetch(shop.origin), { name: 'TokenFileError', message: /is closed/ });
  });
});
