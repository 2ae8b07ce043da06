import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { request as send } from 'node:https';
import { after, before, describe, it } from 'node:test';
import { connect } from 'node:tls';
import { createAuthority } from './authority.ts';
import type { Authority, User } from './authority.ts';
import type { Answer } from './fixtures/ask.ts';

const whoami = '/apis/authentication.k8s.io/v1/selfsubjectreviews';
const day = 86_400_000;

/** Sends one request with the user's certificate, on a connection of its own. */
function askAs(authority: Authority, user: User, method: string, path: string, body?: object, token?: string): Promise<Answer> {
  const authorization = token === undefined ? {} : { authorization: `Bearer ${token}` };
  const headers = { 'content-type': 'application/json', ...authorization };
  const { certificate: cert, key } = user;
  return new Promise((resolve, reject) => {
    const options = { method, cert, key, ca: readFileSync(authority.caFile), agent: false, headers };
    const outgoing = send(`${authority.url}${path}`, options, (response) => {
      let text = '';
      response.setEncoding('utf8');
      response.on('data', (chunk: string) => {
        text += chunk;
      });
      response.on('end', () => resolve({ status: response.statusCode ?? 0, headers: response.headers, text }));
    });
    outgoing.on('error', reject);
    outgoing.end(body === undefined ? undefined : JSON.stringify(body));
  });
}

describe('users with a client certificate', () => {
  let authority: Authority;

  before(async () => {
    authority = await createAuthority();
  });
  after(() => authority.close());

  const ask = (user: User, method: string, path: string, body?: object, token?: string): Promise<Answer> =>
    askAs(authority, user, method, path, body, token);

  it('are the common name, in a group for each organization', async () => {
    const user = await authority.user('jane', { groups: ['dev', 'ops'] });
    const { extra, ...userInfo } = JSON.parse((await ask(user, 'POST', whoami, {})).text).status.userInfo;
    assert.deepEqual(userInfo, { username: 'jane', groups: ['dev', 'ops', 'system:authenticated'] });
    assert.match(extra['authentication.kubernetes.io/credential-id'][0], /^X509SHA256=[0-9a-f]{64}$/);
  });

  it('are told apart by RBAC', async () => {
    const [master, other] = [await authority.user('root', { groups: ['system:masters'] }), await authority.user('jane')];
    assert.equal((await ask(master, 'GET', '/api/v1/namespaces')).status, 200);
    const { status, text } = await ask(other, 'GET', '/api/v1/namespaces');
    assert.equal(status, 403);
    assert.match(
      text,
      /namespaces is forbidden: User \\"jane\\" cannot list resource \\"namespaces\\" in API group \\"\\" at the cluster scope/,
    );
  });

  it('are who the certificate says, whatever token they send', async () => {
    const user = await authority.user('jane');
    const token = await authority.token('shop/shop', { audience: 'https://kubernetes.default.svc.cluster.local' });
    assert.match((await ask(user, 'POST', whoami, {}, token)).text, /"username":"jane"/);
  });

  it('are nobody with a certificate of another CA, unless a token says who they are', async (t) => {
    const stranger = await createAuthority();
    t.after(() => stranger.close());
    const user = await stranger.user('root', { groups: ['system:masters'] });
    assert.equal((await ask(user, 'POST', whoami, {})).status, 401);
    assert.equal((await ask(user, 'GET', '/version')).status, 401);
    const token = await authority.token('shop/shop', { audience: 'https://kubernetes.default.svc.cluster.local' });
    assert.match((await ask(user, 'POST', whoami, {}, token)).text, /"username":"system:serviceaccount:shop:shop"/);
  });

  it('are nobody when the certificate has ended, by the clock of the authority', async (t) => {
    const later = await createAuthority();
    t.after(() => later.close());
    const user = await later.user('jane', { expiresAt: new Date(Date.now() + day) });
    assert.equal((await askAs(later, user, 'GET', '/version')).status, 200);
    later.advance(2 * day);
    assert.equal((await askAs(later, user, 'GET', '/version')).status, 401);
  });

  it('stay who they are under a new CA', async () => {
    const user = await authority.user('jane');
    authority.rotateCa();
    assert.equal((await ask(user, 'POST', whoami, {})).status, 201);
  });

  it('may hang up before they are answered', async () => {
    const warned: Error[] = [];
    const listen = (warning: Error): void => void warned.push(warning);
    process.on('warning', listen);
    const socket = connect({ host: '127.0.0.1', port: Number(new URL(authority.url).port), ca: readFileSync(authority.caFile) });
    socket.on('error', () => undefined).resume();
    // What follows the body is no request, so that the connection is cut while this one is being answered.
    socket.write(`POST ${whoami} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}no request\r\n\r\n`);
    await once(socket, 'close');
    assert.equal((await ask(await authority.user('jane'), 'POST', whoami, {})).status, 201);
    process.off('warning', listen);
    assert.deepEqual(warned, []);
  });

  it('need a name', async () => {
    await assert.rejects(authority.user(''), { message: 'a user needs a name' });
  });
});

describe('nodes', () => {
  const path = '/api/v1/namespaces/shop/serviceaccounts/shop/token';
  let authority: Authority;
  let node: User;
  let other: User;
  let uid: string;
  let name: string;

  before(async () => {
    authority = await createAuthority();
    ({ uid, name } = await authority.pod('shop/shop', { tokens: { store: 'store' } }));
    node = await authority.user('system:node:node-1', { groups: ['system:nodes'] });
    other = await authority.user('system:node:node-2', { groups: ['system:nodes'] });
  });
  after(() => authority.close());

  async function ask(user: User, method: string, url: string, body?: object): Promise<readonly [status: number, message: string]> {
    const { status, text } = await askAs(authority, user, method, url, body);
    return [status, JSON.parse(text).message ?? ''];
  }
  const forPod = (more: object = {}, spec: object = {}): object => ({
    spec: { audiences: ['store'], boundObjectRef: { kind: 'Pod', apiVersion: 'v1', name, uid, ...more }, ...spec },
  });
  const refused = (reason: string): readonly [number, string] => [403, `serviceaccounts "shop" is forbidden: ${reason}`];

  it('get tokens for their own pods, with an audience that the pod projects', async () => {
    assert.deepEqual(await ask(node, 'POST', path, forPod()), [201, '']);
    assert.deepEqual(await ask(node, 'POST', path, forPod({}, { audiences: [] })), [201, '']);
    const why = 'not found in pod spec volume, system:node:node-1 is not authorized to request tokens for this audience';
    assert.deepEqual(await ask(node, 'POST', path, forPod({}, { audiences: ['vault'] })), refused(`audience "vault" ${why}`));
    const several = forPod({}, { audiences: ['store', 'vault'] });
    assert.deepEqual(await ask(node, 'POST', path, several), refused('node may only request 0 or 1 audiences'));
  });

  it('get none that is bound to no pod, or to another than they say', async () => {
    assert.deepEqual(await ask(node, 'POST', path, { spec: {} }), refused('node requested token not bound to a pod'));
    assert.deepEqual(await ask(node, 'POST', path, forPod({ uid: '' })), refused('node requested token with a pod binding without a uid'));
    const why = 'does not match the UID in record. The object might have been deleted and then recreated';
    assert.deepEqual(await ask(node, 'POST', path, forPod({ uid: 'x' })), refused(`the UID in the bound object reference (x) ${why}`));
  });

  it('get none for the pods of another node', async () => {
    const why = 'User "system:node:node-2" cannot create resource "serviceaccounts/token" in API group "" in the namespace "shop"';
    assert.deepEqual(
      await ask(other, 'POST', path, forPod()),
      refused(`${why}: no relationship found between node 'node-2' and this object`),
    );
  });

  it('get an audience that no pod projects where a role says so', async () => {
    const rule = { verbs: ['request-serviceaccounts-token-audience'], apiGroups: [''], resources: ['registry'] };
    const administrator = await authority.user('root', { groups: ['system:masters'] });
    const rbac = '/apis/rbac.authorization.k8s.io/v1';
    await ask(administrator, 'POST', `${rbac}/clusterroles`, { metadata: { name: 'registry' }, rules: [rule] });
    const binding = { roleRef: { kind: 'ClusterRole', name: 'registry' }, subjects: [{ kind: 'Group', name: 'system:nodes' }] };
    await ask(administrator, 'POST', `${rbac}/clusterrolebindings`, { metadata: { name: 'registry' }, ...binding });
    assert.deepEqual(await ask(node, 'POST', path, forPod({}, { audiences: ['registry'] })), [201, '']);
  });

  it('read their own pods and themselves, and change no other node', async () => {
    assert.deepEqual(await ask(node, 'GET', `/api/v1/namespaces/shop/pods/${name}`), [200, '']);
    assert.equal((await ask(other, 'GET', `/api/v1/namespaces/shop/pods/${name}`))[0], 403);
    assert.deepEqual(await ask(node, 'GET', '/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-1'), [200, '']);
    assert.match((await ask(node, 'GET', '/api/v1/pods'))[1], /: can only list\/watch pods with spec\.nodeName field selector$/);
    assert.deepEqual(await ask(node, 'GET', '/api/v1/nodes/node-1'), [200, '']);
    assert.match((await ask(node, 'GET', '/api/v1/nodes'))[1], /: node 'node-1' cannot read all nodes, only its own Node object$/);
    const message = 'nodes "node-3" is forbidden: node "node-2" is not allowed to modify node "node-3"';
    assert.deepEqual(await ask(other, 'POST', '/api/v1/nodes', { metadata: { name: 'node-3' } }), [403, message]);
    assert.equal((await ask(other, 'POST', '/api/v1/nodes', { metadata: { name: 'node-2' } }))[0], 201);
  });
});
