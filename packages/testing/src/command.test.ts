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
    assert.match(error, /^k8s-sa-auth-testing: .*wrong\.txt, document 1: kind Wrong of v1 is not supported/);
  });

  it('says how it is called', async () => {
    const help = await run('--help');
    assert.equal(help.code, 0);
    assert.match(help.out, /^Usage: npx @k8s-sa-auth\/testing serve/);
  });

  it('says its version', async () => {
    const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
    const { code, out } = await run('--version');
    assert.deepEqual([code, out], [0, `${version}\n`]);
  });

  it('says in one line what is wrong with its arguments', async () => {
    const mistakes: readonly (readonly [args: readonly string[], message: string])[] = [
      [[], 'say "serve"'],
      [['start'], 'there is no "start", only "serve"'],
      [['serve', 'k8s'], 'there is no "serve k8s", only "serve"'],
      [['serve', '--bogus'], "Unknown option '--bogus'"],
      [['serve', '--port'], '--port has no value'],
      [['serve', '--port='], '--port is empty'],
      [['serve', '--port=1', '--port=2'], '--port is given twice'],
      [['serve', '--port', '0x10'], '--port is a number from 0 to 65535, not "0x10"'],
      [['serve', '--port', '65536'], '--port is a number from 0 to 65535, not "65536"'],
      [['serve', '--manifests', join(directory, 'nope')], `there is no ${join(directory, 'nope')}`],
      [['serve', '--manifests', join(directory, '*.json')], `no file matches ${join(directory, '*.json')}`],
      [['serve', '\u001B[2J'], 'there is no "serve  [2J", only "serve"'],
    ];
    for (const [args, message] of mistakes) {
      assert.deepEqual(await run(...args), {
        code: 2,
        out: '',
        error: `k8s-sa-auth-testing: ${message} (npx @k8s-sa-auth/testing --help)\n`,
      });
    }
  });
});
