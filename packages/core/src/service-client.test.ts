import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { request as httpRequest } from 'node:http';
import { after, afterEach, before, beforeEach, describe, it, mock } from 'node:test';
import { inspect } from 'node:util';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';

import { mount, type Mount } from './fixtures/mount.ts';
import { refuse, serve, type Service } from './fixtures/service.ts';
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

const until = async (isDone: () => boolean): Promise<void> => {
  while (!isDone()) await new Promise(setImmediate);
};

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

  it('says what is wrong with a file, and not with one whose last good token is sent, where a signal ends the wait for it', async () => {
    const kept = mount(token);
    const client = clientOf({ origin: shop.origin, tokenFile: kept.path }, { origin: foreign.origin, tokenFile: '/absent/token' });
    await client.target(shop.origin).headers();
    kept.replace('garbage');
    // The file is read again.
    mock.timers.enable({ apis: ['Date'], now: Date.now() + 300_000 });
    try {
      await client.target(shop.origin).headers();
      await until(() => client.status().every(({ error }) => error !== undefined));
      const reason = new DOMException('The operation was aborted due to timeout', 'TimeoutError');
      const controller = new AbortController();
      const waiting = client.ready(controller.signal);
      controller.abort(reason);
      await assert.rejects(waiting, {
        name: 'TokenFileError',
        code: 'token_file_unreadable',
        path: '/absent/token',
        message: /^\/absent\/token does not exist\./,
        cause: reason,
      });
      await assert.rejects(client.serviceFetch(foreign.origin, { signal: controller.signal }), (error) => error === reason);
    } finally {
      mock.timers.reset();
      kept.remove();
    }
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

describe('a client whose token is refused', () => {
  interface Line {
    readonly level: string;
    readonly message: string;
    readonly kind?: string;
    readonly expiresAt?: Date;
  }

  let mounted: Mount;
  let newer: string;
  let client: ServiceClient;
  let lines: Line[];

  const mint = (expirationSeconds: number): Promise<string> =>
    authority.token('api/api', { audience: 'shop', pod: 'api-0', expirationSeconds });
  const expiryOf = (jwt: string): number =>
    (JSON.parse(Buffer.from(jwt.split('.')[1] ?? '', 'base64url').toString()) as { exp: number }).exp * 1_000;
  const get = async (init?: RequestInit): Promise<number> => (await client.serviceFetch(shop.origin, init)).status;
  const levels = (): readonly string[] => lines.map(({ level }) => level);
  const refusedSince = (): Date | undefined => client.status()[0]?.refusedSince;

  beforeEach(async () => {
    token = await mint(600);
    newer = await mint(1_200);
    mounted = mount(token);
    lines = [];
    const add =
      (level: string) =>
      (details: object, message: string): void =>
        void lines.push({ ...details, level, message });
    const logger = { info: add('info'), warn: add('warn'), error: add('error') };
    client = createServiceClient({ targets: [{ origin: shop.origin, tokenFile: mounted.path }], logger });
    clients.push(client);
    await client.ready();
  });
  afterEach(() => {
    mock.timers.reset();
    mounted.remove();
  });

  it('says so once, with what it knows of the token, and when it is over', async () => {
    const issuedAtMs = client.status()[0]?.issuedAt?.getTime() ?? 0;
    mock.timers.enable({ apis: ['Date'], now: issuedAtMs + 40_000 });
    shop.answer = refuse('clientId');
    for (let time = 0; time < 3; time++) assert.equal(await get(), 403);
    await until(() => lines.length > 0);
    mock.timers.tick(20_000);
    await get();
    assert.deepEqual(refusedSince(), new Date(issuedAtMs + 40_000));
    shop.answer = refuse('notAllowed');
    await get();
    await get();
    assert.equal(refusedSince(), undefined);
    assert.deepEqual(lines, [
      {
        level: 'warn',
        kind: 'token_refused',
        origin: shop.origin,
        tokenFile: mounted.path,
        status: 403,
        code: 'invalid_token',
        header: 'x-client-id',
        audience: 'shop',
        issuedAt: new Date(issuedAtMs),
        expiresAt: new Date(expiryOf(token)),
        message: `${shop.origin} answers 403 invalid_token to the token in ${mounted.path} (audience "shop", issued 40 s ago). Its log has the reason: most often its guard has another audience, or its cluster does not know this pod`,
      },
      {
        level: 'info',
        kind: 'token_refused',
        origin: shop.origin,
        tokenFile: mounted.path,
        message: `${shop.origin} no longer refuses the token in ${mounted.path}`,
      },
    ]);
  });

  it('says what a 401 without an error code may mean, and repeats nothing of the answer', async () => {
    shop.answer = ({ headers }, response) => {
      const challenge = `Bearer realm="${String(headers['x-client-id'])}", error="made_up", error_description="their words"`;
      response.writeHead(401, { 'www-authenticate': challenge }).end();
    };
    assert.equal(await get(), 401);
    await until(() => lines.length > 0);
    const told = JSON.stringify(lines);
    assert.match(
      lines[0]?.message ?? '',
      / answers 401 to the token in .*, without saying invalid_token: does it read another header than x-client-id, /,
    );
    for (const theirs of [token, 'made_up', 'their words', 'realm']) assert.ok(!told.includes(theirs), theirs);
    assert.ok(!('code' in (lines[0] ?? {})));
  });

  it('says nothing of a caller who may not call, nor of a refusal that a newer token ended', async () => {
    for (const how of ['notAllowed', 'scope', 'plain'] as const) {
      shop.answer = refuse(how);
      assert.equal(await get(), 403);
    }
    mounted.replace(newer);
    shop.answer = refuse('clientId', () => newer);
    assert.equal(await get(), 200);
    shop.answer = refuse('clientId');
    await get();
    await until(() => lines.length > 0);
    assert.deepEqual(levels(), ['warn']);
  });

  it('says so where the newer token is refused too, of that one', async () => {
    mounted.replace(newer);
    shop.answer = refuse('clientId');
    assert.equal(await get(), 403);
    await until(() => lines.length > 0);
    assert.deepEqual(shop.tokens(), [token, newer]);
    assert.equal(lines[0]?.expiresAt?.getTime(), expiryOf(newer));
  });

  it('says so where the body cannot be sent again, and has looked at the file by then', async () => {
    shop.answer = refuse('clientId', () => newer);
    const upload = (): Promise<number> => get({ method: 'POST', body: new Blob(['one']).stream(), duplex: 'half' });
    mounted.replace(newer);
    assert.equal(await upload(), 403);
    await until(() => client.status()[0]?.expiresAt?.getTime() === expiryOf(newer));
    assert.equal(await upload(), 200);
    shop.answer = refuse('clientId');
    assert.equal(await upload(), 403);
    await until(() => lines.length > 0);
    assert.deepEqual(levels(), ['warn']);
  });

  it('takes an outage of the service for no sign that it is over', async () => {
    shop.answer = refuse('clientId');
    await get();
    await until(() => lines.length > 0);
    shop.answer = (_request, response) => void response.writeHead(503).end();
    assert.equal(await get(), 503);
    assert.ok(refusedSince() !== undefined);
    shop.answer = (_request, response) => void response.end('ok');
    await get();
    assert.deepEqual(levels(), ['warn', 'info']);
  });

  it('says so once in 10 s at most where one replica refuses what another takes', async () => {
    mock.timers.enable({ apis: ['Date'], now: Date.now() });
    const flap = async (): Promise<void> => {
      shop.answer = refuse('clientId');
      await get();
      await until(() => refusedSince() !== undefined);
      shop.answer = (_request, response) => void response.end('ok');
      await get();
    };
    await flap();
    mock.timers.tick(9_999);
    await flap();
    assert.deepEqual(levels(), ['warn', 'info']);
    mock.timers.tick(1);
    await flap();
    assert.deepEqual(levels(), ['warn', 'info', 'warn', 'info']);
    // The clock was put back.
    mock.timers.setTime(Date.now() - 60_000);
    await flap();
    assert.equal(lines.length, 6);
  });

  it('says nothing once it is closed', async () => {
    shop.answer = (request, response) => {
      void client.close();
      refuse('clientId')(request, response);
    };
    assert.equal(await get(), 403);
    for (let turn = 0; turn < 3; turn++) await new Promise(setImmediate);
    assert.deepEqual(lines, []);
  });
});
