import assert from 'node:assert/strict';
import { generateKeyPairSync, sign } from 'node:crypto';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { after, afterEach, before, beforeEach, describe, it, mock } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';

import type { IncomingRequest } from './credential.ts';
import { type Decision, decisionChannel } from './decision.ts';
import { createGuard, type Guard } from './guard.ts';
import type { GuardOptions } from './options.ts';
import { claimsOf, screen, parseJwt } from './screening.ts';
import { createVerification } from './verification.ts';

let authority: Authority;
let store: Pod;
let decisions: Decision[];
let guards: Guard[];
const listen = (decision: unknown): void => void decisions.push(decision as Decision);
const logger = { info: () => {}, warn: () => {}, error: () => {} };

function guardWith(options: Partial<GuardOptions> = {}): Guard {
  const guard = createGuard({
    audience: 'secret-store',
    allow: ['api/api'],
    verification: 'signature',
    apiServer: store.apiServer,
    logger,
    ...options,
  });
  guards.push(guard);
  return guard;
}

const carrying = (token: string): IncomingRequest => ({
  method: 'GET',
  headers: { 'x-client-id': token },
  rawHeaders: ['X-Client-Id', token],
});
const reviews = (): number => authority.calls.filter(({ resource }) => resource === 'tokenreviews').length;
const tokenOf = (serviceAccount = 'api/api', expirationSeconds = 600): Promise<string> =>
  authority.token(serviceAccount, { audience: 'secret-store', pod: 'api-0', expirationSeconds });
const reasonFor = async (guard: Guard, token: string): Promise<string | undefined> => {
  await assert.rejects(guard.check(carrying(token)));
  return decisions.at(-1)?.reason;
};

before(async () => {
  authority = await createAuthority();
  store = await authority.pod('secret-store/secret-store', { reviews: false });
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

describe("verification: 'signature'", () => {
  it('accepts by the cluster’s keys, without asking about the token and without the permission to', async () => {
    const asked = reviews();
    const guard = guardWith();
    await guard.ready();
    assert.equal((await guard.check(carrying(await tokenOf())))?.serviceAccount, 'api/api');
    assert.equal(reviews(), asked);
    assert.equal(decisions.at(-1)?.source, 'signature');
  });

  it('knows the same caller as a review', async () => {
    const token = await tokenOf();
    const { apiServer } = await authority.pod('secret-store/reviewer');
    const bySignature = await guardWith().check(carrying(token));
    const byReview = await guardWith({ verification: 'review', apiServer }).check(carrying(token));
    assert.deepEqual({ ...bySignature }, { ...byReview });
  });

  it('remembers what it verified', async () => {
    const guard = guardWith();
    const token = await tokenOf();
    await guard.check(carrying(token));
    await guard.check(carrying(token));
    assert.equal(decisions.at(-1)?.source, 'cache');
  });

  it('refuses what another key signed', async () => {
    const [header, payload] = (await tokenOf()).split('.');
    const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
    const forged = `${header}.${payload}.${sign('sha256', Buffer.from(`${header}.${payload}`), privateKey).toString('base64url')}`;
    assert.equal(await reasonFor(guardWith(), forged), 'forged');
  });

  it('refuses a key that the cluster does not name, and knows nobody when it may not ask again yet', async () => {
    const [, payload] = (await tokenOf()).split('.');
    const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    const mint = (kid: string): string => {
      const signed = `${Buffer.from(JSON.stringify({ alg: 'ES256', kid })).toString('base64url')}.${payload}`;
      return `${signed}.${sign('sha256', Buffer.from(signed), { key: privateKey, dsaEncoding: 'ieee-p1363' }).toString('base64url')}`;
    };
    const guard = guardWith();
    assert.equal(await reasonFor(guard, mint('one')), 'unknown_key');
    assert.equal(await reasonFor(guard, mint('two')), 'unknown_keys');
    assert.equal(decisions.at(-1)?.outcome, 'unavailable');
  });

  it('takes tokens of a key that the cluster rotates to, and none of one that it retired', async () => {
    const cluster = await createAuthority();
    try {
      const guard = guardWith({ cacheTtlMs: 0, apiServer: { kubeconfig: cluster.kubeconfig } });
      const mint = (): Promise<string> => cluster.token('api/api', { audience: 'secret-store', pod: 'api-0' });
      const old = await mint();
      await guard.check(carrying(old));
      cluster.rotateSigningKey({ retire: true });
      mock.timers.enable({ apis: ['Date'], now: Date.now() + 30_000 });
      assert.ok(await guard.check(carrying(await mint())));
      mock.timers.tick(30_000);
      assert.equal(await reasonFor(guard, old), 'unknown_key');
    } finally {
      await cluster.close();
    }
  });

  it('grants 60 s after exp and no more', async () => {
    const guard = guardWith();
    await guard.ready();
    const token = await tokenOf();
    const expiresAtMs = Number(parseJwt(token)?.payload['exp']) * 1000;
    mock.timers.enable({ apis: ['Date'], now: expiresAtMs + 59_000 });
    assert.ok(await guard.check(carrying(token)));
    mock.timers.setTime(expiresAtMs + 61_000);
    assert.equal(await reasonFor(guard, token), 'expired');
  });

  it('grants 60 s before nbf and no more', async () => {
    const token = await tokenOf();
    const startsAtMs = Number(parseJwt(token)?.payload['nbf']) * 1000;
    mock.timers.enable({ apis: ['Date'], now: startsAtMs - 61_000 });
    assert.equal(await reasonFor(guardWith(), token), 'not_valid_yet');
    const { claimant, detail, caller } = decisions.at(-1) ?? {};
    assert.deepEqual([claimant, caller], ['api/api', undefined]);
    assert.match(detail ?? '', /^It is valid in \d+ s by the clock here$/);
    mock.timers.setTime(startsAtMs - 59_000);
    assert.ok(await guardWith().check(carrying(token)));
  });

  it('refuses tokens that live longer than a day', async () => {
    assert.equal(await reasonFor(guardWith(), await tokenOf('api/api', 86_401)), 'long_lived');
    assert.ok(await guardWith().check(carrying(await tokenOf('api/api', 86_400))));
  });

  it('refuses another issuer, whatever the signature', async () => {
    const ours = { ...(claimsOf(await tokenOf()) ?? assert.fail()), issuer: 'https://ours.example', audiences: ['https://ours.example'] };
    const apiServer = { ask: () => assert.fail(), ownClaims: () => Promise.resolve(ours) };
    const verify = createVerification(apiServer, { verify: () => Promise.resolve('verified') });
    const token = await tokenOf();
    const screened = screen(token, ['secret-store']);
    const claims = 'code' in screened ? assert.fail(screened.reason) : screened;
    assert.deepEqual(await verify(token, claims, ['secret-store']), { outcome: 'refused', reason: 'other_issuer', claimant: 'api/api' });
    assert.equal((await verify(token, { ...claims, issuer: ours.issuer }, ['secret-store'])).outcome, 'accepted');
  });

  it('refuses a token that is not bound to a pod, and who is not allowed', async () => {
    assert.equal(await reasonFor(guardWith(), await authority.token('api/api', { audience: 'secret-store' })), 'not_bound_to_a_pod');
    assert.equal(await reasonFor(guardWith(), await tokenOf('stranger/stranger')), 'not_in_allow');
  });

  it('does not notice a deletion: that is its price', async () => {
    const token = await authority.token('api/api', { audience: 'secret-store', pod: 'deleted' });
    await authority.delete('pod', 'api/deleted');
    assert.ok(await guardWith({ cacheTtlMs: 0 }).check(carrying(token)));
  });

  it('goes on through an outage for an hour after it last had the keys, and then knows nobody', async () => {
    const guard = guardWith({ cacheTtlMs: 0, staleIfErrorMs: 0 });
    await guard.ready();
    const token = await tokenOf('api/api', 7_200);
    authority.fail('outage');
    mock.timers.enable({ apis: ['Date'], now: Date.now() + 3_590_000 });
    assert.ok(await guard.check(carrying(token)));
    mock.timers.tick(20_000);
    assert.equal(await reasonFor(guard, token), 'no_signing_keys');
    assert.equal(decisions.at(-1)?.outcome, 'unavailable');
  });

  it('knows nobody without keys, and is not ready', async () => {
    const token = await tokenOf();
    authority.fail('outage');
    const guard = guardWith();
    await assert.rejects(guard.ready(), { name: 'ClusterError' });
    await assert.rejects(guard.check(carrying(token)), { status: 503 });
  });

  it('refuses the API server’s audience as one of ours', async () => {
    await assert.rejects(guardWith({ audience: 'https://kubernetes.default.svc.cluster.local' }).ready(), { name: 'TypeError' });
  });

  it('learns the issuer from the API server where it has no token of its own', async () => {
    const guard = guardWith({ apiServer: { kubeconfig: authority.kubeconfig } });
    assert.ok(await guard.check(carrying(await tokenOf())));
  });

  it('refuses another way of verifying', () => {
    assert.throws(() => guardWith({ verification: 'none' as 'review' }), {
      name: 'TypeError',
      message: /"verification" is 'review' or 'signature'/,
    });
  });
});
