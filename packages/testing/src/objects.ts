// The only place that keeps the cluster's objects: what they are called, their uids and resource versions.
import { randomUUID } from 'node:crypto';
import { notFound, StatusError } from './status.ts';

/** Metadata as the cluster keeps it; times are RFC 3339 with whole seconds. */
export interface ObjectMetadata {
  readonly name: string;
  readonly namespace?: string;
  readonly uid: string;
  readonly resourceVersion: string;
  readonly creationTimestamp: string;
  readonly deletionTimestamp?: string;
  readonly labels?: Readonly<Record<string, string>>;
  readonly annotations?: Readonly<Record<string, string>>;
}

/** An object of the cluster. Beyond its metadata it is what was sent. */
export interface ClusterObject {
  readonly apiVersion: string;
  readonly kind: string;
  readonly metadata: ObjectMetadata;
  readonly [field: string]: unknown;
}

/** An object before the cluster has given it a uid. A uid that is named is kept: a replay needs that. */
export interface NewObject {
  readonly apiVersion: string;
  readonly kind: string;
  readonly metadata: { readonly name: string; readonly namespace?: string; readonly uid?: string; readonly [field: string]: unknown };
  readonly [field: string]: unknown;
}

/** A kind of object that the cluster keeps. */
export interface ResourceKind {
  readonly kind: string;
  readonly resource: string;
  readonly group: string;
  readonly namespaced: boolean;
}

/** The cluster's objects, by kind, namespace and name. */
export interface Objects {
  /** Throws a {@link StatusError}: 409 where the name is taken, 404 where the namespace does not exist. */
  create(object: NewObject): ClusterObject;
  /** Replaces what an object says and keeps its uid; throws 404 where there is none. */
  replace(object: NewObject): ClusterObject;
  find(kind: string, name: string, namespace?: string): ClusterObject | undefined;
  /** Throws a 404 {@link StatusError}. */
  get(kind: string, name: string, namespace?: string): ClusterObject;
  list(kind: string, namespace?: string): readonly ClusterObject[];
  /** Removes an object, and with a namespace all that is in it; returns what was removed. Throws a 404 {@link StatusError}. */
  remove(kind: string, name: string, namespace?: string): readonly ClusterObject[];
}

const rbac = 'rbac.authorization.k8s.io';

/** The kinds that the cluster keeps. */
export const resourceKinds: readonly ResourceKind[] = [
  { kind: 'Namespace', resource: 'namespaces', group: '', namespaced: false },
  { kind: 'Node', resource: 'nodes', group: '', namespaced: false },
  { kind: 'ServiceAccount', resource: 'serviceaccounts', group: '', namespaced: true },
  { kind: 'Pod', resource: 'pods', group: '', namespaced: true },
  { kind: 'Secret', resource: 'secrets', group: '', namespaced: true },
  { kind: 'ConfigMap', resource: 'configmaps', group: '', namespaced: true },
  { kind: 'Service', resource: 'services', group: '', namespaced: true },
  { kind: 'Deployment', resource: 'deployments', group: 'apps', namespaced: true },
  { kind: 'ClusterRole', resource: 'clusterroles', group: rbac, namespaced: false },
  { kind: 'ClusterRoleBinding', resource: 'clusterrolebindings', group: rbac, namespaced: false },
  { kind: 'Role', resource: 'roles', group: rbac, namespaced: true },
  { kind: 'RoleBinding', resource: 'rolebindings', group: rbac, namespaced: true },
];

/** Formats a time as Kubernetes writes it. */
export function formatTime(milliseconds: number): string {
  return new Date(milliseconds).toISOString().replace(/\.\d+Z$/, 'Z');
}

/** Makes an empty store; `now` gives the time in milliseconds. */
export function createObjects(now: () => number): Objects {
  const kept = new Map<string, Map<string, ClusterObject>>(resourceKinds.map(({ kind }) => [kind, new Map()]));
  let version = 0;

  const resourceOf = (kind: string): ResourceKind => {
    const resource = resourceKinds.find((one) => one.kind === kind);
    if (resource === undefined) throw new TypeError(`the cluster keeps no objects of kind ${kind}`);
    return resource;
  };
  const ofKind = (kind: string): Map<string, ClusterObject> => kept.get(resourceOf(kind).kind) ?? new Map<string, ClusterObject>();
  const keyOf = (kind: string, name: string, namespace: string | undefined): string =>
    resourceOf(kind).namespaced ? `${namespace ?? 'default'}/${name}` : name;

  const objects: Objects = {
    create(object) {
      const { kind, metadata } = object;
      const { namespaced, resource, group } = resourceOf(kind);
      const namespace = namespaced ? (metadata.namespace ?? 'default') : undefined;
      if (namespace !== undefined) objects.get('Namespace', namespace);
      if (objects.find(kind, metadata.name, namespace) !== undefined) {
        const qualified = group === '' ? resource : `${resource}.${group}`;
        throw new StatusError(409, 'AlreadyExists', `${qualified} "${metadata.name}" already exists`, {
          name: metadata.name,
          ...(group === '' ? {} : { group }),
          kind: resource,
        });
      }
      return keep(object, namespace, metadata.uid ?? randomUUID(), formatTime(now()));
    },
    replace(object) {
      const { kind, metadata } = object;
      const { uid, creationTimestamp, namespace } = objects.get(kind, metadata.name, metadata.namespace).metadata;
      return keep(object, namespace, uid, creationTimestamp);
    },
    find(kind, name, namespace) {
      return ofKind(kind).get(keyOf(kind, name, namespace));
    },
    get(kind, name, namespace) {
      const object = objects.find(kind, name, namespace);
      if (object !== undefined) return object;
      const { resource, group } = resourceOf(kind);
      throw notFound(resource, name, group);
    },
    list(kind, namespace) {
      const all = [...ofKind(kind).values()];
      return namespace === undefined ? all : all.filter(({ metadata }) => metadata.namespace === namespace);
    },
    remove(kind, name, namespace) {
      const object = objects.get(kind, name, namespace);
      ofKind(kind).delete(keyOf(kind, name, namespace));
      if (kind !== 'Namespace') return [object];
      const inside = resourceKinds.filter(({ namespaced }) => namespaced).flatMap((one) => objects.list(one.kind, name));
      for (const { kind: innerKind, metadata } of inside) ofKind(innerKind).delete(keyOf(innerKind, metadata.name, name));
      return [object, ...inside];
    },
  };

  function keep(object: NewObject, namespace: string | undefined, uid: string, creationTimestamp: string): ClusterObject {
    version += 1;
    const { name, namespace: _, ...rest } = object.metadata;
    const metadata: ObjectMetadata = {
      name,
      ...(namespace === undefined ? {} : { namespace }),
      ...rest,
      uid,
      resourceVersion: String(version),
      creationTimestamp,
    };
    const whole: ClusterObject = { ...object, metadata };
    ofKind(object.kind).set(keyOf(object.kind, name, namespace), whole);
    return whole;
  }

  return objects;
}
