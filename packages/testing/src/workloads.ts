// The only place that plays the controllers: which pods a workload has, what a new namespace holds, and the tokens of Secrets.
import { isDeepStrictEqual } from 'node:util';
import { admit } from './admission.ts';
import { ensureNamespace, ensureServiceAccount } from './cluster.ts';
import type { Cluster } from './cluster.ts';
import { isRecord, readRecord, readText } from './json.ts';
import { readSpec } from './kubelet.ts';
import { readTemplate } from './manifests.ts';
import type { Manifest } from './manifests.ts';
import type { ClusterObject } from './objects.ts';
import { createPodObject, generateName, schedulePod } from './pods.ts';
import type { Pod } from './pods.ts';
import type { Controllers } from './registry.ts';
import { kindOf } from './resources.ts';

/** What starts and stops pods. */
export interface PodRunner {
  start(object: ClusterObject): Pod;
  /** Lets the pod's processes end, for so many milliseconds at most, and then removes its object. */
  end(object: ClusterObject, graceMs: number): Promise<void>;
  /** Ends the pod at once and removes its object. */
  stop(namespace: string, name: string): void;
  /** Forgets a pod whose object is gone. */
  forget(uid: string): void;
}

/** A cluster's controllers, as they follow changes, over the API or by the library, and manifests. */
export interface Workloads extends Controllers {
  /**
   * Applies manifests and returns the pods that were started. Namespaces come first and workloads last, as a cluster arrives at it in
   * the end; applied again, a workload that is as it was keeps its pod. Throws an `Error` that names the file and the document.
   */
  apply(manifests: readonly Manifest[]): readonly Pod[];
  /** Starts another pod for one that goes, where a Deployment wants one, as its ReplicaSet does. */
  replace(pod: ClusterObject): void;
}

interface Running {
  readonly name: string;
  readonly uid: string;
  readonly spec: object;
}

const workloadKinds = new Set(['Deployment', 'Pod']);
const emptyAfterMs = 1000;
const tokenSecret = 'kubernetes.io/service-account-token';
const accountName = 'kubernetes.io/service-account.name';

/** Makes the controllers of one cluster; `ca` gives its CA in PEM. */
export function createWorkloads(cluster: Cluster, runner: PodRunner, ca: () => string): Workloads {
  const { objects } = cluster;
  const running = new Map<string, Running>();

  const workloads: Workloads = {
    apply(manifests) {
      const isNamespace = ({ object: { kind } }: Manifest): boolean => kind === 'Namespace';
      const isWorkload = ({ object: { kind } }: Manifest): boolean => workloadKinds.has(kind);
      const settings = manifests.filter((one) => !isNamespace(one) && !isWorkload(one));
      const at = <Result>({ file, document }: Manifest, act: () => Result): Result => {
        try {
          return act();
        } catch (error) {
          const reason = error instanceof Error ? error.message : String(error);
          throw new Error(`${file}, document ${document}: ${reason}`, { cause: error });
        }
      };
      for (const manifest of [...manifests.filter(isNamespace), ...settings]) at(manifest, () => complete(keep(manifest)));
      return manifests.filter(isWorkload).flatMap((manifest) => at(manifest, () => applyWorkload(manifest)));
    },
    created(object) {
      if (workloadKinds.has(object.kind)) follow(object);
      else complete(object);
    },
    updated(object) {
      if (object.kind === 'Deployment') follow(object);
      else if (object.kind !== 'Pod') complete(object);
    },
    terminating(object) {
      const { name, uid, deletionGracePeriodSeconds } = object.metadata;
      if (object.kind === 'Pod') {
        void runner.end(object, Number(deletionGracePeriodSeconds ?? 0) * 1000);
        workloads.replace(object);
      }
      // Long enough for `kubectl delete -f` to delete by name what is in it; a real one takes longer.
      else setTimeout(() => empty(name, uid), emptyAfterMs).unref();
    },
    deleted(object) {
      const { kind, metadata } = object;
      const { name, namespace = 'default', uid } = metadata;
      if (kind === 'Pod') {
        runner.forget(uid);
        workloads.replace(object);
      }
      if (kind === 'Deployment') {
        const last = running.get(`${namespace}/Deployment/${name}`);
        if (last !== undefined && isRunning(last, namespace)) runner.stop(namespace, last.name);
      }
      if (kind !== 'ServiceAccount') return;
      if (name === 'default' && isActive(namespace)) ensureServiceAccount(cluster, namespace, name);
      for (const secret of objects.list('Secret', namespace)) {
        if (secret['type'] === tokenSecret && accountOf(secret) === name) objects.remove('Secret', secret.metadata.name, namespace);
      }
    },
    replace({ metadata: { namespace = 'default', uid } }) {
      const [owner] = [...running].find(([, pod]) => pod.uid === uid) ?? [];
      const [, kind, name = ''] = owner?.split('/') ?? [];
      const deployment = kind === 'Deployment' ? objects.find('Deployment', name, namespace) : undefined;
      if (owner === undefined || deployment === undefined || !isActive(namespace)) return;
      running.delete(owner);
      follow(deployment);
    },
  };

  function isActive(namespace: string): boolean {
    const found = objects.find('Namespace', namespace);
    return found !== undefined && found.metadata.deletionTimestamp === undefined;
  }

  function empty(namespace: string, uid: string): void {
    if (objects.find('Namespace', namespace)?.metadata.uid !== uid) return;
    for (const { kind, metadata } of objects.remove('Namespace', namespace)) if (kind === 'Pod') runner.forget(metadata.uid);
  }

  function keep({ object }: Manifest): ClusterObject {
    const { kind, metadata } = object;
    const before = objects.find(kind, metadata.name, metadata.namespace);
    const admitted = admit(cluster, kindOf(kind), metadata.namespace ?? '', object);
    return before === undefined ? objects.create(admitted) : objects.replace(admitted);
  }

  function complete(object: ClusterObject): void {
    if (object.kind === 'Namespace') ensureNamespace(cluster, object.metadata.name);
    if (object.kind === 'Secret' && object['type'] === tokenSecret) fillSecret(object);
  }

  function applyWorkload(manifest: Manifest): readonly Pod[] {
    const { object } = manifest;
    const { kind, metadata } = object;
    const { name, namespace = 'default' } = metadata;
    objects.get('Namespace', namespace);
    const last = running.get(`${namespace}/${kind}/${name}`);
    const template = kind === 'Deployment' ? readTemplate(object) : { labels: metadata['labels'], spec: readSpec(object) };
    if (last !== undefined && isRunning(last, namespace) && isDeepStrictEqual(last.spec, template.spec)) return [];
    if (kind === 'Deployment') return start(keep(manifest));
    if (last !== undefined && isRunning(last, namespace)) runner.stop(namespace, last.name);
    const pod = createPodObject(cluster, namespace, name, {
      labels: isRecord(template.labels) ? template.labels : undefined,
      spec: template.spec,
    });
    running.set(`${namespace}/Pod/${name}`, { name, uid: pod.metadata.uid, spec: template.spec });
    return [runner.start(pod)];
  }

  // What a real controller cannot start, it reports in an Event; the object that was asked for stands.
  function follow(object: ClusterObject): void {
    try {
      if (object.kind === 'Deployment') start(object);
      else runner.start(schedulePod(cluster, object));
    } catch (error) {
      report(object, error instanceof Error ? error.message : String(error));
    }
  }

  function start(deployment: ClusterObject): readonly Pod[] {
    const { name, namespace = 'default' } = deployment.metadata;
    const { labels, spec } = readTemplate(deployment);
    const owner = `${namespace}/Deployment/${name}`;
    const last = running.get(owner);
    const isStarted = last !== undefined && isRunning(last, namespace);
    if (isStarted && isDeepStrictEqual(last.spec, spec)) return [];
    objects.get('ServiceAccount', spec.serviceAccountName ?? 'default', namespace);
    if (isStarted) runner.stop(namespace, last.name);
    const pod = createPodObject(cluster, namespace, generateName(name), { labels, spec });
    running.set(owner, { name: pod.metadata.name, uid: pod.metadata.uid, spec });
    const replicas = { replicas: 1, updatedReplicas: 1, readyReplicas: 1, availableReplicas: 1 };
    const conditions = [{ type: 'Available', status: 'True', reason: 'MinimumReplicasAvailable' }];
    const { generation } = deployment.metadata;
    objects.replace({ ...deployment, status: { observedGeneration: generation, ...replicas, conditions } });
    return [runner.start(pod)];
  }

  function isRunning({ name, uid }: Running, namespace: string): boolean {
    return objects.find('Pod', name, namespace)?.metadata.uid === uid;
  }

  function report({ kind, apiVersion, metadata: { name, namespace = 'default', uid } }: ClusterObject, message: string): void {
    objects.create({
      kind: 'Event',
      apiVersion: 'v1',
      metadata: { name: `${name}.${generateName('failed')}`, namespace },
      involvedObject: { kind, apiVersion, name, namespace, uid },
      type: 'Warning',
      reason: 'FailedCreate',
      message,
    });
  }

  // The token controller, whose tokens neither expire nor name an audience.
  function fillSecret(secret: ClusterObject): void {
    const { name, namespace = 'default', annotations = {} } = secret.metadata;
    const account = objects.find('ServiceAccount', accountOf(secret), namespace);
    const data = readRecord(secret['data']);
    if (account === undefined || data['token'] !== undefined) return;
    const { name: serviceAccount, uid } = account.metadata;
    const token = cluster.keys.sign({
      iss: 'kubernetes/serviceaccount',
      'kubernetes.io/serviceaccount/namespace': namespace,
      'kubernetes.io/serviceaccount/secret.name': name,
      'kubernetes.io/serviceaccount/service-account.name': serviceAccount,
      'kubernetes.io/serviceaccount/service-account.uid': uid,
      sub: `system:serviceaccount:${namespace}:${serviceAccount}`,
    });
    const filled = Object.entries({ 'ca.crt': ca(), namespace, token }).map(([key, text]) => [key, Buffer.from(text).toString('base64')]);
    objects.replace({
      ...secret,
      metadata: { ...secret.metadata, annotations: { ...annotations, 'kubernetes.io/service-account.uid': uid } },
      data: { ...data, ...Object.fromEntries(filled) },
    });
  }

  return workloads;
}

function accountOf({ metadata }: ClusterObject): string {
  return readText(metadata.annotations?.[accountName]);
}
