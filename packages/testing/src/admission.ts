// The only place that knows what a real API server refuses of an object that is sent to it, and what it ignores.
import type { Cluster } from './cluster.ts';
import { readRecord, readText } from './json.ts';
import type { JsonRecord } from './json.ts';
import { completions, randomSuffix } from './defaults.ts';
import type { NewObject, Objects } from './objects.ts';
import { formatGroupVersion } from './resources.ts';
import type { ResourceKind } from './resources.ts';
import { admissionRefusal, badRequest, invalid } from './status.ts';
import { validateChange, validateObject } from './validation.ts';

const readOnlyMetadata = new Set([
  'uid',
  'resourceVersion',
  'creationTimestamp',
  'deletionTimestamp',
  'generation',
  'managedFields',
  'selfLink',
]);

/**
 * Completes an object that is to be created in this namespace. Throws the {@link StatusError} that a real API server answers with.
 */
export function admit(
  cluster: Cluster,
  { kind, resource, group, namespaced }: ResourceKind,
  namespace: string,
  sent: JsonRecord,
): NewObject {
  const { metadata, kind: _, apiVersion: __, ...rest } = sent;
  const kept = Object.fromEntries(
    Object.entries(readRecord(metadata)).filter(([name, value]) => !readOnlyMetadata.has(name) && value !== null),
  );
  const { name: given, namespace: own, ...others } = kept;
  if (namespaced && own !== undefined && own !== '' && own !== namespace) {
    throw badRequest('the namespace of the provided object does not match the namespace sent on the request');
  }
  const prefix = readText(others['generateName']);
  const name = readText(given) || (prefix === '' ? '' : `${prefix}${randomSuffix()}`);
  if (namespaced) checkNamespace(cluster.objects, resource, group, name, namespace);
  const object: NewObject = {
    kind,
    apiVersion: formatGroupVersion(group),
    metadata: { name, ...(namespaced ? { namespace } : {}), ...others },
    ...rest,
  };
  const complete = completions[kind]?.(object, cluster) ?? object;
  checkValues(kind, group, complete);
  return complete;
}

/** Refuses values that the kind does not allow, and changes of what cannot be changed. Throws a 422 {@link StatusError}. */
export function checkValues(kind: string, group: string, object: JsonRecord, before?: JsonRecord): void {
  const errors = [...validateObject(kind, group, object), ...(before === undefined ? [] : validateChange(kind, before, object))];
  if (errors.length > 0) throw invalid(kind, group, readText(readRecord(object['metadata'])['name']), errors);
}

const completedAgain = new Set(['ClusterRole', 'ClusterRoleBinding', 'Role', 'RoleBinding', 'Secret']);

/** Completes an object that is to replace another: of the kinds whose defaults do not depend on what the cluster has set since. */
export function completeAgain(cluster: Cluster, object: NewObject): NewObject {
  return completedAgain.has(object.kind) ? (completions[object.kind]?.(object, cluster) ?? object) : object;
}

/** Refuses what is to be created in a namespace that does not exist, or goes. Throws a {@link StatusError}: 404 or 403. */
export function checkNamespace(objects: Objects, resource: string, group: string, name: string, namespace: string): void {
  const { deletionTimestamp } = objects.get('Namespace', namespace).metadata;
  if (deletionTimestamp === undefined) return;
  const reason = `unable to create new content in namespace ${namespace} because it is being terminated`;
  const causes = [{ reason: 'NamespaceTerminating', message: `namespace ${namespace} is being terminated`, field: 'metadata.namespace' }];
  throw admissionRefusal(resource, group, name, reason, causes);
}
