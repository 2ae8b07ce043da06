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
import { aName, checkValue, milliseconds, oneOf, readOptions } from './checks.ts';
import { createCluster, ensureNamespace, ensureServiceAccount } from './cluster.ts';
import type { ClusterOptions } from './cluster.ts';
import { createControl } from './control.ts';
import type { Control } from './control.ts';
import { onExit } from './exit.ts';
import { checkFault, createFaults } from './faults.ts';
import type { Fault, FaultOptions } from './faults.ts';
import { createKubelet } from './kubelet.ts';
import { formatKubeconfig } from './kubeconfig.ts';
import { createListener } from './listener.ts';
import { readManifests } from './manifests.ts';
import { formatTime } from './objects.ts';
import type { ClusterObject } from './objects.ts';
import { authorityOptions, deleteOptions, podOptions, rotationOptions, tokenOptions, userOptions } from './options.ts';
import type { AuthorityOptions, DeleteOptions, PodOptions, RotationOptions, TokenOptions, UserOptions } from './options.ts';
import { createPodObject, ensurePodObject, generateName, podSpec, startPod } from './pods.ts';
import type { Pod } from './pods.ts';
import { createProcesses } from './processes.ts';
import type { RunOptions } from './processes.ts';
import { createSigningKeys, generateSigningKey } from './signing.ts';
import { issueToken } from './token-request.ts';
import { createWorkloads } from './workloads.ts';

/** Who shows a client certificate that the cluster's CA has signed. */
export interface User {
  /** The certificate, in PEM. */
  readonly certificate: string;
  /** Its private key, in PEM. */
  readonly key: string;
  /** A kubeconfig with both; `close()` removes it. */
  readonly kubeconfig: string;
}

/**
 * The identity plane of one cluster. ServiceAccounts are named `namespace/name`; what is named and missing is created. An option that is not
 * known, or is of a wrong type, is a `TypeError`.
 */
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
const deletable = oneOf('namespace', 'serviceaccount', 'pod');

/** Starts an authority. Rejects where an option makes no sense, the port is taken or a manifest cannot be applied. */
export async function createAuthority(options: AuthorityOptions = {}): Promise<Authority> {
  const { manifests, port = 0, ...settings } = readOptions('createAuthority()', options, authorityOptions);
  const signingKey = generateSigningKey();
  let offsetMs = 0;
  let certificates = issueCertificates();
  const now = (): number => Date.now() + offsetMs;
  const adminToken = randomBytes(24).toString('base64url');
  const administrator = { username: 'kubernetes-admin', uid: 'kubernetes-admin', groups: ['system:masters'] };
  const staticTokens = new Map([[adminToken, administrator]]);
  const cluster = createCluster({ keys: createSigningKeys(await signingKey), now, staticTokens, ...readSettings(settings) });
  for (const name of ['default', 'kube-system', 'kube-public', 'kube-node-lease']) ensureNamespace(cluster, name);

  const directory = mkdtempSync(join(tmpdir(), 'k8s-authority-'));
  const caFile = join(directory, 'ca.crt');
  const kubeconfig = join(directory, 'kubeconfig');
  const faults = createFaults();
  const log = createCallLog();
  const processes = createProcesses();
  // A process that is still writing may be in the way for a moment.
  const removeFiles = (): void => rmSync(directory, { recursive: true, force: true, maxRetries: 3 });
  const forgetExit = onExit(() => {
    processes.killAll();
    removeFiles();
  });
  const remove = (): void => {
    forgetExit();
    removeFiles();
  };
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
    remove();
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
    async token(serviceAccount, asked) {
      const { audience, expirationSeconds = 600, pod } = readOptions('token()', asked, tokenOptions);
      const [namespace, name] = parseName(serviceAccount);
      ensureNamespace(cluster, namespace);
      ensureServiceAccount(cluster, namespace, name);
      if (pod !== undefined) ensurePodObject(cluster, namespace, name, pod);
      const bound = pod === undefined ? {} : { boundObjectRef: { kind: 'Pod', apiVersion: 'v1', name: pod } };
      const audiences = typeof audience === 'string' ? [audience] : audience;
      return issueToken(cluster, { namespace, serviceAccount: name, audiences, expirationSeconds, ...bound }).token;
    },
    async pod(serviceAccount, asked = {}) {
      const { tokens = {}, reviews = true } = readOptions('pod()', asked, podOptions);
      const [namespace, name] = parseName(serviceAccount);
      ensureNamespace(cluster, namespace);
      ensureServiceAccount(cluster, namespace, name);
      if (reviews) bindReviewer(namespace, name);
      return start(createPodObject(cluster, namespace, generateName(name), { spec: podSpec(name, tokens) }));
    },
    async user(name, asked = {}) {
      const { groups = [], expiresAt } = readOptions('user()', asked, userOptions);
      if (!aName.accepts(name)) throw new TypeError('a user needs a name');
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
    run(pod, command, args = [], asked = {}) {
      if (!pods.includes(pod)) throw new Error(`pod ${pod.name} does not run`);
      return processes.run(pod, command, args, asked);
    },
    async delete(kind, name, asked = {}) {
      checkValue('kind', kind, deletable);
      const { gracePeriodSeconds = 0 } = readOptions('delete()', asked, deleteOptions);
      if (kind !== 'pod' && gracePeriodSeconds > 0) throw new TypeError(`a ${kind} gets no grace period, only a pod does`);
      if (kind === 'namespace') {
        for (const { metadata, ...object } of cluster.objects.remove('Namespace', name)) {
          if (object.kind === 'Pod') forgetPod(metadata.uid);
        }
        return;
      }
      const [namespace, inner] = parseName(name);
      if (gracePeriodSeconds > 0) {
        workloads.replace(terminatePod(namespace, inner, gracePeriodSeconds));
        return;
      }
      const removed = cluster.objects.remove(kind === 'pod' ? 'Pod' : 'ServiceAccount', inner, namespace);
      for (const object of removed) workloads.deleted(object);
    },
    fail(fault, asked = {}) {
      checkFault('fail()', fault, asked);
      if (fault !== 'outage') return faults.add(fault, asked);
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
    rotateSigningKey(asked = {}) {
      const { retire = false, algorithm = 'RS256' } = readOptions('rotateSigningKey()', asked, rotationOptions);
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
      checkValue('ms', ms, milliseconds);
      offsetMs += ms;
      kubelet.rotateDue();
    },
    now: () => new Date(now()),
    async close() {
      closing.abort();
      kubelet.close();
      listener.close();
      await processes.stopAll(endWithinMs);
      remove();
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

function readSettings({ issuer, ...others }: Omit<AuthorityOptions, 'manifests' | 'port'>): Settings {
  return issuer === undefined ? others : { ...others, issuers: [issuer].flat() };
}

function parseName(name: string): readonly [namespace: string, name: string] {
  const [namespace, inner, ...rest] = name.split('/');
  if (namespace === undefined || namespace === '' || inner === undefined || inner === '' || rest.length > 0) {
    throw new TypeError(`"${name}" must be written namespace/name`);
  }
  return [namespace, inner];
}
