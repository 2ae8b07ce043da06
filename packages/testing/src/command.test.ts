import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';

describe('the command', () => {
  const directory = mkdtempSync(join(tmpdir(), 'command-'));

  before(() => {
    writeFileSync(join(directory, 'shop.yaml'), 'apiVersion: v1\nkind: Namespace\nmetadata: { name: shop }\n');
    writeFileSync(join(directory, 'wrong.txt'), 'apiVersion: v1\nkind: Wrong\n');
  });
  after(() => rmSync(directory, { recursive: true }));

  function start(...args: readonly string[]): ChildProcess {
    return spawn(process.execPath, [join(import.meta.dirname, 'command.ts'), ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  }

  async function run(...args: readonly string[]): Promise<{ readonly code: number | null; readonly out: string; readonly error: string }> {
    const child = start(...args);
    let [out, error] = ['', ''];
    child.stdout?.on('data', (chunk) => (out += String(chunk)));
    child.stderr?.on('data', (chunk) => (error += String(chunk)));
    const [code] = await once(child, 'close');
    return { code, out, error };
  }

  it('prints the path of a kubeconfig, and leaves nothing behind when it is interrupted', async () => {
    const child = start('serve', '--manifests', directory);
    const [line] = await once(child.stdout ?? child, 'data');
    const kubeconfig = String(line).trim();
    assert.match(readFileSync(kubeconfig, 'utf8'), /"server": "https:\/\/127\.0\.0\.1:\d+"/);
    child.kill('SIGINT');
    const [code] = await once(child, 'close');
    assert.equal(code, 0);
    assert.equal(existsSync(kubeconfig), false);
  });

  it('says in one line what a manifest lacks', async () => {
    const { code, out, error } = await run('serve', '--manifests', join(directory, 'wrong.txt'));
    assert.deepEqual([code, out, error.split('\n').length], [1, '', 2]);
    assert.match(error, /wrong\.txt, document 1: kind Wrong of v1 is not supported/);
  });

  it('says how it is called', async () => {
    const help = await run('--help');
    assert.equal(help.code, 0);
    assert.match(help.out, /^Usage: npx @k8s-sa-auth\/testing serve/);
    const mistake = await run('serve', '--prot', '1');
    assert.deepEqual([mistake.code, mistake.out, mistake.error.split('\n').length], [2, '', 2]);
    assert.match(mistake.error, /--prot.*\(--help tells how it is called\)$/m);
    assert.equal((await run('serve', '--port', 'x')).code, 2);
    assert.equal((await run('start')).code, 2);
  });
});
