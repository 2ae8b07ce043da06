import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';

import { parseAllDocuments } from 'yaml';

interface KubernetesObject {
  readonly apiVersion: string;
  readonly kind: string;
  readonly metadata: { readonly name: string; readonly namespace?: string };
}

interface Deployment extends KubernetesObject {
  readonly spec: { readonly template: { readonly spec: PodSpec } };
}

interface PodSpec {
  readonly serviceAccountName: string;
  readonly automountServiceAccountToken: boolean;
  readonly securityContext: object;
  readonly containers: readonly Container[];
  readonly volumes?: readonly {
    readonly name: string;
    readonly projected: { readonly sources: readonly { readonly serviceAccountToken: TokenSource }[] };
  }[];
}

interface Container {
  readonly command: readonly string[];
  readonly env: readonly { readonly name: string; readonly value: string }[];
  readonly ports: readonly { readonly name: string; readonly containerPort: number }[];
  readonly volumeMounts?: readonly { readonly name: string; readonly mountPath: string; readonly readOnly?: boolean }[];
  readonly securityContext: object;
  readonly readinessProbe: { readonly httpGet: { readonly path: string } };
  readonly livenessProbe: { readonly httpGet: { readonly path: string } };
}

interface TokenSource {
  readonly audience: string;
  readonly expirationSeconds: number;
  readonly path: string;
}

function readObjects(service: string): readonly KubernetesObject[] {
  const documents = parseAllDocuments(readFileSync(new URL(`${service}/k8s.yaml`, import.meta.url), 'utf8'));
  return documents.map((document) => {
    assert.deepEqual(document.errors, []);
    return document.toJS() as KubernetesObject;
  });
}

function readWorkload(service: string): { readonly pod: PodSpec; readonly container: Container; readonly source: string } {
  const deployment = readObjects(service).find((object): object is Deployment => object.kind === 'Deployment');
  assert.ok(deployment, `${service} has a Deployment`);
  const pod = deployment.spec.template.spec;
  const [container, ...others] = pod.containers;
  assert.ok(container !== undefined && others.length === 0, `${service} has one container`);
  return { pod, container, source: readFileSync(new URL(`${service}/server.ts`, import.meta.url), 'utf8') };
}

/** The projected tokens by the path that the container sees, with the audience of each. */
function listTokens({ pod, container }: ReturnType<typeof readWorkload>): Readonly<Record<string, string>> {
  return Object.fromEntries(
    (container.volumeMounts ?? []).flatMap(({ name, mountPath }) => {
      const sources = pod.volumes?.find((volume) => volume.name === name)?.projected.sources ?? [];
      return sources.map(({ serviceAccountToken: { path, audience } }) => [`${mountPath}/${path}`, audience]);
    }),
  );
}

const services = ['api', 'secret-store', 'data-store'];
const kindsOf = (service: string): readonly string[] => readObjects(service).map(({ apiVersion, kind }) => `${apiVersion} ${kind}`);
const tokenFilesIn = (source: string): readonly string[] => [...source.matchAll(/tokenFile: '([^']+)'/g)].map(([, path = '']) => path);

describe('the manifests', () => {
  it('hold what each service needs, in versions that a current cluster serves', () => {
    const reviewing = [
      'v1 Namespace',
      'v1 ServiceAccount',
      'rbac.authorization.k8s.io/v1 ClusterRoleBinding',
      'apps/v1 Deployment',
      'v1 Service',
    ];
    assert.deepEqual(kindsOf('secret-store'), reviewing);
    assert.deepEqual(kindsOf('data-store'), reviewing);
    assert.deepEqual(
      kindsOf('api'),
      reviewing.filter((kind) => !kind.endsWith('ClusterRoleBinding')),
    );
  });

  it('put everything into the namespace of the service', () => {
    for (const service of services) {
      const namespaced = readObjects(service).filter(({ kind }) => kind !== 'Namespace' && kind !== 'ClusterRoleBinding');
      assert.deepEqual(
        namespaced.map(({ metadata }) => metadata.namespace),
        namespaced.map(() => service),
      );
    }
  });

  it('give a token for the API server only to those that review', () => {
    assert.equal(readWorkload('api').pod.automountServiceAccountToken, false);
    assert.equal(readWorkload('secret-store').pod.automountServiceAccountToken, true);
    assert.equal(readWorkload('data-store').pod.automountServiceAccountToken, true);
  });

  it('run as a user that is not root and can read its tokens, with nothing to gain', () => {
    for (const service of services) {
      const { pod, container } = readWorkload(service);
      assert.equal(pod.serviceAccountName, service);
      assert.deepEqual(pod.securityContext, {
        runAsNonRoot: true,
        runAsUser: 1000,
        runAsGroup: 1000,
        fsGroup: 1000,
        seccompProfile: { type: 'RuntimeDefault' },
      });
      assert.deepEqual(container.securityContext, {
        allowPrivilegeEscalation: false,
        readOnlyRootFilesystem: true,
        capabilities: { drop: ['ALL'] },
      });
    }
  });

  it('mount tokens read-only, each for one audience, and as a directory', () => {
    assert.deepEqual(listTokens(readWorkload('api')), {
      '/var/run/secrets/tokens/api-token': 'secret-store',
      '/var/run/secrets/tokens/data-token': 'data-store',
    });
    assert.deepEqual(listTokens(readWorkload('data-store')), { '/var/run/secrets/tokens/secret-token': 'secret-store' });
    assert.deepEqual(listTokens(readWorkload('secret-store')), {});
    for (const { readOnly, ...mount } of services.flatMap((service) => readWorkload(service).container.volumeMounts ?? [])) {
      assert.equal(readOnly, true);
      assert.deepEqual(Object.keys(mount), ['name', 'mountPath']);
    }
  });

  it('rotate tokens as often as a cluster lets them', () => {
    const sources = services.flatMap((service) => readWorkload(service).pod.volumes ?? []).flatMap(({ projected }) => projected.sources);
    assert.deepEqual(
      sources.map(({ serviceAccountToken }) => serviceAccountToken.expirationSeconds),
      [600, 600, 600],
    );
  });

  it('name token files and variables as the source does', () => {
    for (const service of services) {
      const workload = readWorkload(service);
      const { container, source } = workload;
      assert.deepEqual(tokenFilesIn(source), Object.keys(listTokens(workload)));
      for (const { name, value } of container.env)
        assert.ok(source.includes(`${name} = '${value}'`), `${service} defaults ${name} to ${value}`);
      assert.deepEqual(container.command, ['node', `${service}/server.ts`]);
    }
  });

  it('probe routes that the source has', () => {
    for (const { container, source } of services.map(readWorkload)) {
      for (const { httpGet } of [container.livenessProbe, container.readinessProbe]) assert.ok(source.includes(`'${httpGet.path}'`));
      const [port] = container.ports;
      assert.deepEqual(container.env.find(({ name }) => name === 'LISTEN_ADDR')?.value, `:${port?.containerPort}`);
    }
  });
});
