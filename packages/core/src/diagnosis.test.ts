import assert from 'node:assert/strict';
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, it, mock } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';

import {
  type Cluster,
  describeToken,
  findCluster,
  foresee,
  inspectTokenFile,
  parseServiceAccount,
  requestWith,
  withoutTokens,
} from './diagnosis.ts';
import { createGuard } from './guard.ts';

let authority: Authority;
let api: Pod;
let token: string;
let directory: string;

before(async () => {
  authority = await createAuthority();
  api = await authority.pod('api/api', { tokens: { shop: 'shop' } });
  token = readFileSync(api.tokenFile('shop'), 'utf8');
});
after(() => authority.close());
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'diagnosis-'));
});
afterEach(() => {
  mock.timers.reset();
  rmSync(directory, { recursive: true });
});

function encode(part: object): string {
  return Buffer.from(JSON.stringify(part)).toString('base64url');
}

function forge(payload: object, header: object = { alg: 'RS256' }): string {
  return `${encode(header)}.${encode(payload)}.c2lnbmF0dXJl`;
}

describe('describeToken', () => {
  it('tells whose a token is, for whom, from when and until when', () => {
    const { issuedAt, notBefore, expiresAt, keyId, credentialId, ...rest } = describeToken(token) ?? assert.fail();
    assert.deepEqual(rest, {
      serviceAccount: { namespace: 'api', name: 'api' },
      pod: api.name,
      node: 'node-1',
      audiences: ['shop'],
      issuer: 'https://kubernetes.default.svc.cluster.local',
      algorithm: 'RS256',
    });
    assert.equal(Number(expiresAt) - Number(issuedAt), 3_600_000);
    assert.deepEqual(notBefore, issuedAt);
    assert.match(keyId ?? '', /^[\w-]{43}$/);
    assert.match(credentialId ?? '', /^JTI=[\da-f-]{36}$/);
  });

  it('holds no part of the signature', () => {
    const [, , signature = ''] = token.split('.');
    assert.ok(!JSON.stringify(describeToken(token)).includes(signature.slice(0, 8)));
  });

  it('tells what is there of a token that says little', () => {
    assert.deepEqual(describeToken(forge({ exp: 'soon', aud: ['a', 7], iat: 1e300 })), { audiences: ['a'], algorithm: 'RS256' });
  });

  it('is silent about what is not one compact JWT', () => {
    assert.equal(describeToken(` ${token}`), undefined);
    assert.equal(describeToken('hunter2'), undefined);
  });

  it('takes the teeth out of what a terminal would obey', () => {
    const described = describeToken(forge({ iss: '\u001B[2J\u202Eissuer', aud: [token] }));
    assert.deepEqual([described?.issuer, described?.audiences], [' [2J issuer', ['[token]']]);
  });

  it('takes no name for a token', () => {
    const names = ['ewallet-service.payments', 'eyewear-frontend.shop.svc', 'https://ewok-reviewer-of-the-company.payments-in-production'];
    assert.deepEqual(describeToken(forge({ aud: names }))?.audiences, names);
  });

  it('knows a token however its header is written', () => {
    for (const space of ['', ' ', '\n', '\r\n', '\t'])
      for (const next of ['"', ' ', '\n', '\t']) {
        const text = `${Buffer.from(`{${space}${next}${space}"alg":"RS256"}`).toString('base64url')}.e30.c2ln`;
        assert.equal(withoutTokens(`Bearer ${text}`), 'Bearer [token]');
      }
  });
});

describe('parseServiceAccount', () => {
  it('reads namespace/name and nothing else', () => {
    assert.deepEqual(parseServiceAccount('shop/web.front'), { namespace: 'shop', name: 'web.front' });
    for (const text of ['', 'shop', 'shop/', '/web', 'shop/*', 'shop/web/x', 'sh.op/web', 'shop/web:x', 'Shop/web', 'shop/web '])
      assert.equal(parseServiceAccount(text), undefined);
  });
});

describe('foresee', () => {
  const options = { audience: 'shop', allow: ['api/api'] } as const;

  // What the guard itself says, with every option that matters.
  async function decided(sent: string, more: object = {}): Promise<object> {
    const guard = createGuard({ ...options, ...more, apiServer: api.apiServer });
    try {
      await guard.ready();
      await guard.check(requestWith(sent, 'header' in more ? 'authorization' : 'x-client-id'));
      return { outcome: 'undecided' };
    } catch (error) {
      const { status, code } = error as { status: number; code: string };
      return { outcome: 'refused', status, code };
    } finally {
      await guard.close();
    }
  }
  async function agrees(sent: string, reason: string | undefined, more: object = {}): Promise<void> {
    const { reason: foreseen, ...rest } = { reason: undefined, ...(await foresee(sent, { ...options, ...more })) };
    assert.equal(foreseen, reason);
    assert.deepEqual(rest, await decided(sent, more));
  }

  it('leaves to the cluster what only the cluster knows', () => agrees(token, undefined));
  it('sees that there is no token', () => agrees('', 'no_token'));
  it('sees that it is no JWT', () => agrees(`${token}!`, 'not_a_jwt'));
  it('sees an algorithm that no API server signs with', () => agrees(forge({}, { alg: 'none' }), 'algorithm'));
  it('sees that a claim is missing', () => agrees(forge({ aud: 'shop' }), 'claims_missing'));
  it('sees that it is nobody’s', () => agrees(forge({ aud: 'shop', exp: 9e9 }), 'not_a_service_account'));
  it('sees another audience', () => agrees(token, 'other_audience', { audience: 'bank' }));
  it('sees a caller that may not call', () => agrees(token, 'not_in_allow', { allow: ['api/web', 'ops/*'] }));
  it('knows the status of the other header', () => agrees(token, 'other_audience', { audience: 'bank', header: 'authorization' }));

  it('sees a token that is bound to no pod', async () => {
    const unbound = await authority.token('api/api', { audience: 'shop' });
    await agrees(unbound, 'not_bound_to_a_pod');
    await agrees(unbound, undefined, { requirePod: false });
    const claims = { aud: 'shop', exp: 9e9, sub: 'system:serviceaccount:api:api' };
    const kubernetes = { namespace: 'api', serviceaccount: { name: 'api', uid: 'u' } };
    for (const pod of [{ name: 'api-0' }, { uid: 'p' }, 'api-0']) {
      const half = forge({ ...claims, 'kubernetes.io': { ...kubernetes, pod } });
      assert.deepEqual(await foresee(half, options), {
        outcome: 'refused',
        status: 403,
        code: 'invalid_token',
        reason: 'not_bound_to_a_pod',
      });
    }
  });

  it('sees that it has expired', async () => {
    mock.timers.enable({ apis: ['Date'], now: Date.now() - 700_000 });
    const old = await authority.token('api/api', { audience: 'shop', pod: 'old' });
    mock.timers.reset();
    await agrees(old, 'expired');
  });

  it('sees what a signature alone may not vouch for', async () => {
    const long = await authority.token('api/api', { audience: 'shop', pod: 'long', expirationSeconds: 90_000 });
    await agrees(long, undefined);
    await agrees(long, 'long_lived', { verification: 'signature' });
    await agrees(token, undefined, { verification: 'signature' });
  });

  it('takes no options that a guard would not take', async () => {
    await assert.rejects(foresee(token, { audience: 'a b', allow: 'any' }), { name: 'TypeError', message: /"audience"/ });
    await assert.rejects(foresee(token, { audience: 'a', allow: ['*/*'] }), { name: 'TypeError', message: /"allow"/ });
  });
});

describe('inspectTokenFile', () => {
  it('tells what the client would send, and that the kubelet can change it', async () => {
    const { path, error, token: described, isRotated, writtenAt } = await inspectTokenFile(api.tokenFile('shop'));
    assert.deepEqual([path, error, isRotated], [api.tokenFile('shop'), undefined, true]);
    assert.deepEqual(described, describeToken(token));
    assert.ok(writtenAt instanceof Date);
  });

  it('tells of a copy that nobody will change it', async () => {
    const path = join(directory, 'shop');
    copyFileSync(api.tokenFile('shop'), path);
    const { error, isRotated } = await inspectTokenFile(path);
    assert.deepEqual([error, isRotated], [undefined, false]);
  });

  it('takes two dots within a name for no sign of the kubelet', async () => {
    mkdirSync(join(directory, 'a..b'));
    const path = join(directory, 'a..b', 'shop');
    copyFileSync(api.tokenFile('shop'), path);
    assert.equal((await inspectTokenFile(path)).isRotated, false);
  });

  it('tells why the client would send nothing', async () => {
    const path = join(directory, 'shop');
    assert.equal((await inspectTokenFile(path)).error?.code, 'token_file_unreadable');
    writeFileSync(path, await authority.token('api/api', { audience: ['shop', 'bank'] }));
    const { error, token: described } = await inspectTokenFile(path);
    assert.equal(error?.code, 'token_not_sendable');
    assert.deepEqual(described?.audiences, ['shop', 'bank']);
  });

  it('tells that the token has expired', async () => {
    const path = join(directory, 'shop');
    writeFileSync(path, token);
    mock.timers.enable({ apis: ['Date'], now: Date.now() + 3_601_000 });
    assert.equal((await inspectTokenFile(path)).error?.code, 'token_expired');
  });
});

describe('findCluster', () => {
  let cluster: Cluster;

  beforeEach(() => {
    cluster = findCluster(api.apiServer);
  });
  afterEach(async () => {
    cluster.close();
    await authority.recover();
  });

  it('tells where it is and whom we come as', async () => {
    assert.equal(cluster.url, authority.url);
    const own = await cluster.ownToken();
    assert.deepEqual(own?.serviceAccount, { namespace: 'api', name: 'api' });
    assert.ok(Number(own?.expiresAt) > Date.now());
    assert.equal(await cluster.username(5_000), 'system:serviceaccount:api:api');
  });

  it('tells each permission by itself', async () => {
    assert.equal(await cluster.mayCreate('TokenReviews', 5_000), true);
    const { apiServer } = await authority.pod('norbac/norbac', { reviews: false });
    const other = findCluster(apiServer);
    assert.equal(await other.mayCreate('TokenReviews', 5_000), false);
    assert.equal(await other.mayCreate('SubjectAccessReviews', 5_000), false);
    other.close();
  });

  it('tells what stops it from reading the keys', async () => {
    assert.equal(await cluster.signingKeys(), undefined);
    const other = findCluster({ ...api.apiServer, url: 'https://127.0.0.1:1' });
    assert.match((await other.signingKeys()) ?? '', /ECONNREFUSED/);
    other.close();
  });

  it('refuses the API server’s own audience', async () => {
    await cluster.refuseAudiences(['shop']);
    await assert.rejects(cluster.refuseAudiences(['https://kubernetes.default.svc.cluster.local']), { name: 'TypeError' });
  });

  it('rejects with the reason that a guard would report', async () => {
    authority.fail('outage');
    await assert.rejects(cluster.mayCreate('TokenReviews', 5_000), { name: 'ApiServerError', reason: 'connection_failed' });
  });

  it('asks nothing more when it is closed', async () => {
    cluster.close();
    await assert.rejects(cluster.username(5_000), { name: 'ApiServerError', reason: 'closed' });
  });

  it('throws where there is no API server to be found', () => {
    assert.throws(() => findCluster({ kubeconfig: join(directory, 'none') }), { name: 'TypeError', message: /does not exist/ });
  });
});
