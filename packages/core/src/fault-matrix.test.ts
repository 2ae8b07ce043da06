import assert from 'node:assert/strict';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import type { ClientRequest } from 'node:http';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, beforeEach, describe, it, mock } from 'node:test';

import { type Authority, createAuthority, type Fault } from '@k8s-sa-auth/testing';

import { type Decision, decisionChannel } from './decision.ts';
import { createGuard, type Guard } from './guard.ts';

interface Row {
  /** Let in before the fault, and not remembered now: the cluster has to be asked about each request. */
  readonly known: string;
  /** With a new token each time. */
  readonly unknown: string;
  /** Claims of somebody else under a signature of the cluster. */
  readonly forged: string;
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

  function advance(ms: number): void {
    const untilMs = nowMs + ms;
    for (let next = earliest(timers); next !== undefined && next.dueMs <= untilMs; next = earliest(timers)) {
      timers.delete(next);
      nowMs = Math.max(nowMs, next.dueMs);
      mock.timers.setTime(nowMs);
      next.run();
    }
    nowMs = untilMs;
    mock.timers.setTime(nowMs);
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
let isSilent: boolean;
let files: { url: string; caFile: string; tokenFile: string };
let directory: string;
let proxy: Awaited<ReturnType<typeof createProxy>>;
const rows: (readonly [fault: string, Row])[] = [];

async function quiet(): Promise<void> {
  for (let idle = 0; idle < 3; idle++) {
    await immediate();
    const isBusy = isReading() || (inFlight.size > 0 && !isSilent);
    if (isBusy || clock.skip()) idle = -1;
  }
}

async function check(token: string): Promise<string> {
  const checked = guard.check({ method: 'GET', headers: { 'x-client-id': token }, rawHeaders: ['X-Client-Id', token] }).then(
    () => 200,
    (error: { status: number }) => error.status,
  );
  await quiet();
  const status = await checked;
  const decision = decisions.pop();
  return status === 200 ? `200 (${decision?.source})` : `${status} \`${decision?.reason}\``;
}

const tokenOf = (pod: string): Promise<string> => authority.token('api/api', { audience: 'secret-store', pod, expirationSeconds: 3_600 });

async function forge(token: string): Promise<string> {
  const [header, , signature] = token.split('.');
  const [, payload] = (await authority.token('api/api', { audience: 'secret-store', pod: 'forged' })).split('.');
  return `${header}.${payload}.${signature}`;
}

interface Strike {
  readonly begin: () => unknown;
  readonly end?: () => unknown;
  /** Between two rounds. */
  readonly everyMs?: number;
  /** With a token that was minted after the fault. */
  readonly isRenewed?: boolean;
  readonly isSilent?: boolean;
}

const named = (counted: readonly string[]): string => {
  const many = (path: string, one: string, more: string): string[] => {
    const count = counted.filter((each) => each === path).length;
    return count === 0 ? [] : [`${count} ${count === 1 ? one : more}`];
  };
  const all = [
    ...many('tokenreviews', 'review', 'reviews'),
    ...many('selfsubjectaccessreviews', 'own question', 'own questions'),
    ...many('jwks', 'key set', 'key sets'),
  ];
  return all.length === 0 ? 'none' : all.join(', ');
};

const inOrder = (seen: readonly string[]): string => [...new Set(seen)].join(', then ');

// Ten rounds of one known caller, one unknown and one forged token; then the fault ends, and the known caller tries each second.
async function strike(fault: string, { begin, end, everyMs = 0, isRenewed = false, isSilent: silent = false }: Strike): Promise<Row> {
  const known = await tokenOf('known');
  const forged = await forge(known);
  await guard.ready();
  assert.equal(await check(known), '200 (review)');
  // So that the key set may be loaded again.
  clock.advance(31_000);
  await begin();
  isSilent = silent;
  await quiet();
  sent.length = 0;

  const seen: Record<'known' | 'unknown' | 'forged', string[]> = { known: [], unknown: [], forged: [] };
  for (let round = 0; round < 10; round++) {
    seen.known.push(await check(known));
    seen.unknown.push(await check(await tokenOf(`new-${round}`)));
    seen.forged.push(await check(forged));
    for (let waitedMs = 0; waitedMs < everyMs; waitedMs += 1_000) {
      clock.advance(1_000);
      await quiet();
    }
  }
  const calls = named(sent);

  await (end ?? (() => authority.recover()))();
  isSilent = false;
  proxy.heal();
  const token = isRenewed ? await tokenOf('known') : known;
  let seconds = 0;
  while ((await check(token)) !== '200 (review)' && seconds < 15) {
    clock.advance(1_000);
    await quiet();
    seconds += 1;
  }
  const wasHurt = [...seen.known, ...seen.unknown].some((outcome) => outcome !== '200 (review)');
  const recovered = wasHurt ? `${seconds === 0 ? 'at once' : `${seconds} s`}${isRenewed ? ', with a new token' : ''}` : '—';
  const row = { known: inOrder(seen.known), unknown: inOrder(seen.unknown), forged: inOrder(seen.forged), calls, recovered };
  rows.push([fault, row]);
  return row;
}

const failing = (fault: Fault): Strike => ({ begin: () => authority.fail(fault) });
const answering = (body: object | string, status = 201): Strike =>
  failing({ status, headers: { 'Content-Type': 'application/json' }, body: typeof body === 'string' ? body : JSON.stringify(body) });
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
      const left = state === 'cutting' ? 17_000 - answered : data.length;
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

describe('a guard while the cluster is in trouble', () => {
  subscribe('http.client.request.start', listenSent);
  subscribe(decisionChannel, listenDecisions);
  after(() => {
    unsubscribe('http.client.request.start', listenSent);
    unsubscribe(decisionChannel, listenDecisions);
  });
  beforeEach(async () => {
    authority = await createAuthority();
    const store = await authority.pod('secret-store/secret-store');
    directory = mkdtempSync(join(tmpdir(), 'fault-matrix-'));
    proxy = await createProxy(Number(new URL(authority.url).port));
    files = { url: proxy.url, caFile: join(directory, 'ca.crt'), tokenFile: join(directory, 'token') };
    copyFileSync(store.apiServer.caFile, files.caFile);
    copyFileSync(store.apiServer.tokenFile, files.tokenFile);
    mock.method(Math, 'random', () => 0.5);
    clock = createClock();
    isSilent = false;
    const logger = { info: () => {}, warn: () => {}, error: () => {} };
    guard = createGuard({ audience: 'secret-store', allow: ['api/api'], cacheTtlMs: 0, apiServer: files, logger });
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

  it('the API server is away', async ({ name }) => {
    assert.deepEqual(await strike(name, failing('outage')), {
      known: stillKnown,
      unknown: '503 `connection_failed`, then 503 `breaker_open`',
      forged: forgedAnyway,
      calls: '10 reviews, 2 own questions',
      recovered: '1 s',
    });
  });

  it('the API server is away for ten minutes', async ({ name }) => {
    assert.deepEqual(await strike(name, { ...failing('outage'), everyMs: 60_000 }), {
      known: '200 (stale), then 503 `breaker_open`',
      unknown: '503 `connection_failed`, then 503 `breaker_open`',
      forged: forgedAnyway,
      calls: '10 reviews, 244 own questions',
      recovered: '3 s',
    });
  });

  it('answers take 10 s', async ({ name }) => {
    assert.deepEqual(await strike(name, { ...failing('slow'), isSilent: true }), {
      known: stillKnown,
      unknown: '503 `timeout`, then 503 `breaker_open`',
      forged: forgedAnyway,
      calls: '5 reviews, 1 own question',
      recovered: '1 s',
    });
  });

  it('half-open: connections stand, and nothing comes over them', async ({ name }) => {
    assert.deepEqual(await strike(name, { begin: () => proxy.become('silent'), isSilent: true }), {
      known: stillKnown,
      unknown: '503 `timeout`, then 503 `breaker_open`',
      forged: forgedAnyway,
      calls: '5 reviews, 1 own question',
      recovered: '1 s',
    });
  });

  it('connections are reset', async ({ name }) => {
    assert.deepEqual(await strike(name, failing('reset')), {
      known: stillKnown,
      unknown: '503 `connection_reset`, then 503 `breaker_open`',
      forged: forgedAnyway,
      calls: '6 reviews, 1 own question',
      recovered: '1 s',
    });
  });

  it('429, as priority and fairness answers', async ({ name }) => {
    assert.deepEqual(await strike(name, failing('too-many-requests')), {
      known: stillKnown,
      unknown: '503 `too_many_requests`',
      forged: forgedAnyway,
      calls: '40 reviews',
      recovered: 'at once',
    });
  });

  it('500', async ({ name }) => {
    assert.deepEqual(await strike(name, answering({ kind: 'Status', message: 'panic' }, 500)), {
      known: stillKnown,
      unknown: '503 `api_server_error`',
      forged: forgedAnyway,
      calls: '40 reviews, 4 own questions',
      recovered: 'at once',
    });
  });

  it('503', async ({ name }) => {
    assert.deepEqual(await strike(name, answering({ kind: 'Status', message: 'shutting down' }, 503)), {
      known: stillKnown,
      unknown: '503 `api_server_error`',
      forged: forgedAnyway,
      calls: '40 reviews, 4 own questions',
      recovered: 'at once',
    });
  });

  it('401: our own credential is refused', async ({ name }) => {
    assert.deepEqual(await strike(name, failing('unauthorized')), {
      known: stillKnown,
      unknown: '503 `own_credentials_refused`, then 503 `breaker_open`',
      forged: forgedAnyway,
      calls: '5 reviews, 1 own question',
      recovered: '1 s',
    });
  });

  it('403: our own permission is missing', async ({ name }) => {
    assert.deepEqual(await strike(name, failing('forbidden')), {
      known: stillKnown,
      unknown: '503 `own_permission_missing`',
      forged: forgedAnyway,
      calls: '20 reviews, 4 own questions',
      recovered: 'at once',
    });
  });

  it('a redirect', async ({ name }) => {
    assert.deepEqual(await strike(name, failing({ status: 307, headers: { Location: 'https://example.com/' }, body: '' })), {
      known: stillKnown,
      unknown: '503 `unexpected_status`',
      forged: forgedAnyway,
      calls: '20 reviews, 4 own questions',
      recovered: 'at once',
    });
  });

  it('half of a body', async ({ name }) => {
    assert.deepEqual(await strike(name, failing('broken-body')), {
      known: stillKnown,
      unknown: '503 `not_a_token_review`',
      forged: forgedAnyway,
      calls: '20 reviews, 4 own questions',
      recovered: 'at once',
    });
  });

  it('an answer cut off on the wire', async ({ name }) => {
    assert.deepEqual(
      await strike(name, { begin: () => (proxy.become('cutting'), authority.fail({ status: 201, body: 'x'.repeat(17_000) })) }),
      {
        known: stillKnown,
        unknown: '503 `answer_truncated`',
        forged: forgedAnyway,
        calls: '20 reviews, 4 own questions',
        recovered: 'at once',
      },
    );
  });

  it('a huge answer', async ({ name }) => {
    assert.deepEqual(await strike(name, failing({ status: 201, body: 'x'.repeat(1_000_000) })), {
      known: stillKnown,
      unknown: '503 `answer_too_large`',
      forged: forgedAnyway,
      calls: '20 reviews, 4 own questions',
      recovered: 'at once',
    });
  });

  it('not JSON', async ({ name }) => {
    assert.deepEqual(await strike(name, answering('<html>')), {
      known: stillKnown,
      unknown: '503 `not_a_token_review`',
      forged: forgedAnyway,
      calls: '20 reviews, 4 own questions',
      recovered: 'at once',
    });
  });

  it('not a TokenReview', async ({ name }) => {
    assert.deepEqual(await strike(name, answering({ kind: 'Status', apiVersion: 'v1', status: 'Success' })), {
      known: stillKnown,
      unknown: '503 `not_a_token_review`',
      forged: forgedAnyway,
      calls: '20 reviews, 4 own questions',
      recovered: 'at once',
    });
  });

  it('a yes to another token', async ({ name }) => {
    assert.deepEqual(await strike(name, answering(review(yes, { token: 'e30.e30.c2ln' }))), {
      known: stillKnown,
      unknown: '503 `review_of_another_token`',
      forged: forgedAnyway,
      calls: '20 reviews, 4 own questions',
      recovered: 'at once',
    });
  });

  it('a yes for another ServiceAccount', async ({ name }) => {
    assert.deepEqual(await strike(name, answering(review({ ...yes, user: { ...yes.user, username: 'system:serviceaccount:ops:boss' } }))), {
      known: stillKnown,
      unknown: '503 `review_of_another_service_account`',
      forged: forgedAnyway,
      calls: '20 reviews, 4 own questions',
      recovered: 'at once',
    });
  });

  it('`authenticated: "true"`, a string', async ({ name }) => {
    assert.deepEqual(await strike(name, answering(review({ ...yes, authenticated: 'true' }))), {
      known: stillKnown,
      unknown: '503 `not_a_token_review`',
      forged: forgedAnyway,
      calls: '20 reviews, 4 own questions',
      recovered: 'at once',
    });
  });

  it('a yes for whatever audience', async ({ name }) => {
    assert.deepEqual(await strike(name, failing('ignores-audiences')), {
      known: '403 `review_for_other_audiences`',
      unknown: '403 `review_for_other_audiences`',
      forged: forgedAnyway,
      calls: '11 reviews',
      recovered: '5 s',
    });
  });

  it('etcd hangs: a 201 that tells of a deadline', async ({ name }) => {
    assert.deepEqual(await strike(name, answering(review({ user: {}, error: '[invalid bearer token, context deadline exceeded]' }))), {
      known: stillKnown,
      unknown: '503 `review_timed_out_inside`',
      forged: forgedAnyway,
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
      { known: stillKnown, unknown: '503 `review_timed_out_inside`', forged: forgedAnyway, calls: '20 reviews', recovered: 'at once' },
    );
  });

  it('etcd hangs: a 201 that tells of etcd', async ({ name }) => {
    assert.deepEqual(await strike(name, answering(review({ user: {}, error: '[invalid bearer token, etcdserver: request timed out]' }))), {
      known: stillKnown,
      unknown: '503 `review_timed_out_inside`',
      forged: forgedAnyway,
      calls: '20 reviews',
      recovered: 'at once',
    });
  });

  it('the CA rotates, and every connection ends', async ({ name }) => {
    assert.deepEqual(await strike(name, { begin: () => rotateCa(true) }), {
      known: '200 (review)',
      unknown: '200 (review)',
      forged: forgedAnyway,
      calls: '21 reviews',
      recovered: '—',
    });
  });

  it('the CA rotates, and its file comes late', async ({ name }) => {
    assert.deepEqual(await strike(name, { begin: () => rotateCa(false), end: () => copyFileSync(authority.caFile, files.caFile) }), {
      known: stillKnown,
      unknown: '503 `certificate_not_trusted`, then 503 `breaker_open`',
      forged: forgedAnyway,
      calls: '5 reviews, 1 own question',
      recovered: '1 s',
    });
  });

  it('our own credential rotates, and the old one ends at once', async ({ name }) => {
    assert.deepEqual(await strike(name, { begin: () => replaceCredential() }), {
      known: '200 (review)',
      unknown: '200 (review)',
      forged: forgedAnyway,
      calls: '21 reviews',
      recovered: '—',
    });
  });

  it('the signing key rotates', async ({ name }) => {
    assert.deepEqual(await strike(name, { begin: () => authority.rotateSigningKey() }), {
      known: '200 (review)',
      unknown: '200 (review)',
      forged: forgedAnyway,
      calls: '20 reviews, 1 key set',
      recovered: '—',
    });
  });

  it('the signing key rotates, and the old one retires', async ({ name }) => {
    assert.deepEqual(await strike(name, { begin: () => retireSigningKey(), isRenewed: true }), {
      known: '403 `review_refused`',
      unknown: '200 (review)',
      forged: forgedAnyway,
      calls: '12 reviews, 1 key set',
      recovered: 'at once, with a new token',
    });
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

  it('is the table in docs/faults.md', () => {
    const file = new URL('../../../docs/faults.md', import.meta.url);
    const lines = rows.map(([fault, { known, unknown, forged, calls, recovered }]) => [fault, known, unknown, forged, calls, recovered]);
    const table = formatTable([
      ['fault', 'known caller', 'unknown caller', 'forged token', 'API calls for 30 requests', 'recovered after'],
      ...lines,
    ]);
    const text = readFileSync(file, 'utf8');
    const written = text.replace(/\|[^]*\|\n/, () => table);
    if (process.env['UPDATE_DOCS'] === '1') writeFileSync(file, written);
    else assert.equal(text, written, 'the table is another one now: look at it, then run this with UPDATE_DOCS=1');
  });
});

function formatTable([head = [], ...body]: readonly (readonly string[])[]): string {
  const widths = head.map((cell, column) => Math.max(cell.length, ...body.map((line) => line[column]?.length ?? 0)));
  const format = (line: readonly string[]): string => `| ${line.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join(' | ')} |\n`;
  return [format(head), format(widths.map((width) => '-'.repeat(width))), ...body.map(format)].join('');
}
