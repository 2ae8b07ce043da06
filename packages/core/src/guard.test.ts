import assert from 'node:assert/strict';
import { generateKeyPairSync, sign } from 'node:crypto';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { after, afterEach, before, beforeEach, describe, it, mock } from 'node:test';
import { inspect } from 'node:util';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import { holdObserveTimeout } from '@k8s-sa-auth/testing/adapter-cases';

import type { Caller } from './caller.ts';
import type { IncomingRequest } from './credential.ts';
import { type Decision, decisionChannel } from './decision.ts';
import { createGuard, createOptInGuard, type Guard } from './guard.ts';
import type { GuardOptions, RouteGuard } from './options.ts';
import { processStatus } from './status.ts';

holdObserveTimeout();

let authority: Authority;
let store: Pod;
let decisions: Decision[];
let guards: { close(): Promise<void> }[];
const listen = (decision: unknown): void => void decisions.push(decision as Decision);

function guardWith(options: Partial<GuardOptions> = {}): Guard {
  const guard = createGuard({ audience: 'secret-store', allow: ['api/api'], apiServer: store.apiServer, logger: quiet, ...options });
  guards.push(guard);
  return guard;
}

function carrying(token: string, header = 'X-Client-Id'): IncomingRequest {
  return { method: 'GET', headers: { [header.toLowerCase()]: token }, rawHeaders: [header, token] };
}

const quiet = { info: () => {}, warn: () => {}, error: () => {} };
const reviews = (): number => authority.calls.filter(({ resource }) => resource === 'tokenreviews').length;
const apiToken = (audience = 'secret-store'): Promise<string> => authority.token('api/api', { audience, pod: 'api-0' });
const last = (): Decision => decisions.at(-1) ?? assert.fail('no decision');

before(async () => {
  authority = await createAuthority();
  store = await authority.pod('secret-store/secret-store');
  subscribe(decisionChannel, listen);
});
after(async () => {
  unsubscribe(decisionChannel, listen);
  await authority.close();
});
beforeEach(() => {
  decisions = [];
  guards = [];
});
afterEach(async () => {
  mock.timers.reset();
  await authority.recover();
  await Promise.all(guards.map((guard) => guard.close()));
});

describe('createGuard, its options', () => {
  const rejects = (options: object, message: RegExp): void =>
    assert.throws(() => createGuard({ apiServer: store.apiServer, ...options } as GuardOptions), { name: 'TypeError', message });

  it('requires an audience, and says what to write', () => rejects({ allow: 'any' }, /"audience" is required.*audience: 'secret-store'/));
  it('refuses an empty audience', () => rejects({ allow: 'any', audience: '' }, /"audience" is one name or several/));
  it('refuses an empty list of audiences', () => rejects({ allow: 'any', audience: [] }, /"audience" is one name/));
  it('refuses an audience with a comma', () => rejects({ allow: 'any', audience: 'a,b' }, /without commas/));
  it('refuses an audience with white space', () => rejects({ allow: 'any', audience: ['a', 'b c'] }, /white space/));
  it('refuses a list of audiences with holes', () =>
    rejects({ allow: 'any', audience: Object.assign([], { length: 2 }) }, /"audience" is one name/));
  it('refuses an audience that is not a string', () => rejects({ allow: 'any', audience: 7 }, /"audience" is one name/));
  it('refuses an audience of undefined', () => rejects({ allow: 'any', audience: undefined }, /"audience" is undefined/));
  it('requires allow', () => rejects({ audience: 'a' }, /"allow" says who may call/));
  it('refuses an unknown option', () => rejects({ audience: 'a', allow: 'any', audiance: 'b' }, /does not know "audiance"/));
  it('refuses an unknown header', () => rejects({ audience: 'a', allow: 'any', header: 'cookie' }, /"header" is 'x-client-id'/));
  it('refuses an unknown mode', () => rejects({ audience: 'a', allow: 'any', mode: 'off' }, /"mode" is 'enforce' or 'observe'/));
  it('refuses a requirePod that is not a boolean', () => rejects({ audience: 'a', allow: 'any', requirePod: 'no' }, /"requirePod"/));
  it('refuses a forwardToken that is not a boolean', () => rejects({ audience: 'a', allow: 'any', forwardToken: 'no' }, /"forwardToken"/));
  it('refuses a time that is not a number', () => rejects({ audience: 'a', allow: 'any', cacheTtlMs: '60s' }, /"cacheTtlMs" is a number/));
  it('refuses a time that no number could be made of', () =>
    rejects({ audience: 'a', allow: 'any', cacheTtlMs: Number(undefined) }, /"cacheTtlMs" is a number of milliseconds, not NaN/));
  it('refuses a logger that is not one', () => rejects({ audience: 'a', allow: 'any', logger: { info: 1 } }, /"logger" needs/));
  it('refuses what is no object', () => {
    assert.throws(() => createGuard('secret-store' as unknown as GuardOptions), { name: 'TypeError', message: /takes an object/ });
    assert.throws(() => createGuard(undefined as unknown as GuardOptions), TypeError);
    assert.throws(() => createGuard([] as unknown as GuardOptions), { name: 'TypeError', message: /takes an object/ });
  });

  it('leaves the options as they were, and does not follow them', async () => {
    const options: GuardOptions = Object.freeze({
      audience: Object.freeze(['secret-store']),
      allow: ['api/api'],
      apiServer: store.apiServer,
      logger: quiet,
    });
    const guard = createGuard(options);
    guards.push(guard);
    (options.allow as string[])[0] = 'ops/boss';
    assert.equal((await guard.check(carrying(await apiToken())))?.serviceAccount, 'api/api');
  });
});

describe('guard.check', () => {
  it('reads an answer that holds the token and 16 KiB more, and none that is longer', async () => {
    const token = await apiToken();
    const user = { username: 'system:serviceaccount:api:api', uid: 'u', groups: [], extra: {} };
    const extra = { 'authentication.kubernetes.io/pod-name': ['api-0'], 'authentication.kubernetes.io/pod-uid': ['p'] };
    const status = { authenticated: true, audiences: ['secret-store'], user: { ...user, extra } };
    const review = JSON.stringify({ kind: 'TokenReview', apiVersion: 'authentication.k8s.io/v1', spec: { token }, status });
    const answering = (length: number): void => {
      const headers = { 'Content-Type': 'application/json' };
      authority.fail({ status: 201, headers, body: review.padEnd(length) }, { times: 1 });
    };
    answering(token.length + 16_385);
    await assert.rejects(guardWith().check(carrying(token)), { status: 503 });
    answering(token.length + 16_384);
    assert.ok(await guardWith().check(carrying(token)));
  });

  it('returns the caller as the review tells it, deeply frozen', async () => {
    const caller = (await guardWith().check(carrying(await apiToken()), '/secrets/:id')) ?? assert.fail();
    assert.equal(caller.serviceAccount, 'api/api');
    assert.equal(caller.username, 'system:serviceaccount:api:api');
    assert.deepEqual(caller.audiences, ['secret-store']);
    assert.equal(caller.pod?.name, 'api-0');
    assert.match(caller.credentialId ?? '', /^JTI=/);
    assert.ok(caller.groups.includes('system:serviceaccounts:api'));
    assert.ok(Object.isFrozen(last().audiences), 'whoever is told of decisions changes none');
    assert.ok(caller.expiresAt.getTime() > Date.now());
    assert.ok(Object.isFrozen(caller) && Object.isFrozen(caller.groups) && Object.isFrozen(caller.pod) && Object.isFrozen(caller.extra));
  });

  it('refuses without a token', async () => {
    await assert.rejects(guardWith().check({ method: 'GET', headers: {}, rawHeaders: [] }), { code: 'missing_token', status: 401 });
    assert.equal(last().reason, 'no_token');
  });

  it('tells the operator of a token in the header that it does not read, and decides by its own all the same', async () => {
    const token = await apiToken();
    const missing = { code: 'missing_token', status: 401 };
    await assert.rejects(guardWith().check(carrying(`Bearer ${token}`, 'Authorization')), missing);
    assert.equal(last().reason, 'token_in_other_header');
    assert.equal(last().detail, 'It stands in Authorization, and this guard reads X-Client-Id');
    await assert.rejects(guardWith({ header: 'authorization' }).check(carrying(token)), missing);
    assert.equal(last().reason, 'token_in_other_header');
    await assert.rejects(guardWith().check(carrying('Bearer somebody-elses', 'Authorization')), missing);
    assert.equal(last().reason, 'no_token');
  });

  it('refuses garbage without asking the cluster', async () => {
    const asked = reviews();
    await assert.rejects(guardWith().check(carrying('garbage')), { code: 'invalid_token', status: 403 });
    assert.equal(reviews(), asked);
    assert.equal(last().source, 'screening');
  });

  it('answers 401 to garbage in Authorization', async () => {
    await assert.rejects(guardWith({ header: 'authorization' }).check(carrying('Bearer garbage', 'Authorization')), { status: 401 });
  });

  it('refuses a token that another key signed', async () => {
    const [header, payload] = (await apiToken()).split('.');
    const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
    const forged = `${header}.${payload}.${sign('sha256', Buffer.from(`${header}.${payload}`), privateKey).toString('base64url')}`;
    await assert.rejects(guardWith().check(carrying(forged)), { code: 'invalid_token' });
    assert.equal(last().reason, 'review_refused');
    assert.match(last().detail ?? '', /go-jose/);
  });

  for (const verification of ['review', 'signature'] as const) {
    it(`screens one signature in each turn of the event loop, and a remembered caller waits for none of them (${verification})`, async () => {
      const guard = guardWith({ verification });
      await guard.ready();
      const token = await apiToken();
      await guard.check(carrying(token));
      const refused: string[] = [];
      const cut = token.lastIndexOf('.') + 1;
      const forgeries = ['AAAA', 'BBBB', 'CCCC', 'AAAA'].map((start) =>
        guard.check(carrying(`${token.slice(0, cut)}${start}${token.slice(cut + 4)}`)).catch(() => refused.push(start)),
      );
      assert.equal((guard.checkNow(carrying(token)) as Caller).serviceAccount, 'api/api');
      const seen: number[] = [];
      while (refused.length < 4) {
        await new Promise(setImmediate);
        seen.push(refused.length);
      }
      await Promise.all(forgeries);
      assert.deepEqual(
        seen.filter((count) => count > 0),
        [2, 3, 4],
      );
      assert.equal(last().reason, 'forged');
    });
  }

  it('refuses a forged token without asking, once it has the cluster’s keys', async () => {
    const guard = guardWith();
    await guard.ready();
    const [header, payload, signature] = (await apiToken()).split('.');
    const [, others] = (await authority.token('ops/boss', { audience: 'secret-store', pod: 'b' })).split('.');
    const asked = reviews();
    await assert.rejects(guard.check(carrying(`${header}.${others}.${signature}`)), { code: 'invalid_token' });
    assert.equal(last().reason, 'forged');
    assert.equal(last().source, 'screening');
    assert.equal(reviews(), asked);
    assert.ok(await guard.check(carrying(`${header}.${payload}.${signature}`)));
  });

  it('refuses a stranger without asking, once it has the cluster’s keys, and takes nobody for proven by that', async () => {
    const guard = guardWith();
    await guard.ready();
    const asked = reviews();
    const token = await authority.token('stranger/stranger', { audience: 'secret-store', pod: 's' });
    await assert.rejects(guard.check(carrying(token)), { code: 'caller_not_allowed', status: 403 });
    assert.equal(last().source, 'screening');
    assert.equal(last().caller, undefined);
    assert.equal(reviews(), asked);
  });

  it('lets all pods of one ServiceAccount go on through an outage', async () => {
    const guard = guardWith({ cacheTtlMs: 0 });
    await guard.ready();
    const known = await Promise.all(
      Array.from({ length: 150 }, (_item, index) => authority.token('api/api', { audience: 'secret-store', pod: `api-${index}` })),
    );
    for (const token of known) await guard.check(carrying(token));
    authority.fail('outage');
    const answers = await Promise.allSettled(known.map((token) => guard.check(carrying(token))));
    assert.deepEqual([...new Set(answers.map(({ status }) => status))], ['fulfilled']);
  });

  it('lets a known caller go on in an outage, however often it calls, though its key is not loaded yet', async () => {
    const cluster = await createAuthority();
    try {
      const guard = guardWith({ cacheTtlMs: 0, apiServer: { kubeconfig: cluster.kubeconfig } });
      await guard.ready();
      cluster.rotateSigningKey();
      const token = await cluster.token('api/api', { audience: 'secret-store', pod: 'a' });
      await guard.check(carrying(token));
      cluster.fail('outage');
      for (let calls = 0; calls < 15; calls++) assert.ok(await guard.check(carrying(token)));
    } finally {
      await cluster.close();
    }
  });

  it('asks about ten tokens a second that name no key of the cluster, and knows nobody above that', async () => {
    const guard = guardWith();
    await guard.ready();
    mock.timers.enable({ apis: ['Date'], now: Date.now() });
    const asked = reviews();
    const [, payload] = (await apiToken()).split('.');
    const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    const outcomes: number[] = [];
    for (let index = 0; index < 15; index++) {
      const signed = `${Buffer.from(JSON.stringify({ alg: 'ES256', kid: `k${index}` })).toString('base64url')}.${payload}`;
      const token = `${signed}.${sign('sha256', Buffer.from(signed), { key: privateKey, dsaEncoding: 'ieee-p1363' }).toString('base64url')}`;
      await guard.check(carrying(token)).catch((error: { status: number }) => outcomes.push(error.status));
    }
    assert.deepEqual(outcomes, [...Array.from({ length: 10 }, () => 403), ...Array.from({ length: 5 }, () => 503)]);
    assert.equal(last().reason, 'unknown_keys');
    assert.equal(reviews(), asked + 10);
  });

  it('stops asking after five failures, and answers known callers at once', async () => {
    const guard = guardWith({ cacheTtlMs: 0 });
    const token = await apiToken();
    await guard.check(carrying(token));
    authority.fail('outage');
    const reasons: (string | undefined)[] = [];
    while (reasons.at(-1) !== 'breaker_open') {
      await assert.rejects(guard.check(carrying(await authority.token('api/api', { audience: 'secret-store', pod: 'unknown' }))));
      reasons.push(last().reason);
      assert.ok(reasons.length < 50);
    }
    assert.ok(reasons.slice(0, 5).every((reason) => reason?.startsWith('connection_')));
    assert.equal((await guard.check(carrying(token)))?.serviceAccount, 'api/api');
    assert.equal(last().source, 'stale');
  });

  it('is not kept from asking by one caller whose token makes the server hang up', async () => {
    const guard = guardWith();
    const good = await authority.token('api/api', { audience: 'secret-store', pod: 'good' });
    const bad = await authority.token('api/api', { audience: 'secret-store', pod: 'bad' });
    const fault = authority.fail({ status: 500, body: '' });
    for (let index = 0; index < 6; index++) await assert.rejects(guard.check(carrying(bad)), { status: 503 });
    fault[Symbol.dispose]();
    assert.ok(await guard.check(carrying(good)));
  });

  it('refuses a token for another audience without asking', async () => {
    const asked = reviews();
    await assert.rejects(guardWith().check(carrying(await apiToken('vault'))), { code: 'invalid_token' });
    assert.equal(last().reason, 'other_audience');
    assert.equal(reviews(), asked);
  });

  it('names to the operator whose token is for something else or has expired, where a key of the cluster says so', async () => {
    const guard = guardWith();
    await guard.ready();
    const tell = async (token: string): Promise<unknown> => {
      await assert.rejects(guard.check(carrying(token)), { code: 'invalid_token', message: 'The ServiceAccount token was not accepted' });
      const { reason, claimant, detail, caller, source } = last();
      return { reason, claimant, detail, caller, source };
    };
    const elsewhere = { reason: 'other_audience', claimant: 'api/api', detail: 'It is for vault', caller: undefined, source: 'screening' };
    const [vault, own] = [await apiToken('vault'), await apiToken()];
    // Ten in a second are looked at, whatever they are.
    mock.timers.enable({ apis: ['Date'], now: Math.ceil(Date.now() / 1000) * 1000 });
    assert.deepEqual(await tell(vault), elsewhere);
    const nobody = { reason: 'other_audience', claimant: undefined, detail: undefined, caller: undefined, source: 'screening' };
    assert.deepEqual(await tell(`${vault.slice(0, -8)}AAAAAAAA`), nobody);
    for (let more = 2; more < 10; more++) assert.deepEqual(await tell(vault), elsewhere);
    const unlooked = 'Whose it is was not looked at: there are more than ten of these in a second';
    assert.deepEqual(await tell(vault), { ...nobody, detail: unlooked });
    mock.timers.tick(3_600_000);
    const { exp } = JSON.parse(Buffer.from(own.split('.')[1] ?? '', 'base64url').toString()) as { exp: number };
    const expired = `It expired at ${new Date(exp * 1000).toISOString()}, and it is ${new Date().toISOString()} here`;
    assert.deepEqual(await tell(own), { ...elsewhere, reason: 'expired', detail: expired });
  });

  it('refuses another spelling of a good token, which the API server would accept', async () => {
    const token = await apiToken();
    await assert.rejects(guardWith().check(carrying(` ${token}`)), { code: 'invalid_token' });
    await assert.rejects(guardWith().check(carrying(`${token} junk`)), { code: 'invalid_token' });
    await assert.rejects(guardWith().check(carrying(`${token}\n`)), { code: 'invalid_token' });
  });

  it('refuses an authenticator that ignores audiences', async () => {
    authority.fail('ignores-audiences');
    await assert.rejects(guardWith().check(carrying(await apiToken())), { code: 'invalid_token' });
    assert.equal(last().reason, 'review_for_other_audiences');
  });

  it('refuses a good caller that may not call', async () => {
    await assert.rejects(guardWith().check(carrying(await authority.token('stranger/stranger', { audience: 'secret-store', pod: 's' }))), {
      code: 'caller_not_allowed',
      status: 403,
    });
    assert.equal(last().caller?.serviceAccount, 'stranger/stranger');
  });

  it('tells whom the cluster’s signature names, where no review had to prove it', async () => {
    const guard = guardWith();
    await guard.ready();
    const asked = reviews();
    await assert.rejects(guard.check(carrying(await authority.token('stranger/stranger', { audience: 'secret-store', pod: 's' }))));
    assert.deepEqual([last().source, last().claimant, last().caller, reviews()], ['screening', 'stranger/stranger', undefined, asked]);
    const forged = `${(await authority.token('stranger/stranger', { audience: 'secret-store', pod: 's' })).slice(0, -8)}AAAAAAAA`;
    await assert.rejects(guard.check(carrying(forged)));
    assert.deepEqual([last().reason, last().claimant], ['forged', undefined]);
  });

  it('refuses a token that is not bound to a pod', async () => {
    const token = await authority.token('api/api', { audience: 'secret-store' });
    await assert.rejects(guardWith().check(carrying(token)), { code: 'invalid_token' });
    assert.equal(last().reason, 'not_bound_to_a_pod');
  });

  it('takes a token without a pod where that is not required', async () => {
    const token = await authority.token('api/api', { audience: 'secret-store' });
    const caller = await guardWith({ requirePod: false }).check(carrying(token));
    assert.equal(caller?.pod, undefined);
  });

  it('refuses the token of a deleted pod once the windows have passed', async () => {
    const guard = guardWith();
    const token = await authority.token('api/api', { audience: 'secret-store', pod: 'short-lived' });
    await guard.check(carrying(token));
    await authority.delete('pod', 'api/short-lived');
    assert.equal((await guard.check(carrying(token)))?.serviceAccount, 'api/api');
    mock.timers.enable({ apis: ['Date'], now: Date.now() + 60_000 });
    await assert.rejects(guard.check(carrying(token)), { code: 'invalid_token' });
    assert.match(last().detail ?? '', /invalidated/);
  });

  it('names to the operator whose token a review refuses, where its signature or an earlier review says so, and as long as it is remembered', async () => {
    const guard = guardWith();
    await guard.ready();
    const [known, fresh] = await Promise.all(
      ['known', 'fresh'].map((pod) => authority.token('api/api', { audience: 'secret-store', pod })),
    );
    await guard.check(carrying(known ?? ''));
    await authority.delete('pod', 'api/known');
    await authority.delete('pod', 'api/fresh');
    mock.timers.enable({ apis: ['Date'], now: Date.now() + 60_001 });
    for (const [token = '', source] of [
      [known, 'review'],
      [fresh, 'review'],
      [known, 'cache'],
      [fresh, 'cache'],
    ] as const) {
      await assert.rejects(guard.check(carrying(token)), { code: 'invalid_token' });
      assert.partialDeepStrictEqual(last(), { reason: 'review_refused', claimant: 'api/api', source });
      assert.equal(last().caller, undefined);
    }
    const stranger = guardWith();
    await assert.rejects(stranger.check(carrying(fresh ?? '')), { code: 'invalid_token' });
    assert.equal(last().claimant, undefined, 'no key is at hand yet, so nobody knows whose it is');
  });

  it('gives one caller’s tokens half of the places and of the queue when they must be reviewed anew, and tells whose they are', async () => {
    const guard = guardWith({ allow: 'any' });
    await guard.ready();
    const token = await apiToken();
    await guard.check(carrying(token));
    const other = await authority.token('jobs/nightly', { audience: 'secret-store', pod: 'nightly-0' });
    mock.timers.enable({ apis: ['Date'], now: Date.now() + 60_001 });
    const held = Promise.withResolvers<void>();
    authority.fail('slow', { delayMs: 1_000 });
    const crowd = Promise.allSettled(Array.from({ length: 502 }, () => guard.check(carrying(token))));
    void crowd.then(() => held.resolve());
    assert.equal((await guard.check(carrying(other)))?.serviceAccount, 'jobs/nightly');
    await held.promise;
    const full = decisions.filter(({ reason }) => reason === 'queue_of_caller_full');
    assert.deepEqual([full.length, full[0]?.claimant], [1, 'api/api']);
    assert.equal((await crowd).filter(({ status }) => status === 'fulfilled').length, 501);
  });

  it('passes a predicate’s true and nothing else', async () => {
    const token = await apiToken();
    const check = (answer: unknown): Promise<Caller | undefined> => guardWith({ allow: () => answer as boolean }).check(carrying(token));
    assert.ok(await check(true));
    assert.ok(await check(Promise.resolve(true)));
    await assert.rejects(check(1), { code: 'caller_not_allowed' });
    await assert.rejects(check('yes'), { code: 'caller_not_allowed' });
    await assert.rejects(check(undefined), { code: 'caller_not_allowed' });
    await assert.rejects(check(Promise.resolve(false)), { code: 'caller_not_allowed' });
  });

  it('asks a predicate about the caller, the method and the route’s pattern', async () => {
    const asked: unknown[] = [];
    const guard = guardWith({ allow: (caller, request) => asked.push(caller.serviceAccount, request) > 0 });
    await guard.check(carrying(await apiToken()), '/secrets/:id');
    assert.deepEqual(asked, ['api/api', { method: 'GET', route: '/secrets/:id' }]);
  });

  it('makes a 500 of whatever a predicate throws, with the cause for the operator', async () => {
    const token = await apiToken();
    const failing = (cause: unknown): Promise<unknown> => guardWith({ allow: () => Promise.reject(cause) }).check(carrying(token));
    const bug = new RangeError('a bug');
    await assert.rejects(failing(bug), (error: Error) => error.message === '"allow" failed' && error.cause === bug);
    await assert.rejects(failing(undefined), { name: 'Error', message: '"allow" failed' });
    await assert.rejects(failing('route'), { name: 'Error', message: '"allow" failed' });
    await assert.rejects(failing(Object.freeze(Object.assign(new Error('x'), { status: 200 }))), (error: object) => !('status' in error));
  });

  it('decides without a logger that fails', async () => {
    const broken = (): never => {
      throw new Error('log stream destroyed');
    };
    const guard = guardWith({ logger: { info: broken, warn: broken, error: broken } });
    await assert.rejects(guard.check(carrying('garbage')), { status: 403 });
    authority.fail('outage');
    await assert.rejects(guard.check(carrying(await apiToken())), { status: 503 });
  });

  it('decides without a logger that fails later', async () => {
    const late = (): Promise<void> => Promise.reject(new Error('log stream destroyed'));
    // The runner fails this test for a rejection that nobody handles.
    await assert.rejects(guardWith({ logger: { info: late, warn: late, error: late } }).check(carrying('garbage')), { status: 403 });
  });

  it('asks once for a token that it remembers', async () => {
    const guard = guardWith();
    const token = await apiToken();
    const asked = reviews();
    await guard.check(carrying(token));
    await guard.check(carrying(token));
    assert.equal(reviews(), asked + 1);
    assert.equal(last().source, 'cache');
  });

  it('asks once for many that arrive together', async () => {
    const guard = guardWith();
    const token = await apiToken();
    const asked = reviews();
    await Promise.all(Array.from({ length: 300 }, () => guard.check(carrying(token))));
    assert.equal(reviews(), asked + 1);
  });

  it('asks again for another audience', async () => {
    const guard = guardWith();
    const token = await authority.token('api/api', { audience: ['secret-store', 'admin'], pod: 'api-0' });
    const asked = reviews();
    assert.deepEqual((await guard.check(carrying(token)))?.audiences, ['secret-store']);
    assert.deepEqual((await guard.with({ audience: 'admin', allow: ['api/*'] }).check(carrying(token)))?.audiences, ['admin']);
    assert.equal(reviews(), asked + 2);
  });

  it('knows nobody when the cluster is away, and says when to come back', async () => {
    authority.fail('outage');
    await assert.rejects(guardWith().check(carrying(await apiToken())), (error: { status: number; headers: Record<string, string> }) => {
      assert.equal(error.status, 503);
      assert.match(error.headers['retry-after'] ?? '', /^[1-5]$/);
      return true;
    });
    assert.equal(last().code, 'review_unavailable');
    assert.equal(last().reason, 'connection_failed');
  });

  it('lets a known caller go on while the cluster is away, and asks again when it is back', async () => {
    const guard = guardWith({ cacheTtlMs: 0 });
    const token = await apiToken();
    await guard.check(carrying(token));
    authority.fail('outage');
    assert.equal((await guard.check(carrying(token)))?.serviceAccount, 'api/api');
    assert.equal(last().source, 'stale');
    await authority.recover();
    await guard.check(carrying(token));
    assert.equal(last().source, 'review');
  });

  it('is the cluster’s trouble, not the caller’s, when our own permission is missing', async () => {
    const powerless = await authority.pod('secret-store/powerless', { reviews: false });
    await assert.rejects(guardWith({ apiServer: powerless.apiServer }).check(carrying(await apiToken())), { status: 503 });
    assert.equal(last().reason, 'own_permission_missing');
    assert.match(last().detail ?? '', /^403 tokenreviews\.authentication\.k8s\.io is forbidden/);
  });

  it('is the cluster’s trouble when our own credential is refused', async () => {
    authority.fail('unauthorized');
    await assert.rejects(guardWith().check(carrying(await apiToken())), { status: 503 });
    assert.equal(last().reason, 'own_credentials_refused');
  });

  it('is the cluster’s trouble when the answer is broken', async () => {
    authority.fail('broken-body');
    await assert.rejects(guardWith().check(carrying(await apiToken())), { status: 503 });
    assert.equal(last().reason, 'not_a_token_review');
  });

  it('is the cluster’s trouble when it is too busy for both attempts', async () => {
    authority.fail('too-many-requests');
    const asked = reviews();
    await assert.rejects(guardWith().check(carrying(await apiToken())), { status: 503 });
    assert.equal(last().reason, 'too_many_requests');
    assert.equal(reviews(), asked + 2);
  });

  it('goes on asking one that fails reviews and is too busy for its own question: it answers', async () => {
    authority.fail('broken-body');
    authority.fail('too-many-requests', { resource: 'selfsubjectaccessreviews' });
    const guard = guardWith();
    for (let failed = 0; failed < 5; failed++) {
      await assert.rejects(guard.check(carrying(await authority.token('api/api', { audience: 'secret-store', pod: `api-${failed}` }))));
    }
    const state = (): unknown => processStatus().guards.map(({ breaker }) => breaker);
    assert.deepEqual(state(), ['asking']);
    while (processStatus().guards[0]?.breaker === 'asking') await new Promise(setImmediate);
    assert.deepEqual(state(), ['shut']);
  });

  it('tells at close how many refusals it held back', async () => {
    const told: object[] = [];
    const guard = guardWith({ logger: { ...quiet, info: (details) => void told.push(details) } });
    for (const token of ['a', 'b', 'c']) await assert.rejects(guard.check(carrying(token)), { code: 'invalid_token' });
    const times = (): unknown => told.map((details) => 'times' in details && details.times);
    assert.deepEqual(times(), [1]);
    await guard.close();
    assert.deepEqual(times(), [1, 2]);
  });

  it('throws where the audience is the API server’s own, in words for the operator that no caller is answered with', async () => {
    const audience = 'https://kubernetes.default.svc.cluster.local';
    for (const verification of ['review', 'signature'] as const) {
      await assert.rejects(guardWith({ audience, verification }).check(carrying(await apiToken(audience))), (error: Error) => {
        assert.equal(error.message, "The guard's options are wrong");
        assert.match(String(error.cause), /^TypeError: .* is the API server's own/);
        return true;
      });
    }
  });

  it('says in each 503 why it has stopped asking, in one line', async () => {
    const warned: string[] = [];
    const open = Promise.withResolvers<void>();
    const warn = (details: object, message: string): void => {
      if (!('kind' in details) || details.kind !== 'breaker_open') return;
      warned.push(message);
      open.resolve();
    };
    const guard = guardWith({ logger: { ...quiet, warn } });
    await guard.ready();
    const tokens = await Promise.all(
      Array.from({ length: 6 }, (_item, index) => authority.token('api/api', { audience: 'secret-store', pod: `shut-out-${index}` })),
    );
    authority.fail('unauthorized');
    for (const token of tokens.slice(1)) await assert.rejects(guard.check(carrying(token)), { status: 503 });
    await open.promise;
    await assert.rejects(guard.check(carrying(tokens[0] ?? '')), { status: 503 });
    const why = 'The API server does not say whether tokenreviews may be created (401 Unauthorized)';
    assert.partialDeepStrictEqual(last(), { reason: 'breaker_open', detail: `own_credentials_refused: ${why}` });
    assert.deepEqual(warned, [`No token is reviewed until the API server answers our own question (own_credentials_refused): ${why}`]);
  });

  it('answers 503 after close to what would need a review', async () => {
    const guard = guardWith({ cacheTtlMs: 0 });
    const token = await apiToken();
    await guard.check(carrying(token));
    await guard.close();
    await assert.rejects(guard.check(carrying(token)), { status: 503 });
    await assert.rejects(guard.check(carrying(await authority.token('api/api', { audience: 'secret-store', pod: 'new' }))), {
      status: 503,
    });
    assert.equal(last().reason, 'closed');
  });
});

describe('guard.with', () => {
  it('replaces name by name, and inherits what is not named', async () => {
    const guard = guardWith({ requirePod: false }).with({ allow: ['ops/*'] });
    const token = await authority.token('ops/boss', { audience: 'secret-store' });
    assert.equal((await guard.check(carrying(token)))?.serviceAccount, 'ops/boss');
  });

  it('inherits no allow', () => {
    assert.throws(() => guardWith().with({ audience: 'admin' } as RouteGuard), { name: 'TypeError', message: /"allow" says who/ });
  });

  it('refuses what only the whole guard can say', () => {
    assert.throws(() => guardWith().with({ allow: 'any', header: 'authorization' } as RouteGuard), /does not know "header"/);
  });

  it('refuses a value of undefined rather than inherit by accident', () => {
    assert.throws(() => guardWith().with({ allow: 'any', audience: undefined } as unknown as RouteGuard), /"audience" is undefined/);
  });
});

describe('createOptInGuard', () => {
  it('takes the audience from its routes alone', async () => {
    const guard = createOptInGuard({ apiServer: store.apiServer, logger: quiet });
    guards.push(guard);
    assert.throws(() => guard.with({ allow: 'any' }), /"audience" is required/);
    assert.ok(await guard.with({ allow: 'any', audience: 'secret-store' }).check(carrying(await apiToken())));
  });
});

describe('guard.ready', () => {
  it('resolves once the cluster grants the permission, and stays so through an outage', async () => {
    const guard = guardWith();
    await guard.ready();
    authority.fail('outage');
    await guard.ready();
  });

  it('does not resolve any more once closed', async () => {
    const guard = guardWith();
    await guard.ready();
    await guard.close();
    await assert.rejects(guard.ready(), { name: 'ClusterError', message: /The guard is closed/ });
  });

  it('prints the ClusterRoleBinding to apply where the permission is missing', async () => {
    const powerless = await authority.pod('secret-store/powerless', { reviews: false });
    await assert.rejects(guardWith({ apiServer: powerless.apiServer }).ready(), {
      name: 'ClusterError',
      message:
        /secret-store:powerless may not create TokenReviews[^]*kind: ClusterRoleBinding[^]*name: powerless\n {4}namespace: secret-store/,
    });
  });

  it('says why when the cluster cannot be asked, tries anew, and says when it is over', async () => {
    const told: string[] = [];
    const info = (_details: object, message: string): void => void told.push(`info ${message}`);
    const warn = (details: object): void => void told.push(`warn ${(details as { kind: string }).kind}`);
    const guard = guardWith({ logger: { ...quiet, info, warn } });
    authority.fail('outage');
    await assert.rejects(guard.ready(), { name: 'ClusterError', message: /cannot be connected to \(ECONN/ });
    await assert.rejects(guard.ready(), { name: 'ClusterError' });
    await authority.recover();
    await guard.ready();
    await guard.ready();
    assert.deepEqual(
      told.filter((line) => !line.includes('signing')),
      ['warn not_ready', 'info Tokens can be reviewed'],
    );
  });

  it('says why although a probe ran out of time before', async () => {
    const powerless = await authority.pod('secret-store/powerless', { reviews: false });
    const told: string[] = [];
    const guard = guardWith({ apiServer: powerless.apiServer, logger: { ...quiet, warn: (_details, message) => void told.push(message) } });
    await assert.rejects(guard.ready(AbortSignal.abort(new Error('the probe timed out'))), { message: 'the probe timed out' });
    assert.deepEqual(told, []);
    await assert.rejects(guard.ready(), { name: 'ClusterError' });
    assert.match(told.join(), /may not create TokenReviews/);
  });

  it('takes nothing for a permission but a yes to this very question', async () => {
    for (const { kind, allowed } of [
      { kind: 'SubjectAccessReview', allowed: true },
      { kind: 'SelfSubjectAccessReview', allowed: 'true' },
      { kind: 'SelfSubjectAccessReview', allowed: undefined },
    ]) {
      const body = JSON.stringify({ kind, apiVersion: 'authorization.k8s.io/v1', status: { allowed } });
      const headers = { 'Content-Type': 'application/json' };
      authority.fail({ status: 201, headers, body }, { times: 1, resource: 'selfsubjectaccessreviews' });
      await assert.rejects(guardWith().ready(), { name: 'ClusterError', message: /does not say whether tokenreviews may be created/ });
    }
  });

  it('refuses an audience that is the API server’s own', async () => {
    await assert.rejects(guardWith({ audience: ['a', 'https://kubernetes.default.svc.cluster.local'] }).ready(), { name: 'TypeError' });
  });

  it('refuses it in a route too', async () => {
    const guard = guardWith();
    guard.with({ allow: 'any', audience: 'https://kubernetes.default.svc.cluster.local' });
    await assert.rejects(guard.ready(), { name: 'TypeError' });
  });

  it('ends with its signal', async () => {
    await assert.rejects(guardWith().ready(AbortSignal.abort(new Error('shutting down'))), { message: 'shutting down' });
  });
});

describe('mode observe', () => {
  it('passes everyone, and sets a caller only where it would have let it pass', async () => {
    const guard = guardWith({ mode: 'observe' });
    assert.equal(await guard.check({ method: 'GET', headers: {}, rawHeaders: [] }), undefined);
    assert.equal(await guard.check(carrying('garbage')), undefined);
    assert.equal((await guard.check(carrying(await apiToken())))?.serviceAccount, 'api/api');
    assert.deepEqual(
      decisions.map(({ outcome, enforced }) => [outcome, enforced]),
      [
        ['refused', false],
        ['refused', false],
        ['allowed', false],
      ],
    );
  });

  it('leaves headers alone, on the request and on the answer', async () => {
    const request = carrying('garbage');
    const guard = guardWith({ mode: 'observe' });
    await guard.check(request);
    guard.discard(request);
    assert.deepEqual(guard.responseHeaders, {});
    assert.deepEqual(request.rawHeaders, ['X-Client-Id', 'garbage']);
  });

  it('leaves the token on a public route too, where handlers are to have it', async () => {
    const request = carrying(await apiToken());
    guardWith({ forwardToken: true }).discard(request);
    assert.equal(request.rawHeaders.length, 2);
    guardWith().discard(request);
    assert.equal(request.rawHeaders.length, 0);
  });

  it('passes in an outage, and on a predicate that throws', async () => {
    const token = await apiToken();
    const mistaken = guardWith({
      mode: 'observe',
      allow: () => {
        throw new Error('a bug');
      },
    });
    assert.equal(await mistaken.check(carrying(token)), undefined);
    assert.equal(last().reason, 'guard_failed');
    assert.match(last().detail ?? '', /a bug/);
    const unprintable = guardWith({ mode: 'observe', allow: () => Promise.reject(Object.create(null) as Error) });
    assert.equal(await unprintable.check(carrying(token)), undefined);
    authority.fail('outage');
    assert.equal(await guardWith({ mode: 'observe' }).check(carrying(token)), undefined);
    assert.equal(last().outcome, 'unavailable');
  });

  it('decides within 250 ms', async () => {
    authority.fail('slow');
    mock.timers.enable({ apis: ['setTimeout'] });
    const decided = guardWith({ mode: 'observe' }).check(carrying(await apiToken()));
    mock.timers.tick(250);
    assert.equal(await decided, undefined);
    assert.equal(last().reason, 'observe_timeout');
  });

  it('says at the start that it enforces nothing', () => {
    const warned: string[] = [];
    guardWith({ mode: 'observe', logger: { ...quiet, warn: (_details, message) => warned.push(message) } });
    assert.deepEqual(warned, ['The guard for secret-store only observes: nothing is refused']);
  });

  it('says it of each route where only routes have audiences', () => {
    const warned: string[] = [];
    const logger = { ...quiet, warn: (_details: object, message: string) => void warned.push(message) };
    const base = createOptInGuard({ apiServer: store.apiServer, mode: 'observe', logger });
    guards.push(base);
    assert.deepEqual(warned, []);
    base.with({ audience: 'shop', allow: 'any' });
    assert.deepEqual(warned, ['The guard for shop only observes: nothing is refused']);
  });
});

describe('what a guard tells', () => {
  it('tells each decision with what decided it, and never the URL', async () => {
    await guardWith().check(carrying(await apiToken()), '/secrets/:id');
    const { durationMs, caller, ...rest } = last();
    assert.deepEqual(rest, {
      outcome: 'allowed',
      enforced: true,
      audiences: ['secret-store'],
      request: { method: 'GET', route: '/secrets/:id' },
      source: 'review',
    });
    assert.ok(durationMs >= 0);
    assert.equal(caller?.serviceAccount, 'api/api');
  });

  it('logs refusals with the operator’s reason', async () => {
    const logged: unknown[] = [];
    const guard = guardWith({ logger: { ...quiet, info: (details, message) => logged.push({ ...details, durationMs: 0 }, message) } });
    await assert.rejects(guard.check(carrying('garbage')));
    assert.deepEqual(logged, [
      {
        outcome: 'refused',
        enforced: true,
        code: 'invalid_token',
        reason: 'not_a_jwt',
        detail: 'It has 1 part, not 3',
        audiences: ['secret-store'],
        request: { method: 'GET', route: undefined },
        source: 'screening',
        durationMs: 0,
        times: 1,
      },
      'Request refused',
    ]);
  });

  it('holds no token in anything that can be printed', async () => {
    const printed: string[] = [];
    const logger = {
      info: (...line: unknown[]) => printed.push(inspect(line, { depth: 20 })),
      warn: (...line: unknown[]) => printed.push(inspect(line, { depth: 20 })),
      error: (...line: unknown[]) => printed.push(inspect(line, { depth: 20 })),
    };
    const guard = guardWith({ logger });
    const good = await apiToken();
    const other = await apiToken('vault');
    const stranger = await authority.token('stranger/stranger', { audience: 'secret-store', pod: 's' });
    printed.push(inspect(await guard.check(carrying(good)), { depth: 20, showHidden: true }));
    const refused = [other, stranger, `${good}x`, `Bearer ${good}`].map((token) => guard.check(carrying(token)));
    authority.fail({ status: 500, body: JSON.stringify({ message: `cannot review ${good}` }) });
    refused.push(guard.check(carrying(await authority.token('api/api', { audience: 'secret-store', pod: 'api-1' }))));
    for (const outcome of await Promise.allSettled(refused)) {
      assert.equal(outcome.status, 'rejected');
      printed.push(inspect(outcome.reason, { depth: 20, showHidden: true }), JSON.stringify(outcome.reason), String(outcome.reason));
    }
    printed.push(inspect(guard, { depth: 20, showHidden: true }), JSON.stringify(guard), inspect(decisions, { depth: 20 }));
    const signatures = [good, other, stranger].map((token) => token.split('.')[2] ?? '');
    assert.ok(printed.length > 10);
    assert.deepEqual(
      printed.filter((text) => signatures.some((signature) => text.includes(signature))),
      [],
    );
  });
});

describe('a guard, while many tokens wait for their turn', () => {
  const immediate = (): Promise<unknown> => new Promise(setImmediate);
  const forgeries = (token: string, count: number): string[] => {
    const [header = '', claims = '', signature = ''] = token.split('.');
    return Array.from({ length: count }, (_, at) => `${header}.${claims}.${String(at).padStart(8, '0')}${signature.slice(8)}`);
  };
  const outcomeOf = (checked: Promise<unknown>): Promise<string> =>
    checked.then(
      () => 'allowed',
      (error: { code: string }) => error.code,
    );

  for (const verification of ['review', 'signature'] as const) {
    it(`turns nobody away, nor a caller whose minute has ended, by ${verification}`, async () => {
      mock.timers.enable({ apis: ['Date'], now: authority.now() });
      const guard = guardWith({ verification });
      await guard.ready();
      const tokenOf = (pod: string): Promise<string> => authority.token('api/api', { audience: 'secret-store', pod });
      const [known, fresh, other] = [await apiToken(), await tokenOf('api-1'), await tokenOf('api-2')];
      await guard.check(carrying(known));
      mock.timers.tick(60_001);
      authority.advance(60_001);
      // The guard's own credentials are read again by now, which takes as long as a disk.
      await guard.check(carrying(other));
      const forged = forgeries(known, 1_100).map((token) => outcomeOf(guard.check(carrying(token))));
      const good = [known, fresh].map((token) => outcomeOf(guard.check(carrying(token))));
      assert.deepEqual(await Promise.all(good), ['allowed', 'allowed']);
      assert.deepEqual([...new Set(await Promise.all(forged))], ['invalid_token']);
    });
  }

  it('asks once about a token that comes in one turn after the other, and is refused elsewhere meanwhile', async () => {
    const guard = guardWith();
    const other = guard.with({ allow: ['ops/*'] });
    await guard.ready();
    const earlier = reviews();
    const token = await apiToken();
    let isRemembered = false;
    const all: Promise<unknown>[] = [];
    while (!isRemembered) {
      const caller = guard.checkNow(carrying(token));
      isRemembered = !(caller instanceof Promise);
      all.push(Promise.resolve(caller), assert.rejects(other.check(carrying(token)), { code: 'caller_not_allowed' }));
      await immediate();
    }
    await Promise.all(all);
    assert.ok(all.length > 4);
    assert.equal(reviews() - earlier, 1);
  });

  it('looks anew at a token that was one too many under a key that nobody knew', async () => {
    mock.timers.enable({ apis: ['Date'], now: authority.now() });
    const guard = guardWith();
    await guard.ready();
    authority.rotateSigningKey();
    const pods = Array.from({ length: 11 }, (_, at) => authority.token('api/api', { audience: 'secret-store', pod: `api-${at}` }));
    const tokens = await Promise.all(pods);
    const outcomes = await Promise.all(tokens.map((token) => outcomeOf(guard.check(carrying(token)))));
    assert.deepEqual(outcomes, [...Array.from({ length: 10 }, () => 'allowed'), 'review_unavailable']);
    assert.ok(decisions.some(({ reason }) => reason === 'unknown_keys'));
    mock.timers.tick(30_000);
    assert.equal(await outcomeOf(guard.check(carrying(tokens.at(-1) ?? ''))), 'allowed');
  });

  it('answers 503 to a token whose turn comes too late, and asks nobody', async () => {
    const guard = guardWith();
    await guard.ready();
    const earlier = reviews();
    const checked = guard.check(carrying(await apiToken()));
    const now = performance.now();
    mock.method(performance, 'now', () => now + 5_000);
    try {
      await assert.rejects(checked, { code: 'review_unavailable' });
    } finally {
      mock.restoreAll();
    }
    assert.equal(last().reason, 'queue_timeout');
    assert.equal(reviews(), earlier);
  });
});

describe('a guard, on one connection', () => {
  const on = (socket: object, token: string): IncomingRequest => ({ ...carrying(token), socket });

  it('asks once, and answers a remembered caller without a promise', async () => {
    const guard = guardWith();
    const socket = {};
    const token = await apiToken();
    const earlier = reviews();
    const first = guard.checkNow(on(socket, token));
    assert.ok(first instanceof Promise);
    const caller = await first;
    assert.equal(guard.checkNow(on(socket, token)), caller);
    assert.equal(guard.checkNow(on(socket, token)), caller);
    assert.equal(guard.checkNow(on({}, token)), caller);
    assert.equal(reviews() - earlier, 1);
    assert.deepEqual([last().outcome, last().source], ['allowed', 'cache']);
  });

  it('never throws: what is certain at once is rejected', async () => {
    const guard = guardWith();
    const socket = {};
    const token = await apiToken();
    await guard.check(on(socket, token));
    const fail = (): boolean => {
      throw new RangeError('a predicate of somebody else');
    };
    for (const [asked, error] of [
      [guard.checkNow({ headers: {}, rawHeaders: [], socket }), { code: 'missing_token' }],
      [guard.with({ allow: ['ops/*'] }).checkNow(on(socket, token)), { code: 'caller_not_allowed' }],
      [guard.with({ allow: fail }).checkNow(on(socket, token)), { message: '"allow" failed' }],
      [guard.checkNow({ headers: {}, socket } as unknown as IncomingRequest), { name: 'TypeError' }],
    ] as const) {
      assert.ok(asked instanceof Promise);
      await assert.rejects(asked, error);
    }
  });

  it('knows an HTTP/2 connection by its session', async () => {
    const guard = guardWith();
    const stream = { session: {} };
    const token = await apiToken();
    const asked = (): IncomingRequest => ({
      ...carrying(token),
      httpVersionMajor: 2,
      stream,
      get socket(): object {
        return assert.fail('the socket is another object for each request');
      },
    });
    const caller = await guard.check(asked());
    assert.equal(await guard.check(asked()), caller);
    assert.equal(guard.checkNow(asked()), caller);
  });

  it('waits for a predicate', async () => {
    const guard = guardWith({ allow: async ({ name }) => name === 'api' });
    const socket = {};
    const token = await apiToken();
    await guard.check(on(socket, token));
    const again = guard.checkNow(on(socket, token));
    assert.ok(again instanceof Promise);
    assert.equal((await again)?.serviceAccount, 'api/api');
  });

  it('takes no other token for the one that it accepted there', async () => {
    const guard = guardWith();
    const socket = {};
    const token = await apiToken();
    await guard.check(on(socket, token));
    await guard.check(on(socket, token));
    const [header, claims, signature = ''] = token.split('.');
    const flipped = `${signature.startsWith('A') ? 'B' : 'A'}${signature.slice(1)}`;
    await assert.rejects(guard.check(on(socket, [header, claims, flipped].join('.'))), { code: 'invalid_token' });
    await assert.rejects(guard.check(on(socket, token.slice(0, -1))), { code: 'invalid_token' });
    await assert.rejects(guard.check(on(socket, `${token}A`)), { code: 'invalid_token' });
    const other = await authority.token('ops/ops', { audience: 'secret-store', pod: 'ops-0' });
    await assert.rejects(guard.check(on(socket, other)), { code: 'caller_not_allowed' });
    assert.equal((await guard.check(on(socket, token)))?.serviceAccount, 'api/api');
  });

  it('does not take a token for another route’s audience', async () => {
    const guard = guardWith();
    const socket = {};
    const token = await apiToken();
    await guard.check(on(socket, token));
    await guard.check(on(socket, token));
    await assert.rejects(guard.with({ audience: 'secret-store-admin', allow: 'any' }).check(on(socket, token)), { code: 'invalid_token' });
  });

  it('remembers there no longer than elsewhere, and forgets what a review refuses', async () => {
    mock.timers.enable({ apis: ['Date'], now: authority.now() });
    const guard = guardWith();
    const socket = {};
    const token = await authority.token('gone/gone', { audience: 'secret-store', pod: 'gone-0' });
    const open = guard.with({ allow: 'any' });
    await open.check(on(socket, token));
    await open.check(on(socket, token));
    await authority.delete('serviceaccount', 'gone/gone');
    authority.advance(60_001);
    mock.timers.tick(60_001);
    await assert.rejects(open.check(on(socket, token)), { code: 'invalid_token' });
    await assert.rejects(open.check(on(socket, token)), { code: 'invalid_token' });
    assert.equal(last().source, 'cache');
  });

  it('shows nobody the token that it compares with', async () => {
    const guard = guardWith();
    const request = on({}, await apiToken());
    const [, token = ''] = request.rawHeaders;
    await guard.check(request);
    await guard.check(on(request.socket ?? {}, token));
    const shown = inspect([guard, request, request.socket], { depth: Infinity, showHidden: true, getters: true });
    assert.doesNotMatch(shown, /eyJ/);
    assert.equal(Reflect.ownKeys(request).length, 4);
  });
});
