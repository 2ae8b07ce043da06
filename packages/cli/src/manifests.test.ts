import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { promisify } from 'node:util';

import { createGuard, createServiceClient } from '@k8s-sa-auth/core';
import { requestWith } from '@k8s-sa-auth/core/diagnosis';
import { type Authority, createAuthority } from '@k8s-sa-auth/testing';
import * as fc from 'fast-check';
import { parseAllDocuments } from 'yaml';

import { UsageError } from './arguments.ts';
import { send } from './fixtures/administrator.ts';
import { run } from './fixtures/run.ts';
import { manifests } from './manifests.ts';

interface Parsed {
  readonly kind: string;
  readonly metadata: { readonly name: string; readonly namespace?: string };
  readonly rules?: readonly object[];
  readonly roleRef?: { readonly name: string };
  readonly subjects?: readonly { readonly kind: string; readonly namespace: string; readonly name: string }[];
  readonly spec?: { readonly template: { readonly spec: PodSpec } };
}
interface PodSpec {
  readonly serviceAccountName: string;
  readonly containers: readonly {
    readonly name: string;
    readonly volumeMounts: readonly { readonly name: string; readonly mountPath: string }[];
  }[];
  readonly volumes: readonly {
    readonly name: string;
    readonly projected: {
      readonly sources: readonly {
        readonly serviceAccountToken: { readonly path: string; readonly audience: string; readonly expirationSeconds: number };
      }[];
    };
  }[];
}

// As kubectl reads it, by YAML 1.1, and as others do.
function read(text: string): readonly Parsed[] {
  const [older, newer] = (['1.1', '1.2'] as const).map((version) =>
    parseAllDocuments(text, { version }).map((document) => {
      assert.deepEqual([...document.errors, ...document.warnings], []);
      return document.toJS() as Parsed;
    }),
  );
  assert.deepEqual(older, newer);
  return newer ?? [];
}

async function print(...args: readonly string[]): Promise<string> {
  let text = '';
  const unused = (): void => assert.fail();
  assert.equal(await manifests.run(args, { text: (more) => void (text += more), line: unused, marked: unused, json: unused }), 0);
  return text;
}

const deaf = { info() {}, warn() {}, error() {} };

describe('manifests', () => {
  const directory = mkdtempSync(join(tmpdir(), 'manifests-'));
  let authority: Authority;

  before(async () => {
    authority = await createAuthority();
  });
  after(async () => {
    await authority.close();
    rmSync(directory, { recursive: true });
  });

  async function apply(text: string): Promise<void> {
    writeFileSync(join(directory, 'k8s.yaml'), text);
    await authority.apply(join(directory, 'k8s.yaml'));
  }

  // A Deployment as it was before anybody called anybody.
  function deploymentOf(namespace: string, name: string, container: string): object {
    const labels = { app: name };
    const spec = { containers: [{ name: container, image: 'app' }] };
    return {
      apiVersion: 'apps/v1',
      kind: 'Deployment',
      metadata: { name, namespace },
      spec: { selector: { matchLabels: labels }, template: { metadata: { labels }, spec } },
    };
  }

  it('prints what makes a whole call work, for each caller', async () => {
    // What is there already: namespaces, ServiceAccounts, Deployments, and nothing else.
    const store = await authority.pod('secret-store/secret-store', { reviews: false });
    await Promise.all(['api/api', 'ops/jobs'].map((name) => authority.token(name, { audience: 'x' })));
    await apply(
      [deploymentOf('api', 'app', 'app'), deploymentOf('ops', 'jobs', 'worker')].map((one) => JSON.stringify(one)).join('\n---\n'),
    );
    const guard = createGuard({ audience: 'secret-store', allow: ['api/api', 'ops/*'], apiServer: store.apiServer, logger: deaf });
    await assert.rejects(guard.ready(), /may not create TokenReviews/);

    const args = [
      '--callee',
      'secret-store/secret-store',
      '--audience',
      'secret-store',
      '--caller',
      'api/api:app',
      '--caller',
      'ops/jobs:jobs/worker',
    ];
    const { code, out, error } = await run(['manifests', ...args]);
    assert.deepEqual([code, error], [0, '']);
    await apply(await print(...args, '--only', 'callee'));
    const patches = read(out).filter(({ kind }) => kind === 'Deployment');
    for (const patch of patches) {
      const path = `/apis/apps/v1/namespaces/${patch.metadata.namespace}/deployments/${patch.metadata.name}`;
      await send(authority, 'PATCH', path, patch, 'application/strategic-merge-patch+json');
    }
    const callers = ['api/api', 'ops/jobs'].map((name) => authority.pods.findLast(({ serviceAccount }) => serviceAccount === name));

    await guard.ready();
    for (const pod of callers) {
      assert.ok(pod);
      const tokenFile = join(pod.env['K8S_SA_AUTH_ROOT'] ?? '', 'var/run/secrets/secret-store/token');
      const client = createServiceClient({ targets: [{ origin: 'http://app.secret-store', tokenFile }] });
      const headers = await client.target('http://app.secret-store').headers();
      const caller = await guard.check(requestWith(headers['x-client-id'] ?? '', 'x-client-id'));
      assert.equal(caller?.serviceAccount, pod.serviceAccount);
      assert.equal(caller.pod?.uid, pod.uid);
      await client.close();
      const doctor = await run(['doctor', '--only', 'caller'], pod);
      assert.equal(doctor.code, 0, doctor.out);
    }
    await guard.close();
    const doctor = await run(['doctor', '--audience', 'secret-store'], store);
    assert.equal(doctor.code, 0, doctor.out);
  });

  it('is what kubectl takes: objects to apply, and a patch that leaves the other tokens of a Deployment alone', async (t) => {
    const cluster = await createAuthority();
    t.after(() => cluster.close());
    // The authority runs in this process, so nothing here may wait for kubectl but by a promise.
    const kubectl = async (args: readonly string[], input = ''): Promise<string> => {
      const env = { PATH: process.env['PATH'], HOME: directory, KUBECONFIG: cluster.kubeconfig };
      const ending = promisify(execFile)('kubectl', args, { env });
      ending.child.stdin?.end(input);
      return (await ending).stdout;
    };
    if ((await kubectl(['version', '--client']).catch(() => '')) === '') {
      t.skip('no kubectl on this machine');
      return;
    }
    await kubectl(['apply', '-f', join(import.meta.dirname, '../../../examples/api/k8s.yaml')]);
    const objects = await print('--callee', 'vault/vault', '--only', 'callee', '--authorize');
    assert.equal((await kubectl(['apply', '-f', '-'], objects)).match(/ created$/gm)?.length, 4);
    assert.equal((await kubectl(['apply', '-f', '-'], objects)).match(/ unchanged$/gm)?.length, 4);

    writeFileSync(join(directory, 'patch.yaml'), await print('--audience', 'vault', '--caller', 'api/api:app', '--only', 'caller'));
    const patch = ['patch', 'deployment', 'app', '-n', 'api', '--patch-file', join(directory, 'patch.yaml')];
    assert.match(await kubectl(patch), / patched$/m);
    const { spec } = JSON.parse(await kubectl(['get', 'deployment', 'app', '-n', 'api', '-o', 'json'])) as Parsed;
    const tokens = spec?.template.spec.volumes.flatMap(({ projected }) => projected.sources.map((one) => one.serviceAccountToken.audience));
    assert.deepEqual(tokens, ['secret-store', 'data-store', 'vault']);
    assert.equal(spec?.template.spec.containers.length, 1);
  });

  it('grants create tokenreviews and nothing else', async () => {
    const [role, binding, ...others] = read(await print('--callee', 'shop/web', '--only', 'callee'));
    assert.deepEqual(others, []);
    assert.deepEqual(role?.rules, [{ apiGroups: ['authentication.k8s.io'], resources: ['tokenreviews'], verbs: ['create'] }]);
    assert.equal(binding?.roleRef?.name, role?.metadata.name);
    assert.deepEqual(binding?.subjects, [{ kind: 'ServiceAccount', namespace: 'shop', name: 'web' }]);
  });

  it('grants create subjectaccessreviews by a role of its own, so that another callee does not lose it', async () => {
    const more = read(await print('--callee', 'shop/web', '--only', 'callee', '--authorize'));
    const less = read(await print('--callee', 'bank/web', '--only', 'callee'));
    const roles = more.filter(({ kind }) => kind === 'ClusterRole');
    assert.deepEqual(roles[1]?.rules, [{ apiGroups: ['authorization.k8s.io'], resources: ['subjectaccessreviews'], verbs: ['create'] }]);
    assert.deepEqual(less[0], roles[0]);
    assert.equal(more.length, 4);
  });

  it('binds a-b/c and a/b-c apart', async () => {
    const [one, other] = await Promise.all(
      ['a-b/c', 'a/b-c'].map(async (callee) => read(await print('--callee', callee, '--only', 'callee'))),
    );
    assert.notEqual(one?.[1]?.metadata.name, other?.[1]?.metadata.name);
  });

  it('mounts a token in a volume of its own, which replaces no other audience’s', async () => {
    const caller = ['--only', 'caller', '--caller', 'api/api:app/main', '--audience'];
    const specs = await Promise.all(
      ['shop', 'Shop', 'https://shop.example', 'shop_', 'x'.repeat(300)].map(
        async (audience) => read(await print(...caller, audience))[0]?.spec?.template.spec,
      ),
    );
    const volumes = specs.flatMap((spec) => spec?.volumes.map(({ name }) => name) ?? []);
    const paths = specs.flatMap(
      (spec) => spec?.containers.flatMap(({ volumeMounts }) => volumeMounts.map(({ mountPath }) => mountPath)) ?? [],
    );
    assert.equal(new Set(volumes).size, 5);
    assert.equal(new Set(paths).size, 5);
    for (const name of volumes) assert.match(name, /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/);
    assert.deepEqual([volumes[0], paths[0]], ['shop-token', '/var/run/secrets/shop']);
  });

  it('says in one line what is missing or wrong', async () => {
    const mistakes = [
      [],
      ['--callee', 'shop/shop'],
      ['--callee', 'shop/shop', '--audience', 'shop'],
      ['--callee', 'shop', '--audience', 'shop', '--caller', 'api/api'],
      ['--callee', 'shop/*', '--audience', 'shop', '--caller', 'api/api'],
      ['--callee', 'Shop/shop', '--only', 'callee'],
      ['--callee', 'shop/shop', '--callee', 'shop/shop', '--only', 'callee'],
      ['--callee', 'shop/shop', '--audience', 'a b', '--caller', 'api/api'],
      ['--callee', 'shop/shop', '--audience', 'shop', '--caller', 'api'],
      ['--audience', 'shop', '--caller', 'api/api:', '--only', 'caller'],
      ['--audience', 'shop', '--caller', 'api/api:app/', '--only', 'caller'],
      ['--audience', 'shop', '--caller', 'api/api:app/a/b', '--only', 'caller'],
      ['--audience', 'shop', '--caller', 'api/api:a:b', '--only', 'caller'],
      ['--audience', 'shop', '--caller', 'api/x.y', '--only', 'caller'],
      ['--audience', 'shop', '--caller', 'api/api', '--caller', 'api/api', '--only', 'caller'],
      ['--audience', 'shop', '--caller', 'api/api', '--only', 'caller', '--authorize'],
      ['--callee', 'shop/shop', '--only', 'both'],
      ['shop'],
    ];
    for (const args of mistakes) await assert.rejects(manifests.run(args, silent), oneLine, args.join(' '));
    const { code, out, error } = await run(['manifests', '--callee', 'shop']);
    assert.deepEqual([code, out], [2, '']);
    assert.match(
      error,
      /^k8s-sa-auth: --callee: "shop" is not namespace\/name, as Kubernetes names them \(k8s-sa-auth manifests --help\)\n$/,
    );
  });

  const silent = { text() {}, line() {}, marked() {}, json() {} };
  const oneLine = (error: unknown): true => {
    assert.ok(error instanceof UsageError);
    assert.doesNotMatch(error.message, /^$|\n/);
    return true;
  };

  // What YAML 1.1 would take for something else than a word comes first.
  const name = fc.oneof(
    fc.constantFrom('no', 'on', 'y', 'null', 'true', '123', '1e3', '0x1f', '012', '1-1', 'a.b'),
    fc.stringMatching(/^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/),
  );
  const audience = fc.oneof(
    name,
    fc.webUrl(),
    fc.stringMatching(/^[^\s,]{1,40}$/),
    fc.constantFrom('eyewear-shop.example', '~', '#', '!x', '&a', '*a', '{', '- ', "'", '"', '%', '@', '`'),
  );

  it('prints exactly what was named, whatever it is', () =>
    fc.assert(
      fc.asyncProperty(fc.tuple(name, name, name, name, audience), async ([namespace, callee, team, caller, named]) => {
        fc.pre(
          !namespace.includes('.') &&
            !team.includes('.') &&
            !caller.includes('.') &&
            /^[^\s,\p{Cc}\p{Cf}\p{Cs}]+$/u.test(named) &&
            !named.startsWith('-'),
        );
        const args = ['--callee', `${namespace}/${callee}`, '--audience', named, '--caller', `${team}/${caller}`];
        const [, binding, patch, ...others] = read(await print(...args));
        assert.deepEqual(others, []);
        assert.deepEqual(binding?.subjects, [{ kind: 'ServiceAccount', namespace, name: callee }]);
        assert.deepEqual(patch?.metadata, { name: caller, namespace: team });
        const spec = patch?.spec?.template.spec;
        assert.equal(spec?.serviceAccountName, caller);
        assert.deepEqual(spec?.volumes[0]?.projected.sources, [
          { serviceAccountToken: { path: 'token', audience: named, expirationSeconds: 600 } },
        ]);
        assert.equal(spec?.volumes[0]?.name, spec?.containers[0]?.volumeMounts[0]?.name);
      }),
    ));

  it('refuses in one line whatever else is named', () =>
    fc.assert(
      fc.asyncProperty(fc.string({ minLength: 1 }), fc.constantFrom('--callee', '--caller'), async (text, option) => {
        fc.pre(!text.startsWith('-') && !/^[a-z0-9][-a-z0-9]*\/[-a-z0-9.:/]+$/.test(text));
        const rest = option === '--callee' ? ['--only', 'callee'] : ['--only', 'caller', '--audience', 'shop'];
        await assert.rejects(manifests.run([option, text, ...rest], silent), UsageError);
      }),
    ));
});
