// What can be refused without asking the cluster. It never accepts: the review decides.

import type { Refusal } from './credential.ts';
import { formatUsername, type Identity, parseUsername } from './caller.ts';

/** 8 KiB: several times the size of any ServiceAccount token. */
export const maxTokenLength = 8192;

/** The accepted leeway on `exp`: the API server's own. */
const leewayMs = 60_000;

const algorithms = new Set(['RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512', 'ES256', 'ES384', 'ES512']);

/** What a token says of itself. Not verified: for refusing early, and for comparing with what a review says. */
export interface Claims {
  readonly audiences: readonly string[];
  readonly issuer: string | undefined;
  readonly expiresAtMs: number;
  readonly issuedAtMs: number | undefined;
  /** The ServiceAccount of the `kubernetes.io` claims. */
  readonly identity: Identity | undefined;
  /** From the header: which key it says signed it, and how. */
  readonly keyId: string | undefined;
  readonly algorithm: string;
}

/** The claims of a token that passed screening. */
export interface ScreenedClaims extends Claims {
  readonly identity: Identity;
}

/** Why a token is refused. `claims` where a ServiceAccount's token is good for something else, or no more: its owner will want to know. */
export type ScreeningRefusal = Refusal & { readonly claims?: ScreenedClaims };

/**
 * Refuses a token by its shape and claims, or returns what it claims.
 *
 * Shape matters as much as claims: to a token that begins with white space an API server answers that it is
 * authenticated, with the asked audiences (kubernetes/kubernetes#106142), and it accepts many spellings of one token.
 */
export function screen(token: string, audiences: readonly string[]): ScreenedClaims | ScreeningRefusal {
  const jwt = parseJwt(token);
  if (jwt === undefined) {
    const detail = describeShape(token);
    return { code: 'invalid_token', reason: 'not_a_jwt', ...(detail && { detail }) };
  }
  const { alg } = jwt.header;
  if (typeof alg !== 'string' || !algorithms.has(alg) || Object.hasOwn(jwt.header, 'crit')) {
    return { code: 'invalid_token', reason: 'algorithm' };
  }
  const read = readClaims(jwt);
  if (read === undefined) return { code: 'invalid_token', reason: 'claims_missing' };
  const { identity } = read;
  if (identity === undefined) return { code: 'invalid_token', reason: 'not_a_service_account' };
  const claims = { ...read, identity };
  if (!claims.audiences.some((audience) => audiences.includes(audience)))
    return { code: 'invalid_token', reason: 'other_audience', claims };
  if (claims.expiresAtMs + leewayMs < Date.now()) return { code: 'invalid_token', reason: 'expired', claims };
  return claims;
}

// How a token's surroundings or a mistake have misshaped it, in words of our own: nothing of it is repeated.
function describeShape(token: string): string | undefined {
  if (token.length > maxTokenLength) return `It is longer than ${maxTokenLength} characters`;
  if (/^bearer\s/i.test(token)) return 'It begins with "Bearer", which belongs into Authorization alone';
  if (token.includes(',')) return 'There is a comma in it: a proxy may have joined two headers';
  if (/^["']/.test(token)) return 'It stands in quotation marks';
  if (/\s/.test(token)) return 'There is white space in it';
  const parts = token.split('.').length;
  return parts === 3 ? undefined : `It has ${parts} part${parts === 1 ? '' : 's'}, not 3`;
}

type JsonObject = Readonly<Record<string, unknown>>;

interface Jwt {
  readonly header: JsonObject;
  readonly payload: JsonObject;
}

/** A compact JWS (RFC 7515 §7.1) in its one canonical spelling, with nothing before, between or after; else undefined. */
export function parseJwt(token: string): Jwt | undefined {
  if (token.length > maxTokenLength) return undefined;
  const [header, payload, signature, ...rest] = token.split('.').map(decodeBase64Url);
  if (header === undefined || payload === undefined || signature === undefined || rest.length > 0) return undefined;
  const [parsedHeader, parsedPayload] = [parseJsonObject(header), parseJsonObject(payload)];
  return parsedHeader && parsedPayload && { header: parsedHeader, payload: parsedPayload };
}

/** The claims that matter here, or undefined where one that every ServiceAccount token has is absent or of another type. */
export function readClaims({ header, payload }: Jwt): Claims | undefined {
  const { aud, exp, iat, iss } = payload;
  const audiences = typeof aud === 'string' ? [aud] : aud;
  if (!Array.isArray(audiences) || !audiences.every((audience) => typeof audience === 'string')) return undefined;
  // 8.64e12 is the last second that a Date can hold.
  if (typeof exp !== 'number' || !(exp >= 0 && exp <= 8.64e12)) return undefined;
  return {
    audiences,
    issuer: typeof iss === 'string' ? iss : undefined,
    expiresAtMs: exp * 1000,
    issuedAtMs: typeof iat === 'number' ? iat * 1000 : undefined,
    identity: readIdentity(payload),
    keyId: typeof header['kid'] === 'string' ? header['kid'] : undefined,
    algorithm: String(header['alg']),
  };
}

/** What a token claims, proven by nobody. */
export function claimsOf(token: string): Claims | undefined {
  const jwt = parseJwt(token);
  return jwt && readClaims(jwt);
}

// From the `kubernetes.io` claims, as the API server does; `sub` is not looked at by either.
function readIdentity(payload: JsonObject): Identity | undefined {
  const { namespace, serviceaccount } = asObject(payload['kubernetes.io']) ?? {};
  const name = asObject(serviceaccount)?.['name'];
  if (typeof namespace !== 'string' || typeof name !== 'string') return undefined;
  return parseUsername(formatUsername({ namespace, name }));
}

// Buffer ignores what is not base64url; only what comes out the same way was canonical (RFC 4648 §3.5).
function decodeBase64Url(text: string): Buffer | undefined {
  const bytes = Buffer.from(text, 'base64url');
  return bytes.length > 0 && bytes.toString('base64url') === text ? bytes : undefined;
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

function parseJsonObject(bytes: Buffer): JsonObject | undefined {
  try {
    return parseObject(utf8.decode(bytes));
  } catch {
    return undefined;
  }
}

/** Parses JSON that should be an object; undefined if it is not. */
export function parseObject(text: string): JsonObject | undefined {
  try {
    return asObject(JSON.parse(text));
  } catch {
    return undefined;
  }
}

/** Narrows a parsed JSON value to an object. */
export function asObject(value: unknown): JsonObject | undefined {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as JsonObject) : undefined;
}
