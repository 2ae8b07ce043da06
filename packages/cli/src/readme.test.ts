// What the README shows is what the command prints.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, describe, it } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';

import { run } from './fixtures/run.ts';

const readme = readFileSync(new URL('../README.md', import.meta.url), 'utf8');
const examples = [...readme.matchAll(/^```console\n\$ k8s-sa-auth (.+)\n([^]*?)^```$/gm)].map(([, args = '', out = '']) => ({ args, out }));

// What differs from pod to pod and from minute to minute.
function settle(text: string, { env: { K8S_SA_AUTH_ROOT: root = '/' } }: Pod): string {
  return text
    .replaceAll(root, '')
    .replaceAll(/https:\/\/[\d.]+:\d+/g, 'https://<address>')
    .replaceAll(/(?:in )?\b\d+ (?:second|minute|day)s?(?: ago)?|\bnow\b/g, '<moment>')
    .replaceAll(/\d{4}-\d\d-\d\dT[\d:]+Z/g, '<time>')
    .replaceAll(/JTI=[\da-f-]{36}/g, '<jti>')
    .replaceAll(/^(key id +)[\w-]{43}$/gm, '$1<key>')
    .replaceAll(/api-[\da-f]{10}-[\da-f]{5}/g, '<pod>');
}

describe('the README', () => {
  let authority: Authority;
  let api: Pod;
  let store: Pod;

  before(async () => {
    authority = await createAuthority();
    api = await authority.pod('api/api', { tokens: { 'api-token': 'secret-store' } });
    store = await authority.pod('secret-store/secret-store', { reviews: false });
  });
  after(() => authority.close());

  async function shows(beginning: string, pod: Pod): Promise<void> {
    const { args, out: shown } = examples.find((example) => example.args.startsWith(beginning)) ?? assert.fail(beginning);
    const [words = ''] = args.split(' < ');
    const input = readFileSync(api.tokenFile('api-token'), 'utf8');
    const { out, error } = await run(words.split(' '), { env: pod.env, input });
    assert.equal(error, '');
    assert.equal(settle(out, pod), settle(shown, pod));
  }

  it('shows what doctor says to a callee', () => shows('doctor --audience', store));
  it('shows what doctor says to a caller', () => shows('doctor --only', api));
  it('shows what inspect says', () => shows('inspect /var', api));
  it('shows what inspect says with a review', () => shows('inspect --review', store));
  it('shows what manifests prints', () => shows('manifests', store));
  it('shows nothing else', () => assert.equal(examples.length, 5));
});
