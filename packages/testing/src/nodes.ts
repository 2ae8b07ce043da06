// The only place that knows what a node may do, which no role says: the Node authorizer, which is asked before RBAC, and what the
// NodeRestriction admission plugin refuses of what was allowed.
import { isDeepStrictEqual } from 'node:util';
import { isRecord, readList, readRecord, readText, readTexts } from './json.ts';
import type { JsonRecord } from './json.ts';
import type { ClusterObject, Objects } from './objects.ts';
import { authorizeByRoles, rulesAllow } from './rbac.ts';
import type { Attributes, Permission, Rule, UserInfo } from './rbac.ts';
import type { ResourceKind } from './resources.ts';
import { admissionRefusal, notFound } from './status.ts';
import type { StatusError } from './status.ts';

/** Decides as `--authorization-mode=Node,RBAC` does: who is a node may do what nodes may, and what RBAC lets it do beside that. */
export function authorize(objects: Objects, user: UserInfo, asked: Attributes): Permission {
  const node = nodeOf(user);
  const known = node === undefined ? undefined : authorizeNode(objects, node, asked);
  if (known?.allowed === true) return known;
  const permission = authorizeByRoles(objects, user, asked);
  if (permission.allowed || known?.reason === undefined) return permission;
  // Each authorizer's reason stands on a line of its own.
  return { allowed: false, reason: [known.reason, permission.reason].filter((one) => one !== undefined).join('\n') };
}

/** A change that is asked for, before the objects are changed. */
export interface Change {
  readonly operation: 'CREATE' | 'UPDATE' | 'DELETE';
  readonly kind: ResourceKind;
  readonly subresource: string;
  readonly name: string;
  readonly namespace: string;
  /** The object as it is to be; of a deletion, as it is. */
  readonly object: JsonRecord;
  readonly before?: ClusterObject;
}

/** Refuses a node what it may not change. Throws a 403 {@link StatusError}; a caller that is no node passes. */
export function restrictNode(user: UserInfo, change: Change): void {
  const node = nodeOf(user);
  if (node === undefined) return;
  const reason = refuseChange(node, change);
  if (reason !== undefined) throw refuse(change, reason);
}

/** A TokenRequest, as far as a node's right to it goes. */
export interface NodeTokenRequest {
  readonly namespace: string;
  readonly serviceAccount: string;
  readonly audiences?: readonly string[];
  readonly boundObjectRef?: { readonly kind?: string; readonly apiVersion?: string; readonly name?: string; readonly uid?: string };
}

/** Refuses a node a token that is not for a pod of its own, for an audience that the pod projects. Throws a {@link StatusError}. */
export function restrictNodeToken(objects: Objects, user: UserInfo, request: NodeTokenRequest): void {
  const node = nodeOf(user);
  if (node === undefined) return;
  const { namespace, serviceAccount, audiences = [], boundObjectRef: { kind, apiVersion, name = '', uid = '' } = {} } = request;
  const refused = (reason: string): StatusError => admissionRefusal('serviceaccounts', '', serviceAccount, reason);
  if (kind !== 'Pod' || apiVersion !== 'v1' || name === '') throw refused('node requested token not bound to a pod');
  if (uid === '') throw refused('node requested token with a pod binding without a uid');
  const pod = objects.find('Pod', name, namespace);
  // As the informer's memory words it.
  if (pod === undefined) throw notFound('pod', name);
  if (uid !== pod.metadata.uid) {
    const why = 'does not match the UID in record. The object might have been deleted and then recreated';
    throw refused(`the UID in the bound object reference (${uid}) ${why}`);
  }
  if (nodeNameOf(pod) !== node) throw refused('node requested token bound to a pod scheduled on a different node');
  const [audience = '', ...others] = audiences;
  if (others.length > 0) throw refused('node may only request 0 or 1 audiences');
  const projected = projectedSources(pod).map(({ serviceAccountToken }) => readRecord(serviceAccountToken));
  if (projected.some((one) => readText(one['audience']) === audience && one['path'] !== undefined)) return;
  // Where no volume has it, a role may: a verb of its own, on a resource that is the audience's name.
  const asked = { verb: 'request-serviceaccounts-token-audience', group: '', resource: audience, name: serviceAccount, namespace };
  if (authorize(objects, user, asked).allowed) return;
  const why = `system:node:${node} is not authorized to request tokens for this audience`;
  throw refused(`audience "${audience}" not found in pod spec volume, ${why}`);
}

/** Says whether a user is a node, whose permissions cannot be listed. */
export function isNode(user: UserInfo): boolean {
  return nodeOf(user) !== undefined;
}

type ResourceAttributes = Extract<Attributes, { resource: string }>;

const read = ['get', 'list', 'watch'];
// k8s.io/kubernetes, bootstrappolicy.NodeRules, of the kinds that there are.
const nodeRules: readonly Rule[] = [
  { verbs: ['create'], apiGroups: ['authentication.k8s.io'], resources: ['tokenreviews'] },
  { verbs: ['create'], apiGroups: ['authorization.k8s.io'], resources: ['subjectaccessreviews', 'localsubjectaccessreviews'] },
  { verbs: read, apiGroups: [''], resources: ['services'] },
  { verbs: ['create', 'update', 'patch'], apiGroups: [''], resources: ['events'] },
];

function nodeOf({ username, groups }: UserInfo): string | undefined {
  return groups.includes('system:nodes') && username.startsWith('system:node:') ? username.slice('system:node:'.length) : undefined;
}

function authorizeNode(objects: Objects, node: string, asked: Attributes): Permission {
  if (node === '') return deny('unknown node for user "system:node:"');
  if ('path' in asked || asked.group !== '') return { allowed: rulesAllow(nodeRules, asked) };
  const { resource, subresource = '', verb, name = '', namespace = '' } = asked;
  if (resource === 'secrets' || resource === 'configmaps') {
    if (!read.includes(verb)) return deny('can only read resources of this type');
    if (subresource !== '') return deny('cannot read subresource');
    if (namespace === '') return deny('can only read namespaced object of this type');
    if (name === '') return deny('No Object name found');
    return related(
      podsOf(objects, node, namespace).some((pod) => referencesOf(pod, resource).includes(name)),
      node,
    );
  }
  if (resource === 'serviceaccounts') {
    const isRead = verb === 'get' && subresource === '';
    if (!(verb === 'create' || isRead) || name === '') return deny('can only create tokens for individual service accounts');
    if (subresource !== 'token' && !isRead) return deny('can only create token subresource of serviceaccount');
    return related(
      podsOf(objects, node, namespace).some(({ spec }) => readRecord(spec)['serviceAccountName'] === name),
      node,
    );
  }
  if (resource === 'nodes') return authorizeNodes(node, asked);
  return resource === 'pods' ? authorizePods(objects, node, asked) : { allowed: rulesAllow(nodeRules, asked) };
}

function authorizeNodes(node: string, { verb, subresource = '', name = '' }: ResourceAttributes): Permission {
  if (subresource === 'status') return { allowed: verb === 'update' || verb === 'patch' };
  if (subresource !== '') return { allowed: false };
  if (read.includes(verb)) {
    if (name === node) return { allowed: true };
    return deny(`node '${node}' cannot read ${name === '' ? 'all nodes' : `'${name}'`}, only its own Node object`);
  }
  return { allowed: ['create', 'update', 'patch'].includes(verb) };
}

function authorizePods(objects: Objects, node: string, asked: ResourceAttributes): Permission {
  const { verb, subresource = '', name = '', namespace = '', fieldSelector = '' } = asked;
  if (subresource === 'status') return { allowed: verb === 'update' || verb === 'patch' };
  if (subresource === 'eviction') return { allowed: verb === 'create' };
  if (subresource !== '') return { allowed: false };
  if (!read.includes(verb)) return { allowed: verb === 'create' || verb === 'delete' };
  if (verb !== 'get' && fieldSelector.split(',').some((one) => one === `spec.nodeName=${node}` || one === `spec.nodeName==${node}`)) {
    return { allowed: true };
  }
  if (verb !== 'get' && name === '') return deny('can only list/watch pods with spec.nodeName field selector');
  const pod = objects.find('Pod', name, namespace);
  return related(pod !== undefined && nodeNameOf(pod) === node, node);
}

function related(isRelated: boolean, node: string): Permission {
  return isRelated ? { allowed: true } : deny(`no relationship found between node '${node}' and this object`);
}

function deny(reason: string): Permission {
  return { allowed: false, reason };
}

function refuseChange(node: string, change: Change): string | undefined {
  const { kind, subresource } = change;
  if (kind.kind === 'Node') return refuseNode(node, change);
  if (kind.kind !== 'Pod') return undefined;
  return subresource === 'status' ? refusePodStatus(node, change) : refusePod(node, change);
}

function refuseNode(node: string, { operation, name, object, before }: Change): string | undefined {
  if (name !== node) return `node "${node}" is not allowed to modify node "${name}"`;
  if (operation === 'DELETE') return undefined;
  const taintsOf = (one: JsonRecord | undefined): readonly JsonRecord[] => readList(readRecord(one?.['spec'])['taints']);
  if (operation === 'UPDATE' && !isDeepStrictEqual(taintsOf(object), taintsOf(before)))
    return `node "${node}" is not allowed to modify taints`;
  const labels = changedLabels(labelsOf(object), labelsOf(before)).filter(isRestricted).toSorted().join(', ');
  if (labels === '') return undefined;
  return operation === 'CREATE'
    ? `node "${node}" is not allowed to set the following labels: ${labels}`
    : `is not allowed to modify labels: ${labels}`;
}

function refusePod(node: string, { operation, object, before }: Change): string | undefined {
  if (operation === 'DELETE') {
    return nodeNameOf(before) === node ? undefined : `node "${node}" can only delete pods with spec.nodeName set to itself`;
  }
  if (operation === 'UPDATE') return `unexpected operation "UPDATE", node "${node}" can only create and delete mirror pods`;
  const mirror = 'kubernetes.io/config.mirror';
  const { annotations, ownerReferences } = readRecord(object['metadata']);
  if (readRecord(annotations)[mirror] === undefined) {
    return `pod does not have "${mirror}" annotation, node "${node}" can only create mirror pods`;
  }
  if (nodeNameOf(object) !== node) return `node "${node}" can only create pods with spec.nodeName set to itself`;
  const [owner, ...others] = readList(ownerReferences);
  if (others.length > 0) return `node "${node}" can only create pods with a single owner reference set to itself`;
  if (owner?.['kind'] !== 'Node' || owner['name'] !== node || owner['apiVersion'] !== 'v1') {
    return `node "${node}" can only create pods with an owner reference set to itself`;
  }
  if (owner['controller'] !== true) return `node "${node}" can only create pods with a controller owner reference set to itself`;
  if (readText(readRecord(object['spec'])['serviceAccountName']) !== '') {
    return `node "${node}" can not create pods that reference a service account`;
  }
  const kinds = ['secrets', 'configmaps'].filter((kind) => referencesOf(object, kind).length > 0);
  return kinds.length === 0 ? undefined : `node "${node}" can not create pods that reference ${kinds[0]}`;
}

function refusePodStatus(node: string, { operation, object, before }: Change): string | undefined {
  if (operation !== 'UPDATE') return `unexpected operation "${operation}"`;
  if (nodeNameOf(before) !== node) return `node "${node}" can only update pod status for pods with spec.nodeName set to itself`;
  return changedLabels(labelsOf(object), labelsOf(before)).length === 0
    ? undefined
    : `node "${node}" cannot update labels through pod status`;
}

function refuse({ kind, name }: Change, reason: string): StatusError {
  return admissionRefusal(kind.resource, kind.group, name, reason);
}

function labelsOf(object: JsonRecord | undefined): JsonRecord {
  return readRecord(readRecord(object?.['metadata'])['labels']);
}

function changedLabels(after: JsonRecord, before: JsonRecord): readonly string[] {
  return [...new Set([...Object.keys(after), ...Object.keys(before)])].filter((key) => after[key] !== before[key]);
}

// k8s.io/kubelet, pkg/apis: what a kubelet may say of its own node.
const kubeletLabels =
  /^((beta\.)?kubernetes\.io\/(os|arch|instance-type|hostname)|(failure-domain\.beta|topology)\.kubernetes\.io\/(zone|region)|node\.kubernetes\.io\/instance-type|([^/]+\.)?(kubelet|node)\.kubernetes\.io\/.*)$/;

function isRestricted(label: string): boolean {
  const [domain = ''] = label.includes('/') ? label.split('/') : [];
  if (/(^|\.)node-restriction\.kubernetes\.io$/.test(domain)) return true;
  return /(^|\.)(kubernetes|k8s)\.io$/.test(domain) && !kubeletLabels.test(label);
}

function podsOf(objects: Objects, node: string, namespace: string): readonly ClusterObject[] {
  return objects.list('Pod', namespace).filter((pod) => nodeNameOf(pod) === node);
}

function nodeNameOf(pod: JsonRecord | undefined): string {
  return readText(readRecord(pod?.['spec'])['nodeName']);
}

function projectedSources(pod: JsonRecord): readonly JsonRecord[] {
  return readList(readRecord(pod['spec'])['volumes']).flatMap(({ projected }) => readList(readRecord(projected)['sources']));
}

// The names of the Secrets or ConfigMaps that a pod mounts, has in its environment or pulls its images with.
function referencesOf(pod: JsonRecord, resource: string): readonly string[] {
  const spec = readRecord(pod['spec']);
  const [field, key] = resource === 'secrets' ? (['secret', 'secretName'] as const) : (['configMap', 'name'] as const);
  const volumes = readList(spec['volumes']);
  const containers = ['containers', 'initContainers', 'ephemeralContainers'].flatMap((name) => readList(spec[name]));
  const named = [
    ...volumes.map((volume) => readRecord(volume[field])[key]),
    ...projectedSources(pod).map((source) => readRecord(source[field])['name']),
    ...containers.flatMap(({ envFrom }) => readList(envFrom).map((source) => readRecord(source[`${field}Ref`])['name'])),
    ...containers.flatMap(({ env }) => readList(env).map(({ valueFrom }) => readRecord(readRecord(valueFrom)[`${field}KeyRef`])['name'])),
    ...(resource === 'secrets' ? readList(spec['imagePullSecrets']).map(({ name }) => name) : []),
  ];
  return readTexts(named.filter((name) => !isRecord(name)));
}
