// The TokenReview API: the question, what its answer means, and whether we may ask.
// https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/

import { type Answer, type ApiServerConnection, ApiServerError } from './api-server.ts';
import { type Caller, createCaller, formatUsername, type Identity, parseUsername } from './caller.ts';
import { printable } from './logger.ts';
import { traceReview } from './review.ts';
import { asObject, parseObject, type ScreenedClaims } from './screening.ts';

/** What the cluster said of a token; `unavailable`: nobody knows. `claimant`: whose it was, where one of its keys, or an earlier review, says so. */
export type Verdict =
  | { readonly outcome: 'accepted'; readonly caller: Caller }
  | { readonly outcome: 'refused'; readonly reason: string; readonly detail?: string; readonly claimant?: string }
  | { readonly outcome: 'unavailable'; readonly reason: string; readonly detail?: string };

/** Asks the cluster about a token that was screened for these audiences. Rejects only where our own options are wrong. */
export function reviewToken(
  apiServer: ApiServerConnection,
  token: string,
  claims: ScreenedClaims,
  audiences: readonly string[],
  budgetMs: number,
): Promise<Verdict> {
  return traceReview(apiServer, reviewKinds.TokenReviews, budgetMs, async (ask) => {
    await refuseApiServerAudience(apiServer, audiences);
    const body = { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenReview', spec: { token, audiences } };
    return readReview(await ask({ body, maxAnswerBytes: token.length + 16_384 }), token, claims, audiences);
  });
}

/** Throws a TypeError if one of these audiences is the API server's: every pod holds a token for that one. */
export async function refuseApiServerAudience(
  apiServer: Pick<ApiServerConnection, 'ownClaims'>,
  audiences: Iterable<string>,
): Promise<void> {
  const taken = (await apiServer.ownClaims())?.audiences ?? [];
  for (const audience of audiences) {
    if (!taken.includes(audience)) continue;
    throw new TypeError(
      `"audience": ${JSON.stringify(audience)} is the API server's own, for which every pod holds a token. Name this service instead`,
    );
  }
}

/** What an answer means. Nothing in it is believed until `authenticated` is true: it can be an echo of the question. */
export function readReview(answer: Answer, token: string, claims: ScreenedClaims, audiences: readonly string[]): Verdict {
  if (answer.status < 200 || answer.status > 299) return unusable(answer);
  const review = parseObject(answer.body);
  const status = asObject(review?.['status']);
  if (review?.['kind'] !== 'TokenReview' || review['apiVersion'] !== 'authentication.k8s.io/v1' || status === undefined) {
    return { outcome: 'unavailable', reason: 'not_a_token_review' };
  }
  const asked = asObject(review['spec'])?.['token'];
  if (asked !== undefined && asked !== token) return { outcome: 'unavailable', reason: 'review_of_another_token' };

  const { authenticated = false, error = '' } = status;
  if (typeof authenticated !== 'boolean' || typeof error !== 'string') return { outcome: 'unavailable', reason: 'not_a_token_review' };
  if (isOutage(error)) return { outcome: 'unavailable', reason: 'review_timed_out_inside', detail: printable(error) };
  if (!authenticated || error !== '') return { outcome: 'refused', reason: 'review_refused', ...(error && { detail: printable(error) }) };

  const answered = readStrings(status['audiences']) ?? [];
  const matched = audiences.filter((audience) => answered.includes(audience));
  if (matched.length === 0) return { outcome: 'refused', reason: 'review_for_other_audiences' };

  const user = asObject(status['user']) ?? {};
  const identity = typeof user['username'] === 'string' ? parseUsername(user['username']) : undefined;
  if (identity === undefined) return { outcome: 'refused', reason: 'not_a_service_account' };
  if (formatUsername(identity) !== formatUsername(claims.identity))
    return { outcome: 'unavailable', reason: 'review_of_another_service_account' };
  const reviewed = {
    uid: typeof user['uid'] === 'string' ? user['uid'] : '',
    groups: readStrings(user['groups']) ?? [],
    extra: readExtra(user['extra']),
  };
  return { outcome: 'accepted', caller: createCaller(identity, reviewed, matched, claims.expiresAtMs) };
}

const reasons: Readonly<Record<number, string>> = {
  401: 'own_credentials_refused',
  403: 'own_permission_missing',
  429: 'too_many_requests',
};

/** What an answer other than a 2xx means: nobody knows, and why. */
export function unusable({ status, body }: Answer): { readonly outcome: 'unavailable'; readonly reason: string; readonly detail: string } {
  const message = parseObject(body)?.['message'];
  const reason = reasons[status] ?? (status >= 500 ? 'api_server_error' : 'unexpected_status');
  return { outcome: 'unavailable', reason, detail: printable(`${status} ${typeof message === 'string' ? message : ''}`.trim()) };
}

// The API server answers 201 when it could not look the ServiceAccount up: its own time-outs are not the token's fault.
export function isOutage(error: string): boolean {
  const text = error.replaceAll(/^\[+|\]+$/g, '');
  return text.endsWith('context deadline exceeded') || text.includes(', Get "https://') || text.includes('etcdserver:');
}

/** What a guard may have to create, and the API group of each. */
export const reviewKinds = {
  TokenReviews: { group: 'authentication.k8s.io', resource: 'tokenreviews' },
  SubjectAccessReviews: { group: 'authorization.k8s.io', resource: 'subjectaccessreviews' },
} as const;

export type ReviewKind = keyof typeof reviewKinds;

/** Whether the cluster lets us create objects of this kind. Rejects with an ApiServerError when it cannot be asked. */
export async function mayCreate(apiServer: ApiServerConnection, kind: ReviewKind, budgetMs: number): Promise<boolean> {
  const answer = await apiServer.ask(
    {
      method: 'POST',
      path: '/apis/authorization.k8s.io/v1/selfsubjectaccessreviews',
      body: {
        apiVersion: 'authorization.k8s.io/v1',
        kind: 'SelfSubjectAccessReview',
        spec: { resourceAttributes: { ...reviewKinds[kind], verb: 'create' } },
      },
      maxAnswerBytes: 16_384,
    },
    budgetMs,
  );
  const review = answer.status >= 200 && answer.status <= 299 ? parseObject(answer.body) : undefined;
  const allowed = asObject(review?.['status'])?.['allowed'];
  if (review?.['kind'] === 'SelfSubjectAccessReview' && typeof allowed === 'boolean') return allowed;
  const { reason, detail } = unusable(answer);
  throw new ApiServerError(reason, `The API server does not say whether ${reviewKinds[kind].resource} may be created (${detail})`);
}

/** What to tell an operator whose service may not create such reviews. */
export function permissionHint(identity: Identity | undefined, kind: ReviewKind): string {
  const { namespace, name } = identity ?? { namespace: '<namespace>', name: '<serviceaccount>' };
  return `${identity === undefined ? 'The identity in the kubeconfig' : formatUsername(identity)} may not create ${kind}. Apply this, then try again:

apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: ${namespace}:${name}:auth-delegator
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: system:auth-delegator
subjects:
  - kind: ServiceAccount
    name: ${name}
    namespace: ${namespace}
`;
}

function readStrings(value: unknown): readonly string[] | undefined {
  return Array.isArray(value) && value.every((item) => typeof item === 'string') ? value : undefined;
}

function readExtra(value: unknown): Readonly<Record<string, readonly string[]>> {
  return Object.fromEntries(Object.entries(asObject(value) ?? {}).map(([key, values]) => [key, readStrings(values) ?? []]));
}
