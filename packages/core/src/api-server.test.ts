import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import type { ClientRequest } from 'node:http';
import { type AddressInfo, connect as connectSocket, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, it, mock } from 'node:test';
import { inspect, promisify } from 'node:util';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';

import { type ApiServerConnection, connectApiServer } from './api-server.ts';
import { type ApiServer, findEndpoint } from './endpoint.ts';

let authority: Authority;
let store: Pod;
let directory: string;
let warnings: string[];
let connections: ApiServerConnection[];

function connect(options: ApiServer | undefined = store.apiServer): ApiServerConnection {
  const connection = connectApiServer(options, {
    info: (_details, message) => void warnings.push(message),
    warn: (kind) => void warnings.push(kind),
  });
  connections.push(connection);
  return connection;
}

const question = {
  method: 'POST' as const,
  path: '/apis/authorization.k8s.io/v1/selfsubjectaccessreviews',
  body: {
    apiVersion: 'authorization.k8s.io/v1',
    kind: 'SelfSubjectAccessReview',
    spec: { resourceAttributes: { group: 'authentication.k8s.io', resource: 'tokenreviews', verb: 'create' } },
  },
  maxAnswerBytes: 16_384,
};
const ask = async (connection: ApiServerConnection): Promise<number> => (await connection.ask(question, 5_000)).status;

// The files of a pod that a test may change.
function copyOf(pod: Pod): { url: string; caFile: string; tokenFile: string } {
  const copy = { url: pod.apiServer.url, caFile: join(directory, 'ca.crt'), tokenFile: join(directory, 'token') };
  copyFileSync(pod.apiServer.caFile, copy.caFile);
  copyFileSync(pod.apiServer.tokenFile, copy.tokenFile);
  return copy;
}

before(async () => {
  authority = await createAuthority();
  store = await authority.pod('secret-store/secret-store');
});
after(() => authority.close());
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'api-server-test-'));
  warnings = [];
  connections = [];
});
afterEach(async () => {
  mock.timers.reset();
  for (const connection of connections) connection.close();
  await authority.recover();
  rmSync(directory, { recursive: true });
});

describe('connectApiServer, asking', () => {
  it('asks with the pod’s token over verified TLS', async () => {
    assert.equal(await ask(connect()), 201);
    const call = authority.calls.at(-1);
    assert.equal(call?.resource, 'selfsubjectaccessreviews');
    assert.equal(call.serviceAccount, 'secret-store/secret-store');
  });

  it('knows what its own token says', async () => {
    const claims = await connect().ownClaims();
    assert.deepEqual(claims?.identity, { namespace: 'secret-store', name: 'secret-store' });
    assert.deepEqual(claims.audiences, ['https://kubernetes.default.svc.cluster.local']);
  });

  it('tries once more after a 429, a 500 or a refused connection, and no more', async () => {
    const connection = connect();
    await ask(connection);
    const asked = authority.calls.length;
    authority.fail({ status: 500, body: '' }, { times: 1 });
    const review = {
      ...question,
      path: '/apis/authentication.k8s.io/v1/tokenreviews',
      body: { ...question.body, kind: 'TokenReview', spec: {} },
    };
    assert.equal((await connection.ask(review, 5_000)).status, 400);
    assert.equal(authority.calls.length, asked + 2);
    authority.fail({ status: 503, body: '' });
    assert.equal((await connection.ask(review, 5_000)).status, 503);
    assert.equal(authority.calls.length, asked + 4);
  });

  it('leaves nothing behind on a connection that it reuses', async () => {
    let listeners = 0;
    const count = (message: unknown): void => {
      const { request } = message as { request: ClientRequest };
      listeners = request.socket?.listenerCount('secureConnect') ?? 0;
    };
    subscribe('http.client.request.start', count);
    try {
      const connection = connect();
      for (let asked = 0; asked < 20; asked++) await ask(connection);
      assert.equal(listeners, 0);
      // More than there are connections, so that some are handed on.
      await Promise.all(Array.from({ length: 200 }, () => ask(connection)));
      await ask(connection);
      assert.equal(listeners, 0);
    } finally {
      unsubscribe('http.client.request.start', count);
    }
  });

  it('does not wait longer than its budget for a Retry-After', async () => {
    const connection = connect();
    authority.fail({ status: 429, headers: { 'retry-after': '6' }, body: '' }, { resource: 'selfsubjectaccessreviews' });
    const asked = authority.calls.length;
    assert.equal((await connection.ask(question, 5_000)).status, 429);
    assert.equal(authority.calls.length, asked + 1);
  });

  it('asks again when the connection that it reused had been dropped', async () => {
    const connection = connect();
    await ask(connection);
    authority.fail('outage');
    await authority.recover();
    assert.equal(await ask(connection), 201);
  });

  it('does not ask again when a new connection is reset after the question', async () => {
    const asked = authority.calls.length;
    authority.fail('reset');
    await assert.rejects(connect().ask(question, 5_000), { name: 'ApiServerError', reason: 'connection_reset' });
    assert.equal(authority.calls.length, asked + 1);
  });

  it('gives one attempt 3 s', async () => {
    const connection = connect();
    await ask(connection);
    authority.fail('slow', { delayMs: 60_000 });
    mock.timers.enable({ apis: ['setTimeout'] });
    const answer = assert.rejects(connection.ask(question, 5_000), { name: 'ApiServerError', reason: 'timeout' });
    await new Promise(setImmediate);
    mock.timers.tick(3_000);
    await answer;
  });

  it('gives an attempt no more than is left of its budget', async () => {
    const connection = connect();
    await ask(connection);
    authority.fail('slow', { delayMs: 60_000 });
    mock.timers.enable({ apis: ['setTimeout'] });
    const answer = assert.rejects(connection.ask(question, 900), { reason: 'timeout' });
    await new Promise(setImmediate);
    mock.timers.tick(900);
    await answer;
  });

  // Left alone, they would be dropped after a minute of nothing.
  it('drops its connections when it is closed', { timeout: 30_000 }, async () => {
    const upstream = Number(new URL(authority.url).port);
    const dropped = Promise.withResolvers<void>();
    const proxy = createServer((socket) => {
      socket.once('close', () => dropped.resolve());
      const through = connectSocket(upstream, '127.0.0.1');
      socket.pipe(through).pipe(socket);
      for (const one of [socket, through]) one.on('error', () => one.destroy());
    });
    await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve));
    const connection = connect({ ...store.apiServer, url: `https://127.0.0.1:${(proxy.address() as AddressInfo).port}` });
    await ask(connection);
    connection.close();
    await dropped.promise;
    proxy.close();
  });

  it('asks nothing more once it is closed, whatever was under way', async () => {
    const [early, late] = [connect(), connect()];
    await ask(early);
    await ask(late);
    const asked = authority.calls.length;
    const refused = assert.rejects(early.ask(question, 5_000), { reason: 'closed' });
    early.close();
    await refused;
    authority.fail('slow', { delayMs: 60_000 });
    const cut = assert.rejects(late.ask(question, 5_000), { reason: 'closed' });
    // It is sent in the microtasks of this turn.
    await new Promise(setImmediate);
    late.close();
    await cut;
    assert.equal(authority.calls.length, asked);
    await assert.rejects(late.ask(question, 5_000), { reason: 'closed' });
  });

  it('reads no more of an answer than it may', async () => {
    authority.fail({ status: 201, body: 'x'.repeat(20_000) });
    const review = { ...question, path: '/apis/authentication.k8s.io/v1/tokenreviews' };
    await assert.rejects(connect().ask(review, 5_000), { reason: 'answer_too_large' });
  });

  it('follows no redirect', async () => {
    authority.fail({ status: 302, headers: { location: 'https://127.0.0.1:1/' }, body: '' });
    const review = { ...question, path: '/apis/authentication.k8s.io/v1/tokenreviews' };
    assert.equal((await connect().ask(review, 5_000)).status, 302);
  });

  it('trusts no other certificate, whatever the environment says', async () => {
    const stranger = await createAuthority();
    const previous = process.env['NODE_TLS_REJECT_UNAUTHORIZED'];
    process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = '0';
    try {
      await assert.rejects(connect({ ...store.apiServer, url: stranger.url }).ask(question, 5_000), { reason: 'certificate_not_trusted' });
      assert.equal(stranger.calls.length, 0);
    } finally {
      if (previous === undefined) delete process.env['NODE_TLS_REJECT_UNAUTHORIZED'];
      else process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = previous;
      await stranger.close();
    }
  });
});

describe('connectApiServer, its credentials', () => {
  it('reads a rotated token within 60 s', async () => {
    const files = copyOf(store);
    const other = await authority.pod('secret-store/other');
    const connection = connect(files);
    await ask(connection);
    copyFileSync(other.apiServer.tokenFile, files.tokenFile);
    await ask(connection);
    assert.equal(authority.calls.at(-1)?.serviceAccount, 'secret-store/secret-store');
    mock.timers.enable({ apis: ['Date'], now: Date.now() + 60_000 });
    await ask(connection);
    assert.equal(authority.calls.at(-1)?.serviceAccount, 'secret-store/other');
  });

  it('looks at the file after a 401, and asks again with a newer token', async () => {
    const files = copyOf(store);
    writeFileSync(files.tokenFile, await authority.token('secret-store/secret-store', { audience: 'elsewhere', pod: 'p' }));
    const connection = connect(files);
    assert.equal(await ask(connection), 401);
    copyFileSync(store.apiServer.tokenFile, files.tokenFile);
    assert.equal(await ask(connection), 201);
  });

  it('looks at the CA file when the certificate is not trusted, and asks again with a newer CA', async () => {
    const files = copyOf(store);
    const connection = connect(files);
    await ask(connection);
    authority.rotateCa();
    authority.fail('outage');
    await authority.recover();
    await assert.rejects(connection.ask(question, 5_000), { reason: 'certificate_not_trusted' });
    copyFileSync(store.apiServer.caFile, files.caFile);
    assert.equal(await ask(connection), 201);
  });

  it('keeps the last credentials when a reload fails, and says so once, and once that it is over', async () => {
    const files = copyOf(store);
    const connection = connect(files);
    await ask(connection);
    writeFileSync(files.tokenFile, '');
    mock.timers.enable({ apis: ['Date'], now: Date.now() + 60_000 });
    assert.equal(await ask(connection), 201);
    mock.timers.setTime(Date.now() + 60_000);
    assert.equal(await ask(connection), 201);
    assert.deepEqual(warnings, ['api_server_credentials']);
    copyFileSync(store.apiServer.tokenFile, files.tokenFile);
    // Not read again for each question while it fails.
    await ask(connection);
    assert.deepEqual(warnings, ['api_server_credentials']);
    mock.timers.setTime(Date.now() + 60_000);
    await ask(connection);
    mock.timers.setTime(Date.now() + 60_000);
    await ask(connection);
    assert.deepEqual(warnings, ['api_server_credentials', 'The credentials for the API server can be read again']);
  });

  it('says which file is missing', async () => {
    const connection = connect({ ...store.apiServer, tokenFile: join(directory, 'absent') });
    await assert.rejects(connection.ask(question, 5_000), { reason: 'own_credentials_unreadable', message: /absent does not exist/ });
  });

  it('sends nothing that could not stand in a header', async () => {
    const files = copyOf(store);
    writeFileSync(files.tokenFile, 'a token\r\nX-Injected: 1');
    await assert.rejects(connect(files).ask(question, 5_000), { reason: 'own_credentials_unreadable', message: /does not hold a token/ });
  });

  it('sends nothing that is longer than a token', async () => {
    const files = copyOf(store);
    writeFileSync(files.tokenFile, 'a'.repeat(8_193));
    await assert.rejects(connect(files).ask(question, 5_000), { reason: 'own_credentials_unreadable', message: /has 8193 bytes/ });
  });
});

describe('connectApiServer, finding the API server', () => {
  const run = promisify(execFile);

  // In a process of its own, since it is the environment that decides.
  async function inProcess(env: Record<string, string>, script: string): Promise<string> {
    const source = `const { createGuard } = await import(${JSON.stringify(new URL('./index.ts', import.meta.url).href)});
      const options = { audience: 'secret-store', allow: 'any', logger: { info() {}, warn() {}, error() {} } };
      try { ${script} } catch (error) { console.log(error.name + ': ' + error.message); }`;
    const { stdout } = await run(process.execPath, ['--input-type=module', '--eval', source], {
      env: { HOME: directory, PATH: process.env['PATH'] ?? '', ...env },
    });
    return stdout;
  }

  const ready = 'const guard = createGuard(options); await guard.ready(); console.log("ready"); await guard.close();';

  it('finds it in a pod by what the kubelet provides, without the kubeconfig library', async () => {
    const script = `const { registerHooks } = await import('node:module');
      registerHooks({ resolve(name, context, next) { if (name.includes('client-node')) console.log(name); return next(name, context); } });
      ${ready}`;
    assert.equal(await inProcess({ ...store.env }, script), 'ready\n');
    assert.equal(await inProcess({ KUBECONFIG: authority.kubeconfig }, script), '@kubernetes/client-node\nready\n');
  });

  it('says what to do in a pod that has no token of its own', async () => {
    const env = { ...store.env, K8S_SA_AUTH_ROOT: join(directory, 'bare') };
    assert.match(
      await inProcess(env, ready),
      /^ClusterError: .*bare\/var\/run\/secrets\/kubernetes\.io\/serviceaccount\/\S+ does not exist\. .*automountServiceAccountToken: true/,
    );
  });

  it('finds it outside a pod by KUBECONFIG', async () => {
    assert.equal(await inProcess({ KUBECONFIG: authority.kubeconfig }, ready), 'ready\n');
  });

  it('takes a kubeconfig that is named', async () => {
    const script = `options.apiServer = { kubeconfig: ${JSON.stringify(authority.kubeconfig)} }; ${ready}`;
    assert.equal(await inProcess({}, script), 'ready\n');
    assert.equal(await inProcess({ KUBECONFIG: join(directory, 'absent') }, script), 'ready\n');
  });

  it('takes an address with a port for a pod, one of IPv6 too, and one without for none', () => {
    const urlIn = (env: Record<string, string>): string => {
      const given = { ...process.env };
      Object.assign(process.env, env);
      try {
        return findEndpoint(undefined).url.href;
      } finally {
        for (const name in env) {
          delete process.env[name];
          if (given[name] !== undefined) process.env[name] = given[name];
        }
      }
    };
    assert.equal(urlIn({ KUBERNETES_SERVICE_HOST: '::1', KUBERNETES_SERVICE_PORT: '6443' }), 'https://[::1]:6443/');
    assert.equal(urlIn({ KUBERNETES_SERVICE_HOST: '192.0.2.1', KUBECONFIG: authority.kubeconfig }), `${authority.url}/`);
  });

  it('says what to do where there is neither pod nor kubeconfig', async () => {
    const printed = await inProcess({}, ready);
    assert.match(printed, /^TypeError: No API server to review tokens: this process is not in a pod, and there is no kubeconfig at /);
    assert.match(printed, /run in a pod, set KUBECONFIG, or give apiServer: \{ url, caFile, tokenFile \}/);
  });

  it('refuses a kubeconfig that does not exist', async () => {
    assert.match(await inProcess({ KUBECONFIG: join(directory, 'absent') }, ready), /^TypeError: .*absent does not exist/);
  });

  function kubeconfigWith(change: (text: string) => string): string {
    const path = join(directory, 'kubeconfig');
    writeFileSync(path, change(readFileSync(authority.kubeconfig, 'utf8')));
    return path;
  }

  it('refuses a kubeconfig that names http:', async () => {
    const path = kubeconfigWith((text) => text.replace('https:', 'http:'));
    assert.match(await inProcess({ KUBECONFIG: path }, ready), /^TypeError: .*"http:\/\/127.0.0.1:\d+" is not an https: URL/);
  });

  it('refuses a kubeconfig that verifies no certificate', async () => {
    const path = kubeconfigWith((text) => text.replace(/"certificate-authority": .*/, '"insecure-skip-tls-verify": true'));
    assert.match(await inProcess({ KUBECONFIG: path }, ready), /^TypeError: .*insecure-skip-tls-verify is set/);
  });

  it('refuses a kubeconfig that names a proxy, which it would pass by', () => {
    const path = kubeconfigWith((text) => text.replace('"server":', '"proxy-url": "http://192.0.2.1:3128", "server":'));
    assert.throws(() => connect({ kubeconfig: path }), { name: 'TypeError', message: /proxy-url is not supported/ });
  });

  it('comes as the kubeconfig says, with a password too', async () => {
    const user = JSON.stringify({ username: 'jane', password: 'hunter2' });
    const path = kubeconfigWith((text) => text.replace(/"user": ?\{[^}]*\}/, `"user": ${user}`));
    const { headers } = await findEndpoint({ kubeconfig: path }).readCredentials();
    assert.deepEqual(headers, { authorization: `Basic ${btoa('jane:hunter2')}` });
    const { headers: bearer } = await findEndpoint({ kubeconfig: authority.kubeconfig }).readCredentials();
    assert.deepEqual(Object.keys(bearer), ['authorization']);
  });

  it('refuses a context that does not exist', () => {
    assert.throws(() => connect({ kubeconfig: authority.kubeconfig, context: 'absent' }), {
      name: 'TypeError',
      message: /names no cluster/,
    });
  });

  it('refuses a kubeconfig that is none', () => {
    const path = kubeconfigWith(() => 'clusters: [');
    assert.throws(() => connect({ kubeconfig: path }), { name: 'TypeError', message: /cannot be read/ });
  });

  it('tells where a kubeconfig is broken, and nothing that is in it', () => {
    const path = kubeconfigWith(() => 'users:\n- name: a\n  user:\n    token: s3cret\n    password: hunter2 : x\n');
    assert.throws(
      () => connect({ kubeconfig: path }),
      (error: unknown) =>
        /cannot be read: it is no YAML from line and column 5:\d+ on$/m.test(String(error)) && !/s3cret|hunter2/.test(inspect(error)),
    );
  });

  async function failureOf(program: string): Promise<Error> {
    const user = JSON.stringify({ exec: { apiVersion: 'client.authentication.k8s.io/v1', command: 'sh', args: ['-c', program] } });
    const connection = connect({ kubeconfig: kubeconfigWith((text) => text.replace(/"user": ?\{[^}]*\}/, `"user": ${user}`)) });
    return connection.ask(question, 5_000).then(
      () => assert.fail('It was answered'),
      (error: unknown) => error as Error,
    );
  }

  it('does not repeat what a program printed in the place of a credential', async () => {
    const { message } = await failureOf('echo s3cret');
    assert.match(message, /The program that the kubeconfig runs for them printed what is not JSON$/);
  });

  it('tells what such a program complains of, in 256 printable characters', async () => {
    const { message } = await failureOf(`printf 'no session \\033[31m' >&2; seq 1000 >&2; exit 1`);
    assert.match(message, /cannot be read: no session {2}\[31m1 2 3 [\d ]+$/);
    assert.ok(message.length < 320);
  });

  it('waits 3 s for such a program, and goes on with what it gave before', async () => {
    const flag = join(directory, 'hang');
    const { token } = JSON.parse(readFileSync(authority.kubeconfig, 'utf8')).users[0].user;
    const given = `{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"${token}","expirationTimestamp":"2026-01-01T00:00:00Z"}}`;
    const program = `while [ -e ${flag} ]; do sleep 0.05; done; echo '${given}'`;
    const user = JSON.stringify({ exec: { apiVersion: 'client.authentication.k8s.io/v1', command: 'sh', args: ['-c', program] } });
    const path = kubeconfigWith((text) => text.replace(/"user": ?\{[^}]*\}/, () => `"user": ${user}`));
    const [known, fresh] = [connect({ kubeconfig: path }), connect({ kubeconfig: path })];
    assert.equal(await ask(known), 201);
    writeFileSync(flag, '');
    mock.timers.enable({ apis: ['setTimeout', 'Date'], now: Date.now() + 60_000 });
    const answers = [ask(known), assert.rejects(ask(fresh), { reason: 'own_credentials_unreadable', message: /take too long/ })];
    await new Promise(setImmediate);
    mock.timers.tick(3_000);
    assert.equal((await Promise.all(answers))[0], 201);
    // Not waited for again while it hangs.
    assert.equal(await ask(known), 201);
  });

  it('takes a client certificate that is none for credentials that cannot be read', async () => {
    const garbage = Buffer.from('garbage').toString('base64');
    const user = JSON.stringify({ 'client-certificate-data': garbage, 'client-key-data': garbage });
    const connection = connect({ kubeconfig: kubeconfigWith((text) => text.replace(/"user": ?\{[^}]*\}/, `"user": ${user}`)) });
    await assert.rejects(connection.ask(question, 5_000), { name: 'ApiServerError', reason: 'own_credentials_unreadable' });
  });

  it('does not blame our options for a credential that no header can hold', async () => {
    const { name, message } = await failureOf(`printf '{"status":{"token":"a\\\\nb"}}'`);
    assert.equal(name, 'ApiServerError');
    assert.match(message, /What the kubeconfig gives could not stand in a header$/);
  });

  it('refuses an address that is not https:', () => {
    assert.throws(() => connect({ ...store.apiServer, url: 'http://127.0.0.1' }), { name: 'TypeError', message: /not an https: URL/ });
  });

  it('refuses what is no object, and an address without the files', () => {
    const rejects = (options: unknown, message: RegExp): void =>
      assert.throws(() => connect(options as ApiServer), { name: 'TypeError', message });
    rejects(store.apiServer.url, /^"apiServer" takes an object with url, caFile, tokenFile, not https:/);
    rejects(null, /^"apiServer" takes an object/);
    rejects({ url: store.apiServer.url }, /^"apiServer\.caFile" is required: the path of a file$/);
    rejects({ ...store.apiServer, tokenFile: '' }, /^"apiServer\.tokenFile" is required/);
    rejects({ kubeconfig: 7 }, /^"apiServer\.kubeconfig" is required/);
  });

  it('refuses options that it does not know', () => {
    assert.throws(() => connect({ ...store.apiServer, insecure: true } as ApiServer), { name: 'TypeError', message: /"insecure"/ });
  });
});
