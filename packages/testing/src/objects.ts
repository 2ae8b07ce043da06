// The only place that keeps the cluster's objects: what they are called, their uids and resource versions.
import { randomUUID } from 'node:crypto';
import { isRecord, readText } from './json.ts';
import type { JsonRecord } from './json.ts';
import { kindOf, resourceKinds } from './resources.ts';
import { notFound, StatusError } from './status.ts';

/** Metadata as the cluster keeps it; times are RFC 3339 with whole seconds. */
export interface ObjectMetadata {
  readonly name: string;
  readonly namespace?: string;
  readonly uid: string;
  readonly resourceVersion: string;
  readonly creationTimestamp: string;
  readonly generation?: number;
  readonly deletionTimestamp?: string;
  readonly labels?: Readonly<Record<string, string>>;
  readonly annotations?: Readonly<Record<string, string>>;
  readonly [field: string]: unknown;
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
  /** The resource version of the last change. */
  version(): string;
  /** The changes after this resource version; `undefined` where they are no longer known. */
  since(version: number): readonly Change[] | undefined;
  /** Tells of every change from now on, until it is disposed of. */
  subscribe(listener: (change: Change) => void): Disposable;
}

/** What has happened to an object, in the words of a watch. */
export interface Change {
  readonly type: 'ADDED' | 'MODIFIED' | 'DELETED';
  readonly object: ClusterObject;
}

/** Formats a time as Kubernetes writes it. */
export function formatTime(milliseconds: number): string {
  return new Date(milliseconds).toISOString().replace(/\.\d+Z$/, 'Z');
}

/** Makes an empty store; `now` gives the time in milliseconds, and `createUid` the uids of new objects. */
export function createObjects(now: () => number, createUid: () => string = randomUUID): Objects {
  const kept = new Map<string, Map<string, ClusterObject>>(resourceKinds.map(({ kind }) => [kind, new Map()]));
  const listeners = new Set<(change: Change) => void>();
  const history: Change[] = [];
  let version = 0;

  const ofKind = (kind: string): Map<string, ClusterObject> => kept.get(kindOf(kind).kind) ?? new Map<string, ClusterObject>();
  const keyOf = (kind: string, name: string, namespace: string | undefined): string =>
    kindOf(kind).namespaced ? `${namespace ?? 'default'}/${name}` : name;

  const objects: Objects = {
    create(object) {
      const { kind, metadata } = object;
      const { namespaced, resource, group } = kindOf(kind);
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
      return keep('ADDED', object, namespace, metadata.uid ?? createUid(), formatTime(now()));
    },
    replace(object) {
      const { kind, metadata } = object;
      const { uid, creationTimestamp, namespace } = objects.get(kind, metadata.name, metadata.namespace).metadata;
      return keep('MODIFIED', object, namespace, uid, creationTimestamp);
    },
    find(kind, name, namespace) {
      return ofKind(kind).get(keyOf(kind, name, namespace));
    },
    get(kind, name, namespace) {
      const object = objects.find(kind, name, namespace);
      if (object !== undefined) return object;
      const { resource, group } = kindOf(kind);
      throw notFound(resource, name, group);
    },
    list(kind, namespace) {
      const all = [...ofKind(kind).values()];
      return namespace === undefined ? all : all.filter(({ metadata }) => metadata.namespace === namespace);
    },
    remove(kind, name, namespace) {
      const object = objects.get(kind, name, namespace);
      const inside =
        kind === 'Namespace' ? resourceKinds.filter(({ namespaced }) => namespaced).flatMap((one) => objects.list(one.kind, name)) : [];
      for (const one of [...inside, object]) {
        ofKind(one.kind).delete(keyOf(one.kind, one.metadata.name, one.metadata.namespace));
        version += 1;
        tell({ type: 'DELETED', object: { ...one, metadata: { ...one.metadata, resourceVersion: String(version) } } });
      }
      return [object, ...inside];
    },
    version: () => String(version),
    since(from) {
      const [oldest] = history;
      const isKnown = from >= version || (oldest !== undefined && from >= Number(oldest.object.metadata.resourceVersion) - 1);
      return isKnown ? history.filter(({ object }) => Number(object.metadata.resourceVersion) > from) : undefined;
    },
    subscribe(listener) {
      listeners.add(listener);
      return {
        [Symbol.dispose]() {
          listeners.delete(listener);
        },
      };
    },
  };

  function tell(change: Change): void {
    if (history.length >= 2000) history.splice(0, 1000);
    history.push(change);
    for (const listener of listeners) listener(change);
  }

  function keep(
    type: Change['type'],
    object: NewObject,
    namespace: string | undefined,
    uid: string,
    creationTimestamp: string,
  ): ClusterObject {
    version += 1;
    const { name, namespace: _, ...rest } = object.metadata;
    const { generateName, generation, labels, annotations, ...others } = rest;
    // In the order of Go's type.
    const metadata: ObjectMetadata = {
      name,
      ...(generateName === undefined ? {} : { generateName }),
      ...(namespace === undefined ? {} : { namespace }),
      uid,
      resourceVersion: String(version),
      ...(typeof generation === 'number' ? { generation } : {}),
      creationTimestamp,
      ...(isRecord(labels) ? { labels: readLabels(labels) } : {}),
      ...(isRecord(annotations) ? { annotations: readLabels(annotations) } : {}),
      ...withoutOwn(others),
    };
    const whole: ClusterObject = { ...object, metadata };
    ofKind(object.kind).set(keyOf(object.kind, name, namespace), whole);
    tell({ type, object: whole });
    return whole;
  }

  return objects;
}

function withoutOwn(metadata: JsonRecord): JsonRecord {
  const { uid: _, resourceVersion: __, creationTimestamp: ___, ...others } = metadata;
  return others;
}

function readLabels(map: JsonRecord): Readonly<Record<string, string>> {
  return Object.fromEntries(Object.entries(map).map(([key, value]) => [key, readText(value)]));
}
