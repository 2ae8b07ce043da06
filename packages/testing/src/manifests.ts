// The only place that reads manifests: which files, which documents, which kinds, and what a workload's pod looks like.
import { globSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { parseAllDocuments } from 'yaml';
import { decodeObject, formatFaults } from './decoding.ts';
import { isRecord, readRecord } from './json.ts';
import type { JsonRecord } from './json.ts';
import type { NewObject } from './objects.ts';
import type { PodSpec } from './kubelet.ts';

/** An object that a manifest holds. */
export interface Manifest {
  readonly file: string;
  /** Counted from 1. */
  readonly document: number;
  readonly object: NewObject;
}

const kinds: Readonly<Record<string, readonly string[]>> = {
  v1: ['Namespace', 'ServiceAccount', 'Secret', 'Pod', 'Service', 'ConfigMap'],
  'apps/v1': ['Deployment'],
  'rbac.authorization.k8s.io/v1': ['ClusterRole', 'ClusterRoleBinding', 'Role', 'RoleBinding'],
};
const clusterScoped = new Set(['Namespace', 'ClusterRole', 'ClusterRoleBinding']);

/**
 * Reads manifests in YAML, several documents to a file, in the order of the files. A path may be a folder, or hold `*`.
 * Throws an `Error` that names the file and the document.
 */
export function readManifests(paths: string | readonly string[]): readonly Manifest[] {
  return listManifests(paths).flatMap((file) => readFile(file));
}

/** The files of manifests. Throws an `Error` where a path does not exist, or there are none. */
export function listManifests(paths: string | readonly string[]): readonly string[] {
  return [paths].flat().flatMap((path) => listFiles(path));
}

/** The pod's labels and spec that a Deployment makes pods of. Throws an `Error` where there is none. */
export function readTemplate({ metadata: { name }, spec: own }: NewObject): {
  readonly labels: object | undefined;
  readonly spec: PodSpec;
} {
  const { metadata, spec } = readRecord(readRecord(own)['template']);
  if (!isRecord(spec)) throw new Error(`Deployment ${name} has no spec.template.spec`);
  const { labels } = readRecord(metadata);
  return { labels: isRecord(labels) ? labels : undefined, spec };
}

function listFiles(path: string): readonly string[] {
  const found = statSync(path, { throwIfNoEntry: false });
  if (found?.isDirectory() === true) {
    const inside = readdirSync(path).filter((name) => /\.(ya?ml|json)$/.test(name));
    if (inside.length === 0) throw new Error(`no manifest lies in ${path}`);
    return inside.toSorted().map((name) => join(path, name));
  }
  if (found !== undefined) return [path];
  if (!/[*?[{]/.test(path)) throw new Error(`there is no ${path}`);
  const files = globSync(path).toSorted();
  if (files.length === 0) throw new Error(`no file matches ${path}`);
  return files;
}

function readFile(file: string): readonly Manifest[] {
  return parseAllDocuments(readFileSync(file, 'utf8')).flatMap((parsed, index) => {
    const at = `${file}, document ${index + 1}`;
    const [error] = parsed.errors;
    if (error !== undefined) throw new Error(`${at}: ${error.message}`, { cause: error });
    const value: unknown = parsed.toJS();
    return value === null || value === undefined ? [] : [{ file, document: index + 1, object: parseObject(value, at) }];
  });
}

function parseObject(value: unknown, at: string): NewObject {
  const { apiVersion, kind, metadata, ...rest } = readRecord(value);
  if (typeof kind !== 'string' || typeof apiVersion !== 'string') throw new Error(`${at}: ${describeType({ apiVersion, kind })}`);
  if (!(kinds[apiVersion] ?? []).includes(kind)) {
    const known = Object.entries(kinds).map(([version, names]) => `${names.join(', ')} (${version})`);
    throw new Error(`${at}: kind ${kind} of ${apiVersion} is not supported, only ${known.join('; ')}`);
  }
  const { name, namespace, ...others } = readRecord(metadata);
  if (typeof name !== 'string' || name === '') throw new Error(`${at}: ${kind} has no metadata.name`);
  checkFields({ kind, apiVersion }, readRecord(value), at);
  const where = clusterScoped.has(kind) ? {} : { namespace: typeof namespace === 'string' ? namespace : 'default' };
  return { apiVersion, kind, metadata: { name, ...where, ...others }, ...rest };
}

function describeType(type: { readonly apiVersion: unknown; readonly kind: unknown }): string {
  const faulty = Object.entries(type).filter(([, value]) => typeof value !== 'string');
  const names = faulty.map(([name]) => name).join(' and ');
  if (faulty.some(([, value]) => value !== undefined && value !== null)) return `${names} must be a string`;
  return `${names} ${faulty.length === 1 ? 'is' : 'are'} missing`;
}

// As `kubectl apply` has it checked: a field that is misspelt would count for nothing.
function checkFields(type: { readonly kind: string; readonly apiVersion: string }, object: JsonRecord, at: string): void {
  const refuse = (why: string): Error => new Error(`${at}: ${type.kind} cannot be read: ${why}`);
  const { faults } = decodeObject(type, { object, faults: [] }, refuse);
  if (faults.length > 0) throw refuse(formatFaults(faults));
}
