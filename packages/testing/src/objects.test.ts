import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { get } from 'node:https';
import { dirname, join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { createAuthority } from './authority.ts';
import type { Authority } from './authority.ts';
import { ask } from './fixtures/ask.ts';
import type { Answer } from './fixtures/ask.ts';
import type { Pod } from './pods.ts';

const core = '/api/v1/namespaces';
const rbac = '/apis/rbac.authorization.k8s.io/v1';

const read = ({ text }: Answer): Record<string, unknown> => JSON.parse(text);

describe('objects over the API', () => {
  let authority: Authority;
  let pod: Pod;
  let administrator: Pick<Pod, 'apiServer'>;

  before(async () => {
    authority = await createAuthority();
    pod = await authority.pod('shop/shop', { reviews: false });
    const tokenFile = join(dirname(authority.caFile), 'admin-token');
    writeFileSync(tokenFile, JSON.parse(readFileSync(authority.kubeconfig, 'utf8')).users[0].user.token);
    administrator = { apiServer: { url: authority.url, caFile: authority.caFile, tokenFile } };
  });
  after(() => authority.close());

  const admin = (method: string, path: string, body?: object, headers: Readonly<Record<string, string>> = {}): Promise<Answer> =>
    ask(administrator, method, path, body, headers);

  it('creates, reads, replaces and deletes', async () => {
    const created = await admin('POST', `${core}/shop/configmaps`, { metadata: { name: 'prices' }, data: { tea: '2' } });
    assert.equal(created.status, 201);
    const { metadata, ...rest } = read(created);
    assert.deepEqual(rest, { kind: 'ConfigMap', apiVersion: 'v1', data: { tea: '2' } });
    const path = `${core}/shop/configmaps/prices`;
    assert.equal((await admin('PUT', path, { metadata, data: { tea: '3' } })).status, 200);
    const stale = await admin('PUT', path, { metadata, data: { tea: '4' } });
    assert.equal(stale.status, 409);
    assert.match(stale.text, /the object has been modified; please apply your changes to the latest version and try again/);
    assert.deepEqual(read(await admin('GET', path))['data'], { tea: '3' });
    assert.equal(read(await admin('DELETE', path))['status'], 'Success');
    assert.equal((await admin('GET', path)).status, 404);
  });

  it('lets RBAC decide, down to resource names', async () => {
    const path = `${core}/shop/secrets`;
    await admin('POST', path, { metadata: { name: 'mine' }, stringData: { word: 'hello' } });
    await admin('POST', path, { metadata: { name: 'other' } });
    const refused = await ask(pod, 'GET', `${path}/mine`);
    assert.equal(refused.status, 403);
    assert.match(refused.text, /secrets \\"mine\\" is forbidden: User \\"system:serviceaccount:shop:shop\\" cannot get resource/);
    const rules = [{ apiGroups: [''], resources: ['secrets'], resourceNames: ['mine'], verbs: ['get', 'list'] }];
    await admin('POST', `${rbac}/namespaces/shop/roles`, { metadata: { name: 'reader' }, rules });
    const subjects = [{ kind: 'ServiceAccount', name: 'shop', namespace: 'shop' }];
    const roleRef = { kind: 'Role', name: 'reader' };
    await admin('POST', `${rbac}/namespaces/shop/rolebindings`, { metadata: { name: 'reader' }, subjects, roleRef });
    assert.deepEqual(read(await ask(pod, 'GET', `${path}/mine`))['data'], { word: 'aGVsbG8=' });
    assert.equal((await ask(pod, 'GET', `${path}/other`)).status, 403);
    assert.equal((await ask(pod, 'GET', path)).status, 403);
    assert.equal((await ask(pod, 'GET', `${path}?fieldSelector=metadata.name%3Dmine`)).status, 200);
  });

  it('impersonates only for those who may', async () => {
    const asOther = { 'impersonate-user': 'system:serviceaccount:shop:shop' };
    const review = '/apis/authentication.k8s.io/v1/selfsubjectreviews';
    const { status } = read(await admin('POST', review, {}, asOther));
    assert.deepEqual(status, {
      userInfo: {
        username: 'system:serviceaccount:shop:shop',
        groups: ['system:serviceaccounts', 'system:serviceaccounts:shop', 'system:authenticated'],
      },
    });
    assert.equal((await ask(pod, 'POST', review, {}, { 'impersonate-user': 'root' })).status, 403);
  });

  it('merges patches by the keys of lists', async () => {
    const spec = {
      containers: [
        { name: 'a', image: 'a:1' },
        { name: 'b', image: 'b:1' },
      ],
    };
    await admin('POST', `${core}/shop/pods`, { metadata: { name: 'two' }, spec: { serviceAccountName: 'shop', ...spec } });
    const strategic = { 'content-type': 'application/strategic-merge-patch+json' };
    const patch = {
      spec: {
        containers: [
          { name: 'b', image: 'b:2' },
          { name: 'a', $patch: 'delete' },
        ],
      },
    };
    const patched = read(await admin('PATCH', `${core}/shop/pods/two`, patch, strategic))['spec'] as typeof spec;
    assert.deepEqual(
      patched.containers.map(({ name, image }) => [name, image]),
      [['b', 'b:2']],
    );
    const merged = await admin(
      'PATCH',
      `${core}/shop/pods/two`,
      { metadata: { labels: { a: 'b' } } },
      { 'content-type': 'application/merge-patch+json' },
    );
    assert.deepEqual((read(merged)['metadata'] as { labels: object }).labels, { a: 'b' });
  });

  it('says what is wrong with an object', async () => {
    const unnamed = await admin('POST', `${core}/shop/serviceaccounts`, {});
    assert.equal(unnamed.status, 422);
    assert.match(unnamed.text, /ServiceAccount \\"\\" is invalid: metadata\.name: Required value: name or generateName is required/);
    assert.equal((await admin('POST', `${core}/shop/serviceaccounts`, { metadata: { name: 'Not-This' } })).status, 422);
    assert.equal((await admin('POST', `${core}/nowhere/serviceaccounts`, { metadata: { name: 'one' } })).status, 404);
    assert.equal((await admin('POST', `${core}/shop/serviceaccounts`, { metadata: { name: 'shop' } })).status, 409);
    assert.equal((await admin('POST', `${core}/shop/serviceaccounts`, { kind: 'Pod', metadata: { name: 'one' } })).status, 400);
  });

  it('drops unknown fields, and warns of them, of those that stand twice, or refuses both', async () => {
    const path = `${core}/shop/configmaps`;
    const body = '{"metadata":{"name":"fields"},"data":{"a":"1","a":"2"},"colour":"red"}';
    const warnings = ['299 - "duplicate field \\"data.a\\""', '299 - "unknown field \\"colour\\""'];
    const send = (query: string): Promise<Answer> =>
      ask(administrator, 'POST', `${path}${query}`, body, { 'content-type': 'application/json' });
    const strict = await send('?fieldValidation=Strict');
    assert.equal(strict.status, 400);
    assert.equal(
      read(strict)['message'],
      'ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: duplicate field "data.a", unknown field "colour"',
    );
    assert.equal((await send('?fieldValidation=Ignore&dryRun=All')).headers['warning'], undefined);
    const created = await send('');
    assert.equal(created.headers['warning'], warnings.join(', '));
    assert.deepEqual(read(created)['data'], { a: '2' });
    assert.equal(Object.hasOwn(read(created), 'colour'), false);
    const wrong = await send('?fieldValidation=strict');
    assert.equal(wrong.status, 422);
    const values = 'supported values: "", "Ignore", "Strict", "Warn"';
    assert.equal(
      read(wrong)['message'],
      `CreateOptions.meta.k8s.io "" is invalid: fieldValidation: Unsupported value: "strict": ${values}`,
    );
  });

  it('finds unknown fields in lists, and in what a patch makes of an object', async () => {
    const spec = { serviceAccountName: 'shop', containers: [{ name: 'a', image: 'a:1', volumeMounts: [{ name: 'v', path: '/v' }] }] };
    const tried = await admin('POST', `${core}/shop/pods?dryRun=All`, { metadata: { name: 'one' }, spec });
    assert.equal(tried.headers['warning'], '299 - "unknown field \\"spec.containers[0].volumeMounts[0].path\\""');
    await admin('POST', `${core}/shop/configmaps`, { metadata: { name: 'patched' } });
    const patch = (type: string): Promise<Answer> =>
      admin(
        'PATCH',
        `${core}/shop/configmaps/patched?fieldValidation=Strict`,
        { colour: { shade: 1 } },
        { 'content-type': `application/${type}+json` },
      );
    const unknown = 'strict decoding error: unknown field \\"colour\\"';
    const merged = await patch('merge-patch');
    assert.equal(merged.status, 422);
    assert.match(String(read(merged)['message']), /^ "" is invalid: patch: Invalid value: "\{\\"apiVersion\\":/);
    assert.ok(merged.text.includes(unknown));
    const strategic = await patch('strategic-merge-patch');
    assert.ok(
      strategic.text.includes(`" \\"\\" is invalid: patch: Invalid value: \\"map[colour:map[shade:1]]\\": ${unknown}`),
      strategic.text,
    );
  });

  it('says which field holds what it cannot', async () => {
    const send = async (path: string, body: object | string): Promise<unknown> => {
      const answer = await ask(administrator, 'POST', `${core}/shop/${path}`, body, { 'content-type': 'application/json' });
      assert.equal(answer.status, 400);
      return read(answer)['message'];
    };
    const told = (kind: string, what: string): string => `${kind} in version "v1" cannot be handled as a ${kind}: ${what}`;
    assert.equal(
      await send('configmaps', { metadata: { name: 'a' }, data: { a: 1 } }),
      told('ConfigMap', 'json: cannot unmarshal number into Go struct field ConfigMap.data of type string'),
    );
    assert.equal(
      await send('pods', { metadata: { name: 'a' }, spec: { containers: {} } }),
      told('Pod', 'json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container'),
    );
    assert.equal(
      await send('pods', '{"spec":{"containers":[{"ports":[{"containerPort":80.0}]}]}}'),
      told(
        'Pod',
        'json: cannot unmarshal number 80.0 into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32',
      ),
    );
    assert.equal(
      await send('secrets', { metadata: { name: 'a' }, data: { a: '!' } }),
      told('Secret', 'illegal base64 data at input byte 0'),
    );
  });

  it('fills Secrets of type service-account-token, and takes them away with the ServiceAccount', async () => {
    await admin('POST', `${core}/shop/serviceaccounts`, { metadata: { name: 'old' } });
    const annotations = { 'kubernetes.io/service-account.name': 'old' };
    const type = 'kubernetes.io/service-account-token';
    await admin('POST', `${core}/shop/secrets`, { metadata: { name: 'old', annotations }, type });
    const { data } = read(await admin('GET', `${core}/shop/secrets/old`)) as { data: { token: string } };
    const token = Buffer.from(data.token, 'base64').toString();
    const review = await admin('POST', '/apis/authentication.k8s.io/v1/tokenreviews', { spec: { token } });
    assert.match(review.text, /"username":"system:serviceaccount:shop:old"/);
    await admin('DELETE', `${core}/shop/serviceaccounts/old`);
    assert.equal((await admin('GET', `${core}/shop/secrets/old`)).status, 404);
  });

  it('gives a namespace another default ServiceAccount when that is deleted', async () => {
    const path = `${core}/shop/serviceaccounts/default`;
    const uidOf = async (): Promise<unknown> => (read(await admin('GET', path)) as { metadata: { uid: string } }).metadata.uid;
    const first = await uidOf();
    await admin('DELETE', path);
    const between = await uidOf();
    assert.notEqual(between, first);
    await authority.delete('serviceaccount', 'shop/default');
    assert.notEqual(await uidOf(), between);
  });

  it('lists page by page, and as a table', async () => {
    const page = read(await admin('GET', '/api/v1/namespaces?limit=2')) as { items: object[]; metadata: { continue: string } };
    assert.equal(page.items.length, 2);
    const next = read(await admin('GET', `/api/v1/namespaces?limit=1&continue=${page.metadata.continue}`)) as typeof page;
    assert.match(JSON.stringify(next.items), /"name":"kube-public"/);
    const labelled = read(
      await admin('GET', '/api/v1/namespaces?labelSelector=kubernetes.io/metadata.name%20in%20(shop,x)'),
    ) as typeof page;
    assert.equal(labelled.items.length, 1);
    const table = await admin('GET', '/api/v1/namespaces/shop', undefined, { accept: 'application/json;as=Table;v=v1;g=meta.k8s.io' });
    assert.match(table.text, /^\{"kind":"Table","apiVersion":"meta.k8s.io\/v1".*"cells":\["shop","Active","\d+s"\]/);
  });

  it('tells a watch what changes', async () => {
    const { metadata } = read(await admin('GET', `${core}/shop/serviceaccounts`)) as { metadata: { resourceVersion: string } };
    const token = readFileSync(administrator.apiServer.tokenFile, 'utf8');
    const path = `${core}/shop/serviceaccounts?watch=1&resourceVersion=${metadata.resourceVersion}`;
    const options = { ca: readFileSync(authority.caFile), headers: { authorization: `Bearer ${token}` } };
    await admin('POST', `${core}/shop/serviceaccounts`, { metadata: { name: 'watched' } });
    const watching = get(`${authority.url}${path}`, options);
    const [response] = await once(watching, 'response');
    const [first] = await once(response, 'data');
    assert.match(String(first), /^\{"type":"ADDED","object":\{.*"name":"watched"/);
    await admin('DELETE', `${core}/shop/serviceaccounts/watched`);
    const [second] = await once(response, 'data');
    assert.match(String(second), /^\{"type":"DELETED","object":\{.*"name":"watched"/);
    watching.destroy();
  });
});
