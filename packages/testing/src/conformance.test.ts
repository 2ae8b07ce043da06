// What the packages count on of an API server: the same cases, put to the authority and, where the environment names one, to a real
// control plane.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { after, before, describe, it } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { connectControlPlane, howToRun, isControlPlaneNamed, playControlPlane } from './fixtures/control-plane.ts';
import type { Asked, ControlPlane } from './fixtures/control-plane.ts';
import { readRecord, readText } from './json.ts';
import { parseToken } from './signing.ts';

const reviews = '/apis/authentication.k8s.io/v1/tokenreviews';
const bindings = '/apis/rbac.authorization.k8s.io/v1/clusterrolebindings';

function defineCases(connectTo: () => Promise<ControlPlane>): void {
  let plane: ControlPlane | undefined;
  const namespace = `k8s-sa-auth-${randomBytes(4).toString('hex')}`;
  const core = `/api/v1/namespaces/${namespace}`;

  before(async () => {
    plane = await connectTo();
    await admin('POST', '/api/v1/namespaces', { metadata: { name: namespace } });
    for (const name of ['api', 'store', 'stranger']) await admin('POST', `${core}/serviceaccounts`, { metadata: { name } });
    await admin('POST', bindings, {
      metadata: { name: namespace },
      roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'ClusterRole', name: 'system:auth-delegator' },
      subjects: [{ kind: 'ServiceAccount', name: 'store', namespace }],
    });
  });
  after(async () => {
    if (plane === undefined) return;
    await plane.ask('DELETE', `${bindings}/${namespace}`);
    await plane.ask('DELETE', `/api/v1/namespaces/${namespace}`);
    await plane.close();
  });

  function ask(method: string, path: string, body?: object | string, headers?: Readonly<Record<string, string>>): Promise<Asked> {
    if (plane === undefined) throw new Error('there is no control plane');
    return plane.ask(method, path, body, headers);
  }

  async function admin(method: string, path: string, body?: object): Promise<Asked> {
    const answer = await ask(method, path, body);
    assert.ok(answer.status < 300, `${method} ${path}: ${answer.status} ${answer.text}`);
    return answer;
  }

  async function issue(serviceAccount: string, spec: object = {}): Promise<string> {
    const { json } = await admin('POST', `${core}/serviceaccounts/${serviceAccount}/token`, { spec });
    return readText(readRecord(json['status'])['token']);
  }

  async function review(token: string, audiences: readonly string[] = ['store']): Promise<Readonly<Record<string, unknown>>> {
    const { json } = await admin('POST', reviews, { spec: { token, audiences } });
    return readRecord(json['status']);
  }

  async function createPod(name: string): Promise<string> {
    // Nobody schedules it, so that no cluster tries to run it.
    const spec = { serviceAccountName: 'api', schedulerName: 'nobody', containers: [{ name: 'main', image: 'none' }] };
    const { json } = await admin('POST', `${core}/pods`, { metadata: { name }, spec });
    return readText(readRecord(json['metadata'])['uid']);
  }

  it('issues a token bound to a pod, and says whose it is', async () => {
    const uid = await createPod('api-0');
    const token = await issue('api', { audiences: ['store'], boundObjectRef: { kind: 'Pod', apiVersion: 'v1', name: 'api-0', uid } });
    assert.deepEqual(parseToken(token)?.claims['aud'], ['store']);
    const { authenticated, audiences, user } = await review(token, ['nobody', 'store']);
    assert.deepEqual([authenticated, audiences], [true, ['store']]);
    const { username, groups, extra } = readRecord(user);
    assert.equal(username, `system:serviceaccount:${namespace}:api`);
    assert.deepEqual(groups, ['system:serviceaccounts', `system:serviceaccounts:${namespace}`, 'system:authenticated']);
    assert.deepEqual(readRecord(extra)['authentication.kubernetes.io/pod-name'], ['api-0']);
    assert.deepEqual(readRecord(extra)['authentication.kubernetes.io/pod-uid'], [uid]);
  });

  it('refuses by leaving `authenticated` out', async () => {
    const foreign = await review(await issue('api', { audiences: ['vault'] }));
    assert.deepEqual(['authenticated' in foreign, foreign['user'], typeof foreign['error']], [false, {}, 'string']);
    assert.equal((await review('garbage'))['authenticated'], undefined);
  });

  it('takes no white space for a ServiceAccount, and white space around a token for the token', async () => {
    const { authenticated, user } = await review(' x');
    assert.ok(authenticated === undefined || readRecord(user)['username'] === 'system:anonymous');
    assert.equal((await review(`${await issue('api', { audiences: ['store'] })}\n`))['authenticated'], true);
  });

  it('takes a token of the API itself where no audience is asked for', async () => {
    assert.equal((await review(await issue('api'), []))['authenticated'], true);
    assert.equal((await review(await issue('api', { audiences: ['store'] }), []))['authenticated'], undefined);
  });

  it('issues nothing for less than ten minutes, for nobody, and for a pod that is not there', async () => {
    const path = `${core}/serviceaccounts/api/token`;
    assert.equal((await ask('POST', path, { spec: { expirationSeconds: 599 } })).status, 422);
    assert.equal((await ask('POST', `${core}/serviceaccounts/nobody/token`, { spec: {} })).status, 404);
    const boundObjectRef = { kind: 'Pod', apiVersion: 'v1', name: 'nope' };
    assert.equal((await ask('POST', path, { spec: { boundObjectRef } })).status, 404);
  });

  it('refuses a token whose pod or ServiceAccount is gone', async () => {
    const uid = await createPod('gone');
    const spec = { audiences: ['store'], boundObjectRef: { kind: 'Pod', apiVersion: 'v1', name: 'gone', uid } };
    const tokens = [await issue('api', spec)];
    await admin('DELETE', `${core}/pods/gone?gracePeriodSeconds=0`);
    await admin('POST', `${core}/serviceaccounts`, { metadata: { name: 'gone' } });
    tokens.push(await issue('gone', { audiences: ['store'] }));
    await admin('DELETE', `${core}/serviceaccounts/gone`);
    await settle(async () => {
      // Each time another spelling of the list, since a success would be remembered.
      const answers = await Promise.all(tokens.map((token) => review(token, ['store', randomBytes(4).toString('hex')])));
      return answers.every(({ authenticated }) => authenticated === undefined);
    });
  });

  it('lets only those review who may', async () => {
    const [store, stranger] = [await issue('store'), await issue('stranger')];
    const token = await issue('api', { audiences: ['store'] });
    const asked = (own: string): Promise<Asked> => ask('POST', reviews, { spec: { token } }, { authorization: `Bearer ${own}` });
    await settle(async () => (await asked(store)).status === 201);
    const { status, json } = await asked(stranger);
    assert.equal(status, 403);
    assert.match(
      readText(json['message']),
      /^tokenreviews\.authentication\.k8s\.io is forbidden: User "system:serviceaccount:.*:stranger"/,
    );
    const bad = await asked('garbage');
    assert.deepEqual([bad.status, bad.json['message'], bad.headers['www-authenticate']], [401, 'Unauthorized', undefined]);
  });

  it('says of a ServiceAccount who it is and what it may do', async () => {
    const headers = { authorization: `Bearer ${await issue('store')}` };
    const own = await ask('POST', '/apis/authentication.k8s.io/v1/selfsubjectreviews', {}, headers);
    assert.equal(readRecord(readRecord(own.json['status'])['userInfo'])['username'], `system:serviceaccount:${namespace}:store`);
    const resourceAttributes = { group: 'authentication.k8s.io', resource: 'tokenreviews', verb: 'create' };
    await settle(async () => {
      const access = await ask('POST', '/apis/authorization.k8s.io/v1/selfsubjectaccessreviews', { spec: { resourceAttributes } }, headers);
      return readRecord(access.json['status'])['allowed'] === true;
    });
  });

  it('publishes the keys that sign, and not as plain JSON', async () => {
    const token = await issue('api');
    const headers = { authorization: `Bearer ${token}`, accept: '*/*' };
    const { status, json } = await ask('GET', '/openid/v1/jwks', undefined, headers);
    assert.equal(status, 200);
    const ids = Array.isArray(json['keys']) ? json['keys'].map((key: unknown) => readRecord(key)['kid']) : [];
    assert.ok(ids.includes(parseToken(token)?.header['kid']));
    assert.equal((await ask('GET', '/openid/v1/jwks', undefined, { ...headers, accept: 'application/json' })).status, 406);
  });

  it('refuses what is no TokenReview', async () => {
    assert.equal((await ask('POST', reviews, '{"spec":')).status, 400);
    assert.equal((await ask('POST', reviews, { kind: 'Pod', apiVersion: 'v1' })).status, 400);
    assert.equal((await ask('POST', reviews, '{}', { 'content-type': 'text/plain' })).status, 415);
    assert.equal((await ask('GET', reviews)).status, 405);
  });
}

/** Waits for what a real API server knows only when its caches have caught up. */
async function settle(isSettled: () => Promise<boolean>): Promise<void> {
  const giveUpAt = Date.now() + 15_000;
  while (!(await isSettled())) {
    assert.ok(Date.now() < giveUpAt, 'it did not come to be in 15 s');
    await delay(100);
  }
}

describe('an API server, played by the authority', () => {
  defineCases(playControlPlane);
});

describe('a real control plane', () => {
  if (isControlPlaneNamed()) defineCases(connectControlPlane);
  else it('is asked the same', (t) => t.skip(`not run: ${howToRun}`));
});
