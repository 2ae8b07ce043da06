import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';
import { createAuthority } from './authority.ts';
import type { Authority } from './authority.ts';
import { parseToken } from './signing.ts';

const shop = `
apiVersion: v1
kind: Namespace
metadata: { name: shop }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: web, namespace: shop }
spec:
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      serviceAccountName: web
      containers:
        - name: web
          image: web
          env:
            - { name: PORT, value: '8080' }
            - { name: NAMESPACE, valueFrom: { fieldRef: { fieldPath: metadata.namespace } } }
          volumeMounts:
            - { name: tokens, mountPath: /var/run/secrets/store, readOnly: true }
      volumes:
        - name: tokens
          projected:
            sources:
              - serviceAccountToken: { path: token, audience: store, expirationSeconds: 600 }
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: web, namespace: shop }
---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop }
spec: { selector: { app: web }, ports: [{ port: 80 }] }
`;

const quiet = `
apiVersion: v1
kind: ServiceAccount
metadata: { name: quiet }
automountServiceAccountToken: false
---
apiVersion: v1
kind: Pod
metadata: { name: quiet }
spec:
  serviceAccountName: quiet
  containers: [{ name: quiet, image: quiet }]
`;

describe('apply', () => {
  let directory = '';
  let authority: Authority;
  const write = (name: string, text: string): string => {
    const file = join(directory, name);
    writeFileSync(file, text);
    return file;
  };

  before(() => {
    directory = mkdtempSync(join(tmpdir(), 'manifests-'));
  });
  after(() => rmSync(directory, { recursive: true }));
  beforeEach(async () => {
    authority = await createAuthority();
  });
  afterEach(() => authority.close());

  it('makes one pod of a Deployment, whose ServiceAccount may come later', async () => {
    const [pod, ...others] = await authority.apply(write('shop.yaml', shop));
    assert.deepEqual(others, []);
    assert.equal(pod?.serviceAccount, 'shop/web');
    assert.match(pod.name, /^web-[0-9a-f]{10}-[0-9a-f]{5}$/);
    assert.deepEqual([pod.env['PORT'], pod.env['NAMESPACE']], ['8080', 'shop']);
    const file = join(pod.env['K8S_SA_AUTH_ROOT'] ?? '', 'var/run/secrets/store/token');
    assert.equal(pod.tokenFile('token'), file);
    const { aud, exp, iat } = parseToken(readFileSync(file, 'utf8'))?.claims ?? {};
    assert.deepEqual([aud, Number(exp) - Number(iat)], [['store'], 600]);
    assert.equal(existsSync(pod.apiServer.tokenFile), true);
    assert.deepEqual(authority.pods, [pod]);
  });

  it('keeps the pod of a Deployment that is applied again, and replaces it when it has changed', async () => {
    const file = write('again.yaml', shop);
    const [first] = await authority.apply(file);
    assert.deepEqual(await authority.apply(file), []);
    const [second] = await authority.apply(write('changed.yaml', shop.replace("'8080'", "'9090'")));
    assert.notEqual(second?.uid, first?.uid);
    assert.deepEqual(authority.pods, [second]);
  });

  it('gives no API token to a pod whose ServiceAccount does not want one', async () => {
    const [pod] = await authority.apply(write('quiet.yaml', quiet));
    assert.equal(pod?.name, 'quiet');
    assert.equal(existsSync(pod.apiServer.tokenFile), false);
    assert.throws(() => pod.tokenFile('token'), /no token file "token": it has none/);
  });

  it('takes a pattern, at the start too', async () => {
    write('pattern-a.yaml', shop);
    write('pattern-b.yaml', quiet);
    const started = await createAuthority({ manifests: join(directory, 'pattern-*.yaml') });
    assert.deepEqual(
      started.pods.map(({ serviceAccount }) => serviceAccount),
      ['shop/web', 'default/quiet'],
    );
    await started.close();
  });

  it('names the kind, the file and the document that it does not take', async () => {
    const file = write('unknown.yaml', `${quiet}---\napiVersion: batch/v1\nkind: CronJob\nmetadata: { name: x }\n`);
    await assert.rejects(authority.apply(file), { message: new RegExp(`^${file}, document 3: kind CronJob of batch/v1 is not supported`) });
  });

  it('says which part of the type is missing', async () => {
    for (const [name, text, what] of [
      ['no-version', 'kind: Foo', 'apiVersion is missing'],
      ['no-kind', 'apiVersion: v1', 'kind is missing'],
      ['neither', 'metadata: { name: x }', 'apiVersion and kind are missing'],
      ['number', 'apiVersion: 1\nkind: Pod', 'apiVersion must be a string'],
    ] as const) {
      const file = write(`${name}.yaml`, text);
      await assert.rejects(authority.apply(file), { message: `${file}, document 1: ${what}` });
    }
  });

  it('names the path that is not there', async () => {
    await assert.rejects(authority.apply(join(directory, 'nope')), { message: `there is no ${join(directory, 'nope')}` });
  });

  it('replaces a deleted pod of a Deployment, and no other', async () => {
    const started = await createAuthority({ manifests: [write('replaced-a.yaml', shop), write('replaced-b.yaml', quiet)] });
    const [old, single] = started.pods;
    const token = readFileSync(old?.tokenFile('token') ?? '', 'utf8');
    await started.delete('pod', `shop/${old?.name}`);
    const next = started.pods.at(-1);
    assert.equal(next?.serviceAccount, 'shop/web');
    assert.notEqual(next.uid, old?.uid);
    assert.notEqual(readFileSync(next.tokenFile('token'), 'utf8'), token);
    await started.delete('pod', `shop/${next.name}`, { gracePeriodSeconds: 30 });
    assert.equal(started.pods.filter(({ serviceAccount }) => serviceAccount === 'shop/web').length, 2);
    await started.delete('pod', `default/${single?.name}`);
    assert.equal(started.pods.length, 2);
    await started.delete('namespace', 'shop');
    assert.deepEqual(started.pods, []);
    await started.close();
  });

  it('names the field that a kind does not have', async () => {
    const file = write('misspelt.yaml', quiet.replace('automountServiceAccountToken', 'automountServiceAccountTokens'));
    const unknown = 'strict decoding error: unknown field "automountServiceAccountTokens"';
    await assert.rejects(authority.apply(file), { message: `${file}, document 1: ServiceAccount cannot be read: ${unknown}` });
  });

  it('names the file and the document where something is missing', async () => {
    const file = write(
      'missing.yaml',
      shop.replace(
        'name: web, namespace: shop }\n---\napiVersion: v1\nkind: Service',
        'name: x, namespace: shop }\n---\napiVersion: v1\nkind: Service',
      ),
    );
    await assert.rejects(authority.apply(file), { message: `${file}, document 2: serviceaccounts "web" not found` });
  });
});
