// The only place that answers a TokenReview, and a SelfSubjectReview, which tells the caller what a review would tell of it.
import type { Authentication, Authenticator } from './authentication.ts';
import { bodyType } from './decoding.ts';
import type { BodyType, Struct } from './decoding.ts';
import { readTexts } from './json.ts';
import type { UserInfo } from './rbac.ts';
import { parseToken } from './signing.ts';
import { badRequest } from './status.ts';

const userInfo: Struct = {
  struct: 'UserInfo',
  fields: { username: 'string', uid: 'string', groups: { list: 'string' }, extra: { map: { list: 'string', name: 'v1.ExtraValue' } } },
};

/** The body of a TokenReview. */
export const tokenReviewType: BodyType = bodyType('TokenReview', 'authentication.k8s.io/v1', {
  spec: { struct: 'TokenReviewSpec', fields: { token: 'string', audiences: { list: 'string' } } },
  status: {
    struct: 'TokenReviewStatus',
    fields: { authenticated: 'bool', user: userInfo, audiences: { list: 'string' }, error: 'string' },
  },
});

/** The body of a SelfSubjectReview. */
export const selfSubjectReviewType: BodyType = bodyType('SelfSubjectReview', 'authentication.k8s.io/v1', {
  status: { struct: 'SelfSubjectReviewStatus', fields: { userInfo } },
});

/** A TokenReview as it was sent. */
export interface TokenReview {
  readonly spec?: { readonly token?: string; readonly audiences?: readonly string[] };
  readonly status?: Readonly<Record<string, unknown>>;
}

/** A review, and whether the API server waited in vain for its storage before it could tell. */
export interface Reviewed {
  readonly status: object;
  readonly isLate: boolean;
}

/** Reviews the token; the caller's own `status` shines through, as it does on a real API server. Throws a 400 without a token. */
export function reviewToken(authenticator: Authenticator, { spec, status: sent }: TokenReview, isStorageFrozen: boolean): Reviewed {
  if (spec?.token === undefined) throw badRequest('token is required for TokenReview in authentication');
  const result = authenticator.authenticate(spec.token, { audiences: spec.audiences, isStorageFrozen });
  return { status: formatReview(result, sent), isLate: 'error' in result && result.isLate === true };
}

/** Reviews the token as an authenticator does that knows no audiences: it takes any, and says so by naming none. */
export function reviewTokenForAnyAudience(authenticator: Authenticator, { spec, status: sent }: TokenReview): Reviewed {
  if (spec?.token === undefined) throw badRequest('token is required for TokenReview in authentication');
  const { token } = spec;
  const audiences = readAudiences(token);
  const result = authenticator.authenticate(token, audiences.length === 0 ? {} : { audiences });
  return { status: formatReview('error' in result ? result : { ...result, audiences: [] }, sent), isLate: false };
}

/** Formats who the caller is. */
export function formatSelfSubjectReview(user: UserInfo, creationTimestamp: string): object {
  return { kind: 'SelfSubjectReview', apiVersion: 'authentication.k8s.io/v1', metadata: { creationTimestamp }, status: { userInfo: user } };
}

function formatReview(result: Authentication, sent: Readonly<Record<string, unknown>> = {}): object {
  const { authenticated: _, user = {}, audiences, error } = sent;
  const echoed = audiences === undefined ? {} : { audiences };
  // `authenticated` is left out of a no: Go's omitempty.
  if ('error' in result) return { user, ...echoed, ...(result.error === '' ? {} : { error: result.error }) };
  return {
    authenticated: true,
    user: result.user,
    ...(result.audiences.length === 0 ? echoed : { audiences: result.audiences }),
    ...(error === undefined ? {} : { error }),
  };
}

function readAudiences(token: string): readonly string[] {
  return readTexts(parseToken(token)?.claims['aud']);
}
