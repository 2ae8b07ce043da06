// The only place that answers what is posted and not kept: reviews of tokens and of permissions, and requests for tokens.
import {
  localSubjectAccessReviewType,
  reviewAccess,
  reviewOwnAccess,
  reviewRules,
  selfSubjectAccessReviewType,
  selfSubjectRulesReviewType,
  subjectAccessReviewType,
} from './access-review.ts';
import type { AccessReviewSpec, SentMetadata } from './access-review.ts';
import { checkAcceptable, objectTypes } from './answer.ts';
import type { Answer } from './answer.ts';
import type { Authenticator } from './authentication.ts';
import type { Cluster } from './cluster.ts';
import { formatManagedFields } from './decoding.ts';
import type { BodyType, DecodedBody } from './decoding.ts';
import { decode, managerOf } from './exchange.ts';
import type { Exchange } from './exchange.ts';
import type { Strike } from './faults.ts';
import { readRecord } from './json.ts';
import type { JsonRecord } from './json.ts';
import { formatTime } from './objects.ts';
import type { UserInfo } from './rbac.ts';
import { badRequest, methodNotAllowed, noSuchResource, notNegotiable } from './status.ts';
import { formatTokenRequest, issueToken, tokenRequestType } from './token-request.ts';
import type { BoundObjectReference } from './token-request.ts';
import { formatSelfSubjectReview, reviewToken, reviewTokenForAnyAudience, selfSubjectReviewType, tokenReviewType } from './token-review.ts';
import type { TokenReview } from './token-review.ts';

/** A caller's request for a review, and the fault that strikes it. */
export interface Reviewed {
  readonly exchange: Exchange;
  readonly user: UserInfo;
  readonly strike: Strike | undefined;
}

/** Answers reviews and token requests; throws a {@link StatusError}, 404 where there is no such kind. */
export function createReviews(cluster: Cluster, authenticator: Authenticator): (reviewed: Reviewed) => Answer {
  const { objects } = cluster;

  return ({ exchange, user, strike }) => {
    const { attributes, version } = exchange.target;
    if ('path' in attributes) throw noSuchResource();
    const { group, resource, subresource = '', name = '', namespace = '' } = attributes;
    const at = `${group}/${version}/${[resource, subresource].filter((part) => part !== '').join('/')}`;
    const create = {
      'authentication.k8s.io/v1/tokenreviews': () => createTokenReview(exchange, strike),
      'authentication.k8s.io/v1/selfsubjectreviews': () => {
        decode(exchange, selfSubjectReviewType);
        return created(formatSelfSubjectReview(user, formatTime(cluster.now())));
      },
      'authorization.k8s.io/v1/subjectaccessreviews': () =>
        createAccessReview(exchange, subjectAccessReviewType, (spec, metadata) => reviewAccess(objects, spec, metadata)),
      'authorization.k8s.io/v1/localsubjectaccessreviews': () =>
        createAccessReview(
          exchange,
          localSubjectAccessReviewType,
          (spec, metadata) => reviewAccess(objects, spec, metadata, namespace),
          namespace,
        ),
      'authorization.k8s.io/v1/selfsubjectaccessreviews': () =>
        createAccessReview(exchange, selfSubjectAccessReviewType, (spec, metadata) => reviewOwnAccess(objects, user, spec, metadata)),
      'authorization.k8s.io/v1/selfsubjectrulesreviews': () =>
        createAccessReview(exchange, selfSubjectRulesReviewType, (spec) => reviewRules(objects, user, spec)),
      '/v1/serviceaccounts/token': () => createToken(exchange, user, namespace, name),
    }[at];
    const isNamespaced = subresource === 'token' || resource === 'localsubjectaccessreviews';
    if (create === undefined || (namespace !== '') !== isNamespaced || (name !== '') !== (subresource === 'token')) throw noSuchResource();
    if (exchange.request.method !== 'POST') throw methodNotAllowed();
    checkAcceptable(exchange.request);
    // A token has no columns.
    if (subresource === 'token' && exchange.wanted.as.every((one) => one === 'Table')) throw notNegotiable(objectTypes);
    return create();
  };

  function createTokenReview(exchange: Exchange, strike: Strike | undefined): Answer {
    const decoded = decode(exchange, tokenReviewType);
    const review: TokenReview = decoded.object;
    const { status, isLate } =
      strike?.fault === 'ignores-audiences'
        ? reviewTokenForAnyAudience(authenticator, review)
        : reviewToken(authenticator, review, strike?.fault === 'etcd-outage');
    const answer = created(formatReview(exchange, tokenReviewType, { ...decoded, object: withoutNamespace(decoded.object) }, status));
    // client-go's time for one look into the storage.
    return isLate ? { ...answer, afterMs: strike?.delayMs ?? 30_000 } : answer;
  }

  type Review = (spec: AccessReviewSpec, metadata: SentMetadata) => object;
  function createAccessReview(exchange: Exchange, type: BodyType, review: Review, namespace?: string): Answer {
    const { object, faults } = decode(exchange, type);
    const { spec = {} }: { readonly spec?: AccessReviewSpec } = object;
    const sent = namespace === undefined ? withoutNamespace(object) : object;
    if (namespace !== undefined) checkSentNamespace(readRecord(object['metadata']), namespace);
    const at = namespace === undefined ? {} : { namespace };
    const whole = { object: { ...sent, metadata: { ...readRecord(sent['metadata']), ...at } }, faults };
    const { metadata, ...shown } = formatReview(exchange, type, whole, {});
    return created({ ...shown, ...(type.kind === 'SelfSubjectRulesReview' ? { spec: {} } : {}), metadata, status: review(spec, metadata) });
  }

  function createToken(exchange: Exchange, user: UserInfo, namespace: string, serviceAccount: string): Answer {
    const { object } = decode(exchange, tokenRequestType);
    const { metadata = {}, spec = {} }: TokenRequestBody = object;
    const { name, uid } = metadata;
    checkSentNamespace(metadata, namespace);
    const expected = { ...(name === undefined ? {} : { name }), ...(uid === undefined ? {} : { uid }) };
    const issued = issueToken(cluster, { ...spec, ...expected, namespace, serviceAccount, user });
    exchange.warnings.push(...issued.warnings);
    const time = formatTime(cluster.now());
    const sent = { ...object, spec: { ...spec, expirationSeconds: issued.expirationSeconds } };
    const fields = { manager: managerOf(exchange.request), time, subresource: 'token' };
    const managedFields = formatManagedFields(tokenRequestType, sent, fields);
    return created(formatTokenRequest(issued, spec.boundObjectRef, { metadata, creationTimestamp: time, managedFields }));
  }

  function formatReview({ request }: Exchange, type: BodyType, { object }: DecodedBody, status: object): FormattedReview {
    // Of a review, which is kept nowhere, a sender has no say in these; a namespace is set where the path has one.
    const { uid: _, creationTimestamp: __, managedFields: ___, ...metadata } = readRecord(object['metadata']);
    const { spec = {} }: { readonly spec?: object } = object;
    const managedFields = formatManagedFields(type, object, { manager: managerOf(request), time: formatTime(cluster.now()) });
    const { kind, apiVersion } = type;
    return { kind, apiVersion, metadata: { ...metadata, managedFields }, spec, status };
  }
}

interface FormattedReview {
  readonly kind: string;
  readonly apiVersion: string;
  readonly metadata: SentMetadata;
  readonly spec: object;
  readonly status: object;
}

function withoutNamespace({ metadata, ...object }: JsonRecord): JsonRecord {
  const { namespace: _, ...rest } = readRecord(metadata);
  return { ...object, metadata: rest };
}

function checkSentNamespace({ namespace: sent }: { readonly namespace?: unknown }, namespace: string): void {
  if (sent === undefined || sent === namespace) return;
  throw badRequest('the namespace of the provided object does not match the namespace sent on the request');
}

interface TokenRequestBody {
  readonly metadata?: { readonly name?: string; readonly namespace?: string; readonly uid?: string };
  readonly spec?: {
    readonly audiences?: readonly string[];
    readonly expirationSeconds?: number;
    readonly boundObjectRef?: BoundObjectReference;
  };
}

function created(body: object): Answer {
  return { status: 201, body };
}
