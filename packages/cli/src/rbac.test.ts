import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';

import { type Authority, createAuthority } from '@k8s-sa-auth/testing';

import { formatDocuments } from './documents.ts';
import { send } from './fixtures/administrator.ts';
import { grant, type Right } from './rbac.ts';

describe('grant', () => {
  const directory = mkdtempSync(join(tmpdir(), 'rbac-'));
  const username = 'https://login.example#jane/50%';
  let authority: Authority;

  before(async () => {
    authority = await createAuthority();
  });
  after(async () => {
    await authority.close();
    rmSync(directory, { recursive: true });
  });

  async function mayJane(attributes: object): Promise<boolean> {
    const review = { apiVersion: 'authorization.k8s.io/v1', kind: 'SubjectAccessReview', spec: { user: username, ...attributes } };
    const answer = await send(authority, 'POST', '/apis/authorization.k8s.io/v1/subjectaccessreviews', review);
    return (answer as { status: { allowed: boolean } }).status.allowed;
  }

  // Of all that one right could be taken for, each is looked at.
  async function grantsOnly(right: Right): Promise<void> {
    const create = (group: string, resource: string): object => ({ resourceAttributes: { group, resource, verb: 'create' } });
    const asked = {
      'review-tokens': create('authentication.k8s.io', 'tokenreviews'),
      'review-access': create('authorization.k8s.io', 'subjectaccessreviews'),
      'read-signing-keys': { nonResourceAttributes: { path: '/openid/v1/jwks', verb: 'get' } },
    };
    const answers = async (): Promise<readonly boolean[]> => Promise.all(Object.values(asked).map(mayJane));
    const earlier = await answers();
    writeFileSync(join(directory, 'k8s.yaml'), formatDocuments(grant(right, { username })));
    await authority.apply(join(directory, 'k8s.yaml'));
    assert.deepEqual(
      await answers(),
      Object.keys(asked).map((name, at) => name === right || earlier[at]),
    );
    assert.equal(earlier[Object.keys(asked).indexOf(right)], false);
  }

  it('lets the user of a kubeconfig review tokens', () => grantsOnly('review-tokens'));
  it('lets the user of a kubeconfig ask what callers may do', () => grantsOnly('review-access'));
  it('lets the user of a kubeconfig read the signing keys', () => grantsOnly('read-signing-keys'));
});
