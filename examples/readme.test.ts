// The README's examples, as they stand there: type-checked, then run as the pods that its manifests make.
import assert from 'node:assert/strict';
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, describe, it } from 'node:test';
import { promisify } from 'node:util';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';

const run = promisify(execFile);
const readme = readFileSync(new URL('../README.md', import.meta.url), 'utf8');
const blocks = [...readme.matchAll(/^```(\w+)\n([^]*?)^```$/gm)].map(([, language = '', text = '']) => ({ language, text }));
// Below examples, so that the imports resolve as a user's do.
const directory = mkdtempSync(join(import.meta.dirname, '.readme-'));

function block(language: string, start: string): string {
  return blocks.find((one) => one.language === language && one.text.startsWith(start))?.text ?? assert.fail(`README has no ${start}`);
}

function write(name: string, text: string): string {
  const path = join(directory, name);
  writeFileSync(path, text);
  return path;
}

// Only where it listens and whom it calls differ from a cluster.
function replace(text: string, from: string, to: string): string {
  assert.ok(text.includes(from), from);
  return text.replaceAll(from, to);
}

describe('README', () => {
  let authority: Authority;
  let api: Pod;
  let store: Pod;
  let service: ChildProcess;
  let origin: string;

  before(async () => {
    write('secret-store.ts', block('ts', '// secret-store.ts'));
    write('api.ts', block('ts', '// api.ts'));
    write('secret-store.test.ts', block('ts', '// secret-store.test.ts'));
    const manifests = write('manifests.yaml', block('yaml', '# The caller'));
    authority = await createAuthority({ manifests });
    api = authority.pods[0] ?? assert.fail('the manifests start no pod');
    store = await authority.pod('secret-store/secret-store', { reviews: false });
    const listening = replace(
      replace(block('ts', '// secret-store.ts'), 'port: 8081', 'port: 0'),
      'await app.listen(',
      'console.log(await app.listen(',
    ).replace(/\);\s*$/, '));');
    service = spawn(process.execPath, [write('listening.ts', listening)], {
      env: { ...process.env, ...store.env },
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    for await (const line of createInterface({ input: service.stdout ?? assert.fail() })) {
      origin = `http://127.0.0.1:${new URL(line).port}`;
      break;
    }
  });
  after(async () => {
    service.kill();
    await authority.close();
    rmSync(directory, { recursive: true });
  });

  it('type-checks', async () => {
    write('tsconfig.json', JSON.stringify({ extends: '../../tsconfig.json', include: ['*.ts'], exclude: ['listening.ts', 'calling.ts'] }));
    await run('tsc', ['--project', directory]).catch((error: { stdout: string }) => assert.fail(error.stdout));
  });

  it('shows a caller that is answered', async () => {
    const calling = replace(block('ts', '// api.ts'), 'http://app.secret-store.svc.cluster.local', origin);
    const { stdout } = await run(process.execPath, [write('calling.ts', calling)], { env: { ...process.env, ...api.env } });
    assert.equal(stdout, '200 {"id":"db","for":"api/api"}\n');
  });

  it('shows a service that refuses everyone else', async () => {
    const stranger = await authority.token('shop/shop', { audience: 'secret-store', pod: 'shop' });
    assert.equal((await fetch(`${origin}/secrets/db`)).status, 401);
    assert.equal((await fetch(`${origin}/secrets/db`, { headers: { 'x-client-id': stranger } })).status, 403);
    assert.equal((await fetch(`${origin}/absent`)).status, 401);
  });

  it('shows a route with an audience of its own, and a public one', async () => {
    const ops = await authority.token('ops/console', { audience: 'secret-store-admin', pod: 'console' });
    assert.equal((await fetch(`${origin}/admin`, { headers: { 'x-client-id': ops } })).status, 200);
    assert.equal((await fetch(`${origin}/secrets/db`, { headers: { 'x-client-id': ops } })).status, 403);
    assert.equal((await fetch(`${origin}/healthz`)).status, 200);
  });

  it('shows a test that passes', async () => {
    const { NODE_TEST_CONTEXT: _ours, ...env } = process.env;
    const { stdout } = await run(process.execPath, ['--test', join(directory, 'secret-store.test.ts')], { env });
    assert.match(stdout, /pass 1\n/);
  });
});
