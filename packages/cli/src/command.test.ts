import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, describe, it } from 'node:test';
import { stripVTControlCharacters } from 'node:util';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';

import { ended, run, start } from './fixtures/run.ts';

describe('the command', () => {
  let authority: Authority;
  let pod: Pod;

  before(async () => {
    authority = await createAuthority();
    pod = await authority.pod('secret-store/secret-store');
  });
  after(() => authority.close());

  it('says how it is called', async () => {
    const { code, out, error } = await run(['--help']);
    assert.deepEqual([code, error], [0, '']);
    assert.match(out, /^Usage: k8s-sa-auth <command> \[options\]\n/);
    for (const name of ['doctor', 'inspect', 'manifests']) {
      assert.match(out, new RegExp(`^ {2}${name} +\\S`, 'm'));
      const [flag, word] = await Promise.all([run([name, '--help']), run(['help', name])]);
      assert.equal(flag.code, 0);
      assert.match(flag.out, new RegExp(`^Usage: k8s-sa-auth ${name} `));
      assert.match(flag.out, /^Ends with 0/m);
      assert.equal(word.out, flag.out);
    }
  });

  it('says its version', async () => {
    const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as { version: string };
    const { code, out } = await run(['--version']);
    assert.deepEqual([code, out], [0, `${version}\n`]);
  });

  it('says in one line that there is no such command', async () => {
    const none = await run([]);
    assert.deepEqual(
      [none.code, none.out, none.error],
      [2, '', 'k8s-sa-auth: say which: doctor, inspect, manifests (k8s-sa-auth --help)\n'],
    );
    const unknown = await run(['dokter']);
    assert.deepEqual([unknown.code, unknown.out], [2, '']);
    assert.equal(unknown.error, 'k8s-sa-auth: there is no "dokter", only doctor, inspect, manifests (k8s-sa-auth --help)\n');
  });

  it('prints colours where they are wanted, and none in a pipe', async () => {
    const plain = await run(['doctor', '--only', 'callee'], pod);
    const coloured = await run(['doctor', '--only', 'callee'], { env: { ...pod.env, FORCE_COLOR: '1' } });
    assert.ok(!plain.out.includes('\u001B'));
    assert.ok(coloured.out.startsWith('\u001B[32m✓\u001B[39m api-server    https'));
    assert.equal(stripVTControlCharacters(coloured.out), plain.out);
  });

  it('ends without a word when nobody reads on', async () => {
    const child = start(['doctor', '--only', 'callee'], pod);
    child.stdout?.destroy();
    const { code, error } = await ended(child);
    assert.deepEqual([code, error], [141, '']);
  });

  it('repeats no token, wherever one was typed', async () => {
    const token = await authority.token('api/api', { audience: 'shop' });
    for (const args of [[token], ['doctor', `--${token}`], ['doctor', token], ['manifests', '--audience', token], ['help', token]]) {
      const { code, out, error } = await run(args);
      assert.deepEqual([code, out], [2, '']);
      assert.match(error, /^k8s-sa-auth: .*(\[token\]|does not belong on a command line).*\n$/);
    }
  });

  it('lets nothing through that a terminal would obey', async () => {
    const word = await run(['manifests', '\u001B[2Jx\u202E']);
    assert.deepEqual(
      [word.code, word.error],
      [2, 'k8s-sa-auth: manifests takes options only, not " [2Jx " (k8s-sa-auth manifests --help)\n'],
    );
    const value = await run(['manifests', '--only', 'callee', '--callee', 'shop/\u0085shop']);
    assert.deepEqual([value.code, value.out], [2, '']);
    assert.match(value.error, /^k8s-sa-auth: --callee holds a character that cannot be seen /);
  });
});
