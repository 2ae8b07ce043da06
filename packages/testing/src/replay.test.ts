// Puts to the authority what was put to a real kube-apiserver 1.36, with its keys, objects and clock, and compares the answers.
import assert from 'node:assert/strict';
import { createPublicKey, generateKeyPairSync } from 'node:crypto';
import type { KeyObject } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer, request as send } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { createApi } from './api.ts';
import { createCallLog } from './calls.ts';
import { createCluster } from './cluster.ts';
import type { Cluster } from './cluster.ts';
import { createFaults } from './faults.ts';
import type { Faults } from './faults.ts';
import { isRecord, readList, readRecord, readText } from './json.ts';
import type { JsonRecord } from './json.ts';
import { formatTime } from './objects.ts';
import type { ClusterObject } from './objects.ts';
import { resourceKinds, reviewKinds } from './resources.ts';
import { createSigningKeys, parseToken } from './signing.ts';

interface Case {
  readonly n: number;
  readonly name: string;
  readonly at: string;
  /** Who asked with a client certificate, for which a static token stands here. */
  readonly user?: 'admin' | 'node-1';
  /** The flags of the server, where they were others. */
  readonly variant?: string;
  readonly request: {
    readonly method: string;
    readonly path: string;
    readonly headers: Readonly<Record<string, string>>;
    readonly body?: unknown;
  };
  readonly response: {
    readonly status: number;
    readonly headers: Readonly<Record<string, string | boolean>>;
    readonly body: unknown;
  };
}

interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | boolean>>;
  readonly body: unknown;
}

interface Variant {
  /** The same objects, keys and clock, under other settings. */
  readonly cluster: Partial<Cluster>;
  readonly faults?: Faults;
}

const read = (name: string): string => readFileSync(new URL(`fixtures/${name}`, import.meta.url), 'utf8');
const readCases = (name: string): readonly Case[] =>
  read(name)
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line));
const tokens: Readonly<Record<string, string>> = JSON.parse(read('tokens.json'));
const cases = readCases('recorded.jsonl');
const withTokens = (text: string): string => text.replaceAll(/\{\{(jwt-\d+)\}\}/g, (_, name: string) => tokens[name] ?? '');

describe('the authority, asked what a real API server was asked', () => {
  let now = 0;
  let uid = '';
  const keys = createSigningKeys(read('service-account.key'));
  const cluster = createCluster({
    keys,
    now: () => now,
    staticTokens: new Map([
      ['admin', { username: 'test-admin', groups: ['system:masters'] }],
      ['node-1', { username: 'system:node:node-1', groups: ['system:nodes'] }],
      ['throwaway-plain-token', { username: 'plain-user', uid: 'plain-uid', groups: [] }],
    ]),
    createUid: () => uid,
  });
  const newIssuer = 'https://new.example.com';
  const issuers = [newIssuer, ...cluster.issuers];
  const faults = createFaults();
  const variants: Readonly<Record<string, Variant>> = {
    '': { cluster: {} },
    'anonymous-off': { cluster: { anonymous: false } },
    'anonymous-conditions': { cluster: { anonymous: ['/livez', '/readyz', '/healthz'] } },
    'max-expiration': { cluster: { maxTokenExpirationSeconds: 3600 } },
    // The key that signed there was thrown away, so that one of our own signs, which nobody trusts.
    es256: { cluster: { keys: createSigningKeys(generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey, publishedBy(665)) } },
    'rotated-away': { cluster: { keys: createSigningKeys(read('service-account.key'), publishedBy(685)) } },
    'two-issuers': { cluster: { issuers, apiAudiences: issuers } },
    'etcd-frozen': { cluster: {}, faults },
  };
  const servers = new Map(
    Object.entries(variants).map(([name, { cluster: changes, faults: active = createFaults() }]) => {
      const api = createApi({
        cluster: { ...cluster, ...changes },
        faults: active,
        log: createCallLog(),
        url: () => 'https://127.0.0.1:16443',
        signal: new AbortController().signal,
      });
      return [name, createServer(api)] as const;
    }),
  );

  before(async () => {
    for (const server of servers.values()) await once(server.listen(0, '127.0.0.1'), 'listening');
  });
  after(() => {
    for (const server of servers.values()) server.close();
  });

  async function ask({ request: { method, path, headers, body }, user, variant = '' }: Case): Promise<Answer> {
    const address = servers.get(variant)?.address() as AddressInfo | undefined;
    const credentials = user === undefined ? {} : { authorization: `Bearer ${user}` };
    const own = Object.entries(headers).flatMap(([name, value]) => (value === '' ? [] : [[name, withTokens(value)] as const]));
    return new Promise((resolve, reject) => {
      const options = {
        host: '127.0.0.1',
        port: address?.port,
        method,
        path,
        headers: { 'user-agent': 'curl/8', ...Object.fromEntries(own), ...credentials },
      };
      const outgoing = send(options, (response) => {
        const chunks: Buffer[] = [];
        response.on('data', (chunk: Buffer) => chunks.push(chunk));
        response.on('end', () => {
          const text = Buffer.concat(chunks).toString();
          // One answer, the index of OpenAPI, calls itself plain text.
          const isJson = /json/.test(response.headers['content-type'] ?? '') || text.startsWith('{');
          const isPlain = response.headers['content-encoding'] === undefined;
          resolve({
            status: response.statusCode ?? 0,
            headers: pickHeaders(response.headers),
            body: isJson && isPlain ? JSON.parse(text) : text,
          });
        });
      });
      outgoing.on('error', (error: NodeJS.ErrnoException) => {
        // curl's "empty reply".
        if (error.code === 'ECONNRESET') resolve({ status: 0, headers: {}, body: '' });
        else reject(error);
      });
      const text = typeof body === 'string' ? body : JSON.stringify(body ?? null);
      outgoing.end(body === undefined || body === null ? undefined : restoreLength(withTokens(text)));
    });
  }

  async function replay(all: readonly Case[], prepare: (one: Case) => void, cut = (answer: Answer): Answer => answer): Promise<void> {
    const failures: string[] = [];
    for (const one of all) {
      now = Date.parse(one.at);
      // The tokens that follow name the objects by the uids that they were given then.
      uid = readText(readRecord(readRecord(one.response.body)['metadata'])['uid']);
      prepare(one);
      const actual = await ask(one);
      try {
        assert.deepEqual(normalize(cut(actual)), normalize(cut(expected(one))));
        compareToken(actual.body, one.response.body);
      } catch (error) {
        failures.push(`#${one.n} ${one.name}: ${error instanceof Error ? error.message : String(error)}`);
      }
    }
    assert.deepEqual(failures, []);
  }

  it('answers the same', async () => {
    assert.equal(cases.length, 304);
    now = Date.parse('2026-11-23T00:19:10Z');
    for (const name of ['default', 'kube-node-lease', 'kube-public', 'kube-system']) createNamespace(name);
    const prepare = ({ n, name }: Case): void => {
      // From here on the storage did not answer.
      if (name === 'etcd-frozen-rv-cached') faults.add('etcd-outage', { delayMs: 0 });
      // The request that deleted what the next ones create was kept aside.
      if (n === 771) for (const kind of ['FlowSchema', 'PriorityLevelConfiguration']) cluster.objects.remove(kind, 'zero');
    };
    await replay(cases, prepare);
  });

  it('says the same of what it consists of, as far as it goes, and shows the same tables', async () => {
    const discovery = readCases('discovery.jsonl');
    assert.equal(discovery.length, 26);
    cluster.objects.remove('Pod', 'api-0', 'api');
    now = Date.parse('2026-11-23T00:53:23Z');
    const { metadata, ...orders } = createNamespace('orders');
    const deletionTimestamp = formatTime(now);
    cluster.objects.replace({ ...orders, metadata: { ...metadata, deletionTimestamp }, status: { phase: 'Terminating' } });
    await replay(
      discovery,
      () => undefined,
      ({ body, ...rest }) => ({ ...rest, body: cutToKept(body) }),
    );
  });

  function createNamespace(name: string): ClusterObject {
    return cluster.objects.create({ kind: 'Namespace', apiVersion: 'v1', metadata: { name }, status: { phase: 'Active' } });
  }
});

// The answers that list groups and paths were cut to these when they were recorded, and to some that the authority does not have.
const recordedGroups = new Set(['', 'apps', 'authentication.k8s.io', 'authorization.k8s.io', 'rbac.authorization.k8s.io']);
const recordedPaths = ['api/v1', 'apis/apps/v1', 'apis/rbac.authorization.k8s.io/v1'];

/** Of a discovery, what is about the kinds that the authority keeps, in the groups that were recorded. */
function cutToKept(body: unknown): unknown {
  if (!isRecord(body)) return body;
  if (body['kind'] === 'Table') return cutTable(body);
  if (isRecord(body['paths'])) return recordedPaths.map((path) => [path, Object.hasOwn(readRecord(body['paths']), path)]);
  const [version = '', groupOfList = ''] = readText(body['groupVersion']).split('/').toReversed();
  const resources = readList(body['resources']).filter(
    ({ name }) => version === 'v1' && isServed(groupOfList, ...splitPath(readText(name))),
  );
  const groups = readList(body['groups']).filter(({ name }) => recordedGroups.has(readText(name)));
  const items = readList(body['items']).filter(({ metadata }) => recordedGroups.has(readText(readRecord(metadata)['name'])));
  return {
    ...body,
    ...(body['resources'] === undefined ? {} : { resources }),
    ...(body['groups'] === undefined ? {} : { groups }),
    ...(body['items'] === undefined ? {} : { items: items.map(cutGroup) }),
  };
}

// The authority describes few columns, and the objects of that cluster had lived on between the recordings.
function cutTable({ kind, apiVersion, columnDefinitions, rows }: JsonRecord): JsonRecord {
  const columns = readList(columnDefinitions).map(({ name, type, format, priority }) => ({ name, type, format, priority }));
  const shown = readList(rows).map(({ cells, conditions, object }) => ({
    cells,
    conditions,
    name: readRecord(readRecord(object)['metadata'])['name'],
  }));
  return { kind, apiVersion, columns, shown };
}

function cutGroup({ metadata, versions }: JsonRecord): JsonRecord {
  const group = readText(readRecord(metadata)['name']);
  const cutResource = (one: JsonRecord): JsonRecord => {
    const served = readList(one['subresources']).filter(({ subresource }) =>
      isServed(group, readText(one['resource']), readText(subresource)),
    );
    return Object.fromEntries(
      Object.entries({ ...one, subresources: served }).filter(([key]) => key !== 'subresources' || served.length > 0),
    );
  };
  const cut = readList(versions).map(({ version, freshness, resources }) => ({
    version,
    freshness,
    resources: readList(resources)
      .filter(({ resource }) => isServed(group, readText(resource)))
      .map(cutResource),
  }));
  return { metadata, cut };
}

function splitPath(path: string): readonly [resource: string, subresource?: string] {
  const [resource = '', subresource] = path.split('/');
  return subresource === undefined ? [resource] : [resource, subresource];
}

function isServed(group: string, resource: string, subresource?: string): boolean {
  const kept = resourceKinds.find((one) => one.resource === resource && one.group === group);
  if (kept === undefined) return reviewKinds.some((one) => one.resource === resource && one.group === group);
  return subresource === undefined || kept.subresources?.some(({ name }) => name === subresource) === true;
}

/** The keys that a recorded answer published. */
function publishedBy(n: number): readonly KeyObject[] {
  const { keys = [] } = readRecord(cases.find((one) => one.n === n)?.response.body);
  return readList(keys).map((key) => createPublicKey({ key: { ...key }, format: 'jwk' }));
}

function expected({ response }: Case): Answer {
  const body: unknown = JSON.parse(withTokens(JSON.stringify(response.body)));
  return { ...response, body };
}

/** Bodies of megabytes were recorded as their beginning and their length. */
function restoreLength(body: string): string {
  const [, beginning = '', length] = /^(.*)\.\.\.\[(\d+) bytes\]$/.exec(body) ?? [];
  const end = '","audiences":["secret-store"]}}';
  return length === undefined ? body : `${beginning.padEnd(Number(length) - end.length, 'x')}${end}`;
}

function pickHeaders(headers: NodeJS.Dict<string | string[]>): Readonly<Record<string, string | boolean>> {
  const names = ['content-type', 'cache-control', 'x-content-type-options', 'warning', 'content-encoding', 'vary', 'retry-after'];
  return {
    ...Object.fromEntries(names.flatMap((name) => (headers[name] === undefined ? [] : [[name, String(headers[name])]]))),
    'audit-id': headers['audit-id'] !== undefined,
    flow: headers['x-kubernetes-pf-flowschema-uid'] !== undefined && headers['x-kubernetes-pf-prioritylevel-uid'] !== undefined,
  };
}

function normalize({ status, headers, body }: Answer): unknown {
  const isCompressed = headers['content-encoding'] !== undefined;
  const text = JSON.stringify(isCompressed ? null : normalizeObject(body))
    .replaceAll(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ/g, 'a time')
    .replaceAll(/"status":\{"token":"[^"]+"/g, '"status":{"token":"a token"');
  return { status, headers, body: JSON.parse(text) };
}

/** Of an object that is kept, all but what each creation makes anew, and what only that vendor's server adds. */
function normalizeObject(body: unknown): unknown {
  if (!isRecord(body) || !resourceKinds.some(({ kind }) => kind === body['kind'])) return body;
  const { managedFields: _, resourceVersion: __, uid: ___, ...metadata } = readRecord(body['metadata']);
  const text = JSON.stringify({ ...body, metadata })
    .replaceAll(/kube-api-access-[a-z0-9]{5}/g, 'kube-api-access')
    .replaceAll(/,\{"configMap":\{"name":"openshift-service-ca.crt".*?\]\}\}/g, '');
  return JSON.parse(text);
}

/** A token that was issued has the claims of the recorded one; times are compared by their distance to `iat`. */
function compareToken(actual: unknown, recorded: unknown): void {
  const of = (body: unknown): string | undefined => (body as { status?: { token?: string } } | null)?.status?.token;
  const token = of(recorded);
  if (token === undefined) return;
  const describeToken = (raw: string): unknown => {
    const parsed = parseToken(raw);
    const { iat, exp, nbf, jti, 'kubernetes.io': bound, ...rest } = parsed?.claims ?? {};
    const { warnafter, ...names } = bound as { readonly warnafter?: number };
    const { kid, ...header } = parsed?.header ?? {};
    return {
      header,
      kid: typeof kid,
      ...rest,
      bound: names,
      jti: typeof jti,
      order: Object.keys(parsed?.claims ?? {}),
      life: [exp, nbf, warnafter].map((time) => (time === undefined ? undefined : Number(time) - Number(iat))),
    };
  };
  assert.deepEqual(describeToken(of(actual) ?? ''), describeToken(withTokens(token)));
}
