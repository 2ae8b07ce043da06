import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, it, mock } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';

import { type Ended, run } from './fixtures/run.ts';

// script(1), which runs a command in a terminal.
const terminal = 'script';

let authority: Authority;
let store: Pod;
let api: Pod;
let token: string;
let directory: string;

before(async () => {
  authority = await createAuthority();
  store = await authority.pod('secret-store/secret-store');
  api = await authority.pod('api/api', { tokens: { 'api-token': 'secret-store' } });
  token = readFileSync(api.tokenFile('api-token'), 'utf8');
});
after(() => authority.close());
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'inspect-'));
});
afterEach(async () => {
  mock.timers.reset();
  rmSync(directory, { recursive: true });
  await authority.recover();
});

async function inspect(input: string, ...args: readonly string[]): Promise<Ended> {
  const ended = await run(['inspect', ...args], { input });
  assert.equal(ended.error, '');
  return ended;
}
const review = (input: string, ...args: readonly string[]): Promise<Ended> =>
  run(['inspect', '--review', '--audience', 'secret-store', ...args], { env: store.env, input });

describe('inspect', () => {
  it('tells whose a token is, for whom, and until when', async () => {
    const { code, out, error } = await run(['inspect', '/var/run/secrets/tokens/api-token'], api);
    assert.deepEqual([code, error], [0, '']);
    const { pod, keyId, jti, times } = {
      pod: /^pod {13}(\S+)$/m,
      keyId: /^key id {10}([\w-]{43})$/m,
      jti: /^credential id {3}JTI=([\da-f-]{36})$/m,
      times: /^issued {10}(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ), (?:now|\d+ seconds? ago)\nexpires {9}(\S+Z), in 5\d minutes\n$/m,
    };
    assert.equal(pod.exec(out)?.[1], api.name);
    for (const pattern of [keyId, jti, times]) assert.match(out, pattern);
    assert.match(out, /^ServiceAccount {2}api\/api$/m);
    assert.match(out, /^audiences {7}secret-store$/m);
    assert.match(out, /^issuer {10}https:\/\/kubernetes\.default\.svc\.cluster\.local$/m);
    assert.match(out, /^algorithm {7}RS256$/m);
    assert.match(out, /^node {12}node-1$/m);
  });

  it('reads standard input, and no part of the signature gets out', async () => {
    const [plain, json] = await Promise.all([inspect(`${token}\n`), inspect(token, '-', '--json')]);
    const [header = '', payload = '', signature = ''] = token.split('.');
    for (const { code, out } of [plain, json]) {
      assert.equal(code, 0);
      for (const part of [header, payload, signature]) assert.ok(!out.includes(part.slice(0, 10)));
    }
    const told = JSON.parse(json.out) as { token: { serviceAccount: string; audiences: readonly string[] } };
    assert.deepEqual([told.token.serviceAccount, told.token.audiences], ['api/api', ['secret-store']]);
  });

  it('takes no token from the command line, and does not repeat it', async () => {
    for (const args of [
      [token],
      [token.slice(0, -1)],
      ['--audience', 'a', token.split('.').slice(0, 2).join('.')],
      [`--audience=${token}`],
    ]) {
      const { code, out, error } = await run(['inspect', ...args]);
      assert.deepEqual([code, out], [2, '']);
      assert.match(error, /^k8s-sa-auth: a token does not belong on a command line/);
    }
  });

  it('does not wait for somebody to type a token', (t) => {
    const command = `${process.execPath} ${join(import.meta.dirname, 'command.ts')} inspect`;
    const { error, status, stdout } = spawnSync(terminal, ['-qec', command, '/dev/null'], {
      encoding: 'utf8',
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    if (error !== undefined) {
      t.skip('no script(1) on this machine');
      return;
    }
    assert.equal(status, 2);
    assert.match(stdout, /^k8s-sa-auth: inspect reads a token from a file or a pipe, not from a terminal/m);
  });

  it('ends with 1 on what is no token, and does not show it', async () => {
    const { code, out } = await inspect('hunter2');
    assert.deepEqual([code, out], [1, '✗ This is not one compact JWT, hence no ServiceAccount token\n']);
    const json = await inspect('hunter2', '--json');
    assert.deepEqual([json.code, JSON.parse(json.out)], [1, { token: null }]);
  });

  it('says in one line what it cannot read', async () => {
    const empty = await run(['inspect']);
    assert.deepEqual(empty, { ...empty, code: 1, out: '', error: 'k8s-sa-auth: There is no token on standard input\n' });
    const missing = await run(['inspect', join(directory, 'none')]);
    assert.deepEqual([missing.code, missing.out], [1, '']);
    assert.match(missing.error, /^k8s-sa-auth: \S+none does not exist.*\n$/);
    const huge = await run(['inspect'], { input: 'x'.repeat(100_000) });
    assert.deepEqual([huge.code, huge.error], [1, 'k8s-sa-auth: There is more on standard input than a token could be\n']);
  });

  it('says in one line what is wrong with its options', async () => {
    const mistakes = [
      ['--allow', 'api/api'],
      ['--review'],
      ['--timeout', '3'],
      ['--audience', 'a,,b'],
      ['--audience', 'a', '--allow', '*/*'],
      ['--audience', 'a', '--header', 'cookie'],
      ['--audience', 'a', '--verification', 'none'],
      ['--audience', 'a', '--timeout', 'x'],
      ['one', 'two'],
    ];
    for (const args of mistakes) {
      const { code, out, error } = await run(['inspect', ...args], { input: token });
      assert.deepEqual([code, out], [2, ''], args.join(' '));
      assert.match(error, /^k8s-sa-auth: [^\n]+ \(k8s-sa-auth inspect --help\)\n$/);
    }
  });
});

describe('inspect, with a guard and without the cluster', () => {
  const verdict = (out: string): string => out.slice(out.indexOf('\n\n') + 2).split('\n  what to do')[0] ?? '';

  it('leaves to the API server what it alone knows', async () => {
    const { code, out } = await inspect(token, '--audience', 'secret-store', '--allow', 'api/api,ops/*');
    assert.equal(code, 0);
    assert.match(verdict(out), /^– Nothing here refuses it\. .*--review asks it\n$/);
  });

  it('names the rule that refuses, the code and the status', async () => {
    const refused = async (expected: string, ...args: readonly string[]): Promise<void> => {
      const { code, out } = await inspect(token, ...args);
      assert.equal(code, 1);
      assert.equal(verdict(out), expected);
      assert.match(out, /\n {2}what to do {5}\S.+\n$/);
    };
    const invalid = 'the token is not valid here\n  reason         ';
    await refused(`✗ The guard answers 403 invalid_token: ${invalid}other_audience`, '--audience', 'vault');
    await refused(`✗ The guard answers 401 invalid_token: ${invalid}other_audience`, '--audience', 'vault', '--header', 'authorization');
    const notAllowed = '✗ The guard answers 403 caller_not_allowed: this caller may not call\n  reason         not_in_allow';
    await refused(notAllowed, '--audience', 'vault,secret-store', '--allow', 'api/web', '--allow', 'ops/*');
  });

  it('knows what a guard that verifies signatures refuses', async () => {
    const long = await authority.token('api/api', { audience: 'shop', pod: 'long', expirationSeconds: 100_000 });
    const { code, out } = await inspect(long, '--audience', 'shop', '--verification', 'signature');
    assert.equal(code, 1);
    assert.match(verdict(out), /reason {9}long_lived$/);
    assert.equal((await inspect(long, '--audience', 'shop')).code, 0);
  });

  it('knows of tokens without a pod', async () => {
    const unbound = await authority.token('api/api', { audience: 'shop' });
    const { code, out } = await inspect(unbound, '--audience', 'shop');
    assert.equal(code, 1);
    assert.match(verdict(out), /reason {9}not_bound_to_a_pod$/);
    assert.equal((await inspect(unbound, '--audience', 'shop', '--no-require-pod')).code, 0);
  });
});

describe('inspect --review', () => {
  it('lets the guard decide, and says that it lets the token pass', async () => {
    const { code, out, error } = await review(token, '--allow', 'api/api');
    assert.deepEqual([code, error], [0, '']);
    assert.match(out, /\n\n✓ The guard lets it pass: the handler is called, with api\/api as the caller \(by review\)\n$/);
    const signature = await review(token, '--verification', 'signature', '--json');
    assert.deepEqual((JSON.parse(signature.out) as { guard: object }).guard, {
      outcome: 'allowed',
      source: 'signature',
      caller: 'api/api',
    });
  });

  it('does so by a kubeconfig', async () => {
    const args = ['inspect', '--review', '--audience', 'secret-store', '--kubeconfig', authority.kubeconfig];
    const { code, out } = await run(args, { input: token });
    assert.equal(code, 0, out);
  });

  it('sees that a token was forged', async () => {
    const cut = token.lastIndexOf('.') + 1;
    const { code, out } = await review(`${token.slice(0, cut)}${token.charAt(cut) === 'A' ? 'B' : 'A'}${token.slice(cut + 1)}`);
    assert.equal(code, 1);
    assert.match(out, /✗ The guard answers 403 invalid_token: the token is not valid here\n {2}reason {9}forged \(by screening\)/);
  });

  it('tells the API server’s words where the pod is gone', async () => {
    const gone = await authority.pod('api/gone', { tokens: { shop: 'secret-store' } });
    const theirs = readFileSync(gone.tokenFile('shop'), 'utf8');
    await authority.delete('pod', `api/${gone.name}`);
    const { code, out } = await review(theirs);
    assert.equal(code, 1);
    assert.match(out, /reason {9}review_refused \(by review\)\n {2}detail {9}.*has been invalidated/);
  });

  it('knows a caller that may not call', async () => {
    const { code, out } = await review(token, '--allow', 'api/web', '--json');
    assert.equal(code, 1);
    const { guard } = JSON.parse(out) as { guard: Record<string, unknown> };
    assert.deepEqual(
      { ...guard, advice: '' },
      {
        outcome: 'refused',
        status: 403,
        code: 'caller_not_allowed',
        reason: 'not_in_allow',
        source: 'screening',
        advice: '',
      },
    );
  });

  it('knows an outage from a refusal', async () => {
    authority.fail('outage');
    const { code, out } = await review(token);
    assert.equal(code, 1);
    assert.match(out, /✗ The guard answers 503 review_unavailable: the cluster cannot be asked.*\n {2}reason {9}connection_failed/);
  });

  it('knows that the callee lacks the permission', async () => {
    const { env } = await authority.pod('norbac/no', { reviews: false });
    const { code, out } = await run(['inspect', '--review', '--audience', 'secret-store'], { env, input: token });
    assert.equal(code, 1);
    assert.match(out, /503 review_unavailable.*\n {2}reason {9}own_permission_missing \(by review\)\n {2}detail {9}403 .* cannot create/);
    assert.match(out, /what to do .*k8s-sa-auth doctor/);
  });

  it('waits no longer than it was told', async () => {
    authority.fail('slow');
    const { code, out } = await review(token, '--timeout', '0.5');
    assert.equal(code, 1);
    assert.match(out, /503 review_unavailable.*\n {2}reason {9}timeout/);
  });

  it('says in one line where there is no cluster to ask, or an audience that is the API server’s', async () => {
    const nowhere = await run(['inspect', '--review', '--audience', 'secret-store'], { input: token, env: { HOME: directory } });
    assert.deepEqual([nowhere.code, nowhere.out], [1, '']);
    assert.match(nowhere.error, /^k8s-sa-auth: No API server to review tokens: [^\n]+, set KUBECONFIG, or give --kubeconfig\n$/);
    const audience = 'https://kubernetes.default.svc.cluster.local';
    const sent = await authority.token('api/api', { audience, pod: 'api-0' });
    const wrong = await run(['inspect', '--review', '--audience', audience], { env: store.env, input: sent });
    assert.deepEqual([wrong.code, wrong.out], [1, '']);
    assert.match(wrong.error, /^k8s-sa-auth: .* is the API server's own[^\n]+\n$/);
  });

  it('reads a file, too', async () => {
    const file = join(directory, 'token');
    writeFileSync(file, token);
    const args = ['inspect', file, '--review', '--audience', 'secret-store', '--kubeconfig', authority.kubeconfig];
    assert.equal((await run(args)).code, 0);
  });
});
