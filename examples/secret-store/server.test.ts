import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { after, before, describe, it } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';

import { choosePorts, createLauncher, type Launcher, manifestOf, type Service, type StartOptions } from '../demo/services.ts';
import { countReviews, send } from '../demo/steps.ts';

const { signal } = new AbortController();
let authority: Authority;
let secretStore: Service;
let launcher: Launcher;
let options: StartOptions;

before(async () => {
  authority = await createAuthority({ manifests: manifestOf('secret-store') });
  const [pod = assert.fail('no pod')] = authority.pods;
  const [port = 0] = await choosePorts([0]);
  launcher = createLauncher(authority, signal);
  options = { name: 'secret-store', pod, port, env: { CACHE_TTL_MS: '0' } };
  secretStore = await launcher.start(options);
});

after(() => authority.close());

async function tokenOf(serviceAccount: string, audience: string): Promise<{ readonly pod: Pod; readonly token: string }> {
  const pod = await authority.pod(serviceAccount, { tokens: { sent: audience }, reviews: false });
  return { pod, token: await readFile(pod.tokenFile('sent'), 'utf8') };
}

describe('secret-store', () => {
  it('greets api', async () => {
    const { token } = await tokenOf('api/api', 'secret-store');
    const { status, body } = await send(secretStore.url, { token, signal });
    assert.equal(status, 200);
    assert.equal(body, 'Hello from secret store. You have been authenticated');
  });

  it('tells api who it is', async () => {
    const { pod, token } = await tokenOf('api/api', 'secret-store');
    const { status, body } = await send(`${secretStore.url}/whoami`, { token, signal });
    assert.equal(status, 200);
    const { expiresAt, ...caller } = JSON.parse(body) as { readonly expiresAt: string };
    assert.deepEqual(caller, { serviceAccount: 'api/api', pod: pod.name, node: 'node-1', audiences: ['secret-store'] });
    assert.ok(Date.parse(expiresAt) > Date.now());
  });

  it('refuses others', async () => {
    const { token } = await tokenOf('data-store/data-store', 'secret-store');
    const { status, code } = await send(secretStore.url, { token, signal });
    assert.deepEqual([status, code], [403, 'caller_not_allowed']);
  });

  it('guards what it does not have', async () => {
    const { status, code } = await send(`${secretStore.url}/nothing`, { signal });
    assert.deepEqual([status, code], [401, 'missing_token']);
  });

  it('lets only ops in to /admin, with a token for that', async () => {
    const { token } = await tokenOf('ops/console', 'secret-store-admin');
    const { status, body } = await send(`${secretStore.url}/admin`, { token, signal });
    assert.deepEqual([status, body], [200, 'Hello ops/console. This is the admin route']);

    const wrong = await tokenOf('ops/console', 'secret-store');
    const refused = await send(`${secretStore.url}/admin`, { token: wrong.token, signal });
    assert.deepEqual([refused.status, refused.code], [403, 'invalid_token']);
  });

  it('answers its probes without a token', async () => {
    assert.equal((await send(`${secretStore.url}/healthz`, { signal })).status, 200);
    assert.equal((await send(`${secretStore.url}/readyz`, { signal })).status, 204);
  });

  it('remembers a caller for as long as CACHE_TTL_MS says', async () => {
    const { token } = await tokenOf('api/api', 'secret-store');
    const reviews = countReviews(authority);
    await send(secretStore.url, { token, signal });
    await send(secretStore.url, { token, signal });
    assert.equal(countReviews(authority) - reviews, 2);
  });

  it('ends cleanly on SIGTERM, and is ready again only once the API server can be asked', async () => {
    assert.equal(await secretStore.stop(), 0);
    authority.fail('outage');
    let isReady = false;
    const starting = launcher.start(options).then((service) => {
      isReady = true;
      return service;
    });
    const probe = async (): Promise<number> => (await send(`${secretStore.url}/readyz`, { signal }).catch(() => ({ status: 0 }))).status;
    let status = 0;
    while (status === 0) status = await probe();
    assert.equal(status, 503);
    assert.equal(isReady, false);

    await authority.recover();
    secretStore = await starting;
    assert.equal(await probe(), 204);
  });
});
