import assert from 'node:assert/strict';
import { existsSync, lstatSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { createAuthority } from './authority.ts';
import type { Authority } from './authority.ts';
import { ask } from './fixtures/ask.ts';
import type { Answer } from './fixtures/ask.ts';
import type { Pod } from './pods.ts';
import { parseToken } from './signing.ts';

interface ReviewStatus {
  readonly authenticated?: boolean;
  readonly audiences?: readonly string[];
  readonly error?: string;
  readonly user: { readonly username?: string; readonly extra?: Readonly<Record<string, readonly string[]>> };
}

const reviewPath = '/apis/authentication.k8s.io/v1/tokenreviews';

function askReview(pod: Pod, token: string, audiences: readonly string[] = ['store']): Promise<Answer> {
  return ask(pod, 'POST', reviewPath, { spec: { token, audiences } });
}

async function review(pod: Pod, token: string, audiences?: readonly string[]): Promise<ReviewStatus> {
  const { status, text } = await askReview(pod, token, audiences);
  assert.equal(status, 201, text);
  const { status: reviewed }: { readonly status: ReviewStatus } = JSON.parse(text);
  return reviewed;
}

const claimsOf = (token: string): Readonly<Record<string, unknown>> => parseToken(token)?.claims ?? {};
const readToken = (pod: Pod, name: string): string => readFileSync(pod.tokenFile(name), 'utf8');

describe('createAuthority', () => {
  let authority: Authority;
  let reviewer: Pod;

  beforeEach(async () => {
    authority = await createAuthority();
    reviewer = await authority.pod('store/store', { tokens: { api: 'api' } });
  });
  afterEach(() => authority.close());

  describe('token', () => {
    it('issues a token that a review accepts for its audience alone', async () => {
      const token = await authority.token('api/api', { audience: 'store', pod: 'api-0' });
      const accepted = await review(reviewer, token, ['store', 'other']);
      assert.equal(accepted.authenticated, true);
      assert.deepEqual(accepted.audiences, ['store']);
      assert.equal(accepted.user.username, 'system:serviceaccount:api:api');
      assert.deepEqual(accepted.user.extra?.['authentication.kubernetes.io/pod-name'], ['api-0']);
      const refused = await review(reviewer, token, ['other']);
      assert.equal(Object.hasOwn(refused, 'authenticated'), false);
      assert.match(refused.error ?? '', /is invalid for the target audiences \["other"\]/);
    });

    it('leaves a token unbound where no pod is named', async () => {
      const token = await authority.token('api/api', { audience: ['store', 'other'] });
      const { aud, exp, iat, 'kubernetes.io': bound } = claimsOf(token);
      assert.deepEqual(aud, ['store', 'other']);
      assert.equal(Number(exp) - Number(iat), 600);
      assert.equal(Object.hasOwn(bound ?? {}, 'pod'), false);
    });

    it('rejects with the words of the API server', async () => {
      await assert.rejects(authority.token('api/api', { audience: 'store', expirationSeconds: 599 }), {
        message:
          'TokenRequest.authentication.k8s.io "" is invalid: spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes',
      });
    });

    it('rejects a name without a namespace', async () => {
      await assert.rejects(authority.token('api', { audience: 'store' }), TypeError);
    });

    it('is refused 60 seconds after it expired, and 10 more if it was just reviewed', async () => {
      const token = await authority.token('api/api', { audience: 'store' });
      authority.advance(655_000);
      assert.equal((await review(reviewer, token)).authenticated, true);
      authority.advance(9000);
      assert.equal((await review(reviewer, token)).authenticated, true);
      authority.advance(2000);
      assert.match((await review(reviewer, token)).error ?? '', /has expired/);
    });
  });

  describe('advance', () => {
    it('lets a token be issued that has expired, by a clock that is set back', async () => {
      authority.advance(-700_000);
      const expired = await authority.token('api/api', { audience: 'store' });
      authority.advance(700_000);
      const { exp } = claimsOf(expired);
      assert.ok(Number(exp) < Date.now() / 1000 - 60);
      assert.match((await review(reviewer, expired)).error ?? '', /has expired/);
      assert.equal((await review(reviewer, await authority.token('api/api', { audience: 'store' }))).authenticated, true);
    });
  });

  describe('delete', () => {
    it('invalidates the token of a pod, 10 seconds later where it was just reviewed', async () => {
      const [seen, unseen] = await Promise.all(
        ['store', 'store'].map((audience) => authority.token('api/api', { audience, pod: 'api-0' })),
      );
      await review(reviewer, seen ?? '');
      await authority.delete('pod', 'api/api-0');
      assert.match((await review(reviewer, unseen ?? '')).error ?? '', /has been invalidated/);
      assert.equal((await review(reviewer, seen ?? '')).authenticated, true);
      authority.advance(10_000);
      assert.match((await review(reviewer, seen ?? '')).error ?? '', /has been invalidated/);
    });

    it('gives a pod its grace period and a minute', async () => {
      const token = await authority.token('api/api', { audience: 'store', pod: 'api-0' });
      await authority.delete('pod', 'api/api-0', { gracePeriodSeconds: 30 });
      authority.advance(89_000);
      assert.equal((await review(reviewer, token)).authenticated, true);
      authority.advance(12_000);
      assert.match((await review(reviewer, token)).error ?? '', /has been invalidated/);
    });

    it('invalidates the tokens of a ServiceAccount, recreated or not', async () => {
      const token = await authority.token('api/api', { audience: 'store' });
      await authority.delete('serviceaccount', 'api/api');
      assert.match((await review(reviewer, token)).error ?? '', /serviceaccounts "api" not found/);
      await authority.token('api/api', { audience: 'store' });
      assert.match((await review(reviewer, token)).error ?? '', /service account UID .* does not match claim/);
    });

    it('deletes what is in a namespace', async () => {
      const pod = await authority.pod('api/api');
      const token = await authority.token('api/api', { audience: 'store' });
      await authority.delete('namespace', 'api');
      assert.match((await review(reviewer, token)).error ?? '', /not found/);
      assert.equal(authority.pods.includes(pod), false);
      await assert.rejects(authority.delete('pod', `api/${pod.name}`), { message: `pods "${pod.name}" not found` });
    });
  });

  describe('pod', () => {
    it('writes its files as the kubelet does', () => {
      const directory = dirname(reviewer.tokenFile('api'));
      assert.equal(readdirSync(directory).length, 3);
      assert.equal(readlinkSync(join(directory, 'api')), '..data/api');
      assert.match(readlinkSync(join(directory, '..data')), /^\.\.\d{4}_\d\d_\d\d_\d\d_\d\d_\d\d\.\w+$/);
      assert.ok(lstatSync(join(directory, '..data')).isSymbolicLink());
      assert.equal(statSync(join(directory, 'api')).mode & 0o777, 0o600);
    });

    it('has the API token of a year that a kubelet gets, the CA and its namespace', () => {
      const { exp, iat, aud, 'kubernetes.io': bound } = claimsOf(readFileSync(reviewer.apiServer.tokenFile, 'utf8'));
      assert.equal(Number(exp) - Number(iat), 31_536_000);
      assert.deepEqual(aud, ['https://kubernetes.default.svc.cluster.local']);
      assert.equal((bound as { readonly warnafter: number }).warnafter, Number(iat) + 3607);
      assert.equal(readFileSync(join(dirname(reviewer.apiServer.tokenFile), 'namespace'), 'utf8'), 'store');
      assert.equal(readFileSync(reviewer.apiServer.caFile, 'utf8'), readFileSync(authority.caFile, 'utf8'));
    });

    it('finds the same files below K8S_SA_AUTH_ROOT', () => {
      const { K8S_SA_AUTH_ROOT = '', KUBERNETES_SERVICE_HOST: host, KUBERNETES_SERVICE_PORT: port } = reviewer.env;
      assert.equal(join(K8S_SA_AUTH_ROOT, 'var/run/secrets/tokens/api'), reviewer.tokenFile('api'));
      assert.equal(`https://${host}:${port}`, authority.url);
    });

    it('lists its token files where one is not there', () => {
      assert.throws(() => reviewer.tokenFile('nope'), /no token file "nope": it has \/var\/run\/secrets\/tokens\/api, /);
    });

    it('rotates on demand, and the old token stays valid', async () => {
      const pod = await authority.pod('api/api', { tokens: { store: 'store' } });
      const before = readToken(pod, 'store');
      const directory = dirname(pod.tokenFile('store'));
      const data = readlinkSync(join(directory, '..data'));
      await pod.rotate();
      assert.notEqual(readToken(pod, 'store'), before);
      assert.notEqual(readlinkSync(join(directory, '..data')), data);
      assert.equal(existsSync(join(directory, data)), false);
      assert.equal((await review(reviewer, before)).authenticated, true);
      assert.equal((await review(reviewer, readToken(pod, 'store'))).authenticated, true);
    });

    it('rotates at four fifths of a token’s life', () => {
      const before = readToken(reviewer, 'api');
      authority.advance(2_879_000);
      assert.equal(readToken(reviewer, 'api'), before);
      authority.advance(2000);
      assert.notEqual(readToken(reviewer, 'api'), before);
    });

    it('rotates by itself', async ({ mock }) => {
      mock.timers.enable({ apis: ['setTimeout', 'Date'], now: Date.now() });
      const pod = await authority.pod('api/api', { tokens: { store: 'store' } });
      const before = readToken(pod, 'store');
      mock.timers.tick(2_881_000);
      assert.notEqual(readToken(pod, 'store'), before);
    });

    it('keeps the old token where no new one is issued', async () => {
      const before = readToken(reviewer, 'api');
      await authority.delete('serviceaccount', 'store/store');
      authority.advance(3_000_000);
      assert.equal(readToken(reviewer, 'api'), before);
    });

    it('may not review where that is not asked for', async () => {
      const pod = await authority.pod('api/api', { reviews: false });
      const { status, text } = await askReview(pod, 'x');
      assert.equal(status, 403);
      assert.match(text, /User \\"system:serviceaccount:api:api\\" cannot create resource \\"tokenreviews\\"/);
    });
  });

  describe('keys and certificates', () => {
    it('accepts tokens of the old key until it retires', async () => {
      const token = await authority.token('api/api', { audience: 'store' });
      authority.rotateSigningKey();
      assert.equal((await review(reviewer, token)).authenticated, true);
      const { text } = await ask(reviewer, 'GET', '/openid/v1/jwks');
      assert.equal(JSON.parse(text).keys.length, 2);
      authority.rotateSigningKey({ retire: true });
      assert.equal((await askReview(reviewer, token)).status, 401);
      await reviewer.rotate();
      assert.match((await review(reviewer, token)).error ?? '', /no keys found/);
      const late = await ask(reviewer, 'GET', '/openid/v1/jwks');
      assert.equal(JSON.parse(late.text).keys.length, 1);
    });

    it('serves with a certificate of the new CA, and publishes that', async () => {
      const before = readFileSync(authority.caFile, 'utf8');
      authority.rotateCa();
      assert.notEqual(readFileSync(authority.caFile, 'utf8'), before);
      assert.equal(readFileSync(reviewer.apiServer.caFile, 'utf8'), readFileSync(authority.caFile, 'utf8'));
      assert.equal((await ask(reviewer, 'GET', '/readyz')).status, 200);
      const stale = join(mkdtempSync(join(tmpdir(), 'stale-')), 'ca.crt');
      writeFileSync(stale, before);
      await assert.rejects(ask({ apiServer: { ...reviewer.apiServer, caFile: stale } }, 'GET', '/readyz'), /certificate/);
      rmSync(dirname(stale), { recursive: true });
    });
  });

  describe('fail', () => {
    it('refuses connections in an outage, and takes them again on the same port', async () => {
      authority.fail('outage');
      await assert.rejects(ask(reviewer, 'GET', '/readyz'), { code: 'ECONNREFUSED' });
      await authority.recover();
      assert.equal((await ask(reviewer, 'GET', '/readyz')).status, 200);
    });

    it('ends an outage when the last one is disposed of', async () => {
      const first = authority.fail('outage');
      const second = authority.fail('outage');
      first[Symbol.dispose]();
      await assert.rejects(ask(reviewer, 'GET', '/readyz'), { code: 'ECONNREFUSED' });
      second[Symbol.dispose]();
      await authority.recover();
      assert.equal((await ask(reviewer, 'GET', '/readyz')).status, 200);
    });

    it('strikes as often as was asked', async () => {
      authority.fail('too-many-requests', { times: 1 });
      const { status, headers, text } = await askReview(reviewer, 'x');
      assert.deepEqual([status, headers['retry-after'], text], [429, '1', 'Too many requests, please try again later.\n']);
      assert.match(String(headers['content-type']), /^text\/plain/);
      assert.equal((await askReview(reviewer, 'x')).status, 201);
    });

    it('cuts the connection once the request was read', async () => {
      authority.fail('reset');
      await assert.rejects(askReview(reviewer, 'x'), { code: 'ECONNRESET' });
      assert.deepEqual(authority.calls.at(-1), { verb: 'create', resource: 'tokenreviews', status: 0 });
    });

    it('breaks the body of a review', async () => {
      authority.fail('broken-body');
      const { status, text } = await askReview(reviewer, 'x');
      assert.equal(status, 201);
      assert.throws(() => JSON.parse(text), SyntaxError);
      assert.equal((await ask(reviewer, 'GET', '/readyz')).text, 'ok');
    });

    it('strikes where it was asked to, and nowhere else', async () => {
      authority.fail('broken-body', { resource: 'selfsubjectaccessreviews' });
      authority.fail({ status: 500, body: 'panic' }, { resource: '/openid/v1/jwks' });
      const access = { spec: { nonResourceAttributes: { verb: 'get', path: '/readyz' } } };
      const { status, text } = await ask(reviewer, 'POST', '/apis/authorization.k8s.io/v1/selfsubjectaccessreviews', access);
      assert.equal(status, 201);
      assert.throws(() => JSON.parse(text), SyntaxError);
      assert.equal((await ask(reviewer, 'GET', '/openid/v1/jwks')).text, 'panic');
      assert.equal((await review(reviewer, 'x')).authenticated, undefined);
      assert.equal((await ask(reviewer, 'GET', '/readyz')).text, 'ok');
    });

    it('ignores audiences and names none', async () => {
      authority.fail('ignores-audiences');
      const token = await authority.token('api/api', { audience: 'elsewhere' });
      const reviewed = await review(reviewer, token);
      assert.equal(reviewed.authenticated, true);
      assert.equal(Object.hasOwn(reviewed, 'audiences'), false);
    });

    it('refuses the reviewer', async () => {
      const forbidden = authority.fail('forbidden');
      assert.equal((await askReview(reviewer, 'x')).status, 403);
      authority.fail('unauthorized');
      assert.equal((await askReview(reviewer, 'x')).status, 401);
      forbidden[Symbol.dispose]();
      await authority.recover();
      assert.equal((await askReview(reviewer, 'x')).status, 201);
    });

    it('answers as it is told', async () => {
      authority.fail({ status: 503, headers: { 'Retry-After': '3', 'Content-Type': 'application/json' }, body: '{}' });
      const { status, headers, text } = await askReview(reviewer, 'x');
      assert.deepEqual([status, headers['retry-after'], headers['content-type'], text], [503, '3', 'application/json', '{}']);
    });

    it('is slow for as long as was asked', async () => {
      authority.fail('slow', { delayMs: 20 });
      const started = performance.now();
      assert.equal((await askReview(reviewer, 'x')).status, 201);
      assert.ok(performance.now() - started >= 19);
    });

    it('throws on a fault that does not exist, and on options that do not fit', () => {
      assert.throws(() => authority.fail('outage', { times: 1 }), TypeError);
      assert.throws(() => authority.fail('outage', { resource: 'tokenreviews' }), TypeError);
      assert.throws(() => authority.fail('slow', { times: 0 }), TypeError);
      assert.throws(() => authority.fail('slow', { delayMs: -1 }), TypeError);
      assert.throws(() => authority.fail('slow', { resource: '' }), TypeError);
    });
  });

  it('records every request, and no token', async () => {
    const token = await authority.token('api/api', { audience: 'store' });
    await review(reviewer, token);
    await ask(reviewer, 'GET', '/openid/v1/jwks');
    const who = { serviceAccount: 'store/store' };
    assert.deepEqual(authority.calls, [
      { verb: 'create', resource: 'tokenreviews', ...who, status: 201 },
      { verb: 'get', resource: '/openid/v1/jwks', ...who, status: 200 },
    ]);
    assert.doesNotMatch(JSON.stringify(authority.calls), /eyJ/);
  });

  it('writes a kubeconfig whose user may do anything', async () => {
    const { clusters, users } = JSON.parse(readFileSync(authority.kubeconfig, 'utf8'));
    assert.equal(clusters[0].cluster.server, authority.url);
    const tokenFile = join(dirname(authority.caFile), 'admin-token');
    writeFileSync(tokenFile, users[0].user.token);
    const apiServer = { url: authority.url, caFile: clusters[0].cluster['certificate-authority'], tokenFile };
    const path = '/api/v1/namespaces/store/serviceaccounts/store/token';
    const { status, text } = await ask({ apiServer }, 'POST', path, { spec: { audiences: ['api'] } });
    assert.equal(status, 201);
    assert.deepEqual(claimsOf(JSON.parse(text).status.token)['aud'], ['api']);
  });

  it('leaves nothing behind when it closes, and can be closed again', async () => {
    const root = dirname(authority.caFile);
    authority.fail('slow', { delayMs: 600_000 });
    const cut = assert.rejects(ask(reviewer, 'GET', '/readyz'));
    await authority.close();
    await cut;
    await authority.close();
    assert.equal(existsSync(root), false);
  });
});

describe('createAuthority, set up otherwise', () => {
  const whoami = '/apis/authentication.k8s.io/v1/selfsubjectreviews';
  const anonymous = { authorization: '' };

  it('lets nobody in without credentials, and says nothing of a token that is none', async (t) => {
    const authority = await createAuthority({ anonymous: false });
    t.after(() => authority.close());
    const pod = await authority.pod('store/store');
    assert.equal((await ask(pod, 'GET', '/livez', undefined, anonymous)).status, 401);
    assert.deepEqual(await review(pod, ' x'), { user: {} });
  });

  it('lets them in at some paths, and cuts the connection of a reviewer that sends a token which is none', async (t) => {
    const authority = await createAuthority({ anonymous: ['/livez'] });
    t.after(() => authority.close());
    const pod = await authority.pod('store/store');
    assert.equal((await ask(pod, 'GET', '/livez', undefined, anonymous)).status, 200);
    assert.equal((await ask(pod, 'GET', '/version', undefined, anonymous)).status, 401);
    await assert.rejects(review(pod, ' x'), { code: 'ECONNRESET' });
    assert.equal(authority.count({ resource: 'tokenreviews', status: 0 }), 1);
    assert.equal((await review(pod, 'x')).error, 'invalid bearer token');
  });

  it('shortens the life of tokens', async (t) => {
    const authority = await createAuthority({ maxTokenExpirationSeconds: 3600 });
    t.after(() => authority.close());
    const { exp, iat } = claimsOf(await authority.token('api/api', { audience: 'store', expirationSeconds: 7200 }));
    assert.equal(Number(exp) - Number(iat), 3600);
  });

  it('issues tokens of the first issuer, and accepts those of all', async (t) => {
    const authority = await createAuthority({ issuer: ['https://new.example', 'https://old.example'], apiAudiences: ['api'] });
    t.after(() => authority.close());
    const pod = await authority.pod('store/store');
    const token = await authority.token('api/api', { audience: 'store' });
    assert.equal(claimsOf(token)['iss'], 'https://new.example');
    assert.deepEqual(claimsOf(readToken(pod, 'token'))['aud'], ['api']);
    assert.equal((await review(pod, token)).authenticated, true);
    assert.equal((await ask(pod, 'POST', whoami, {})).status, 201);
    const { text } = await ask(pod, 'GET', '/.well-known/openid-configuration');
    assert.equal(JSON.parse(text).issuer, 'https://new.example');
  });

  it('signs with a curve after a rotation to ES256', async (t) => {
    const authority = await createAuthority();
    t.after(() => authority.close());
    const pod = await authority.pod('store/store');
    authority.rotateSigningKey({ algorithm: 'ES256' });
    const token = await authority.token('api/api', { audience: 'store' });
    assert.equal(parseToken(token)?.header['alg'], 'ES256');
    assert.equal((await review(pod, token)).authenticated, true);
    const [head, claims, signature = ''] = token.split('.');
    const forged = `${head}.${claims}.${signature.startsWith('A') ? 'B' : 'A'}${signature.slice(1)}`;
    assert.match((await review(pod, forged)).error ?? '', /error in cryptographic primitive/);
    const { keys } = JSON.parse((await ask(pod, 'GET', '/openid/v1/jwks')).text);
    assert.deepEqual(
      keys.map(({ kty, alg, crv }: Record<string, string>) => [kty, alg, crv]),
      [
        ['RSA', 'RS256', undefined],
        ['EC', 'ES256', 'P-256'],
      ],
    );
    const wrong = { algorithm: 'HS256' } as unknown as { algorithm: 'ES256' };
    assert.throws(() => authority.rotateSigningKey(wrong), {
      name: 'TypeError',
      message: '"algorithm" must be one of RS256, ES256, not \'HS256\'',
    });
  });

  it('refuses settings that make no sense', async () => {
    await assert.rejects(createAuthority({ issuer: [] }), { message: '"issuer" must be a name, or a list of at least one, not []' });
    await assert.rejects(createAuthority({ apiAudiences: [''] }), { message: /^"apiAudiences" must be a list of at least one name/ });
    await assert.rejects(createAuthority({ anonymous: [] }), { message: /^"anonymous" must be true, false or a list of paths/ });
    await assert.rejects(createAuthority({ maxTokenExpirationSeconds: 600 }), { message: /^"maxTokenExpirationSeconds" must be/ });
  });

  it('answers from memory while its storage does not answer', async (t) => {
    const authority = await createAuthority();
    t.after(() => authority.close());
    const pod = await authority.pod('store/store');
    const known = await authority.token('api/api', { audience: 'store' });
    const gone = await authority.token('api/gone', { audience: 'store' });
    await authority.delete('serviceaccount', 'api/gone');
    authority.fail('etcd-outage', { delayMs: 1 });
    assert.equal((await review(pod, known)).authenticated, true);
    const { error = '' } = await review(pod, gone);
    assert.equal(
      error,
      `[invalid bearer token, Get "${authority.url}/api/v1/namespaces/api/serviceaccounts/gone": context deadline exceeded]`,
    );
    assert.equal((await ask(pod, 'GET', '/livez')).status, 500);
    assert.equal((await ask(pod, 'GET', '/readyz')).status, 200);
  });
});
