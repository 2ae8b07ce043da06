// What the guard promises, end to end: the same cases against the authority and, where the environment names one, a real control plane.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, it, mock, type TestContext } from 'node:test';

import { createAuthority } from '@k8s-sa-auth/testing';

import {
  connectControlPlane,
  type ControlPlane,
  howToRun,
  isControlPlaneNamed,
  type OwnControlPlane,
  playControlPlane,
} from '../../testing/src/fixtures/control-plane.ts';
import { createTenant, settle, type Tenant } from '../../testing/src/fixtures/tenant.ts';
import {
  type ApiServer,
  AuthError,
  type Caller,
  createGuard,
  createServiceClient,
  type Decision,
  decisionChannel,
  type Guard,
  type GuardOptions,
} from './index.ts';
import { serve } from './fixtures/service.ts';

const quiet = { info: () => {}, warn: () => {}, error: () => {} };
const decisions: Decision[] = [];
const listen = (decision: unknown): void => void decisions.push(decision as Decision);
const last = (): Decision => decisions.at(-1) ?? assert.fail('no decision');

function defineCases(connectTo: () => Promise<ControlPlane>): void {
  const directory = mkdtempSync(join(tmpdir(), 'cluster-test-'));
  let plane: ControlPlane;
  let tenant: Tenant;
  let store: ApiServer;
  let guards: Guard[];

  before(async () => {
    subscribe(decisionChannel, listen);
    plane = await connectTo();
    tenant = await createTenant(plane);
    for (const name of ['api', 'store', 'stranger', 'powerless']) await tenant.createServiceAccount(name);
    await tenant.createPod('api-0', 'api');
    await tenant.letReview('store');
    store = { url: plane.url, caFile: plane.caFile, tokenFile: await writeToken('store') };
  });
  after(async () => {
    unsubscribe(decisionChannel, listen);
    rmSync(directory, { recursive: true });
    await tenant?.remove();
    await plane?.close();
  });
  beforeEach(() => {
    guards = [];
  });
  afterEach(async () => {
    mock.timers.reset();
    await Promise.all(guards.map((guard) => guard.close()));
  });

  async function writeToken(serviceAccount: string): Promise<string> {
    const path = join(directory, serviceAccount);
    writeFileSync(path, await tenant.issue(serviceAccount, { expirationSeconds: 86_400 }));
    return path;
  }

  function guardWith(options: Partial<GuardOptions> = {}): Guard {
    const allow = [`${tenant.namespace}/api`];
    const guard = createGuard({ audience: 'store', allow, apiServer: store, logger: quiet, ...options });
    guards.push(guard);
    return guard;
  }

  const apiToken = (pod = 'api-0'): Promise<string> => tenant.issue('api', { audience: 'store', pod });
  const check = (guard: Guard, token: string): Promise<Caller | undefined> =>
    guard.check({ method: 'GET', headers: { 'x-client-id': token }, rawHeaders: ['X-Client-Id', token] });
  const isAccepted = (guard: Guard, token: string): Promise<boolean> =>
    check(guard, token).then(
      () => true,
      () => false,
    );
  const isRefused = (guard: Guard, token: string): Promise<boolean> =>
    check(guard, token).then(
      () => false,
      (error: unknown) => error instanceof AuthError,
    );
  // Another one each time, since the API server remembers what it accepted for this list.
  const forgetful = (): Guard => guardWith({ audience: ['store', randomBytes(4).toString('hex')] });

  function owned(t: TestContext): OwnControlPlane | undefined {
    if (plane.own === undefined) t.skip('it takes an API server that nobody else needs');
    return plane.own;
  }

  it('lets the caller pass, as the cluster knows it', async () => {
    const token = await apiToken();
    const caller = (await check(guardWith(), token)) ?? assert.fail('no caller');
    const { json: account } = await tenant.admin('GET', `${tenant.path}/serviceaccounts/api`);
    const { json: pod } = await tenant.admin('GET', `${tenant.path}/pods/api-0`);
    const uidOf = (object: typeof pod): unknown => (object['metadata'] as { readonly uid: string }).uid;
    assert.equal(caller.serviceAccount, `${tenant.namespace}/api`);
    assert.equal(caller.uid, uidOf(account));
    assert.deepEqual(caller.pod, { name: 'api-0', uid: uidOf(pod) });
    assert.deepEqual(caller.audiences, ['store']);
    assert.deepEqual(last().source, 'review');
  });

  it('serves a service that calls with its token file, over HTTP', async () => {
    const tokenFile = join(directory, 'store-token');
    writeFileSync(tokenFile, await apiToken());
    const guard = guardWith();
    const service = await serve();
    service.answer = (request, response) => {
      guard.check(request).then(
        (caller) => response.end(caller?.serviceAccount),
        (error: unknown) => response.writeHead(error instanceof AuthError ? error.status : 500).end(),
      );
    };
    const client = createServiceClient({ targets: [{ origin: service.origin, tokenFile }] });
    try {
      const answer = await client.serviceFetch(service.origin);
      assert.deepEqual([answer.status, await answer.text()], [200, `${tenant.namespace}/api`]);
      assert.equal((await fetch(service.origin)).status, 401);
    } finally {
      await client.close();
      await service.close();
    }
  });

  it('sends no token for the API server', async () => {
    const client = createServiceClient({ targets: [{ origin: 'http://store', tokenFile: await writeToken('api') }] });
    try {
      await assert.rejects(client.target('http://store').headers(), { name: 'TokenFileError', code: 'token_not_sendable' });
    } finally {
      await client.close();
    }
  });

  it('refuses a token for another audience, and one for the API server', async () => {
    const guard = guardWith();
    const foreign = await tenant.issue('api', { audience: 'vault', pod: 'api-0' });
    await assert.rejects(check(guard, foreign), { code: 'invalid_token', status: 403 });
    await assert.rejects(check(guard, await tenant.issue('api', { pod: 'api-0' })), { code: 'invalid_token', status: 403 });
  });

  it('refuses a caller that is not in allow, before and after the cluster has said who it is', async () => {
    await tenant.createPod('stranger-0', 'stranger');
    const token = await tenant.issue('stranger', { audience: 'store', pod: 'stranger-0' });
    await assert.rejects(check(guardWith(), token), { code: 'caller_not_allowed', status: 403 });
    const asked = guardWith({ allow: ({ name }) => name === 'api' });
    await assert.rejects(check(asked, token), { code: 'caller_not_allowed', status: 403 });
    assert.deepEqual([last().source, last().caller?.serviceAccount], ['review', `${tenant.namespace}/stranger`]);
  });

  it('refuses a token that is bound to no pod, unless it need not be', async () => {
    const token = await tenant.issue('api', { audience: 'store' });
    await assert.rejects(check(guardWith(), token), { code: 'invalid_token' });
    assert.equal(last().reason, 'not_bound_to_a_pod');
    assert.equal((await check(guardWith({ requirePod: false }), token))?.pod, undefined);
  });

  it('refuses a forged token, without a review once it has the cluster’s keys', async () => {
    const guard = guardWith();
    const [header, payload, signature = ''] = (await apiToken()).split('.');
    const [, others] = (await tenant.issue('stranger', { audience: 'store', pod: 'stranger-0' })).split('.');
    await assert.rejects(check(guard, `${header}.${others}.${signature}`), { code: 'invalid_token' });
    await guard.ready();
    const swapped = signature.startsWith('AAAAAAAA') ? `B${signature.slice(1)}` : `AAAAAAAA${signature.slice(8)}`;
    await assert.rejects(check(guard, `${header}.${payload}.${swapped}`), { code: 'invalid_token' });
    assert.deepEqual([last().reason, last().source], ['forged', 'screening']);
  });

  it('refuses what another cluster has signed', async () => {
    const other = await createAuthority();
    try {
      const token = await other.token(`${tenant.namespace}/api`, { audience: 'store', pod: 'api-0' });
      await assert.rejects(check(guardWith(), token), { code: 'invalid_token' });
      assert.deepEqual([last().reason, last().source], ['review_refused', 'review']);
      await assert.rejects(check(guardWith({ verification: 'signature' }), token), { code: 'invalid_token' });
    } finally {
      await other.close();
    }
  });

  it('refuses other spellings of a good token', async () => {
    const [guard, token] = [guardWith(), await apiToken()];
    await assert.rejects(check(guard, `${token} junk`), { code: 'invalid_token' });
    await assert.rejects(check(guard, `${token},`), { code: 'invalid_token' });
    await assert.rejects(check(guard, ' x'), { code: 'invalid_token' });
    assert.equal(await isAccepted(guard, token), true);
  });

  it('refuses the token of a pod that was deleted, and of another of its name', async () => {
    await tenant.createPod('gone', 'api');
    const token = await apiToken('gone');
    assert.equal(await isAccepted(forgetful(), token), true);
    await tenant.deletePod('gone');
    await settle(() => isRefused(forgetful(), token));
    assert.equal(last().reason, 'review_refused');
    await tenant.createPod('gone', 'api');
    const next = await apiToken('gone');
    await settle(() => isAccepted(forgetful(), next));
    assert.equal(await isRefused(forgetful(), token), true);
  });

  it('refuses the token of a ServiceAccount that was deleted, and of another of its name', async () => {
    await tenant.createServiceAccount('gone');
    const options: Partial<GuardOptions> = { allow: [`${tenant.namespace}/gone`], requirePod: false };
    const anew = (): Guard => guardWith({ ...options, audience: ['store', randomBytes(4).toString('hex')] });
    const token = await tenant.issue('gone', { audience: 'store' });
    assert.equal(await isAccepted(anew(), token), true);
    await tenant.admin('DELETE', `${tenant.path}/serviceaccounts/gone`);
    await settle(() => isRefused(anew(), token));
    await tenant.createServiceAccount('gone');
    const next = await tenant.issue('gone', { audience: 'store' });
    await settle(() => isAccepted(anew(), next));
    assert.equal(await isRefused(anew(), token), true);
  });

  it('refuses a token that has ended, by its own clock', async () => {
    const token = await apiToken();
    const guard = guardWith();
    await check(guard, token);
    mock.timers.enable({ apis: ['Date'], now: Date.now() + 3_661_000 });
    await assert.rejects(check(guard, token), { code: 'invalid_token' });
    assert.deepEqual([last().reason, last().source], ['expired', 'screening']);
  });

  it('knows nobody without the permission, prints what to apply, and is ready once that was applied', async () => {
    const guard = guardWith({ apiServer: { url: plane.url, caFile: plane.caFile, tokenFile: await writeToken('powerless') } });
    const token = await apiToken();
    await assert.rejects(check(guard, token), { code: 'review_unavailable', status: 503 });
    assert.equal(last().reason, 'own_permission_missing');
    const message = await guard.ready().then(
      () => assert.fail('it is ready'),
      (error: unknown) => (error instanceof Error ? error.message : ''),
    );
    const [said, printed = ''] = message.split('Apply this, then try again:\n\n');
    assert.match(said ?? '', /^system:serviceaccount:k8s-sa-auth-[0-9a-f]+:powerless may not create TokenReviews/);
    await tenant.applyBinding(printed);
    await settle(() =>
      guard.ready().then(
        () => true,
        () => false,
      ),
    );
    await settle(() => isAccepted(guard, token));
  });

  it('knows nobody where its own credential is refused, and does not blame the caller', async () => {
    await tenant.createServiceAccount('former');
    const tokenFile = await writeToken('former');
    await tenant.admin('DELETE', `${tenant.path}/serviceaccounts/former`);
    const guard = guardWith({ apiServer: { url: plane.url, caFile: plane.caFile, tokenFile } });
    const token = await apiToken();
    await settle(async () => {
      await assert.rejects(check(guard, token), { code: 'review_unavailable', status: 503 });
      return last().reason === 'own_credentials_refused';
    });
    await assert.rejects(guard.ready(), { name: 'ClusterError', message: /own_credentials_refused/ });
  });

  it('refuses to be ready for an audience that is the API server’s own', async () => {
    const own = await tenant.issue('api');
    const [, payload = ''] = own.split('.');
    const { aud } = JSON.parse(Buffer.from(payload, 'base64url').toString()) as { readonly aud: readonly [string] };
    await assert.rejects(guardWith({ audience: ['store', aud[0]] }).ready(), { name: 'TypeError' });
  });

  it('lets a caller pass once the cluster’s own rules allow what the route asks for', async () => {
    const rules = `/apis/rbac.authorization.k8s.io/v1/namespaces/${tenant.namespace}`;
    const authorize = { verb: 'get', group: 'shop.example', resource: 'secrets', namespace: tenant.namespace, name: 'db' };
    const guard = guardWith({ authorize, refusalTtlMs: 0 });
    await guard.ready();
    const token = await apiToken();
    await assert.rejects(check(guard, token), { code: 'caller_not_allowed', status: 403 });
    await tenant.admin('POST', `${rules}/roles`, {
      metadata: { name: 'reader' },
      rules: [{ apiGroups: ['shop.example'], resources: ['secrets'], resourceNames: ['db'], verbs: ['get'] }],
    });
    await tenant.admin('POST', `${rules}/rolebindings`, {
      metadata: { name: 'reader' },
      roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'Role', name: 'reader' },
      subjects: [{ kind: 'ServiceAccount', name: 'api', namespace: tenant.namespace }],
    });
    await settle(() => isAccepted(guard, token));
    const other = guard.with({ allow: 'any', authorize: { ...authorize, name: 'others' } });
    await assert.rejects(check(other, token), { code: 'caller_not_allowed', status: 403 });
  });

  it('works by a kubeconfig', async () => {
    const guard = guardWith({ apiServer: { kubeconfig: plane.kubeconfig } });
    await guard.ready();
    assert.equal((await check(guard, await apiToken()))?.name, 'api');
    const bySignature = guardWith({ apiServer: { kubeconfig: plane.kubeconfig }, verification: 'signature' });
    await bySignature.ready();
    assert.equal((await check(bySignature, await apiToken()))?.name, 'api');
  });

  it('works in a pod, with nothing said', async () => {
    const root = join(directory, 'root');
    const files = join(root, 'var/run/secrets/kubernetes.io/serviceaccount');
    mkdirSync(files, { recursive: true });
    copyFileSync(plane.caFile, join(files, 'ca.crt'));
    copyFileSync(join(directory, 'store'), join(files, 'token'));
    const { hostname, port } = new URL(plane.url);
    const inPod = { KUBERNETES_SERVICE_HOST: hostname, KUBERNETES_SERVICE_PORT: port || '443', K8S_SA_AUTH_ROOT: root };
    const outside = Object.keys(inPod).map((name) => [name, process.env[name]] as const);
    Object.assign(process.env, inPod);
    try {
      const guard = createGuard({ audience: 'store', allow: [`${tenant.namespace}/api`], logger: quiet });
      guards.push(guard);
      await guard.ready();
      assert.equal((await check(guard, await apiToken()))?.name, 'api');
    } finally {
      for (const [name, value] of outside) {
        if (value === undefined) delete process.env[name];
        else process.env[name] = value;
      }
    }
  });

  it('decides by the cluster’s keys alone where it is told to, and then misses a deletion', async () => {
    const guard = guardWith({ verification: 'signature', cacheTtlMs: 0 });
    await guard.ready();
    await tenant.createPod('signed', 'api');
    const token = await apiToken('signed');
    assert.equal((await check(guard, token))?.pod?.name, 'signed');
    assert.equal(last().source, 'signature');
    const [header, payload] = token.split('.');
    await assert.rejects(check(guard, `${header}.${payload}.${'A'.repeat(342)}`), { code: 'invalid_token' });
    await tenant.deletePod('signed');
    assert.equal(await isAccepted(guard, token), true);
    mock.timers.enable({ apis: ['Date'], now: Date.now() + 3_661_000 });
    assert.equal(await isRefused(guard, token), true);
  });

  it('lets a known caller go on while nobody listens, knows no other, and asks again afterwards', async (t) => {
    const own = owned(t);
    if (own === undefined) return;
    const guard = guardWith({ cacheTtlMs: 0 });
    await guard.ready();
    const [known, unknown] = [await apiToken(), await apiToken()];
    await check(guard, known);
    await own.stop();
    assert.equal((await check(guard, known))?.name, 'api');
    assert.equal(last().source, 'stale');
    await assert.rejects(check(guard, unknown), { code: 'review_unavailable', status: 503 });
    await guard.ready();
    await own.recover();
    await settle(() => isAccepted(guard, unknown));
    assert.equal(last().source, 'review');
  });

  it('does the same where connections are taken and nothing is answered', async (t) => {
    const own = owned(t);
    if (own === undefined) return;
    const guard = guardWith({ cacheTtlMs: 0 });
    const [known, unknown] = [await apiToken(), await apiToken()];
    await check(guard, known);
    await own.freeze();
    try {
      const [accepted] = await Promise.all([
        check(guard, known),
        assert.rejects(check(guard, unknown), { code: 'review_unavailable', status: 503 }),
      ]);
      assert.equal(accepted?.name, 'api');
    } finally {
      await own.recover();
    }
    await settle(() => isAccepted(guard, unknown));
  });

  it('does not refuse what the API server cannot look up', async (t) => {
    const own = owned(t);
    if (own === undefined) return;
    await tenant.createServiceAccount('unknown');
    const lost = await tenant.issue('unknown', { audience: 'store' });
    await tenant.admin('DELETE', `${tenant.path}/serviceaccounts/unknown`);
    const known = await apiToken();
    const guard = guardWith({ allow: 'any', requirePod: false });
    await own.freezeStorage();
    try {
      assert.equal((await check(guard, known))?.name, 'api');
      await assert.rejects(check(guard, lost), { code: 'review_unavailable', status: 503 });
    } finally {
      await own.recover();
    }
    await settle(() => isRefused(guard, lost));
  });

  it('takes tokens of a new signing key, and of the old one until that retires', async (t) => {
    const own = owned(t);
    if (own === undefined) return;
    const guard = guardWith({ cacheTtlMs: 0, staleIfErrorMs: 0 });
    await guard.ready();
    const old = await apiToken();
    await check(guard, old);

    await own.rotateSigningKey({ retire: false });
    const fresh = await apiToken();
    assert.notEqual(fresh.split('.')[0], old.split('.')[0]);
    await settle(() => isAccepted(guard, old));
    await settle(() => isAccepted(guard, fresh));
    assert.equal(await isAccepted(guardWith({ verification: 'signature' }), fresh), true);

    await own.rotateSigningKey({ retire: true });
    const newest = await apiToken();
    await assert.rejects(check(guard, newest), { code: 'review_unavailable', status: 503 });
    assert.equal(last().reason, 'own_credentials_refused');
    await writeToken('store');
    await settle(() => isAccepted(guard, newest));
    await assert.rejects(check(guard, fresh), { code: 'invalid_token' });
  });

  // The last: the authority's clock stays where it was moved to.
  it('takes a token for a minute after it has ended, as the cluster does, and not for longer', async (t) => {
    const own = owned(t);
    if (own === undefined) return;
    const token = await tenant.issue('api', { audience: 'store', pod: 'api-0', expirationSeconds: 600 });
    assert.equal(await isAccepted(guardWith(), own.age(token, 640_000)), true);
    assert.equal(await isRefused(forgetful(), own.age(token, 670_000)), true);
  });
}

describe('the guard and the authority', () => {
  defineCases(playControlPlane);
});

describe('the guard and a real control plane', () => {
  if (isControlPlaneNamed()) defineCases(connectControlPlane);
  else it('does the same', (t) => t.skip(`not run: ${howToRun}`));
});
