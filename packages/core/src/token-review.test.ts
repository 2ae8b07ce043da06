import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';

import type { ScreenedClaims } from './screening.ts';
import { permissionHint, readReview, type Verdict } from './token-review.ts';

// What a real kube-apiserver 1.36 answered; the token stands as `the-token`.
const recorded = JSON.parse(readFileSync(new URL('./fixtures/token-reviews.json', import.meta.url), 'utf8')) as Record<
  string,
  { status: number; body: string }
>;

const claims: ScreenedClaims = {
  audiences: ['secret-store'],
  issuer: undefined,
  expiresAtMs: 1_000,
  issuedAtMs: 0,
  identity: { namespace: 'api', name: 'api' },
  keyId: undefined,
  algorithm: 'RS256',
};

function read(name: string, audiences: readonly string[] = ['secret-store']): Verdict {
  const answer = recorded[name];
  assert.ok(answer, name);
  return readReview({ ...answer, retryAfterMs: undefined }, 'the-token', claims, audiences);
}

const accepted = {
  authenticated: true,
  user: { username: 'system:serviceaccount:api:api', uid: 'u', groups: ['g'], extra: {} },
  audiences: ['secret-store'],
};

function readStatus(status: unknown, rest: object = {}): Verdict {
  const body = JSON.stringify({ apiVersion: 'authentication.k8s.io/v1', kind: 'TokenReview', status, ...rest });
  return readReview({ status: 201, body, retryAfterMs: undefined }, 'the-token', claims, ['secret-store']);
}

function readAnswer(status: number, body: string): Verdict {
  return readReview({ status, body, retryAfterMs: undefined }, 'the-token', claims, ['secret-store']);
}

describe('readReview', () => {
  it('accepts a ServiceAccount for one of our audiences', () => {
    const verdict = read('bound to a pod');
    assert.equal(verdict.outcome, 'accepted');
    assert.equal(verdict.caller.serviceAccount, 'api/api');
    assert.equal(verdict.caller.uid, '7b926ab3-c829-49c5-9274-5849f597a28a');
    assert.ok(verdict.caller.pod);
    assert.deepEqual(verdict.caller.audiences, ['secret-store']);
  });

  it('reports only those audiences that are ours', () => {
    const verdict = read('several audiences', ['third', 'else', 'secret-store']);
    assert.equal(verdict.outcome, 'accepted');
    assert.deepEqual(verdict.caller.audiences, ['third', 'secret-store']);
  });

  it('refuses another audience, with the reason for the operator', () => {
    const verdict = read('other audience');
    assert.equal(verdict.outcome, 'refused');
    assert.equal(verdict.reason, 'review_refused');
    assert.match(verdict.detail ?? '', /token audiences/);
  });

  it('refuses a token that is valid for the API server only', () => {
    assert.deepEqual(read('for the API server'), { outcome: 'refused', reason: 'review_for_other_audiences' });
  });

  it('refuses an answer without audiences, which means the API server', () => {
    const { audiences: _audiences, ...rest } = accepted;
    assert.deepEqual(readStatus(rest), { outcome: 'refused', reason: 'review_for_other_audiences' });
    assert.deepEqual(readStatus({ ...accepted, audiences: [] }), { outcome: 'refused', reason: 'review_for_other_audiences' });
    assert.deepEqual(readStatus({ ...accepted, audiences: 'secret-store' }), { outcome: 'refused', reason: 'review_for_other_audiences' });
  });

  it('refuses system:anonymous, authenticated with our audiences echoed', () => {
    assert.deepEqual(read('leading space'), { outcome: 'refused', reason: 'not_a_service_account' });
  });

  it('refuses where neither authenticated nor error is said', () => {
    assert.deepEqual(read('leading space, anonymous off'), { outcome: 'refused', reason: 'review_refused' });
  });

  it('refuses a static token’s user', () => {
    assert.equal(read('static token', ['https://kubernetes.default.svc.cluster.local']).outcome, 'refused');
  });

  it('does not look at an echoed user while authenticated is absent', () => {
    assert.deepEqual(read('status echoed'), { outcome: 'refused', reason: 'review_refused', detail: 'invalid bearer token' });
  });

  it('refuses the expired, the deleted and the forged', () => {
    assert.equal(read('expired').outcome, 'refused');
    assert.equal(read('pod deleted').outcome, 'refused');
    assert.equal(read('ServiceAccount missing').outcome, 'refused');
    assert.equal(read('forged').outcome, 'refused');
  });

  it('does not take the API server’s own time-out for a refusal', () => {
    const verdict = read('etcd frozen');
    assert.equal(verdict.outcome, 'unavailable');
    assert.equal(verdict.reason, 'review_timed_out_inside');
  });

  it('does not take trouble with etcd for a refusal', () => {
    assert.equal(readStatus({ user: {}, error: '[invalid bearer token, etcdserver: request timed out]' }).outcome, 'unavailable');
    assert.equal(readStatus({ user: {}, error: 'Timeout: context deadline exceeded' }).outcome, 'unavailable');
    assert.equal(readStatus({ user: {}, error: '[invalid bearer token, [x, context deadline exceeded]]' }).outcome, 'unavailable');
    assert.equal(readStatus({ user: {}, error: '[context deadline exceeded, invalid bearer token]' }).outcome, 'refused');
  });

  it('knows nobody where our own permission or credential is refused', () => {
    assert.equal(read('reviewer without permission').outcome, 'unavailable');
    assert.deepEqual(read('reviewer not authenticated'), {
      outcome: 'unavailable',
      reason: 'own_credentials_refused',
      detail: '401 Unauthorized',
    });
  });

  it('knows nobody on a 429 in plain text, a 400 or a redirect', () => {
    assert.deepEqual(read('priority and fairness'), { outcome: 'unavailable', reason: 'too_many_requests', detail: '429' });
    assert.equal(read('malformed question').outcome, 'unavailable');
    assert.deepEqual(readAnswer(302, ''), { outcome: 'unavailable', reason: 'unexpected_status', detail: '302' });
    assert.deepEqual(readAnswer(500, ''), { outcome: 'unavailable', reason: 'api_server_error', detail: '500' });
  });

  it('knows nobody where the answer is not a TokenReview', () => {
    const notOne = { outcome: 'unavailable', reason: 'not_a_token_review' };
    assert.deepEqual(readAnswer(201, '<html>'), notOne);
    assert.deepEqual(readAnswer(201, '{"kind":"TokenReview"'), notOne);
    assert.deepEqual(readAnswer(201, '[]'), notOne);
    assert.deepEqual(readAnswer(201, 'null'), notOne);
    assert.deepEqual(readStatus(accepted, { kind: 'Status' }), notOne);
    assert.deepEqual(readStatus(accepted, { apiVersion: 'authentication.k8s.io/v1beta1' }), notOne);
    assert.deepEqual(readStatus(undefined), notOne);
    assert.deepEqual(readStatus([accepted]), notOne);
  });

  it('takes nothing but true for authenticated', () => {
    assert.equal(readStatus({ ...accepted, authenticated: 'true' }).outcome, 'unavailable');
    assert.equal(readStatus({ ...accepted, authenticated: 1 }).outcome, 'unavailable');
    assert.equal(readStatus({ ...accepted, authenticated: null }).outcome, 'unavailable');
    assert.equal(readStatus({ ...accepted, authenticated: false }).outcome, 'refused');
  });

  it('takes a list with anything but text in it for none', () => {
    assert.deepEqual(readStatus({ ...accepted, audiences: ['secret-store', 7] }), {
      outcome: 'refused',
      reason: 'review_for_other_audiences',
    });
    const verdict = readStatus({ ...accepted, user: { ...accepted.user, groups: ['g', 7], extra: { x: ['y', null], z: ['z'] } } });
    assert.equal(verdict.outcome, 'accepted');
    assert.deepEqual([verdict.caller.groups, verdict.caller.extra], [[], { x: [], z: ['z'] }]);
  });

  it('refuses an answer that both authenticates and objects', () => {
    assert.deepEqual(readStatus({ ...accepted, error: 'odd' }), { outcome: 'refused', reason: 'review_refused', detail: 'odd' });
  });

  it('knows nobody where the answer is about another token or another ServiceAccount', () => {
    assert.equal(readStatus(accepted, { spec: { token: 'the-token' } }).outcome, 'accepted');
    assert.deepEqual(readStatus(accepted, { spec: { token: 'another' } }), { outcome: 'unavailable', reason: 'review_of_another_token' });
    const other = { ...accepted, user: { ...accepted.user, username: 'system:serviceaccount:ops:boss' } };
    assert.deepEqual(readStatus(other), { outcome: 'unavailable', reason: 'review_of_another_service_account' });
  });

  it('shortens what the server said, and takes tokens and control characters out of it', () => {
    const { detail = '' } = readStatus({ error: `bad eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln \u001b[31m${'x'.repeat(400)}` }) as {
      detail?: string;
    };
    assert.match(detail, /^bad \[token\] {2}\[31mxxx/);
    assert.equal(detail.length, 256);
  });
});

describe('permissionHint', () => {
  it('prints the ClusterRoleBinding to apply', () => {
    const hint = permissionHint({ namespace: 'secret-store', name: 'secret-store' }, 'TokenReviews');
    assert.match(hint, /kind: ClusterRoleBinding\nmetadata:\n {2}name: secret-store:secret-store:auth-delegator\n/);
    assert.match(hint, /name: system:auth-delegator/);
    assert.match(hint, /- kind: ServiceAccount\n {4}name: secret-store\n {4}namespace: secret-store/);
  });

  it('gives no two ServiceAccounts one binding, which the second would take from the first', () => {
    const nameFor = (namespace: string, name: string): string | undefined =>
      /metadata:\n {2}name: (.*)/.exec(permissionHint({ namespace, name }, 'TokenReviews'))?.[1];
    assert.notEqual(nameFor('a-b', 'c'), nameFor('a', 'b-c'));
  });
});
