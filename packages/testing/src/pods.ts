// The only place that makes pods: from a ServiceAccount's name, a Pod's or a Deployment's manifest; and what a test sees of one.
import { randomBytes } from 'node:crypto';
import { basename, join } from 'node:path';
import { admit } from './admission.ts';
import { ensureNamespace, ensureServiceAccount } from './cluster.ts';
import type { Cluster } from './cluster.ts';
import { readRecord } from './json.ts';
import { apiAccessPath, readSpec } from './kubelet.ts';
import type { Kubelet, Mounts, PodSpec } from './kubelet.ts';
import { formatTime } from './objects.ts';
import type { ClusterObject } from './objects.ts';
import { kindOf } from './resources.ts';

/** A pod that the authority's kubelet has started: its identity and its files. The process in it is the test's. */
export interface Pod {
  readonly name: string;
  readonly namespace: string;
  /** The pod's ServiceAccount, as `namespace/name`. */
  readonly serviceAccount: string;
  readonly uid: string;
  /** Where the API server is, and with which files the pod talks to it. */
  readonly apiServer: { readonly url: string; readonly caFile: string; readonly tokenFile: string };
  /** What a child process needs in its environment to be this pod: `KUBERNETES_SERVICE_HOST`, `KUBERNETES_SERVICE_PORT`,
   * `K8S_SA_AUTH_ROOT`, and what the container's `env` says. */
  readonly env: Readonly<Record<string, string>>;
  /**
   * The path of a projected token, by the file's name or by the path that the pod knows it under.
   * Throws an `Error` that lists the files where there is none, or more than one.
   */
  tokenFile(name: string): string;
  /** Replaces all of the pod's tokens now, as the kubelet does in time. The old ones stay valid until they expire. */
  rotate(): Promise<void>;
}

const podKind = kindOf('Pod');

/** Where the API server is. */
export interface Address {
  readonly url: string;
  readonly host: string;
  readonly port: number;
}

/** Creates the Pod object as the API does, and puts it on the cluster's one node. Throws a {@link StatusError}. */
export function createPodObject(
  cluster: Cluster,
  namespace: string,
  name: string,
  { labels, spec }: { readonly labels?: object | undefined; readonly spec: PodSpec },
): ClusterObject {
  const metadata = { name, ...(labels === undefined ? {} : { labels }) };
  return schedulePod(cluster, cluster.objects.create(admit(cluster, podKind, namespace, { metadata, spec })));
}

/** Puts a pod on the cluster's one node, where it runs at once. */
export function schedulePod({ objects, now }: Cluster, pod: ClusterObject): ClusterObject {
  const nodeName = readSpec(pod).nodeName ?? 'node-1';
  if (objects.find('Node', nodeName) === undefined) objects.create({ kind: 'Node', apiVersion: 'v1', metadata: { name: nodeName } });
  const startTime = formatTime(now());
  const conditions = ['PodScheduled', 'Initialized', 'ContainersReady', 'Ready'].map((type) => ({
    type,
    status: 'True',
    lastTransitionTime: startTime,
  }));
  const address = { hostIP: '127.0.0.1', podIP: '127.0.0.1', podIPs: [{ ip: '127.0.0.1' }] };
  const status = { ...readRecord(pod['status']), phase: 'Running', conditions, ...address, startTime };
  return objects.replace({ ...pod, spec: { ...readSpec(pod), nodeName }, status });
}

/** The spec of a pod that has one projected volume, with these tokens, under /var/run/secrets/tokens. */
export function podSpec(serviceAccountName: string, tokens: Readonly<Record<string, string>>): PodSpec {
  const sources = Object.entries(tokens).map(([path, audience]) => ({ serviceAccountToken: { audience, expirationSeconds: 3600, path } }));
  const volumeMounts = sources.length === 0 ? [] : [{ name: 'tokens', mountPath: '/var/run/secrets/tokens' }];
  return {
    serviceAccountName,
    containers: [{ name: 'main', image: 'none', volumeMounts }],
    volumes: sources.length === 0 ? [] : [{ name: 'tokens', projected: { sources } }],
  };
}

/** Creates a pod without volumes for a token to be bound to, unless it exists; and what it needs. */
export function ensurePodObject(cluster: Cluster, namespace: string, serviceAccount: string, name: string): void {
  ensureNamespace(cluster, namespace);
  ensureServiceAccount(cluster, namespace, serviceAccount);
  if (cluster.objects.find('Pod', name, namespace) !== undefined) return;
  createPodObject(cluster, namespace, name, { spec: { ...podSpec(serviceAccount, {}), automountServiceAccountToken: false } });
}

/** A pod's name as a Deployment's ReplicaSet gives it. */
export function generateName(prefix: string): string {
  return `${prefix}-${randomBytes(5).toString('hex')}-${randomBytes(3).toString('hex').slice(1)}`;
}

/** Mounts the pod's volumes, and describes the pod as a test sees it. */
export function startPod(kubelet: Kubelet, object: ClusterObject, { url, host, port }: Address): Pod {
  const mounts = kubelet.mount(object);
  const { name, namespace = 'default', uid } = object.metadata;
  const at = (file: string): string => join(mounts.root, apiAccessPath, file);
  return {
    name,
    namespace,
    serviceAccount: `${namespace}/${readSpec(object).serviceAccountName ?? 'default'}`,
    uid,
    apiServer: { url, caFile: at('ca.crt'), tokenFile: at('token') },
    env: { ...mounts.env, KUBERNETES_SERVICE_HOST: host, KUBERNETES_SERVICE_PORT: String(port), K8S_SA_AUTH_ROOT: mounts.root },
    tokenFile: (file) => findToken(name, mounts, file),
    async rotate() {
      mounts.rotate();
    },
  };
}

function findToken(pod: string, { tokens }: Mounts, name: string): string {
  const fitting = tokens.filter(({ path }) => path === name || basename(path) === name);
  // Every pod has an API token called `token`; one of the same name that the pod was given is what is meant.
  const own = fitting.filter(({ path }) => !path.startsWith(`${apiAccessPath}/`));
  const [found, ...others] = own.length > 0 ? own : fitting;
  if (found !== undefined && others.length === 0) return found.file;
  const listed = tokens.length === 0 ? 'it has none' : `it has ${tokens.map(({ path }) => path).join(', ')}`;
  throw new Error(`pod ${pod} has ${found === undefined ? 'no token file' : 'more than one token file'} "${name}": ${listed}`);
}
