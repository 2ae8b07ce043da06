// The only place that issues tokens: TokenRequest, its checks in the order of the real one, and the claims of what it signs.
import { randomUUID } from 'node:crypto';
import { checkNamespace } from './admission.ts';
import type { Cluster } from './cluster.ts';
import { bodyType } from './decoding.ts';
import type { BodyType } from './decoding.ts';
import { readRecord } from './json.ts';
import { restrictNodeToken } from './nodes.ts';
import { formatTime } from './objects.ts';
import type { ClusterObject } from './objects.ts';
import type { UserInfo } from './rbac.ts';
import { badRequest, conflict, invalid } from './status.ts';

/** What a token is asked for; the names are those of TokenRequest's spec. */
export interface TokenRequest {
  readonly namespace: string;
  readonly serviceAccount: string;
  /** Default: the API server's own. */
  readonly audiences?: readonly string[];
  /** Seconds, at least 600. Default 3600. */
  readonly expirationSeconds?: number;
  readonly boundObjectRef?: BoundObjectReference;
  /** metadata.name of the request, which has to be the ServiceAccount's. */
  readonly name?: string;
  /** metadata.uid of the request, which has to be the ServiceAccount's. */
  readonly uid?: string;
  /** Who asks. Default: somebody who may have any token. */
  readonly user?: UserInfo;
}

/** The object that a token lives and dies with. */
export interface BoundObjectReference {
  readonly kind?: string;
  readonly apiVersion?: string;
  readonly name?: string;
  readonly uid?: string;
}

/** A token that was issued, and the request as it was understood. */
export interface IssuedToken {
  readonly token: string;
  /** When the token has to be replaced, in milliseconds; its `exp` may be later. */
  readonly expiresAt: number;
  readonly account: ClusterObject;
  readonly audiences: readonly string[];
  readonly expirationSeconds: number;
  /** What the caller should be warned of. */
  readonly warnings: readonly string[];
}

/** The body of a TokenRequest. */
export const tokenRequestType: BodyType = bodyType('TokenRequest', 'authentication.k8s.io/v1', {
  spec: {
    struct: 'TokenRequestSpec',
    fields: {
      audiences: { list: 'string' },
      expirationSeconds: 'int64',
      boundObjectRef: {
        struct: 'BoundObjectReference',
        fields: { kind: 'string', apiVersion: 'string', name: 'string', uid: 'string' },
      },
    },
  },
  status: { struct: 'TokenRequestStatus', fields: { token: 'string', expirationTimestamp: 'time' } },
});

const group = 'authentication.k8s.io';
const year = 31_536_000;
// A pod's own API token is asked for 3607 s, by which the server knows it, and lives a year (KEP-2799); warnafter tells when it should go.
const extendedSeconds = 3607;

/** Issues a token. Throws the {@link StatusError} that a real API server answers with. */
export function issueToken(cluster: Cluster, request: TokenRequest): IssuedToken {
  const { keys, objects, issuers, apiAudiences, maxTokenExpirationSeconds = Number.POSITIVE_INFINITY } = cluster;
  const { namespace, serviceAccount, expirationSeconds: asked = 3600, boundObjectRef, user } = request;
  checkNamespace(objects, 'serviceaccounts', '', serviceAccount, namespace);
  if (user !== undefined) restrictNodeToken(objects, user, request);
  if (request.name !== undefined && request.name !== serviceAccount) {
    const message = `Invalid value: ${JSON.stringify(request.name)}: must match the service account name if specified`;
    throw invalid('TokenRequest', group, serviceAccount, [{ field: 'metadata.name', message }]);
  }
  const account = objects.get('ServiceAccount', serviceAccount, namespace);
  const { uid } = account.metadata;
  if (request.uid !== undefined && request.uid !== uid) {
    const message = `the UID in the token request (${request.uid}) does not match the UID of the service account (${uid})`;
    throw conflict('TokenRequest', serviceAccount, message, group);
  }
  const audiences = request.audiences === undefined || request.audiences.length === 0 ? apiAudiences : request.audiences;
  checkExpiration(asked);
  const bound = boundObjectRef === undefined ? {} : readBoundObject(cluster, namespace, serviceAccount, boundObjectRef);
  const expirationSeconds = Math.min(asked, maxTokenExpirationSeconds);
  const warnings =
    expirationSeconds === asked ? [] : [`requested expiration of ${asked} seconds shortened to ${expirationSeconds} seconds`];

  const issuedAt = Math.floor(cluster.now() / 1000);
  const isExtended =
    'pod' in bound && expirationSeconds === extendedSeconds && audiences.every((audience) => apiAudiences.includes(audience));
  const token = keys.sign({
    aud: audiences,
    exp: issuedAt + (isExtended ? year : expirationSeconds),
    iat: issuedAt,
    iss: issuers[0],
    jti: randomUUID(),
    'kubernetes.io': {
      namespace,
      ...bound,
      serviceaccount: { name: serviceAccount, uid },
      ...(isExtended ? { warnafter: issuedAt + expirationSeconds } : {}),
    },
    nbf: issuedAt,
    sub: `system:serviceaccount:${namespace}:${serviceAccount}`,
  });
  return { token, expiresAt: (issuedAt + expirationSeconds) * 1000, account, audiences, expirationSeconds, warnings };
}

/** Formats the answer to a TokenRequest. */
export function formatTokenRequest(
  { token, expiresAt, account, audiences, expirationSeconds }: IssuedToken,
  boundObjectRef: BoundObjectReference | undefined,
  sent: { readonly metadata: object; readonly creationTimestamp: string; readonly managedFields: readonly object[] },
): object {
  const { name, namespace, uid } = account.metadata;
  const { metadata, creationTimestamp, managedFields } = sent;
  return {
    kind: 'TokenRequest',
    apiVersion: `${group}/v1`,
    metadata: { ...metadata, name, namespace, uid, creationTimestamp, managedFields },
    spec: { audiences, expirationSeconds, boundObjectRef: boundObjectRef ?? null },
    status: { token, expirationTimestamp: formatTime(expiresAt) },
  };
}

function checkExpiration(seconds: number): void {
  if (seconds >= 600 && seconds <= 2 ** 32) return;
  const limit = seconds < 600 ? 'may not specify a duration less than 10 minutes' : 'may not specify a duration larger than 2^32 seconds';
  throw invalid('TokenRequest', group, '', [{ field: 'spec.expirationSeconds', message: `Invalid value: ${seconds}: ${limit}` }]);
}

type Reference = Readonly<Record<string, string>>;

function readBoundObject(
  { objects }: Cluster,
  namespace: string,
  serviceAccount: string,
  { kind = '', apiVersion = '', name = '', uid }: BoundObjectReference,
): Readonly<Record<string, Reference>> {
  const [version = '', groupName = '', ...more] = apiVersion.split('/').toReversed();
  const [boundGroup, boundVersion] = more.length > 0 ? ['', ''] : [groupName, version];
  // The version does not count.
  if (boundGroup !== '' || !['Pod', 'Secret', 'Node'].includes(kind)) {
    throw badRequest(`cannot bind token to object of type ${boundGroup}/${boundVersion}, Kind=${kind}`);
  }
  if (name === '') throw badRequest('Name parameter required.');
  if (name.includes('/')) throw badRequest(`Name parameter invalid: ${JSON.stringify(name)}: may not contain '/'`);
  const object = objects.get(kind, name, namespace);
  const { nodeName, serviceAccountName } = readRecord(object['spec']);
  if (kind === 'Pod' && serviceAccountName !== serviceAccount) {
    throw badRequest(`cannot bind token for serviceaccount "${serviceAccount}" to pod running with different serviceaccount name.`);
  }
  if (uid !== undefined && uid !== object.metadata.uid) {
    throw conflict(
      kind,
      name,
      `the UID in the bound object reference (${uid}) does not match the UID in record. The object might have been deleted and then recreated`,
    );
  }
  const reference = { name, uid: object.metadata.uid };
  if (kind === 'Secret') return { secret: reference };
  if (kind === 'Node') return { node: reference };
  if (typeof nodeName !== 'string' || nodeName === '') return { pod: reference };
  const node = objects.find('Node', nodeName);
  return { node: { name: nodeName, ...(node === undefined ? {} : { uid: node.metadata.uid }) }, pod: reference };
}
