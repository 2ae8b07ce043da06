// The only place that knows the cluster's signing keys: which there are, how a token is signed, whether a signature is theirs, and
// how they are published.
import { constants, createHash, createPrivateKey, createPublicKey, generateKeyPair, generateKeyPairSync, sign, verify } from 'node:crypto';
import type { KeyObject } from 'node:crypto';
import { promisify } from 'node:util';
import { isRecord } from './json.ts';
import type { JsonRecord } from './json.ts';

/** A JWT that was parsed and not yet verified. */
export interface ParsedToken {
  readonly header: JsonRecord;
  readonly claims: JsonRecord;
  readonly signed: string;
  readonly signature: Buffer;
}

/** The cluster's signing keys: the first signs, all of them verify. */
export interface SigningKeys {
  sign(claims: object): string;
  /** How many keys have the token's key id; a token without one fits all of them. */
  fitting(token: ParsedToken): readonly SigningKey[];
  /** The key set as `/openid/v1/jwks` publishes it. */
  keySet(): { readonly keys: readonly object[] };
  algorithms(): readonly string[];
  /** Puts a new key first; with `retire`, the others are forgotten. */
  rotate(options: { readonly retire: boolean }): void;
}

/** A public key and its id. */
export interface SigningKey {
  readonly id: string;
  readonly publicKey: KeyObject;
}

const rsaDigests: Readonly<Record<string, string>> = {
  RS256: 'sha256',
  RS384: 'sha384',
  RS512: 'sha512',
  PS256: 'sha256',
  PS384: 'sha384',
  PS512: 'sha512',
};

/** Makes an RSA-2048 key off the main thread. */
export async function generateSigningKey(): Promise<KeyObject> {
  const { privateKey } = await promisify(generateKeyPair)('rsa', { modulusLength: 2048 });
  return privateKey;
}

/** Holds an RSA private key, given as an object or in PEM, and those that follow it. */
export function createSigningKeys(first: KeyObject | string): SigningKeys {
  let privateKey = typeof first === 'string' ? createPrivateKey(first) : first;
  let keys = [toSigningKey(privateKey)];

  return {
    sign(claims) {
      const header = encode({ alg: 'RS256', kid: keys[0]?.id });
      const signed = `${header}.${encode(claims)}`;
      return `${signed}.${sign('sha256', Buffer.from(signed), privateKey).toString('base64url')}`;
    },
    fitting({ header }) {
      return typeof header['kid'] === 'string' && header['kid'] !== '' ? keys.filter(({ id }) => id === header['kid']) : keys;
    },
    keySet() {
      return { keys: keys.map(({ id, publicKey }) => formatKey(id, publicKey)) };
    },
    algorithms() {
      return ['RS256'];
    },
    rotate({ retire }) {
      privateKey = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey;
      keys = [toSigningKey(privateKey), ...(retire ? [] : keys)];
    },
  };
}

/** Says whether this key signed the token. Like a real API server's, it takes any RSA algorithm, not only the published one. */
export function isSignedBy(key: SigningKey, { header, signed, signature }: ParsedToken): boolean {
  const algorithm = header['alg'];
  // RFC 7515 section 4.1.11: an extension that is not understood must be refused.
  if (typeof algorithm !== 'string' || header['crit'] !== undefined) return false;
  const digest = rsaDigests[algorithm];
  if (digest === undefined) return false;
  const padding = algorithm.startsWith('PS') ? constants.RSA_PKCS1_PSS_PADDING : constants.RSA_PKCS1_PADDING;
  return verify(digest, Buffer.from(signed), { key: key.publicKey, padding }, signature);
}

/** Parses a compact JWT as go-jose does: white space anywhere is dropped, padding and other characters are not. */
export function parseToken(token: string): ParsedToken | undefined {
  const parts = token.replaceAll(/\s/g, '').split('.');
  const [header, payload, signature] = parts;
  if (header === undefined || payload === undefined || signature === undefined || parts.length !== 3) return undefined;
  const parsedHeader = parseSegment(header);
  const claims = parseSegment(payload);
  const bytes = decodeSegment(signature);
  if (parsedHeader === undefined || claims === undefined || bytes === undefined) return undefined;
  return { header: parsedHeader, claims, signed: `${header}.${payload}`, signature: bytes };
}

/** Reads a base64url segment that holds a JSON object; `undefined` where it does not. */
export function parseSegment(segment: string): JsonRecord | undefined {
  const bytes = decodeSegment(segment);
  if (bytes === undefined) return undefined;
  try {
    const value: unknown = JSON.parse(bytes.toString());
    return isRecord(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

function decodeSegment(segment: string): Buffer | undefined {
  // Four characters carry three bytes, so one character alone is left over by no encoder.
  return /^[\w-]*$/.test(segment) && segment.length % 4 !== 1 ? Buffer.from(segment, 'base64url') : undefined;
}

function encode(value: object): string {
  return Buffer.from(JSON.stringify(value)).toString('base64url');
}

function toSigningKey(privateKey: KeyObject): SigningKey {
  const publicKey = createPublicKey(privateKey);
  const id = createHash('sha256')
    .update(publicKey.export({ type: 'spki', format: 'der' }))
    .digest('base64url');
  return { id, publicKey };
}

function formatKey(id: string, publicKey: KeyObject): object {
  const { n, e } = publicKey.export({ format: 'jwk' });
  return { use: 'sig', kty: 'RSA', kid: id, alg: 'RS256', n, e };
}
