// The only place that knows how objects are shown: one or many, page by page, as a table, or one change after another.
import { objectTypes } from './answer.ts';
import type { Answer } from './answer.ts';
import type { Cluster } from './cluster.ts';
import type { Change, ClusterObject } from './objects.ts';
import type { ObjectRequest } from './registry.ts';
import { formatGroupVersion } from './resources.ts';
import type { ResourceKind } from './resources.ts';
import { parseSelectors } from './selectors.ts';
import { badRequest, formatStatus, invalid, notNegotiable, StatusError } from './status.ts';
import { formatTable } from './tables.ts';
import type { Included } from './tables.ts';

/** An object as it is shown. */
export type ShownObject = Pick<ClusterObject, 'apiVersion' | 'kind'> & {
  readonly metadata: Pick<ClusterObject['metadata'], 'name' | 'uid' | 'creationTimestamp'> & { readonly resourceVersion?: string };
};

/** Shows objects as a request asks for them. */
export interface Listing {
  /** An object that was not kept has no resource version. */
  present(asked: ObjectRequest, object: ShownObject, status?: number): Answer;
  /** The objects that a request selects, by namespace and name. */
  matching(asked: ObjectRequest): readonly ClusterObject[];
  list(asked: ObjectRequest): Answer;
  watch(asked: ObjectRequest): Answer;
}

const partial = { kind: 'PartialObjectMetadata', apiVersion: 'meta.k8s.io/v1' };

/** Makes the listing of one cluster's objects. */
export function createListing(cluster: Cluster): Listing {
  const { objects } = cluster;

  function present({ as, query, kind }: ObjectRequest, object: ShownObject, status = 200): Answer {
    if (as === 'PartialObjectMetadata') return { status, body: { ...partial, metadata: object.metadata } };
    if (as !== '' && as !== 'Table') throw notNegotiable(objectTypes);
    if (as !== 'Table') return { status, body: object };
    const { resourceVersion = '' } = object.metadata;
    const metadata = { ...object.metadata, resourceVersion };
    return { status, body: tableOf(kind, [{ ...object, metadata }], resourceVersion, query) };
  }

  function tableOf(
    { kind }: ResourceKind,
    shown: readonly ClusterObject[],
    resourceVersion: string,
    query: URLSearchParams,
    rest: object = {},
  ): object {
    return formatTable(kind, shown, { resourceVersion, included: readIncluded(query), now: cluster.now(), rest });
  }

  function matching({ kind, namespace, query }: ObjectRequest): readonly ClusterObject[] {
    const test = parseSelectors(kind.kind, query);
    const inside = objects.list(kind.kind, kind.namespaced && namespace !== '' ? namespace : undefined);
    return inside.filter(test).toSorted((left, right) => (keyOf(left) < keyOf(right) ? -1 : 1));
  }

  function list(asked: ObjectRequest): Answer {
    const { kind, query, as } = asked;
    checkListOptions(query, objects.version());
    const all = matching(asked);
    const after = Buffer.from(query.get('continue') ?? '', 'base64url').toString();
    const start = after === '' ? 0 : all.findIndex((one) => keyOf(one) > after);
    const limit = Number(query.get('limit') ?? 0);
    const page = start < 0 ? [] : all.slice(start, limit > 0 ? start + limit : undefined);
    const left = start < 0 ? 0 : all.length - start - page.length;
    const last = page.at(-1);
    const rest =
      left > 0 && last !== undefined ? { continue: Buffer.from(keyOf(last)).toString('base64url'), remainingItemCount: left } : {};
    const resourceVersion = objects.version();
    if (as === 'Table') return { status: 200, body: tableOf(kind, page, resourceVersion, query, rest) };
    if (as === 'PartialObjectMetadataList') {
      const items = page.map(({ metadata }) => ({ metadata }));
      return { status: 200, body: { kind: as, apiVersion: 'meta.k8s.io/v1', metadata: { resourceVersion, ...rest }, items } };
    }
    if (as !== '') throw notNegotiable(objectTypes);
    // In a list the items do not say again what they are.
    const items = page.map(withoutType);
    const apiVersion = formatGroupVersion(kind.group);
    return { status: 200, body: { kind: `${kind.kind}List`, apiVersion, metadata: { resourceVersion, ...rest }, items } };
  }

  function watch(asked: ObjectRequest): Answer {
    const { kind, namespace, query, as } = asked;
    const test = parseSelectors(kind.kind, query);
    const from = query.get('resourceVersion') ?? '';
    const initial = query.get('sendInitialEvents') === 'true';
    const isAsked = ({ object }: Change): boolean =>
      object.kind === kind.kind && (namespace === '' || !kind.namespaced || object.metadata.namespace === namespace) && test(object);
    return {
      status: 200,
      body: '',
      seconds: Number(query.get('timeoutSeconds') ?? 0),
      stream(write) {
        const tell = ({ type, object }: Change): void =>
          write({ type, object: present({ ...asked, as: as === 'Table' || as === '' ? as : 'PartialObjectMetadata' }, object).body });
        const missed = from === '' || from === '0' || initial ? [] : objects.since(Number(from));
        if (missed === undefined) {
          write({ type: 'ERROR', object: formatStatus(new StatusError(410, 'Expired', `too old resource version: ${from}`)) });
          return undefined;
        }
        if (from === '' || from === '0' || initial) for (const object of matching(asked)) tell({ type: 'ADDED', object });
        if (initial) {
          const annotations = { 'k8s.io/initial-events-end': 'true' };
          const metadata = { resourceVersion: objects.version(), annotations };
          write({ type: 'BOOKMARK', object: { kind: kind.kind, apiVersion: formatGroupVersion(kind.group), metadata } });
        }
        for (const change of missed.filter(isAsked)) tell(change);
        return objects.subscribe((change) => {
          if (isAsked(change)) tell(change);
        });
      },
    };
  }

  return { present, matching, list, watch };
}

function withoutType(object: ClusterObject): object {
  const { kind: _, apiVersion: __, ...item } = object;
  return item;
}

function readIncluded(query: URLSearchParams): Included {
  const asked = query.get('includeObject');
  return asked === 'None' || asked === 'Object' ? asked : 'Metadata';
}

function keyOf({ metadata: { namespace = '', name } }: ClusterObject): string {
  return `${namespace}/${name}`;
}

// Throws a StatusError on what a list cannot be asked for.
function checkListOptions(query: URLSearchParams, current: string): void {
  for (const name of ['limit', 'timeoutSeconds']) {
    const value = query.get(name) ?? '';
    if (!/^([+-]?\d+)?$/.test(value)) throw badRequest(`strconv.ParseInt: parsing ${JSON.stringify(value)}: invalid syntax`);
  }
  const [version, match] = [query.get('resourceVersion') ?? '', query.get('resourceVersionMatch') ?? ''];
  const field = 'resourceVersionMatch';
  const supported = 'supported values: "Exact", "NotOlderThan", ""';
  const errors = [
    ...(match !== '' && version === '' ? [{ field, message: `Forbidden: ${field} is forbidden unless resourceVersion is provided` }] : []),
    ...(['', 'Exact', 'NotOlderThan'].includes(match)
      ? []
      : [{ field, message: `Unsupported value: ${JSON.stringify(match)}: ${supported}` }]),
    ...(query.has('sendInitialEvents') && query.get('sendInitialEvents') !== ''
      ? [{ field: 'sendInitialEvents', message: 'Forbidden: sendInitialEvents is forbidden for list' }]
      : []),
  ];
  if (errors.length > 0) throw invalid('ListOptions', 'meta.k8s.io', '', errors);
  if (!/^\d*$/.test(version)) {
    const why = `strconv.ParseUint: parsing ${JSON.stringify(version)}: invalid syntax`;
    throw badRequest(`invalid resource version: resourceVersion: Invalid value: ${JSON.stringify(version)}: ${why}`);
  }
  if (Number(version) <= Number(current)) return;
  const causes = [{ reason: 'ResourceVersionTooLarge', message: 'Too large resource version' }];
  const message = `Timeout: Too large resource version: ${version}, current: ${current}`;
  throw new StatusError(504, 'Timeout', message, { causes, retryAfterSeconds: 1 }, { 'Retry-After': '1' });
}
