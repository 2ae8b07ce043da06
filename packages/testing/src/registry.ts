// The only place that answers what is asked of the kept objects: create, get, list, watch, update, patch and delete.
import { randomUUID } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
import { admit, checkValues, completeAgain } from './admission.ts';
import type { Answer } from './answer.ts';
import type { Cluster } from './cluster.ts';
import { restrictGrant } from './escalation.ts';
import { isRecord, readRecord, readText } from './json.ts';
import type { JsonRecord } from './json.ts';
import { createListing } from './listing.ts';
import { formatTime } from './objects.ts';
import type { ClusterObject, NewObject } from './objects.ts';
import { applyPatch, isPatchType, showPatch } from './patch.ts';
import { restrictNode } from './nodes.ts';
import type { Change } from './nodes.ts';
import type { UserInfo } from './rbac.ts';
import { formatGroupVersion, verbsOf } from './resources.ts';
import type { ResourceKind } from './resources.ts';
import { badRequest, conflict, methodNotAllowed, noSuchResource, StatusError, unknownPatchType } from './status.ts';

/** What follows a change that was asked for over the API: what a cluster's controllers and kubelets do by themselves. */
export interface Controllers {
  created(object: ClusterObject): void;
  updated(object: ClusterObject): void;
  /** A pod that has a time to end until its deletionTimestamp, or a namespace that has to be emptied. */
  terminating(object: ClusterObject): void;
  deleted(object: ClusterObject): void;
}

/** What is asked of the objects of one kind. */
export interface ObjectRequest {
  readonly verb: string;
  readonly kind: ResourceKind;
  /** Empty for all namespaces, or none. */
  readonly namespace: string;
  readonly name: string;
  readonly subresource: string;
  /** Who asks. */
  readonly user: UserInfo;
  readonly query: URLSearchParams;
  /** What the answer is to be shown as: `Table`, `PartialObjectMetadata`, `PartialObjectMetadataList`, or empty for what it is. */
  readonly as: string;
  /** The body's media type. */
  readonly mediaType: string;
  /** Throws a {@link StatusError} where no answer would be taken. */
  readonly route: () => void;
  /** Reads the body; throws a {@link StatusError} where it is of another kind. */
  readonly body: () => JsonRecord;
  /** Reads the body of a patch; throws a {@link StatusError} where it is none. */
  readonly patch: () => unknown;
  /** Reads the options of a deletion, which may be missing; throws a {@link StatusError}. */
  readonly deletion: () => JsonRecord;
  /** Reads what a patch made of an object; `shown` is how a refusal shows it. Throws a {@link StatusError}. */
  readonly patched: (object: JsonRecord, shown: string) => JsonRecord;
}

const returnedWhenDeleted = new Set(['Pod', 'Namespace', 'ServiceAccount', 'Service']);

/** Answers requests for objects; `controllers` are told of what was changed. */
export function createRegistry(cluster: Cluster, controllers?: Controllers): (asked: ObjectRequest) => Answer {
  const { objects } = cluster;
  const listing = createListing(cluster);

  return (asked) => {
    const { verb, kind, name, namespace, subresource } = asked;
    if (kind.namespaced && namespace === '' && !['list', 'watch'].includes(verb)) throw name === '' ? methodNotAllowed() : noSuchResource();
    if (!kind.namespaced && namespace !== '' && kind.kind !== 'Namespace') throw noSuchResource();
    const known = subresource === '' ? verbsOf(kind) : kind.subresources?.find((one) => one.name === subresource)?.verbs;
    if (known === undefined) throw noSuchResource();
    if (!known.includes(verb) || (name === '' && ['update', 'patch'].includes(verb))) throw methodNotAllowed();
    asked.route();
    if (verb === 'patch' && !isPatchType(asked.mediaType)) throw unknownPatchType();
    if (verb === 'get') return listing.present(asked, find(asked));
    if (verb === 'list') return listing.list(asked);
    if (verb === 'watch') return listing.watch(asked);
    if (verb === 'create') return create(asked);
    if (verb === 'update') return put(asked);
    if (verb === 'patch') return patch(asked);
    return verb === 'delete' ? remove(asked, find(asked)) : removeAll(asked);
  };

  function find({ kind, name, namespace }: ObjectRequest): ClusterObject {
    return objects.get(kind.kind, name, kind.namespaced ? namespace : undefined);
  }

  function create(asked: ObjectRequest): Answer {
    const { kind, namespace, name, query } = asked;
    if (name !== '') throw methodNotAllowed();
    const sent = asked.body();
    restrict(asked, 'CREATE', sent);
    // Where there is no namespace, that is told first.
    if (!kind.namespaced || objects.find('Namespace', namespace) !== undefined) restrictGrants(asked, sent);
    const object = admit(cluster, kind, namespace, sent);
    if (isDryRun(query)) {
      const metadata = { ...object.metadata, uid: randomUUID(), creationTimestamp: formatTime(cluster.now()) };
      return listing.present(asked, { ...object, metadata }, 201);
    }
    if (/^\d*[1-9]\d*$/.test(readText(readRecord(sent['metadata'])['resourceVersion']))) {
      throw new StatusError(500, '', 'resourceVersion should not be set on objects to be created');
    }
    const created = objects.create(object);
    controllers?.created(created);
    return listing.present(asked, created, 201);
  }

  function update(asked: ObjectRequest, sent: JsonRecord): ClusterObject {
    const { kind, name, namespace, subresource, query } = asked;
    const { name: own = '', namespace: sentNamespace, uid, resourceVersion = '' } = readRecord(sent['metadata']);
    if (own === '') throw badRequest(`the name of the object (${name} based on URL) was undeterminable: name must be provided`);
    if (own !== name) throw badRequest(`the name of the object (${readText(own)}) does not match the name on the URL (${name})`);
    if (kind.namespaced && sentNamespace !== undefined && sentNamespace !== namespace) {
      throw badRequest('the namespace of the provided object does not match the namespace sent on the request');
    }
    const before = find(asked);
    const precondition = `Precondition failed: UID in precondition: ${readText(uid)}, UID in object meta: ${before.metadata.uid}`;
    if (uid !== undefined && uid !== before.metadata.uid) throw conflict(kind.resource, name, precondition, kind.group);
    if (resourceVersion !== '' && resourceVersion !== before.metadata.resourceVersion) {
      const message = 'the object has been modified; please apply your changes to the latest version and try again';
      throw conflict(kind.resource, name, message, kind.group);
    }
    const after =
      subresource === 'status' ? { ...before, status: sent['status'] } : merge(before, completeAgain(cluster, asNew(kind, sent)));
    restrictGrants(asked, after, before);
    restrict(asked, 'UPDATE', after, before);
    checkValues(kind.kind, kind.group, after, before);
    if (isDeepStrictEqual(strip(after), strip(before)) || isDryRun(query))
      return { ...before, ...after, metadata: { ...before.metadata, ...after.metadata } };
    const updated = objects.replace(after);
    controllers?.updated(updated);
    return updated;
  }

  // Roles and bindings alone are created by a PUT.
  function put(asked: ObjectRequest): Answer {
    const { kind, name, namespace } = asked;
    const sent = asked.body();
    const isMissing = objects.find(kind.kind, name, kind.namespaced ? namespace : undefined) === undefined;
    const { name: own, resourceVersion = '' } = readRecord(sent['metadata']);
    if (isMissing && kind.group === 'rbac.authorization.k8s.io' && own === name && resourceVersion === '') {
      return create({ ...asked, name: '', body: () => sent });
    }
    return listing.present(asked, update(asked, sent));
  }

  function patch(asked: ObjectRequest): Answer {
    const { kind, name, namespace, mediaType } = asked;
    const sent = asked.patch();
    const isApply = mediaType === 'application/apply-patch+yaml';
    if (isApply && isRecord(sent) && objects.find(kind.kind, name, kind.namespaced ? namespace : undefined) === undefined) {
      return create({ ...asked, name: '', body: () => asked.patched(sent, JSON.stringify(sent)) });
    }
    const before = find(asked);
    const patchType = isApply ? 'application/strategic-merge-patch+json' : mediaType;
    const after = applyPatch(before, sent, patchType);
    return listing.present(asked, update(asked, asked.patched(after, showPatch(after, sent, patchType))));
  }

  function remove(asked: ObjectRequest, object: ClusterObject): Answer {
    const { kind, query } = asked;
    const { name, namespace, uid } = object.metadata;
    const options = asked.deletion();
    const expected = readRecord(options['preconditions']);
    const differ = (field: string, said: unknown, kept: string, how: string): void => {
      if (said === undefined || said === kept) return;
      const message = `the ${field} in the precondition (${readText(said)}) does not match the ${field} in record (${kept}). The object might have been ${how}`;
      throw conflict(kind.kind, name, message, kind.group);
    };
    differ('UID', expected['uid'], uid, 'deleted and then recreated');
    differ('ResourceVersion', expected['resourceVersion'], object.metadata.resourceVersion, 'modified');
    restrict(asked, 'DELETE', object, object);
    const seconds = kind.kind === 'Pod' ? graceOf(object, query.get('gracePeriodSeconds') ?? options['gracePeriodSeconds']) : 0;
    const ending = terminate(object, seconds);
    const isReturned = returnedWhenDeleted.has(kind.kind);
    const details = { name, ...(kind.group === '' ? {} : { group: kind.group }), kind: kind.resource, uid };
    const gone: Answer = { status: 200, body: { kind: 'Status', apiVersion: 'v1', metadata: {}, status: 'Success', details } };
    if (isDryRun(query)) return isReturned ? listing.present(asked, ending) : gone;
    // A namespace goes when its content has gone, and a pod when it has ended.
    if (seconds > 0 || kind.kind === 'Namespace') {
      const terminating = object.metadata.deletionTimestamp === undefined ? objects.replace(ending) : object;
      controllers?.terminating(terminating);
      return listing.present(asked, terminating);
    }
    for (const one of objects.remove(kind.kind, name, namespace)) controllers?.deleted(one);
    return isReturned ? listing.present(asked, kind.kind === 'Pod' ? ending : object) : gone;
  }

  function removeAll(asked: ObjectRequest): Answer {
    const answered = listing.list({ ...asked, as: '' });
    for (const object of listing.matching(asked)) remove(asked, object);
    return answered;
  }

  function restrictGrants({ kind, namespace, user, name }: ObjectRequest, object: JsonRecord, before?: ClusterObject): void {
    restrictGrant(objects, user, { kind, namespace, name, object, ...(before === undefined ? {} : { before }) });
  }

  function restrict(asked: ObjectRequest, operation: Change['operation'], object: JsonRecord, before?: ClusterObject): void {
    const { kind, namespace, subresource, user } = asked;
    const name = readText(readRecord(object['metadata'])['name']);
    restrictNode(user, { operation, kind, subresource, name, namespace, object, ...(before === undefined ? {} : { before }) });
  }

  function terminate(object: ClusterObject, seconds: number): ClusterObject {
    const { generation, ...metadata } = object.metadata;
    return {
      ...object,
      metadata: {
        ...metadata,
        ...(generation === undefined ? {} : { generation: generation + 1 }),
        deletionTimestamp: formatTime(cluster.now() + seconds * 1000),
        ...(object.kind === 'Pod' ? { deletionGracePeriodSeconds: seconds } : {}),
      },
      ...(object.kind === 'Namespace' ? { status: { phase: 'Terminating' } } : {}),
    };
  }
}

function asNew(kind: ResourceKind, { metadata, ...sent }: JsonRecord): NewObject {
  const { name, ...rest } = readRecord(metadata);
  return { ...sent, kind: kind.kind, apiVersion: formatGroupVersion(kind.group), metadata: { ...rest, name: readText(name) } };
}

// What a client sends of these counts for nothing: the cluster knows better.
function merge(before: ClusterObject, sent: JsonRecord): NewObject & ClusterObject {
  const { kind, apiVersion, metadata: kept, status } = before;
  const { kind: _, apiVersion: __, metadata, status: ___, ...rest } = sent;
  const { labels, annotations, ...others } = readRecord(metadata);
  const { name, namespace, uid, resourceVersion, creationTimestamp, deletionTimestamp, generation } = kept;
  const isChanged = generation !== undefined && !isDeepStrictEqual(rest['spec'], before['spec']);
  const whole = {
    ...others,
    name,
    ...(namespace === undefined ? {} : { namespace }),
    uid,
    resourceVersion,
    ...(generation === undefined ? {} : { generation: isChanged ? generation + 1 : generation }),
    creationTimestamp,
    ...(deletionTimestamp === undefined ? {} : { deletionTimestamp }),
    ...(isRecord(labels) ? { labels: readTexts(labels) } : {}),
    ...(isRecord(annotations) ? { annotations: readTexts(annotations) } : {}),
  };
  return { kind, apiVersion, metadata: whole, ...rest, ...(status === undefined ? {} : { status }) };
}

function readTexts(map: JsonRecord): Readonly<Record<string, string>> {
  return Object.fromEntries(Object.entries(map).map(([key, value]) => [key, readText(value)]));
}

function strip({ metadata, ...rest }: ClusterObject): object {
  const { resourceVersion: _, ...others } = metadata;
  return { ...rest, metadata: others };
}

function graceOf(pod: ClusterObject, asked: unknown): number {
  if (asked !== undefined && asked !== null) return Math.max(Number(asked), 0);
  const { nodeName, terminationGracePeriodSeconds } = readRecord(pod['spec']);
  const { phase } = readRecord(pod['status']);
  // A pod that no kubelet has is not waited for.
  if (nodeName === undefined || phase === 'Succeeded' || phase === 'Failed') return 0;
  return typeof terminationGracePeriodSeconds === 'number' ? terminationGracePeriodSeconds : 30;
}

function isDryRun(query: URLSearchParams): boolean {
  return query.get('dryRun') === 'All';
}
