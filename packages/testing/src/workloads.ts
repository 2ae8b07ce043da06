// The only place that knows what applying a manifest does: in which order, what is replaced, and which pods come of it.
import { isDeepStrictEqual } from 'node:util';
import { ensureNamespace } from './cluster.ts';
import type { Cluster } from './cluster.ts';
import { isRecord } from './json.ts';
import { readSpec } from './kubelet.ts';
import { readTemplate } from './manifests.ts';
import type { Manifest } from './manifests.ts';
import type { ClusterObject } from './objects.ts';
import { createPodObject, generateName } from './pods.ts';
import type { Pod } from './pods.ts';

/** What starts and stops pods. */
export interface PodRunner {
  start(object: ClusterObject): Pod;
  stop(namespace: string, name: string): void;
}

const workloads = new Set(['Deployment', 'Pod']);

/**
 * Applies manifests and returns the pods that were started. Namespaces come first and workloads last, as a cluster arrives at it in
 * the end; applied again, a workload that is as it was keeps its pod. Throws an `Error` that names the file and the document.
 */
export function applyManifests(cluster: Cluster, manifests: readonly Manifest[], runner: PodRunner): readonly Pod[] {
  const { objects } = cluster;
  const isNamespace = ({ object: { kind } }: Manifest): boolean => kind === 'Namespace';
  const isWorkload = ({ object: { kind } }: Manifest): boolean => workloads.has(kind);
  const settings = manifests.filter((one) => !isNamespace(one) && !isWorkload(one));
  const at = <Result>({ file, document }: Manifest, act: () => Result): Result => {
    try {
      return act();
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      throw new Error(`${file}, document ${document}: ${reason}`, { cause: error });
    }
  };

  for (const manifest of [...manifests.filter(isNamespace), ...settings]) at(manifest, () => keep(manifest));
  return manifests.filter(isWorkload).flatMap((manifest) => at(manifest, () => startWorkload(manifest)));

  function keep({ object }: Manifest): void {
    const { kind, metadata } = object;
    if (objects.find(kind, metadata.name, metadata.namespace) === undefined) objects.create(object);
    else objects.replace(object);
    if (kind === 'Namespace') ensureNamespace(cluster, metadata.name);
  }

  function startWorkload(manifest: Manifest): readonly Pod[] {
    const { kind, metadata } = manifest.object;
    const { name, namespace = 'default' } = metadata;
    objects.get('Namespace', namespace);
    const owner = `${kind}/${name}`;
    const { labels, spec } =
      kind === 'Deployment' ? readTemplate(manifest) : { labels: metadata['labels'], spec: readSpec({ spec: manifest.object['spec'] }) };
    const last = running.get(cluster)?.get(`${namespace}/${owner}`);
    const isRunning = last !== undefined && objects.find('Pod', last.name, namespace)?.metadata.uid === last.uid;
    if (isRunning && isDeepStrictEqual(last.spec, spec)) return [];
    if (isRunning) runner.stop(namespace, last.name);
    if (kind === 'Deployment') keep(manifest);
    const object = createPodObject(cluster, namespace, kind === 'Deployment' ? generateName(name) : name, {
      labels: isRecord(labels) ? labels : undefined,
      spec,
    });
    const known = running.get(cluster) ?? new Map<string, Running>();
    running.set(cluster, known.set(`${namespace}/${owner}`, { name: object.metadata.name, uid: object.metadata.uid, spec }));
    return [runner.start(object)];
  }
}

interface Running {
  readonly name: string;
  readonly uid: string;
  readonly spec: object;
}

const running = new WeakMap<Cluster, Map<string, Running>>();
