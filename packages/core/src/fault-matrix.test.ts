import assert from 'node:assert/strict';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import type { ClientRequest } from 'node:http';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, beforeEach, describe, it, mock } from 'node:test';

import { type Authority, createAuthority, type Fault, type FaultOptions } from '@k8s-sa-auth/testing';

import { type Decision, decisionChannel } from './decision.ts';
import { createGuard, type Guard } from './guard.ts';
import type { GuardOptions } from './options.ts';

interface Row {
  /** Let in before the fault, and not remembered now: it has to be decided each time. */
  readonly known: string;
  /** Another one each time. */
  readonly unknown: string;
  /** What nobody lets in while all is well. */
  readonly refused: string;
  readonly calls: string;
  readonly recovered: string;
}

const immediate = (): Promise<unknown> => new Promise(setImmediate);

interface FakeTimer {
  readonly dueMs: number;
  readonly run: () => void;
  isUnref: boolean;
  unref(): FakeTimer;
}

// Time stands still, but for what waits for it: sockets and files are real, and nothing passes while one of them has work to do.
function createClock() {
  let nowMs = Date.now();
  mock.timers.enable({ apis: ['Date'], now: nowMs });
  mock.method(performance, 'now', () => nowMs);
  const timers = new Set<FakeTimer>();
  const clear = globalThis.clearTimeout;
  mock.method(globalThis, 'setTimeout', (run: () => void, ms = 0): FakeTimer => {
    const timer = {
      dueMs: nowMs + ms,
      run,
      isUnref: false,
      unref(): FakeTimer {
        timer.isUnref = true;
        return timer;
      },
    };
    timers.add(timer);
    return timer;
  });
  mock.method(globalThis, 'clearTimeout', (timer: unknown) => {
    if (!timers.delete(timer as FakeTimer)) clear(timer as NodeJS.Timeout);
  });
  const earliest = (waiting: Iterable<FakeTimer>): FakeTimer | undefined =>
    [...waiting].toSorted((one, other) => one.dueMs - other.dueMs)[0];

  /** Tells whether anything was due. */
  function advance(ms: number): boolean {
    const untilMs = nowMs + ms;
    let wasDue = false;
    for (let next = earliest(timers); next !== undefined && next.dueMs <= untilMs; next = earliest(timers)) {
      timers.delete(next);
      nowMs = Math.max(nowMs, next.dueMs);
      mock.timers.setTime(nowMs);
      next.run();
      wasDue = true;
    }
    nowMs = untilMs;
    mock.timers.setTime(nowMs);
    return wasDue;
  }

  return {
    advance,
    /** Goes to the next timer that somebody waits for; the breaker's own is unref'd. */
    skip(): boolean {
      const next = earliest([...timers].filter(({ isUnref }) => !isUnref));
      if (next !== undefined) advance(Math.max(0, next.dueMs - nowMs));
      return next !== undefined;
    },
  };
}

// What goes from the guard to the API server, counted where it is sent: a fault may keep it from ever arriving.
const sent: string[] = [];
const inFlight = new Set<ClientRequest>();
const listenSent = (message: unknown): void => {
  const { request } = message as { readonly request: ClientRequest };
  sent.push(request.path.split('/').at(-1) ?? '');
  inFlight.add(request);
  request.once('close', () => inFlight.delete(request));
};
const decisions: Decision[] = [];
const listenDecisions = (decision: unknown): void => void decisions.push(decision as Decision);

const isReading = (): boolean => process.getActiveResourcesInfo().some((name) => /^(?:FSReq|CloseReq)/.test(name));

let authority: Authority;
let guard: Guard;
let clock: ReturnType<typeof createClock>;
let silent: string | undefined;
let files: { url: string; caFile: string; tokenFile: string };
let directory: string;
let proxy: Awaited<ReturnType<typeof createProxy>>;

async function quiet(): Promise<void> {
  for (let idle = 0; idle < 3; idle++) {
    await immediate();
    const isAwaited = [...inFlight].some(({ path }) => silent === undefined || !path.endsWith(silent));
    if (isReading() || isAwaited || clock.skip()) idle = -1;
  }
}

/** What a request shows, and what it asks for. */
interface Asked {
  readonly token: string;
  readonly url: string;
}

async function check({ token, url }: Asked): Promise<string> {
  const checked = guard.check({ method: 'GET', url, headers: { 'x-client-id': token }, rawHeaders: ['X-Client-Id', token] }).then(
    () => 200,
    (error: { status: number }) => error.status,
  );
  await quiet();
  const status = await checked;
  const decision = decisions.pop();
  return status === 200 ? `200 (${decision?.source})` : `${status} \`${decision?.reason}\``;
}

const tokenOf = (pod: string): Promise<string> => authority.token('api/api', { audience: 'secret-store', pod, expirationSeconds: 7_200 });

// Claims of somebody else under a signature of the cluster.
async function forge(token: string): Promise<string> {
  const [header, , signature] = token.split('.');
  const [, payload] = (await tokenOf('forged')).split('.');
  return `${header}.${payload}.${signature}`;
}

interface Strike {
  readonly begin: () => unknown;
  readonly end?: () => unknown;
  /** Between two rounds. */
  readonly everyMs?: number;
  /** Who tries again after the fault. Default: the known one. */
  readonly again?: 'known' | 'unknown';
  /** How the paths end that are not answered. */
  readonly silent?: string;
  /** Over those of the table. */
  readonly options?: Partial<GuardOptions>;
}

/** What one table is about: a guard, and the requests that it gets. */
interface Subject {
  readonly options?: Partial<GuardOptions>;
  /** What the table calls its known, unknown and refused requests. */
  readonly columns: readonly [string, string, string];
  readonly unknown: (known: Asked, round: number) => Promise<Asked>;
  readonly refused: (known: Asked) => Promise<Asked>;
}

const named = (counted: readonly string[]): string => {
  const many = (path: string, one: string, more: string): string[] => {
    const count = counted.filter((each) => each === path).length;
    return count === 0 ? [] : [`${count} ${count === 1 ? one : more}`];
  };
  const all = [
    ...many('tokenreviews', 'review', 'reviews'),
    ...many('subjectaccessreviews', 'access review', 'access reviews'),
    ...many('selfsubjectaccessreviews', 'own question', 'own questions'),
    ...many('jwks', 'key set', 'key sets'),
  ];
  return all.length === 0 ? 'none' : all.join(', ');
};

const inOrder = (seen: readonly string[]): string => [...new Set(seen)].join(', then ');

function createTable({ options, columns, unknown, refused }: Subject) {
  const rows: (readonly [fault: string, Row])[] = [];

  // Ten rounds of one known, one unknown and one refused request; then the fault ends, and one of them tries each second.
  async function strike(fault: string, { begin, end, everyMs = 0, again = 'known', ...how }: Strike): Promise<Row> {
    const logger = { info: () => {}, warn: () => {}, error: () => {} };
    const basic = { audience: 'secret-store', allow: ['api/api'], cacheTtlMs: 0, apiServer: files, logger } as const;
    guard = createGuard({ ...basic, ...options, ...how.options });
    const good = `200 (${options?.verification ?? 'review'})`;
    const known = { token: await tokenOf('known'), url: '/orders/known' };
    const bad = await refused(known);
    await guard.ready();
    assert.equal(await check(known), good);
    // So that the key set may be loaded again.
    clock.advance(31_000);
    await begin();
    silent = how.silent;
    await quiet();
    sent.length = 0;

    const seen: Record<'known' | 'unknown' | 'refused', string[]> = { known: [], unknown: [], refused: [] };
    for (let round = 0; round < 10; round++) {
      seen.known.push(await check(known));
      seen.unknown.push(await check(await unknown(known, round)));
      seen.refused.push(await check(bad));
      for (let waitedMs = 0; waitedMs < everyMs; waitedMs += 1_000) {
        if (clock.advance(1_000)) await quiet();
      }
    }
    const calls = named(sent);

    await (end ?? (() => authority.recover()))();
    silent = undefined;
    proxy.heal();
    const returning = again === 'known' ? known : await unknown(known, 10);
    let seconds = 0;
    while ((await check(returning)) !== good && seconds < 60) {
      clock.advance(1_000);
      await quiet();
      seconds += 1;
    }
    const wasHurt = [...seen.known, ...seen.unknown].some((outcome) => outcome !== good);
    const waited = `${seconds === 0 ? 'at once' : `${seconds} s`}${again === 'known' ? '' : ` (${columns[1]})`}`;
    const row = {
      known: inOrder(seen.known),
      unknown: inOrder(seen.unknown),
      refused: inOrder(seen.refused),
      calls,
      recovered: wasHurt ? waited : '—',
    };
    rows.push([fault, row]);
    return row;
  }

  function format(): string {
    const lines = rows.map(([fault, row]) => [fault, row.known, row.unknown, row.refused, row.calls, row.recovered]);
    return formatTable([['fault', ...columns, 'API calls for 30 requests', 'recovered after'], ...lines]);
  }

  return { strike, format };
}

const failing = (fault: Fault, where: FaultOptions = {}): Strike => ({ begin: () => authority.fail(fault, where) });
const answer = (body: object | string, status = 201): Fault => ({
  status,
  headers: { 'Content-Type': 'application/json' },
  body: typeof body === 'string' ? body : JSON.stringify(body),
});
const answering = (body: object | string, status?: number): Strike => failing(answer(body, status));
const review = (status: object, spec?: object): object => ({ kind: 'TokenReview', apiVersion: 'authentication.k8s.io/v1', spec, status });
const yes = {
  authenticated: true,
  audiences: ['secret-store'],
  user: {
    username: 'system:serviceaccount:api:api',
    uid: 'u',
    extra: { 'authentication.kubernetes.io/pod-name': ['known'], 'authentication.kubernetes.io/pod-uid': ['p'] },
  },
};

// Between the guard and the authority, on the wire: TLS goes through it unread.
async function createProxy(port: number) {
  let state: 'through' | 'silent' | 'cutting' = 'through';
  const sockets = new Set<Socket>();
  const server = createServer((client) => {
    const upstream = connect(port, '127.0.0.1');
    let answered = 0;
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => {
        client.destroy();
        upstream.destroy();
        sockets.delete(socket);
      });
    }
    client.on('data', (data) => {
      answered = 0;
      if (state !== 'silent') upstream.write(data);
    });
    upstream.on('data', (data) => {
      if (state === 'silent') return;
      // One whole TLS record (RFC 8446 §5.1) and a part of the next.
      const left = state === 'cutting' ? 16_500 - answered : data.length;
      answered += data.length;
      client.write(data.subarray(0, Math.max(0, left)), () => {
        if (data.length > left) client.end();
      });
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `https://127.0.0.1:${(server.address() as AddressInfo).port}`,
    become(next: 'silent' | 'cutting'): void {
      state = next;
    },
    heal(): void {
      state = 'through';
    },
    close(): void {
      server.close();
      for (const socket of sockets) socket.destroy();
    },
  };
}

const stillKnown = '200 (stale)';
const forgedAnyway = '403 `forged`';

// Who may ask for orders, and for nothing else.
const rules = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: { name: order-reader }
rules: [{ nonResourceURLs: [/orders/*], verbs: [get] }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: api-reads-orders }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: order-reader }
subjects: [{ kind: ServiceAccount, name: api, namespace: api }]
`;

subscribe('http.client.request.start', listenSent);
subscribe(decisionChannel, listenDecisions);
after(() => {
  unsubscribe('http.client.request.start', listenSent);
  unsubscribe(decisionChannel, listenDecisions);
});
beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'fault-matrix-'));
  writeFileSync(join(directory, 'rules.yaml'), rules);
  authority = await createAuthority({ manifests: join(directory, 'rules.yaml') });
  const store = await authority.pod('secret-store/secret-store');
  proxy = await createProxy(Number(new URL(authority.url).port));
  files = { url: proxy.url, caFile: join(directory, 'ca.crt'), tokenFile: join(directory, 'token') };
  copyFileSync(store.apiServer.caFile, files.caFile);
  copyFileSync(store.apiServer.tokenFile, files.tokenFile);
  mock.method(Math, 'random', () => 0.5);
  clock = createClock();
  silent = undefined;
});
afterEach(async () => {
  await guard.close();
  mock.restoreAll();
  mock.timers.reset();
  proxy.close();
  await authority.close();
  rmSync(directory, { recursive: true });
  inFlight.clear();
});

async function rotateCa(isPublished: boolean): Promise<void> {
  authority.rotateCa();
  if (isPublished) copyFileSync(authority.caFile, files.caFile);
  authority.fail('outage');
  await authority.recover();
}

// Each token ends with its key, our own too.
async function retireSigningKey(): Promise<void> {
  authority.rotateSigningKey({ retire: true });
  await replaceCredential();
}

async function replaceCredential(): Promise<void> {
  const [old] = authority.pods;
  const next = await authority.pod('secret-store/secret-store');
  writeFileSync(files.tokenFile, readFileSync(next.apiServer.tokenFile));
  await authority.delete('pod', `${old?.namespace}/${old?.name}`);
}

const byToken = {
  columns: ['known caller', 'unknown caller', 'forged token'],
  unknown: async (known: Asked, round: number) => ({ ...known, token: await tokenOf(`new-${round}`) }),
  refused: async (known: Asked) => ({ ...known, token: await forge(known.token) }),
} as const;
const byReview = createTable(byToken);
const bySignature = createTable({ ...byToken, options: { verification: 'signature' } });
const byAccess = createTable({
  columns: ['known question', 'new question', 'question with a no'],
  options: { authorize: { verb: 'get', path: ({ path }) => path } },
  unknown: async (known, round) => ({ ...known, url: `/orders/${round}` }),
  refused: async (known) => ({ ...known, url: '/accounts' }),
});

describe('a guard while the cluster is in trouble', () => {
  const { strike } = byReview;

  it('the API server is away', async ({ name }) => {
    assert.deepEqual(await strike(name, failing('outage')), {
      known: stillKnown,
      unknown: '503 `connection_failed`, then 503 `breaker_open`',
      refused: forgedAnyway,
      calls: '10 reviews, 2 own questions',
      recovered: '1 s',
    });
  });

  it('the API server is away for ten minutes', async ({ name }) => {
    assert.deepEqual(await strike(name, { ...failing('outage'), everyMs: 60_000 }), {
      known: '200 (stale), then 503 `breaker_open`',
      unknown: '503 `connection_failed`, then 503 `breaker_open`',
      refused: forgedAnyway,
      calls: '10 reviews, 244 own questions',
      recovered: '3 s',
    });
  });

  it('answers take 10 s', async ({ name }) => {
    assert.deepEqual(await strike(name, { ...failing('slow'), silent: '' }), {
      known: stillKnown,
      unknown: '503 `timeout`, then 503 `breaker_open`',
      refused: forgedAnyway,
      calls: '5 reviews, 1 own question',
      recovered: '1 s',
    });
  });

  it('half-open: connections stand, and nothing comes over them', async ({ name }) => {
    assert.deepEqual(await strike(name, { begin: () => proxy.become('silent'), silent: '' }), {
      known: stillKnown,
      unknown: '503 `timeout`, then 503 `breaker_open`',
      refused: forgedAnyway,
      calls: '5 reviews, 1 own question',
      recovered: '1 s',
    });
  });

  it('connections are reset', async ({ name }) => {
    assert.deepEqual(await strike(name, failing('reset')), {
      known: stillKnown,
      unknown: '503 `connection_reset`, then 503 `breaker_open`',
      refused: forgedAnyway,
      calls: '6 reviews, 1 own question',
      recovered: '1 s',
    });
  });

  it('429, as priority and fairness answers', async ({ name }) => {
    assert.deepEqual(await strike(name, failing('too-many-requests')), {
      known: stillKnown,
      unknown: '503 `too_many_requests`',
      refused: forgedAnyway,
      calls: '40 reviews',
      recovered: 'at once',
    });
  });

  it('500', async ({ name }) => {
    assert.deepEqual(await strike(name, answering({ kind: 'Status', message: 'panic' }, 500)), {
      known: stillKnown,
      unknown: '503 `api_server_error`',
      refused: forgedAnyway,
      calls: '40 reviews, 4 own questions',
      recovered: 'at once',
    });
  });

  it('503', async ({ name }) => {
    assert.deepEqual(await strike(name, answering({ kind: 'Status', message: 'shutting down' }, 503)), {
      known: stillKnown,
      unknown: '503 `api_server_error`',
      refused: forgedAnyway,
      calls: '40 reviews, 4 own questions',
      recovered: 'at once',
    });
  });

  it('401: our own credential is refused', async ({ name }) => {
    assert.deepEqual(await strike(name, failing('unauthorized')), {
      known: stillKnown,
      unknown: '503 `own_credentials_refused`, then 503 `breaker_open`',
      refused: forgedAnyway,
      calls: '5 reviews, 1 own question',
      recovered: '1 s',
    });
  });

  it('403: our own permission is missing', async ({ name }) => {
    assert.deepEqual(await strike(name, failing('forbidden')), {
      known: stillKnown,
      unknown: '503 `own_permission_missing`',
      refused: forgedAnyway,
      calls: '20 reviews, 4 own questions',
      recovered: 'at once',
    });
  });

  it('a redirect', async ({ name }) => {
    assert.deepEqual(await strike(name, failing({ status: 307, headers: { Location: 'https://example.com/' }, body: '' })), {
      known: stillKnown,
      unknown: '503 `unexpected_status`',
      refused: forgedAnyway,
      calls: '20 reviews, 4 own questions',
      recovered: 'at once',
    });
  });

  it('half of a body', async ({ name }) => {
    assert.deepEqual(await strike(name, failing('broken-body')), {
      known: stillKnown,
      unknown: '503 `not_a_token_review`',
      refused: forgedAnyway,
      calls: '20 reviews, 4 own questions',
      recovered: 'at once',
    });
  });

  it('an answer cut off on the wire', async ({ name }) => {
    assert.deepEqual(
      await strike(name, { begin: () => (proxy.become('cutting'), authority.fail({ status: 201, body: 'x'.repeat(16_384) })) }),
      {
        known: stillKnown,
        unknown: '503 `answer_truncated`',
        refused: forgedAnyway,
        calls: '20 reviews, 4 own questions',
        recovered: 'at once',
      },
    );
  });

  it('a huge answer', async ({ name }) => {
    assert.deepEqual(await strike(name, failing({ status: 201, body: 'x'.repeat(1_000_000) })), {
      known: stillKnown,
      unknown: '503 `answer_too_large`',
      refused: forgedAnyway,
      calls: '20 reviews, 4 own questions',
      recovered: 'at once',
    });
  });

  it('not JSON', async ({ name }) => {
    assert.deepEqual(await strike(name, answering('<html>')), {
      known: stillKnown,
      unknown: '503 `not_a_token_review`',
      refused: forgedAnyway,
      calls: '20 reviews, 4 own questions',
      recovered: 'at once',
    });
  });

  it('not a TokenReview', async ({ name }) => {
    assert.deepEqual(await strike(name, answering({ kind: 'Status', apiVersion: 'v1', status: 'Success' })), {
      known: stillKnown,
      unknown: '503 `not_a_token_review`',
      refused: forgedAnyway,
      calls: '20 reviews, 4 own questions',
      recovered: 'at once',
    });
  });

  it('a yes to another token', async ({ name }) => {
    assert.deepEqual(await strike(name, answering(review(yes, { token: 'e30.e30.c2ln' }))), {
      known: stillKnown,
      unknown: '503 `review_of_another_token`',
      refused: forgedAnyway,
      calls: '20 reviews, 4 own questions',
      recovered: 'at once',
    });
  });

  it('a yes for another ServiceAccount', async ({ name }) => {
    assert.deepEqual(await strike(name, answering(review({ ...yes, user: { ...yes.user, username: 'system:serviceaccount:ops:boss' } }))), {
      known: stillKnown,
      unknown: '503 `review_of_another_service_account`',
      refused: forgedAnyway,
      calls: '20 reviews, 4 own questions',
      recovered: 'at once',
    });
  });

  it('`authenticated: "true"`, a string', async ({ name }) => {
    assert.deepEqual(await strike(name, answering(review({ ...yes, authenticated: 'true' }))), {
      known: stillKnown,
      unknown: '503 `not_a_token_review`',
      refused: forgedAnyway,
      calls: '20 reviews, 4 own questions',
      recovered: 'at once',
    });
  });

  it('a yes for whatever audience', async ({ name }) => {
    assert.deepEqual(await strike(name, failing('ignores-audiences')), {
      known: '403 `review_for_other_audiences`',
      unknown: '403 `review_for_other_audiences`',
      refused: forgedAnyway,
      calls: '11 reviews',
      recovered: '5 s',
    });
  });

  it('etcd hangs: a 201 that tells of a deadline', async ({ name }) => {
    assert.deepEqual(await strike(name, answering(review({ user: {}, error: '[invalid bearer token, context deadline exceeded]' }))), {
      known: stillKnown,
      unknown: '503 `review_timed_out_inside`',
      refused: forgedAnyway,
      calls: '20 reviews',
      recovered: 'at once',
    });
  });

  it('etcd hangs: a 201 that tells of a request', async ({ name }) => {
    assert.deepEqual(
      await strike(
        name,
        answering(review({ user: {}, error: '[invalid bearer token, Get "https://127.0.0.1:6443/api/v1/namespaces/api": EOF]' })),
      ),
      { known: stillKnown, unknown: '503 `review_timed_out_inside`', refused: forgedAnyway, calls: '20 reviews', recovered: 'at once' },
    );
  });

  it('etcd hangs: a 201 that tells of etcd', async ({ name }) => {
    assert.deepEqual(await strike(name, answering(review({ user: {}, error: '[invalid bearer token, etcdserver: request timed out]' }))), {
      known: stillKnown,
      unknown: '503 `review_timed_out_inside`',
      refused: forgedAnyway,
      calls: '20 reviews',
      recovered: 'at once',
    });
  });

  it('the CA rotates, and every connection ends', async ({ name }) => {
    assert.deepEqual(await strike(name, { begin: () => rotateCa(true) }), {
      known: '200 (review)',
      unknown: '200 (review)',
      refused: forgedAnyway,
      calls: '21 reviews',
      recovered: '—',
    });
  });

  it('the CA rotates, and its file comes late', async ({ name }) => {
    assert.deepEqual(await strike(name, { begin: () => rotateCa(false), end: () => copyFileSync(authority.caFile, files.caFile) }), {
      known: stillKnown,
      unknown: '503 `certificate_not_trusted`, then 503 `breaker_open`',
      refused: forgedAnyway,
      calls: '5 reviews, 1 own question',
      recovered: '1 s',
    });
  });

  it('our own credential rotates, and the old one ends at once', async ({ name }) => {
    assert.deepEqual(await strike(name, { begin: () => replaceCredential() }), {
      known: '200 (review)',
      unknown: '200 (review)',
      refused: forgedAnyway,
      calls: '21 reviews',
      recovered: '—',
    });
  });

  it('the signing key rotates', async ({ name }) => {
    assert.deepEqual(await strike(name, { begin: () => authority.rotateSigningKey() }), {
      known: '200 (review)',
      unknown: '200 (review)',
      refused: forgedAnyway,
      calls: '20 reviews, 1 key set',
      recovered: '—',
    });
  });

  it('the signing key rotates, and the old one retires', async ({ name }) => {
    assert.deepEqual(await strike(name, { begin: () => retireSigningKey(), again: 'unknown' }), {
      known: '403 `review_refused`',
      unknown: '200 (review)',
      refused: forgedAnyway,
      calls: '12 reviews, 1 key set',
      recovered: 'at once (unknown caller)',
    });
  });
});

describe("a guard with verification: 'signature' while the cluster is in trouble", () => {
  const { strike } = bySignature;
  const keySet = { resource: '/openid/v1/jwks' } as const;
  // Long enough for keys that should be reloaded, and for keys that are too old.
  const everyMs = 600_000;
  const untilTooOld = (calls: string): Row => ({
    known: '200 (signature), then 503 `no_signing_keys`',
    unknown: '200 (signature), then 503 `no_signing_keys`',
    refused: '403 `forged`, then 503 `no_signing_keys`',
    calls,
    recovered: 'at once',
  });

  it('the API server is away', async ({ name }) => {
    assert.deepEqual(await strike(name, failing('outage')), {
      known: '200 (signature)',
      unknown: '200 (signature)',
      refused: forgedAnyway,
      calls: 'none',
      recovered: '—',
    });
  });

  it('the API server is away, and the keys are almost an hour old', async ({ name }) => {
    const begin = (): unknown => (authority.fail('outage'), clock.advance(3_560_000));
    assert.deepEqual(await strike(name, { begin, everyMs: 10_000 }), { ...untilTooOld('8 key sets'), recovered: '20 s' });
  });

  it('the API server is away for 100 minutes', async ({ name }) => {
    assert.deepEqual(await strike(name, { ...failing('outage'), everyMs }), untilTooOld('18 key sets'));
  });

  it('half-open: connections stand, and nothing comes over them', async ({ name }) => {
    assert.deepEqual(await strike(name, { begin: () => proxy.become('silent'), silent: '', everyMs }), untilTooOld('9 key sets'));
  });

  it('the CA rotates, and its file comes late', async ({ name }) => {
    assert.deepEqual(
      await strike(name, { begin: () => rotateCa(false), end: () => copyFileSync(authority.caFile, files.caFile), everyMs }),
      untilTooOld('9 key sets'),
    );
  });

  it('the key set takes 10 s', async ({ name }) => {
    assert.deepEqual(await strike(name, { ...failing('slow', keySet), silent: '/jwks', everyMs }), untilTooOld('9 key sets'));
  });

  it('the key set: connections are reset', async ({ name }) => {
    assert.deepEqual(await strike(name, { ...failing('reset', keySet), everyMs }), untilTooOld('10 key sets'));
  });

  it('the key set: 429', async ({ name }) => {
    assert.deepEqual(await strike(name, { ...failing('too-many-requests', keySet), everyMs }), untilTooOld('9 key sets'));
  });

  it('the key set: 500', async ({ name }) => {
    assert.deepEqual(await strike(name, { ...failing(answer('', 500), keySet), everyMs }), untilTooOld('18 key sets'));
  });

  it('the key set: 403', async ({ name }) => {
    assert.deepEqual(await strike(name, { ...failing('forbidden', keySet), everyMs }), untilTooOld('9 key sets'));
  });

  it('the key set: half of a body', async ({ name }) => {
    assert.deepEqual(await strike(name, { ...failing('broken-body', keySet), everyMs }), untilTooOld('9 key sets'));
  });

  it('the key set: huge', async ({ name }) => {
    assert.deepEqual(await strike(name, { ...failing(answer('x'.repeat(1_000_000), 200), keySet), everyMs }), untilTooOld('9 key sets'));
  });

  it('the key set: not a key set', async ({ name }) => {
    assert.deepEqual(
      await strike(name, { ...failing(answer({ kind: 'Status', apiVersion: 'v1', status: 'Success' }, 200), keySet), everyMs }),
      untilTooOld('9 key sets'),
    );
  });

  it('the key set: empty', async ({ name }) => {
    assert.deepEqual(await strike(name, { ...failing(answer({ keys: [] }, 200), keySet), everyMs }), untilTooOld('9 key sets'));
  });

  it('the key set: keys of another kind alone', async ({ name }) => {
    const keys = [{ kty: 'OKP', crv: 'Ed25519', kid: 'x', x: 'AAAA' }];
    assert.deepEqual(await strike(name, { ...failing(answer({ keys }, 200), keySet), everyMs }), untilTooOld('9 key sets'));
  });

  it('TokenReviews: 500', async ({ name }) => {
    assert.deepEqual(await strike(name, failing(answer('', 500))), {
      known: '200 (signature)',
      unknown: '200 (signature)',
      refused: forgedAnyway,
      calls: 'none',
      recovered: '—',
    });
  });

  it('the signing key rotates', async ({ name }) => {
    assert.deepEqual(await strike(name, { begin: () => authority.rotateSigningKey() }), {
      known: '200 (signature)',
      unknown: '200 (signature)',
      refused: forgedAnyway,
      calls: '1 key set',
      recovered: '—',
    });
  });

  it('the signing key rotates, and the key set answers 500', async ({ name }) => {
    assert.deepEqual(
      await strike(name, { begin: () => (authority.rotateSigningKey(), authority.fail(answer('', 500), keySet)), again: 'unknown' }),
      {
        known: '200 (signature)',
        unknown: '503 `unknown_keys`',
        refused: forgedAnyway,
        calls: '2 key sets',
        recovered: '30 s (unknown caller)',
      },
    );
  });

  it('the signing key rotates, and the old one retires', async ({ name }) => {
    assert.deepEqual(await strike(name, { begin: () => retireSigningKey(), again: 'unknown', everyMs: 10_000 }), {
      known: '200 (signature), then 503 `unknown_keys`, then 403 `unknown_key`',
      unknown: '200 (signature)',
      refused: '403 `unknown_key`, then 503 `unknown_keys`',
      calls: '5 key sets',
      recovered: 'at once (unknown caller)',
    });
  });
});

describe('a guard with authorize while the cluster is in trouble', () => {
  const { strike } = byAccess;
  const access = { resource: 'subjectaccessreviews' } as const;
  const accessReview = (status: object, spec?: object): Fault =>
    answer({ kind: 'SubjectAccessReview', apiVersion: 'authorization.k8s.io/v1', spec, status });
  const remembering = { options: { cacheTtlMs: 60_000 }, again: 'unknown' } as const;
  const onlyKnown = (others: string, calls: string, recovered = 'at once'): Row => ({
    known: stillKnown,
    unknown: others,
    refused: others,
    calls,
    recovered,
  });

  it('access reviews take 10 s', async ({ name }) => {
    assert.deepEqual(
      await strike(name, { ...failing('slow', access), silent: '/subjectaccessreviews' }),
      onlyKnown('503 `timeout`', '30 reviews, 30 access reviews'),
    );
  });

  it('access reviews: connections are reset', async ({ name }) => {
    assert.deepEqual(await strike(name, failing('reset', access)), onlyKnown('503 `connection_reset`', '30 reviews, 60 access reviews'));
  });

  it('access reviews: 429', async ({ name }) => {
    assert.deepEqual(
      await strike(name, failing('too-many-requests', access)),
      onlyKnown('503 `too_many_requests`', '30 reviews, 60 access reviews'),
    );
  });

  it('access reviews: 500', async ({ name }) => {
    assert.deepEqual(
      await strike(name, failing(answer('', 500), access)),
      onlyKnown('503 `api_server_error`', '30 reviews, 60 access reviews'),
    );
  });

  it('access reviews: 500 for ten minutes', async ({ name }) => {
    assert.deepEqual(await strike(name, { ...failing(answer('', 500), access), everyMs: 60_000 }), {
      ...onlyKnown('503 `api_server_error`', '30 reviews, 60 access reviews'),
      known: '200 (stale), then 503 `api_server_error`',
    });
  });

  it('access reviews: 403, our own permission is missing', async ({ name }) => {
    assert.deepEqual(
      await strike(name, failing('forbidden', access)),
      onlyKnown('503 `own_permission_missing`', '30 reviews, 30 access reviews'),
    );
  });

  it('access reviews: half of a body', async ({ name }) => {
    assert.deepEqual(
      await strike(name, failing('broken-body', access)),
      onlyKnown('503 `not_a_subject_access_review`', '30 reviews, 30 access reviews'),
    );
  });

  it('access reviews: cut off on the wire', async ({ name }) => {
    assert.deepEqual(
      await strike(name, { begin: () => (proxy.become('cutting'), authority.fail(answer('x'.repeat(16_384)), access)) }),
      onlyKnown('503 `answer_truncated`', '30 reviews, 30 access reviews'),
    );
  });

  it('access reviews: huge', async ({ name }) => {
    assert.deepEqual(
      await strike(name, failing(answer('x'.repeat(1_000_000)), access)),
      onlyKnown('503 `answer_too_large`', '30 reviews, 30 access reviews'),
    );
  });

  it('access reviews: not a SubjectAccessReview', async ({ name }) => {
    assert.deepEqual(
      await strike(name, failing(answer({ kind: 'Status', apiVersion: 'v1', status: 'Success' }), access)),
      onlyKnown('503 `not_a_subject_access_review`', '30 reviews, 30 access reviews'),
    );
  });

  it('access reviews: `allowed: "true"`, a string', async ({ name }) => {
    assert.deepEqual(
      await strike(name, failing(accessReview({ allowed: 'true' }), access)),
      onlyKnown('503 `not_a_subject_access_review`', '30 reviews, 30 access reviews'),
    );
  });

  it('access reviews: a yes for another ServiceAccount', async ({ name }) => {
    assert.deepEqual(
      await strike(name, failing(accessReview({ allowed: true }, { user: 'system:serviceaccount:ops:boss' }), access)),
      onlyKnown('503 `review_of_another_service_account`', '30 reviews, 30 access reviews'),
    );
  });

  it('access reviews: a yes that is a no too', async ({ name }) => {
    assert.deepEqual(await strike(name, failing(accessReview({ allowed: true, denied: true }), access)), {
      known: '403 `not_authorized`',
      unknown: '403 `not_authorized`',
      refused: '403 `not_authorized`',
      calls: '30 reviews, 12 access reviews',
      recovered: '5 s',
    });
  });

  it('access reviews: a webhook that does not answer', async ({ name }) => {
    assert.deepEqual(
      await strike(name, failing(accessReview({ allowed: false, evaluationError: 'Post "https://authorizer.example/": EOF' }), access)),
      onlyKnown('503 `review_timed_out_inside`', '30 reviews, 30 access reviews'),
    );
  });

  it('access reviews: 500, and callers are remembered', async ({ name }) => {
    assert.deepEqual(await strike(name, { ...failing(answer('', 500), access), ...remembering }), {
      ...onlyKnown('503 `api_server_error`', '40 access reviews, 4 own questions', 'at once (new question)'),
      known: '200 (cache)',
    });
  });

  it('access reviews: 403, and callers are remembered', async ({ name }) => {
    assert.deepEqual(await strike(name, { ...failing('forbidden', access), ...remembering }), {
      ...onlyKnown('503 `own_permission_missing`', '20 access reviews, 4 own questions', 'at once (new question)'),
      known: '200 (cache)',
    });
  });

  it('TokenReviews: 500', async ({ name }) => {
    assert.deepEqual(await strike(name, failing(answer('', 500))), {
      known: '200 (stale)',
      unknown: '200 (stale)',
      refused: '403 `not_authorized`',
      calls: '60 reviews, 21 access reviews',
      recovered: 'at once',
    });
  });

  it('401: our own credential is refused', async ({ name }) => {
    assert.deepEqual(
      await strike(name, failing('unauthorized')),
      onlyKnown('503 `own_credentials_refused`, then 503 `breaker_open`', '3 reviews, 3 access reviews, 1 own question', '1 s'),
    );
  });

  it('half-open: connections stand, and nothing comes over them', async ({ name }) => {
    assert.deepEqual(
      await strike(name, { begin: () => proxy.become('silent'), silent: '' }),
      onlyKnown('503 `timeout`, then 503 `breaker_open`', '3 reviews, 3 access reviews, 1 own question', '1 s'),
    );
  });

  it('the API server is away', async ({ name }) => {
    assert.deepEqual(
      await strike(name, failing('outage')),
      onlyKnown('503 `connection_failed`, then 503 `breaker_open`', '6 reviews, 6 access reviews, 2 own questions', '1 s'),
    );
  });

  it('the API server is away for ten minutes', async ({ name }) => {
    assert.deepEqual(await strike(name, { ...failing('outage'), everyMs: 60_000 }), {
      ...onlyKnown('503 `connection_failed`, then 503 `breaker_open`', '6 reviews, 6 access reviews, 304 own questions', '3 s'),
      known: '200 (stale), then 503 `breaker_open`',
    });
  });

  it('the API server is away, and callers are remembered', async ({ name }) => {
    assert.deepEqual(await strike(name, { ...failing('outage'), ...remembering }), {
      ...onlyKnown('503 `connection_failed`, then 503 `breaker_open`', '10 access reviews, 2 own questions', '1 s (new question)'),
      known: '200 (cache)',
    });
  });

  it('the API server is away, and signatures say who calls', async ({ name }) => {
    assert.deepEqual(
      await strike(name, { ...failing('outage'), options: { verification: 'signature' } }),
      onlyKnown('503 `connection_failed`, then 503 `breaker_open`', '10 access reviews, 2 own questions', '1 s'),
    );
  });
});

it('are the tables in docs/faults.md', () => {
  const file = new URL('../../../docs/faults.md', import.meta.url);
  const tables = [byReview, bySignature, byAccess].map(({ format }) => format());
  const text = readFileSync(file, 'utf8');
  const written = text.replaceAll(/(?:^\|.*\n)+/gm, () => tables.shift() ?? '');
  assert.equal(tables.length, 0, 'a table has no place');
  if (process.env['UPDATE_DOCS'] === '1') writeFileSync(file, written);
  else assert.equal(text, written, 'a table is another one now: look at it, then run this with UPDATE_DOCS=1');
});

function formatTable([head = [], ...body]: readonly (readonly string[])[]): string {
  const widths = head.map((cell, column) => Math.max(cell.length, ...body.map((line) => line[column]?.length ?? 0)));
  const format = (line: readonly string[]): string => `| ${line.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join(' | ')} |\n`;
  return [format(head), format(widths.map((width) => '-'.repeat(width))), ...body.map(format)].join('');
}
