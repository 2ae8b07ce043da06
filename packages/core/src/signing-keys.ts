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

export interface SigningKeys {
  /** What is known of a token's signature. It can refuse, and it says whose claims can be believed; it never accepts. */
  screen(token: string, claims: Claims): Promise<Signature>;
  /** Loads the keys if there are none yet. Never rejects: without keys, the cluster is asked. */
  load(): Promise<void>;
}

const reloadEveryMs = 30_000;
const loadMs = 1_000;
const unknownPerSecond = 10;
// Kept when a reload no longer names them, since two API servers may disagree while keys rotate. They refuse, they never accept.
const maxKeys = 64;

export function createSigningKeys(apiServer: ApiServerConnection, log: Log): SigningKeys {
  const keys = new Map<string, KeyObject>();
  let loadedAtMs = 0;
  let loading: Promise<void> | undefined;
  let isFailing = false;
  let second = 0;
  let unknownInSecond = 0;

  // Failed loads count too: whoever sends unknown key ids must not make us ask more often.
  function reload(): Promise<void> {
    const ageMs = Date.now() - loadedAtMs;
    if (loading === undefined && ageMs >= 0 && ageMs < reloadEveryMs) return Promise.resolve();
    loading ??= fetchKeys().finally(() => {
      loading = undefined;
    });
    return loading;
  }

  async function fetchKeys(): Promise<void> {
    loadedAtMs = Date.now();
    try {
      for (const [id, key] of await askForKeys(apiServer)) {
        keys.delete(id);
        keys.set(id, key);
      }
      for (const id of [...keys.keys()].slice(0, -maxKeys)) keys.delete(id);
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
    return verifies(key, algorithm, token) ? 'verified' : 'forged';
  }

  function takeUnknown(): boolean {
    const now = Math.floor(Date.now() / 1000);
    if (now !== second) [second, unknownInSecond] = [now, 0];
    unknownInSecond += 1;
    return unknownInSecond <= unknownPerSecond;
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
    load: () => (keys.size === 0 ? reload() : Promise.resolve()),
  };
}

// Always our own API server's, with our own token: never what a token, or a discovery document, points to.
async function askForKeys(apiServer: ApiServerConnection): Promise<ReadonlyMap<string, KeyObject>> {
  const question = { method: 'GET', path: '/openid/v1/jwks', accept: 'application/jwk-set+json', maxAnswerBytes: 16_384 } as const;
  const { status, body } = await apiServer.ask(question, loadMs);
  const listed = parseObject(body)?.['keys'];
  if (status !== 200 || !Array.isArray(listed)) throw new ApiServerError('no_signing_keys', `${question.path} answers ${status}`);
  return new Map(listed.flatMap(readKey));
}

function readKey(value: unknown): [string, KeyObject][] {
  const jwk = asObject(value);
  const id = jwk?.['kid'];
  if (jwk === undefined || typeof id !== 'string' || (jwk['kty'] !== 'RSA' && jwk['kty'] !== 'EC')) return [];
  try {
    return [[id, createPublicKey({ key: jwk as JsonWebKey, format: 'jwk' })]];
  } catch {
    return [];
  }
}

// The algorithm is the token's: an API server takes RS512 and PS256 under a key that its JWKS calls RS256.
function verifies(key: KeyObject, algorithm: string, token: string): boolean {
  const family = algorithm.slice(0, 2);
  if ((family === 'ES') !== (key.asymmetricKeyType === 'ec')) return false;
  const cut = token.lastIndexOf('.');
  const options =
    family === 'ES'
      ? { key, dsaEncoding: 'ieee-p1363' as const }
      : family === 'PS'
        ? { key, padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: constants.RSA_PSS_SALTLEN_AUTO }
        : { key, padding: constants.RSA_PKCS1_PADDING };
  try {
    return verify(`sha${algorithm.slice(2)}`, Buffer.from(token.slice(0, cut)), options, Buffer.from(token.slice(cut + 1), 'base64url'));
  } catch {
    return false;
  }
}
