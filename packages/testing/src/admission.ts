// The only place that knows what a real API server refuses of an object that is sent to it, and what it ignores.
import type { Cluster } from './cluster.ts';
import { readRecord, readText } from './json.ts';
import type { JsonRecord } from './json.ts';
import { completions, randomSuffix } from './defaults.ts';
import type { NewObject, Objects } from './objects.ts';
import { formatGroupVersion } from './resources.ts';
import type { ResourceKind } from './resources.ts';
import { admissionRefusal, badRequest, invalid } from './status.ts';
import { validateObject } from './validation.ts';

const rbac = 'rbac.authorization.k8s.io';
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

/** Refuses values that the kind does not allow. Throws a 422 {@link StatusError}. */
export function checkValues(kind: string, group: string, object: JsonRecord): void {
  const errors = validateObject(kind, group, object);
  if (errors.length > 0) throw invalid(kind, group, readText(readRecord(object['metadata'])['name']), errors);
}

/** Refuses a change of what cannot be changed. */
export function checkUpdate(before: JsonRecord, after: JsonRecord): void {
  const { kind } = before;
  const isSame = JSON.stringify(sorted(before['roleRef'])) === JSON.stringify(sorted(after['roleRef']));
  if (isSame || !readText(kind).endsWith('RoleBinding')) return;
  const { apiGroup, kind: role, name } = readRecord(after['roleRef']);
  // The names of Go's fields.
  const value = JSON.stringify({ APIGroup: apiGroup, Kind: role, Name: name });
  const message = `Invalid value: ${value}: cannot change roleRef`;
  throw invalid(readText(kind), rbac, readText(readRecord(before['metadata'])['name']), [{ field: 'roleRef', message }]);
}

/** Refuses what is to be created in a namespace that does not exist, or goes. Throws a {@link StatusError}: 404 or 403. */
export function checkNamespace(objects: Objects, resource: string, group: string, name: string, namespace: string): void {
  const { deletionTimestamp } = objects.get('Namespace', namespace).metadata;
  if (deletionTimestamp === undefined) return;
  const reason = `unable to create new content in namespace ${namespace} because it is being terminated`;
  const causes = [{ reason: 'NamespaceTerminating', message: `namespace ${namespace} is being terminated`, field: 'metadata.namespace' }];
  throw admissionRefusal(resource, group, name, reason, causes);
}

function sorted(value: unknown): readonly (readonly [string, unknown])[] {
  return Object.entries(readRecord(value)).toSorted(([left], [right]) => (left < right ? -1 : 1));
}
