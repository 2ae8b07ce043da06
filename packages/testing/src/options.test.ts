import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { runAdapterCases } from './adapter-cases.ts';
import { createAuthority } from './authority.ts';
import type { Authority } from './authority.ts';
import type { Pod } from './pods.ts';

// What TypeScript would not let pass, and JavaScript does.
const wrong = (options: unknown): never => options as never;

describe('options', () => {
  let authority: Authority;
  let pod: Pod;

  before(async () => {
    authority = await createAuthority();
    pod = await authority.pod('shop/shop');
  });
  after(() => authority.close());

  async function refusal(call: () => unknown): Promise<string> {
    const error: unknown = await Promise.resolve()
      .then(call)
      .catch((thrown: unknown) => thrown);
    assert.ok(error instanceof TypeError, String(error));
    return error.message;
  }

  it('are refused where they are not known, with those that are', async () => {
    const misspelt: readonly (readonly [() => unknown, string])[] = [
      [
        () => createAuthority(wrong({ manifest: 'k8s' })),
        'createAuthority() does not know "manifest". It knows manifests, port, issuer, apiAudiences, anonymous, maxTokenExpirationSeconds',
      ],
      [() => authority.token('shop/shop', wrong({ aud: 'b' })), 'token() does not know "aud". It knows audience, expirationSeconds, pod'],
      [() => authority.pod('shop/shop', wrong({ token: { a: 'b' } })), 'pod() does not know "token". It knows tokens, reviews'],
      [() => authority.user('jane', wrong({ group: ['dev'] })), 'user() does not know "group". It knows groups, expiresAt'],
      [
        () => authority.count(wrong({ resorce: 'pods' })),
        'count() does not know "resorce". It knows verb, resource, serviceAccount, status',
      ],
      [() => authority.run(pod, 'true', [], wrong({ shell: true })), 'run() does not know "shell". It knows env, cwd, stdio'],
      [
        () => authority.delete('pod', `shop/${pod.name}`, wrong({ grace: 1 })),
        'delete() does not know "grace". It knows gracePeriodSeconds',
      ],
      [() => authority.fail('slow', wrong({ delayMS: 1 })), 'fail() does not know "delayMS". It knows times, delayMs, resource'],
      [() => authority.fail(wrong({ status: 500, text: 'x' })), 'an answer does not know "text". It knows status, headers, body'],
      [
        () => authority.rotateSigningKey(wrong({ retired: true })),
        'rotateSigningKey() does not know "retired". It knows retire, algorithm',
      ],
      [
        () => runAdapterCases(wrong({ name: 'x', seesPublicRoute: true, start: () => undefined })),
        'runAdapterCases() does not know "seesPublicRoute". It knows name, seesPublicRoutes, guardsUnknownPaths, offersOr, start',
      ],
    ];
    for (const [call, message] of misspelt) assert.equal(await refusal(call), message);
  });

  it('are refused where they are of another type', async () => {
    const mistaken: readonly (readonly [() => unknown, string | RegExp])[] = [
      [() => createAuthority(wrong({ port: 'x' })), `"port" must be a whole number from 0 to 65535, not 'x'`],
      [() => createAuthority({ port: 65_536 }), '"port" must be a whole number from 0 to 65535, not 65536'],
      [() => createAuthority(wrong({ manifests: 7 })), '"manifests" must be a path, or a list of paths, not 7'],
      [() => createAuthority(wrong('k8s')), /^createAuthority\(\) takes an object with manifests, port, .*, not 'k8s'$/],
      [() => authority.token('shop/shop', wrong({})), 'token() needs "audience": a name, or a list of at least one'],
      [() => authority.token('shop/shop', { audience: [] }), '"audience" must be a name, or a list of at least one, not []'],
      [
        () => authority.token('shop/shop', { audience: 'b', expirationSeconds: Number.NaN }),
        '"expirationSeconds" must be a whole number of seconds, not NaN',
      ],
      [
        () => authority.pod('shop/shop', wrong({ tokens: { a: { audience: 'b' } } })),
        `"tokens" must be an object whose values are strings, not { a: { audience: 'b' } }`,
      ],
      [() => authority.pod('shop/shop', wrong({ reviews: 'no' })), `"reviews" must be true or false, not 'no'`],
      [() => authority.user('jane', wrong({ groups: 'dev' })), `"groups" must be a list of names, not 'dev'`],
      [() => authority.user('jane', { expiresAt: new Date(Number.NaN) }), '"expiresAt" must be a Date, not Invalid Date'],
      [() => authority.count(wrong({ status: '201' })), `"status" must be a status, or 0, not '201'`],
      [() => authority.delete(wrong('deployment'), 'shop/shop'), `"kind" must be one of namespace, serviceaccount, pod, not 'deployment'`],
      [() => authority.delete('namespace', 'shop', { gracePeriodSeconds: 1 }), 'a namespace gets no grace period, only a pod does'],
      [
        () => authority.fail('slow', { delayMs: 2 ** 31 }),
        '"delayMs" must be a number of milliseconds from 0 to 2 ** 31 - 1, not 2147483648',
      ],
      [() => authority.fail({ status: 99 }), '"status" must be a whole number from 200 to 599, not 99'],
      [() => authority.rotateSigningKey(wrong({ retire: 1 })), '"retire" must be true or false, not 1'],
      [() => authority.advance(wrong('5')), `"ms" must be a number of milliseconds, not '5'`],
    ];
    for (const [call, message] of mistaken) {
      const said = await refusal(call);
      if (typeof message === 'string') assert.equal(said, message);
      else assert.match(said, message);
    }
  });

  it('count as left out where they are undefined', async () => {
    await authority.token('shop/shop', wrong({ audience: 'b', pod: undefined }));
    await authority.pod('shop/shop', wrong({ tokens: undefined }));
    const fault = authority.fail('outage', wrong({ times: undefined }));
    fault[Symbol.dispose]();
    await authority.recover();
  });
});
