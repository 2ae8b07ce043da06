// What the packages count on of an API server: the same cases, put to the authority and, where the environment names one, to a real
// control plane.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { after, before, describe, it } from 'node:test';
import type { TestContext } from 'node:test';
import { issueCertificates } from './certificates.ts';
import { connectControlPlane, howToRun, isControlPlaneNamed, playControlPlane } from './fixtures/control-plane.ts';
import type { Asked, ClientCertificate, ControlPlane } from './fixtures/control-plane.ts';
import { createTenant, settle } from './fixtures/tenant.ts';
import type { Tenant } from './fixtures/tenant.ts';
import { readRecord, readText } from './json.ts';
import type { JsonRecord } from './json.ts';
import { parseToken } from './signing.ts';

const reviews = '/apis/authentication.k8s.io/v1/tokenreviews';
const accessReviews = '/apis/authorization.k8s.io/v1/subjectaccessreviews';
const ownAccessReviews = '/apis/authorization.k8s.io/v1/selfsubjectaccessreviews';
const mayReview = { group: 'authentication.k8s.io', resource: 'tokenreviews', verb: 'create' };

function defineCases(connectTo: () => Promise<ControlPlane>): void {
  let plane: ControlPlane;
  let tenant: Tenant;

  before(async () => {
    plane = await connectTo();
    tenant = await createTenant(plane);
    for (const name of ['api', 'store', 'stranger']) await tenant.createServiceAccount(name);
    await tenant.letReview('store');
  });
  after(async () => {
    await tenant?.remove();
    await plane?.close();
  });

  const ask: ControlPlane['ask'] = (...request) => plane.ask(...request);
  const bearer = (token: string): { readonly authorization: string } => ({ authorization: `Bearer ${token}` });

  async function review(token: string, audiences: readonly string[] = ['store']): Promise<JsonRecord> {
    const { json } = await tenant.admin('POST', reviews, { spec: { token, audiences } });
    return readRecord(json['status']);
  }

  const requestToken = (spec: object, serviceAccount = 'api'): Promise<Asked> =>
    ask('POST', `${tenant.path}/serviceaccounts/${serviceAccount}/token`, { spec });

  /** Whether this API server has what came with Kubernetes 1.`minor`; else the case is skipped and says so. */
  function has(t: TestContext, feature: string, minor: number): boolean {
    if (plane.minor < minor) t.skip(`${feature} came with Kubernetes 1.${minor}, and this is 1.${plane.minor}`);
    return plane.minor >= minor;
  }

  /** The handles of an owner; without them the case is skipped and says so. */
  function owned(t: TestContext): NonNullable<ControlPlane['own']> | undefined {
    if (plane.own === undefined) t.skip('it takes an API server that nobody else needs');
    return plane.own;
  }

  describe('TokenRequest', () => {
    it('issues a token for an hour and for the API server where nothing is asked for', async () => {
      const { status, json } = await requestToken({});
      assert.equal(status, 201);
      const spec = readRecord(json['spec']);
      const { claims, header } = parseToken(readText(readRecord(json['status'])['token'])) ?? assert.fail('no token');
      assert.equal(Number(claims['exp']) - Number(claims['iat']), 3600);
      assert.deepEqual([claims['aud'], spec['expirationSeconds'], claims['nbf']], [spec['audiences'], 3600, claims['iat']]);
      assert.deepEqual(Object.keys(header).toSorted(), ['alg', 'kid']);
      assert.equal(claims['sub'], `system:serviceaccount:${tenant.namespace}:api`);
    });

    it('takes audiences as they are: none named twice is dropped, and none is too short', async () => {
      const { status, json } = await requestToken({ audiences: ['store', 'store', ''] });
      assert.equal(status, 201);
      assert.deepEqual(parseToken(readText(readRecord(json['status'])['token']))?.claims['aud'], ['store', 'store', '']);
    });

    it('issues nothing for less than ten minutes, or for more than 2^32 seconds', async () => {
      const short = await requestToken({ expirationSeconds: 599 });
      assert.equal(short.status, 422);
      assert.match(readText(short.json['message']), /may not specify a duration less than 10 minutes$/);
      assert.equal((await requestToken({ expirationSeconds: 2 ** 32 + 1 })).status, 422);
      assert.equal((await requestToken({ expirationSeconds: 600.5 })).status, 400);
    });

    it('issues nothing for nobody', async () => {
      const { status, json } = await requestToken({}, 'nobody');
      assert.deepEqual([status, json['message']], [404, 'serviceaccounts "nobody" not found']);
    });

    it('binds to no pod that is not there, is another one, or is another’s', async () => {
      await tenant.createPod('strangers', 'stranger');
      const uid = await tenant.createPod('bound', 'api');
      const bind = (name: string, own: object = {}): Promise<Asked> =>
        requestToken({ boundObjectRef: { kind: 'Pod', apiVersion: 'v1', name, ...own } });
      const answers = [await bind('nope'), await bind('bound', { uid: 'b0' }), await bind('strangers'), await bind('bound', { uid })];
      assert.deepEqual(
        answers.map(({ status }) => status),
        [404, 409, 400, 201],
      );
      assert.equal((await requestToken({ boundObjectRef: { kind: 'ConfigMap', apiVersion: 'v1', name: 'a' } })).status, 400);
    });

    it('is not for a workload that nobody lets', async () => {
      const path = `${tenant.path}/serviceaccounts/api/token`;
      const { status, json } = await ask('POST', path, { spec: {} }, bearer(await tenant.issue('api')));
      assert.equal(status, 403);
      assert.match(readText(json['message']), /^serviceaccounts "api" is forbidden: .* cannot create resource "serviceaccounts\/token"/);
    });

    it('gives the API token of a pod a year, where it is asked for an hour and seven seconds', async () => {
      await tenant.createPod('kubelets', 'api');
      const { claims } = parseToken(await tenant.issue('api', { pod: 'kubelets', expirationSeconds: 3607 })) ?? assert.fail('no token');
      assert.equal(Number(claims['exp']) - Number(claims['iat']), 31_536_000);
      assert.equal(readRecord(claims['kubernetes.io'])['warnafter'], Number(claims['iat']) + 3607);
    });
  });

  describe('TokenReview', () => {
    it('says whose a token is, and for which of the audiences that were asked for', async () => {
      const uid = await tenant.createPod('api-0', 'api');
      const token = await tenant.issue('api', { audience: 'store', pod: 'api-0' });
      const { authenticated, audiences, user } = await review(token, ['nobody', 'store', 'store']);
      assert.deepEqual([authenticated, audiences], [true, ['store', 'store']]);
      const { username, groups, extra } = readRecord(user);
      assert.equal(username, `system:serviceaccount:${tenant.namespace}:api`);
      assert.deepEqual(groups, ['system:serviceaccounts', `system:serviceaccounts:${tenant.namespace}`, 'system:authenticated']);
      assert.deepEqual(readRecord(extra)['authentication.kubernetes.io/pod-name'], ['api-0']);
      assert.deepEqual(readRecord(extra)['authentication.kubernetes.io/pod-uid'], [uid]);
    });

    it('names the credential', async (t) => {
      if (!has(t, 'the id of a credential', 30)) return;
      const token = await tenant.issue('api', { audience: 'store' });
      const { extra } = readRecord((await review(token))['user']);
      assert.deepEqual(extra, { 'authentication.kubernetes.io/credential-id': [`JTI=${readText(parseToken(token)?.claims['jti'])}`] });
    });

    it('refuses by leaving `authenticated` out', async () => {
      const foreign = await review(await tenant.issue('api', { audience: 'vault' }));
      assert.deepEqual(Object.keys(foreign).toSorted(), ['error', 'user']);
      assert.deepEqual(foreign['user'], {});
      assert.match(readText(foreign['error']), /token audiences \["vault"\] is invalid for the target audiences \["store"\]/);
      assert.deepEqual(await review('garbage'), { user: {}, error: 'invalid bearer token' });
    });

    it('takes no white space for a ServiceAccount, and white space and junk after a token for the token', async () => {
      const { authenticated, user } = await review(' x');
      assert.ok(authenticated === undefined || readRecord(user)['username'] === 'system:anonymous');
      const token = await tenant.issue('api', { audience: 'store' });
      assert.equal((await review(`${token}\n`))['authenticated'], true);
      assert.equal((await review(`${token} junk`))['authenticated'], true);
      assert.equal((await review(`Bearer ${token}`))['authenticated'], undefined);
    });

    it('refuses a forged token', async () => {
      const [header, payload, signature = ''] = (await tenant.issue('api', { audience: 'store' })).split('.');
      const [, others] = (await tenant.issue('stranger', { audience: 'store' })).split('.');
      const none = Buffer.from('{"alg":"none"}').toString('base64url');
      const forged = [
        `${header}.${others}.${signature}`,
        `${header}.${payload}.`,
        `${none}.${payload}.`,
        `${none}.${payload}.${signature}`,
      ];
      const answers = await Promise.all(forged.map((token) => review(token)));
      assert.deepEqual(
        answers.map((answer) => 'authenticated' in answer),
        [false, false, false, false],
      );
    });

    it('takes a token of the API itself where no audience is asked for', async () => {
      const own = await review(await tenant.issue('api'), []);
      assert.deepEqual([own['authenticated'], own['audiences']], [true, parseToken(await tenant.issue('api'))?.claims['aud']]);
      assert.equal((await review(await tenant.issue('api', { audience: 'store' }), []))['authenticated'], undefined);
    });

    it('refuses a token whose pod or ServiceAccount is gone', async () => {
      await tenant.createPod('gone', 'api');
      await tenant.createServiceAccount('gone');
      const tokens = [await tenant.issue('api', { audience: 'store', pod: 'gone' }), await tenant.issue('gone', { audience: 'store' })];
      await tenant.deletePod('gone');
      await tenant.admin('DELETE', `${tenant.path}/serviceaccounts/gone`);
      // Each time another list, since a success would be remembered.
      const ofThisMoment = (): readonly string[] => ['store', randomBytes(4).toString('hex')];
      await settle(async () => {
        const answers = await Promise.all(tokens.map((token) => review(token, ofThisMoment())));
        return answers.every(({ authenticated }) => authenticated === undefined);
      });

      await tenant.createPod('gone', 'api');
      await tenant.createServiceAccount('gone');
      await settle(async () => {
        const again = [await tenant.issue('api', { audience: 'store', pod: 'gone' }), await tenant.issue('gone', { audience: 'store' })];
        const answers = await Promise.all(again.map((token) => review(token, ofThisMoment())));
        return answers.every(({ authenticated }) => authenticated === true);
      });
      const answers = await Promise.all(tokens.map((token) => review(token, ofThisMoment())));
      assert.deepEqual(
        answers.map(({ authenticated }) => authenticated),
        [undefined, undefined],
      );
    });

    it('takes a token for a minute after it has ended, and not for longer', async (t) => {
      const own = owned(t);
      if (own === undefined) return;
      const token = await tenant.issue('api', { audience: 'store', expirationSeconds: 600 });
      assert.equal((await review(own.age(token, 640_000)))['authenticated'], true);
      const late = await review(own.age(token, 670_000));
      assert.deepEqual(['authenticated' in late, late['error']], [false, '[invalid bearer token, service account token has expired]']);
    });

    it('lets only those review who may', async () => {
      const token = await tenant.issue('api', { audience: 'store' });
      const asked = (own: string): Promise<Asked> => ask('POST', reviews, { spec: { token } }, bearer(own));
      assert.equal((await asked(await tenant.issue('store'))).status, 201);
      const { status, json } = await asked(await tenant.issue('stranger'));
      assert.equal(status, 403);
      assert.match(
        readText(json['message']),
        /^tokenreviews\.authentication\.k8s\.io is forbidden: User "system:serviceaccount:.*:stranger"/,
      );
      const bad = await asked('garbage');
      assert.deepEqual([bad.status, bad.json['message'], bad.headers['www-authenticate']], [401, 'Unauthorized', undefined]);
      assert.equal((await asked(token)).status, 401);
    });

    it('refuses what is no TokenReview', async () => {
      const spec = { token: 'garbage' };
      const statusOf = async (body: object | string, headers?: Readonly<Record<string, string>>): Promise<number> =>
        (await ask('POST', reviews, body, headers)).status;
      assert.equal(await statusOf('{"spec":'), 400);
      assert.equal(await statusOf({ kind: 'Pod', apiVersion: 'v1' }), 400);
      assert.equal(await statusOf({}), 400);
      assert.equal(await statusOf({ spec: { token: '' } }), 400);
      assert.equal(await statusOf({ spec: { token: 7 } }), 400);
      assert.equal(await statusOf({ spec: { ...spec, audiences: 'store' } }), 400);
      assert.equal(await statusOf({ kind: 'TokenReview', apiVersion: 'authentication.k8s.io/v1beta1', spec }), 400);
      assert.equal(await statusOf({ spec }, { 'content-type': 'text/plain' }), 415);
      assert.equal(await statusOf({ spec }, { accept: 'text/html' }), 406);
      assert.equal(await statusOf({ spec: { token: 'x'.repeat(3_145_728) } }), 413);
    });

    it('takes one in JSON and in YAML, and answers in either', async () => {
      const yaml = await ask('POST', reviews, 'spec: { token: garbage }', {
        'content-type': 'application/yaml',
        accept: 'application/yaml',
      });
      assert.deepEqual([yaml.status, yaml.headers['content-type']], [201, 'application/yaml']);
      assert.match(yaml.text, /^status:\n {2}error: invalid bearer token\n {2}user: \{\}$/m);
    });

    it('warns of a field that it does not know, and refuses it where it is to be strict', async (t) => {
      if (!has(t, 'a look at unknown fields', 25)) return;
      const body = { spec: { token: 'garbage', tokn: 'garbage' } };
      const { status, headers } = await ask('POST', reviews, body);
      assert.deepEqual([status, headers['warning']], [201, '299 - "unknown field \\"spec.tokn\\""']);
      assert.equal((await ask('POST', `${reviews}?fieldValidation=Strict`, body)).status, 400);
    });

    it('is at one place, and can be created only', async () => {
      assert.equal((await ask('GET', reviews)).status, 405);
      assert.equal((await ask('PUT', reviews, { spec: { token: 'garbage' } })).status, 405);
      assert.equal((await ask('POST', `${reviews}/`, { spec: { token: 'garbage' } })).status, 201);
      assert.equal((await ask('POST', reviews.replace('/v1/', '/v1beta1/'), { spec: { token: 'garbage' } })).status, 404);
    });
  });

  describe('access reviews', () => {
    const allowed = async (path: string, spec: object, headers?: Readonly<Record<string, string>>): Promise<JsonRecord> => {
      const { status, json, text } = await ask('POST', path, { spec }, headers);
      assert.equal(status, 201, text);
      return readRecord(json['status']);
    };

    it('say who may do what, and leave nothing out in a no', async () => {
      const user = `system:serviceaccount:${tenant.namespace}:store`;
      const yes = await allowed(accessReviews, { user, resourceAttributes: mayReview });
      assert.equal(yes['allowed'], true);
      assert.match(
        readText(yes['reason']),
        /^RBAC: allowed by ClusterRoleBinding ".*" of ClusterRole "system:auth-delegator" to ServiceAccount/,
      );
      assert.deepEqual(await allowed(accessReviews, { user, resourceAttributes: { ...mayReview, verb: 'delete' } }), { allowed: false });
      assert.deepEqual(await allowed(accessReviews, { user, nonResourceAttributes: { path: '/metrics', verb: 'get' } }), {
        allowed: false,
      });
    });

    it('refuse what is no question', async () => {
      assert.equal((await ask('POST', accessReviews, { spec: { resourceAttributes: mayReview } })).status, 422);
      assert.equal((await ask('POST', accessReviews, { spec: { user: 'ada' } })).status, 422);
    });

    it('say of a ServiceAccount what it may do itself', async () => {
      const headers = bearer(await tenant.issue('store'));
      assert.equal((await allowed(ownAccessReviews, { resourceAttributes: mayReview }, headers))['allowed'], true);
      const stranger = bearer(await tenant.issue('stranger'));
      assert.equal((await allowed(ownAccessReviews, { resourceAttributes: mayReview }, stranger))['allowed'], false);
    });

    it('say of a ServiceAccount who it is', async (t) => {
      if (!has(t, 'SelfSubjectReview', 28)) return;
      const headers = bearer(await tenant.issue('store'));
      const { status, json } = await ask('POST', '/apis/authentication.k8s.io/v1/selfsubjectreviews', {}, headers);
      assert.equal(status, 201);
      assert.equal(readRecord(readRecord(json['status'])['userInfo'])['username'], `system:serviceaccount:${tenant.namespace}:store`);
    });
  });

  describe('objects', () => {
    /** The fields that a 422 complains of; in which order is a version's own. */
    async function faultsOf(path: string, body: object): Promise<readonly unknown[]> {
      const { status, json, text } = await ask('POST', `${path}?dryRun=All`, body);
      assert.equal(status, 422, text);
      const { causes } = readRecord(json['details']);
      return Array.isArray(causes) ? causes.map((cause: unknown) => readText(readRecord(cause)['field'])).toSorted() : [];
    }
    const rbac = '/apis/rbac.authorization.k8s.io/v1';
    const metadata = { name: 'wrong' };

    it('are refused where a binding binds nobody, or to nothing', async () => {
      const roleRef = { apiGroup: 'rbac.authorization.k8s.io', kind: 'ClusterRole', name: 'system:auth-delegator' };
      const bind = (binding: object): Promise<readonly unknown[]> => faultsOf(`${rbac}/clusterrolebindings`, { metadata, ...binding });
      assert.deepEqual(await bind({ roleRef, subjects: [{ kind: 'ServiceAccount', name: 'store' }] }), ['subjects[0].namespace']);
      assert.deepEqual(await bind({ roleRef, subjects: [{ kind: 'Robot', name: 'store' }] }), ['subjects[0].kind']);
      assert.deepEqual(await bind({ roleRef: { ...roleRef, kind: 'Role', name: '' } }), ['roleRef.kind', 'roleRef.name']);
      assert.deepEqual(await faultsOf(`${rbac}/clusterroles`, { metadata, rules: [{ resources: ['pods'] }] }), [
        'rules[0].apiGroups',
        'rules[0].verbs',
      ]);
    });

    it('are refused where a pod cannot have the token that it asks for', async () => {
      const pod = (token: object, mountPath = '/var/run/secrets/tokens', volume = 'tokens'): object => ({
        metadata,
        spec: {
          serviceAccountName: 'api',
          containers: [{ name: 'main', image: 'none', volumeMounts: [{ name: volume, mountPath }] }],
          volumes: [{ name: 'tokens', projected: { sources: [{ serviceAccountToken: token }] } }],
        },
      });
      const at = 'spec.volumes[0].projected';
      const pods = `${tenant.path}/pods`;
      // A volume that is refused is not there for the mount either.
      const mount = 'spec.containers[0].volumeMounts[0].name';
      assert.deepEqual(await faultsOf(pods, pod({ path: 'store', expirationSeconds: 599 })), [
        mount,
        `${at}.sources[0].serviceAccountToken.expirationSeconds`,
      ]);
      assert.deepEqual(await faultsOf(pods, pod({ audience: 'store' })), [mount, `${at}.path`]);
      assert.deepEqual(await faultsOf(pods, pod({ path: '../store' })), [mount, `${at}.path`]);
      assert.deepEqual(await faultsOf(pods, pod({ path: 'store' }, '')), ['spec.containers[0].volumeMounts[0].mountPath']);
      assert.deepEqual(await faultsOf(pods, pod({ path: 'store' }, '/x', 'other')), [mount]);
      const unknown = { ...pod({ path: 'store' }), spec: { serviceAccountName: 'nobody', containers: [{ name: 'main', image: 'none' }] } };
      assert.equal((await ask('POST', pods, unknown)).status, 403);
    });

    it('are refused where a label is none', async () => {
      const labelled = { metadata: { ...metadata, labels: { app: 'a b' } } };
      assert.deepEqual(await faultsOf(`${tenant.path}/serviceaccounts`, labelled), ['metadata.labels']);
    });

    it('are changed by who knows them as they are', async () => {
      const path = `${tenant.path}/serviceaccounts`;
      await tenant.createServiceAccount('changed');
      const { json } = await tenant.admin('GET', `${path}/changed`);
      assert.equal((await ask('PUT', `${path}/changed`, { ...json, automountServiceAccountToken: false })).status, 200);
      assert.equal((await ask('PUT', `${path}/changed`, { ...json, automountServiceAccountToken: true })).status, 409);
      const { uid } = readRecord(json['metadata']);
      assert.equal((await ask('DELETE', `${path}/changed`, { preconditions: { uid: 'other' } })).status, 409);
      assert.equal((await ask('DELETE', `${path}/changed`, { preconditions: { uid } })).status, 200);
      assert.equal((await ask('GET', `${path}/changed`)).status, 404);
    });
  });

  describe('client certificates', () => {
    const ownReviews = '/apis/authentication.k8s.io/v1/selfsubjectreviews';
    const namesOf = ({ json }: Asked): readonly unknown[] => {
      const { username, groups } = readRecord(readRecord(json['status'])['userInfo']);
      return [username, groups];
    };

    it('say who a user is, and in which groups', async (t) => {
      const own = owned(t);
      if (own === undefined || !has(t, 'SelfSubjectReview', 28)) return;
      const jane = await own.issueClient('jane', ['dev', 'ops']);
      assert.deepEqual(namesOf(await plane.askAs(jane, 'POST', ownReviews, {})), ['jane', ['dev', 'ops', 'system:authenticated']]);
      assert.equal((await plane.askAs(jane, 'GET', '/api/v1/namespaces')).status, 403);
    });

    it('count before a token', async (t) => {
      const own = owned(t);
      if (own === undefined || !has(t, 'SelfSubjectReview', 28)) return;
      const jane = await own.issueClient('jane');
      const headers = bearer(await tenant.issue('api'));
      assert.deepEqual(namesOf(await plane.askAs(jane, 'POST', ownReviews, {}, headers)), ['jane', ['system:authenticated']]);
    });

    it('are no way in where they have ended, or where another CA has signed them', async (t) => {
      const own = owned(t);
      if (own === undefined) return;
      const former = await own.issueClient('jane', ['system:masters'], new Date(Date.now() - 1000));
      assert.equal((await plane.askAs(former, 'GET', '/api')).status, 401);
      const foreign = issueCertificates().issueClient({ commonName: 'jane', organizations: ['system:masters'] });
      assert.equal((await plane.askAs(foreign, 'GET', '/api')).status, 401);
    });
  });

  describe('a node', () => {
    let node: ClientCertificate;
    const path = (): string => `${tenant.path}/serviceaccounts/api/token`;
    const askFor = async (pod: string, spec: object = {}): Promise<Asked> => {
      const { json } = await tenant.admin('GET', `${tenant.path}/pods/${pod}`);
      const { uid } = readRecord(json['metadata']);
      const boundObjectRef = { kind: 'Pod', apiVersion: 'v1', name: pod, uid };
      return plane.askAs(node, 'POST', path(), { spec: { boundObjectRef, ...spec } });
    };

    before(async () => {
      if (plane.own === undefined) return;
      node = await plane.own.issueClient('system:node:node-a', ['system:nodes']);
      const sources = [{ serviceAccountToken: { audience: 'store', path: 'store' } }];
      const volumes = [{ name: 'tokens', projected: { sources } }];
      for (const name of ['node-a', 'node-b']) {
        await tenant.admin('POST', '/api/v1/nodes', { metadata: { name } });
        const spec = { nodeName: name, serviceAccountName: 'api', containers: [{ name: 'main', image: 'none' }], volumes };
        await tenant.admin('POST', `${tenant.path}/pods`, { metadata: { name: `on-${name}` }, spec });
      }
    });

    it('gets the tokens of its own pods, which name it', async (t) => {
      if (owned(t) === undefined) return;
      await settle(async () => (await askFor('on-node-a')).status === 201);
      const { status, json } = await askFor('on-node-a', { audiences: ['store'] });
      assert.equal(status, 201);
      if (!has(t, 'the node in a token', 30)) return;
      const { claims } = parseToken(readText(readRecord(json['status'])['token'])) ?? assert.fail('no token');
      assert.equal(readRecord(readRecord(claims['kubernetes.io'])['node'])['name'], 'node-a');
      const { extra } = readRecord((await review(readText(readRecord(json['status'])['token'])))['user']);
      assert.deepEqual(readRecord(extra)['authentication.kubernetes.io/node-name'], ['node-a']);
    });

    it('gets none of another node’s pods, and none that is bound to no pod', async (t) => {
      if (owned(t) === undefined) return;
      const other = await askFor('on-node-b');
      assert.equal(other.status, 403);
      const unbound = await plane.askAs(node, 'POST', path(), { spec: {} });
      assert.equal(unbound.status, 403);
      assert.match(readText(unbound.json['message']), /node requested token not bound to a pod/);
      const boundObjectRef = { kind: 'Pod', apiVersion: 'v1', name: 'on-node-a' };
      const unnamed = await plane.askAs(node, 'POST', path(), { spec: { boundObjectRef } });
      assert.equal(unnamed.status, 403);
      assert.match(readText(unnamed.json['message']), /node requested token with a pod binding without a uid/);
    });

    it('gets none for an audience that the pod does not project', async (t) => {
      if (owned(t) === undefined || !has(t, 'a look at the audiences that a node asks for', 33)) return;
      const { status, json } = await askFor('on-node-a', { audiences: ['vault'] });
      assert.equal(status, 403);
      assert.match(readText(json['message']), /audience "vault"/);
    });

    it('reads its own pods, and reviews the tokens that it is sent', async (t) => {
      if (owned(t) === undefined) return;
      assert.equal((await plane.askAs(node, 'GET', `${tenant.path}/pods/on-node-a`)).status, 200);
      assert.equal((await plane.askAs(node, 'GET', `${tenant.path}/pods/on-node-b`)).status, 403);
      assert.equal((await plane.askAs(node, 'POST', reviews, { spec: { token: 'garbage' } })).status, 201);
    });
  });

  describe('discovery', () => {
    it('publishes the keys that sign, and not as plain JSON', async () => {
      const token = await tenant.issue('api');
      const headers = { ...bearer(token), accept: '*/*' };
      const keys = await ask('GET', '/openid/v1/jwks', undefined, headers);
      assert.equal(keys.status, 200);
      assert.equal(keys.headers['content-type'], 'application/jwk-set+json');
      const ids = Array.isArray(keys.json['keys']) ? keys.json['keys'].map((key: unknown) => readRecord(key)['kid']) : [];
      assert.ok(ids.includes(parseToken(token)?.header['kid']));
      assert.equal((await ask('GET', '/openid/v1/jwks', undefined, { ...headers, accept: 'application/json' })).status, 406);
    });

    it('says who issues', async () => {
      const token = await tenant.issue('api');
      const { status, json } = await ask('GET', '/.well-known/openid-configuration', undefined, bearer(token));
      assert.deepEqual([status, json['issuer']], [200, parseToken(token)?.claims['iss']]);
    });

    it('is not for a bad credential', async () => {
      assert.equal((await ask('GET', '/openid/v1/jwks', undefined, { ...bearer('garbage'), accept: '*/*' })).status, 401);
    });
  });
}

describe('an API server, played by the authority', () => {
  defineCases(playControlPlane);
});

describe('a real control plane', () => {
  if (isControlPlaneNamed()) defineCases(connectControlPlane);
  else it('is asked the same', (t) => t.skip(`not run: ${howToRun}`));
});
