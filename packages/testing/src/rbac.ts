// The only place that decides who may do what: RBAC's rules, and the roles that every cluster has from the start.
import { isRecord, readRecord, readText } from './json.ts';
import type { JsonRecord } from './json.ts';
import type { ClusterObject, NewObject, Objects } from './objects.ts';
import { StatusError } from './status.ts';

/** Who asks, as an authenticator has found it. */
export interface UserInfo {
  readonly username: string;
  readonly uid?: string;
  readonly groups: readonly string[];
  readonly extra?: Readonly<Record<string, readonly string[]>>;
}

/** What is asked: an action on a resource, or on a path that is none. */
export type Attributes =
  | {
      readonly verb: string;
      readonly group: string;
      readonly resource: string;
      readonly subresource?: string;
      readonly name?: string;
      readonly namespace?: string;
      /** Of a list or a watch, as it was sent. */
      readonly fieldSelector?: string;
    }
  | { readonly verb: string; readonly path: string };

/** RBAC's answer; the reason is absent where a real API server gives none. */
export interface Permission {
  readonly allowed: boolean;
  readonly reason?: string;
}

/** A rule of a role. */
export interface Rule {
  readonly verbs?: readonly string[];
  readonly apiGroups?: readonly string[];
  readonly resources?: readonly string[];
  readonly resourceNames?: readonly string[];
  readonly nonResourceURLs?: readonly string[];
}

interface Subject {
  readonly kind?: string;
  readonly name?: string;
  readonly namespace?: string;
}

/** Names a role. */
export interface RoleRef {
  readonly kind: string;
  readonly name: string;
}

const apiGroup = 'rbac.authorization.k8s.io';

/** Decides as the RBAC authorizer does. */
export function authorizeByRoles(objects: Objects, user: UserInfo, asked: Attributes): Permission {
  if (user.groups.includes('system:masters')) return { allowed: true };
  const missing: string[] = [];
  for (const binding of bindingsIn(objects, 'path' in asked ? '' : asked.namespace)) {
    const subject = readSubjects(binding).find((one) => isSubject(one, user, binding));
    if (subject === undefined) continue;
    const reference = readRoleRef(binding);
    const role = findRole(objects, reference, binding.metadata.namespace);
    if (role === undefined) missing.push(describeMissing(reference));
    else if (rulesAllow(readRules(role), asked)) {
      return { allowed: true, reason: `RBAC: allowed by ${describeBinding(binding)} of ${describe(reference)} to ${describe(subject)}` };
    }
  }
  if (missing.length === 0) return { allowed: false };
  return { allowed: false, reason: `RBAC: ${joinErrors(missing)}` };
}

/** Everything that RBAC lets a user do in a namespace, or in none but everywhere where that is empty; and the names of roles that there are not. */
export function listRules(
  objects: Objects,
  user: UserInfo,
  namespace: string,
): { readonly rules: readonly Rule[]; readonly missing: readonly RoleRef[] } {
  const mine = bindingsIn(objects, namespace).filter((binding) => readSubjects(binding).some((one) => isSubject(one, user, binding)));
  const roles = mine.map((binding) => ({ binding, role: findRole(objects, readRoleRef(binding), binding.metadata.namespace) }));
  return {
    rules: roles.flatMap(({ role }) => (role === undefined ? [] : readRules(role))),
    missing: roles.flatMap(({ binding, role }) => (role === undefined ? [readRoleRef(binding)] : [])),
  };
}

/** One text for several errors, as Go's aggregates have it. */
export function joinErrors(errors: readonly string[]): string {
  return errors.length === 1 ? (errors[0] ?? '') : `[${errors.join(', ')}]`;
}

/** The role that a binding of this namespace names. */
export function findRole(objects: Objects, { kind, name }: RoleRef, namespace: string | undefined): ClusterObject | undefined {
  return kind === 'Role' ? objects.find('Role', name, namespace) : objects.find('ClusterRole', name);
}

function bindingsIn(objects: Objects, namespace = ''): readonly ClusterObject[] {
  return [...objects.list('ClusterRoleBinding'), ...(namespace === '' ? [] : objects.list('RoleBinding', namespace))];
}

/** What the RBAC authorizer says of a role that there is not. */
export function describeMissing({ kind, name }: RoleRef): string {
  return `${kind.toLowerCase()}.${apiGroup} "${name}" not found`;
}

/** The 403 that a real API server answers with. */
export function forbidden(user: UserInfo, asked: Attributes, reason?: string): StatusError {
  const because = reason === undefined ? '' : `: ${reason}`;
  const who = `User "${user.username}" cannot ${asked.verb}`;
  const refuse = (message: string, details: object): StatusError =>
    new StatusError(403, 'Forbidden', `${message}${because}`, details, { 'X-Content-Type-Options': 'nosniff' });
  if ('path' in asked) return refuse(`forbidden: ${who} path "${asked.path}"`, {});
  const { group, resource, subresource, name, namespace } = asked;
  const qualified = group === '' ? resource : `${resource}.${group}`;
  const what = name === undefined || name === '' ? qualified : `${qualified} "${name}"`;
  const whole = subresource === undefined || subresource === '' ? resource : `${resource}/${subresource}`;
  const where = namespace === undefined || namespace === '' ? 'at the cluster scope' : `in the namespace "${namespace}"`;
  return refuse(`${what} is forbidden: ${who} resource "${whole}" in API group "${group}" ${where}`, {
    ...(name === undefined || name === '' ? {} : { name }),
    ...(group === '' ? {} : { group }),
    kind: resource,
  });
}

/** Says whether any of these rules allows it. */
export function rulesAllow(rules: readonly Rule[], asked: Attributes): boolean {
  return rules.some((rule) => allows(rule, asked));
}

function allows(rule: Rule, asked: Attributes): boolean {
  if (!includes(rule.verbs, asked.verb)) return false;
  if ('path' in asked) return (rule.nonResourceURLs ?? []).some((url) => covers(url, asked.path));
  if (!includes(rule.apiGroups, asked.group)) return false;
  const { resource, subresource = '', name = '' } = asked;
  const whole = subresource === '' ? resource : `${resource}/${subresource}`;
  const fits = (one: string): boolean => one === '*' || one === whole || (subresource !== '' && one === `*/${subresource}`);
  if (!(rule.resources ?? []).some(fits)) return false;
  const names = rule.resourceNames ?? [];
  return names.length === 0 || names.includes(name);
}

function includes(list: readonly string[] | undefined, value: string): boolean {
  return list !== undefined && (list.includes('*') || list.includes(value));
}

function covers(url: string, path: string): boolean {
  return url === '*' || url === path || (url.endsWith('*') && path.startsWith(url.slice(0, -1)));
}

function isSubject(subject: Subject, user: UserInfo, binding: ClusterObject): boolean {
  if (subject.name === undefined) return false;
  if (subject.kind === 'User') return subject.name === user.username;
  if (subject.kind === 'Group') return user.groups.includes(subject.name);
  const namespace = subject.namespace ?? binding.metadata.namespace;
  return subject.kind === 'ServiceAccount' && user.username === `system:serviceaccount:${namespace}:${subject.name}`;
}

function describeBinding({ kind, metadata }: ClusterObject): string {
  // A RoleBinding is written name/namespace, in this order, by the real one too.
  return `${kind} "${metadata.namespace === undefined ? metadata.name : `${metadata.name}/${metadata.namespace}`}"`;
}

function describe({ kind, name, namespace }: Subject): string {
  // Written name/namespace, as a RoleBinding is.
  return kind === 'ServiceAccount' ? `ServiceAccount "${name}/${namespace}"` : `${kind} "${name}"`;
}

function readRoleRef(binding: ClusterObject): RoleRef {
  const { kind, name } = readRecord(binding['roleRef']);
  return { kind: readText(kind), name: readText(name) };
}

function readSubjects({ subjects }: ClusterObject): readonly Subject[] {
  return Array.isArray(subjects) ? subjects.filter((one): one is Subject => isRecord(one)) : [];
}

/** The rules of a role. */
export function readRules({ rules }: JsonRecord): readonly Rule[] {
  return Array.isArray(rules) ? rules.filter((one): one is Rule => isRecord(one)) : [];
}

const probes = ['/healthz', '/livez', '/readyz', '/version', '/version/'];

/** The roles and bindings that a cluster creates at its first start, cut to those of an identity plane. */
export const bootstrapRoles: readonly NewObject[] = [
  bootstrapRole('cluster-admin', [
    { verbs: ['*'], apiGroups: ['*'], resources: ['*'] },
    { verbs: ['*'], nonResourceURLs: ['*'] },
  ]),
  bootstrapRole('system:auth-delegator', [
    { verbs: ['create'], apiGroups: ['authentication.k8s.io'], resources: ['tokenreviews'] },
    { verbs: ['create'], apiGroups: ['authorization.k8s.io'], resources: ['subjectaccessreviews'] },
  ]),
  bootstrapRole('system:basic-user', [
    { verbs: ['create'], apiGroups: ['authorization.k8s.io'], resources: ['selfsubjectaccessreviews', 'selfsubjectrulesreviews'] },
    { verbs: ['create'], apiGroups: ['authentication.k8s.io'], resources: ['selfsubjectreviews'] },
  ]),
  bootstrapRole('system:discovery', [
    { verbs: ['get'], nonResourceURLs: ['/api', '/api/*', '/apis', '/apis/*', '/openapi', '/openapi/*', ...probes].toSorted() },
  ]),
  bootstrapRole('system:public-info-viewer', [{ verbs: ['get'], nonResourceURLs: probes }]),
  bootstrapRole('system:service-account-issuer-discovery', [
    {
      verbs: ['get'],
      nonResourceURLs: ['/.well-known/openid-configuration', '/.well-known/openid-configuration/', '/openid/v1/jwks', '/openid/v1/jwks/'],
    },
  ]),
  bootstrapBinding('cluster-admin', ['system:masters']),
  bootstrapBinding('system:basic-user', ['system:authenticated']),
  bootstrapBinding('system:discovery', ['system:authenticated']),
  bootstrapBinding('system:public-info-viewer', ['system:authenticated', 'system:unauthenticated']),
  bootstrapBinding('system:service-account-issuer-discovery', ['system:serviceaccounts']),
];

function bootstrapRole(name: string, rules: readonly Rule[]): NewObject {
  return { kind: 'ClusterRole', apiVersion: `${apiGroup}/v1`, metadata: bootstrapMetadata(name), rules };
}

function bootstrapBinding(name: string, groups: readonly string[]): NewObject {
  return {
    kind: 'ClusterRoleBinding',
    apiVersion: `${apiGroup}/v1`,
    metadata: bootstrapMetadata(name),
    subjects: groups.map((group) => ({ kind: 'Group', apiGroup, name: group })),
    roleRef: { apiGroup, kind: 'ClusterRole', name },
  };
}

function bootstrapMetadata(name: string): NewObject['metadata'] {
  return {
    name,
    labels: { 'kubernetes.io/bootstrapping': 'rbac-defaults' },
    annotations: { 'rbac.authorization.kubernetes.io/autoupdate': 'true' },
  };
}
