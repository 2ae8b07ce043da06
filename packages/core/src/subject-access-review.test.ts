import assert from 'node:assert/strict';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, it, mock } from 'node:test';
import { setImmediate } from 'node:timers/promises';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import { holdObserveTimeout } from '@k8s-sa-auth/testing/adapter-cases';

import type { Answer } from './api-server.ts';
import { createCaller } from './caller.ts';
import type { IncomingRequest } from './credential.ts';
import { type Decision, decisionChannel } from './decision.ts';
import { createGuard, createOptInGuard, type Guard } from './guard.ts';
import type { GuardOptions } from './options.ts';
import { processStatus } from './status.ts';
import { type Authorize, type AuthorizedRequest, plainPath, readAccess, readAuthorize } from './subject-access-review.ts';

holdObserveTimeout();

const quiet = { info: () => {}, warn: () => {}, error: () => {} };
const asked: AuthorizedRequest = {
  method: 'GET',
  route: '/orders/:order',
  params: { order: '7' },
  headers: { 'x-shop': 'berlin' },
  path: '/orders/7',
};

describe('readAuthorize', () => {
  const rejects = (authorize: unknown, message: RegExp): void =>
    assert.throws(() => readAuthorize(authorize), { name: 'TypeError', message });

  it('reads a resource', () => {
    const spec = readAuthorize({
      verb: 'get',
      group: 'shop.example',
      resource: 'orders',
      namespace: 'shop',
      name: 'x',
      subresource: 'status',
    });
    assert.deepEqual(spec(asked), {
      resourceAttributes: { verb: 'get', group: 'shop.example', resource: 'orders', namespace: 'shop', name: 'x', subresource: 'status' },
    });
  });

  it('reads a path', () => {
    assert.deepEqual(readAuthorize({ verb: 'get', path: '/reports' })(asked), {
      nonResourceAttributes: { verb: 'get', path: '/reports' },
    });
  });

  it('asks functions about the request', () => {
    const spec = readAuthorize({
      verb: ({ method }: AuthorizedRequest) => method.toLowerCase(),
      resource: 'orders',
      namespace: ({ headers }: AuthorizedRequest) => String(headers['x-shop']),
      name: ({ params }: AuthorizedRequest) => params['order'],
    });
    assert.deepEqual(spec(asked), { resourceAttributes: { verb: 'get', resource: 'orders', namespace: 'berlin', name: '7' } });
    assert.deepEqual(readAuthorize({ verb: 'get', path: ({ route }: AuthorizedRequest) => route })(asked), {
      nonResourceAttributes: { verb: 'get', path: '/orders/:order' },
    });
  });

  it('takes the core group by its name, which is empty', () => {
    assert.deepEqual(readAuthorize({ verb: 'get', group: '', resource: 'pods' })(asked), {
      resourceAttributes: { verb: 'get', group: '', resource: 'pods' },
    });
  });

  const giving = (value: unknown): Authorize => ({ verb: 'get', resource: 'orders', name: () => value as string });
  it('has nothing to ask where a function gives undefined', () => assert.equal(readAuthorize(giving(undefined))(asked), undefined));
  it('has nothing to ask where a function gives an empty text, which would mean all of them', () =>
    assert.equal(readAuthorize(giving(''))(asked), undefined));
  it('has nothing to ask where a function gives a text out of all proportion', () => {
    assert.equal(readAuthorize(giving('a'.repeat(1_025)))(asked), undefined);
    assert.ok(readAuthorize(giving('a'.repeat(1_024)))(asked));
  });
  it('has nothing to ask about a path that is none', () =>
    assert.equal(readAuthorize({ verb: 'get', path: () => 'reports' })(asked), undefined));
  it('has nothing to ask about a path that somebody could read as another one', () =>
    assert.equal(readAuthorize({ verb: 'get', path: () => '/reports/../admin' })(asked), undefined));
  it('throws where a function gives no text', () =>
    assert.throws(() => readAuthorize(giving(7))(asked), { message: '"authorize.name" gave number, not text' }));
  it('throws where a function gives a promise', () =>
    assert.throws(() => readAuthorize(giving(Promise.resolve('x')))(asked), { message: '"authorize.name" gave object, not text' }));
  // Else the runner fails this test for a rejection that nobody handled.
  it('throws where a function gives a promise that rejects', () =>
    assert.throws(() => readAuthorize(giving(Promise.reject(new Error('late'))))(asked), {
      message: '"authorize.name" gave object, not text',
    }));
  it('throws an error of its own where a function throws', () => {
    const cause = Object.assign(new Error('boom'), { status: 200 });
    const failing = {
      verb: 'get',
      resource: () => {
        throw cause;
      },
    };
    assert.throws(() => readAuthorize(failing)(asked), { message: '"authorize.resource" failed', cause });
  });

  it('refuses what is no object', () => rejects('get', /"authorize" is get\. Write \{ verb, resource/));
  it('refuses a list', () => rejects([], /"authorize" is /));
  it('refuses true', () => rejects(true, /"authorize" is true/));
  it('refuses a name that it does not know', () => rejects({ verb: 'get', resources: 'pods' }, /does not know "resources"/));
  it('refuses a path beside a resource', () => rejects({ verb: 'get', resource: 'pods', path: '/x' }, /does not know "resource" here/));
  it('refuses no verb', () => rejects({ resource: 'pods' }, /lacks verb/));
  it('refuses no resource', () => rejects({ verb: 'get' }, /lacks resource/));
  it('refuses an empty name', () => rejects({ verb: 'get', resource: 'pods', name: '' }, /"authorize\.name" is text/));
  it('refuses a name of undefined', () => rejects({ verb: 'get', resource: 'pods', name: undefined }, /"authorize\.name".*not undefined/));
  it('refuses a name that is inherited and no text', () =>
    rejects(Object.create({ name: 7 }, Object.getOwnPropertyDescriptors({ verb: 'get', resource: 'pods' })), /"authorize\.name"/));
  it('refuses a path without its slash', () => rejects({ verb: 'get', path: 'x' }, /is a path such as/));
});

describe('plainPath', () => {
  const read = (url: string): string | undefined => plainPath({ url });

  it('takes the path alone', () => {
    assert.equal(read('/orders/7?x=/../#y'), '/orders/7');
    assert.equal(read('/orders/7#/../?x'), '/orders/7');
  });
  it('takes what was sent, not what a mount left of it', () =>
    assert.equal(plainPath({ url: '/7', originalUrl: '/orders/7' }), '/orders/7'));
  it('takes dots that are no segment, and other encodings, as they are', () => assert.equal(read('/a..b/.c/%20'), '/a..b/.c/%20'));
  it('takes no dot segments', () => {
    assert.equal(read('/public/../admin'), undefined);
    assert.equal(read('/public/..'), undefined);
    assert.equal(read('/./admin'), undefined);
  });
  it('takes no encoded dots', () => assert.equal(read('/public/%2E%2e/admin'), undefined));
  it('takes no encoded slash', () => {
    assert.equal(read('/public%2fadmin'), undefined);
    assert.equal(read('/public%2Fadmin'), undefined);
  });
  it('takes no percent sign that was encoded to be decoded twice', () => assert.equal(read('/public/%252e%252e/admin'), undefined));
  it('takes no backslash, encoded or not', () => {
    assert.equal(read('/public\\..\\admin'), undefined);
    assert.equal(read('/public%5c..%5cadmin'), undefined);
    assert.equal(read('/public%5C..%5Cadmin'), undefined);
  });
  it('takes no empty segment', () => assert.equal(read('//admin'), undefined));
  it('takes no whole URL', () => assert.equal(read('http://admin/'), undefined));
  it('takes no star of OPTIONS', () => assert.equal(read('*'), undefined));
  it('takes nothing for nothing', () => assert.equal(plainPath({}), undefined));
});

describe('readAccess', () => {
  const caller = createCaller({ namespace: 'api', name: 'api' }, { uid: 'u', groups: [], extra: {} }, ['shop'], Date.now() + 60_000);
  const answer = (status: object, more: object = {}, code = 201): Answer => ({
    status: code,
    body: JSON.stringify({ apiVersion: 'authorization.k8s.io/v1', kind: 'SubjectAccessReview', status, ...more }),
    retryAfterMs: undefined,
  });
  const outcome = (...of: Parameters<typeof answer>): string => {
    const verdict = readAccess(answer(...of), caller);
    return 'reason' in verdict ? `${verdict.outcome} ${verdict.reason}` : verdict.outcome;
  };

  it('takes allowed: true for a yes', () => assert.equal(outcome({ allowed: true, reason: 'RBAC: allowed' }), 'accepted'));
  it('takes allowed: false for a no', () => assert.equal(outcome({ allowed: false }), 'refused not_authorized'));
  it('takes denied for a no, whatever else is said', () =>
    assert.equal(outcome({ allowed: true, denied: true, evaluationError: 'context deadline exceeded' }), 'refused not_authorized'));
  it('takes a role that is missing for a no', () =>
    assert.equal(outcome({ allowed: false, evaluationError: 'clusterrole "x" not found' }), 'refused not_authorized'));
  it('takes an authorizer that was not reached for nobody knows', () => {
    assert.equal(outcome({ allowed: false, evaluationError: 'Post "https://authz/x": EOF' }), 'unavailable review_timed_out_inside');
    assert.equal(outcome({ allowed: false, evaluationError: 'x: context deadline exceeded' }), 'unavailable review_timed_out_inside');
  });
  it('takes an answer without a yes or a no for nobody knows', () => {
    assert.equal(outcome({}), 'unavailable not_a_subject_access_review');
    assert.equal(outcome({ allowed: 'true' }), 'unavailable not_a_subject_access_review');
    assert.equal(outcome({ allowed: true, denied: 'no' }), 'unavailable not_a_subject_access_review');
  });
  it('takes another kind of answer for nobody knows', () => {
    assert.equal(outcome({ allowed: true }, { kind: 'SelfSubjectAccessReview' }), 'unavailable not_a_subject_access_review');
    assert.equal(outcome({ allowed: true }, { apiVersion: 'v1' }), 'unavailable not_a_subject_access_review');
  });
  it('takes a yes about somebody else for nobody knows', () =>
    assert.equal(
      outcome({ allowed: true }, { spec: { user: 'system:serviceaccount:ops:ops' } }),
      'unavailable review_of_another_service_account',
    ));
  it('takes any other status for nobody knows', () => {
    assert.equal(outcome({ allowed: true }, {}, 403), 'unavailable own_permission_missing');
    assert.equal(outcome({ allowed: true }, {}, 500), 'unavailable api_server_error');
    assert.equal(outcome({ allowed: true }, {}, 302), 'unavailable unexpected_status');
  });
  it('tells the operator why, in 256 printable characters', () => {
    const verdict = readAccess(answer({ allowed: false, reason: `no\n${'x'.repeat(400)}` }), caller);
    assert.equal('detail' in verdict && verdict.detail?.length, 256);
    assert.match(String('detail' in verdict && verdict.detail), /^no x+$/);
  });
});

const rules = `
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: { name: order-reader, namespace: shop }
rules:
  - apiGroups: [shop.example]
    resources: [orders]
    verbs: [get]
  - apiGroups: [shop.example]
    resources: [orders/status]
    verbs: [update]
    resourceNames: ['7']
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: { name: api-reads-orders, namespace: shop }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: order-reader }
subjects: [{ kind: ServiceAccount, name: api, namespace: api }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: { name: report-reader }
rules: [{ nonResourceURLs: [/reports/*], verbs: [get] }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: ops-reads-reports }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: report-reader }
subjects: [{ kind: ServiceAccount, name: ops, namespace: ops }]
`;

const podOf = (name: string): object => ({
  'authentication.kubernetes.io/pod-name': [name],
  'authentication.kubernetes.io/pod-uid': [`uid of ${name}`],
});

describe('a guard with authorize', () => {
  let authority: Authority;
  let shop: Pod;
  let decisions: Decision[];
  let guards: Guard[];
  const listen = (decision: unknown): void => void decisions.push(decision as Decision);
  const orders = { verb: 'get', group: 'shop.example', resource: 'orders', namespace: 'shop' } as const;

  function guardWith(options: Partial<GuardOptions>, pod = shop): Guard {
    const guard = createGuard({ audience: 'shop', allow: 'any', apiServer: pod.apiServer, logger: quiet, ...options });
    guards.push(guard);
    return guard;
  }

  async function apply(manifest: string): Promise<void> {
    const folder = await mkdtemp(join(tmpdir(), 'k8s-sa-auth-'));
    try {
      await writeFile(join(folder, 'rules.yaml'), manifest);
      await authority.apply(folder);
    } finally {
      await rm(folder, { recursive: true });
    }
  }

  async function carrying(serviceAccount: string, method = 'GET'): Promise<IncomingRequest> {
    const token = await authority.token(serviceAccount, { audience: 'shop', pod: `${serviceAccount.split('/')[1]}-0` });
    return { method, headers: { 'x-client-id': token }, rawHeaders: ['X-Client-Id', token] };
  }

  // As the next request of the same caller: a guard takes the token off each.
  const again = (request: IncomingRequest): IncomingRequest => ({
    ...request,
    headers: { ...request.headers },
    rawHeaders: [...request.rawHeaders],
  });
  const reviews = (): number => authority.calls.filter(({ resource }) => resource === 'subjectaccessreviews').length;
  const last = (): Decision => decisions.at(-1) ?? assert.fail('no decision');
  const notAllowed = { name: 'AuthError', status: 403, code: 'caller_not_allowed' };
  const nobodyKnows = { name: 'ClusterError', status: 503, code: 'review_unavailable' };

  before(async () => {
    authority = await createAuthority();
    shop = await authority.pod('shop/shop');
    await authority.token('api/api', { audience: 'shop' });
    await authority.token('ops/ops', { audience: 'shop' });
    await apply(rules);
    subscribe(decisionChannel, listen);
  });
  after(async () => {
    unsubscribe(decisionChannel, listen);
    await authority.close();
  });
  beforeEach(() => {
    decisions = [];
    guards = [];
    mock.timers.enable({ apis: ['Date'], now: authority.now() });
  });
  afterEach(async () => {
    mock.timers.reset();
    await authority.recover();
    await Promise.all(guards.map((guard) => guard.close()));
  });

  it('lets a caller pass that a RoleBinding lets', async () => {
    const caller = await guardWith({ authorize: orders }).check(await carrying('api/api'));
    assert.equal(caller?.serviceAccount, 'api/api');
    assert.deepEqual([last().outcome, last().source], ['allowed', 'review']);
  });

  it('refuses a caller that no rule lets, and tells the operator who it was', async () => {
    await assert.rejects(guardWith({ authorize: orders }).check(await carrying('ops/ops')), notAllowed);
    assert.deepEqual([last().reason, last().caller?.serviceAccount, last().source], ['not_authorized', 'ops/ops', 'review']);
  });

  it('asks anew for whoever differs in anything that the cluster is told', async () => {
    const guard = guardWith({ authorize: orders });
    const user = { username: 'system:serviceaccount:api:api', uid: 'u', groups: ['system:authenticated'], extra: podOf('api-0') };
    const earlier = reviews();
    let differing = 0;
    for (const change of [{}, { uid: 'another' }, { groups: ['system:authenticated', 'ops'] }, { extra: podOf('api-1') }]) {
      const status = { authenticated: true, audiences: ['shop'], user: { ...user, ...change } };
      const body = JSON.stringify({ kind: 'TokenReview', apiVersion: 'authentication.k8s.io/v1', status });
      authority.fail({ status: 201, headers: { 'Content-Type': 'application/json' }, body }, { times: 2 });
      // Two tokens of one caller, and one question about it.
      for (let time = 0; time < 2; time++) assert.ok(await guard.check(await carrying('api/api')));
      differing += 1;
      assert.equal(reviews() - earlier, differing);
    }
  });

  it('asks about this very object', async () => {
    const name = ({ params }: AuthorizedRequest): string | undefined => params['order'];
    const guard = guardWith({ authorize: { ...orders, verb: 'update', subresource: 'status', name } });
    assert.ok(await guard.check(await carrying('api/api'), '/orders/:order', { order: '7' }));
    await assert.rejects(guard.check(await carrying('api/api'), '/orders/:order', { order: '8' }), notAllowed);
    await assert.rejects(guard.check(await carrying('api/api'), '/orders/:order', {}), notAllowed);
    assert.equal(last().reason, 'nothing_to_authorize');
  });

  it('reads an answer that repeats each character of the question as six', async () => {
    const long = '<'.repeat(1_024);
    const attributes = { verb: long, group: long, resource: long, subresource: long, namespace: long, name: long };
    const review = {
      kind: 'SubjectAccessReview',
      apiVersion: 'authorization.k8s.io/v1',
      spec: { user: 'system:serviceaccount:api:api', resourceAttributes: attributes },
      status: { allowed: true },
    };
    const body = JSON.stringify(review).replaceAll('<', String.raw`\u003c`);
    const headers = { 'Content-Type': 'application/json' };
    authority.fail({ status: 201, headers, body }, { times: 1, resource: 'subjectaccessreviews' });
    assert.ok(await guardWith({ authorize: attributes }).check(await carrying('api/api')));
  });

  it('asks about a path', async () => {
    const guard = guardWith({ authorize: { verb: 'get', path: ({ route }) => route } });
    assert.ok(await guard.check(await carrying('ops/ops'), '/reports/daily'));
    await assert.rejects(guard.check(await carrying('ops/ops'), '/accounts'), notAllowed);
    await assert.rejects(guard.check(await carrying('api/api'), '/reports/daily'), notAllowed);
  });

  it('asks nobody about a caller that allow does not let pass', async () => {
    const earlier = reviews();
    await assert.rejects(guardWith({ allow: ['ops/*'], authorize: orders }).check(await carrying('api/api')), notAllowed);
    assert.equal(last().reason, 'not_in_allow');
    assert.equal(reviews(), earlier);
  });

  it('remembers a yes for 60 s, then asks again', async () => {
    const guard = guardWith({ authorize: orders });
    const request = await carrying('api/api');
    const earlier = reviews();
    await guard.check(again(request));
    mock.timers.tick(59_999);
    await guard.check(again(request));
    assert.equal(reviews() - earlier, 1);
    assert.equal(last().source, 'cache');
    mock.timers.tick(1);
    await guard.check(again(request));
    assert.equal(reviews() - earlier, 2);
  });

  it('answers a remembered yes without a promise', async () => {
    const guard = guardWith({ authorize: orders });
    const request = await carrying('api/api');
    const caller = await guard.check(again(request));
    assert.equal(guard.checkNow(again(request)), caller);
  });

  it('remembers a no for 5 s, so that a rule that is added soon counts', async () => {
    const guard = guardWith({ authorize: { ...orders, resource: 'refunds' } });
    const request = await carrying('api/api');
    await assert.rejects(guard.check(again(request)), notAllowed);
    await apply(`
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: { name: refunder, namespace: shop }
rules: [{ apiGroups: [shop.example], resources: [refunds], verbs: [get] }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: { name: api-refunds, namespace: shop }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: refunder }
subjects: [{ kind: ServiceAccount, name: api, namespace: api }]
`);
    mock.timers.tick(4_999);
    await assert.rejects(guard.check(again(request)), notAllowed);
    assert.equal(last().source, 'cache');
    mock.timers.tick(1);
    assert.ok(await guard.check(again(request)));
  });

  it('keeps what is asked apart: caller, verb, object', async () => {
    const guard = guardWith({ authorize: { ...orders, name: ({ params }) => params['order'] } });
    const earlier = reviews();
    const request = await carrying('api/api');
    await guard.check(again(request), undefined, { order: '1' });
    await guard.check(again(request), undefined, { order: '2' });
    await guard.check(again(request), undefined, { order: '1' });
    await assert.rejects(guard.check(await carrying('ops/ops'), undefined, { order: '1' }), notAllowed);
    await assert.rejects(guard.with({ allow: 'any', authorize: { ...orders, verb: 'delete' } }).check(again(request)), notAllowed);
    assert.equal(reviews() - earlier, 4);
  });

  it('asks once for many that ask at once', async () => {
    const guard = guardWith({ authorize: orders });
    const request = await carrying('api/api');
    const earlier = reviews();
    await Promise.all(Array.from({ length: 50 }, () => guard.check(again(request))));
    assert.equal(reviews() - earlier, 1);
  });

  it('answers 503 while the cluster cannot be asked, but for what it allowed in the last 5 minutes', async () => {
    const guard = guardWith({ authorize: orders });
    const known = await carrying('api/api');
    await guard.check(again(known));
    const stranger = await carrying('ops/ops');
    await assert.rejects(guard.check(again(stranger)), notAllowed);
    authority.fail('outage');
    mock.timers.tick(60_000);
    assert.ok(await guard.check(again(known)));
    assert.equal(last().source, 'stale');
    await assert.rejects(guard.with({ allow: 'any', authorize: { ...orders, verb: 'list' } }).check(again(known)), nobodyKnows);
    await assert.rejects(guard.check(again(stranger)), nobodyKnows);
    mock.timers.tick(240_001);
    await assert.rejects(guard.check(again(known)), nobodyKnows);
  });

  it('answers 503 where we may not ask, and ready() says what to apply', async () => {
    const poor = await authority.pod('poor/poor', { reviews: false });
    await apply(`
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: { name: token-reviewer }
rules: [{ apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create] }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: poor-reviews-tokens }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: token-reviewer }
subjects: [{ kind: ServiceAccount, name: poor, namespace: poor }]
`);
    await guardWith({}, poor).ready();
    const guard = guardWith({ authorize: orders }, poor);
    await assert.rejects(guard.check(await carrying('api/api')), nobodyKnows);
    assert.equal(last().reason, 'own_permission_missing');
    const hint = await guard.ready().then(
      () => assert.fail('is ready'),
      (error: unknown) => String(error instanceof Error && error.message),
    );
    assert.match(hint, /^system:serviceaccount:poor:poor may not create SubjectAccessReviews\. Apply this/);
    await apply(hint.slice(hint.indexOf('apiVersion:')));
    await guard.ready();
    assert.ok(await guard.check(await carrying('api/api')));
  });

  it('is inherited by routes, replaced as a whole, and dropped by false', async () => {
    const guard = guardWith({ authorize: orders });
    const stranger = await carrying('ops/ops');
    await assert.rejects(guard.with({ allow: ['ops/*'] }).check(again(stranger)), notAllowed);
    assert.ok(await guard.with({ allow: ['ops/*'], authorize: { verb: 'get', path: '/reports/x' } }).check(again(stranger)));
    assert.ok(await guard.with({ allow: ['ops/*'], authorize: false }).check(again(stranger)));
  });

  it('is inherited from a guard that leaves the rest to its routes', async () => {
    const base = createOptInGuard({ apiServer: shop.apiServer, logger: quiet, authorize: orders });
    const guard = base.with({ audience: 'shop', allow: 'any' });
    guards.push(guard);
    assert.ok(await guard.check(await carrying('api/api')));
    await assert.rejects(guard.check(await carrying('ops/ops')), notAllowed);
  });

  it('only says what it would have done while observing', async () => {
    const guard = guardWith({ authorize: orders, mode: 'observe' });
    assert.equal(await guard.check(await carrying('ops/ops')), undefined);
    assert.deepEqual([last().enforced, last().reason], [false, 'not_authorized']);
    assert.equal((await guard.check(await carrying('api/api')))?.serviceAccount, 'api/api');
  });

  it('asks also where signatures alone decide who calls', async () => {
    const guard = guardWith({ authorize: orders, verification: 'signature' });
    await guard.ready();
    assert.ok(await guard.check(await carrying('api/api')));
    await assert.rejects(guard.check(await carrying('ops/ops')), notAllowed);
  });

  it('holds up nobody whom a signature alone admits while access cannot be reviewed', async () => {
    const guard = guardWith({ verification: 'signature' });
    const authorizing = guard.with({ allow: 'any', authorize: orders });
    await guard.ready();
    const waiting = await Promise.all(Array.from({ length: 40 }, (_, index) => carrying(`many/caller-${index}`)));
    await Promise.all(waiting.map((request) => guard.check(again(request))));
    authority.fail('slow', { delayMs: 500 });
    let answered = 0;
    const asks = waiting.map((request) => authorizing.check(request).finally(() => (answered += 1)));
    const settled = Promise.allSettled(asks);
    while (processStatus().guards.every(({ reviewsInFlight }) => reviewsInFlight < 32)) await setImmediate();
    assert.ok(await guard.check(await carrying('ops/ops')));
    assert.equal(answered, 0);
    await settled;
  });

  it('ends as a mistake of ours where a function throws, and not as a pass', async () => {
    const authorize: Authorize = {
      ...orders,
      name: () => {
        throw new Error('boom');
      },
    };
    await assert.rejects(guardWith({ authorize }).check(await carrying('api/api')), { name: 'Error', message: '"authorize.name" failed' });
  });

  it('waits for no more than one ServiceAccount may have in flight', async () => {
    const guard = guardWith({ authorize: { ...orders, name: ({ params }) => params['order'] } });
    const request = await carrying('api/api');
    await guard.check(again(request), undefined, { order: 'first' });
    const asks = Array.from({ length: 200 }, (_, order) =>
      guard.check(again(request), undefined, { order: String(order) }).then(
        () => 'allowed',
        (error: unknown) => (error as { code: string }).code,
      ),
    );
    const outcomes = await Promise.all(asks);
    assert.equal(outcomes.filter((outcome) => outcome === 'allowed').length, 108);
    assert.equal(outcomes.filter((outcome) => outcome === 'review_unavailable').length, 92);
  });
});

describe('createOptInGuard', () => {
  it('refuses a mode that it does not know, which would not be enforced', () => {
    const apiServer = { url: 'https://127.0.0.1:1', caFile: '/ca', tokenFile: '/token' };
    const mode = 'enforced' as 'enforce';
    assert.throws(() => createOptInGuard({ apiServer, mode }), { name: 'TypeError', message: /"mode" is 'enforce' or 'observe'/ });
  });
});
