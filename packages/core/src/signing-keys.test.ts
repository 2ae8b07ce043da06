import assert from 'node:assert/strict';
import { constants, createHmac, createPublicKey, generateKeyPairSync, type KeyObject, sign } from 'node:crypto';
import { after, afterEach, before, beforeEach, describe, it, mock } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';

import { type Answer, type ApiServerConnection, ApiServerError, connectApiServer } from './api-server.ts';
import { claimsOf } from './screening.ts';
import { createSigningKeys, type Signature, type SigningKeys, type StrictSignature } from './signing-keys.ts';

const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 });
const other = generateKeyPairSync('rsa', { modulusLength: 2048 });
const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' });

const encode = (part: object): string => Buffer.from(JSON.stringify(part)).toString('base64url');
const payload = { aud: ['a'], exp: 4_000_000_000, 'kubernetes.io': { namespace: 'api', serviceaccount: { name: 'api' } } };

function mint(header: { alg: string; kid?: string }, key: KeyObject = rsa.privateKey, claims: object = payload): string {
  const signed = `${encode(header)}.${encode(claims)}`;
  const hash = `sha${header.alg.slice(2)}`;
  const options = header.alg.startsWith('PS')
    ? { key, padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: constants.RSA_PSS_SALTLEN_DIGEST }
    : { key, dsaEncoding: 'ieee-p1363' as const };
  return `${signed}.${sign(hash, Buffer.from(signed), options).toString('base64url')}`;
}

const jwkOf = (key: KeyObject, kid: string): object => ({ ...key.export({ format: 'jwk' }), kid, use: 'sig' });

// An API server that publishes these keys, and counts how often it is asked.
function publishing(...listed: (object | Error)[]): {
  connection: ApiServerConnection;
  asked: string[];
  publish: (...next: (object | Error)[]) => void;
} {
  let published = listed;
  const asked: string[] = [];
  const connection: ApiServerConnection = {
    url: new URL('https://10.96.0.1'),
    ask({ method, path, accept }): Promise<Answer> {
      asked.push(`${method} ${path} ${accept}`);
      const [first] = published;
      if (first instanceof Error) return Promise.reject(first);
      return Promise.resolve({ status: 200, body: JSON.stringify({ keys: published }), retryAfterMs: undefined });
    },
    ownClaims: () => Promise.resolve(undefined),
    close: () => {},
  };
  return { connection, asked, publish: (...next) => (published = next) };
}

let warnings: string[];
const keysOf = (connection: ApiServerConnection): SigningKeys =>
  createSigningKeys(connection, {
    info: (_details, message) => void warnings.push(message),
    warn: (_kind, _details, message) => void warnings.push(message),
  });
const look = (keys: SigningKeys, token: string): Promise<Signature> => keys.screen(token, claimsOf(token) ?? assert.fail());
const strictly = (keys: SigningKeys, token: string): Promise<StrictSignature> => keys.verify(token, claimsOf(token) ?? assert.fail());

describe('createSigningKeys', () => {
  beforeEach(() => {
    warnings = [];
    mock.timers.enable({ apis: ['Date'], now: 1_800_000_000_000 });
  });
  afterEach(() => mock.timers.reset());

  it('asks our own API server for its JWKS, with the type that it answers', async () => {
    const { connection, asked } = publishing(jwkOf(rsa.publicKey, 'k'));
    await keysOf(connection).load();
    assert.deepEqual(asked, ['GET /openid/v1/jwks application/jwk-set+json']);
  });

  it('verifies what a known key signed', async () => {
    const keys = keysOf(publishing(jwkOf(rsa.publicKey, 'k'), jwkOf(ec.publicKey, 'e')).connection);
    await keys.load();
    assert.equal(await look(keys, mint({ alg: 'RS256', kid: 'k' })), 'verified');
    assert.equal(await look(keys, mint({ alg: 'ES256', kid: 'e' }, ec.privateKey)), 'verified');
  });

  it('does not compare the algorithm, as the API server does not', async () => {
    const keys = keysOf(publishing({ ...jwkOf(rsa.publicKey, 'k'), alg: 'RS256' }).connection);
    await keys.load();
    assert.equal(await look(keys, mint({ alg: 'RS512', kid: 'k' })), 'verified');
    assert.equal(await look(keys, mint({ alg: 'PS256', kid: 'k' })), 'verified');
  });

  it('finds forged what a known key did not sign', async () => {
    const { connection, asked } = publishing(jwkOf(rsa.publicKey, 'k'), jwkOf(ec.publicKey, 'e'));
    const keys = keysOf(connection);
    await keys.load();
    const [header, claims, signature = ''] = mint({ alg: 'RS256', kid: 'k' }).split('.');
    assert.equal(await look(keys, mint({ alg: 'RS256', kid: 'k' }, other.privateKey)), 'forged');
    assert.equal(await look(keys, `${header}.${encode({ ...payload, aud: ['b'] })}.${signature}`), 'forged');
    assert.equal(await look(keys, `${header}.${claims}.${signature.slice(0, 40)}`), 'forged');
    assert.equal(await look(keys, mint({ alg: 'ES256', kid: 'k' }, ec.privateKey)), 'forged');
    // Signed with the key, under the name of an algorithm of the other type.
    assert.equal(await look(keys, mint({ alg: 'ES256', kid: 'k' })), 'forged');
    assert.equal(await look(keys, mint({ alg: 'RS256', kid: 'e' }, ec.privateKey)), 'forged');
    assert.equal(asked.length, 1);
  });

  it('finds forged what was made with the public key as a secret', async () => {
    const keys = keysOf(publishing(jwkOf(rsa.publicKey, 'k')).connection);
    await keys.load();
    const signed = `${encode({ alg: 'RS256', kid: 'k' })}.${encode(payload)}`;
    const secret = createPublicKey(rsa.privateKey).export({ type: 'spki', format: 'pem' });
    assert.equal(await look(keys, `${signed}.${createHmac('sha256', secret).update(signed).digest('base64url')}`), 'forged');
  });

  it('loads the keys anew for a key that it does not know, and knows it then', async () => {
    const { connection, asked, publish } = publishing(jwkOf(rsa.publicKey, 'old'));
    const keys = keysOf(connection);
    await keys.load();
    publish(jwkOf(other.publicKey, 'new'));
    mock.timers.tick(30_000);
    assert.equal(await look(keys, mint({ alg: 'RS256', kid: 'new' }, other.privateKey)), 'verified');
    assert.equal(await look(keys, mint({ alg: 'RS256', kid: 'new' })), 'forged');
    assert.equal(asked.length, 2);
  });

  it('still knows a key that the last answer did not name: two API servers may disagree', async () => {
    const { connection, publish } = publishing(jwkOf(rsa.publicKey, 'old'));
    const keys = keysOf(connection);
    await keys.load();
    publish(jwkOf(other.publicKey, 'new'));
    mock.timers.tick(30_000);
    await look(keys, mint({ alg: 'RS256', kid: 'new' }, other.privateKey));
    assert.equal(await look(keys, mint({ alg: 'RS256', kid: 'old' })), 'verified');
  });

  it('loads them at most once in 30 s, whatever is sent', async () => {
    const { connection, asked } = publishing(jwkOf(rsa.publicKey, 'k'));
    const keys = keysOf(connection);
    await keys.load();
    for (let index = 0; index < 100; index++) await look(keys, mint({ alg: 'ES256', kid: `unknown-${index}` }, ec.privateKey));
    assert.equal(asked.length, 1);
    mock.timers.tick(30_000);
    for (let index = 0; index < 100; index++) await look(keys, mint({ alg: 'ES256', kid: `unknown-${index}` }, ec.privateKey));
    assert.equal(asked.length, 2);
  });

  it('leaves ten tokens a second with an unknown or absent key id to the cluster, and no more', async () => {
    const keys = keysOf(publishing(jwkOf(rsa.publicKey, 'k')).connection);
    await keys.load();
    const findings: Signature[] = [];
    for (let index = 0; index < 6; index++) findings.push(await look(keys, mint({ alg: 'ES256', kid: `unknown-${index}` }, ec.privateKey)));
    for (let index = 0; index < 6; index++) findings.push(await look(keys, mint({ alg: 'ES256' }, ec.privateKey)));
    assert.deepEqual(findings, [...Array.from({ length: 10 }, () => 'unscreened'), 'limited', 'limited']);
    assert.equal(await look(keys, mint({ alg: 'RS256', kid: 'k' })), 'verified');
    mock.timers.tick(1_000);
    assert.equal(await look(keys, mint({ alg: 'ES256' }, ec.privateKey)), 'unscreened');
  });

  it('leaves all to the cluster where the keys cannot be had, and says so once', async () => {
    const { connection, asked, publish } = publishing(new ApiServerError('timeout', 'The API server did not answer in time'));
    const keys = keysOf(connection);
    await keys.load();
    const findings = await Promise.all(Array.from({ length: 50 }, () => look(keys, mint({ alg: 'ES256', kid: 'x' }, ec.privateKey))));
    assert.deepEqual([...new Set(findings)], ['unscreened']);
    assert.equal(asked.length, 1);
    mock.timers.tick(30_000);
    await keys.load();
    assert.equal(asked.length, 2);
    assert.equal(warnings.length, 1);
    assert.match(warnings[0] ?? '', /cannot be loaded \(The API server did not answer in time\): a forged token costs a review/);
    publish(jwkOf(ec.publicKey, 'x'));
    mock.timers.tick(30_000);
    await keys.load();
    assert.deepEqual(warnings.slice(1), ["The cluster's signing keys can be loaded again"]);
    assert.equal(await look(keys, mint({ alg: 'ES256', kid: 'x' }, ec.privateKey)), 'verified');
  });

  it('keeps what it has where an answer names no key that it can read', async () => {
    const { connection, publish } = publishing(jwkOf(rsa.publicKey, 'k'));
    const keys = keysOf(connection);
    await keys.load();
    const token = mint({ alg: 'RS256', kid: 'k' });
    for (const odd of [[], [{ kty: 'OKP', kid: 'x' }, 'text' as never]]) {
      publish(...odd);
      mock.timers.tick(301_000);
      assert.equal(await strictly(keys, token), 'verified');
      // The load of the turn before has ended.
      assert.equal(await strictly(keys, token), 'verified');
    }
    mock.timers.tick(3_600_000);
    assert.equal(await strictly(keys, token), 'unavailable');
    assert.match(warnings.join(), /names no key that is understood/);
  });

  it('passes over keys that it cannot read', async () => {
    const keys = keysOf(
      publishing(
        { kid: 'odd', kty: 'oct', k: 'c2VjcmV0' },
        { kty: 'RSA', kid: 'broken', n: '', e: '' },
        'text' as never,
        jwkOf(rsa.publicKey, 'k'),
      ).connection,
    );
    await keys.load();
    assert.equal(await look(keys, mint({ alg: 'RS256', kid: 'k' })), 'verified');
    assert.equal(await look(keys, mint({ alg: 'RS256', kid: 'odd' })), 'unscreened');
  });

  it('remembers 64 keys, and lets go first of those that were last named longest ago', async () => {
    const { connection, publish } = publishing(jwkOf(rsa.publicKey, 'lasting'), jwkOf(rsa.publicKey, 'gone'));
    const keys = keysOf(connection);
    await keys.load();
    for (const round of [1, 2, 3]) {
      publish(jwkOf(rsa.publicKey, 'lasting'), ...Array.from({ length: 21 }, (_, n) => jwkOf(rsa.publicKey, `${round}.${n}`)));
      mock.timers.tick(30_000);
      assert.equal(await look(keys, mint({ alg: 'RS256', kid: `${round}.0` })), 'verified');
    }
    assert.equal(await look(keys, mint({ alg: 'RS256', kid: 'gone' })), 'unscreened');
    assert.equal(await look(keys, mint({ alg: 'RS256', kid: 'lasting' })), 'verified');
    assert.equal(await look(keys, mint({ alg: 'RS256', kid: '1.0' })), 'verified');
  });

  it('loads them anew where the clock was set back, which makes nothing younger', async () => {
    const { connection, asked, publish } = publishing(jwkOf(rsa.publicKey, 'old'));
    const keys = keysOf(connection);
    await keys.load();
    publish(jwkOf(rsa.publicKey, 'new'));
    mock.timers.setTime(Date.now() - 86_400_000);
    assert.equal(await strictly(keys, mint({ alg: 'RS256', kid: 'new' })), 'verified');
    assert.equal(asked.length, 2);
  });

  it('says nothing of keys that it no longer asks for', async () => {
    const keys = keysOf(publishing(new ApiServerError('closed', 'The connection to the API server was closed')).connection);
    assert.equal(await keys.load(), false);
    assert.deepEqual(warnings, []);
  });
});

describe('verify, in place of a review', () => {
  const p384 = generateKeyPairSync('ec', { namedCurve: 'P-384' });

  beforeEach(() => {
    warnings = [];
    mock.timers.enable({ apis: ['Date'], now: 1_800_000_000_000 });
  });
  afterEach(() => mock.timers.reset());

  it('takes the algorithm that the JWKS names for the key, and no other', async () => {
    const keys = keysOf(publishing({ ...jwkOf(rsa.publicKey, 'k'), alg: 'RS256' }).connection);
    await keys.load();
    const found = await Promise.all(['RS256', 'RS384', 'RS512', 'PS256'].map((alg) => strictly(keys, mint({ alg, kid: 'k' }))));
    assert.deepEqual(found, ['verified', 'forged', 'forged', 'forged']);
  });

  it('takes those of the key’s type where the JWKS names none', async () => {
    const keys = keysOf(publishing(jwkOf(rsa.publicKey, 'k'), jwkOf(p384.publicKey, 'e')).connection);
    await keys.load();
    const byRsa = await Promise.all(['RS256', 'RS512', 'PS384'].map((alg) => strictly(keys, mint({ alg, kid: 'k' }))));
    assert.deepEqual(byRsa, ['verified', 'verified', 'verified']);
    // ES256 with this key is a signature that could be verified, and an algorithm that is another curve's.
    const byCurve = await Promise.all(['ES384', 'ES256'].map((alg) => strictly(keys, mint({ alg, kid: 'e' }, p384.privateKey))));
    assert.deepEqual(byCurve, ['verified', 'forged']);
  });

  it('takes no key for an algorithm that is not its own, whatever the JWKS says', async () => {
    const keys = keysOf(
      publishing({ ...jwkOf(rsa.publicKey, 'k'), alg: 'ES256' }, { ...jwkOf(ec.publicKey, 'e'), alg: 'RS256' }).connection,
    );
    await keys.load();
    assert.equal(await strictly(keys, mint({ alg: 'RS256', kid: 'k' })), 'forged');
    assert.equal(await strictly(keys, mint({ alg: 'ES256', kid: 'e' }, ec.privateKey)), 'forged');
  });

  it('takes no key that only an earlier answer named', async () => {
    const { connection, publish } = publishing(jwkOf(rsa.publicKey, 'old'));
    const keys = keysOf(connection);
    await keys.load();
    publish(jwkOf(other.publicKey, 'new'));
    mock.timers.tick(30_000);
    assert.equal(await strictly(keys, mint({ alg: 'RS256', kid: 'new' }, other.privateKey)), 'verified');
    mock.timers.tick(30_000);
    assert.equal(await strictly(keys, mint({ alg: 'RS256', kid: 'old' })), 'unknown');
    assert.equal(await look(keys, mint({ alg: 'RS256', kid: 'old' })), 'verified');
  });

  it('counts the hour of an answer from when it was asked for', async () => {
    const { connection } = publishing(jwkOf(rsa.publicKey, 'k'));
    let isSlow = false;
    const keys = keysOf({
      ...connection,
      ask(question, waitMs) {
        if (isSlow) return Promise.reject(new ApiServerError('timeout', 'The API server did not answer in time'));
        mock.timers.tick(900);
        isSlow = true;
        return connection.ask(question, waitMs);
      },
    });
    await keys.load();
    const token = mint({ alg: 'RS256', kid: 'k' });
    mock.timers.tick(3_600_000 - 901);
    assert.equal(await strictly(keys, token), 'verified');
    mock.timers.tick(1);
    assert.equal(await strictly(keys, token), 'unavailable');
  });
});

describe('createSigningKeys, of a cluster', () => {
  let authority: Authority;
  let pod: Pod;
  let connection: ApiServerConnection;

  before(async () => {
    authority = await createAuthority();
    pod = await authority.pod('store/store');
    connection = connectApiServer(pod.apiServer, { info: () => {}, warn: () => {} });
  });
  after(async () => {
    connection.close();
    await authority.close();
  });
  beforeEach(() => (warnings = []));

  it('verifies the cluster’s tokens, and those of a key that it rotates to', async () => {
    const keys = keysOf(connection);
    await keys.load();
    assert.equal(await look(keys, await authority.token('api/api', { audience: 'store', pod: 'p' })), 'verified');
    authority.rotateSigningKey();
    mock.timers.enable({ apis: ['Date'], now: Date.now() + 30_000 });
    try {
      assert.equal(await look(keys, await authority.token('api/api', { audience: 'store', pod: 'p' })), 'verified');
    } finally {
      mock.timers.reset();
    }
  });

  it('says so where the JWKS is forbidden, and lets the cluster decide', async () => {
    authority.fail('unauthorized');
    const keys = keysOf(connection);
    await keys.load();
    await authority.recover();
    assert.match(warnings[0] ?? '', /\/openid\/v1\/jwks answers 401/);
    assert.equal(await look(keys, await authority.token('api/api', { audience: 'store', pod: 'p' })), 'unscreened');
  });
});
