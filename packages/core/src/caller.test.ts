import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { type Allow, createCaller, parseUsername, readAllow } from './caller.ts';

const asked = { method: 'GET', route: undefined };
const user = { uid: 'u', groups: ['g'], extra: {} };

function callerNamed(namespace: string, name: string) {
  return createCaller({ namespace, name }, user, ['secret-store'], 0);
}

describe('parseUsername', () => {
  it('reads namespace and name', () => {
    assert.deepEqual(parseUsername('system:serviceaccount:api:api'), { namespace: 'api', name: 'api' });
  });

  it('takes a name with dots, which is a DNS subdomain', () => {
    assert.deepEqual(parseUsername('system:serviceaccount:api:api.v2'), { namespace: 'api', name: 'api.v2' });
  });

  it('refuses who is not a ServiceAccount', () => {
    assert.equal(parseUsername('system:anonymous'), undefined);
    assert.equal(parseUsername('system:node:node-1'), undefined);
    assert.equal(parseUsername('admin'), undefined);
    assert.equal(parseUsername('system:serviceaccounts:api:api'), undefined);
  });

  it('refuses a namespace that is not a DNS label', () => {
    assert.equal(parseUsername('system:serviceaccount:api.v2:api'), undefined);
    assert.equal(parseUsername('system:serviceaccount:API:api'), undefined);
    assert.equal(parseUsername(`system:serviceaccount:${'a'.repeat(64)}:api`), undefined);
    assert.equal(parseUsername('system:serviceaccount::api'), undefined);
    assert.equal(parseUsername('system:serviceaccount:api-:api'), undefined);
  });

  it('refuses a name that is not a DNS subdomain', () => {
    assert.equal(parseUsername('system:serviceaccount:api:'), undefined);
    assert.equal(parseUsername('system:serviceaccount:api:api/x'), undefined);
    assert.equal(parseUsername('system:serviceaccount:api:.api'), undefined);
    assert.equal(parseUsername(`system:serviceaccount:api:${'a'.repeat(254)}`), undefined);
    assert.equal(parseUsername('system:serviceaccount:api:api\n'), undefined);
  });

  it('refuses more or fewer parts', () => {
    assert.equal(parseUsername('system:serviceaccount:api'), undefined);
    assert.equal(parseUsername('system:serviceaccount:api:api:api'), undefined);
  });
});

describe('createCaller', () => {
  const extra = {
    'authentication.kubernetes.io/credential-id': ['JTI=1'],
    'authentication.kubernetes.io/node-name': ['node-1'],
    'authentication.kubernetes.io/node-uid': ['n'],
    'authentication.kubernetes.io/pod-name': ['api-0'],
    'authentication.kubernetes.io/pod-uid': ['p'],
  };
  const caller = createCaller({ namespace: 'api', name: 'api' }, { uid: 'u', groups: ['g'], extra }, ['secret-store'], 1_000);

  it('reads pod, node and credential from the extras', () => {
    assert.deepEqual(caller.pod, { name: 'api-0', uid: 'p' });
    assert.deepEqual(caller.node, { name: 'node-1', uid: 'n' });
    assert.equal(caller.credentialId, 'JTI=1');
    assert.equal(caller.serviceAccount, 'api/api');
    assert.equal(caller.username, 'system:serviceaccount:api:api');
  });

  it('knows no pod that has only a name, or only a uid', () => {
    for (const key of ['pod-name', 'pod-uid']) {
      const half = { ...user, extra: { [`authentication.kubernetes.io/${key}`]: ['x'] } };
      assert.equal(createCaller({ namespace: 'api', name: 'api' }, half, [], 0).pod, undefined);
    }
  });

  it('leaves out what the cluster did not report', () => {
    assert.deepEqual(Object.keys(callerNamed('api', 'api')).toSorted(), [
      'audiences',
      'expiresAt',
      'extra',
      'groups',
      'name',
      'namespace',
      'serviceAccount',
      'uid',
      'username',
    ]);
  });

  it('is frozen to the last value, the expiry too', () => {
    assert.throws(() => Object.assign(caller, { name: 'x' }), TypeError);
    assert.throws(() => Object.assign(caller.pod ?? {}, { name: 'x' }), TypeError);
    assert.throws(() => Object.assign(caller.node ?? {}, { name: 'x' }), TypeError);
    assert.throws(() => Object.assign(caller.groups, ['x']), TypeError);
    assert.throws(() => Object.assign(caller.audiences, ['x']), TypeError);
    assert.throws(() => Object.assign(caller.extra, { x: [] }), TypeError);
    assert.throws(() => Object.assign(caller.extra['authentication.kubernetes.io/pod-name'] ?? {}, ['x']), TypeError);
    caller.expiresAt.setTime(0);
    assert.equal(caller.expiresAt.getTime(), 1_000);
  });

  it('keeps an extra named like a prototype as a value', () => {
    const odd = JSON.parse('{"__proto__":["x"]}') as Record<string, string[]>;
    const { extra: kept } = createCaller({ namespace: 'api', name: 'api' }, { ...user, extra: odd }, [], 0);
    assert.deepEqual(Object.entries(kept), [['__proto__', ['x']]]);
  });
});

describe('readAllow', () => {
  const passes = (allow: Allow, namespace: string, name: string): boolean | Promise<boolean> =>
    readAllow(allow).isAllowed(callerNamed(namespace, name), asked);

  it('passes the ServiceAccount that is named, and no other', () => {
    assert.equal(passes(['api/api'], 'api', 'api'), true);
    assert.equal(passes(['api/api'], 'api', 'api2'), false);
    assert.equal(passes(['api/api'], 'ap', 'api'), false);
  });

  it('passes a whole namespace', () => {
    assert.equal(passes(['ops/*'], 'ops', 'anything'), true);
    assert.equal(passes(['ops/*'], 'ops2', 'anything'), false);
  });

  it('takes patterns as objects', () => {
    assert.equal(passes([{ namespace: 'ops' }], 'ops', 'x'), true);
    assert.equal(passes([{ namespace: 'ops', name: 'x' }], 'ops', 'y'), false);
  });

  it('passes anyone on the word any', () => {
    assert.equal(passes('any', 'x', 'y'), true);
  });

  it('refuses an empty list', () => {
    assert.throws(() => readAllow([]), { name: 'TypeError', message: /^"allow" is an empty list\. It says who may call/ });
  });

  it('refuses a bare string other than any', () => {
    assert.throws(() => readAllow('api/api'), TypeError);
    assert.throws(() => readAllow('*'), TypeError);
  });

  it('refuses what is absent', () => {
    assert.throws(() => readAllow(undefined), TypeError);
    assert.throws(() => readAllow(null), TypeError);
    assert.throws(() => readAllow(true), TypeError);
    assert.throws(() => readAllow({ namespace: 'api' }), TypeError);
  });

  it('refuses patterns that look like more than they are', () => {
    assert.throws(() => readAllow(['*/*']), TypeError);
    assert.throws(() => readAllow(['*/api']), TypeError);
    assert.throws(() => readAllow(['api/a*']), TypeError);
    assert.throws(() => readAllow(['api']), TypeError);
    assert.throws(() => readAllow(['api/']), TypeError);
    assert.throws(() => readAllow(['api/api/api']), TypeError);
    assert.throws(() => readAllow(['any']), TypeError);
    assert.throws(() => readAllow(['API/api']), TypeError);
    assert.throws(() => readAllow([' api/api']), TypeError);
    assert.throws(() => readAllow(['']), TypeError);
  });

  it('refuses pattern objects with a key that is unknown, undefined or empty', () => {
    assert.throws(() => readAllow([{}]), TypeError);
    assert.throws(() => readAllow([{ namespace: '' }]), TypeError);
    assert.throws(() => readAllow([{ namespace: 'api', name: undefined }]), TypeError);
    assert.throws(() => readAllow([{ namespace: 'api', name: '' }]), TypeError);
    assert.throws(() => readAllow([{ namespace: 'api', name: '*' }]), TypeError);
    assert.throws(() => readAllow([{ namespace: 'api', serviceAccount: 'api' }]), TypeError);
    assert.throws(() => readAllow([{ name: 'api' }]), TypeError);
    assert.throws(() => readAllow([undefined]), TypeError);
  });

  it('reads a name that is inherited, rather than admit the whole namespace', () => {
    const boss = Object.assign(Object.create({ name: 'boss' }) as { name: string }, { namespace: 'ops' });
    assert.equal(passes([boss], 'ops', 'boss'), true);
    assert.equal(passes([boss], 'ops', 'anybody'), false);
  });

  it('names the pattern that is wrong', () => {
    assert.throws(() => readAllow(['api/api', '*/*']), { message: /"\*\/\*"/ });
  });
});
