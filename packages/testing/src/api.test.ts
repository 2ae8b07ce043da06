import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { createAuthority } from './authority.ts';
import type { Authority } from './authority.ts';
import { ask } from './fixtures/ask.ts';
import type { Answer } from './fixtures/ask.ts';
import type { Pod } from './pods.ts';

const reviews = '/apis/authentication.k8s.io/v1/tokenreviews';

const messageOf = ({ text }: Answer): string => JSON.parse(text).message;

// What the facts about a real API server tell, and the recorded cases of the replay do not hold.
describe('the API', () => {
  let authority: Authority;
  let reviewer: Pod;
  let administrator: Pick<Pod, 'apiServer'>;
  let token = '';

  before(async () => {
    authority = await createAuthority();
    reviewer = await authority.pod('store/store');
    token = await authority.token('api/api', { audience: 'store', pod: 'api-0' });
    const tokenFile = join(dirname(authority.caFile), 'admin-token');
    writeFileSync(tokenFile, JSON.parse(readFileSync(authority.kubeconfig, 'utf8')).users[0].user.token);
    administrator = { apiServer: { url: authority.url, caFile: authority.caFile, tokenFile } };
  });
  after(() => authority.close());

  const issue = (spec: object, serviceAccount = 'api'): Promise<Answer> =>
    ask(administrator, 'POST', `/api/v1/namespaces/api/serviceaccounts/${serviceAccount}/token`, { spec });

  it('ignores a bearer token behind two spaces, and warns', async () => {
    const answer = await ask(reviewer, 'POST', reviews, {}, { authorization: 'Bearer  x' });
    assert.equal(answer.status, 403);
    assert.match(messageOf(answer), /^tokenreviews\.authentication\.k8s\.io is forbidden: User "system:anonymous" cannot create/);
    assert.equal(
      answer.headers['warning'],
      '299 - "the provided Authorization header contains extra space before the bearer token, and is ignored"',
    );
  });

  it('answers 401 to a bearer token that it does not accept, without a challenge', async () => {
    const { status, headers } = await ask(reviewer, 'POST', reviews, {}, { authorization: 'Bearer garbage' });
    assert.equal(status, 401);
    assert.equal(headers['www-authenticate'], undefined);
    assert.equal(headers['x-kubernetes-pf-flowschema-uid'], undefined);
  });

  it('refuses an unknown field where validation is strict', async () => {
    const answer = await ask(reviewer, 'POST', `${reviews}?fieldValidation=Strict`, { spec: { token }, zzz: 1 });
    assert.equal(answer.status, 400);
    assert.match(messageOf(answer), /strict decoding error: unknown field "zzz"$/);
  });

  it('refuses values of the wrong type', async () => {
    const number = await ask(reviewer, 'POST', reviews, { spec: { token: 1 } });
    assert.equal(number.status, 400);
    assert.match(messageOf(number), /cannot unmarshal number into Go struct field TokenReviewSpec\.spec\.token of type string$/);
    assert.equal((await ask(reviewer, 'POST', reviews, { spec: { token, audiences: 'store' } })).status, 400);
  });

  it('answers 404 to paths that no group has, and to a review in a namespace', async () => {
    assert.equal((await ask(administrator, 'GET', '/apis/nope/v1')).text, '404 page not found\n');
    assert.equal((await ask(administrator, 'POST', '/apis/authentication.k8s.io/v1/namespaces/api/tokenreviews', {})).status, 404);
  });

  it('sends the key set as what it is, and not as plain JSON', async () => {
    const path = '/openid/v1/jwks';
    assert.equal((await ask(reviewer, 'GET', path, undefined, { accept: 'application/json' })).status, 406);
    const { headers } = await ask(reviewer, 'GET', path, undefined, { accept: 'application/jwk-set+json' });
    assert.equal(headers['content-type'], 'application/jwk-set+json');
    assert.equal(headers['cache-control'], 'public, max-age=3600');
  });

  it('says neither Connection nor Keep-Alive', async () => {
    const { headers } = await ask(reviewer, 'GET', '/readyz', undefined, { connection: 'keep-alive' });
    assert.equal(headers['keep-alive'], undefined);
    assert.equal(headers['connection'], undefined);
  });

  it('issues no token for less than ten minutes, nor for more than 2^32 seconds', async () => {
    const short = await issue({ expirationSeconds: 0 });
    assert.equal(short.status, 422);
    assert.match(messageOf(short), /Invalid value: 0: may not specify a duration less than 10 minutes$/);
    assert.match(messageOf(await issue({ expirationSeconds: 2 ** 32 + 1 })), /may not specify a duration larger than 2\^32 seconds$/);
  });

  it('binds no token to the pod of another ServiceAccount, nor to one of another uid', async () => {
    await authority.token('api/other', { audience: 'store' });
    const boundObjectRef = { kind: 'Pod', apiVersion: 'v1', name: 'api-0' };
    const other = await issue({ boundObjectRef }, 'other');
    assert.deepEqual(
      [other.status, messageOf(other)],
      [400, 'cannot bind token for serviceaccount "other" to pod running with different serviceaccount name.'],
    );
    const recreated = await issue({ boundObjectRef: { ...boundObjectRef, uid: '0' } });
    assert.equal(recreated.status, 409);
    assert.match(messageOf(recreated), /^Operation cannot be fulfilled on Pod "api-0": the UID in the bound object reference \(0\)/);
  });

  it('does not let a workload ask for its own token', async () => {
    const { status } = await ask(reviewer, 'POST', '/api/v1/namespaces/store/serviceaccounts/store/token', { spec: {} });
    assert.equal(status, 403);
  });
});
