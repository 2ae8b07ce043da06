import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { pbkdf2 } from 'node:crypto';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readlinkSync,
  realpathSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, it, mock } from 'node:test';
import { promisify } from 'node:util';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';

import { mount } from './fixtures/mount.ts';
import {
  createTokenFile,
  loadSendableToken,
  serviceAccountDirectory,
  type TokenFile,
  type TokenReload,
  tokenReloadChannel,
} from './token-file.ts';

let authority: Authority;
let api: Pod;
let directory: string;
let told: string[];
let files: TokenFile[];

function follow(path: string): TokenFile {
  const file = createTokenFile(path, {
    info: (_details, message) => void told.push(`info ${message}`),
    warn: (kind, _details, message) => void told.push(`warn ${kind} ${message}`),
  });
  files.push(file);
  return file;
}

const mint = (audience: string | readonly string[] = 'secret-store'): Promise<string> =>
  authority.token('api/api', { audience, pod: 'api-0' });

// Resolves when the file has been reloaded, by whatever made it so.
async function reloaded(file: TokenFile, isDone: () => boolean): Promise<void> {
  while (!isDone()) await new Promise((resolve) => setImmediate(resolve));
  assert.ok(file);
}

before(async () => {
  authority = await createAuthority();
  api = await authority.pod('api/api', { tokens: { 'api-token': 'secret-store' } });
});
after(() => authority.close());
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'token-file-test-'));
  told = [];
  files = [];
});
afterEach(() => {
  mock.timers.reset();
  for (const file of files) file.close();
  rmSync(directory, { recursive: true });
});

describe('createTokenFile', () => {
  it('reads what the kubelet projects', async () => {
    const file = follow(api.tokenFile('api-token'));
    assert.match(await file.token(), /^eyJ/);
    assert.equal(file.status().loaded?.audience, 'secret-store');
  });

  it('gives the token without disk access from then on', async () => {
    const path = join(directory, 'token');
    writeFileSync(path, await mint());
    const file = follow(path);
    const token = await file.token();
    rmSync(path);
    assert.equal(file.peek(), token);
    assert.equal(await file.token(), token);
  });

  it('reloads when the kubelet swaps the volume', async () => {
    const file = follow(api.tokenFile('api-token'));
    const first = await file.token();
    await api.rotate();
    await reloaded(file, () => file.peek() !== first);
    assert.notEqual(file.peek(), first);
    assert.deepEqual(told, []);
  });

  it('reloads within 5 minutes where nothing tells of a change, as with subPath', async () => {
    const mounted = join(directory, 'mounted');
    mkdirSync(mounted);
    const path = join(mounted, 'token');
    const target = join(directory, 'target');
    writeFileSync(target, await mint());
    symlinkSync(target, path);
    const file = follow(path);
    const first = await file.token();
    writeFileSync(target, await authority.token('api/api', { audience: 'secret-store', expirationSeconds: 3_600, pod: 'api-0' }));
    assert.equal(file.peek(), first);
    mock.timers.enable({ apis: ['Date'], now: Date.now() + 300_000 });
    assert.equal(file.peek(), first);
    await reloaded(file, () => file.peek() !== first);
  });

  it('reloads when a fifth of the life is left', async () => {
    const target = join(directory, 'target');
    mkdirSync(join(directory, 'mounted'));
    writeFileSync(target, await mint());
    symlinkSync(target, join(directory, 'mounted', 'token'));
    const file = follow(join(directory, 'mounted', 'token'));
    const first = await file.token();
    const bornAt = Date.now();
    mock.timers.enable({ apis: ['Date'], now: bornAt + 299_000 });
    await file.token();
    mock.timers.setTime(bornAt + 301_000);
    await reloaded(file, () => file.peek() === first && (file.status().reloadedAtMs ?? 0) >= bornAt + 301_000);
    const second = await mint();
    writeFileSync(target, second);
    const { expiresAtMs = 0 } = file.status().loaded ?? {};
    mock.timers.setTime(expiresAtMs - 120_001);
    assert.equal(file.peek(), first);
    for (let time = 0; time < 3; time++) await loadSendableToken(target);
    assert.equal(file.peek(), first);
    mock.timers.setTime(expiresAtMs - 120_000);
    await reloaded(file, () => file.peek() === second);
  });

  it('reads every 10 s in the last fifth of the life, and no more often', async () => {
    const path = join(directory, 'token');
    writeFileSync(path, await mint());
    const { expiresAtMs } = await loadSendableToken(path);
    mock.timers.enable({ apis: ['setTimeout', 'Date'], now: expiresAtMs - 60_000 });
    const file = follow(path);
    await file.token();
    mock.timers.tick(9_999);
    await loadSendableToken(path);
    assert.equal(file.status().reloadedAtMs, expiresAtMs - 60_000);
    mock.timers.tick(1);
    await reloaded(file, () => file.status().reloadedAtMs === expiresAtMs - 50_000);
  });

  it('leaves no file open', { skip: !existsSync('/proc/self/fd') }, async () => {
    const path = join(realpathSync(directory), 'token');
    const isOpen = (): boolean =>
      readdirSync('/proc/self/fd').some((fd) => {
        try {
          return readlinkSync(`/proc/self/fd/${fd}`) === path;
        } catch {
          return false;
        }
      });
    writeFileSync(path, await mint());
    await loadSendableToken(path);
    assert.ok(!isOpen());
    writeFileSync(path, '');
    await assert.rejects(loadSendableToken(path), { code: 'token_file_unreadable' });
    assert.ok(!isOpen());
  });

  it('trims a newline', async () => {
    const token = await mint();
    writeFileSync(join(directory, 'token'), `\n${token}\n`);
    assert.equal(await follow(join(directory, 'token')).token(), token);
  });

  it('waits for a file that is late', async () => {
    const path = join(directory, 'late', 'token');
    const file = follow(path);
    const waiting = file.token();
    mkdirSync(join(directory, 'late'));
    writeFileSync(`${path}.new`, await mint());
    renameSync(`${path}.new`, path);
    assert.match(await waiting, /^eyJ/);
  });

  it('waits no longer than 10 s, and says what is missing', async () => {
    mock.timers.enable({ apis: ['setTimeout'] });
    const path = join(directory, 'absent');
    const waiting = assert.rejects(follow(path).token(), {
      name: 'TokenFileError',
      code: 'token_file_unreadable',
      path,
      message: `${path} does not exist. Mount a projected volume there, with a serviceAccountToken source`,
    });
    let isOver = false;
    void waiting.then(() => (isOver = true));
    for (let ticks = 0; !isOver; ticks++) {
      assert.ok(ticks < 100_000);
      mock.timers.tick(1);
      await new Promise(setImmediate);
    }
    await waiting;
  });

  const rejects = async (code: string, message: RegExp): Promise<void> => {
    const file = follow(join(directory, 'token'));
    await reloaded(file, () => file.status().error !== undefined);
    assert.equal(file.peek(), undefined);
    assert.equal(file.status().error?.code, code);
    assert.match(file.status().error?.message ?? '', message);
    // Whoever asks for the token is told, and the log a moment later.
    assert.deepEqual(told, []);
  };

  it('says once that a file is not there, though nobody asks for it, and when it can be read after all', async () => {
    mock.timers.enable({ apis: ['setTimeout'] });
    const path = join(directory, 'token');
    const file = follow(path);
    await reloaded(file, () => file.status().error !== undefined);
    mock.timers.tick(1_499);
    assert.deepEqual(told, []);
    mock.timers.tick(1);
    const missing = `warn token_file ${path} does not exist. Mount a projected volume there, with a serviceAccountToken source`;
    assert.deepEqual(told, [missing]);
    writeFileSync(path, 'garbage');
    await reloaded(file, () => file.status().error?.code === 'token_not_sendable');
    mock.timers.tick(1_500);
    writeFileSync(path, await mint());
    await reloaded(file, () => file.status().error === undefined);
    assert.deepEqual(told, [missing, `info The token in ${path} can be sent again`]);
  });

  it('says nothing of a file that is late by a moment', async () => {
    mock.timers.enable({ apis: ['setTimeout'] });
    const path = join(directory, 'token');
    const file = follow(path);
    await reloaded(file, () => file.status().error !== undefined);
    writeFileSync(path, await mint());
    await reloaded(file, () => file.status().error === undefined);
    mock.timers.tick(1_500);
    assert.deepEqual(told, []);
  });

  it('says nothing of a file that is not there once it is closed', async () => {
    mock.timers.enable({ apis: ['setTimeout'] });
    const file = follow(join(directory, 'token'));
    await reloaded(file, () => file.status().error !== undefined);
    file.close();
    mock.timers.tick(1_500);
    assert.deepEqual(told, []);
  });

  it('never sends a token for several audiences', async () => {
    writeFileSync(join(directory, 'token'), await mint(['secret-store', 'vault']));
    await rejects('token_not_sendable', /more than one audience/);
  });

  it('never sends a token for the API server', async () => {
    writeFileSync(join(directory, 'token'), await mint('https://kubernetes.default.svc.cluster.local'));
    await rejects('token_not_sendable', /is meant for the API server/);
  });

  it('never sends what is not one JWT', async () => {
    writeFileSync(join(directory, 'token'), `${await mint()} ${await mint()}`);
    await rejects('token_not_sendable', /is not one compact JWT/);
  });

  it('never sends an expired token', async () => {
    writeFileSync(join(directory, 'token'), await mint());
    mock.timers.enable({ apis: ['Date'], now: Date.now() + 600_000 });
    await rejects('token_expired', /expired at 20.*The kubelet has not rotated it/);
  });

  it('sends a token until the millisecond in which it expires', async () => {
    const path = join(directory, 'token');
    writeFileSync(path, await mint());
    const file = follow(path);
    const token = await file.token();
    const { expiresAtMs = 0 } = file.status().loaded ?? {};
    mock.timers.enable({ apis: ['Date'], now: expiresAtMs - 1 });
    assert.equal(file.peek(), token);
    assert.equal((await loadSendableToken(path)).token, token);
    mock.timers.setTime(expiresAtMs);
    assert.equal(file.peek(), undefined);
    await assert.rejects(loadSendableToken(path), { code: 'token_expired' });
  });

  it('never sends a token without audience or expiry', async () => {
    const encode = (part: object): string => Buffer.from(JSON.stringify(part)).toString('base64url');
    writeFileSync(join(directory, 'token'), `${encode({ alg: 'RS256' })}.${encode({ sub: 'x' })}.c2ln`);
    await rejects('token_not_sendable', /no expiry or no audience/);
  });

  it('never sends a token whose expiry is no date', async () => {
    const encode = (part: object): string => Buffer.from(JSON.stringify(part)).toString('base64url');
    writeFileSync(join(directory, 'token'), `${encode({ alg: 'RS256' })}.${encode({ aud: 'shop', exp: -1e300 })}.c2ln`);
    await rejects('token_not_sendable', /no expiry or no audience/);
  });

  it('reads regular files only', async () => {
    mkdirSync(join(directory, 'token'));
    await rejects('token_file_unreadable', /is not a regular file/);
  });

  it('does not hang on a FIFO', async () => {
    await promisify(execFile)('mkfifo', [join(directory, 'token')]);
    await rejects('token_file_unreadable', /is not a regular file/);
  });

  it('reads at most 8 KiB', async () => {
    const largest = (await mint()).padEnd(8_192, '\n');
    writeFileSync(join(directory, 'token'), largest);
    assert.equal((await loadSendableToken(join(directory, 'token'))).token, largest.trim());
    writeFileSync(join(directory, 'token'), 'x'.repeat(8_193));
    await rejects('token_file_unreadable', /has 8193 bytes/);
  });

  it('keeps the last good token when a reload fails, says so once, and says when it is over', async () => {
    const path = join(directory, 'token');
    const token = await mint();
    writeFileSync(path, token);
    const file = follow(path);
    await file.token();
    writeFileSync(path, '');
    await reloaded(file, () => file.status().error !== undefined);
    writeFileSync(path, 'garbage');
    await reloaded(file, () => file.status().error?.code === 'token_not_sendable');
    assert.equal(file.peek(), token);
    writeFileSync(path, token);
    await reloaded(file, () => file.status().error === undefined);
    assert.equal(told.length, 2);
    assert.match(told[0] ?? '', /^warn token_file .* is empty\..* The last good token is sent while it lives$/);
    assert.match(told[1] ?? '', /^info The token in .* can be sent again$/);
  });

  it('fails instead of sending a dead token', async () => {
    const path = join(directory, 'token');
    writeFileSync(path, await mint());
    const file = follow(path);
    await file.token();
    mock.timers.enable({ apis: ['Date'], now: Date.now() + 600_000 });
    assert.equal(file.peek(), undefined);
    await assert.rejects(file.token(), { code: 'token_expired' });
    writeFileSync(path, await mint());
    await reloaded(file, () => file.status().error === undefined);
    assert.match(await file.token(), /^eyJ/);
  });

  it('does not read the file again for each of those that ask in vain', async () => {
    let reads = 0;
    const count = (): void => void (reads += 1);
    subscribe(tokenReloadChannel, count);
    try {
      const path = join(directory, 'token');
      writeFileSync(path, 'garbage');
      const file = follow(path);
      for (let time = 0; time < 50; time++) await assert.rejects(file.token(), { code: 'token_not_sendable' });
      // And once more a second later, if the machine was as slow as that.
      assert.ok(reads <= 3, `${reads} times`);
    } finally {
      unsubscribe(tokenReloadChannel, count);
    }
  });

  it('sends nothing while the pod’s own token, which tells whose audience is the API server’s, cannot be read', async () => {
    const root = join(directory, 'root');
    const own = join(root, serviceAccountDirectory);
    mkdirSync(own, { recursive: true });
    writeFileSync(join(directory, 'token'), await mint());
    const previous = process.env['K8S_SA_AUTH_ROOT'];
    process.env['K8S_SA_AUTH_ROOT'] = root;
    try {
      assert.equal((await loadSendableToken(join(directory, 'token'))).audience, 'secret-store');
      for (const unreadable of ['', 'half', 'x'.repeat(9_000)]) {
        writeFileSync(join(own, 'token'), unreadable);
        await assert.rejects(loadSendableToken(join(directory, 'token')), {
          code: 'token_file_unreadable',
          message: /the pod's own token/,
        });
      }
      writeFileSync(join(own, 'token'), await authority.token('api/api', { audience: 'secret-store' }));
      await assert.rejects(loadSendableToken(join(directory, 'token')), { code: 'token_not_sendable' });
      rmSync(join(own, 'token'));
      symlinkSync('token', join(own, 'token'));
      await assert.rejects(loadSendableToken(join(directory, 'token')), { code: 'token_file_unreadable', message: /the pod's own token/ });
      rmSync(own, { recursive: true });
      writeFileSync(own, 'a file in the place of its directory');
      assert.equal((await loadSendableToken(join(directory, 'token'))).audience, 'secret-store');
    } finally {
      if (previous === undefined) delete process.env['K8S_SA_AUTH_ROOT'];
      else process.env['K8S_SA_AUTH_ROOT'] = previous;
    }
  });

  it('follows a directory that was removed and made anew', async () => {
    const mounted = join(directory, 'mounted');
    mkdirSync(mounted);
    const path = join(mounted, 'token');
    writeFileSync(path, await mint());
    const file = follow(path);
    const first = await file.token();
    rmSync(mounted, { recursive: true });
    await reloaded(file, () => file.status().error !== undefined);
    assert.equal(file.peek(), first);
    mkdirSync(mounted);
    const second = await authority.token('api/api', { audience: 'secret-store', expirationSeconds: 86_400, pod: 'api-0' });
    writeFileSync(path, second);
    mock.timers.enable({ apis: ['Date'], now: Date.now() });
    await reloaded(file, () => {
      mock.timers.tick(1_000);
      return file.peek() === second;
    });
    mock.timers.reset();
    const third = await authority.token('api/api', { audience: 'secret-store', expirationSeconds: 1_800, pod: 'api-0' });
    writeFileSync(path, third);
    await reloaded(file, () => file.peek() === third);
  });

  it('follows a directory that comes after it was looked for, and before its file is', async () => {
    const path = join(directory, 'late', 'token');
    const [first, second] = [await mint(), await authority.token('api/api', { audience: 'secret-store', pod: 'api-1' })];
    // Whatever reads files waits for these.
    const busy = Array.from({ length: 4 }, () => promisify(pbkdf2)('', '', 100_000, 32, 'sha256'));
    const file = follow(path);
    mkdirSync(join(directory, 'late'));
    writeFileSync(path, first);
    assert.equal(await file.token(), first);
    await Promise.all(busy);
    writeFileSync(`${path}.new`, second);
    renameSync(`${path}.new`, path);
    await reloaded(file, () => file.peek() === second);
  });

  it('follows a directory that was moved away for another one', async () => {
    const mounted = join(directory, 'mounted');
    const fresh = join(directory, 'fresh');
    mkdirSync(mounted);
    mkdirSync(fresh);
    writeFileSync(join(mounted, 'token'), await mint());
    const second = await authority.token('api/api', { audience: 'secret-store', expirationSeconds: 1_200, pod: 'api-0' });
    writeFileSync(join(fresh, 'token'), second);
    const file = follow(join(mounted, 'token'));
    await file.token();
    renameSync(mounted, join(directory, 'old'));
    renameSync(fresh, mounted);
    await reloaded(file, () => file.peek() === second);
  });

  it('says that the kubelet has stopped rotating, once the token of a terminating pod is over', async () => {
    const pod = await authority.pod('api/api', { tokens: { shop: 'shop' } });
    const file = follow(pod.tokenFile('shop'));
    await file.token();
    await authority.delete('pod', `api/${pod.name}`, { gracePeriodSeconds: 30 });
    mock.timers.enable({ apis: ['Date'], now: Date.now() + 3_600_000 });
    await assert.rejects(file.token(), { code: 'token_expired', message: /The kubelet has not rotated it: is the pod terminating/ });
    assert.match(told[0] ?? '', /^warn token_file The token in .* expired at/);
    assert.equal(told.length, 1);
  });

  it('sends a token that the clock says is from the future', async () => {
    writeFileSync(join(directory, 'token'), await mint());
    mock.timers.enable({ apis: ['Date'], now: Date.now() - 300_000 });
    const file = follow(join(directory, 'token'));
    assert.match(await file.token(), /^eyJ/);
    const { reloadedAtMs } = file.status();
    mock.timers.tick(300_000);
    file.peek();
    await reloaded(file, () => file.status().reloadedAtMs !== reloadedAtMs);
  });

  it('says what the clock says where it is so far ahead that every token has expired', async () => {
    writeFileSync(join(directory, 'token'), await mint());
    mock.timers.enable({ apis: ['Date'], now: Date.now() + 3_600_000 });
    await assert.rejects(follow(join(directory, 'token')).token(), { code: 'token_expired', message: /and it is 20.*or the clock off\?$/ });
  });

  it('goes on after the clock was put back', async () => {
    const path = join(directory, 'token');
    writeFileSync(path, await mint());
    const now = Date.now();
    mock.timers.enable({ apis: ['Date'], now: now + 500_000 });
    const file = follow(path);
    const first = await file.token();
    mock.timers.setTime(now);
    assert.equal(file.peek(), first);
    const second = await authority.token('api/api', { audience: 'secret-store', expirationSeconds: 1_200, pod: 'api-0' });
    writeFileSync(path, second);
    await reloaded(file, () => file.peek() === second);
  });

  it('publishes each reload, and no token', async () => {
    const events: TokenReload[] = [];
    const listen = (event: unknown): void => void events.push(event as TokenReload);
    subscribe(tokenReloadChannel, listen);
    const path = join(directory, 'token');
    const token = await mint();
    writeFileSync(path, token);
    const file = follow(path);
    await file.token();
    const expiresAt = new Date(file.status().loaded?.expiresAtMs ?? 0);
    assert.deepEqual(events, [{ tokenFile: path, audience: 'secret-store', expiresAt }]);
    writeFileSync(path, 'garbage');
    await reloaded(file, () => file.status().error?.code === 'token_not_sendable');
    assert.deepEqual(events.at(-1), { tokenFile: path, code: 'token_not_sendable', audience: 'secret-store', expiresAt });
    unsubscribe(tokenReloadChannel, listen);
    assert.ok(!JSON.stringify(events).includes(token.split('.')[2] ?? ''));
  });

  it('publishes a first failure without an audience', async () => {
    const events: unknown[] = [];
    const listen = (event: unknown): void => void events.push(event);
    subscribe(tokenReloadChannel, listen);
    const path = join(directory, 'absent');
    const file = follow(path);
    await reloaded(file, () => file.status().error !== undefined);
    unsubscribe(tokenReloadChannel, listen);
    assert.deepEqual(events, [{ tokenFile: path, code: 'token_file_unreadable' }]);
  });

  it('gives up waiting for a late file when it is closed', async () => {
    // No time passes.
    mock.timers.enable({ apis: ['setTimeout'] });
    const file = follow(join(directory, 'absent'));
    const waiting = assert.rejects(file.token(), { message: /is closed$/ });
    await reloaded(file, () => file.status().error !== undefined);
    file.close();
    await waiting;
  });

  it('reads nothing more when it is closed', async () => {
    const path = join(directory, 'token');
    writeFileSync(path, await mint());
    const next = await authority.token('api/api', { audience: 'secret-store', expirationSeconds: 1_200, pod: 'api-0' });
    writeFileSync(`${path}.new`, next);
    mock.timers.enable({ apis: ['setTimeout', 'Date'], now: Date.now() });
    const file = follow(path);
    const first = await file.token();
    const other = follow(path);
    await other.token();
    file.close();
    const isAsItWas = async (): Promise<void> => {
      // A read would have been over by then.
      for (let time = 0; time < 3; time++) await loadSendableToken(path);
      assert.equal(file.status().loaded?.token, first);
    };
    renameSync(`${path}.new`, path);
    await reloaded(other, () => other.peek() === next);
    await isAsItWas();
    mock.timers.tick(300_000);
    await isAsItWas();
  });

  it('has no token after a refused one where it is closed', async () => {
    const file = follow(api.tokenFile('api-token'));
    const token = await file.token();
    file.close();
    assert.equal(await file.tokenAfter(token), undefined);
  });

  it('looks below K8S_SA_AUTH_ROOT where that is set', async () => {
    process.env['K8S_SA_AUTH_ROOT'] = api.env['K8S_SA_AUTH_ROOT'];
    try {
      const file = follow('/var/run/secrets/tokens/api-token');
      assert.equal(file.path, api.tokenFile('api-token'));
      assert.equal(follow(api.tokenFile('api-token')).path, api.tokenFile('api-token'));
      const beside = `${process.env['K8S_SA_AUTH_ROOT']}-beside/token`;
      assert.equal(follow(beside).path, join(process.env['K8S_SA_AUTH_ROOT'] ?? '', beside));
      assert.match(await file.token(), /^eyJ/);
    } finally {
      delete process.env['K8S_SA_AUTH_ROOT'];
    }
  });

  it('knows the API server’s audience from the pod’s default token, whatever the issuer', async () => {
    process.env['K8S_SA_AUTH_ROOT'] = api.env['K8S_SA_AUTH_ROOT'];
    try {
      const [header, payload, signature] = (await mint('https://kubernetes.default.svc.cluster.local')).split('.');
      const claims = JSON.parse(Buffer.from(payload ?? '', 'base64url').toString()) as object;
      const other = Buffer.from(JSON.stringify({ ...claims, iss: 'https://elsewhere.example' })).toString('base64url');
      const path = join(api.env['K8S_SA_AUTH_ROOT'] ?? '', 'token');
      writeFileSync(path, `${header}.${other}.${signature}`);
      await assert.rejects(follow(path).token(), { code: 'token_not_sendable', message: /is meant for the API server/ });
    } finally {
      delete process.env['K8S_SA_AUTH_ROOT'];
    }
  });

  it('sends nothing after close', async () => {
    const file = follow(api.tokenFile('api-token'));
    await file.token();
    file.close();
    assert.equal(file.peek(), undefined);
    await assert.rejects(file.token(), { name: 'TokenFileError', message: /is closed/ });
  });

  it('tells nobody of what it was still reading when it was closed', async () => {
    let events = 0;
    const count = (): void => void (events += 1);
    subscribe(tokenReloadChannel, count);
    try {
      const file = follow(api.tokenFile('api-token'));
      file.close();
      await reloaded(file, () => file.status().loaded !== undefined);
      assert.equal(events, 0);
    } finally {
      unsubscribe(tokenReloadChannel, count);
    }
  });

  it('loses no change that is told while a reload ends', async () => {
    const mounted = mount(await mint());
    const next = await authority.token('api/api', { audience: 'secret-store', expirationSeconds: 1_200, pod: 'api-0' });
    const file = follow(mounted.path);
    const found = Promise.withResolvers<string | undefined>();
    const swap = (): void => {
      unsubscribe(tokenReloadChannel, swap);
      mounted.replace(next);
      found.resolve(file.tokenAfter(file.peek() ?? ''));
    };
    subscribe(tokenReloadChannel, swap);
    try {
      assert.equal(await found.promise, next);
    } finally {
      unsubscribe(tokenReloadChannel, swap);
      mounted.remove();
    }
  });

  const inChild = async (program: string): Promise<string> => {
    const script = `const { createServiceClient } = await import(${JSON.stringify(new URL('./index.ts', import.meta.url).href)});
      const targets = [{ origin: 'http://x', tokenFile: ${JSON.stringify(api.tokenFile('api-token'))} }, { origin: 'http://y', tokenFile: '/absent' }];
      ${program}`;
    const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '--eval', script], { timeout: 20_000 });
    return stdout;
  };

  it('does not keep a process alive', async () => {
    const program = `const client = createServiceClient({ targets }); await client.target('http://x').headers(); console.log('ready');`;
    assert.equal(await inChild(program), 'ready\n');
  });

  it('keeps none alive to say that a file is not there', async () => {
    const program = `const client = createServiceClient({ targets });
      while (client.status()[1].error === undefined) await new Promise(setImmediate);
      console.log(process.getActiveResourcesInfo().includes('Timeout'));`;
    assert.equal(await inChild(program), 'false\n');
  });

  it('leaves no timer and no watcher behind', async () => {
    const program = `console.log('started');
      const before = process.getActiveResourcesInfo().toSorted().join();
      const client = createServiceClient({ targets });
      await client.target('http://x').headers();
      const waiting = client.target('http://y').headers().catch((error) => console.log(error.message));
      await client.close();
      await waiting;
      await new Promise(setImmediate);
      console.log(process.getActiveResourcesInfo().toSorted().join() === before);`;
    assert.equal(await inChild(program), 'started\nThe client that reads /absent is closed\ntrue\n');
  });
});
