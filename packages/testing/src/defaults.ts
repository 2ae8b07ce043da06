// The only place that knows what a real API server adds to an object that is sent to it: defaults, and what admission plugins do.
import { randomBytes } from 'node:crypto';
import type { Cluster } from './cluster.ts';
import { isRecord, readList, readRecord, readText } from './json.ts';
import type { JsonRecord } from './json.ts';
import { apiAccessPath, apiAccessVolume } from './kubelet.ts';
import type { NewObject } from './objects.ts';
import { admissionRefusal } from './status.ts';

const rbac = 'rbac.authorization.k8s.io';

/** Five characters, as those that Kubernetes ends a generated name with. */
export function randomSuffix(): string {
  const alphabet = 'bcdfghjklmnpqrstvwxz2456789';
  return [...randomBytes(5)].map((byte) => alphabet[byte % alphabet.length]).join('');
}

/** What is added to a new object, by kind. Each throws the {@link StatusError} that a real API server answers with. */
export const completions: Readonly<Record<string, (object: NewObject, cluster: Cluster) => NewObject>> = {
  Namespace: ({ metadata, ...rest }) => ({
    ...rest,
    metadata: { ...metadata, labels: { ...readRecord(metadata['labels']), 'kubernetes.io/metadata.name': metadata.name } },
    spec: { finalizers: ['kubernetes'] },
    status: { phase: 'Active' },
  }),
  Node: (object) => ({
    ...object,
    spec: { ...readRecord(object['spec']), taints: [{ key: 'node.kubernetes.io/not-ready', effect: 'NoSchedule' }] },
    status: { daemonEndpoints: { kubeletEndpoint: { Port: 0 } }, nodeInfo: nodeInfo(), ...readRecord(object['status']) },
  }),
  Pod: completePod,
  Secret: completeSecret,
  Service: (object) => {
    const spec = readRecord(object['spec']);
    const ports = Array.isArray(spec['ports']) ? spec['ports'].map((one: unknown) => completePort(readRecord(one))) : undefined;
    const fixed = { sessionAffinity: 'None', type: 'ClusterIP', internalTrafficPolicy: 'Cluster' };
    return { ...object, spec: { ...fixed, ...spec, ...(ports === undefined ? {} : { ports }) }, status: { loadBalancer: {} } };
  },
  Deployment: (object) => {
    const { template, strategy, ...spec } = readRecord(object['spec']);
    const rolling = { rollingUpdate: { maxUnavailable: '25%', maxSurge: '25%' } };
    const { type = 'RollingUpdate', ...how } = readRecord(strategy);
    const whole = {
      replicas: 1,
      ...spec,
      template: completeTemplate(readRecord(template)),
      strategy: { type, ...(type === 'RollingUpdate' ? rolling : {}), ...how },
    };
    const fixed = { revisionHistoryLimit: 10, progressDeadlineSeconds: 600 };
    return withGeneration({ ...object, spec: { ...fixed, ...whole }, status: {} });
  },
  FlowSchema: (object) => withGeneration({ ...object, spec: { matchingPrecedence: 1000, ...readRecord(object['spec']) }, status: {} }),
  PriorityLevelConfiguration: (object) => {
    const { limited, ...spec } = readRecord(object['spec']);
    const shares = { nominalConcurrencyShares: 30, lendablePercent: 0 };
    return withGeneration({
      ...object,
      spec: { ...spec, ...(isRecord(limited) ? { limited: { ...shares, ...limited } } : {}) },
      status: {},
    });
  },
  ClusterRole: completeRole,
  Role: completeRole,
  ClusterRoleBinding: completeBinding,
  RoleBinding: completeBinding,
};

function withGeneration(object: NewObject): NewObject {
  return { ...object, metadata: { ...object.metadata, generation: 1 } };
}

function nodeInfo(): object {
  const names = [
    'machineID',
    'systemUUID',
    'bootID',
    'kernelVersion',
    'osImage',
    'containerRuntimeVersion',
    'kubeletVersion',
    'kubeProxyVersion',
  ];
  return Object.fromEntries([...names, 'operatingSystem', 'architecture'].map((name) => [name, '']));
}

function completePort(port: JsonRecord): JsonRecord {
  return { protocol: 'TCP', ...port, targetPort: port['targetPort'] ?? port['port'] };
}

// A list that is never left out, as Go writes an empty one.
function completeRole(object: NewObject): NewObject {
  return { ...object, rules: readList(object['rules']).length === 0 ? null : object['rules'] };
}

function completeBinding(object: NewObject): NewObject {
  const subjects = Array.isArray(object['subjects'])
    ? object['subjects'].map((one: unknown) => completeSubject(readRecord(one)))
    : undefined;
  const { kind, apiVersion, metadata, subjects: _, ...rest } = object;
  return {
    kind,
    apiVersion,
    metadata,
    ...(subjects === undefined ? {} : { subjects }),
    ...rest,
    roleRef: { apiGroup: rbac, ...readRecord(object['roleRef']) },
  };
}

function completeSubject(subject: JsonRecord): JsonRecord {
  return subject['kind'] === 'ServiceAccount' ? subject : { apiGroup: rbac, ...subject };
}

function completeSecret(object: NewObject): NewObject {
  const { stringData, data, type = 'Opaque', ...rest } = object;
  const encoded = Object.entries(readRecord(stringData)).map(([key, value]) => [key, Buffer.from(readText(value)).toString('base64')]);
  const whole = { ...readRecord(data), ...Object.fromEntries(encoded) };
  return { ...rest, ...(Object.keys(whole).length === 0 ? {} : { data: whole }), type };
}

const podDefaults = {
  restartPolicy: 'Always',
  terminationGracePeriodSeconds: 30,
  dnsPolicy: 'ClusterFirst',
  securityContext: {},
  schedulerName: 'default-scheduler',
};

// Of a template only what does not depend on where it becomes a pod.
function completeTemplate({ metadata, spec }: JsonRecord): JsonRecord {
  const { containers, initContainers, volumes, serviceAccountName, ...rest } = readRecord(spec);
  const complete = (list: unknown): readonly JsonRecord[] => readList(list).map((one) => completeContainer(one, undefined));
  return {
    metadata: readRecord(metadata),
    spec: {
      ...podDefaults,
      ...rest,
      ...(volumes === undefined ? {} : { volumes: readList(volumes).map(completeVolume) }),
      ...(initContainers === undefined ? {} : { initContainers: complete(initContainers) }),
      containers: complete(containers),
      ...(serviceAccountName === undefined ? {} : { serviceAccountName, serviceAccount: serviceAccountName }),
    },
  };
}

function completePod(object: NewObject, { objects }: Cluster): NewObject {
  const { name, namespace = 'default' } = object.metadata;
  const spec = readRecord(object['spec']);
  const account = readText(spec['serviceAccountName']) || readText(spec['serviceAccount']) || 'default';
  const known = objects.find('ServiceAccount', account, namespace);
  if (known === undefined) {
    const reason = `error looking up service account ${namespace}/${account}: serviceaccount "${account}" not found`;
    const prefix = readText(object.metadata['generateName']);
    // What is generated comes later.
    throw admissionRefusal('pods', '', prefix !== '' && name.length === prefix.length + 5 ? prefix : name, reason);
  }
  const automount = spec['automountServiceAccountToken'] ?? known['automountServiceAccountToken'] !== false;
  const access = `${apiAccessVolume.name}-${randomSuffix()}`;
  const containers = readList(spec['containers']).map((one) => completeContainer(one, automount === true ? access : undefined));
  const isMounted = containers.some((one) => readList(one['volumeMounts']).some((mount) => mount['name'] === access));
  const volumes = [...readList(spec['volumes']), ...(isMounted ? [{ ...apiAccessVolume, name: access }] : [])].map(completeVolume);
  const { containers: _, volumes: __, initContainers, ...rest } = spec;
  const tolerations = ['not-ready', 'unreachable'].map((key) => ({
    key: `node.kubernetes.io/${key}`,
    operator: 'Exists',
    effect: 'NoExecute',
    tolerationSeconds: 300,
  }));
  return {
    ...object,
    metadata: { ...object.metadata, generation: 1 },
    spec: {
      ...(volumes.length === 0 ? {} : { volumes }),
      ...(initContainers === undefined
        ? {}
        : { initContainers: readList(initContainers).map((one) => completeContainer(one, automount === true ? access : undefined)) }),
      containers,
      ...podDefaults,
      priority: 0,
      enableServiceLinks: true,
      preemptionPolicy: 'PreemptLowerPriority',
      ...rest,
      tolerations: [...readList(spec['tolerations']), ...tolerations],
      ...(Number(spec['terminationGracePeriodSeconds']) < 0 ? { terminationGracePeriodSeconds: 1 } : {}),
      serviceAccountName: account,
      serviceAccount: account,
    },
    status: { phase: 'Pending', qosClass: qosClassOf(containers) },
  };
}

function completeContainer(container: JsonRecord, access: string | undefined): JsonRecord {
  const mounts = readList(container['volumeMounts']);
  const hasOwn = mounts.some(({ mountPath }) => readText(mountPath).replace(/\/$/, '') === apiAccessPath);
  const added = access === undefined || hasOwn ? [] : [{ name: access, readOnly: true, mountPath: apiAccessPath }];
  const volumeMounts = [...mounts, ...added];
  const ports = readList(container['ports']).map((one) => withDefaults(one, { protocol: 'TCP' }));
  const isLatest = /(^[^:]*|:latest)$/.test(readText(container['image']).split('/').at(-1) ?? '');
  return {
    resources: {},
    terminationMessagePath: '/dev/termination-log',
    terminationMessagePolicy: 'File',
    imagePullPolicy: isLatest ? 'Always' : 'IfNotPresent',
    ...container,
    ...(ports.length === 0 ? {} : { ports }),
    ...(volumeMounts.length === 0 ? {} : { volumeMounts }),
  };
}

function completeVolume(volume: JsonRecord): JsonRecord {
  const projected = volume['projected'];
  if (isRecord(projected)) {
    return {
      ...volume,
      projected: {
        ...projected,
        sources: readList(projected['sources']).map(completeSource),
        defaultMode: projected['defaultMode'] ?? 420,
      },
    };
  }
  if (Object.keys(volume).length === 1 && volume['name'] !== undefined) return { ...volume, emptyDir: {} };
  const plain = ['configMap', 'secret', 'downwardAPI'].find((kind) => isRecord(volume[kind]));
  return plain === undefined ? volume : { ...volume, [plain]: { defaultMode: 420, ...readRecord(volume[plain]) } };
}

function completeSource({ serviceAccountToken, downwardAPI, ...rest }: JsonRecord): JsonRecord {
  const items = readList(readRecord(downwardAPI)['items']).map((item) =>
    withDefaults({ fieldRef: withDefaults(readRecord(item['fieldRef']), { apiVersion: 'v1' }) }, item),
  );
  return {
    ...rest,
    ...(isRecord(serviceAccountToken) ? { serviceAccountToken: { expirationSeconds: 3600, ...serviceAccountToken } } : {}),
    ...(isRecord(downwardAPI) ? { downwardAPI: { ...downwardAPI, items } } : {}),
  };
}

function qosClassOf(containers: readonly JsonRecord[]): string {
  const isUnset = containers.every(({ resources }) => Object.keys(readRecord(resources)).length === 0);
  return isUnset ? 'BestEffort' : 'Burstable';
}

function withDefaults(value: JsonRecord, defaults: JsonRecord): JsonRecord {
  return { ...defaults, ...value };
}
