// The packages as they would be published: packed, linted, installed with npm into an empty project, imported and required, and run behind
// each framework on every Node that we name, which also calls one with its built-in fetch, and runs the command.

import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const packages = ['core', 'testing', 'fastify', 'express', 'koa', 'cli'];
const nodeVersions = ['22.19', '24', '26'];
const root = join(import.meta.dirname, '..');
const project = mkdtempSync(join(tmpdir(), 'k8s-sa-auth-packed-'));

function run(command: string, args: readonly string[], cwd: string): void {
  const { status, stdout, stderr } = spawnSync(command, args, { cwd, encoding: 'utf8' });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')} ended with ${status}\n${stdout}${stderr}`);
}

// The same app in each framework, and what it answers: 401 without a token, 200 to the api, 403 to a stranger.
const apps = {
  fastify: {
    imports: { k8sSaAuth: '@k8s-sa-auth/fastify', fastify: 'fastify' },
    start: `const app = fastify();
      app.register(k8sSaAuth, options);
      app.get('/', (request) => request.caller.serviceAccount);
      await app.listen({ host: '127.0.0.1', port: 0 });
      const { server } = app; const close = () => app.close();`,
  },
  express: {
    imports: { k8sSaAuth: '@k8s-sa-auth/express', default: 'express' },
    start: `const guard = k8sSaAuth(options);
      const app = framework();
      app.use(guard);
      app.get('/', (req, res) => void res.send(req.caller.serviceAccount));
      const server = app.listen(0, '127.0.0.1'); await once(server, 'listening');
      const close = async () => { server.close(); server.closeAllConnections(); await guard.close(); };`,
  },
  koa: {
    imports: { k8sSaAuth: '@k8s-sa-auth/koa', default: 'koa' },
    start: `const guard = k8sSaAuth(options);
      const app = new framework();
      app.silent = true;
      app.use(guard).use((ctx) => { ctx.body = ctx.state.caller.serviceAccount; });
      const server = app.listen(0, '127.0.0.1'); await once(server, 'listening');
      const close = async () => { server.close(); server.closeAllConnections(); await guard.close(); };`,
  },
};

const shared = { createServiceClient: '@k8s-sa-auth/core', createAuthority: '@k8s-sa-auth/testing', once: 'node:events' };

function program(name: keyof typeof apps, kind: 'import' | 'require'): string {
  const { imports, start } = apps[name];
  const load = Object.entries({ ...shared, ...imports }).map(([what, from]) => {
    if (kind === 'import') return what === 'default' ? `import framework from '${from}';` : `import { ${what} } from '${from}';`;
    return what === 'default' ? `const framework = require('${from}');` : `const { ${what} } = require('${from}');`;
  });
  return `${load.join('\n')}
    async function main() {
      const authority = await createAuthority();
      const { apiServer } = await authority.pod('store/store');
      const options = { audience: 'store', allow: ['api/api'], apiServer };
      ${start}
      const url = 'http://127.0.0.1:' + server.address().port;
      const send = async (serviceAccount) => {
        const token = serviceAccount && (await authority.token(serviceAccount, { audience: 'store', pod: 'pod' }));
        const answer = await fetch(url, { headers: token ? { 'x-client-id': token } : {} });
        return [answer.status, (await answer.text()) === 'api/api'].join(' ');
      };
      const api = await authority.pod('api/api', { tokens: { store: 'store' } });
      const client = createServiceClient({ targets: [{ origin: url, tokenFile: api.tokenFile('store') }] });
      const called = await (await client.serviceFetch(url)).text();
      if (called !== 'api/api') throw new Error(called);
      await client.close();
      const got = [await send(), await send('api/api'), await send('shop/shop')].join(', ');
      await close();
      await authority.close();
      if (got !== '401 false, 200 true, 403 false') throw new Error(got);
    }
    main().catch((error) => { console.error(error); process.exitCode = 1; });`;
}

try {
  for (const name of packages) run('pnpm', ['pack', '--pack-destination', project], join(root, 'packages', name));
  const tarballs = readdirSync(project).filter((name) => name.endsWith('.tgz'));
  for (const tarball of tarballs) {
    run('publint', ['--strict', join(project, tarball)], root);
    run('attw', ['--profile', 'esm-only', join(project, tarball)], root);
    console.log(`✓ ${tarball}: publint, attw`);
  }
  writeFileSync(join(project, 'package.json'), JSON.stringify({ name: 'empty', private: true }));
  const nodes = nodeVersions.map((version) => `node-${version}@npm:node@${version}`);
  run(
    'npm',
    ['install', '--no-audit', '--no-fund', ...tarballs.map((name) => `./${name}`), 'fastify', 'express', 'koa', ...nodes],
    project,
  );
  for (const name of Object.keys(apps) as (keyof typeof apps)[]) {
    writeFileSync(join(project, `${name}.mjs`), program(name, 'import'));
    writeFileSync(join(project, `${name}.cjs`), program(name, 'require'));
  }
  for (const version of nodeVersions) {
    const node = join(project, 'node_modules', `node-${version}`, 'bin', 'node');
    const exact = execFileSync(node, ['--version'], { encoding: 'utf8' }).trim();
    for (const file of readdirSync(project).filter((name) => /\.[cm]js$/.test(name))) run(node, [file], project);
    const command = join(project, 'node_modules', '.bin', 'k8s-sa-auth');
    run(node, [command, '--help'], project);
    run(node, [command, 'manifests', '--callee', 'store/store', '--audience', 'store', '--caller', 'api/api'], project);
    console.log(`✓ Node ${exact}: fastify, express and koa, imported and required, and called by serviceFetch; the command`);
  }
} finally {
  rmSync(project, { recursive: true });
}
