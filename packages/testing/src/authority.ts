// Puts the authority together: one cluster, its API behind a socket, its kubelet, and the handles by which a test moves them.
import type { ChildProcess } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { setMaxListeners } from 'node:events';
import { mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createApi } from './api.ts';
import { createCallLog } from './calls.ts';
import type { Call } from './calls.ts';
import { issueCertificates } from './certificates.ts';
import { createCluster, ensureNamespace, ensureServiceAccount } from './cluster.ts';
import type { ClusterOptions } from './cluster.ts';
import { createControl } from './control.ts';
import type { Control } from './control.ts';
import { checkFault, createFaults } from './faults.ts';
import type { Fault, FaultOptions } from './faults.ts';
import { createKubelet } from './kubelet.ts';
import { formatKubeconfig } from './kubeconfig.ts';
import { createListener } from './listener.ts';
import { readManifests } from './manifests.ts';
import { formatTime } from './objects.ts';
import type { ClusterObject } from './objects.ts';
import { createPodObject, ensurePodObject, generateName, podSpec, startPod } from './pods.ts';
import type { Pod } from './pods.ts';
import { createProcesses } from './processes.ts';
import type { RunOptions } from './processes.ts';
import { createSigningKeys, generateSigningKey } from './signing.ts';
import type { SigningAlgorithm } from './signing.ts';
import { issueToken } from './token-request.ts';
import { createWorkloads } from './workloads.ts';

/** Options of {@link createAuthority}. */
export interface AuthorityOptions {
  /** Manifests to apply at the start: paths of YAML files or of folders of them, which may hold `*`. Default: none. */
  readonly manifests?: string | readonly string[];
  /** The port on 127.0.0.1. Default 0: any that is free. */
  readonly port?: number;
  /** Who issues the tokens; of several the first does, and those of all are accepted. Default `https://kubernetes.default.svc.cluster.local`. */
  readonly issuer?: string | readonly string[];
  /** The audiences of the API server itself. Default: the issuers. */
  readonly apiAudiences?: readonly string[];
  /** Whether requests without credentials are let in as `system:anonymous`: everywhere, nowhere, or at these paths alone. Default true. */
  readonly anonymous?: boolean | readonly string[];
  /** The longest life of a token in seconds, an hour at least; one that is asked for longer is shortened. Default: no limit. */
  readonly maxTokenExpirationSeconds?: number;
}

/** Options of {@link Authority.token}. */
export interface TokenOptions {
  /** Whom the token is for. */
  readonly audience: string | readonly string[];
  /** Seconds, at least 600, as on a real API server. Default 600. */
  readonly expirationSeconds?: number;
  /** The name of the pod that the token is bound to. Default: bound to none. */
  readonly pod?: string;
}

/** Options of {@link Authority.pod}. */
export interface PodOptions {
  /** Projected tokens in `/var/run/secrets/tokens`: the file's name, and the audience. They live for an hour. Default: none. */
  readonly tokens?: Readonly<Record<string, string>>;
  /** Whether a ClusterRoleBinding to `system:auth-delegator` lets it review tokens. Default true. */
  readonly reviews?: boolean;
}

/** Options of {@link Authority.user}. */
export interface UserOptions {
  /** The groups of the user beside `system:authenticated`. Default: none. */
  readonly groups?: readonly string[];
  /** When the certificate ends. Default: in the year 2120. */
  readonly expiresAt?: Date;
}

/** Who shows a client certificate that the cluster's CA has signed. */
export interface User {
  /** The certificate, in PEM. */
  readonly certificate: string;
  /** Its private key, in PEM. */
  readonly key: string;
  /** A kubeconfig with both; `close()` removes it. */
  readonly kubeconfig: string;
}

/** Options of {@link Authority.rotateSigningKey}. */
export interface RotationOptions {
  /** Whether the keys so far are forgotten. Default false: they stay published and accepted. */
  readonly retire?: boolean;
  /** What the new key signs with. Default `'RS256'`, with 2048 bits. */
  readonly algorithm?: SigningAlgorithm;
}

/** Options of {@link Authority.delete}. */
export interface DeleteOptions {
  /** Seconds that a pod has left to end; it stays as a terminating object after them. Default 0: it is gone at once. Pods only. */
  readonly gracePeriodSeconds?: number;
}

/** The identity plane of one cluster. ServiceAccounts are named `namespace/name`; what is named and missing is created. */
export interface Authority extends AsyncDisposable {
  /** Where it listens, `https://127.0.0.1:<port>`. */
  readonly url: string;
  /** The CA that signed its certificate, in PEM; `close()` removes it. */
  readonly caFile: string;
  /** A kubeconfig of a cluster administrator; `close()` removes it. */
  readonly kubeconfig: string;
  /** The requests that were answered, oldest first, at most the last 10 000; never a token. */
  readonly calls: readonly Call[];
  /** How many requests were answered since the start that had all of these. */
  count(like?: Partial<Call>): number;
  /** The pods that were started, oldest first, until they are deleted. */
  readonly pods: readonly Pod[];
  /** Issues a token. Rejects with the words of a real API server where that would refuse. */
  token(serviceAccount: string, options: TokenOptions): Promise<string>;
  /** Starts a pod: its identity, and its files as the kubelet writes them. */
  pod(serviceAccount: string, options?: PodOptions): Promise<Pod>;
  /** Makes a client certificate for a user, such as `jane`, or `system:node:node-1` of the group `system:nodes`. */
  user(name: string, options?: UserOptions): Promise<User>;
  /**
   * Applies manifests: paths of YAML files or of folders of them, which may hold `*`. A Deployment or a Pod becomes one pod; those are returned.
   * Rejects with an `Error` that names the file and the document.
   */
  apply(manifests: string | readonly string[]): Promise<readonly Pod[]>;
  /**
   * Starts a process in a pod: with the pod's environment, and of this process's only PATH. It ends with the pod, and with the authority.
   */
  run(pod: Pod, command: string, args?: readonly string[], options?: RunOptions): ChildProcess;
  /**
   * Deletes an object at once, as `kubectl delete --force` does; of a namespaced kind the name is `namespace/name`. A Deployment gets
   * another pod, which is the last of `pods`, and a namespace another `default` ServiceAccount. Rejects where there is none.
   */
  delete(kind: 'namespace' | 'serviceaccount' | 'pod', name: string, options?: DeleteOptions): Promise<void>;
  /**
   * Lets a fault strike until it is disposed of, has struck `times` requests, or `recover()`. Of several the one that was set last
   * strikes. `outage` is in effect when this returns. Throws a `TypeError` on a fault or an option that does not exist.
   */
  fail(fault: Fault, options?: FaultOptions): Disposable;
  /** Ends all faults; resolves when the authority listens. */
  recover(): Promise<void>;
  /** Signs with a new key from now on. Throws a `TypeError` on an algorithm that it does not know. */
  rotateSigningKey(options?: RotationOptions): void;
  /** Serves with a certificate of a new CA, and writes that CA where it is read. Connections that stand are kept. */
  rotateCa(): void;
  /** Moves the authority's clock, in milliseconds, and rotates the tokens that are due. */
  advance(ms: number): void;
  /** The time on the authority's clock: `Date`'s, moved by `advance()`. */
  now(): Date;
  /** Stops listening, cuts connections, and removes every file. Can be called again. */
  close(): Promise<void>;
}

const endWithinMs = 5000;

/** Starts an authority. Rejects where an option makes no sense, the port is taken or a manifest cannot be applied. */
export async function createAuthority({ manifests, port = 0, ...others }: AuthorityOptions = {}): Promise<Authority> {
  const settings = readSettings(others);
  const signingKey = generateSigningKey();
  let offsetMs = 0;
  let certificates = issueCertificates();
  const now = (): number => Date.now() + offsetMs;
  const adminToken = randomBytes(24).toString('base64url');
  const administrator = { username: 'kubernetes-admin', uid: 'kubernetes-admin', groups: ['system:masters'] };
  const staticTokens = new Map([[adminToken, administrator]]);
  const cluster = createCluster({ keys: createSigningKeys(await signingKey), now, staticTokens, ...settings });
  for (const name of ['default', 'kube-system', 'kube-public', 'kube-node-lease']) ensureNamespace(cluster, name);

  const directory = mkdtempSync(join(tmpdir(), 'k8s-authority-'));
  const caFile = join(directory, 'ca.crt');
  const kubeconfig = join(directory, 'kubeconfig');
  const faults = createFaults();
  const log = createCallLog();
  const processes = createProcesses();
  const closing = new AbortController();
  // Each request that is slow listens to it.
  setMaxListeners(0, closing.signal);
  const outages = new Set<symbol>();
  let pods: readonly Pod[] = [];
  let url = '';
  const runner = { start: (object: ClusterObject) => start(object), end: endPod, stop: removePod, forget: forgetPod };
  const workloads = createWorkloads(cluster, runner, () => certificates.ca);
  const control: Control = (method, path, body) => answerControl(method, path, body);
  const api = createApi({ cluster, faults, log, url: () => url, signal: closing.signal, controllers: workloads, control });
  const listener = await createListener(port, certificates, api).catch((error: unknown) => {
    rmSync(directory, { recursive: true });
    throw error;
  });
  url = `https://127.0.0.1:${listener.port}`;
  const address = { url, host: '127.0.0.1', port: listener.port };
  const kubelet = createKubelet(cluster, directory, () => certificates.ca);
  writeFileSync(caFile, certificates.ca);
  writeFileSync(kubeconfig, formatKubeconfig(url, caFile, 'kubernetes-admin', { token: adminToken }), { mode: 0o600 });

  const start = (object: Parameters<typeof startPod>[1]): Pod => {
    const pod = startPod(kubelet, object, address);
    pods = [...pods, pod];
    return pod;
  };

  const authority: Authority = {
    url,
    caFile,
    kubeconfig,
    calls: log.calls,
    count: (like) => log.count(like),
    get pods() {
      return pods;
    },
    async token(serviceAccount, { audience, expirationSeconds = 600, pod }) {
      const [namespace, name] = parseName(serviceAccount);
      ensureNamespace(cluster, namespace);
      ensureServiceAccount(cluster, namespace, name);
      if (pod !== undefined) ensurePodObject(cluster, namespace, name, pod);
      const bound = pod === undefined ? {} : { boundObjectRef: { kind: 'Pod', apiVersion: 'v1', name: pod } };
      const audiences = typeof audience === 'string' ? [audience] : audience;
      return issueToken(cluster, { namespace, serviceAccount: name, audiences, expirationSeconds, ...bound }).token;
    },
    async pod(serviceAccount, { tokens = {}, reviews = true } = {}) {
      const [namespace, name] = parseName(serviceAccount);
      ensureNamespace(cluster, namespace);
      ensureServiceAccount(cluster, namespace, name);
      if (reviews) bindReviewer(namespace, name);
      return start(createPodObject(cluster, namespace, generateName(name), { spec: podSpec(name, tokens) }));
    },
    async user(name, { groups = [], expiresAt } = {}) {
      if (name === '') throw new TypeError('a user needs a name');
      const { certificate, key } = certificates.issueClient({ commonName: name, organizations: groups }, expiresAt);
      const file = join(mkdtempSync(join(directory, 'user-')), 'kubeconfig');
      const encode = (text: string): string => Buffer.from(text).toString('base64');
      const credentials = { 'client-certificate-data': encode(certificate), 'client-key-data': encode(key) };
      writeFileSync(file, formatKubeconfig(url, caFile, name, credentials), { mode: 0o600 });
      return { certificate, key, kubeconfig: file };
    },
    async apply(paths) {
      return workloads.apply(readManifests(paths));
    },
    run(pod, command, args = [], options = {}) {
      if (!pods.includes(pod)) throw new Error(`pod ${pod.name} does not run`);
      return processes.run(pod, command, args, options);
    },
    async delete(kind, name, { gracePeriodSeconds = 0 } = {}) {
      if (kind === 'namespace') {
        for (const { metadata, ...object } of cluster.objects.remove('Namespace', name)) {
          if (object.kind === 'Pod') forgetPod(metadata.uid);
        }
        return;
      }
      const [namespace, inner] = parseName(name);
      if (kind === 'pod' && gracePeriodSeconds > 0) {
        workloads.replace(terminatePod(namespace, inner, gracePeriodSeconds));
        return;
      }
      const removed = cluster.objects.remove(kind === 'pod' ? 'Pod' : 'ServiceAccount', inner, namespace);
      for (const object of removed) workloads.deleted(object);
    },
    fail(fault, options = {}) {
      checkFault(fault, options);
      if (fault !== 'outage') return faults.add(fault, options);
      const outage = Symbol('outage');
      outages.add(outage);
      listener.stop();
      return {
        [Symbol.dispose]() {
          // Where the port is taken meanwhile, recover() says so.
          if (outages.delete(outage) && outages.size === 0) listener.start().catch(() => undefined);
        },
      };
    },
    async recover() {
      faults.clear();
      outages.clear();
      await listener.start();
    },
    rotateSigningKey({ retire = false, algorithm = 'RS256' } = {}) {
      if (algorithm !== 'RS256' && algorithm !== 'ES256')
        throw new TypeError(`"algorithm" must be RS256 or ES256, not ${String(algorithm)}`);
      cluster.keys.rotate({ retire, algorithm });
    },
    rotateCa() {
      certificates = issueCertificates();
      listener.setCertificates(certificates);
      writeFileSync(`${caFile}.new`, certificates.ca);
      renameSync(`${caFile}.new`, caFile);
      kubelet.publishCa();
    },
    advance(ms) {
      offsetMs += ms;
      kubelet.rotateDue();
    },
    now: () => new Date(now()),
    async close() {
      closing.abort();
      kubelet.close();
      listener.close();
      await processes.stopAll(endWithinMs);
      rmSync(directory, { recursive: true, force: true });
    },
    [Symbol.asyncDispose]: () => authority.close(),
  };

  const answerControl = createControl(authority, log);

  function bindReviewer(namespace: string, name: string): void {
    const binding = `${namespace}:${name}:auth-delegator`;
    if (cluster.objects.find('ClusterRoleBinding', binding) !== undefined) return;
    cluster.objects.create({
      kind: 'ClusterRoleBinding',
      apiVersion: 'rbac.authorization.k8s.io/v1',
      metadata: { name: binding },
      roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'ClusterRole', name: 'system:auth-delegator' },
      subjects: [{ kind: 'ServiceAccount', namespace, name }],
    });
  }

  function removePod(namespace: string, name: string): void {
    for (const { metadata } of cluster.objects.remove('Pod', name, namespace)) forgetPod(metadata.uid);
  }

  function terminatePod(namespace: string, name: string, seconds: number): ClusterObject {
    const { metadata, ...pod } = cluster.objects.get('Pod', name, namespace);
    const deletionTimestamp = formatTime(now() + seconds * 1000);
    return cluster.objects.replace({ ...pod, metadata: { ...metadata, deletionTimestamp, deletionGracePeriodSeconds: seconds } });
  }

  async function endPod({ metadata: { name, namespace = 'default', uid } }: ClusterObject, graceMs: number): Promise<void> {
    await processes.stop(uid, graceMs);
    if (cluster.objects.find('Pod', name, namespace)?.metadata.uid === uid) removePod(namespace, name);
  }

  function forgetPod(uid: string): void {
    void processes.stop(uid, 0);
    kubelet.unmount(uid);
    pods = pods.filter((pod) => pod.uid !== uid);
  }

  if (manifests !== undefined) {
    await authority.apply(manifests).catch(async (error: unknown) => {
      await authority.close();
      throw error;
    });
  }
  return authority;
}

type Settings = Pick<ClusterOptions, 'issuers' | 'apiAudiences' | 'anonymous' | 'maxTokenExpirationSeconds'>;

function readSettings({ issuer, apiAudiences, anonymous = true, maxTokenExpirationSeconds }: AuthorityOptions): Settings {
  const isListOfTexts = (list: unknown): boolean =>
    Array.isArray(list) && list.length > 0 && list.every((one) => typeof one === 'string' && one !== '');
  const issuers = issuer === undefined ? undefined : [issuer].flat();
  if (issuers !== undefined && !isListOfTexts(issuers)) throw new TypeError('"issuer" must be a name, or a list of at least one');
  if (apiAudiences !== undefined && !isListOfTexts(apiAudiences)) throw new TypeError('"apiAudiences" must be a list of at least one name');
  if (typeof anonymous !== 'boolean' && !isListOfTexts(anonymous))
    throw new TypeError('"anonymous" must be true, false or a list of paths');
  const longest = maxTokenExpirationSeconds;
  if (longest !== undefined && !(Number.isInteger(longest) && longest >= 3600 && longest <= 2 ** 32)) {
    throw new TypeError('"maxTokenExpirationSeconds" must be a whole number from 3600, an hour, to 2 ** 32');
  }
  return {
    ...(issuers === undefined ? {} : { issuers }),
    ...(apiAudiences === undefined ? {} : { apiAudiences }),
    anonymous,
    maxTokenExpirationSeconds,
  };
}

function parseName(name: string): readonly [namespace: string, name: string] {
  const [namespace, inner, ...rest] = name.split('/');
  if (namespace === undefined || namespace === '' || inner === undefined || inner === '' || rest.length > 0) {
    throw new TypeError(`"${name}" must be written namespace/name`);
  }
  return [namespace, inner];
}
