// The only place that keeps a caller from giving away, in a role or a binding, what it may not do itself.
import { isDeepStrictEqual } from 'node:util';
import { isRecord, readList, readRecord, readText } from './json.ts';
import type { JsonRecord } from './json.ts';
import { authorize } from './nodes.ts';
import type { ClusterObject, Objects } from './objects.ts';
import { findRole, joinErrors, listRules, readRules } from './rbac.ts';
import type { Rule, UserInfo } from './rbac.ts';
import type { ResourceKind } from './resources.ts';
import { admissionRefusal, badRequest, notFound, StatusError } from './status.ts';

/** A role or a binding that is to be kept. */
export interface Grant {
  readonly kind: ResourceKind;
  /** Of a role or binding at the cluster's scope: empty. */
  readonly namespace: string;
  /** As the path names it: empty where one is created. */
  readonly name: string;
  readonly object: JsonRecord;
  readonly before?: ClusterObject;
}

const group = 'rbac.authorization.k8s.io';
const lists = ['apiGroups', 'resources', 'nonResourceURLs', 'resourceNames', 'verbs'] as const;
const everything: readonly Rule[] = [
  { apiGroups: ['*'], resources: ['*'], verbs: ['*'] },
  { nonResourceURLs: ['*'], verbs: ['*'] },
];

/** Refuses what gives more than its author has. Throws a {@link StatusError}; objects of other kinds pass. */
export function restrictGrant(objects: Objects, user: UserInfo, grant: Grant): void {
  const { kind, namespace, name, object, before } = grant;
  if (kind.group !== group || user.groups.includes('system:masters')) return;
  const { resource } = kind;
  const refused = (reason: string): StatusError => forbidden(resource, readText(readRecord(object['metadata'])['name']), reason);
  const mayAlways = (verb: string, what: string, which: string): boolean =>
    authorize(objects, user, { verb, group, resource: what, name: which, namespace }).allowed;
  const isRole = kind.kind.endsWith('Role');
  if (isRole && mayAlways('escalate', resource, name)) return;
  if (before !== undefined && isDeepStrictEqual(withoutOwners(object), withoutOwners(before))) return;
  if (isRole) {
    const reason = refuseRules(objects, user, grant, readRules(object));
    if (reason !== undefined) throw refused(reason);
    const isAggregated = hasAggregation(object) || (before !== undefined && hasAggregation(before));
    if (isAggregated && refuseRules(objects, user, grant, everything) !== undefined) {
      throw refused('must have cluster-admin privileges to use the aggregationRule');
    }
    return;
  }
  const { kind: roleKind, name: roleName } = readRecord(object['roleRef']);
  // What else may stand there is refused for itself.
  if (roleKind !== 'ClusterRole' && (roleKind !== 'Role' || namespace === '')) return;
  const named = { kind: roleKind, name: readText(roleName) };
  if (mayAlways('bind', `${roleKind.toLowerCase()}s`, named.name)) return;
  const role = findRole(objects, named, namespace);
  if (named.name === '') throw badRequest('Name parameter required.');
  if (role === undefined) throw notFound(resource, named.name, group);
  const reason = refuseRules(objects, user, grant, readRules(role));
  if (reason !== undefined) throw refused(reason);
}

function forbidden(resource: string, name: string, reason: string): StatusError {
  if (name !== '') return admissionRefusal(resource, group, name, reason);
  return new StatusError(403, 'Forbidden', `${resource}.${group} is forbidden: ${reason}`, { group, kind: resource });
}

function refuseRules(objects: Objects, user: UserInfo, { kind, namespace }: Grant, wanted: readonly Rule[]): string | undefined {
  const { rules, missing } = listRules(objects, user, namespace);
  const lacking = wanted.flatMap(breakDown).filter((one) => !rules.some((rule) => covers(rule, one)));
  if (lacking.length === 0) return undefined;
  const told = [...new Set(compact(lacking).map(formatRule))].toSorted((left, right) => (left < right ? -1 : 1)).join('\n');
  // The storage names what it was asked on behalf of.
  const absent = missing.map(({ name }) => `${kind.resource}.${group} "${name}" not found`);
  const errors = absent.length === 0 ? '' : `; resolution errors: [${joinErrors(absent)}]`;
  const who = `user ${JSON.stringify(user.username)} (groups=${quote(user.groups)})`;
  return `${who} is attempting to grant RBAC permissions not currently held:\n${told}${errors}`;
}

/** Rules with one of each, that together are this one. */
function breakDown({ verbs = [], apiGroups = [], resources = [], resourceNames = [], nonResourceURLs = [] }: Rule): readonly Rule[] {
  const names = resourceNames.length === 0 ? [[]] : resourceNames.map((name) => [name]);
  const ofResources = apiGroups.flatMap((apiGroup) =>
    resources.flatMap((resource) =>
      verbs.flatMap((verb) => names.map((name) => ({ apiGroups: [apiGroup], resources: [resource], resourceNames: name, verbs: [verb] }))),
    ),
  );
  const ofPaths = nonResourceURLs.flatMap((url) => verbs.map((verb) => ({ nonResourceURLs: [url], verbs: [verb] })));
  return [...ofResources, ...ofPaths];
}

function covers(own: Rule, { verbs = [], apiGroups = [], resources = [], resourceNames = [], nonResourceURLs = [] }: Rule): boolean {
  const all = (list: readonly string[] = [], wanted: readonly string[]): boolean =>
    list.includes('*') || wanted.every((one) => list.includes(one));
  const isResource = (one: string): boolean => {
    const [, subresource] = /\/(.*)$/.exec(one) ?? [];
    return own.resources?.includes(one) === true || (subresource !== undefined && own.resources?.includes(`*/${subresource}`) === true);
  };
  const isPath = (one: string): boolean =>
    own.nonResourceURLs?.some((url) => url === one || (url.endsWith('*') && one.startsWith(url.slice(0, -1)))) === true;
  const ownNames = own.resourceNames ?? [];
  return (
    all(own.verbs, verbs) &&
    all(own.apiGroups, apiGroups) &&
    (own.resources?.includes('*') === true || resources.every(isResource)) &&
    nonResourceURLs.every(isPath) &&
    (ownNames.length === 0 || (resourceNames.length > 0 && resourceNames.every((one) => ownNames.includes(one))))
  );
}

/** The same in fewer rules: the verbs of one resource stand together. */
function compact(rules: readonly Rule[]): readonly Rule[] {
  const alike = Map.groupBy(rules, (rule) => JSON.stringify({ ...rule, verbs: rule.nonResourceURLs === undefined ? [] : rule.verbs }));
  return [...alike.values()].map(([first, ...others]) => ({
    apiGroups: first?.apiGroups ?? [],
    resources: first?.resources ?? [],
    nonResourceURLs: first?.nonResourceURLs ?? [],
    resourceNames: first?.resourceNames ?? [],
    verbs: [...new Set([first, ...others].flatMap((one) => one?.verbs ?? []))],
  }));
}

function formatRule(rule: Rule): string {
  const names = {
    apiGroups: 'APIGroups',
    resources: 'Resources',
    nonResourceURLs: 'NonResourceURLs',
    resourceNames: 'ResourceNames',
    verbs: 'Verbs',
  };
  const parts = lists.flatMap((list) =>
    rule[list] === undefined || rule[list].length === 0 ? [] : [`${names[list]}:${quote(rule[list])}`],
  );
  return `{${parts.join(', ')}}`;
}

function quote(list: readonly string[]): string {
  return `[${list.map((one) => JSON.stringify(one)).join(' ')}]`;
}

function hasAggregation({ aggregationRule }: JsonRecord): boolean {
  return isRecord(aggregationRule) && readList(aggregationRule['clusterRoleSelectors']).length > 0;
}

function withoutOwners({ metadata, ...rest }: JsonRecord): object {
  const { ownerReferences: _, finalizers: __, managedFields: ___, resourceVersion: ____, ...others } = readRecord(metadata);
  return { ...rest, metadata: others };
}
