// The three services, as their manifests describe them, against the authority and, where the environment names one, a real control plane.

import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import { parseAllDocuments } from 'yaml';

import {
  connectControlPlane,
  type ControlPlane,
  howToRun,
  isControlPlaneNamed,
  playControlPlane,
} from '../packages/testing/src/fixtures/control-plane.ts';
import { settle } from '../packages/testing/src/fixtures/tenant.ts';
import { choosePorts, manifestOf } from './demo/services.ts';
import { type Answer, send } from './demo/steps.ts';

interface Manifest {
  readonly kind: string;
  readonly metadata: { readonly name: string; readonly namespace: string };
  readonly spec: { readonly template: { readonly metadata: object; readonly spec: object } };
}

interface Pod {
  readonly metadata: { readonly name: string; readonly namespace: string };
  readonly spec: {
    readonly serviceAccountName: string;
    readonly containers: readonly [Container];
    readonly volumes: readonly { readonly name: string; readonly projected: { readonly sources: readonly Source[] } }[];
  };
}

interface Container {
  readonly command: readonly string[];
  readonly env: readonly { readonly name: string; readonly value: string }[];
  readonly volumeMounts: readonly { readonly name: string; readonly mountPath: string }[];
}

interface Source {
  readonly serviceAccountToken?: { readonly audience?: string; readonly expirationSeconds: number; readonly path: string };
  readonly configMap?: { readonly items: readonly { readonly path: string }[] };
}

const paths: Readonly<Record<string, string>> = {
  Namespace: '/api/v1/namespaces',
  ServiceAccount: '/api/v1/namespaces/{namespace}/serviceaccounts',
  Service: '/api/v1/namespaces/{namespace}/services',
  Deployment: '/apis/apps/v1/namespaces/{namespace}/deployments',
  ClusterRoleBinding: '/apis/rbac.authorization.k8s.io/v1/clusterrolebindings',
};
const services = ['secret-store', 'data-store', 'api'];
const { signal } = new AbortController();

function defineCases(connectTo: () => Promise<ControlPlane>): void {
  const directory = mkdtempSync(join(tmpdir(), 'examples-test-'));
  const children: ChildProcess[] = [];
  const deployments = new Map<string, Manifest>();
  const pods = new Map<string, Pod>();
  const urls = new Map<string, string>();
  let plane: ControlPlane;

  async function admin(method: string, path: string, body?: object): Promise<unknown> {
    const { status, text, json } = await plane.ask(method, path, body);
    assert.ok(status < 300, `${method} ${path}: ${status} ${text}`);
    return json;
  }

  before(async () => {
    plane = await connectTo();
    for (const service of services) {
      const manifests = parseAllDocuments(readFileSync(manifestOf(service), 'utf8')).map((document) => document.toJS() as Manifest);
      for (const manifest of manifests) {
        const path = paths[manifest.kind] ?? assert.fail(`a ${manifest.kind} in ${manifestOf(service)}`);
        await admin('POST', path.replace('{namespace}', manifest.metadata.namespace), manifest);
      }
      deployments.set(service, manifests.find(({ kind }) => kind === 'Deployment') ?? assert.fail('no Deployment'));
      pods.set(service, await createPod(service, 'app-0'));
    }
    const ports = await choosePorts([0, 0, 0]);
    for (const [index, service] of services.entries()) urls.set(service, `http://127.0.0.1:${ports[index]}`);
    await Promise.all(services.map(start));
  });
  after(async () => {
    for (const child of children) child.kill('SIGTERM');
    await Promise.all(children.map(async (child) => child.exitCode ?? (await once(child, 'exit'))));
    await plane?.close();
    rmSync(directory, { recursive: true });
  });

  // As the controllers do it: a namespace that enforces the restricted Pod Security Standard has to let it in.
  async function createPod(service: string, name: string): Promise<Pod> {
    const { metadata, spec } = deployments.get(service) ?? assert.fail();
    const pod = { metadata: { ...spec.template.metadata, name }, spec: spec.template.spec };
    return (await admin('POST', `/api/v1/namespaces/${metadata.namespace}/pods`, pod)) as Pod;
  }

  // As the kubelet does it: files for what the pod's container mounts, and the container's command.
  async function start(service: string): Promise<void> {
    const { metadata, spec } = pods.get(service) ?? assert.fail();
    const [{ command, env, volumeMounts }] = spec.containers;
    const root = join(directory, service);
    for (const { name, mountPath } of volumeMounts) {
      for (const source of spec.volumes.find((volume) => volume.name === name)?.projected.sources ?? []) {
        const file = (path: string): string => {
          const at = join(root, mountPath, path);
          mkdirSync(dirname(at), { recursive: true });
          return at;
        };
        const { serviceAccountToken: asked, configMap } = source;
        if (asked !== undefined) writeFileSync(file(asked.path), await requestToken({ metadata, spec }, asked));
        for (const { path } of configMap?.items ?? []) copyFileSync(plane.caFile, file(path));
      }
    }
    const { hostname, port } = new URL(plane.url);
    const url = urls.get(service) ?? '';
    const [, ...args] = command;
    const child = spawn(process.execPath, args, {
      cwd: fileURLToPath(new URL('.', import.meta.url)),
      env: {
        ...Object.fromEntries(env.map(({ name, value }) => [name, value])),
        KUBERNETES_SERVICE_HOST: hostname,
        KUBERNETES_SERVICE_PORT: port,
        K8S_SA_AUTH_ROOT: root,
        LISTEN_ADDR: new URL(url).host,
        SECRET_STORE_CONNSTRING: urls.get('secret-store'),
        DATA_STORE_CONNSTRING: urls.get('data-store'),
        CACHE_TTL_MS: '0',
      },
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    children.push(child);
    const isReady = async (): Promise<boolean> => (await send(`${url}/readyz`, { signal }).catch(() => ({ status: 0 }))).status === 204;
    while (!(await isReady())) {
      assert.equal(child.exitCode, null, `${service} has ended`);
      await delay(25);
    }
  }

  async function requestToken(
    { metadata, spec }: Pick<Pod, 'metadata' | 'spec'>,
    asked: NonNullable<Source['serviceAccountToken']>,
  ): Promise<string> {
    const { audience, expirationSeconds } = asked;
    const path = `/api/v1/namespaces/${metadata.namespace}/serviceaccounts/${spec.serviceAccountName}/token`;
    const boundObjectRef = { kind: 'Pod', apiVersion: 'v1', name: metadata.name };
    const answer = await admin('POST', path, {
      spec: { expirationSeconds, boundObjectRef, ...(audience !== undefined && { audiences: [audience] }) },
    });
    return (answer as { readonly status: { readonly token: string } }).status.token;
  }

  const get = (service: string, path: string, token?: string): Promise<Answer> =>
    send(`${urls.get(service)}${path}`, token === undefined ? { signal } : { token, signal });
  const tokenOf = (service: string, name: string): string => readFileSync(join(directory, service, 'var/run/secrets/tokens', name), 'utf8');

  it('greet api', async () => {
    assert.deepEqual(await get('api', '/'), {
      status: 200,
      code: undefined,
      retryAfter: undefined,
      body: 'Hello from secret store. You have been authenticated',
    });
    assert.equal((await get('api', '/data')).body, 'Hello from data store. You have been authenticated');
  });

  it('refuse whoever sends no token, or one for another service', async () => {
    const none = await get('secret-store', '/');
    assert.deepEqual([none.status, none.code], [401, 'missing_token']);
    const foreign = await get('secret-store', '/', tokenOf('api', 'data-token'));
    assert.deepEqual([foreign.status, foreign.code], [403, 'invalid_token']);
  });

  it('refuse data-store, whom secret-store does not let in', async () => {
    const { status, code } = await get('data-store', '/secret', tokenOf('api', 'data-token'));
    assert.deepEqual([status, code], [403, 'caller_not_allowed']);
  });

  it('tell api who it is', async () => {
    const { body } = await get('secret-store', '/whoami', tokenOf('api', 'api-token'));
    const { serviceAccount, pod } = JSON.parse(body) as { readonly serviceAccount: string; readonly pod: string };
    assert.deepEqual([serviceAccount, pod], ['api/api', 'app-0']);
  });

  it('refuse a pod that was deleted', async () => {
    const { metadata, spec } = await createPod('api', 'app-1');
    const token = await requestToken({ metadata, spec }, { audience: 'secret-store', expirationSeconds: 600, path: '' });
    await admin('DELETE', `/api/v1/namespaces/api/pods/${metadata.name}?gracePeriodSeconds=0`);
    await settle(async () => (await get('secret-store', '/', token)).code === 'invalid_token');
  });
}

describe('the three services and the authority', () => {
  defineCases(playControlPlane);
});

describe('the three services and a real control plane', () => {
  // Their namespaces have names that a cluster of somebody else may have too.
  if (isControlPlaneNamed() && process.env['K8S_SA_AUTH_CLUSTER'] !== '1') defineCases(connectControlPlane);
  else it('do the same', (t) => t.skip(`not run: ${howToRun}`));
});
