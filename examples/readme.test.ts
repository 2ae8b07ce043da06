// The examples of the READMEs, as they stand there: type-checked, then run as the pods that the manifests make.
import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, afterEach, before, describe, it } from 'node:test';
import { promisify } from 'node:util';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';

const run = promisify(execFile);
// Below examples, so that the imports resolve as a user's do.
const directory = mkdtempSync(join(import.meta.dirname, '.readme-'));
let authority: Authority;
let api: Pod;
let store: Pod;
let stop: (() => Promise<unknown>)[] = [];

function blockOf(readme: string, language: string, firstWords: string): string {
  const text = readFileSync(new URL(readme, import.meta.url), 'utf8');
  const blocks = [...text.matchAll(/^```(\w+)\n([^]*?)^```$/gm)];
  return (
    blocks.find(([, marked, block = '']) => marked === language && block.startsWith(firstWords))?.[2] ??
    assert.fail(`${readme} has no ${firstWords}`)
  );
}

function write(name: string, text: string): string {
  const path = join(directory, name);
  writeFileSync(path, text);
  return path;
}

function replace(text: string, from: string, to: string): string {
  assert.ok(text.includes(from), from);
  return text.replaceAll(from, to);
}

// Tells the port that a service got, whatever it prints itself.
const preload = `data:text/javascript,${encodeURIComponent(`
  import { subscribe } from 'node:diagnostics_channel';
  subscribe('tracing:net.server.listen:asyncEnd', ({ server }) => process.send?.(server.address().port));
`)}`;

// Runs a service as the pod of secret-store. Only the port differs from what stands in the README.
async function start(name: string, text: string): Promise<string> {
  const child = spawn(process.execPath, ['--import', preload, write(name, replace(text, '8081', '0'))], {
    env: { ...process.env, ...store.env },
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  });
  stop.push(() => {
    child.kill();
    return once(child, 'exit');
  });
  const [port] = (await once(child, 'message')) as [number];
  return `http://127.0.0.1:${port}`;
}

const get = async (url: string, token?: string): Promise<string> => {
  const answer = await fetch(url, token === undefined ? {} : { headers: { 'x-client-id': token } });
  return `${answer.status} ${await answer.text()}`;
};

before(async () => {
  authority = await createAuthority({ manifests: write('manifests.yaml', blockOf('../README.md', 'yaml', '# The caller')) });
  api = authority.pods[0] ?? assert.fail('the manifests start no pod');
  store = await authority.pod('secret-store/secret-store', { reviews: false });
});
afterEach(async () => {
  await Promise.all(stop.map((end) => end()));
  stop = [];
});
after(async () => {
  await authority.close();
  rmSync(directory, { recursive: true });
});

describe('the README', () => {
  const service = blockOf('../README.md', 'ts', '// secret-store.ts');

  it('type-checks', async () => {
    write('secret-store.ts', service);
    write('api.ts', blockOf('../README.md', 'ts', '// api.ts'));
    write('secret-store.test.ts', blockOf('../README.md', 'ts', '// secret-store.test.ts'));
    write('tsconfig.json', JSON.stringify({ extends: '../../tsconfig.json', include: ['secret-store.ts', 'api.ts', '*.test.ts'] }));
    await run('tsc', ['--project', directory]).catch((error: { stdout: string }) => assert.fail(error.stdout));
  });

  it('shows a caller that is answered', async () => {
    const origin = await start('service.ts', service);
    const calling = replace(blockOf('../README.md', 'ts', '// api.ts'), 'http://app.secret-store.svc.cluster.local', origin);
    const { stdout } = await run(process.execPath, [write('calling.ts', calling)], { env: { ...process.env, ...api.env } });
    assert.equal(stdout, '200 {"id":"db","for":"api/api"}\n');
  });

  it('shows a service that refuses everyone else', async () => {
    const origin = await start('service.ts', service);
    const stranger = await authority.token('shop/shop', { audience: 'secret-store', pod: 'shop' });
    assert.match(await get(`${origin}/secrets/db`), /^401 /);
    assert.match(await get(`${origin}/secrets/db`, stranger), /^403 /);
    assert.match(await get(`${origin}/absent`), /^401 /);
  });

  it('shows a route with an audience of its own, and a public one', async () => {
    const origin = await start('service.ts', service);
    const ops = await authority.token('ops/console', { audience: 'secret-store-admin', pod: 'console' });
    assert.equal(await get(`${origin}/admin`, ops), '200 welcome');
    assert.match(await get(`${origin}/secrets/db`, ops), /^403 /);
    assert.equal(await get(`${origin}/healthz`), '200 ok');
  });

  it('shows a test that passes', async () => {
    const path = write('secret-store.test.ts', blockOf('../README.md', 'ts', '// secret-store.test.ts'));
    const { NODE_TEST_CONTEXT: _ours, ...env } = process.env;
    const { stdout } = await run(process.execPath, ['--test', path], { env });
    assert.match(stdout, /pass 1\n/);
  });
});

// What a diff takes away and what it makes of it.
function sidesOf(diff: string): { plain: string; guarded: string } {
  const lines = diff.split('\n');
  const keep = (dropped: string): string =>
    lines
      .filter((line) => !line.startsWith(dropped))
      .map((line) => line.slice(1))
      .join('\n');
  return { plain: keep('+'), guarded: keep('-') };
}

async function proveDiff(name: string): Promise<void> {
  const { plain, guarded } = sidesOf(blockOf(`../packages/${name}/README.md`, 'diff', '+import'));
  const [unguarded, behind] = await Promise.all([start(`${name}-plain.mjs`, plain), start(`${name}-guarded.mjs`, guarded)]);
  assert.equal(await get(unguarded), '200 Hello stranger');
  assert.equal(await get(`${unguarded}/healthz`), '200 ok');
  assert.match(await get(behind), /^401 /);
  assert.equal(await get(behind, await authority.token('api/api', { audience: 'secret-store', pod: 'api-0' })), '200 Hello api/api');
  assert.equal(await get(`${behind}/healthz`), '200 ok');
}

describe('the READMEs of the packages', () => {
  it('show how a plain Fastify app becomes a guarded one', () => proveDiff('fastify'));
  it('show how a plain Express app becomes a guarded one', () => proveDiff('express'));
  it('show how a plain Koa app becomes a guarded one', () => proveDiff('koa'));

  it('show a node:http server that is guarded', async () => {
    const origin = await start('core.ts', blockOf('../packages/core/README.md', 'ts', "import { createServer } from 'node:http'"));
    assert.equal(await get(origin), '401 A ServiceAccount token is required');
    const token = await authority.token('api/api', { audience: 'secret-store', pod: 'api-0' });
    assert.equal(await get(origin, token), '200 Hello api/api');
  });
});
