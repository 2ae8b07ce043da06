// Tokens that no cluster signed: what an attacker makes of one that it has seen.

import { createHmac, generateKeyPairSync, type KeyObject, randomBytes, sign } from 'node:crypto';

export interface Forger {
  /** Names a key of the cluster, which did not sign it. `random` chooses how. */
  forge(token: string, random: () => number): string;
  /** Names a key that the cluster does not have, or none. */
  forgeUnknown(token: string, random: () => number): string;
  /** No JWT that a cluster could have signed, whatever its keys. */
  malform(token: string, random: () => number): string;
}

type Json = Record<string, unknown>;

export const readPart = (part = ''): Json => JSON.parse(Buffer.from(part, 'base64url').toString()) as Json;
const writePart = (value: Json): string => Buffer.from(JSON.stringify(value)).toString('base64url');
const pick = <T>(from: readonly [T, ...T[]], random: () => number): T => from[Math.floor(random() * from.length)] ?? from[0];

/** Makes a forger, with a key pair of its own. */
export function createForger(): Forger {
  const { privateKey, publicKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });

  function signed(header: Json, claims: Json, key: KeyObject = privateKey): string {
    const text = `${writePart(header)}.${writePart(claims)}`;
    return `${text}.${sign('sha256', Buffer.from(text), key).toString('base64url')}`;
  }

  const parse = (token: string): { header: Json; claims: Json; signature: string } => {
    const [header, claims, signature = ''] = token.split('.');
    // Alive, and not seen before.
    const exp = Math.floor(Date.now() / 1000) + 600;
    return { header: readPart(header), claims: { ...readPart(claims), exp, jti: randomBytes(8).toString('hex') }, signature };
  };

  return {
    forge(token, random) {
      const { header, claims, signature } = parse(token);
      return pick(
        [
          () => signed(header, claims),
          () => signed({ ...header, jwk: publicKey.export({ format: 'jwk' }) }, claims),
          () => `${writePart(header)}.${writePart(claims)}.${signature}`,
        ],
        random,
      )();
    },
    forgeUnknown(token, random) {
      const { header, claims } = parse(token);
      const { kid: _, ...anonymous } = header;
      return signed(pick([{ ...header, kid: randomBytes(8).toString('hex') }, anonymous], random), claims);
    },
    malform(token, random) {
      const { header, claims, signature } = parse(token);
      const [first, second] = token.split('.');
      return pick(
        [
          () => `${writePart({ ...header, alg: 'none' })}.${writePart(claims)}.`,
          () => `${first}.${second}.`,
          () => `${token}=`,
          () => `${token}.${signature}`,
          () => token.slice(1),
          () => 'x'.repeat(9_000),
          () => `${token},${token}`,
          () => `${token} junk`,
          () => signed({ ...header, crit: ['exp'] }, claims),
          () => {
            const text = `${writePart({ ...header, alg: 'HS256' })}.${writePart(claims)}`;
            const secret = publicKey.export({ format: 'pem', type: 'spki' });
            return `${text}.${createHmac('sha256', secret).update(text).digest('base64url')}`;
          },
        ],
        random,
      )();
    },
  };
}
