// The cluster's public keys: where they come from, when they are reloaded, and what a signature tells.

import { constants, createPublicKey, type JsonWebKey, type KeyObject, verify } from 'node:crypto';

import { type ApiServerConnection, ApiServerError } from './api-server.ts';
import type { Log } from './logger.ts';
import { asObject, type Claims, parseObject } from './screening.ts';

/**
 * `verified`: one of the cluster's keys signed these bytes. `forged`: the key that it names did not. `unscreened`: it names a key that is not
 * known, or no keys can be had, so only the cluster can tell. `limited`: more of those in a second than are asked about.
 */
export type Signature = 'verified' | 'forged' | 'unscreened' | 'limited';

/**
 * What the keys of the cluster's last answer say. `unknown`: that answer is younger than the question, and does not name the key. `limited`: it is
 * older, and may not be asked for again yet. `unavailable`: there is none of the last hour.
 */
export type StrictSignature = 'verified' | 'forged' | 'unknown' | 'limited' | 'unavailable';

export interface SigningKeys {
  /** What is known of a token's signature. It can refuse, and it says whose claims can be believed; it never accepts. */
  screen(token: string, claims: Claims): Promise<Signature>;
  /** As strict as accepting by signature alone must be: only keys that the last answer names, at most an hour old, and for their algorithm. */
  verify(token: string, claims: Claims): Promise<StrictSignature>;
  /**
   * Whether a key at hand signed this token, which is refused whatever the answer. Asks nobody. Looks at ten in a second; the others of that
   * second are `unlooked`.
   */
  hasSigned(token: string, claims: Claims): boolean | 'unlooked';
  /** Loads the keys if there are none yet, and tells whether there are. Never rejects: without keys, the cluster is asked. */
  load(): Promise<boolean>;
  /** When they were last loaded; undefined where they never were. */
  loadedAt(): Date | undefined;
}

const reloadEveryMs = 30_000;
const strictReloadEveryMs = 300_000;
const strictAgeMs = 3_600_000;
const loadMs = 1_000;
const unknownPerSecond = 10;
const refusedPerSecond = 10;
// Kept when a reload no longer names them, since two API servers may disagree while keys rotate. They refuse, they never accept.
const maxKeys = 64;

export function createSigningKeys(apiServer: ApiServerConnection, log: Log): SigningKeys {
  const keys = new Map<string, PublicKey>();
  let askedAtMs = 0;
  let loadedAtMs = 0;
  let current: ReadonlySet<string> = new Set();
  let loading: Promise<void> | undefined;
  let isFailing = false;
  const takeUnknown = createBudget(unknownPerSecond);
  const takeRefused = createBudget(refusedPerSecond);

  // Failed loads count too: whoever sends unknown key ids must not make us ask more often.
  function reload(): Promise<void> {
    if (loading === undefined && isWithin(askedAtMs, reloadEveryMs)) return Promise.resolve();
    loading ??= fetchKeys().finally(() => {
      loading = undefined;
    });
    return loading;
  }

  async function fetchKeys(): Promise<void> {
    askedAtMs = Date.now();
    try {
      const listed = await askForKeys(apiServer);
      for (const [id, key] of listed) {
        keys.delete(id);
        keys.set(id, key);
      }
      current = new Set(listed.keys());
      loadedAtMs = askedAtMs;
      for (const id of [...keys.keys()].slice(0, -maxKeys)) keys.delete(id);
      if (isFailing) log.info({ kind: 'signing_keys' }, "The cluster's signing keys can be loaded again");
      isFailing = false;
    } catch (error) {
      const { message, reason } = error instanceof ApiServerError ? error : { message: String(error), reason: 'no_signing_keys' };
      if (!isFailing && reason !== 'closed') {
        log.warn('signing_keys', { reason }, `The cluster's signing keys cannot be loaded (${message}): a forged token costs a review`);
      }
      isFailing = true;
    }
  }

  function look(token: string, { keyId, algorithm }: Claims): Signature | undefined {
    const key = keyId === undefined ? undefined : keys.get(keyId);
    if (key === undefined) return undefined;
    return verifies(key.key, algorithm, token) ? 'verified' : 'forged';
  }

  return {
    async screen(token, claims) {
      const known = look(token, claims);
      if (known !== undefined) return known;
      if (keys.size === 0) {
        void reload();
        return 'unscreened';
      }
      await reload();
      return look(token, claims) ?? (takeUnknown() ? 'unscreened' : 'limited');
    },
    async verify(token, claims) {
      const { keyId, algorithm } = claims;
      if (keyId === undefined) return 'unknown';
      const arrivedAtMs = Date.now();
      if (!isWithin(loadedAtMs, strictAgeMs)) await reload();
      else if (!isWithin(loadedAtMs, strictReloadEveryMs)) void reload();
      if (!isWithin(loadedAtMs, strictAgeMs)) return 'unavailable';
      if (!current.has(keyId)) await reload();
      const key = current.has(keyId) ? keys.get(keyId) : undefined;
      // Unknown to an answer that was asked for since; else the next one may know it.
      if (key === undefined) return loadedAtMs >= arrivedAtMs ? 'unknown' : 'limited';
      return key.algorithms.includes(algorithm) && verifies(key.key, algorithm, token) ? 'verified' : 'forged';
    },
    hasSigned: (token, claims) => (takeRefused() ? look(token, claims) === 'verified' : 'unlooked'),
    async load() {
      if (keys.size === 0) await reload();
      return keys.size > 0;
    },
    loadedAt: () => (loadedAtMs === 0 ? undefined : new Date(loadedAtMs)),
  };
}

interface PublicKey {
  readonly key: KeyObject;
  /** Which of a token's algorithms fit it: the one that the JWKS names, else those of its type. */
  readonly algorithms: readonly string[];
}

// So many in each second.
function createBudget(perSecond: number): () => boolean {
  let second = 0;
  let taken = 0;
  return () => {
    const now = Math.floor(Date.now() / 1000);
    if (now !== second) [second, taken] = [now, 0];
    taken += 1;
    return taken <= perSecond;
  };
}

// A clock that was set back makes nothing younger than it is.
function isWithin(sinceMs: number, ageMs: number): boolean {
  const nowMs = Date.now();
  return nowMs >= sinceMs && nowMs - sinceMs < ageMs;
}

// Always our own API server's, with our own token: never what a token, or a discovery document, points to.
async function askForKeys(apiServer: ApiServerConnection): Promise<ReadonlyMap<string, PublicKey>> {
  const question = { method: 'GET', path: '/openid/v1/jwks', accept: 'application/jwk-set+json', maxAnswerBytes: 16_384 } as const;
  const { status, body } = await apiServer.ask(question, loadMs);
  const listed = parseObject(body)?.['keys'];
  if (status !== 200 || !Array.isArray(listed)) throw new ApiServerError('no_signing_keys', `${question.path} answers ${status}`);
  const keys = new Map(listed.flatMap(readKey));
  // What a cluster in trouble may say. It would make strangers of all that its keys have signed.
  if (keys.size === 0) throw new ApiServerError('no_signing_keys', `${question.path} names no key that is understood`);
  return keys;
}

const curves: Readonly<Record<string, string>> = { 'P-256': 'ES256', 'P-384': 'ES384', 'P-521': 'ES512' };

function readKey(value: unknown): [string, PublicKey][] {
  const jwk = asObject(value);
  if (jwk === undefined || typeof jwk['kid'] !== 'string' || (jwk['kty'] !== 'RSA' && jwk['kty'] !== 'EC')) return [];
  const fitting = jwk['kty'] === 'EC' ? [curves[String(jwk['crv'])] ?? ''] : ['RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512'];
  const algorithms = typeof jwk['alg'] === 'string' ? fitting.filter((algorithm) => algorithm === jwk['alg']) : fitting;
  try {
    return [[jwk['kid'], { key: createPublicKey({ key: jwk as JsonWebKey, format: 'jwk' }), algorithms }]];
  } catch {
    return [];
  }
}

// The algorithm is the token's: an API server takes RS512 and PS256 under a key that its JWKS calls RS256.
function verifies(key: KeyObject, algorithm: string, token: string): boolean {
  const family = algorithm.slice(0, 2);
  if ((family === 'ES') !== (key.asymmetricKeyType === 'ec')) return false;
  const cut = token.lastIndexOf('.');
  // The bare key where its defaults are right (PKCS #1 v1.5 for RSA): options cost as much again as verifying.
  const how =
    family === 'ES'
      ? { key, dsaEncoding: 'ieee-p1363' as const }
      : family === 'PS'
        ? { key, padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: constants.RSA_PSS_SALTLEN_AUTO }
        : key;
  try {
    return verify(`sha${algorithm.slice(2)}`, Buffer.from(token.slice(0, cut)), how, Buffer.from(token.slice(cut + 1), 'base64url'));
  } catch {
    return false;
  }
}
