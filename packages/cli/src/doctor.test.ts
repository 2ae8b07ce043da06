import assert from 'node:assert/strict';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, it, mock } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import { parse } from 'yaml';

import { ended, mendIn, run, start } from './fixtures/run.ts';

const apiAudience = 'https://kubernetes.default.svc.cluster.local';
const ownFiles = 'var/run/secrets/kubernetes.io/serviceaccount';

let authority: Authority;
let store: Pod;
let directory: string;

before(async () => {
  authority = await createAuthority();
  store = await authority.pod('secret-store/secret-store');
});
after(() => authority.close());
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'doctor-'));
});
afterEach(async () => {
  mock.timers.reset();
  rmSync(directory, { recursive: true });
  await authority.recover();
});

function write(name: string, text: string): string {
  writeFileSync(join(directory, name), text);
  return join(directory, name);
}

// The environment of a pod whose files a test may change.
function copyOf({ env }: Pod): Readonly<Record<string, string>> {
  cpSync(env['K8S_SA_AUTH_ROOT'] ?? '', join(directory, 'root'), { recursive: true, verbatimSymlinks: true });
  return { ...env, K8S_SA_AUTH_ROOT: join(directory, 'root') };
}

// The lines that say how a check came out, without what it is about.
function marksOf(out: string): readonly string[] {
  return [...out.matchAll(/^([✓!✗–]) (\S+)/gm)].map(([, mark, check]) => `${mark} ${check}`);
}

const line = (out: string, check: string): string => out.split('\n').find((text) => text.startsWith(check, 2)) ?? '';

describe('doctor, in a pod of a callee', () => {
  it('finds all good', async () => {
    const { code, out, error } = await run(['doctor', '--audience', 'secret-store', '--authorize'], store);
    assert.deepEqual([code, error], [0, '']);
    assert.equal(
      out.replace(/in \d+ days/, 'in … days').replaceAll(store.env['K8S_SA_AUTH_ROOT'] ?? '', ''),
      `✓ api-server    ${authority.url}, by this pod's environment
✓ connection    answers
✓ certificate   signed by the CA that we trust
✓ credential    system:serviceaccount:secret-store:secret-store, expires in … days
✓ permission    may create tokenreviews
✓ permission    may create subjectaccessreviews
✓ signing-keys  readable at /openid/v1/jwks
✓ audience      "secret-store" is not the API server's
– token-file    no token file below /var/run/secrets: --token-file names others
`,
    );
  });

  it('tells the same to a program', async () => {
    const { code, out } = await run(['doctor', '--json', '--audience', 'secret-store'], store);
    const { ok, checks } = JSON.parse(out) as { ok: boolean; checks: readonly { check: string; subject?: string; status: string }[] };
    assert.deepEqual([code, ok], [0, true]);
    assert.deepEqual(
      checks.map(({ check, subject, status }) => [check, subject, status].join(' ')),
      [
        'api-server  ok',
        'connection  ok',
        'certificate  ok',
        'credential  ok',
        'permission tokenreviews ok',
        'signing-keys  ok',
        'audience secret-store ok',
        'token-file  skipped',
      ],
    );
  });

  it('prints the YAML that permits what is missing, and finds all good once that is applied', async () => {
    const pod = await authority.pod('norbac/no', { reviews: false });
    const args = ['doctor', '--authorize', '--only', 'callee'];
    const sick = await run(args, pod);
    assert.deepEqual([sick.code, sick.error], [1, '']);
    assert.match(sick.out, /^✗ permission {4}system:serviceaccount:norbac:no may not create tokenreviews$/m);
    assert.match(sick.out, /^✗ permission {4}system:serviceaccount:norbac:no may not create subjectaccessreviews$/m);
    await authority.apply(write('mend.yaml', mendIn(sick.out, /kubectl apply/)));
    const mended = await run(args, pod);
    assert.equal(mended.code, 0, mended.out);
    assert.doesNotMatch(mended.out, /To mend/);
  });

  it('grants no more than what is missing', async () => {
    const pod = await authority.pod('norbac/least', { reviews: false });
    const sick = await run(['doctor'], pod);
    await authority.apply(write('mend.yaml', mendIn(sick.out, /kubectl apply/)));
    const { code, out } = await run(['doctor', '--authorize'], pod);
    assert.equal(code, 1);
    assert.match(out, /^✓ permission .* tokenreviews$/m);
    assert.match(out, /^✗ permission .* subjectaccessreviews$/m);
  });

  it('blames the CA', async (t) => {
    const env = copyOf(store);
    const other = await createAuthority();
    t.after(() => other.close());
    writeFileSync(join(directory, 'root', ownFiles, 'ca.crt'), readFileSync(other.caFile));
    const { code, out, error } = await run(['doctor', '--audience', 'secret-store', '--only', 'callee'], { env });
    assert.deepEqual([code, error], [1, '']);
    assert.deepEqual(marksOf(out), [
      '✓ api-server',
      '✓ connection',
      '✗ certificate',
      '– credential',
      '– permission',
      '– signing-keys',
      '– audience',
    ]);
    assert.match(line(out, 'certificate'), /is not trusted .*is the CA file the cluster's\?/);
  });

  it('blames the connection in an outage', async () => {
    authority.fail('outage');
    const { code, out, error } = await run(['doctor', '--only', 'callee'], store);
    assert.deepEqual([code, error], [1, '']);
    assert.deepEqual(marksOf(out), ['✓ api-server', '✗ connection', '– certificate', '– credential', '– permission', '– signing-keys']);
    assert.match(line(out, 'connection'), /cannot be connected to \(ECONNREFUSED\)/);
  });

  it('waits no longer than it was told', async () => {
    authority.fail('slow');
    const { code, out } = await run(['doctor', '--only', 'callee', '--timeout', '1'], store);
    assert.equal(code, 1);
    assert.match(line(out, 'connection'), /^✗ connection {4}(There was no answer within 1 s|The API server did not answer in time)/);
  });

  it('blames the credential that the API server refuses', async () => {
    authority.fail('unauthorized');
    const { code, out } = await run(['doctor', '--only', 'callee'], store);
    assert.equal(code, 1);
    assert.deepEqual(marksOf(out).slice(0, 5), ['✓ api-server', '✓ connection', '✓ certificate', '✗ credential', '– permission']);
  });

  it('blames the credential that is not there', async () => {
    const env = copyOf(store);
    rmSync(join(directory, 'root', ownFiles, 'token'));
    const { code, out } = await run(['doctor', '--only', 'callee'], { env });
    assert.equal(code, 1);
    assert.deepEqual(marksOf(out).slice(0, 4), ['✓ api-server', '– connection', '– certificate', '✗ credential']);
    assert.match(line(out, 'credential'), /token does not exist.*A pod that only calls others needs none: --only caller$/);
  });

  it('refuses an audience that is the API server’s', async () => {
    const { code, out } = await run(['doctor', '--audience', 'shop', '--audience', apiAudience, '--only', 'callee'], store);
    assert.equal(code, 1);
    assert.match(out, /^✓ audience {6}"shop"/m);
    assert.match(out, /^✗ audience .*is the API server's own/m);
  });

  it('warns of keys that cannot be read, is stricter where they decide, and prints what permits it', async (t) => {
    const hardened = await createAuthority();
    t.after(() => hardened.close());
    const pod = await hardened.pod('secret-store/secret-store');
    const name = 'system:service-account-issuer-discovery';
    const roleRef = `roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: '${name}' }`;
    const binding = `apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: { name: '${name}' }\n${roleRef}\nsubjects: []\n`;
    await hardened.apply(write('hardened.yaml', binding));
    const warned = await run(['doctor'], pod);
    assert.equal(warned.code, 0);
    assert.match(line(warned.out, 'signing-keys'), /^! signing-keys .*\/openid\/v1\/jwks answers 403.*a forged token costs a review$/);
    const strict = ['doctor', '--verification', 'signature'];
    const refused = await run(strict, pod);
    assert.equal(refused.code, 1);
    assert.match(line(refused.out, 'signing-keys'), /^✗/);
    assert.match(line(refused.out, 'permission'), /^– permission .*not needed/);
    await hardened.apply(write('mend.yaml', mendIn(refused.out, /kubectl apply/)));
    assert.equal((await run(strict, pod)).code, 0);
  });
});

describe('doctor, by a kubeconfig', () => {
  // As formatted for a person: JSON is YAML.
  function kubeconfig(user: object, cluster: object = { server: authority.url, 'certificate-authority': authority.caFile }): string {
    const contexts = ['one', 'two'].map((name) => ({ name, context: { cluster: name, user: 'me' } }));
    const clusters = [
      { name: 'one', cluster },
      { name: 'two', cluster: { server: 'https://127.0.0.1:1', 'certificate-authority': authority.caFile } },
    ];
    const config = { apiVersion: 'v1', kind: 'Config', 'current-context': 'one', clusters, contexts, users: [{ name: 'me', user }] };
    return write('kubeconfig', JSON.stringify(config));
  }

  it('finds all good, as whoever it is', async () => {
    const { code, out, error } = await run(['doctor', '--kubeconfig', authority.kubeconfig, '--audience', 'shop', '--only', 'callee']);
    assert.deepEqual([code, error], [0, '']);
    assert.match(line(out, 'api-server'), /, by the kubeconfig$/);
    assert.match(line(out, 'permission'), /^✓ permission {4}may create tokenreviews: kubernetes-admin may\. What a service may,/);
    assert.equal(line(out, 'credential'), '✓ credential    kubernetes-admin');
    assert.match(line(out, 'audience'), /^– audience {6}only a pod's own token tells/);
  });

  it('reads KUBECONFIG, and names whom to grant what is missing', async () => {
    const token = await authority.token('norbac/laptop', { audience: apiAudience });
    const env = { KUBECONFIG: kubeconfig({ token }) };
    const sick = await run(['doctor', '--only', 'callee'], { env });
    assert.equal(sick.code, 1);
    await authority.apply(write('mend.yaml', mendIn(sick.out, /kubectl apply/)));
    assert.equal((await run(['doctor', '--only', 'callee'], { env })).code, 0);
  });

  it('takes another context', async () => {
    const config = kubeconfig({ token: 'x' });
    const [named, found] = await Promise.all([
      run(['doctor', '--kubeconfig', config, '--context', 'two', '--only', 'callee']),
      run(['doctor', '--context', 'two', '--only', 'callee'], { env: { KUBECONFIG: config } }),
    ]);
    assert.match(line(named.out, 'api-server'), /https:\/\/127\.0\.0\.1:1,/);
    assert.equal(found.out, named.out);
    assert.deepEqual([named.code, found.code], [1, 1]);
  });

  it('says which file is not there, or cannot be trusted', async () => {
    const missing = await run(['doctor', '--kubeconfig', join(directory, 'none'), '--only', 'callee']);
    assert.equal(missing.code, 1);
    assert.match(missing.out, /^✗ api-server {4}.*none does not exist/);
    const insecure = kubeconfig({ token: 'x' }, { server: authority.url, 'insecure-skip-tls-verify': true });
    const refused = await run(['doctor', '--kubeconfig', insecure, '--only', 'callee']);
    assert.equal(refused.code, 1);
    assert.match(refused.out, /^✗ api-server {4}.*insecure-skip-tls-verify/);
  });

  it('does not wait for a program of the kubeconfig that never ends', async () => {
    // `cat` ends when we do, with its standard input.
    const exec = { apiVersion: 'client.authentication.k8s.io/v1', command: 'cat', interactiveMode: 'Never' };
    const { code, out } = await run(['doctor', '--kubeconfig', kubeconfig({ exec }), '--only', 'callee', '--timeout', '1']);
    assert.equal(code, 1);
    assert.deepEqual(marksOf(out).slice(0, 4), ['✓ api-server', '– connection', '– certificate', '✗ credential']);
    assert.match(line(out, 'credential'), /There was no answer within 1 s \(--timeout\)/);
  });
});

describe('doctor, in a pod of a caller', () => {
  const only = ['doctor', '--only', 'caller'];
  let root: string;
  let env: Readonly<Record<string, string>>;

  beforeEach(() => {
    env = copyOf(store);
    root = join(directory, 'root');
    mkdirSync(join(root, 'var/run/secrets/tokens'));
  });

  // As the kubelet's atomic writer does.
  function mount(name: string, token: string): void {
    const volume = join(root, 'var/run/secrets/tokens');
    const fresh = `..${name}`;
    mkdirSync(join(volume, fresh));
    writeFileSync(join(volume, fresh, name), token);
    symlinkSync(join(fresh, name), join(volume, name));
  }
  async function mintAgo(seconds: number, audience: string | readonly string[] = 'shop'): Promise<string> {
    mock.timers.enable({ apis: ['Date'], now: Date.now() - seconds * 1000 });
    const token = await authority.token('api/api', { audience, pod: 'api-0', expirationSeconds: 3_600 });
    mock.timers.reset();
    return token;
  }
  async function told(...args: readonly string[]): Promise<string> {
    const { code, out, error } = await run([...only, ...args], { env });
    assert.equal(error, '');
    const wrong = marksOf(out).some((mark) => mark.startsWith('✗'));
    assert.equal(code, wrong ? 1 : 0);
    return out.replaceAll(root, '');
  }

  it('finds its token files by itself, and asks nobody', async () => {
    authority.fail('outage');
    const pod = await authority.pod('api/api', { tokens: { 'api-token': 'secret-store', 'data-token': 'data-store' } });
    const { code, out } = await run(only, pod);
    assert.equal(code, 0);
    const lines = out.replaceAll(pod.env['K8S_SA_AUTH_ROOT'] ?? '', '').split('\n');
    assert.equal(lines.length, 3);
    const about = 'expires in 5\\d minutes, written (now|\\d+ seconds? ago); due for rotation in 4\\d minutes$';
    assert.match(lines[0] ?? '', new RegExp(`^✓ token-file {4}/var/run/secrets/tokens/api-token: for "secret-store", ${about}`));
    assert.match(lines[1] ?? '', new RegExp(`^✓ token-file {4}/var/run/secrets/tokens/data-token: for "data-store", ${about}`));
  });

  it('lets nothing through of a file name that a terminal would obey', async () => {
    writeFileSync(join(root, 'var/run/secrets/tokens', 'a\u009b31m\u202eb'), '');
    // What cannot be seen, line ends aside.
    assert.doesNotMatch((await run(only, { env })).out, /[^\n\P{C}]/u);
  });

  it('prints no token as JSON that stands on a line of its own', async () => {
    writeFileSync(join(root, 'var/run/secrets/tokens', `a\n${await mintAgo(0)}`.slice(0, 200)), '');
    assert.match((await run([...only, '--json'], { env })).out, /"subject": "[^"]*a\\n\[token\]"/);
  });

  it('says which file is missing, and which volume brings it', async () => {
    const out = await told('--token-file', '/var/run/secrets/tokens/api-token=secret-store');
    assert.match(out, /^✗ token-file {4}\/var\/run\/secrets\/tokens\/api-token does not exist/);

    // Filled in as the comment says.
    const volume = parse(
      mendIn(out, /pod template/)
        .slice(4)
        .replace('name: <container>', 'name: app\n    image: app'),
    ) as object;
    const spec = { serviceAccountName: 'api', ...volume };
    const object = { apiVersion: 'v1', kind: 'Pod', metadata: { name: 'mended', namespace: 'api' }, spec };
    await authority.token('api/api', { audience: 'any' });
    const [pod] = await authority.apply(write('pod.yaml', JSON.stringify(object)));
    const mended = await run([...only, '--token-file', '/var/run/secrets/tokens/api-token=secret-store'], pod);
    assert.equal(mended.code, 0, mended.out);
  });

  it('says that a file is empty', async () => {
    mount('shop', '');
    assert.match(await told(), /^✗ token-file {4}\/var\/run\/secrets\/tokens\/shop is empty/);
  });

  it('says that it is no token', async () => {
    mount('shop', 'hunter2');
    const out = await told();
    assert.match(out, /^✗ token-file .* is not one compact JWT/);
    assert.doesNotMatch(out, /hunter2/);
  });

  it('says that it names two audiences', async () => {
    mount('shop', await mintAgo(0, ['shop', 'bank']));
    assert.match(await told(), /^✗ token-file .* names more than one audience.*Its audiences: "shop", "bank"$/m);
  });

  it('says that it is for the API server', async () => {
    mount('shop', await mintAgo(0, apiAudience));
    const out = await told();
    assert.match(out, /^✗ token-file .* is meant for the API server/);
    assert.match(out, /audience: <audience>/);
  });

  it('says that it is for another service than was said', async () => {
    mount('shop', await mintAgo(0));
    const out = await told('--token-file', '/var/run/secrets/tokens/shop=bank');
    assert.match(out, /^✗ token-file .*: for "shop", not for "bank"$/m);
    assert.match(out, /audience: bank$/m);
  });

  it('says that it has expired', async () => {
    mount('shop', await mintAgo(3_660));
    const out = await told();
    assert.match(out, /^✗ token-file .* expired at .* The kubelet has not rotated it/);
    assert.doesNotMatch(out, /To mend/);
  });

  it('says that the kubelet should have rotated it', async () => {
    mount('shop', await mintAgo(3_200));
    assert.match(await told(), /^✗ token-file .*expires in \d minutes\. The kubelet should have rotated it \d minutes ago/m);
  });

  it('only warns while the kubelet may still come by', async () => {
    mount('shop', await mintAgo(2_890));
    assert.match(await told(), /^! token-file .*Its rotation is due/m);
  });

  it('warns of a clock that is behind', async () => {
    mount('shop', await mintAgo(-300));
    assert.match(await told(), /^! token-file .*This node's clock is \d+ s behind the API server's/m);
  });

  it('says that a subPath mount, a plain file, is never rotated, and how to mount it', async () => {
    writeFileSync(join(root, 'var/run/secrets/tokens/shop'), await mintAgo(0));
    const out = await told();
    assert.match(
      out,
      /^✗ token-file .*It is a plain file, not a link into the volume: mounted with subPath, or copied, it is never rotated$/m,
    );
    assert.match(mendIn(out, /pod template/), /mountPath: \/var\/run\/secrets\/tokens$/m);
  });

  it('puts all tokens of a directory into the volume that mends one', async () => {
    mount('shop', await mintAgo(0));
    mount('bank', '');
    const volume = mendIn(await told(), /pod template/);
    assert.match(volume, /path: bank\n +audience: <audience>/);
    assert.match(volume, /path: shop\n +audience: shop/);
  });

  it('passes over what is no token elsewhere below /var/run/secrets', async () => {
    mkdirSync(join(root, 'var/run/secrets/db'));
    writeFileSync(join(root, 'var/run/secrets/db/password'), 'hunter2');
    assert.match(await told(), /^✗ token-file {4}no token file below/);
  });
});

describe('doctor', () => {
  it('says in one line what is wrong with its options', async () => {
    const mistakes = [
      ['doctor', '--audiense', 'x'],
      ['doctor', '--audience'],
      ['doctor', '--audience', ''],
      ['doctor', '--audience', 'a b'],
      ['doctor', '--timeout', 'soon'],
      ['doctor', '--timeout', '0'],
      ['doctor', '--timeout', '5', '--timeout', '6'],
      ['doctor', '--verification', 'none'],
      ['doctor', '--only', 'me'],
      ['doctor', '--only', 'caller', '--audience', 'x'],
      ['doctor', '--only', 'callee', '--token-file', '/x'],
      ['doctor', '--token-file', '=x'],
      ['doctor', 'now'],
    ];
    for (const args of mistakes) {
      const { code, out, error } = await run(args, store);
      assert.deepEqual([code, out], [2, ''], args.join(' '));
      assert.match(error, /^k8s-sa-auth: [^\n]+ \(k8s-sa-auth doctor --help\)\n$/);
    }
  });

  it('ends at once, and without a word, when it is interrupted', async () => {
    authority.fail('slow');
    const child = start(['doctor', '--only', 'callee'], store);
    child.stdout?.once('data', () => child.kill('SIGINT'));
    const { signal, error } = await ended(child);
    assert.deepEqual([signal, error], ['SIGINT', '']);
  });
});
