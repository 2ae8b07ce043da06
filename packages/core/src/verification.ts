// How a token is accepted by the cluster's keys alone, without asking about it: `verification: 'signature'`.

import { type ApiServerConnection, ApiServerError } from './api-server.ts';
import { createCaller, formatAccount, groupsOf } from './caller.ts';
import { printable } from './logger.ts';
import { asObject, parseJwt, parseObject, type ScreenedClaims } from './screening.ts';
import type { SigningKeys } from './signing-keys.ts';
import { refuseApiServerAudience, type Verdict } from './token-review.ts';

const leewayMs = 60_000;
const longestLifeMs = 86_400_000;
const discoveryMs = 3_000;

/** Verifies a token that was screened for these audiences. Rejects only where our own options are wrong. */
export type VerifyToken = (token: string, claims: ScreenedClaims, audiences: readonly string[]) => Promise<Verdict>;

/** Nothing but the signature and the claims speaks here, so each must be right, and a token that was revoked is not noticed. */
export function createVerification(
  apiServer: Pick<ApiServerConnection, 'ask' | 'ownClaims'>,
  signingKeys: Pick<SigningKeys, 'verify'>,
): VerifyToken {
  let discovered: string | undefined;

  // Ours: what our own token says, or what our API server calls itself where we come with another credential.
  async function issuer(): Promise<string> {
    const own = (await apiServer.ownClaims())?.issuer ?? discovered;
    if (own !== undefined) return own;
    const { status, body } = await apiServer.ask(
      { method: 'GET', path: '/.well-known/openid-configuration', maxAnswerBytes: 16_384 },
      discoveryMs,
    );
    const told = parseObject(body)?.['issuer'];
    if (status !== 200 || typeof told !== 'string')
      throw new ApiServerError('issuer_unknown', `The API server answers ${status} when asked for its issuer`);
    discovered = told;
    return told;
  }

  async function verify(token: string, claims: ScreenedClaims, audiences: readonly string[]): Promise<Verdict> {
    await refuseApiServerAudience(apiServer, audiences);
    const ours = await issuer();
    const signature = await signingKeys.verify(token, claims);
    if (signature === 'unavailable') return { outcome: 'unavailable', reason: 'no_signing_keys' };
    if (signature === 'limited') return { outcome: 'unavailable', reason: 'unknown_keys' };
    if (signature !== 'verified') return { outcome: 'refused', reason: signature === 'forged' ? 'forged' : 'unknown_key' };

    const payload = parseJwt(token)?.payload ?? {};
    const nowMs = Date.now();
    const { nbf } = payload;
    // A key of the cluster signed it, so it is certain whose it is.
    const refuse = (reason: string, detail?: string): Verdict => ({
      outcome: 'refused',
      reason,
      claimant: formatAccount(claims.identity),
      ...(detail && { detail }),
    });
    const { issuedAtMs } = claims;
    if (claims.issuer !== ours) return refuse('other_issuer');
    if (claims.expiresAtMs + leewayMs < nowMs) return refuse('expired');
    if (typeof nbf !== 'number' || issuedAtMs === undefined) return refuse('not_valid_yet', 'It does not say from when it is valid');
    const beginsMs = Math.max(nbf * 1000, issuedAtMs);
    if (beginsMs - leewayMs > nowMs)
      return refuse('not_valid_yet', `It is valid in ${Math.ceil((beginsMs - nowMs) / 1000)} s by the clock here`);
    if (claims.expiresAtMs - issuedAtMs > longestLifeMs) return refuse('long_lived');

    const { serviceaccount, pod, node } = asObject(payload['kubernetes.io']) ?? {};
    const uid = asObject(serviceaccount)?.['uid'];
    if (typeof uid !== 'string') return refuse('not_a_service_account');
    const groups = groupsOf(claims.identity.namespace);
    const extra = { ...extrasOf('credential-id', payload['jti'], 'JTI='), ...namedExtras('node', node), ...namedExtras('pod', pod) };
    const matched = audiences.filter((audience) => claims.audiences.includes(audience));
    return { outcome: 'accepted', caller: createCaller(claims.identity, { uid, groups, extra }, matched, claims.expiresAtMs) };
  }

  return async (...asked) => {
    try {
      return await verify(...asked);
    } catch (error) {
      if (error instanceof ApiServerError) return { outcome: 'unavailable', reason: error.reason, detail: printable(error.message) };
      throw error;
    }
  };
}

// In the form that a review has them.
function extrasOf(name: string, value: unknown, prefix = ''): Record<string, readonly string[]> {
  return typeof value === 'string' ? { [`authentication.kubernetes.io/${name}`]: [`${prefix}${value}`] } : {};
}

function namedExtras(kind: 'pod' | 'node', claim: unknown): Record<string, readonly string[]> {
  const { name, uid } = asObject(claim) ?? {};
  return { ...extrasOf(`${kind}-name`, name), ...extrasOf(`${kind}-uid`, uid) };
}
