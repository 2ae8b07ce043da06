// The only place that knows the cluster's signing keys: which there are, how a token is signed, whether a signature is theirs, and
// how they are published.
import { constants, createHash, createPrivateKey, createPublicKey, generateKeyPair, generateKeyPairSync, sign, verify } from 'node:crypto';
import type { KeyObject, SignKeyObjectInput } from 'node:crypto';
import { promisify } from 'node:util';
import { isRecord } from './json.ts';
import type { JsonRecord } from './json.ts';
import { parseJson } from './json-syntax.ts';

/** A JWT that was parsed and not yet verified. */
export interface ParsedToken {
  readonly header: JsonRecord;
  readonly claims: JsonRecord;
  readonly signed: string;
  readonly signature: Buffer;
}

/** The cluster's signing keys: the last signs, all of them verify. */
export interface SigningKeys {
  sign(claims: object): string;
  /** How many keys have the token's key id; a token without one fits all of them. */
  fitting(token: ParsedToken): readonly SigningKey[];
  /** The key set as `/openid/v1/jwks` publishes it, the oldest key first. */
  keySet(): { readonly keys: readonly object[] };
  algorithms(): readonly string[];
  /** Signs with a new key of this algorithm; with `retire`, the others are forgotten. */
  rotate(options: { readonly retire: boolean; readonly algorithm: SigningAlgorithm }): void;
  /** How many times keys were forgotten. */
  retirements(): number;
}

/** What a cluster's keys sign with: RSA of 2048 bits, or the curve P-256. */
export type SigningAlgorithm = 'RS256' | 'ES256';

/** A public key and its id. */
export interface SigningKey {
  readonly id: string;
  readonly publicKey: KeyObject;
}

const digests: Readonly<Record<string, string>> = { 256: 'sha256', 384: 'sha384', 512: 'sha512' };

/** Makes an RSA-2048 key off the main thread. */
export async function generateSigningKey(): Promise<KeyObject> {
  const { privateKey } = await promisify(generateKeyPair)('rsa', { modulusLength: 2048 });
  return privateKey;
}

/**
 * Holds a private key, given as an object or in PEM, and those that follow it. As on a real API server the keys that verify can be
 * others than the one that signs: they are its public key alone, unless they are named.
 */
export function createSigningKeys(first: KeyObject | string, verifying?: readonly KeyObject[]): SigningKeys {
  let signer = toSigner(typeof first === 'string' ? createPrivateKey(first) : first);
  let keys = verifying?.map(toSigningKey) ?? [signer.key];
  let retirements = 0;

  return {
    sign(claims) {
      const signed = `${signer.header}.${encode(claims)}`;
      return `${signed}.${sign('sha256', Buffer.from(signed), signer.options).toString('base64url')}`;
    },
    fitting({ header }) {
      return typeof header['kid'] === 'string' && header['kid'] !== '' ? keys.filter(({ id }) => id === header['kid']) : keys;
    },
    keySet() {
      return { keys: keys.map(({ id, publicKey }) => formatKey(id, publicKey)) };
    },
    algorithms() {
      return [...new Set(keys.map(({ publicKey }) => algorithmOf(publicKey)))].toSorted();
    },
    rotate({ retire, algorithm }) {
      const isRsa = algorithm === 'RS256';
      const { privateKey } = isRsa
        ? generateKeyPairSync('rsa', { modulusLength: 2048 })
        : generateKeyPairSync('ec', { namedCurve: 'P-256' });
      signer = toSigner(privateKey);
      keys = [...(retire ? [] : keys), signer.key];
      if (retire) retirements += 1;
    },
    retirements: () => retirements,
  };
}

/** Says whether this key signed the token. Like a real API server's, it takes any algorithm that fits the key, not only the published one. */
export function isSignedBy({ publicKey }: SigningKey, { header, signed, signature }: ParsedToken): boolean {
  // RFC 7515 section 4.1.11: an extension that is not understood must be refused.
  if (typeof header['alg'] !== 'string' || header['crit'] !== undefined) return false;
  const [, family, size = ''] = /^(RS|PS|ES)(256|384|512)$/.exec(header['alg']) ?? [];
  const digest = digests[size];
  if (digest === undefined || (family === 'ES') !== (publicKey.asymmetricKeyType === 'ec')) return false;
  const padding = family === 'PS' ? constants.RSA_PKCS1_PSS_PADDING : constants.RSA_PKCS1_PADDING;
  return verify(
    digest,
    Buffer.from(signed),
    family === 'ES' ? { key: publicKey, dsaEncoding: 'ieee-p1363' } : { key: publicKey, padding },
    signature,
  );
}

/** Parses a compact JWT as go-jose does: white space anywhere is dropped, padding and other characters are not. */
export function parseToken(token: string): ParsedToken | undefined {
  const parts = token.replaceAll(/\s/g, '').split('.');
  const [header, payload, signature] = parts;
  if (header === undefined || payload === undefined || signature === undefined || parts.length !== 3) return undefined;
  const parsedHeader = parseHeader(header);
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

// go-jose reads a header more strictly than the claims: no name twice, and each of its type.
function parseHeader(segment: string): JsonRecord | undefined {
  const text = decodeSegment(segment)?.toString() ?? '';
  if (text === 'null') return {};
  const header = parseSegment(segment);
  if (header === undefined || parseJson(text).duplicates.length > 0) return undefined;
  const { alg = '', kid = '', nonce = '', jwk, x5c } = header;
  const isKey = jwk === undefined || jwk === null || (isRecord(jwk) && typeof jwk['kty'] === 'string');
  const areTexts = [alg, kid, nonce].every((one) => one === null || typeof one === 'string');
  return areTexts && isKey && (x5c === undefined || x5c === null) ? header : undefined;
}

function decodeSegment(segment: string): Buffer | undefined {
  // Four characters carry three bytes, so one character alone is left over by no encoder.
  return /^[\w-]*$/.test(segment) && segment.length % 4 !== 1 ? Buffer.from(segment, 'base64url') : undefined;
}

function encode(value: object): string {
  return Buffer.from(JSON.stringify(value)).toString('base64url');
}

function algorithmOf({ asymmetricKeyType }: KeyObject): SigningAlgorithm {
  return asymmetricKeyType === 'ec' ? 'ES256' : 'RS256';
}

interface Signer {
  readonly key: SigningKey;
  readonly header: string;
  readonly options: SignKeyObjectInput;
}

function toSigner(privateKey: KeyObject): Signer {
  const publicKey = createPublicKey(privateKey);
  const key = toSigningKey(publicKey);
  // RFC 7518 section 3.4: a signature by a curve is two numbers side by side, where Node's default is DER.
  return { key, header: encode({ alg: algorithmOf(publicKey), kid: key.id }), options: { key: privateKey, dsaEncoding: 'ieee-p1363' } };
}

function toSigningKey(publicKey: KeyObject): SigningKey {
  const id = createHash('sha256')
    .update(publicKey.export({ type: 'spki', format: 'der' }))
    .digest('base64url');
  return { id, publicKey };
}

function formatKey(id: string, publicKey: KeyObject): object {
  const { kty, n, e, crv, x, y } = publicKey.export({ format: 'jwk' });
  const own = kty === 'EC' ? { crv, alg: 'ES256', x, y } : { alg: 'RS256', n, e };
  return { use: 'sig', kty, kid: id, ...own };
}
