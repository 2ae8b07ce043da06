// What one cluster is made of: its names, clock, keys and objects. All that answers a request works on this.
import { createObjects } from './objects.ts';
import type { Objects } from './objects.ts';
import { bootstrapRoles } from './rbac.ts';
import type { UserInfo } from './rbac.ts';
import type { SigningKeys } from './signing.ts';

/** One cluster's state. */
export interface Cluster {
  /** The first issues tokens; those of the others are accepted too. */
  readonly issuers: readonly string[];
  /** The audiences of the API server itself, which a token gets where none is named. */
  readonly apiAudiences: readonly string[];
  /** Whether who shows no credentials is `system:anonymous`: everywhere, nowhere, or at these paths alone. */
  readonly anonymous: boolean | readonly string[];
  /** The longest life of a token in seconds; `undefined` where there is no limit. */
  readonly maxTokenExpirationSeconds: number | undefined;
  /** The cluster's time in milliseconds. */
  readonly now: () => number;
  readonly keys: SigningKeys;
  readonly objects: Objects;
  /** Bearer tokens that are no JWTs, as in a static token file. */
  readonly staticTokens: ReadonlyMap<string, UserInfo>;
}

/** What a cluster is made of at its start. */
export interface ClusterOptions {
  readonly keys: SigningKeys;
  readonly now: () => number;
  readonly staticTokens: ReadonlyMap<string, UserInfo>;
  /** Default: `https://kubernetes.default.svc.cluster.local`. */
  readonly issuers?: readonly string[];
  /** Default: the issuers. */
  readonly apiAudiences?: readonly string[];
  /** Default: everywhere. */
  readonly anonymous?: boolean | readonly string[];
  /** Default: no limit. */
  readonly maxTokenExpirationSeconds?: number | undefined;
  /** Gives the uids of new objects. Default: random. */
  readonly createUid?: () => string;
}

const clusterIssuer = 'https://kubernetes.default.svc.cluster.local';

/** Makes a cluster that has only what a first start creates. */
export function createCluster({
  keys,
  now,
  staticTokens,
  issuers = [clusterIssuer],
  apiAudiences = issuers,
  anonymous = true,
  maxTokenExpirationSeconds,
  createUid,
}: ClusterOptions): Cluster {
  const objects = createObjects(now, createUid);
  for (const object of bootstrapRoles) objects.create(object);
  return { issuers, apiAudiences, anonymous, maxTokenExpirationSeconds, now, keys, objects, staticTokens };
}

/** Creates a namespace that does not exist, and the ServiceAccount that each namespace has. */
export function ensureNamespace({ objects }: Cluster, name: string): void {
  if (objects.find('Namespace', name) === undefined) {
    objects.create({
      kind: 'Namespace',
      apiVersion: 'v1',
      metadata: { name, labels: { 'kubernetes.io/metadata.name': name } },
      spec: { finalizers: ['kubernetes'] },
      status: { phase: 'Active' },
    });
  }
  ensureServiceAccount({ objects }, name, 'default');
}

/** Creates a ServiceAccount that does not exist, in a namespace that does. */
export function ensureServiceAccount({ objects }: Pick<Cluster, 'objects'>, namespace: string, name: string): void {
  if (objects.find('ServiceAccount', name, namespace) !== undefined) return;
  objects.create({ kind: 'ServiceAccount', apiVersion: 'v1', metadata: { name, namespace } });
}
