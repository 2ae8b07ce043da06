// The only place that plays the kubelet: which files a pod's volumes hold, where they lie, and when a token is rotated.
import { mkdirSync, mkdtempSync } from 'node:fs';
import { join } from 'node:path';
import type { Cluster } from './cluster.ts';
import { readRecord } from './json.ts';
import type { JsonRecord } from './json.ts';
import type { ClusterObject } from './objects.ts';
import { StatusError } from './status.ts';
import { issueToken } from './token-request.ts';
import { writeVolume } from './volume.ts';
import type { VolumeFile } from './volume.ts';

/** A pod's spec, as far as the kubelet looks at it. */
export interface PodSpec {
  readonly serviceAccountName?: string;
  readonly automountServiceAccountToken?: boolean;
  readonly containers?: readonly Container[];
  readonly volumes?: readonly Volume[];
  readonly nodeName?: string;
}

/** A container's environment and mounts. */
export interface Container {
  readonly name?: string;
  readonly image?: string;
  readonly env?: readonly { readonly name: string; readonly value?: string; readonly valueFrom?: { readonly fieldRef?: FieldRef } }[];
  readonly volumeMounts?: readonly { readonly name: string; readonly mountPath: string; readonly subPath?: string }[];
}

/** A volume; kinds other than these are mounted empty. */
export interface Volume {
  readonly name: string;
  readonly projected?: { readonly sources?: readonly Source[] };
  readonly configMap?: { readonly name?: string; readonly items?: readonly Item[] };
}

/** One source of a projected volume. */
export interface Source {
  readonly serviceAccountToken?: { readonly audience?: string; readonly expirationSeconds?: number; readonly path: string };
  readonly configMap?: { readonly name?: string; readonly items?: readonly Item[] };
  readonly downwardAPI?: { readonly items?: readonly { readonly path: string; readonly fieldRef?: FieldRef }[] };
}

interface Item {
  readonly key: string;
  readonly path: string;
}

interface FieldRef {
  readonly fieldPath?: string;
}

/** One pod's volumes, kept up to date. */
export interface Mounts {
  /** The directory below which the pod's paths lie. */
  readonly root: string;
  /** The container's literal environment, and what it takes from the pod's own fields. */
  readonly env: Readonly<Record<string, string>>;
  /** The projected tokens: the path in the pod, and where the file really lies. */
  readonly tokens: readonly { readonly path: string; readonly file: string }[];
  /** Replaces every token now. Throws a {@link StatusError} where the cluster issues none. */
  rotate(): void;
}

/** Mounts the volumes of all pods of one cluster. */
export interface Kubelet {
  mount(pod: ClusterObject): Mounts;
  /** Forgets the pod with this uid; its files stay as they are. */
  unmount(uid: string): void;
  /** Replaces the tokens that are due. */
  rotateDue(): void;
  /** Writes the volumes that hold the cluster's CA again. */
  publishCa(): void;
  close(): void;
}

interface MountedToken {
  readonly content: string;
  readonly dueAt: number;
}

interface MountedVolume {
  readonly pod: ClusterObject;
  readonly directory: string;
  readonly sources: readonly Source[];
  readonly tokens: Map<string, MountedToken>;
}

const day = 86_400_000;
const retryMs = 10_000;
const longestTimerMs = 2 ** 31 - 1;

/** Where every pod finds its API token, the CA and its namespace. */
export const apiAccessPath = '/var/run/secrets/kubernetes.io/serviceaccount';

/** The volume that the ServiceAccount admission plugin adds to a pod. */
export const apiAccessVolume: Volume = {
  name: 'kube-api-access',
  projected: {
    sources: [
      { serviceAccountToken: { expirationSeconds: 3607, path: 'token' } },
      { configMap: { name: 'kube-root-ca.crt', items: [{ key: 'ca.crt', path: 'ca.crt' }] } },
      { downwardAPI: { items: [{ path: 'namespace', fieldRef: { fieldPath: 'metadata.namespace' } }] } },
    ],
  },
};

/** Makes a kubelet that writes below `directory`; `ca` gives the cluster's CA in PEM. */
export function createKubelet(cluster: Cluster, directory: string, ca: () => string): Kubelet {
  let mounted: MountedVolume[] = [];
  let timer: NodeJS.Timeout | undefined;
  let isClosed = false;

  const kubelet: Kubelet = {
    mount(pod) {
      const root = mkdtempSync(join(directory, `${pod.metadata.name}-`));
      const spec = readSpec(pod);
      const [container = {}] = spec.containers ?? [];
      const own: MountedVolume[] = [];
      for (const { name, mountPath, subPath } of container.volumeMounts ?? []) {
        const volume = spec.volumes?.find((one) => one.name === name);
        if (volume === undefined) throw new Error(`pod ${pod.metadata.name} mounts a volume "${name}" that it does not have`);
        if (subPath !== undefined) throw new Error(`pod ${pod.metadata.name} mounts "${name}" with a subPath, which is not supported`);
        const sources = volume.projected?.sources ?? (volume.configMap === undefined ? [] : [{ configMap: volume.configMap }]);
        const target = join(root, mountPath);
        mkdirSync(target, { recursive: true });
        if (sources.length > 0) own.push({ pod, directory: target, sources, tokens: new Map() });
      }
      for (const volume of own) write(volume, true);
      mounted.push(...own);
      schedule();
      return {
        root,
        env: readEnv(pod, container),
        tokens: own.flatMap((volume) =>
          [...volume.tokens.keys()].map((path) => {
            const file = join(volume.directory, path);
            return { path: file.slice(root.length), file };
          }),
        ),
        rotate() {
          for (const volume of own) write(volume, true);
          schedule();
        },
      };
    },
    unmount(uid) {
      mounted = mounted.filter(({ pod }) => pod.metadata.uid !== uid);
    },
    rotateDue() {
      const now = cluster.now();
      for (const volume of mounted) {
        if ([...volume.tokens.values()].some(({ dueAt }) => dueAt <= now)) write(volume, false);
      }
      schedule();
    },
    publishCa() {
      for (const volume of mounted) {
        if (volume.sources.some(({ configMap }) => configMap?.name === 'kube-root-ca.crt')) write(volume, false);
      }
    },
    close() {
      isClosed = true;
      clearTimeout(timer);
      mounted = [];
    },
  };

  function schedule(): void {
    clearTimeout(timer);
    const next = Math.min(...mounted.flatMap(({ tokens }) => [...tokens.values()].map(({ dueAt }) => dueAt)));
    if (isClosed || next === Number.POSITIVE_INFINITY) return;
    timer = setTimeout(() => kubelet.rotateDue(), Math.min(Math.max(next - cluster.now(), 0), longestTimerMs));
    timer.unref();
  }

  function write({ pod, directory: target, sources, tokens }: MountedVolume, renewAll: boolean): void {
    const files = new Map<string, VolumeFile>();
    for (const { serviceAccountToken, configMap, downwardAPI } of sources) {
      if (serviceAccountToken !== undefined) {
        const token = renewToken(pod, serviceAccountToken, tokens.get(serviceAccountToken.path), renewAll);
        tokens.set(serviceAccountToken.path, token);
        files.set(serviceAccountToken.path, { content: token.content, mode: 0o600 });
      }
      for (const [path, content] of configMap === undefined ? [] : readConfigMap(pod, configMap)) files.set(path, { content, mode: 0o644 });
      for (const { path, fieldRef } of downwardAPI?.items ?? []) {
        files.set(path, { content: readField(pod, fieldRef?.fieldPath ?? ''), mode: 0o644 });
      }
    }
    writeVolume(target, files, new Date(cluster.now()));
  }

  function renewToken(
    pod: ClusterObject,
    request: NonNullable<Source['serviceAccountToken']>,
    current: MountedToken | undefined,
    always: boolean,
  ): MountedToken {
    const now = cluster.now();
    if (current !== undefined && !always && current.dueAt > now) return current;
    const { audience, expirationSeconds = 3600 } = request;
    try {
      const { token, expiresAt } = issueToken(cluster, {
        namespace: pod.metadata.namespace ?? 'default',
        serviceAccount: readSpec(pod).serviceAccountName ?? 'default',
        expirationSeconds,
        ...(audience === undefined || audience === '' ? {} : { audiences: [audience] }),
        boundObjectRef: { kind: 'Pod', apiVersion: 'v1', name: pod.metadata.name, uid: pod.metadata.uid },
      });
      // kubelet, token_manager.go: at 80 % of its life, and after a day at the latest.
      return { content: token, dueAt: Math.min(now + (expiresAt - now) * 0.8, now + day) };
    } catch (error) {
      // A real kubelet keeps the old token and tries again.
      if (error instanceof StatusError && current !== undefined && !always) return { ...current, dueAt: now + retryMs };
      throw error;
    }
  }

  function readConfigMap(pod: ClusterObject, { name, items }: NonNullable<Source['configMap']>): readonly (readonly [string, string])[] {
    const kept = name === undefined ? undefined : cluster.objects.find('ConfigMap', name, pod.metadata.namespace);
    const data = name === 'kube-root-ca.crt' ? { 'ca.crt': ca() } : readRecord(kept?.['data']);
    const wanted = items ?? Object.keys(data).map((key) => ({ key, path: key }));
    return wanted.flatMap(({ key, path }) => {
      const content = data[key];
      return typeof content === 'string' ? [[path, content] as const] : [];
    });
  }

  return kubelet;
}

/** Reads a pod's spec. */
export function readSpec({ spec }: JsonRecord): PodSpec {
  return readRecord(spec);
}

function readEnv(pod: ClusterObject, { env = [] }: Container): Readonly<Record<string, string>> {
  return Object.fromEntries(
    env.flatMap(({ name, value, valueFrom }) => {
      const fieldPath = valueFrom?.fieldRef?.fieldPath;
      if (fieldPath !== undefined) return [[name, readField(pod, fieldPath)]];
      return valueFrom === undefined ? [[name, value ?? '']] : [];
    }),
  );
}

function readField(pod: ClusterObject, fieldPath: string): string {
  const { name, namespace = '', uid, labels = {}, annotations = {} } = pod.metadata;
  const { serviceAccountName = '', nodeName = '' } = readSpec(pod);
  const known: Readonly<Record<string, string>> = {
    'metadata.name': name,
    'metadata.namespace': namespace,
    'metadata.uid': uid,
    'spec.serviceAccountName': serviceAccountName,
    'spec.nodeName': nodeName,
    'status.hostIP': '127.0.0.1',
    'status.podIP': '127.0.0.1',
  };
  const [, map, key = ''] = /^metadata\.(labels|annotations)\['(.*)'\]$/.exec(fieldPath) ?? [];
  if (map !== undefined) return (map === 'labels' ? labels : annotations)[key] ?? '';
  return known[fieldPath] ?? '';
}
