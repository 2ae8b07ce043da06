// How a token gets into a pod, as YAML.

import { createHash } from 'node:crypto';
import { basename } from 'node:path/posix';

import type { Identity } from '@k8s-sa-auth/core/diagnosis';
import type { Document } from 'yaml';

import { writeDocument } from './documents.ts';

/** A token that a volume holds. */
export interface ProjectedToken {
  /** The file's name in the volume. */
  readonly path: string;
  readonly audience: string;
}

// The least that an API server grants: the shorter a token lives, the less it is worth to who steals it.
const expirationSeconds = 600;

function projected(tokens: readonly ProjectedToken[]): object {
  return {
    sources: tokens.map(({ path, audience }) => ({ serviceAccountToken: { path, audience, expirationSeconds } })),
  };
}

/** A caller, the Deployment that runs it, and the container in that. */
export interface Caller {
  readonly serviceAccount: Identity;
  readonly deployment: string;
  readonly container: string;
}

// A label (RFC 1123) of at most 48 characters; two audiences that would read alike are told apart.
function slugOf(audience: string): string {
  const slug = audience
    .toLowerCase()
    .replaceAll(/[^a-z0-9]+/g, '-')
    .slice(0, 40)
    .replaceAll(/^-+|-+$/g, '');
  if (slug === audience) return slug;
  return `${slug}-${createHash('sha256').update(audience).digest('hex').slice(0, 6)}`.replace(/^-/, '');
}

/** A strategic merge patch of the caller's Deployment that mounts a token for the audience. */
export function callerPatch({ serviceAccount, deployment, container }: Caller, audience: string): Document {
  const { namespace, name } = serviceAccount;
  const slug = slugOf(audience);
  const volume = `${slug}-token`;
  // A directory of its own, since a patch replaces the sources of a volume that is there.
  const mountPath = `/var/run/secrets/${slug}`;
  const spec = {
    serviceAccountName: name,
    containers: [{ name: container, volumeMounts: [{ name: volume, mountPath, readOnly: true }] }],
    volumes: [{ name: volume, projected: projected([{ path: 'token', audience }]) }],
  };
  const inSpec = ['spec', 'template', 'spec'];
  return writeDocument(
    { apiVersion: 'apps/v1', kind: 'Deployment', metadata: { name: deployment, namespace }, spec: { template: { spec } } },
    [
      `A token for ${JSON.stringify(audience)} in the pods of ${namespace}/${name}, in a volume of its own. A patch:`,
      `kubectl patch deployment ${deployment} -n ${namespace} --patch-file <this>, or one of kustomize's.`,
      `The service then names tokenFile: '${mountPath}/token' for its target.`,
    ],
    [
      [['metadata', 'name'], 'the Deployment of the caller'],
      [[...inSpec, 'containers', 0, 'name'], 'the container that calls'],
      [[...inSpec, 'containers', 0, 'volumeMounts', 0, 'readOnly'], noSubPath],
    ],
  );
}

const noSubPath = 'no subPath: it would never be rotated';

/** The part of a pod's spec that puts these tokens into a directory. */
export function tokenVolume(directory: string, tokens: readonly ProjectedToken[]): Document {
  const volume = slugOf(basename(directory)) || 'tokens';
  return writeDocument(
    {
      containers: [{ name: '<container>', volumeMounts: [{ name: volume, mountPath: directory, readOnly: true }] }],
      volumes: [{ name: volume, projected: projected(tokens) }],
    },
    ['In the spec of the pod template, in place of the volume and the mount that are there.'],
    [
      [['containers', 0, 'name'], 'the container that calls'],
      [['containers', 0, 'volumeMounts', 0, 'readOnly'], noSubPath],
    ],
  );
}
