// The only place that decides whom a bearer token stands for: what a real API server takes for the same token, what it checks and in
// which order, and for how long it remembers a success.
import { createHash } from 'node:crypto';
import type { Cluster } from './cluster.ts';
import { isRecord, readRecord, readText, readTexts } from './json.ts';
import type { JsonRecord } from './json.ts';
import type { ClusterObject } from './objects.ts';
import type { UserInfo } from './rbac.ts';
import { isSignedBy, parseSegment, parseToken } from './signing.ts';

/** Whom a token stands for, or the words with which it is refused: none where nothing stands for anybody. */
export type Authentication =
  | { readonly user: UserInfo; readonly audiences: readonly string[]; readonly warning?: string }
  | { readonly error: string; readonly isLate?: boolean; readonly warning?: string };

/** What counts beside the credentials. */
export interface AuthenticationOptions {
  /** Default: the API server's. */
  readonly audiences?: readonly string[] | undefined;
  /** The path of the request that carries the credentials. A TokenReview has none to tell. */
  readonly path?: string;
  /** Whether objects that are not in memory cannot be looked up; a refusal for that is late. Default false. */
  readonly isStorageFrozen?: boolean;
}

/** Finds out whom a bearer token stands for. */
export interface Authenticator {
  /** Takes the credentials as they stand behind `Bearer `. Throws a {@link Panic} where a real API server has one. */
  authenticate(credentials: string, options?: AuthenticationOptions): Authentication;
}

/** What makes a real API server cut the connection without an answer. */
export class Panic extends Error {
  override readonly name: string = 'Panic';
}

const rememberedMs = 10_000;
const leewaySeconds = 60;
const legacyIssuer = 'kubernetes/serviceaccount';
const anonymous: UserInfo = { username: 'system:anonymous', groups: ['system:unauthenticated'] };

// Go's strings.TrimSpace: String.prototype.trim() knows another set.
const surroundingSpace =
  /^[\t\n\v\f\r \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+|[\t\n\v\f\r \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+$/g;

/** Makes the authenticator of one cluster; `url` is where its API server reaches itself. */
export function createAuthenticator(cluster: Cluster, url: () => string): Authenticator {
  const remembered = new Map<string, { readonly result: Authentication; readonly until: number }>();
  let retirements = 0;

  return {
    authenticate(credentials, { audiences, path, isStorageFrozen = false } = {}) {
      const [scheme, token, ...junk] = `Bearer ${credentials}`.replaceAll(surroundingSpace, '').split(' ');
      const requested = audiences ?? cluster.apiAudiences;
      if (scheme !== 'Bearer' || token === undefined || token === '') {
        // kubernetes/kubernetes#106142: white space is no token, and no token is the anonymous user, for any audience.
        const extraSpace = 'the provided Authorization header contains extra space before the bearer token, and is ignored';
        const warning = junk.length > 0 ? { warning: extraSpace } : {};
        return isAnonymousLetIn(cluster, path) ? { user: anonymous, audiences: requested, ...warning } : { error: '', ...warning };
      }
      const key = createHash('sha256')
        .update(JSON.stringify([token, audiences ?? null]))
        .digest('base64');
      // It takes another start of the API server to have it forget a key, which then remembers nothing.
      if (retirements !== cluster.keys.retirements()) remembered.clear();
      retirements = cluster.keys.retirements();
      const hit = remembered.get(key);
      if (hit !== undefined && hit.until > cluster.now()) return hit.result;
      remembered.delete(key);
      const result = authenticateToken(cluster, token, requested, isStorageFrozen ? url() : undefined);
      if (!('error' in result)) {
        if (remembered.size >= 4096) remembered.clear();
        remembered.set(key, { result, until: cluster.now() + rememberedMs });
      }
      return result;
    },
  };
}

function isAnonymousLetIn({ anonymous: where }: Cluster, path: string | undefined): boolean {
  if (typeof where === 'boolean') return where;
  // A review's token is put into a request that has no URL, and the conditions look at one.
  if (path === undefined) throw new Panic('runtime error: invalid memory address or nil pointer dereference');
  return where.includes(path);
}

function authenticateToken(cluster: Cluster, token: string, requested: readonly string[], frozenAt: string | undefined): Authentication {
  const known = cluster.staticTokens.get(token);
  if (known !== undefined) {
    const audiences = intersect(requested, cluster.apiAudiences);
    if (audiences.length === 0) return { error: 'invalid bearer token' };
    return { user: { ...known, groups: [...known.groups, 'system:authenticated'] }, audiences };
  }
  const parsed = parseToken(token);
  const isLegacy = hasIssuer([legacyIssuer], token);
  if (parsed === undefined || !(isLegacy || hasIssuer(cluster.issuers, token))) return { error: 'invalid bearer token' };
  const keys = cluster.keys.fitting(parsed);
  if (keys.length === 0) return refuse('invalid signature, no keys found');
  if (!keys.some((key) => isSignedBy(key, parsed))) return refuse('go-jose/go-jose: error in cryptographic primitive');

  const own = readAudiences(parsed.claims['aud'], cluster.apiAudiences);
  const audiences = intersect(requested, own);
  if (audiences.length === 0) {
    return refuse(`token audiences ${formatList(own)} is invalid for the target audiences ${formatList(requested)}`);
  }
  if (isLegacy) return authenticateLegacy(cluster, parsed.claims, token, audiences);
  const late = checkTimes(parsed.claims, cluster.now());
  if (late !== undefined) return refuse(late);
  const lost = checkObjects(cluster, readBinding(parsed.claims), frozenAt);
  return lost === undefined ? { user: describeUser(parsed.claims), audiences } : { ...refuse(lost.reason), isLate: lost.isLate };
}

// The issuer is looked up before the token is parsed, by a stricter decoder: Go's base64 skips line ends, go-jose all white space.
function hasIssuer(issuers: readonly string[], token: string): boolean {
  const [, payload = ''] = token.split('.');
  return issuers.includes(readText(parseSegment(payload.replaceAll(/[\r\n]/g, ''))?.['iss']));
}

// The token of a Secret, which never expires and lives as long as the Secret holds it.
function authenticateLegacy({ objects }: Cluster, claims: JsonRecord, token: string, audiences: readonly string[]): Authentication {
  const claim = (name: string): string => readText(claims[`kubernetes.io/serviceaccount/${name}`]);
  const [namespace, name, uid] = [claim('namespace'), claim('service-account.name'), claim('service-account.uid')];
  const secret = objects.find('Secret', claim('secret.name'), namespace);
  if (secret === undefined) return refuse('Token has been invalidated');
  const copy = Buffer.from(readText(readRecord(secret['data'])['token']), 'base64').toString();
  if (copy !== token) return refuse("Token does not match server's copy");
  const account = objects.find('ServiceAccount', name, namespace);
  if (account === undefined) return refuse(`serviceaccounts "${name}" not found`);
  if (account.metadata.uid !== uid) return refuse(`ServiceAccount UID (${account.metadata.uid}) does not match claim (${uid})`);
  return { user: describeAccount(namespace, { name, uid }, {}), audiences };
}

function checkTimes(claims: JsonRecord, now: number): string | undefined {
  const seconds = now / 1000;
  const { nbf, exp, iat } = claims;
  if (typeof nbf === 'number' && seconds + leewaySeconds < nbf) return 'service account token is not valid yet';
  if (typeof exp === 'number' && seconds - leewaySeconds > exp) return 'service account token has expired';
  if (typeof iat === 'number' && seconds + leewaySeconds < iat) return 'service account token is issued in the future';
  return undefined;
}

interface Reference {
  readonly name: string;
  readonly uid: string;
}

interface Binding {
  readonly namespace: string;
  readonly serviceAccount: Reference;
  readonly pod: Reference | undefined;
  readonly node: Reference | undefined;
  readonly secret: Reference | undefined;
}

interface Lost {
  readonly reason: string;
  /** Whether the object was looked up in a storage that does not answer. */
  readonly isLate: boolean;
}

function checkObjects({ objects, now }: Cluster, binding: Binding, frozenAt: string | undefined): Lost | undefined {
  const { namespace, serviceAccount, pod, node, secret } = binding;
  const lose = (reason: string, isLate = false): Lost => ({ reason, isLate });
  if (serviceAccount.name === '') return lose('resource name may not be empty');
  const account = objects.find('ServiceAccount', serviceAccount.name, namespace);
  if (account === undefined) {
    if (frozenAt === undefined) return lose(`serviceaccounts "${serviceAccount.name}" not found`);
    const path = `/api/v1/namespaces/${namespace}/serviceaccounts/${serviceAccount.name}`;
    return lose(`Get "${frozenAt}${path}": context deadline exceeded`, true);
  }
  if (account.metadata.uid !== serviceAccount.uid) {
    return lose(`service account UID (${account.metadata.uid}) does not match claim (${serviceAccount.uid})`);
  }
  const check = (object: ClusterObject | undefined, reference: Reference, label: string): Lost | undefined => {
    if (object === undefined || isGone(object, now())) {
      return lose('service account token has been invalidated', object === undefined && frozenAt !== undefined);
    }
    if (object.metadata.uid === reference.uid) return undefined;
    return lose(`${label} UID (${object.metadata.uid}) does not match service account ${label} ref claim (${reference.uid})`);
  };
  if (secret !== undefined) return check(objects.find('Secret', secret.name, namespace), secret, 'secret');
  if (pod !== undefined) return check(objects.find('Pod', pod.name, namespace), pod, 'pod');
  // A pod's token outlives its node: only one bound to the node itself does not.
  return node === undefined ? undefined : check(objects.find('Node', node.name), node, 'node');
}

function isGone({ metadata }: ClusterObject, now: number): boolean {
  const { deletionTimestamp } = metadata;
  return deletionTimestamp !== undefined && Date.parse(deletionTimestamp) < now - leewaySeconds * 1000;
}

function describeUser(claims: JsonRecord): UserInfo {
  const { namespace, serviceAccount, pod, node } = readBinding(claims);
  const prefix = 'authentication.kubernetes.io';
  const id = claims['jti'];
  const extra: Record<string, readonly string[]> = {
    ...(typeof id === 'string' && id !== '' ? { [`${prefix}/credential-id`]: [`JTI=${id}`] } : {}),
    ...(node === undefined ? {} : { [`${prefix}/node-name`]: [node.name] }),
    ...(node === undefined || node.uid === '' ? {} : { [`${prefix}/node-uid`]: [node.uid] }),
    ...(pod === undefined ? {} : { [`${prefix}/pod-name`]: [pod.name], [`${prefix}/pod-uid`]: [pod.uid] }),
  };
  return describeAccount(namespace, serviceAccount, extra);
}

function describeAccount(namespace: string, { name, uid }: Reference, extra: NonNullable<UserInfo['extra']>): UserInfo {
  return {
    username: `system:serviceaccount:${namespace}:${name}`,
    uid,
    groups: ['system:serviceaccounts', `system:serviceaccounts:${namespace}`, 'system:authenticated'],
    ...(Object.keys(extra).length === 0 ? {} : { extra }),
  };
}

function readBinding(claims: JsonRecord): Binding {
  const bound = readRecord(claims['kubernetes.io']);
  return {
    namespace: readText(bound['namespace']),
    serviceAccount: readReference(bound['serviceaccount']) ?? { name: '', uid: '' },
    pod: readReference(bound['pod']),
    node: readReference(bound['node']),
    secret: readReference(bound['secret']),
  };
}

function readReference(value: unknown): Reference | undefined {
  return isRecord(value) ? { name: readText(value['name']), uid: readText(value['uid']) } : undefined;
}

function readAudiences(value: unknown, implicit: readonly string[]): readonly string[] {
  const list = readTexts(value);
  return list.length === 0 ? implicit : list;
}

/** What both hold, in the order of the request, its duplicates kept. */
function intersect(requested: readonly string[], own: readonly string[]): readonly string[] {
  return requested.filter((audience) => own.includes(audience));
}

// Go's %q of a list of strings.
function formatList(list: readonly string[]): string {
  return `[${list.map((one) => JSON.stringify(one)).join(' ')}]`;
}

function refuse(reason: string): { readonly error: string } {
  return { error: `[invalid bearer token, ${reason}]` };
}
