import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import * as fc from 'fast-check';

import { cases } from './fixtures/cases.ts';
import type { ScreenedClaims } from './screening.ts';
import { readReview } from './token-review.ts';

const claims: ScreenedClaims = {
  audiences: ['secret-store'],
  issuer: 'https://kubernetes.default.svc.cluster.local',
  expiresAtMs: Date.now() + 600_000,
  issuedAtMs: Date.now(),
  identity: { namespace: 'api', name: 'api' },
  keyId: 'k',
  algorithm: 'RS256',
};
const token = 'e30.e30.c2ln';
const username = 'system:serviceaccount:api:api';

// Mostly what a review should hold, now and then something else.
const mostly = (value: unknown, ...others: unknown[]): fc.Arbitrary<unknown> =>
  fc.oneof({ weight: 12, arbitrary: fc.constant(value) }, { weight: 2, arbitrary: fc.constantFrom(undefined, ...others) }, fc.jsonValue());
const statuses = fc.record(
  {
    authenticated: mostly(true, false, 'true', 1, null),
    error: mostly('', 'invalid bearer token', '[invalid bearer token, context deadline exceeded]', null, {}),
    audiences: mostly(['secret-store'], [], ['vault'], 'secret-store', ['vault', 'secret-store'], [['secret-store']]),
    user: fc.oneof(
      {
        weight: 8,
        arbitrary: fc.record({
          username: mostly(username, 'system:anonymous', 'system:serviceaccount:ops:boss', 'plain-user'),
          uid: mostly('u'),
          groups: mostly([]),
          extra: mostly({}),
        }),
      },
      { weight: 1, arbitrary: fc.jsonValue() },
    ),
  },
  { requiredKeys: ['authenticated', 'error', 'audiences', 'user'] },
);
const bodies = fc.record({
  kind: mostly('TokenReview', 'Status', 'tokenreview'),
  apiVersion: mostly('authentication.k8s.io/v1', 'authentication.k8s.io/v1beta1'),
  spec: mostly({ token, audiences: ['secret-store'] }, { token: `${token}x` }, {}),
  status: fc.oneof({ weight: 12, arbitrary: statuses }, { weight: 1, arbitrary: fc.jsonValue() }),
});
const codes = fc.oneof({ weight: 6, arbitrary: fc.constant(201) }, fc.integer({ min: 100, max: 599 }));

interface Body {
  readonly kind?: unknown;
  readonly apiVersion?: unknown;
  readonly spec?: { readonly token?: unknown } | null;
  readonly status?: {
    readonly authenticated?: unknown;
    readonly error?: unknown;
    readonly audiences?: unknown;
    readonly user?: { readonly username?: unknown } | null;
  } | null;
}

// What has to hold before anybody is let in: V4 and V5 of the README's promises, said a second time.
function isYes(code: number, { kind, apiVersion, spec, status }: Body): boolean {
  const echoed = spec?.token ?? token;
  return (
    code >= 200 &&
    code <= 299 &&
    kind === 'TokenReview' &&
    apiVersion === 'authentication.k8s.io/v1' &&
    echoed === token &&
    status?.authenticated === true &&
    (status.error === undefined || status.error === '') &&
    Array.isArray(status.audiences) &&
    status.audiences.every((audience) => typeof audience === 'string') &&
    status.audiences.includes('secret-store') &&
    status.user?.username === username
  );
}

describe('readReview, whatever the answer', () => {
  it('accepts exactly what says yes, to this token, for our audience, of the ServiceAccount that the token names', () => {
    fc.assert(
      fc.property(codes, bodies, (status, body) => {
        const text = JSON.stringify(body);
        const verdict = readReview({ status, body: text, retryAfterMs: undefined }, token, claims, ['secret-store']);
        assert.equal(verdict.outcome === 'accepted', isYes(status, JSON.parse(text) as Body), text);
        if (verdict.outcome === 'accepted') assert.equal(verdict.caller.serviceAccount, 'api/api');
      }),
      cases(),
    );
  });

  it('never takes another status than a 2xx for a no: that would be the caller’s fault', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 100, max: 599 }),
        fc.oneof(
          bodies.map((body) => JSON.stringify(body)),
          fc.string(),
        ),
        (status, body) => {
          fc.pre(status < 200 || status > 299);
          assert.equal(readReview({ status, body, retryAfterMs: undefined }, token, claims, ['secret-store']).outcome, 'unavailable');
        },
      ),
      cases(),
    );
  });

  it('ends in a verdict on any text, tells operators at most 256 printable characters, and no token', () => {
    const text = fc.oneof(
      fc.json(),
      fc.string({ unit: 'binary' }),
      fc.json().map((json) => json.slice(0, -1)),
    );
    const jwt = 'eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOlsiYSJdfQ.c2lnbmF0dXJl';
    fc.assert(
      fc.property(codes, text, fc.boolean(), (status, words, isStatus) => {
        const error = `${words}${jwt}${words}`;
        const said = { kind: 'TokenReview', apiVersion: 'authentication.k8s.io/v1', message: error, status: { user: {}, error } };
        const body = isStatus ? JSON.stringify(said) : words;
        const verdict = readReview({ status, body, retryAfterMs: undefined }, token, claims, ['secret-store']);
        assert.notEqual(verdict.outcome, 'accepted');
        if (verdict.outcome === 'accepted' || verdict.detail === undefined) return;
        assert.match(verdict.detail, /^[\x20-\x7e]{0,256}$/);
        assert.doesNotMatch(verdict.detail, /c2lnbmF0dXJl/);
      }),
      cases(),
    );
  });
});
