// The only place that tells clients what the API consists of: discovery of groups and resources, plain and aggregated, and as much of
// OpenAPI as kubectl looks at before it applies a manifest.
import { createHash } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { checkAcceptable } from './answer.ts';
import type { Answer } from './answer.ts';
import { formatGroupVersion, resourceKinds, reviewKinds, verbsOf } from './resources.ts';
import type { ResourceKind, ReviewKind, Subresource } from './resources.ts';
import { methodNotAllowed, noSuchResource } from './status.ts';

// In the order in which a real API server lists them.
const groups = ['apps', 'authentication.k8s.io', 'authorization.k8s.io', 'rbac.authorization.k8s.io', 'flowcontrol.apiserver.k8s.io'];

/** Says whether the API has this group; the oldest is the empty text. */
export function hasGroup(group: string): boolean {
  return group === '' || groups.includes(group);
}

/** Answers a path of discovery; `undefined` where it is none. `address` is the server's, `host:port`. Throws a {@link StatusError}. */
export function answerDiscovery(request: IncomingMessage, path: string, address: string): Answer | undefined {
  const parts = path.split('/').filter((part) => part !== '');
  const [root, group = '', version, ...rest] = parts[0] === 'api' ? ['api', '', ...parts.slice(1)] : parts;
  if (root === undefined) return { status: 200, body: { paths: listPaths() } };
  if (root === 'openapi') return answerOpenApi(parts.slice(1));
  if ((root !== 'api' && root !== 'apis') || !hasGroup(group)) return undefined;
  // The groups are told by the aggregator, which looks at no method.
  if (root === 'api' || version !== undefined) {
    if ((version !== undefined && version !== 'v1') || rest.length > 0) throw noSuchResource();
    if (request.method !== 'GET') throw methodNotAllowed();
    checkAcceptable(request);
  }
  if (version !== undefined) return { status: 200, body: listResources(group) };
  if (group !== '') return { status: 200, body: { kind: 'APIGroup', apiVersion: 'v1', ...describeGroup(group) } };
  const [, aggregated] = /;g=apidiscovery\.k8s\.io;v=(v2|v2beta1);as=APIGroupDiscoveryList/.exec(request.headers.accept ?? '') ?? [];
  if (aggregated !== undefined) return aggregate(root === 'api' ? [''] : groups, aggregated);
  if (root === 'apis') return { status: 200, body: { kind: 'APIGroupList', apiVersion: 'v1', groups: groups.map(describeGroup) } };
  const serverAddressByClientCIDRs = [{ clientCIDR: '0.0.0.0/0', serverAddress: address }];
  return { status: 200, body: { kind: 'APIVersions', versions: ['v1'], serverAddressByClientCIDRs } };
}

function listPaths(): readonly string[] {
  const ofGroups = groups.flatMap((group) => [`/apis/${group}`, `/apis/${group}/v1`]);
  const others = ['/healthz', '/livez', '/openapi/v2', '/openapi/v3', '/openid/v1/jwks', '/readyz', '/version'];
  return ['/.well-known/openid-configuration', '/api', '/api/v1', '/apis', '/apis/', ...ofGroups.toSorted(), ...others];
}

function describeGroup(name: string): object {
  const version = { groupVersion: `${name}/v1`, version: 'v1' };
  return { name, versions: [version], preferredVersion: version };
}

function listResources(group: string): object {
  const reviews = reviewsOf(group).map(({ resource, kind, namespaced }) => ({
    name: resource,
    singularName: kind.toLowerCase(),
    namespaced,
    kind,
    verbs: ['create'],
  }));
  const objects = kindsOf(group).flatMap(describeKind);
  // The oldest group has no apiVersion here, as on a real API server.
  const apiVersion = group === '' ? {} : { apiVersion: 'v1' };
  return { kind: 'APIResourceList', ...apiVersion, groupVersion: formatGroupVersion(group), resources: [...reviews, ...objects] };
}

function describeKind(one: ResourceKind): readonly object[] {
  const { resource, kind, namespaced, subresources = [] } = one;
  const storageVersionHash = hashStorageVersion(one);
  const own = {
    name: resource,
    singularName: kind.toLowerCase(),
    namespaced,
    kind,
    verbs: verbsOf(one),
    ...namesOf(one),
    storageVersionHash,
  };
  return [own, ...subresources.map((inner) => describeSubresource(one, inner))];
}

// apiserver, discovery.StorageVersionHash: eight bytes of a digest, by which a client sees that objects are stored in another form.
function hashStorageVersion({ group, kind }: ResourceKind): string {
  return createHash('sha256').update(`${group}/v1/${kind}`).digest().subarray(0, 8).toString('base64');
}

function describeSubresource({ resource, namespaced }: ResourceKind, { name, group, kind, verbs }: Subresource): object {
  const other = group === undefined ? {} : { group, version: 'v1' };
  return { name: `${resource}/${name}`, singularName: '', namespaced, ...other, kind, verbs };
}

function aggregate(names: readonly string[], version: string): Answer {
  const items = names.map((group) => ({
    metadata: group === '' ? {} : { name: group },
    versions: [
      { version: 'v1', resources: [...reviewsOf(group).map(aggregateReview), ...kindsOf(group).map(aggregateKind)], freshness: 'Current' },
    ],
  }));
  const body = { kind: 'APIGroupDiscoveryList', apiVersion: `apidiscovery.k8s.io/${version}`, metadata: {}, items };
  const etag = createHash('sha512').update(JSON.stringify(body)).digest('hex').toUpperCase();
  const mediaType = `application/json;g=apidiscovery.k8s.io;v=${version};as=APIGroupDiscoveryList`;
  return { status: 200, headers: { 'Cache-Control': 'public', 'Content-Type': mediaType, ETag: `"${etag}"`, Vary: 'Accept' }, body };
}

function aggregateReview({ resource, kind, namespaced }: ReviewKind): object {
  return {
    resource,
    responseKind: { group: '', version: '', kind },
    scope: namespaced ? 'Namespaced' : 'Cluster',
    singularResource: kind.toLowerCase(),
    verbs: ['create'],
  };
}

function aggregateKind(one: ResourceKind): object {
  const subresources = (one.subresources ?? []).map(({ name, kind, group, verbs }) => ({
    subresource: name,
    responseKind: { group: group ?? '', version: group === undefined ? '' : 'v1', kind },
    verbs,
  }));
  return {
    ...aggregateReview(one),
    verbs: verbsOf(one),
    ...namesOf(one),
    ...(subresources.length === 0 ? {} : { subresources }),
  };
}

function namesOf({ shortNames, categories }: ResourceKind): object {
  return { ...(shortNames === undefined ? {} : { shortNames }), ...(categories === undefined ? {} : { categories }) };
}

function kindsOf(group: string): readonly ResourceKind[] {
  return resourceKinds.filter((one) => one.group === group);
}

function reviewsOf(group: string): readonly ReviewKind[] {
  return reviewKinds.filter((one) => one.group === group);
}

function answerOpenApi([version, ...rest]: readonly string[]): Answer | undefined {
  if (version === 'v2') return answerOldOpenApi();
  if (version !== 'v3') return undefined;
  const keys = ['', ...groups].map((group) => [rootOf(group).slice(1), group] as const);
  if (rest.length === 0) {
    const paths = Object.fromEntries(keys.map(([key]) => [key, { serverRelativeURL: `/openapi/v3/${key}` }]));
    return { status: 200, headers: { 'Content-Type': 'text/plain; charset=utf-8' }, body: { paths } };
  }
  const [, group] = keys.find(([key]) => key === rest.join('/')) ?? [];
  return group === undefined ? undefined : { status: 200, body: describePaths(group) };
}

// kubectl before 1.27 reads schemas here, in protobuf, and does not apply anything without an answer. In a document that has none, it
// finds no fault with any manifest. The bytes are field 1, the version.
function answerOldOpenApi(): Answer {
  return { status: 200, headers: { 'Content-Type': 'application/com.github.proto-openapi.spec.v2.v1.0+protobuf' }, body: '\n\u00032.0' };
}

// kubectl looks here for whether a PATCH of the kind takes `fieldValidation`, and else checks a manifest against schemas by itself.
function describePaths(group: string): object {
  const parameters = ['dryRun', 'fieldManager', 'fieldValidation'].map((name) => ({ name, in: 'query', schema: { type: 'string' } }));
  const paths = kindsOf(group).map(({ kind, resource, namespaced }) => [
    `${rootOf(group)}${namespaced ? '/namespaces/{namespace}' : ''}/${resource}/{name}`,
    {
      patch: {
        parameters,
        responses: { 200: { description: 'OK' } },
        'x-kubernetes-action': 'patch',
        'x-kubernetes-group-version-kind': { group, version: 'v1', kind },
      },
    },
  ]);
  const info = { title: 'Kubernetes', version: 'v1.36.2' };
  return { openapi: '3.0.0', info, paths: Object.fromEntries(paths), components: { schemas: {} } };
}

function rootOf(group: string): string {
  return group === '' ? '/api/v1' : `/apis/${group}/v1`;
}
