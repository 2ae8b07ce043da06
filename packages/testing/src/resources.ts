// The only place that lists what the API consists of: the kinds that are kept, the reviews that are answered, and their subresources.

/** A kind of object that the cluster keeps. */
export interface ResourceKind {
  readonly kind: string;
  readonly resource: string;
  readonly group: string;
  readonly namespaced: boolean;
  readonly shortNames?: readonly string[];
  readonly categories?: readonly string[];
  readonly subresources?: readonly Subresource[];
}

/** What is below one object, such as its status. */
export interface Subresource {
  readonly name: string;
  readonly kind: string;
  /** Where its kind is of another group than the object. */
  readonly group?: string;
  readonly verbs: readonly string[];
}

/** A kind that is posted and answered, and not kept. */
export interface ReviewKind {
  readonly kind: string;
  readonly resource: string;
  readonly group: string;
  readonly namespaced: boolean;
}

const rbac = 'rbac.authorization.k8s.io';
const flowControl = 'flowcontrol.apiserver.k8s.io';
const status = (kind: string): Subresource => ({ name: 'status', kind, verbs: ['get', 'patch', 'update'] });
const token: Subresource = { name: 'token', kind: 'TokenRequest', group: 'authentication.k8s.io', verbs: ['create'] };

/** The kinds that the cluster keeps. */
export const resourceKinds: readonly ResourceKind[] = [
  { kind: 'ConfigMap', resource: 'configmaps', group: '', namespaced: true, shortNames: ['cm'] },
  { kind: 'Event', resource: 'events', group: '', namespaced: true, shortNames: ['ev'] },
  { kind: 'Namespace', resource: 'namespaces', group: '', namespaced: false, shortNames: ['ns'], subresources: [status('Namespace')] },
  { kind: 'Node', resource: 'nodes', group: '', namespaced: false, shortNames: ['no'], subresources: [status('Node')] },
  { kind: 'Pod', resource: 'pods', group: '', namespaced: true, shortNames: ['po'], categories: ['all'], subresources: [status('Pod')] },
  { kind: 'Secret', resource: 'secrets', group: '', namespaced: true },
  { kind: 'ServiceAccount', resource: 'serviceaccounts', group: '', namespaced: true, shortNames: ['sa'], subresources: [token] },
  { kind: 'Service', resource: 'services', group: '', namespaced: true, shortNames: ['svc'], categories: ['all'] },
  {
    kind: 'Deployment',
    resource: 'deployments',
    group: 'apps',
    namespaced: true,
    shortNames: ['deploy'],
    categories: ['all'],
    subresources: [status('Deployment')],
  },
  { kind: 'ClusterRoleBinding', resource: 'clusterrolebindings', group: rbac, namespaced: false },
  { kind: 'ClusterRole', resource: 'clusterroles', group: rbac, namespaced: false },
  { kind: 'RoleBinding', resource: 'rolebindings', group: rbac, namespaced: true },
  { kind: 'Role', resource: 'roles', group: rbac, namespaced: true },
  { kind: 'FlowSchema', resource: 'flowschemas', group: flowControl, namespaced: false, subresources: [status('FlowSchema')] },
  {
    kind: 'PriorityLevelConfiguration',
    resource: 'prioritylevelconfigurations',
    group: flowControl,
    namespaced: false,
    subresources: [status('PriorityLevelConfiguration')],
  },
];

/** Finds a kind that the cluster keeps. Throws a `TypeError` on another. */
export function kindOf(kind: string): ResourceKind {
  const found = resourceKinds.find((one) => one.kind === kind);
  if (found === undefined) throw new TypeError(`the cluster keeps no objects of kind ${kind}`);
  return found;
}

/** The kinds that are answered and not kept. */
export const reviewKinds: readonly ReviewKind[] = [
  { kind: 'SelfSubjectReview', resource: 'selfsubjectreviews', group: 'authentication.k8s.io', namespaced: false },
  { kind: 'TokenReview', resource: 'tokenreviews', group: 'authentication.k8s.io', namespaced: false },
  { kind: 'LocalSubjectAccessReview', resource: 'localsubjectaccessreviews', group: 'authorization.k8s.io', namespaced: true },
  { kind: 'SelfSubjectAccessReview', resource: 'selfsubjectaccessreviews', group: 'authorization.k8s.io', namespaced: false },
  { kind: 'SelfSubjectRulesReview', resource: 'selfsubjectrulesreviews', group: 'authorization.k8s.io', namespaced: false },
  { kind: 'SubjectAccessReview', resource: 'subjectaccessreviews', group: 'authorization.k8s.io', namespaced: false },
];

const objectVerbs = ['create', 'delete', 'deletecollection', 'get', 'list', 'patch', 'update', 'watch'];

/** What can be done with the objects of a kind. */
export function verbsOf({ kind }: ResourceKind): readonly string[] {
  return kind === 'Namespace' ? objectVerbs.filter((verb) => verb !== 'deletecollection') : objectVerbs;
}

/** How a group and version are written in `apiVersion`. */
export function formatGroupVersion(group: string): string {
  return group === '' ? 'v1' : `${group}/v1`;
}

// What the API knows to read beside what it serves: kinds of the oldest group, and versions that others had.
const coreKinds = [
  'APIGroup',
  'APIGroupList',
  'APIResourceList',
  'APIVersions',
  'Binding',
  'ComponentStatus',
  'Endpoints',
  'LimitRange',
  'List',
  'PersistentVolume',
  'PersistentVolumeClaim',
  'PodTemplate',
  'ReplicationController',
  'ResourceQuota',
  'Status',
];
const optionKinds = new Set(['CreateOptions', 'DeleteOptions', 'GetOptions', 'ListOptions', 'PatchOptions', 'UpdateOptions', 'WatchEvent']);
const otherKinds: Readonly<Record<string, readonly string[]>> = {
  v1: coreKinds,
  'apps/v1': ['ControllerRevision', 'DaemonSet', 'ReplicaSet', 'StatefulSet'],
  'apps/v1beta1': ['ControllerRevision', 'Deployment', 'StatefulSet'],
  'apps/v1beta2': ['ControllerRevision', 'DaemonSet', 'Deployment', 'ReplicaSet', 'StatefulSet'],
  'authentication.k8s.io/v1': ['TokenRequest'],
  'authentication.k8s.io/v1alpha1': ['SelfSubjectReview'],
  'authentication.k8s.io/v1beta1': ['SelfSubjectReview', 'TokenReview'],
  'authorization.k8s.io/v1beta1': ['LocalSubjectAccessReview', 'SelfSubjectAccessReview', 'SelfSubjectRulesReview', 'SubjectAccessReview'],
  'rbac.authorization.k8s.io/v1alpha1': ['ClusterRole', 'ClusterRoleBinding', 'Role', 'RoleBinding'],
  'rbac.authorization.k8s.io/v1beta1': ['ClusterRole', 'ClusterRoleBinding', 'Role', 'RoleBinding'],
};

/** Says whether the API knows what this kind is in this version of its group, though it may not serve it. */
export function isRegistered(apiVersion: string, kind: string): boolean {
  const served = [...resourceKinds, ...reviewKinds].filter(({ group }) => formatGroupVersion(group) === apiVersion);
  const others = otherKinds[apiVersion] ?? [];
  const known = [...served.map((one) => one.kind), ...others];
  if (known.length === 0) return false;
  return known.includes(kind) || optionKinds.has(kind) || known.some((one) => `${one}List` === kind);
}
