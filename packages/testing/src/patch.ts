// The only place that knows how a patch changes an object: merge patches (RFC 7386), JSON patches (RFC 6902) and Kubernetes' strategic
// ones, which merge some lists by a key of their entries.
import { isDeepStrictEqual } from 'node:util';
import { isRecord, readList, readText } from './json.ts';
import type { JsonRecord } from './json.ts';
import { StatusError } from './status.ts';

// k8s.io/api: the lists that a strategic patch merges, by their patchMergeKey. Others are replaced.
const mergeKeys: Readonly<Record<string, readonly string[]>> = {
  conditions: ['type'],
  containers: ['name'],
  env: ['name'],
  ephemeralContainers: ['name'],
  hostAliases: ['ip'],
  imagePullSecrets: ['name'],
  initContainers: ['name'],
  ownerReferences: ['uid'],
  ports: ['containerPort', 'port'],
  secrets: ['name'],
  topologySpreadConstraints: ['topologyKey'],
  volumeDevices: ['devicePath'],
  volumeMounts: ['mountPath'],
  volumes: ['name'],
};

const patchTypes = new Set(['application/json-patch+json', 'application/merge-patch+json', 'application/strategic-merge-patch+json']);

/** Says whether patches of this media type are taken. */
export function isPatchType(mediaType: string): boolean {
  return patchTypes.has(mediaType) || mediaType === 'application/apply-patch+yaml';
}

/** How Go shows what a refused patch of this media type is about: the object that it made, or the patch. */
export function showPatch(patched: JsonRecord, patch: unknown, mediaType: string): string {
  return mediaType === 'application/strategic-merge-patch+json'
    ? formatLikeGo(patch)
    : JSON.stringify(Object.fromEntries(Object.entries(patched).toSorted(([one], [other]) => (one < other ? -1 : 1))));
}

/** Applies a patch of this media type and returns the new object. Throws a {@link StatusError}. */
export function applyPatch(object: JsonRecord, patch: unknown, mediaType: string): JsonRecord {
  if (mediaType === 'application/json-patch+json') return applyOperations(object, patch);
  if (!isRecord(patch)) return object;
  if (mediaType === 'application/merge-patch+json') return merge(object, patch);
  return mergeStrategically(object, patch);
}

function merge(target: unknown, patch: JsonRecord): JsonRecord {
  const merged = new Map(isRecord(target) ? Object.entries(target) : []);
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) merged.delete(name);
    else merged.set(name, isRecord(value) ? merge(merged.get(name), value) : value);
  }
  return Object.fromEntries(merged);
}

function mergeStrategically(target: unknown, patch: JsonRecord): JsonRecord {
  const { $patch: directive, $retainKeys: retained, ...fields } = patch;
  if (directive === 'replace') return fields;
  const kept = isRecord(target) ? Object.entries(target) : [];
  const merged = new Map(kept.filter(([name]) => !Array.isArray(retained) || retained.includes(name)));
  for (const [name, value] of Object.entries(fields)) {
    const [, action, list = ''] = /^\$(setElementOrder|deleteFromPrimitiveList)\/(.*)$/.exec(name) ?? [];
    const current = merged.get(list);
    if (action === 'deleteFromPrimitiveList' && Array.isArray(current) && Array.isArray(value)) {
      merged.set(
        list,
        current.filter((one: unknown) => !value.includes(one)),
      );
    }
    if (action !== undefined) continue;
    if (value === null) merged.delete(name);
    else if (isRecord(value)) merged.set(name, mergeStrategically(merged.get(name), value));
    else if (Array.isArray(value)) merged.set(name, mergeLists(name, merged.get(name), value));
    else merged.set(name, value);
  }
  for (const [name, order] of Object.entries(fields)) {
    const list = name.startsWith('$setElementOrder/') ? name.slice('$setElementOrder/'.length) : '';
    const current = merged.get(list);
    if (Array.isArray(current) && Array.isArray(order)) merged.set(list, sortLike(list, current, order));
  }
  return Object.fromEntries(merged);
}

function mergeLists(name: string, current: unknown, patch: readonly unknown[]): readonly unknown[] {
  const list: readonly unknown[] = Array.isArray(current) ? current : [];
  if (name === 'finalizers') return [...list, ...patch.filter((one) => !list.includes(one))];
  const key = keyOf(name, [...patch, ...list]);
  if (key === undefined) return patch;
  if (patch.some((one) => isRecord(one) && one['$patch'] === 'replace'))
    return patch.filter((one) => isRecord(one) && one['$patch'] !== 'replace');
  const merged = [...list];
  for (const one of patch) {
    if (!isRecord(one)) continue;
    const at = merged.findIndex((other) => isRecord(other) && other[key] === one[key]);
    if (one['$patch'] === 'delete') {
      if (at >= 0) merged.splice(at, 1);
    } else if (at >= 0) merged[at] = mergeStrategically(merged[at], one);
    else merged.push(mergeStrategically({}, one));
  }
  return merged;
}

function sortLike(name: string, list: readonly unknown[], order: readonly unknown[]): readonly unknown[] {
  const key = keyOf(name, list);
  const rank = (value: unknown): number => {
    const at = order.findIndex((one) => (key !== undefined && isRecord(one) && isRecord(value) ? one[key] === value[key] : one === value));
    return at < 0 ? order.length : at;
  };
  return list.toSorted((left, right) => rank(left) - rank(right));
}

function keyOf(name: string, entries: readonly unknown[]): string | undefined {
  return (mergeKeys[name] ?? []).find((key) => entries.some((one) => isRecord(one) && one[key] !== undefined));
}

function applyOperations(object: JsonRecord, patch: unknown): JsonRecord {
  const root: unknown = structuredClone({ '': object });
  for (const operation of readList(patch)) {
    const { op, value } = operation;
    if (!operations.has(readText(op))) throw unprocessable();
    const at = locate(root, readText(operation['path']));
    const from = typeof operation['from'] === 'string' ? locate(root, operation['from']) : undefined;
    if (op === 'test' && !isDeepStrictEqual(at.read(), value)) {
      throw unprocessable();
    }
    const moved = from?.read();
    if (op === 'move') from?.remove();
    if (op === 'remove' || op === 'replace') at.remove();
    if (op === 'add' || op === 'replace') at.add(value);
    if (op === 'move' || op === 'copy') at.add(moved);
  }
  return isRecord(root) && isRecord(root['']) ? root[''] : {};
}

const operations = new Set(['add', 'copy', 'move', 'remove', 'replace', 'test']);

function unprocessable(): StatusError {
  return new StatusError(422, 'Invalid', 'the server rejected our request due to an error in our request', {});
}

interface Location {
  read(): unknown;
  add(value: unknown): void;
  remove(): void;
}

// RFC 6901, from a root whose one key is the empty string.
function locate(root: unknown, pointer: string): Location {
  const steps = pointer.split('/').map((step) => step.replaceAll('~1', '/').replaceAll('~0', '~'));
  const last = steps.pop() ?? '';
  const parent = steps.reduce<unknown>((value, step) => readStep(value, step), root);
  if (Array.isArray(parent)) {
    const index = last === '-' ? parent.length : Number(last);
    return { read: () => parent[index], add: (value) => void parent.splice(index, 0, value), remove: () => void parent.splice(index, 1) };
  }
  if (!isRecord(parent)) throw unprocessable();
  return {
    read: () => parent[last],
    add: (value) => void Object.assign(parent, { [last]: value }),
    remove: () => void Reflect.deleteProperty(parent, last),
  };
}

function readStep(value: unknown, step: string): unknown {
  if (Array.isArray(value)) return value[Number(step)];
  return isRecord(value) ? value[step] : undefined;
}

// Go's %v of a map.
function formatLikeGo(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(formatLikeGo).join(' ')}]`;
  if (value === null) return '<nil>';
  if (!isRecord(value)) return typeof value === 'string' ? value : JSON.stringify(value);
  const entries = Object.keys(value)
    .toSorted()
    .map((key) => `${key}:${formatLikeGo(value[key])}`);
  return `map[${entries.join(' ')}]`;
}
