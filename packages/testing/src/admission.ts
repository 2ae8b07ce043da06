// The only place that knows what a real API server refuses of an object that is sent to it, and what it ignores.
import type { Cluster } from './cluster.ts';
import { readRecord, readText } from './json.ts';
import type { JsonRecord } from './json.ts';
import { completions, randomSuffix } from './defaults.ts';
import type { NewObject, Objects } from './objects.ts';
import { formatGroupVersion } from './resources.ts';
import type { ResourceKind } from './resources.ts';
import { admissionRefusal, badRequest, invalid } from './status.ts';
import type { StatusError } from './status.ts';

const rbac = 'rbac.authorization.k8s.io';
const subdomain = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/;
const label = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/;
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
  if (own !== undefined && own !== namespace) {
    throw badRequest('the namespace of the provided object does not match the namespace sent on the request');
  }
  const prefix = readText(others['generateName']);
  const name = readText(given) || (prefix === '' ? '' : `${prefix}${randomSuffix()}`);
  if (namespaced) checkNamespace(cluster.objects, resource, group, name, namespace);
  checkName(kind, group, name);
  const object: NewObject = {
    kind,
    apiVersion: formatGroupVersion(group),
    metadata: { name, ...(namespaced ? { namespace } : {}), ...others },
    ...rest,
  };
  const complete = completions[kind];
  return complete === undefined ? object : complete(object, cluster);
}

/** Refuses a change of what cannot be changed. */
export function checkUpdate(before: JsonRecord, after: JsonRecord): void {
  const { kind } = before;
  const isSame = JSON.stringify(sorted(before['roleRef'])) === JSON.stringify(sorted(after['roleRef']));
  if (isSame || !readText(kind).endsWith('RoleBinding')) return;
  const { apiGroup, kind: role, name } = readRecord(after['roleRef']);
  const value = `{"apiGroup":${JSON.stringify(apiGroup)},"kind":${JSON.stringify(role)},"name":${JSON.stringify(name)}}`;
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

function checkName(kind: string, group: string, name: string): void {
  const refuse = (message: string): StatusError => invalid(kind, group, name, [{ field: 'metadata.name', message }]);
  if (name === '') throw refuse('Required value: name or generateName is required');
  if (group === rbac) return;
  const value = `Invalid value: ${JSON.stringify(name)}`;
  if (kind === 'Namespace' || kind === 'Service') {
    if (label.test(name) && name.length <= 63) return;
    const rule =
      "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
    throw refuse(`${value}: ${rule} (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')`);
  }
  if (subdomain.test(name) && name.length <= 253) return;
  const rule =
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
  const expression = '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*';
  throw refuse(`${value}: ${rule} (e.g. 'example.com', regex used for validation is '${expression}')`);
}

function sorted(value: unknown): readonly (readonly [string, unknown])[] {
  return Object.entries(readRecord(value)).toSorted(([left], [right]) => (left < right ? -1 : 1));
}
