// What lets a service ask the cluster about tokens, as YAML: one role for each right, so that granting one does not take another away.

import type { Identity } from '@k8s-sa-auth/core/diagnosis';
import type { Document } from 'yaml';

import { writeDocument } from './documents.ts';

/** Who is granted something: a ServiceAccount, or the username of a kubeconfig. */
export type Subject = Identity | { readonly username: string };

/** A right that a guard may need. */
export type Right = 'review-tokens' | 'review-access' | 'read-signing-keys';

interface Role {
  readonly name: string;
  /** Absent where every cluster has the role. */
  readonly rule?: { readonly apiGroups: readonly string[]; readonly resources: readonly string[]; readonly verbs: readonly string[] };
  readonly why: string;
}

const roles: Readonly<Record<Right, Role>> = {
  'review-tokens': {
    name: 'k8s-sa-auth-review-tokens',
    rule: { apiGroups: ['authentication.k8s.io'], resources: ['tokenreviews'], verbs: ['create'] },
    why: 'may ask the API server whose a token is, and nothing else',
  },
  'review-access': {
    name: 'k8s-sa-auth-review-access',
    rule: { apiGroups: ['authorization.k8s.io'], resources: ['subjectaccessreviews'], verbs: ['create'] },
    why: 'may ask the API server what a caller may do, and nothing else',
  },
  'read-signing-keys': {
    name: 'system:service-account-issuer-discovery',
    why: 'may read the public keys that tokens are signed with, as every ServiceAccount may by default',
  },
};

/** The documents that grant a right, a comment on each; together they are what `kubectl apply -f -` takes. */
export function grant(right: Right, subject: Subject): readonly Document[] {
  const { name, rule, why } = roles[right];
  const apiVersion = 'rbac.authorization.k8s.io/v1';
  const role =
    rule && writeDocument({ apiVersion, kind: 'ClusterRole', metadata: { name }, rules: [rule] }, [`Whoever is bound to it ${why}.`]);
  // No name may hold a slash or a percent sign. Colons, since namespaces and names have dashes: a-b/c and a/b-c must not share one binding.
  const who = 'username' in subject ? encodeURIComponent(subject.username).replaceAll('%', '=') : `${subject.namespace}:${subject.name}`;
  const subjects =
    'username' in subject
      ? [{ apiGroup: 'rbac.authorization.k8s.io', kind: 'User', name: subject.username }]
      : [{ kind: 'ServiceAccount', namespace: subject.namespace, name: subject.name }];
  const binding = writeDocument(
    {
      apiVersion,
      kind: 'ClusterRoleBinding',
      metadata: { name: `k8s-sa-auth-${right}:${who}` },
      roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'ClusterRole', name },
      subjects,
    },
    'username' in subject
      ? [`The user ${why}.`]
      : [`The service ${why}.`, 'It asks with the token that the kubelet mounts by default (automountServiceAccountToken).'],
  );
  return role === undefined ? [binding] : [role, binding];
}
