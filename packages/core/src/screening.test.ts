import assert from 'node:assert/strict';
import { generateKeyPairSync, sign } from 'node:crypto';
import { describe, it, mock } from 'node:test';

import { parseJwt, screen } from './screening.ts';

const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
const now = Math.floor(Date.now() / 1000);
const claims = {
  aud: ['secret-store'],
  exp: now + 600,
  iat: now,
  iss: 'https://kubernetes.default.svc.cluster.local',
  'kubernetes.io': { namespace: 'api', serviceaccount: { name: 'api', uid: 'u' } },
  sub: 'system:serviceaccount:ops:boss',
};

function mint(payload: object, header: object = { alg: 'ES256', kid: 'k' }): string {
  const signed = [header, payload].map((part) => Buffer.from(JSON.stringify(part)).toString('base64url')).join('.');
  return `${signed}.${sign('sha256', Buffer.from(signed), { key: privateKey, dsaEncoding: 'ieee-p1363' }).toString('base64url')}`;
}

function reasonFor(token: string, audiences: readonly string[] = ['secret-store']): string | undefined {
  const result = screen(token, audiences);
  return 'code' in result ? result.reason : undefined;
}

describe('screen', () => {
  it('passes a token with its claims, identity from the kubernetes.io claims and never from sub', () => {
    assert.deepEqual(screen(mint(claims), ['other', 'secret-store']), {
      audiences: ['secret-store'],
      issuer: claims.iss,
      expiresAtMs: claims.exp * 1000,
      issuedAtMs: now * 1000,
      identity: { namespace: 'api', name: 'api' },
      keyId: 'k',
      algorithm: 'ES256',
    });
  });

  it('takes aud as a string for a list of one', () => {
    assert.equal(reasonFor(mint({ ...claims, aud: 'secret-store' })), undefined);
  });

  it('refuses another audience, in another case too', () => {
    assert.equal(reasonFor(mint({ ...claims, aud: ['vault'] })), 'other_audience');
    assert.equal(reasonFor(mint({ ...claims, aud: ['Secret-Store'] })), 'other_audience');
    assert.equal(reasonFor(mint({ ...claims, aud: [] })), 'other_audience');
  });

  it('refuses an absent or odd aud', () => {
    const { aud: _aud, ...rest } = claims;
    assert.equal(reasonFor(mint(rest)), 'claims_missing');
    assert.equal(reasonFor(mint({ ...claims, aud: [['secret-store']] })), 'claims_missing');
    assert.equal(reasonFor(mint({ ...claims, aud: { 0: 'secret-store' } })), 'claims_missing');
  });

  it('grants 60 s after exp and no more', () => {
    mock.timers.enable({ apis: ['Date'], now: claims.exp * 1000 + 60_000 });
    try {
      assert.equal(reasonFor(mint(claims)), undefined);
      mock.timers.setTime(claims.exp * 1000 + 60_001);
      assert.equal(reasonFor(mint(claims)), 'expired');
    } finally {
      mock.timers.reset();
    }
  });

  it('refuses an absent or odd exp', () => {
    const { exp: _exp, ...rest } = claims;
    assert.equal(reasonFor(mint(rest)), 'claims_missing');
    assert.equal(reasonFor(mint({ ...claims, exp: String(claims.exp) })), 'claims_missing');
    assert.equal(reasonFor(mint({ ...claims, exp: null })), 'claims_missing');
    assert.equal(reasonFor(mint({ ...claims, exp: 1e308 })), 'claims_missing');
    assert.equal(reasonFor(mint({ ...claims, exp: -1 })), 'claims_missing');
  });

  it('refuses tokens without a ServiceAccount in the kubernetes.io claims', () => {
    assert.equal(reasonFor(mint({ ...claims, 'kubernetes.io': undefined })), 'not_a_service_account');
    assert.equal(reasonFor(mint({ ...claims, 'kubernetes.io': { namespace: 'api' } })), 'not_a_service_account');
    assert.equal(reasonFor(mint({ ...claims, 'kubernetes.io': { serviceaccount: { name: 'api' } } })), 'not_a_service_account');
    assert.equal(
      reasonFor(mint({ ...claims, 'kubernetes.io': { namespace: 'a:b', serviceaccount: { name: 'api' } } })),
      'not_a_service_account',
    );
  });

  it('tells how a token is misshaped, and repeats nothing of it', () => {
    const token = mint(claims);
    const detailFor = (text: string): unknown => {
      const result = screen(text, ['secret-store']);
      return 'code' in result ? [result.reason, result.detail] : undefined;
    };
    assert.deepEqual(detailFor(`Bearer ${token}`), ['not_a_jwt', 'It begins with "Bearer", which belongs into Authorization alone']);
    assert.deepEqual(detailFor(`${token}, ${token}`), ['not_a_jwt', 'There is a comma in it: a proxy may have joined two headers']);
    assert.deepEqual(detailFor(`"${token}"`), ['not_a_jwt', 'It stands in quotation marks']);
    assert.deepEqual(detailFor(`${token} x`), ['not_a_jwt', 'There is white space in it']);
    assert.deepEqual(detailFor('secret'), ['not_a_jwt', 'It has 1 part, not 3']);
    assert.deepEqual(detailFor(`${token}.x`), ['not_a_jwt', 'It has 4 parts, not 3']);
    assert.deepEqual(detailFor('a,'.repeat(5_000)), ['not_a_jwt', 'It is longer than 8192 characters']);
    assert.deepEqual(detailFor(`${token}=`), ['not_a_jwt', undefined]);
  });

  it('refuses algorithms that no cluster signs with', () => {
    assert.equal(reasonFor(mint(claims, { alg: 'none' })), 'algorithm');
    assert.equal(reasonFor(mint(claims, { alg: 'HS256' })), 'algorithm');
    assert.equal(reasonFor(mint(claims, { alg: 'EdDSA' })), 'algorithm');
    assert.equal(reasonFor(mint(claims, { alg: ['RS256'] })), 'algorithm');
    assert.equal(reasonFor(mint(claims, {})), 'algorithm');
  });

  it('refuses a critical extension, which it does not understand (RFC 7515 §4.1.11)', () => {
    assert.equal(reasonFor(mint(claims, { alg: 'ES256', crit: ['exp'] })), 'algorithm');
  });
});

describe('parseJwt', () => {
  const token = mint(claims);
  const [header = '', payload = '', signature = ''] = token.split('.');

  it('reads a compact JWS', () => {
    assert.deepEqual(parseJwt(token)?.payload, claims);
  });

  it('refuses anything before, between or after', () => {
    assert.equal(parseJwt(` ${token}`), undefined);
    assert.equal(parseJwt(`${token} `), undefined);
    assert.equal(parseJwt(`${token}\n`), undefined);
    assert.equal(parseJwt(`${token} junk`), undefined);
    assert.equal(parseJwt(`Bearer ${token}`), undefined);
    assert.equal(parseJwt(`${token},${token}`), undefined);
    assert.equal(parseJwt(`${header}\n.${payload}.${signature}`), undefined);
    assert.equal(parseJwt(`${token}.`), undefined);
    assert.equal(parseJwt(`${token}\0`), undefined);
  });

  it('refuses more or fewer than three parts', () => {
    assert.equal(parseJwt(''), undefined);
    assert.equal(parseJwt('garbage'), undefined);
    assert.equal(parseJwt(`${header}.${payload}`), undefined);
    assert.equal(parseJwt(`${header}.${payload}.`), undefined);
    assert.equal(parseJwt(`${token}.${signature}.${signature}`), undefined);
  });

  it('refuses padding and the other alphabet', () => {
    assert.equal(parseJwt(`${token}==`), undefined);
    assert.equal(parseJwt(`${header}.${payload}.${signature.slice(0, -2)}+/`), undefined);
  });

  it('refuses a last character with unused bits set, which is another spelling of the same token', () => {
    const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
    const last = alphabet.indexOf(signature.at(-1) ?? '');
    assert.equal(parseJwt(`${token.slice(0, -1)}${alphabet[last + 1] ?? ''}`), undefined);
  });

  it('refuses what is not JSON objects, or not UTF-8', () => {
    const encode = (text: string | Buffer): string => Buffer.from(text).toString('base64url');
    assert.equal(parseJwt(`${encode('[]')}.${payload}.${signature}`), undefined);
    assert.equal(parseJwt(`${header}.${encode('"x"')}.${signature}`), undefined);
    assert.equal(parseJwt(`${header}.${encode('null')}.${signature}`), undefined);
    assert.equal(parseJwt(`${header}.${encode('{')}.${signature}`), undefined);
    assert.equal(parseJwt(`${header}.${encode(Buffer.from('{"sub":"\u00FF"}', 'latin1'))}.${signature}`), undefined);
    assert.equal(parseJwt(`${encode(`\uFEFF{"alg":"ES256"}`)}.${payload}.${signature}`), undefined);
  });

  it('refuses more than 8 KiB', () => {
    const long = mint({ ...claims, filler: 'x'.repeat(8_000) });
    assert.ok(long.length > 8_192);
    assert.equal(parseJwt(long), undefined);
    const longest = [header, payload].join('.').length + 1;
    assert.deepEqual(parseJwt(`${header}.${payload}.${'A'.repeat(8_192 - longest)}`)?.payload, claims);
    assert.equal(parseJwt(`${header}.${payload}.${'A'.repeat(8_196 - longest)}`), undefined);
  });
});
