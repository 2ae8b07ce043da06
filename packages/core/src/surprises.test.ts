// What a real kube-apiserver does that few expect, sixteen things recorded from 1.36: each as the guard meets it.

import assert from 'node:assert/strict';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { readFileSync } from 'node:fs';
import { after, afterEach, before, beforeEach, describe, it, mock } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';

import type { Caller } from './caller.ts';
import { type Decision, decisionChannel } from './decision.ts';
import { createGuard, type Guard } from './guard.ts';
import type { GuardOptions } from './options.ts';

let authority: Authority;
let store: Pod;
let guard: Guard;
let decisions: Decision[];
const listen = (decision: unknown): void => void decisions.push(decision as Decision);

// Nothing is remembered, so that each check asks.
function guardWith(options: Partial<GuardOptions> = {}): Guard {
  const logger = { info: () => {}, warn: () => {}, error: () => {} };
  return createGuard({
    audience: 'secret-store',
    allow: 'any',
    cacheTtlMs: 0,
    refusalTtlMs: 0,
    apiServer: store.apiServer,
    logger,
    ...options,
  });
}

const check = (token: string, by = guard): Promise<Caller | undefined> =>
  by.check({ method: 'GET', headers: { 'x-client-id': token }, rawHeaders: ['X-Client-Id', token] });
const reviews = (): number => authority.calls.filter(({ resource }) => resource === 'tokenreviews').length;
const reason = (): string | undefined => decisions.at(-1)?.reason;
const isRefused = { code: 'invalid_token', status: 403 };
const isUnavailable = { code: 'review_unavailable', status: 503 };

let pods = 0;
const mint = (options: { audience?: string | readonly string[]; pod?: string; expirationSeconds?: number } = {}): Promise<string> =>
  authority.token('api/api', { audience: 'secret-store', pod: `api-${pods++}`, ...options });

async function refusesWithoutAsking(token: string): Promise<void> {
  const asked = reviews();
  await assert.rejects(check(token), isRefused);
  assert.equal(reviews(), asked);
  assert.equal(decisions.at(-1)?.source, 'screening');
}

const user = {
  username: 'system:serviceaccount:api:api',
  uid: 'u',
  groups: ['system:serviceaccounts'],
  extra: { 'authentication.kubernetes.io/pod-name': ['api-0'], 'authentication.kubernetes.io/pod-uid': ['p'] },
};
const yes = { authenticated: true, user, audiences: ['secret-store'] };

function answering(status: object, token?: string, indent?: number): void {
  const metadata = { managedFields: [{ manager: 'k8s-sa-auth', operation: 'Update', fieldsType: 'FieldsV1', fieldsV1: { 'f:spec': {} } }] };
  const review = { kind: 'TokenReview', apiVersion: 'authentication.k8s.io/v1', metadata, ...(token && { spec: { token } }), status };
  authority.fail({ status: 201, headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(review, undefined, indent) });
}

describe('what surprises of an API server', () => {
  before(async () => {
    authority = await createAuthority();
    store = await authority.pod('secret-store/secret-store');
    subscribe(decisionChannel, listen);
  });
  after(async () => {
    unsubscribe(decisionChannel, listen);
    await authority.close();
  });
  beforeEach(async () => {
    decisions = [];
    guard = guardWith();
    await guard.ready();
  });
  afterEach(async () => {
    mock.timers.reset();
    await authority.recover();
    await guard.close();
  });

  it('1: a no is a 201 without the key authenticated, and the guard takes it for a no', async () => {
    const token = await mint({ pod: 'gone' });
    await authority.delete('pod', 'api/gone');
    await assert.rejects(check(token), isRefused);
    assert.equal(authority.calls.at(-1)?.status, 201);
    assert.equal(reason(), 'review_refused');
    assert.match(decisions.at(-1)?.detail ?? '', /invalid bearer token/);
    // With --anonymous-auth=false there may be no error either.
    answering({ user: {} });
    await assert.rejects(check(await mint()), isRefused);
  });

  it('2: a token that begins with white space is authenticated as anonymous, for any audience, and none is asked about', async () => {
    const token = await mint();
    await refusesWithoutAsking(' ');
    await refusesWithoutAsking(' x');
    await refusesWithoutAsking('\t');
    await refusesWithoutAsking('\u00a0');
    await refusesWithoutAsking(` ${token}`);
    answering({
      authenticated: true,
      user: { username: 'system:anonymous', groups: ['system:unauthenticated'] },
      audiences: ['secret-store'],
    });
    await assert.rejects(check(token), isRefused);
    assert.equal(reason(), 'not_a_service_account');
  });

  it('2: such a token can crash a handler of the API server, which keeps nobody else from being reviewed', async () => {
    for (let time = 0; time < 6; time++) await refusesWithoutAsking(' ');
    // The first on a connection that was kept, which is tried again on a new one.
    authority.fail('reset', { times: 2 });
    await assert.rejects(check(await mint()), isUnavailable);
    assert.equal(reason(), 'connection_reset');
    assert.ok(await check(await mint()));
  });

  it('3: many strings are the same token there, and one of them here', async () => {
    const token = await mint();
    const [header = '', payload = '', signature = ''] = token.split('.');
    await refusesWithoutAsking(`${token} `);
    await refusesWithoutAsking(`${token} junk`);
    await refusesWithoutAsking(`${token}\n`);
    await refusesWithoutAsking(`\n${token}`);
    await refusesWithoutAsking(`${header.slice(0, 5)}\n${header.slice(5)}.${payload}.${signature}`);
    // An RSA-2048 signature leaves 4 bits of its last character unused.
    const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
    await refusesWithoutAsking(token.slice(0, -1) + (alphabet[alphabet.indexOf(token.at(-1) ?? '') + 1] ?? ''));
    assert.ok(await check(token));
  });

  it('4: a token is good for 60 s after it expires, and no longer, though the API server may remember it', async () => {
    const token = await mint();
    const expiresAtMs = (await check(token))?.expiresAt.getTime() ?? assert.fail();
    mock.timers.enable({ apis: ['Date'], now: expiresAtMs + 56_000 });
    const remembering = guardWith({ cacheTtlMs: 60_000 });
    assert.ok(await check(token, remembering));
    const asked = reviews();
    assert.ok(await check(token, remembering));
    assert.equal(reviews(), asked + 1, 'an expired token is remembered');
    mock.timers.setTime(expiresAtMs + 60_001);
    await refusesWithoutAsking(token);
    await remembering.close();
  });

  it('5: a yes is remembered there for 10 s, whatever is deleted: that comes on top of what the guard remembers', async () => {
    const token = await mint({ pod: 'short' });
    assert.ok(await check(token));
    await authority.delete('pod', 'api/short');
    assert.ok(await check(token));
    authority.advance(10_000);
    await assert.rejects(check(token), isRefused);
  });

  it('6: a pod that ends with 30 s of grace keeps its token for 90 s, and for 10 s more', async () => {
    const token = await mint({ pod: 'ending' });
    await authority.delete('pod', 'api/ending', { gracePeriodSeconds: 30 });
    authority.advance(88_000);
    assert.ok(await check(token));
    authority.advance(9_000);
    assert.ok(await check(token));
    authority.advance(1_000);
    await assert.rejects(check(token), isRefused);
  });

  it('7: a frozen etcd answers 201 with an error, and that is not the caller’s fault', async () => {
    const request = 'Get "https://127.0.0.1:16443/api/v1/namespaces/api/serviceaccounts/ghost": context deadline exceeded';
    answering({ user: {}, error: `[invalid bearer token, ${request}]` });
    await assert.rejects(check(await mint()), isUnavailable);
    assert.equal(reason(), 'review_timed_out_inside');
  });

  it('8: after a restart the first answer may be a 403 to us, which is no no to the caller, and the next request asks again', async () => {
    const token = await mint();
    authority.fail('forbidden', { times: 1 });
    await assert.rejects(check(token), isUnavailable);
    assert.equal(reason(), 'own_permission_missing');
    assert.ok(await check(token));
  });

  it('9: the audiences of an answer are those of the question that match, and one of ours has to be among them', async () => {
    const both = guardWith({ audience: ['admin', 'secret-store'] });
    assert.deepEqual((await check(await mint(), both))?.audiences, ['secret-store']);
    assert.deepEqual((await check(await mint({ audience: ['secret-store', 'vault', 'admin'] }), both))?.audiences, [
      'admin',
      'secret-store',
    ]);
    answering({ ...yes, audiences: ['https://kubernetes.default.svc.cluster.local'] });
    await assert.rejects(check(await mint(), both), isRefused);
    assert.equal(reason(), 'review_for_other_audiences');
    await both.close();
    const mixed = guardWith({ audience: ['secret-store', 'https://kubernetes.default.svc.cluster.local'] });
    await assert.rejects(check(await mint(), mixed), { message: "The guard's options are wrong" });
    await mixed.close();
  });

  it('10: a question without audiences is about the API server’s, for which every pod has a token: it is never asked', async () => {
    const caller = await authority.pod('api/api');
    await refusesWithoutAsking(readFileSync(caller.apiServer.tokenFile, 'utf8'));
    assert.equal(reason(), 'other_audience');
    answering({ ...yes, audiences: [] });
    await assert.rejects(check(await mint()), isRefused);
    const { audiences: _none, ...withoutAudiences } = yes;
    await authority.recover();
    answering(withoutAudiences);
    await assert.rejects(check(await mint()), isRefused);
    assert.equal(reason(), 'review_for_other_audiences');
  });

  it('11: a review is not only for ServiceAccounts, and a guard is', async () => {
    await refusesWithoutAsking('a-static-token');
    answering({ ...yes, user: { username: 'kubernetes-admin', uid: 'u', groups: ['system:masters'] } });
    await assert.rejects(check(await mint()), isRefused);
    assert.equal(reason(), 'not_a_service_account');
  });

  it('12: a status that was sent is echoed, and nobody is whom an answer names that does not say yes', async () => {
    answering({ user, audiences: ['secret-store'], error: 'invalid bearer token' });
    await assert.rejects(check(await mint()), isRefused);
    await authority.recover();
    answering({ user, audiences: ['secret-store'] });
    await assert.rejects(check(await mint()), isRefused);
    assert.equal(decisions.at(-1)?.caller, undefined);
  });

  it('13: an answer holds the token, so the largest token fits, what is larger does not, and none of it is told', async () => {
    const audience = ['secret-store', ...Array.from({ length: 48 }, (_item, index) => `service-${index}`.padEnd(100, 'x'))];
    const token = await mint({ audience });
    assert.ok(token.length > 7_000 && token.length <= 8_192, String(token.length));
    assert.ok(await check(token));
    authority.fail({ status: 201, body: token.repeat(200) });
    await assert.rejects(check(await mint()), isUnavailable);
    assert.equal(reason(), 'answer_too_large');
    assert.ok(!JSON.stringify(decisions).includes(token.slice(-20)));
  });

  it('14: priority and fairness refuses in plain text, with a time to wait that is kept or not worth it', async () => {
    const busy = (seconds: number, times: number): Disposable =>
      authority.fail(
        {
          status: 429,
          headers: { 'Content-Type': 'text/plain', 'Retry-After': String(seconds) },
          body: 'Too many requests, please try again later.\n',
        },
        { times },
      );
    busy(0, 1);
    assert.ok(await check(await mint()));
    busy(9, 2);
    const asked = reviews();
    await assert.rejects(check(await mint()), isUnavailable);
    assert.equal(reason(), 'too_many_requests');
    assert.equal(reviews(), asked + 1);
  });

  it('15: a token may live longer than was asked for, so its own exp counts, and for no longer than a verdict is kept', async () => {
    const ofTheKubelet = readFileSync(store.apiServer.tokenFile, 'utf8');
    const [, payload = ''] = ofTheKubelet.split('.');
    const { exp, iat } = JSON.parse(Buffer.from(payload, 'base64url').toString()) as { exp: number; iat: number };
    assert.equal(exp - iat, 31_536_000);
    await refusesWithoutAsking(ofTheKubelet);

    const remembering = guardWith({ cacheTtlMs: 60_000 });
    const token = await mint({ pod: 'lasting', expirationSeconds: 31_536_000 });
    assert.ok(((await check(token, remembering))?.expiresAt.getTime() ?? 0) > Date.now() + 31_000_000_000);
    await authority.delete('pod', 'api/lasting');
    mock.timers.enable({ apis: ['Date'], now: Date.now() + 60_000 });
    await assert.rejects(check(token, remembering), isRefused);
    await remembering.close();
  });

  it('16: an answer may be printed over many lines, with fields that nobody asked for', async () => {
    const token = await mint();
    answering(yes, token, 2);
    assert.equal((await check(token))?.serviceAccount, 'api/api');
  });
});
