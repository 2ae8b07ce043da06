// The only place that lays objects out in columns, as `kubectl get` asks for them.
import { isRecord, readRecord, readText } from './json.ts';
import type { JsonRecord } from './json.ts';
import type { ClusterObject } from './objects.ts';

/** One column: its name and what stands in it; `wide` where only `kubectl get -o wide` shows it. */
interface Column {
  readonly name: string;
  readonly wide?: boolean;
  readonly cell: (object: ClusterObject, now: number) => string | number;
}

/** What a table shows of each object besides its cells. */
export type Included = 'None' | 'Metadata' | 'Object';

/** Formats objects of one kind as a Table of meta.k8s.io/v1. */
export function formatTable(
  kind: string,
  list: readonly ClusterObject[],
  {
    resourceVersion,
    included,
    now,
    rest = {},
  }: { readonly resourceVersion: string; readonly included: Included; readonly now: number; readonly rest?: object },
): object {
  const columns = [name, ...(columnsOf[kind] ?? [age])];
  return {
    kind: 'Table',
    apiVersion: 'meta.k8s.io/v1',
    metadata: { resourceVersion, ...rest },
    columnDefinitions: columns.map(({ name: title, wide }) => ({
      name: title,
      type: 'string',
      format: title === 'Name' ? 'name' : '',
      description: descriptions[title] ?? '',
      priority: wide === true ? 1 : 0,
    })),
    rows: list.map((object) => ({
      cells: columns.map(({ cell }) => cell(object, now)),
      ...describeRow(object),
      ...(included === 'None' ? {} : { object: included === 'Object' ? object : metadataOf(object) }),
    })),
  };
}

/** Formats the distance to a time as kubectl's AGE column does. */
function formatAge(milliseconds: number): string {
  const seconds = Math.max(Math.floor(milliseconds / 1000), 0);
  const [minutes, hours, days] = [Math.floor(seconds / 60), Math.floor(seconds / 3600), Math.floor(seconds / 86_400)];
  const both = (large: string, rest: number, unit: string): string => (rest === 0 ? large : `${large}${rest}${unit}`);
  // apimachinery, util/duration: two units where one alone would say too little.
  if (seconds < 120) return `${seconds}s`;
  if (minutes < 10) return both(`${minutes}m`, seconds % 60, 's');
  if (hours < 3) return `${minutes}m`;
  if (hours < 8) return both(`${hours}h`, minutes % 60, 'm');
  if (hours < 48) return `${hours}h`;
  if (days < 8) return both(`${days}d`, hours % 24, 'h');
  if (days < 730) return `${days}d`;
  return both(`${Math.floor(days / 365)}y`, days < 2920 ? days % 365 : 0, 'd');
}

const name: Column = { name: 'Name', cell: ({ metadata }) => metadata.name };
const age: Column = { name: 'Age', cell: ({ metadata }, now) => formatAge(now - Date.parse(metadata.creationTimestamp)) };
const none = '<none>';
const specOf = ({ spec }: ClusterObject): JsonRecord => readRecord(spec);
const statusOf = ({ status }: ClusterObject): JsonRecord => readRecord(status);
const listOf = (value: unknown): readonly JsonRecord[] => (Array.isArray(value) ? value.filter(isRecord) : []);
const sizeOf = ({ data }: ClusterObject): number => Object.keys(readRecord(data)).length;
const subjects = (title: string, kind: string): Column => ({
  name: title,
  wide: true,
  cell: (object) =>
    listOf(object['subjects'])
      .filter((one) => one['kind'] === kind)
      .map((one) => (kind === 'ServiceAccount' ? `${readText(one['namespace'])}/${readText(one['name'])}` : readText(one['name'])))
      .join(', '),
});
const role: Column = {
  name: 'Role',
  cell: (object) => {
    const { kind, name: named } = readRecord(object['roleRef']);
    return `${readText(kind)}/${readText(named)}`;
  },
};
const createdAt: Column = { name: 'Created At', cell: ({ metadata }) => metadata.creationTimestamp };
const bindings = [role, age, subjects('Users', 'User'), subjects('Groups', 'Group'), subjects('ServiceAccounts', 'ServiceAccount')];
const count = (value: unknown): number => (typeof value === 'number' ? value : 0);

const columnsOf: Readonly<Record<string, readonly Column[]>> = {
  Namespace: [{ name: 'Status', cell: (object) => readText(statusOf(object)['phase']) }, age],
  Node: [{ name: 'Status', cell: () => 'Ready' }, { name: 'Roles', cell: () => none }, age, { name: 'Version', cell: () => '' }],
  Pod: [
    { name: 'Ready', cell: formatReady },
    { name: 'Status', cell: formatPodStatus },
    { name: 'Restarts', cell: () => '0' },
    age,
    { name: 'IP', wide: true, cell: (object) => readText(statusOf(object)['podIP']) || none },
    { name: 'Node', wide: true, cell: (object) => readText(specOf(object)['nodeName']) || none },
    { name: 'Nominated Node', wide: true, cell: () => none },
    { name: 'Readiness Gates', wide: true, cell: () => none },
  ],
  Secret: [{ name: 'Type', cell: (object) => readText(object['type']) }, { name: 'Data', cell: sizeOf }, age],
  ConfigMap: [{ name: 'Data', cell: sizeOf }, age],
  Service: [
    { name: 'Type', cell: (object) => readText(specOf(object)['type']) },
    { name: 'Cluster-IP', cell: (object) => readText(specOf(object)['clusterIP']) || none },
    { name: 'External-IP', cell: () => none },
    {
      name: 'Port(s)',
      cell: (object) =>
        listOf(specOf(object)['ports'])
          .map(({ port, protocol }) => `${String(port)}/${readText(protocol)}`)
          .join(',') || none,
    },
    age,
  ],
  Deployment: [
    { name: 'Ready', cell: (object) => `${count(statusOf(object)['readyReplicas'])}/${count(specOf(object)['replicas'])}` },
    { name: 'Up-to-date', cell: (object) => count(statusOf(object)['updatedReplicas']) },
    { name: 'Available', cell: (object) => count(statusOf(object)['availableReplicas']) },
    age,
  ],
  ClusterRole: [createdAt],
  Role: [createdAt],
  ClusterRoleBinding: bindings,
  RoleBinding: bindings,
};

function formatReady(object: ClusterObject): string {
  const isReady = statusOf(object)['phase'] === 'Running';
  const containers = listOf(specOf(object)['containers']).length;
  return `${isReady ? containers : 0}/${containers}`;
}

function formatPodStatus(object: ClusterObject): string {
  if (object.metadata.deletionTimestamp !== undefined) return 'Terminating';
  const { reason, phase } = statusOf(object);
  return readText(reason) || readText(phase);
}

function describeRow(object: ClusterObject): object {
  if (object.kind !== 'Pod' || statusOf(object)['phase'] !== 'Succeeded') return {};
  const message = 'The pod has completed successfully.';
  return { conditions: [{ type: 'Completed', status: 'True', reason: 'Succeeded', message }] };
}

function metadataOf({ metadata }: ClusterObject): object {
  return { kind: 'PartialObjectMetadata', apiVersion: 'meta.k8s.io/v1', metadata };
}

const descriptions: Readonly<Record<string, string>> = {
  Name: 'Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names',
  Age: 'CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata',
};
