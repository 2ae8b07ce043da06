import assert from 'node:assert/strict';
import { createPublicKey, generateKeyPairSync, type KeyObject, sign } from 'node:crypto';
import { after, before, describe, it, mock } from 'node:test';

import * as fc from 'fast-check';

import type { ApiServerConnection } from './api-server.ts';
import { cases } from './fixtures/cases.ts';
import { type Claims, parseJwt, screen } from './screening.ts';
import { createSigningKeys, type SigningKeys } from './signing-keys.ts';

const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
const now = Math.floor(Date.now() / 1000);
const encode = (part: unknown): string => Buffer.from(JSON.stringify(part)).toString('base64url');
const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey;
const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey;

function mint(payload: object, header: object, privateKey: KeyObject): string {
  const signed = `${encode(header)}.${encode(payload)}`;
  const signature = sign('sha256', Buffer.from(signed), { key: privateKey, dsaEncoding: 'ieee-p1363' });
  return `${signed}.${signature.toString('base64url')}`;
}

const payloadOf = (name: string): object => ({
  aud: ['secret-store'],
  exp: now + 36_000,
  iat: now,
  iss: 'https://kubernetes.default.svc.cluster.local',
  'kubernetes.io': { namespace: 'api', pod: { name: 'api-0', uid: 'p' }, serviceaccount: { name, uid: 'u' } },
  sub: 'system:serviceaccount:api:api',
});
const rsaToken = mint(payloadOf('api'), { alg: 'RS256', kid: 'rsa' }, rsa);
const ecToken = mint(payloadOf('web'), { alg: 'ES256', kid: 'ec' }, ec);

// One way to spell the bytes (RFC 4648 §3.5), and JSON objects in the first two parts: told without decoding as the source does.
function isCanonical(part: string): boolean {
  const unused = { 0: 0, 2: 4, 3: 2 }[part.length % 4];
  if (unused === undefined || !/^[\w-]+$/.test(part)) return false;
  return alphabet.indexOf(part.at(-1) ?? '') % 2 ** unused === 0;
}

function readObject(part: string): Record<string, unknown> | undefined {
  try {
    const bytes = Buffer.from(part, 'base64url');
    const value: unknown = JSON.parse(bytes.toString());
    if (!Buffer.from(bytes.toString()).equals(bytes)) return undefined;
    return typeof value === 'object' && value !== null && !Array.isArray(value) ? { ...value } : undefined;
  } catch {
    return undefined;
  }
}

// The rules of a token for `secret-store`, said a second time.
function mayPass(token: string): boolean {
  const parts = token.split('.');
  if (token.length > 8_192 || parts.length !== 3 || !parts.every(isCanonical)) return false;
  const [header, payload] = parts.map(readObject);
  if (header === undefined || payload === undefined) return false;
  const bound = payload['kubernetes.io'] as { namespace?: unknown; serviceaccount?: { name?: unknown } | null } | null | undefined;
  const audiences = typeof payload['aud'] === 'string' ? [payload['aud']] : payload['aud'];
  return (
    /^(?:RS|PS|ES)(?:256|384|512)$/.test(typeof header['alg'] === 'string' ? header['alg'] : '') &&
    !('crit' in header) &&
    Array.isArray(audiences) &&
    audiences.every((audience) => typeof audience === 'string') &&
    audiences.includes('secret-store') &&
    typeof payload['exp'] === 'number' &&
    payload['exp'] >= now - 60 &&
    payload['exp'] <= 8.64e12 &&
    typeof bound?.namespace === 'string' &&
    /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/.test(bound.namespace) &&
    typeof bound.serviceaccount?.name === 'string' &&
    bound.serviceaccount.name.length <= 253 &&
    /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/.test(bound.serviceaccount.name)
  );
}

const passes = (token: string): boolean => !('code' in screen(token, ['secret-store']));

const letters = fc.oneof(
  fc.constantFrom(...alphabet.split('')),
  fc.constantFrom('.', '=', '+', '/', ',', ' ', '\t', '\r', '\n', '\0'),
  fc.string({ unit: 'binary', maxLength: 1 }),
);
const places = fc.nat(rsaToken.length);
const split = (token: string): readonly string[] => token.split('.');
const base64 = (part: string): string => Buffer.from(part, 'base64url').toString('base64');

// Each turns a token into another string, or now and then into itself.
const mutations: fc.Arbitrary<(token: string) => string> = fc.oneof(
  fc.tuple(places, letters).map(
    ([at, letter]) =>
      (token: string) =>
        token.slice(0, at % token.length) + letter + token.slice((at % token.length) + 1),
  ),
  fc.tuple(places, letters).map(
    ([at, letter]) =>
      (token: string) =>
        token.slice(0, at) + letter + token.slice(at),
  ),
  fc.tuple(places, fc.integer({ min: 1, max: 8 })).map(
    ([at, count]) =>
      (token: string) =>
        token.slice(0, at) + token.slice(at + count),
  ),
  fc.tuple(places, places).map(
    ([from, to]) =>
      (token: string) =>
        token.slice(from, to),
  ),
  fc.tuple(places, fc.integer({ min: 1, max: 8 })).map(
    ([at, count]) =>
      (token: string) =>
        token.slice(0, at + count) + token.slice(at),
  ),
  fc.shuffledSubarray([0, 1, 2], { minLength: 1 }).map((order) => (token: string) => order.map((at) => split(token)[at] ?? '').join('.')),
  fc.nat(2).map(
    (which) => (token: string) =>
      split(token)
        .map((part, at) => (at === which ? (split(ecToken)[at] ?? '') : part))
        .join('.'),
  ),
  fc.nat(2).map(
    (which) => (token: string) =>
      split(token)
        .map((part, at) => (at === which ? base64(part) : part))
        .join('.'),
  ),
  fc.nat(2).map(
    (which) => (token: string) =>
      split(token)
        .map((part, at) => (at === which ? `${part}${'='.repeat(4 - (part.length % 4))}` : part))
        .join('.'),
  ),
  fc.constantFrom(
    (token: string) => token.toUpperCase(),
    (token: string) => `${token}${token}`,
    (token: string) => `${token},${token}`,
    (token: string) => `Bearer ${token}`,
    (token: string) => encodeURIComponent(`${token} `),
    (token: string) => Buffer.from(token).toString('base64url'),
    (token: string) => token.replaceAll('.', '%2e'),
  ),
);

describe('screen, whatever the token', () => {
  before(() => mock.timers.enable({ apis: ['Date'], now: now * 1_000 }));
  after(() => mock.timers.reset());

  it('passes of a token’s mutations those alone that are canonical tokens in their own right', () => {
    fc.assert(
      fc.property(fc.constantFrom(rsaToken, ecToken), fc.array(mutations, { minLength: 1, maxLength: 3 }), (token, steps) => {
        let mutated = token;
        for (const mutate of steps) mutated = mutate(mutated);
        assert.equal(passes(mutated), mayPass(mutated));
      }),
      cases(),
    );
  });

  it('passes nothing with a character that is not one of a compact JWT', () => {
    fc.assert(
      fc.property(places, fc.string({ unit: 'binary', minLength: 1, maxLength: 3 }), (at, inserted) => {
        fc.pre(/[^\w.-]/.test(inserted));
        assert.equal(passes(rsaToken.slice(0, at) + inserted + rsaToken.slice(at)), false);
      }),
      cases(),
    );
  });

  it('passes, of headers and claims of any kind, exactly what the rules say', () => {
    const near = fc.constantFrom<unknown>(
      now - 61,
      now - 60,
      now + 600,
      8.64e12,
      8.64e12 + 1,
      1e308,
      -1,
      Number.NaN,
      String(now),
      null,
      [],
      {},
    );
    const headers = fc.record(
      {
        alg: fc.oneof(
          fc.constantFrom<unknown>('RS256', 'PS512', 'ES384', 'none', 'HS256', 'EdDSA', ['RS256'], 'rs256', '__proto__'),
          fc.string(),
        ),
        crit: fc.constantFrom<unknown>(['exp'], undefined, null, false),
        kid: fc.jsonValue(),
      },
      { requiredKeys: ['alg'] },
    );
    const named = fc.oneof(
      fc.constantFrom('api', 'a.b', 'a:b', '', 'A', '-a', 'constructor', 'a'.repeat(64), 'a'.repeat(254)),
      fc.jsonValue(),
    );
    const audiences = fc.oneof(
      fc.constantFrom<unknown>(
        'secret-store',
        ['secret-store'],
        ['vault', 'secret-store'],
        'Secret-Store',
        [['secret-store']],
        ['secret-store', 7],
      ),
      fc.jsonValue(),
    );
    const payloads = fc.record(
      {
        aud: audiences,
        exp: fc.oneof(near, fc.jsonValue()),
        'kubernetes.io': fc.oneof(
          { weight: 4, arbitrary: fc.record({ namespace: named, serviceaccount: fc.record({ name: named }) }, { requiredKeys: [] }) },
          { weight: 1, arbitrary: fc.jsonValue() },
        ),
      },
      { requiredKeys: [] },
    );
    fc.assert(
      fc.property(headers, payloads, fc.uint8Array({ minLength: 1, maxLength: 70 }), (header, payload, signature) => {
        const token = `${encode(header)}.${encode(payload)}.${Buffer.from(signature).toString('base64url')}`;
        assert.equal(passes(token), mayPass(token));
      }),
      cases(),
    );
  });

  it('ends in a verdict on any string', () => {
    const text = fc.oneof(
      fc.string({ unit: 'binary', maxLength: 200 }),
      fc
        .array(
          fc.oneof(
            fc.json().map((json) => Buffer.from(json).toString('base64url')),
            fc.base64String(),
            fc.string(),
          ),
          { maxLength: 5 },
        )
        .map((parts) => parts.join('.')),
    );
    fc.assert(
      fc.property(text, (token) => {
        assert.equal(passes(token), mayPass(token));
        if (parseJwt(token) !== undefined) assert.equal(token.split('.').every(isCanonical), true);
      }),
      cases(),
    );
  });
});

describe('signing keys, whatever the token', () => {
  const published = [
    { ...createPublicKey(rsa).export({ format: 'jwk' }), kid: 'rsa', alg: 'RS256' },
    { ...createPublicKey(ec).export({ format: 'jwk' }), kid: 'ec', alg: 'ES256' },
  ];
  const apiServer: ApiServerConnection = {
    url: new URL('https://10.96.0.1'),
    ask: () => Promise.resolve({ status: 200, body: JSON.stringify({ keys: published }), retryAfterMs: undefined }),
    ownClaims: () => Promise.resolve(undefined),
    close: () => {},
  };
  const claimsOf = (token: string): Claims | undefined => {
    const claims = screen(token, ['secret-store']);
    return 'code' in claims ? undefined : claims;
  };
  async function loaded(): Promise<SigningKeys> {
    const keys = createSigningKeys(apiServer, { info: () => {}, warn: () => {} });
    await keys.load();
    return keys;
  }

  it('verify a token in its own bytes, and no mutation of it', async () => {
    const keys = await loaded();
    await fc.assert(
      fc.asyncProperty(fc.constantFrom(rsaToken, ecToken), mutations, async (token, mutate) => {
        const mutated = mutate(token);
        const claims = claimsOf(mutated);
        if (claims === undefined) return;
        const signature = await keys.screen(mutated, claims);
        const isItself = mutated === rsaToken || mutated === ecToken;
        assert.equal(signature === 'verified', isItself);
        if (!isItself && (claims.keyId === 'rsa' || claims.keyId === 'ec')) assert.equal(signature, 'forged');
      }),
      cases(),
    );
  });

  it('verify nothing that another key signed, or the public key as an HMAC secret, under any algorithm', async () => {
    const keys = await loaded();
    const others = [
      generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey,
      generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey,
    ];
    const algorithms = fc.constantFrom('RS256', 'RS512', 'PS256', 'PS384', 'ES256', 'ES512');
    await fc.assert(
      fc.asyncProperty(fc.constantFrom(...others), algorithms, fc.constantFrom('rsa', 'ec'), fc.string(), async (key, alg, kid, jti) => {
        const token = mint({ ...payloadOf('api'), jti }, { alg, kid }, key);
        const claims = claimsOf(token) ?? assert.fail('screened');
        assert.equal(await keys.screen(token, claims), 'forged');
      }),
      cases(20),
    );
  });
});
