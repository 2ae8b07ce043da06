// The examples of the READMEs, as they stand there: type-checked, then run as the pods that the manifests make.
import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, afterEach, before, describe, it, type TestContext } from 'node:test';
import { promisify } from 'node:util';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import { exportJWK, generateKeyPair, SignJWT } from 'jose';

const run = promisify(execFile);
// Below examples, so that the imports resolve as a user's do.
const directory = mkdtempSync(join(import.meta.dirname, '.readme-'));
let authority: Authority;
let api: Pod;
let store: Pod;
let stop: (() => Promise<unknown>)[] = [];

// The block that begins so, and has this word.
function blockOf(readme: string, language: string, firstWords: string, word = ''): string {
  const text = readFileSync(new URL(readme, import.meta.url), 'utf8');
  const blocks = [...text.matchAll(/^```(\w+)\n([^]*?)^```$/gm)];
  const found = blocks.find(([, marked, block = '']) => marked === language && block.startsWith(firstWords) && block.includes(word));
  return found?.[2] ?? assert.fail(`${readme} has no ${firstWords} ${word}`);
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
async function start(name: string, text: string, pod = store): Promise<string> {
  const child = spawn(process.execPath, ['--import', preload, write(name, replace(text, '8081', '0'))], {
    env: { ...process.env, ...pod.env },
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  });
  stop.push(() => {
    child.kill();
    return once(child, 'exit');
  });
  const [port] = (await once(child, 'message')) as [number];
  return `http://127.0.0.1:${port}`;
}

const get = async (url: string, token?: string, others: Readonly<Record<string, string>> = {}): Promise<string> => {
  const answer = await fetch(url, { headers: token === undefined ? others : { 'x-client-id': token, ...others } });
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
    write('dev.ts', blockOf('../README.md', 'ts', '// dev.ts'));
    write('secret-store.test.ts', blockOf('../README.md', 'ts', '// secret-store.test.ts'));
    write(
      'tsconfig.json',
      JSON.stringify({ extends: '../../tsconfig.json', include: ['secret-store.ts', 'api.ts', 'dev.ts', '*.test.ts'] }),
    );
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

  it('shows how it runs without a cluster, until Ctrl-C', async () => {
    // Tells the port that it got.
    write('local.ts', `${replace(service, '8081', '0')}console.log(app.addresses()[0]?.port);\n`);
    const path = write('dev.ts', replace(blockOf('../README.md', 'ts', '// dev.ts'), 'secret-store.ts', 'local.ts'));
    const child = spawn(process.execPath, [path], { cwd: directory, stdio: ['ignore', 'pipe', 'inherit'] });
    stop.push(async () => child.kill('SIGKILL'));
    let printed = '';
    for await (const chunk of child.stdout) {
      printed += String(chunk);
      if (/^\d+\n/m.test(printed)) break;
    }
    const [, tokenFile = ''] = /^curl -H "X-Client-Id: \$\(cat (\S+)\)" http:\/\/127\.0\.0\.1:8081\/secrets\/db$/m.exec(printed) ?? [];
    const [port] = /^\d+$/m.exec(printed) ?? [];
    assert.equal(await get(`http://127.0.0.1:${port}/secrets/db`, readFileSync(tokenFile, 'utf8')), '200 {"id":"db","for":"api/api"}');
    child.kill('SIGINT');
    assert.deepEqual(await once(child, 'exit'), [0, null]);
    await assert.rejects(get(`http://127.0.0.1:${port}/healthz`));
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

// Where there is one on this machine.
async function kubectl(t: TestContext, ...args: readonly string[]): Promise<string | undefined> {
  const env = { PATH: process.env['PATH'], HOME: directory, KUBECONFIG: authority.kubeconfig };
  try {
    return (await run('kubectl', args, { env })).stdout;
  } catch (error) {
    const { code, stdout = '', stderr } = error as { readonly code: unknown; readonly stdout?: string; readonly stderr?: string };
    if (code === 'ENOENT') {
      t.diagnostic('no kubectl on this machine');
      return undefined;
    }
    assert.equal(stdout, 'no\n', stderr);
    return stdout;
  }
}

// What kubectl is told about the question of docs/authorizing.md, and about others like it.
async function mayByKubectl(
  t: TestContext,
  serviceAccount: string,
  change: readonly [string, string] = ['', ''],
): Promise<string | undefined> {
  const question = replace(
    blockOf('../docs/authorizing.md', 'yaml', '# question.yaml'),
    ':api:api',
    `:${serviceAccount.replace('/', ':')}`,
  );
  const path = write('question.yaml', replace(question, ...change));
  return kubectl(t, 'create', '-o', 'jsonpath={.status.allowed}', '-f', path);
}
const anotherOrder = ["name: '7'", "name: '8'"] as const;

async function proveAuthorize(t: TestContext, name: string, language: string, firstWords: string): Promise<void> {
  const readme = `../packages/${name}/README.md`;
  await authority.apply(write(`${name}-rules.yaml`, blockOf(readme, 'yaml', '# api/api may read order 7')));
  const text = blockOf(readme, language, firstWords, 'authorize');
  const origin = await start(`${name}-authorize.${language === 'ts' ? 'ts' : 'mjs'}`, text);
  const token = await authority.token('api/api', { audience: 'shop', pod: 'api-0' });
  const another = await authority.token('api/other', { audience: 'shop', pod: 'other-0' });
  assert.equal(await get(`${origin}/orders/7`, token), '200 order 7');
  assert.match(await get(`${origin}/orders/8`, token), /^403 /);
  assert.match(await get(`${origin}/orders/7`, another), /^403 /);
  assert.match(await get(`${origin}/orders/7`), /^401 /);
  assert.equal((await mayByKubectl(t, 'api/api')) ?? 'true', 'true');
  assert.equal((await mayByKubectl(t, 'api/api', anotherOrder)) ?? 'false', 'false');
  assert.equal((await mayByKubectl(t, 'api/other')) ?? 'false', 'false');
}

describe('authorize, as the READMEs show it', () => {
  before(async () => {
    await authority.token('shop/shop', { audience: 'shop' });
  });
  it('works with Fastify', (t) => proveAuthorize(t, 'fastify', 'js', 'import { k8sSaAuth }'));
  it('works with Express', (t) => proveAuthorize(t, 'express', 'js', 'import { k8sSaAuth }'));
  it('works with Koa', (t) => proveAuthorize(t, 'koa', 'js', 'import { k8sSaAuth }'));
  it('works with node:http', (t) => proveAuthorize(t, 'core', 'ts', 'import { createServer }'));
});

describe('docs/authorizing.md', () => {
  const service = blockOf('../docs/authorizing.md', 'ts', '// shop.ts');

  it('type-checks', async () => {
    write('shop.ts', service);
    write('tsconfig.json', JSON.stringify({ extends: '../../tsconfig.json', include: ['shop.ts'] }));
    await run('tsc', ['--project', directory]).catch((error: { stdout: string }) => assert.fail(error.stdout));
  });

  it('shows rules that decide, and kubectl says the same', async (t) => {
    const reader = await authority.token('api/api', { audience: 'shop', pod: 'api-0' });
    const ops = await authority.token('ops/console', { audience: 'shop', pod: 'console-0' });
    await authority.token('shop/shop', { audience: 'shop' });
    await authority.apply(write('authorizing.yaml', blockOf('../docs/authorizing.md', 'yaml', '# Who may read')));
    const origin = await start('authorizing.ts', service);
    assert.equal(await get(`${origin}/orders/7`, reader), '200 read by api/api');
    assert.match(await get(`${origin}/orders/8`, reader), /^403 /);
    assert.match(await get(`${origin}/orders/7`, ops), /^403 /);
    const written = await fetch(`${origin}/orders/7`, { method: 'PUT', headers: { 'x-client-id': reader } });
    assert.equal(written.status, 403);
    assert.equal(await get(`${origin}/reports`, ops), '200 reports');
    assert.match(await get(`${origin}/reports`, reader), /^403 /);
    assert.equal((await mayByKubectl(t, 'api/api')) ?? 'true', 'true');
    assert.equal((await mayByKubectl(t, 'api/api', anotherOrder)) ?? 'false', 'false');
    assert.equal((await mayByKubectl(t, 'api/api', ['verb: get', 'verb: update'])) ?? 'false', 'false');
    assert.equal((await mayByKubectl(t, 'ops/console')) ?? 'false', 'false');
  });

  it('shows what kubectl tells of a caller, and what it does not', async (t) => {
    await authority.token('api/api', { audience: 'shop' });
    await authority.apply(write('authorizing.yaml', blockOf('../docs/authorizing.md', 'yaml', '# Who may read')));
    const caller = '--as=system:serviceaccount:api:api';
    const listed = await kubectl(t, 'auth', 'can-i', '--list', caller, '-n', 'shop');
    if (listed === undefined) return t.skip('no kubectl on this machine');
    assert.match(listed, /^orders\.shop\.example +\[\] +\[7\] +\[get\]$/m);
    assert.equal(await kubectl(t, 'auth', 'can-i', caller, 'get', 'orders.shop.example/7', '-n', 'shop'), 'no\n');
    assert.equal(await kubectl(t, 'auth', 'can-i', '--as=system:serviceaccount:ops:console', 'get', '/reports'), 'yes\n');
    assert.equal(await kubectl(t, 'auth', 'can-i', caller, 'get', '/reports'), 'no\n');
  });

  it('shows a role that suffices without authorize, and not with it', async () => {
    const poor = await authority.pod('poor/poor', { reviews: false });
    const binding = blockOf('../README.md', 'yaml', '# The caller').split('---').at(-1) ?? '';
    const bound = replace(replace(binding, 'secret-store', 'poor'), 'system:auth-delegator', 'token-reviewer');
    await authority.apply(write('least.yaml', `${blockOf('../docs/authorizing.md', 'yaml', '# No more than')}---\n${bound}`));
    const token = await authority.token('api/api', { audience: 'shop', pod: 'api-0' });
    const plain = await start('plain.ts', replace(service, 'k8sSaAuth: order', 'k8sSaAuth: true'), poor);
    assert.equal(await get(`${plain}/orders/7`, token), '200 read by api/api');
    assert.match(await get(`${await start('asking.ts', service, poor)}/orders/7`, token), /^503 /);
  });
});

describe('docs/adopting.md', () => {
  const page = '../docs/adopting.md';

  it('type-checks', async () => {
    write('shop.ts', blockOf(page, 'ts', '// shop.ts'));
    write('callers.ts', blockOf(page, 'ts', '// callers.ts'));
    write('users.ts', blockOf(page, 'ts', '// users.ts'));
    write('tsconfig.json', JSON.stringify({ extends: '../../tsconfig.json', include: ['shop.ts', 'callers.ts', 'users.ts'] }));
    await run('tsc', ['--project', directory]).catch((error: { stdout: string }) => assert.fail(error.stdout));
  });

  it('shows a service that observes, and tells who calls', async () => {
    write('callers.ts', replace(blockOf(page, 'ts', '// callers.ts'), 'console.log(line)', 'process.send?.(line)'));
    const path = write('observing.ts', replace(blockOf(page, 'ts', '// shop.ts'), '8081', '0'));
    // However slow the machine.
    const patience = write(
      'patience.ts',
      `import { holdObserveTimeout } from '@k8s-sa-auth/testing/adapter-cases'; holdObserveTimeout();\n`,
    );
    const child = spawn(process.execPath, ['--import', preload, '--import', patience, path], {
      env: { ...process.env, ...store.env },
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    });
    stop.push(() => {
      child.kill();
      return once(child, 'exit');
    });
    const [port] = (await once(child, 'message')) as [number];
    const ask = async (token?: string): Promise<string> => {
      const told = once(child, 'message');
      assert.equal(await get(`http://127.0.0.1:${port}/orders`, token), '200 orders');
      const [line] = (await told) as [string];
      return line;
    };
    assert.equal(await ask(), 'GET /orders: refused no_token');
    assert.equal(await ask(await authority.token('api/api', { audience: 'shop', pod: 'api-0' })), 'GET /orders: allowed api/api');
    assert.equal(await get(`http://127.0.0.1:${port}/healthz`), '200 ok');
  });

  it('shows a volume that the kubelet fills', async () => {
    const volumes = blockOf(page, 'yaml', "# In the caller's pod").replaceAll(/^/gm, '  ').trimEnd();
    const pod = `apiVersion: v1\nkind: Pod\nmetadata: { name: caller, namespace: api }\nspec:\n  serviceAccountName: api\n`;
    const mounts = 'volumeMounts: [{ name: tokens, mountPath: /var/run/secrets/tokens }]';
    const [caller] = await authority.apply(
      write('volume.yaml', `${pod}  containers: [{ name: app, image: api, ${mounts} }]\n${volumes}\n`),
    );
    assert.match(readFileSync(caller?.tokenFile('shop') ?? '', 'utf8'), /^[\w-]+\.[\w-]+\.[\w-]+$/);
  });

  async function proveOr(name: string): Promise<void> {
    const { privateKey, publicKey } = await generateKeyPair('ES256');
    const keys = JSON.stringify({ keys: [{ ...(await exportJWK(publicKey)), alg: 'ES256' }] });
    const login = createServer((_request, response) => void response.setHeader('content-type', 'application/json').end(keys));
    await once(login.listen(0, '127.0.0.1'), 'listening');
    stop.push(async () => login.close().closeAllConnections());
    // The server listens on a port.
    const { port } = login.address() as AddressInfo;
    const users = replace(blockOf(page, 'ts', '// users.ts'), 'https://login.example/.well-known', `http://127.0.0.1:${port}`);
    write(`${name}-users.ts`, users);
    const text = blockOf(`../packages/${name}/README.md`, 'js', 'import { k8sSaAuth }', 'userOf');
    const origin = await start(`${name}-or.mjs`, replace(text, './users.js', `./${name}-users.ts`));
    const jane = await new SignJWT()
      .setProtectedHeader({ alg: 'ES256' })
      .setSubject('jane')
      .setIssuer('https://login.example')
      .setAudience('shop')
      .setExpirationTime('5m')
      .sign(privateKey);
    const user = { authorization: `Bearer ${jane}` };
    const token = await authority.token('api/api', { audience: 'shop', pod: 'api-0' });
    const stranger = await authority.token('else/stranger', { audience: 'shop', pod: 'stranger-0' });
    assert.equal(await get(`${origin}/orders`, token), '200 orders for api/api');
    assert.equal(await get(`${origin}/orders`, undefined, user), '200 orders of jane');
    assert.match(await get(`${origin}/orders`, stranger, user), /^403 /);
    const neither = await fetch(`${origin}/orders`);
    assert.equal(neither.status, 401);
    assert.equal(neither.headers.get('www-authenticate'), 'Bearer realm="users", ServiceAccount header="X-Client-Id"');
    authority.fail('outage');
    try {
      assert.equal(await get(`${origin}/orders`, undefined, user), '200 orders of jane');
    } finally {
      await authority.recover();
    }
  }

  it('shows a user who is refused, and keys that cannot be had, which are nobody’s 401', async () => {
    const users = replace(blockOf(page, 'ts', '// users.ts'), 'https://login.example/.well-known', 'http://127.0.0.1:1');
    const { userOf }: { readonly userOf: (authorization?: string) => Promise<string> } = await import(write('users-away.ts', users));
    const { privateKey } = await generateKeyPair('ES256');
    const jane = await new SignJWT().setProtectedHeader({ alg: 'ES256' }).setSubject('jane').sign(privateKey);
    await assert.rejects(userOf(), { status: 401 });
    await assert.rejects(userOf('Bearer garbage'), { status: 401 });
    await assert.rejects(userOf(`Bearer ${jane}`), (error: object) => !('status' in error));
  });

  it('shows users beside services in Fastify', () => proveOr('fastify'));
  it('shows users beside services in Express', () => proveOr('express'));
  it('shows users beside services in Koa', () => proveOr('koa'));
});
