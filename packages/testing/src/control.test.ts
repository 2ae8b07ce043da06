import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { createAuthority } from './authority.ts';
import type { Authority } from './authority.ts';
import { ask } from './fixtures/ask.ts';
import type { Answer } from './fixtures/ask.ts';
import type { Pod } from './pods.ts';

const reviews = '/apis/authentication.k8s.io/v1/tokenreviews';

describe('the authority, moved from another process', () => {
  let authority: Authority;
  let pod: Pod;
  let administrator: Pick<Pod, 'apiServer'>;

  before(async () => {
    authority = await createAuthority();
    pod = await authority.pod('shop/shop');
    const tokenFile = join(dirname(authority.caFile), 'admin-token');
    writeFileSync(tokenFile, JSON.parse(readFileSync(authority.kubeconfig, 'utf8')).users[0].user.token);
    administrator = { apiServer: { url: authority.url, caFile: authority.caFile, tokenFile } };
  });
  after(() => authority.close());

  const control = (method: string, path: string, body?: object): Promise<Answer> =>
    ask(administrator, method, `/authority/v1/${path}`, body);
  const review = async (): Promise<number> => (await ask(pod, 'POST', reviews, { spec: { token: 'x' } })).status;

  it('sets faults, once or until they are taken away', async () => {
    const { text, status } = await control('POST', 'faults', { fault: 'unauthorized' });
    assert.equal(status, 201);
    assert.deepEqual([await review(), await review()], [401, 401]);
    await control('DELETE', `faults/${JSON.parse(text).id}`);
    assert.equal(await review(), 201);
    await control('POST', 'faults', { fault: { status: 418, body: 'tea' }, times: 1 });
    assert.deepEqual([await review(), await review()], [418, 201]);
    await control('POST', 'faults', { fault: 'slow', resource: '/readyz' });
    assert.equal(await review(), 201);
    assert.equal((await control('POST', 'faults', { fault: 'slow', resource: 7 })).status, 400);
    await control('POST', 'faults', { fault: 'forbidden' });
    await control('DELETE', 'faults');
    assert.equal(await review(), 201);
  });

  it('ends an outage by itself', async () => {
    assert.equal((await control('POST', 'faults', { fault: 'outage' })).status, 400);
    const { status } = await control('POST', 'faults', { fault: 'outage', durationMs: 60_000 });
    assert.equal(status, 201);
    await assert.rejects(review(), { code: 'ECONNREFUSED' });
    await authority.recover();
    assert.equal(await review(), 201);
  });

  it('moves the clock', async () => {
    const start = authority.now().getTime();
    const { text } = await control('POST', 'time', { advanceMs: 60_000 });
    const told = Date.parse(JSON.parse(text).now);
    assert.ok(told - start >= 60_000);
    assert.ok(authority.now().getTime() >= told);
  });

  it('tells the calls and counts them', async () => {
    await control('DELETE', 'calls');
    await review();
    await review();
    const { counts, calls } = JSON.parse((await control('GET', 'calls')).text);
    assert.deepEqual(counts, [{ verb: 'create', resource: 'tokenreviews', serviceAccount: 'shop/shop', status: 201, count: 2 }]);
    assert.equal(calls.length, 2);
    assert.equal(authority.count({ resource: 'tokenreviews', status: 201 }), 2);
    assert.equal(authority.count({ status: 500 }), 0);
  });

  it('starts pods', async () => {
    const { text } = await control('POST', 'pods', { serviceAccount: 'tea/tea', tokens: { store: 'store' } });
    assert.deepEqual(JSON.parse(text).env, authority.pods.at(-1)?.env);
    assert.equal(JSON.parse((await control('GET', 'pods')).text).pods.length, 2);
  });

  it('refuses what it does not know, and says what it knows', async () => {
    const misspelt = await control('POST', 'faults', { fault: 'slow', delay: 100 });
    assert.deepEqual(
      [misspelt.status, JSON.parse(misspelt.text).message],
      [400, 'POST faults does not know "delay". It knows fault, times, delayMs, resource, durationMs'],
    );
    assert.equal((await control('POST', 'pods', { serviceAccount: 'a/b', token: {} })).status, 400);
    assert.match(JSON.parse((await control('POST', 'pods', {})).text).message, /"serviceAccount"/);
    const nothing = await control('POST', 'ca', { new: true });
    assert.deepEqual([nothing.status, JSON.parse(nothing.text).message], [400, 'POST ca does not know "new". It knows nothing']);
  });

  it('refuses what is of another type, or does not fit', async () => {
    const mistaken: readonly (readonly [path: string, body: object, message: RegExp])[] = [
      ['faults', {}, /^POST faults needs "fault": a name, or an answer with a status$/],
      ['faults', { fault: { status: 418, text: 'tea' } }, /^an answer does not know "text"/],
      ['faults', { fault: 'slow', durationMs: 1 }, /^only an outage takes "durationMs"$/],
      ['faults', { fault: 'outage', durationMs: 1, times: 1 }, /it takes no options$/],
      ['pods', { serviceAccount: 'a/b', reviews: 'no' }, /^"reviews" must be true or false, not 'no'$/],
      ['users', { name: 'jane', groups: 'dev' }, /^"groups" must be a list of names/],
      ['signing-key', { retire: 'yes' }, /^"retire" must be true or false/],
      ['time', ['advanceMs'], /^POST time takes an object with advanceMs/],
    ];
    for (const [path, body, message] of mistaken) {
      const { status, text } = await control('POST', path, body);
      assert.equal(status, 400);
      assert.match(JSON.parse(text).message, message);
    }
    assert.equal(await review(), 201);
  });

  it('refuses everybody but the administrator, and what does not exist', async () => {
    assert.equal((await ask(pod, 'GET', '/authority/v1/calls')).status, 403);
    assert.equal((await ask(pod, 'GET', '/authority/v1/calls', undefined, { authorization: 'Bearer x' })).status, 401);
    const { status, text } = await control('POST', 'faults', { fault: 'nope' });
    assert.deepEqual([status, /there is no fault \\"nope\\"/.test(text)], [400, true]);
    assert.equal((await control('GET', 'nope')).status, 404);
  });
});

describe('run', () => {
  const print = 'console.log(JSON.stringify(process.env))';
  const wait = "process.on('SIGTERM', () => process.exit(7)); console.log('ready'); setInterval(() => undefined, 1000)";

  it('starts a process with the environment of the pod alone, and what is said otherwise', async (t) => {
    const authority = await createAuthority();
    t.after(() => authority.close());
    const pod = await authority.pod('shop/shop');
    const env = { PORT: '1', KUBERNETES_SERVICE_HOST: 'localhost' };
    const child = authority.run(pod, process.execPath, ['-e', print], { stdio: ['ignore', 'pipe', 'inherit'], env });
    const [text] = await once(child.stdout ?? child, 'data');
    assert.deepEqual(JSON.parse(String(text)), { PATH: process.env['PATH'], ...pod.env, ...env });
  });

  it('lets a process end with its pod, and with the authority', async () => {
    const authority = await createAuthority();
    const [one, other] = [await authority.pod('shop/one'), await authority.pod('shop/other')];
    const children = [one, other].map((pod) =>
      authority.run(pod, process.execPath, ['-e', wait], { stdio: ['ignore', 'pipe', 'inherit'] }),
    );
    await Promise.all(children.map((child) => once(child.stdout ?? child, 'data')));
    const ends = children.map((child) => once(child, 'close'));
    await authority.delete('pod', `shop/${one.name}`);
    assert.deepEqual(await ends[0], [null, 'SIGKILL']);
    assert.throws(() => authority.run(one, 'true'), { message: `pod ${one.name} does not run` });
    await authority.close();
    assert.deepEqual(await ends[1], [7, null]);
  });

  it('ends a process that was started just now', async () => {
    const authority = await createAuthority();
    const child = authority.run(await authority.pod('shop/shop'), process.execPath, ['-e', 'setTimeout(() => undefined, 10_000)']);
    const ended = once(child, 'close');
    await authority.close();
    assert.deepEqual(await ended, [null, 'SIGTERM']);
  });
});
