import assert from 'node:assert/strict';
import { execFile, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import type { TestContext } from 'node:test';
import { promisify } from 'node:util';
import { createAuthority } from './authority.ts';
import type { Authority } from './authority.ts';
import { parseToken } from './signing.ts';

const examples = ['api', 'data-store', 'secret-store'].map((name) =>
  join(import.meta.dirname, '..', '..', '..', 'examples', name, 'k8s.yaml'),
);

const command = 'kubectl';

/** Skips the test where there is no kubectl, or one that is too old to know the command. */
function skipsWithout(t: TestContext, minor = 0): boolean {
  const { status, stdout } = spawnSync(command, ['version', '--client', '-o', 'json'], { encoding: 'utf8' });
  if (status !== 0) t.skip('no kubectl on this machine');
  const found = status === 0 ? Number.parseInt(JSON.parse(stdout).clientVersion.minor, 10) : 0;
  if (status === 0 && found < minor) t.skip(`kubectl 1.${found} is too old`);
  return status !== 0 || found < minor;
}

// A stock kubectl, whichever is on PATH, with the kubeconfig of the authority.
describe('kubectl', () => {
  const home = mkdtempSync(join(tmpdir(), 'kubectl-'));
  let authority: Authority;

  before(async () => {
    authority = await createAuthority();
  });
  after(async () => {
    await authority.close();
    rmSync(home, { recursive: true });
  });
  const kubectl = (...args: readonly string[]): Promise<string> => kubectlAs(authority, ...args);
  async function kubectlAs({ kubeconfig }: Pick<Authority, 'kubeconfig'>, ...args: readonly string[]): Promise<string> {
    const env = { PATH: process.env['PATH'], HOME: home, KUBECONFIG: kubeconfig };
    const { stdout } = await promisify(execFile)(command, args, { env });
    return stdout;
  }

  it('applies the manifests of the examples, and finds them unchanged the second time', async (t) => {
    if (skipsWithout(t)) return;
    const files = examples.flatMap((file) => ['-f', file]);
    const first = await kubectl('apply', ...files);
    assert.match(first, /^deployment\.apps\/app created$/m);
    assert.match(first, /^clusterrolebinding\S+\/secret-store:secret-store:auth-delegator created$/m);
    const second = await kubectl('apply', ...files);
    assert.doesNotMatch(second, /created|configured/);
    assert.deepEqual(
      authority.pods.map(({ serviceAccount }) => serviceAccount),
      ['api/api', 'data-store/data-store', 'secret-store/secret-store'],
    );
  });

  it('shows and deletes pods and ServiceAccounts', async (t) => {
    if (skipsWithout(t)) return;
    const pod = await authority.pod('shop/shop');
    assert.match(await kubectl('get', 'pod,serviceaccount', '-n', 'shop'), new RegExp(`^pod/${pod.name} +1/1 +Running`, 'm'));
    assert.equal(await kubectl('delete', 'pod', pod.name, '-n', 'shop'), `pod "${pod.name}" deleted\n`);
    assert.equal(await kubectl('delete', 'serviceaccount', 'shop', '-n', 'shop'), 'serviceaccount "shop" deleted\n');
    assert.equal(authority.pods.includes(pod), false);
  });

  it('creates tokens', async (t) => {
    if (skipsWithout(t, 24)) return;
    await kubectl('create', 'namespace', 'mint');
    await kubectl('create', 'serviceaccount', 'mint', '-n', 'mint');
    const token = await kubectl('create', 'token', 'mint', '-n', 'mint', '--audience', 'store', '--duration', '10m');
    assert.deepEqual(parseToken(token.trim())?.claims['aud'], ['store']);
  });

  it('says who the caller is and what it may do', async (t) => {
    if (skipsWithout(t, 28)) return;
    await authority.pod('judge/judge');
    await authority.token('judge/other', { audience: 'store' });
    assert.match(await kubectl('auth', 'whoami'), /^Username +kubernetes-admin$/m);
    const mayReview = ['auth', 'can-i', 'create', 'tokenreviews.authentication.k8s.io', '--as'];
    assert.equal(await kubectl(...mayReview, 'system:serviceaccount:judge:judge'), 'yes\n');
    await assert.rejects(kubectl(...mayReview, 'system:serviceaccount:judge:other'), { stdout: 'no\n' });
    const rules = await kubectl('auth', 'can-i', '--list', '--as', 'system:serviceaccount:judge:judge');
    assert.match(rules, /^tokenreviews\.authentication\.k8s\.io +\[\] +\[\] +\[create\]$/m);
  });

  it('is a user with a client certificate', async (t) => {
    if (skipsWithout(t, 28)) return;
    const jane = await authority.user('jane', { groups: ['dev'] });
    assert.match(await kubectlAs(jane, 'auth', 'whoami'), /^Username +jane\nGroups +\[dev system:authenticated\]$/m);
    await assert.rejects(kubectlAs(jane, 'get', 'namespaces'), { stderr: /User "jane" cannot list resource "namespaces"/ });
    await kubectl('create', 'clusterrolebinding', 'dev', '--clusterrole', 'cluster-admin', '--group', 'dev');
    assert.match(await kubectlAs(jane, 'get', 'namespaces'), /^kube-system +Active/m);
  });

  it('deletes what a manifest names', async (t) => {
    if (skipsWithout(t)) return;
    await kubectl('apply', ...examples.flatMap((file) => ['-f', file]));
    await kubectl('delete', ...examples.flatMap((file) => ['-f', file]));
    assert.equal((await kubectl('get', 'namespaces')).includes('secret-store'), false);
    assert.deepEqual(
      authority.pods.filter(({ namespace }) => namespace === 'api'),
      [],
    );
  });
});
