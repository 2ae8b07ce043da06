// Whether the tokens that this pod sends to others are there, alive, for one service each, and rotated.

import { readdirSync, statSync } from 'node:fs';
import { basename, dirname, isAbsolute, join } from 'node:path/posix';

import { inspectTokenFile, podPath, serviceAccountDirectory, type TokenFileReport } from '@k8s-sa-auth/core/diagnosis';

import { UsageError } from './arguments.ts';
import type { Finding } from './doctor.ts';
import { formatDocuments } from './documents.ts';
import { fromNow } from './terminal.ts';
import { tokenVolume } from './token-volume.ts';

/** A token file that is looked at, and the audience that its token should have, where that was said. */
export interface NamedFile {
  readonly file: string;
  readonly audience?: string;
}

/** Reads `path` or `path=audience`. Throws a UsageError. */
export function readNamedFile(text: string): NamedFile {
  const cut = text.indexOf('=');
  const [file, audience] = cut < 0 ? [text] : [text.slice(0, cut), text.slice(cut + 1)];
  if (file === '' || audience === '') throw new UsageError(`--token-file takes a path or path=audience, not "${text}"`);
  return { file, ...(audience !== undefined && { audience }) };
}

const secrets = '/var/run/secrets';
const ownDirectory = `${secrets}/tokens/`;

/** Judges these files, or those that lie below /var/run/secrets; `areNeeded` if none at all would be wrong. */
export async function* checkTokenFiles(named: readonly NamedFile[], areNeeded: boolean): AsyncGenerator<Finding> {
  const files = named.length > 0 ? named : listFiles(secrets, 3).map((file) => ({ file }));
  const seen = await Promise.all(files.map(look));
  // Other things are mounted there too; what holds a token, or lies where tokens are put, is meant.
  const meant = seen.filter(({ file, report }) => named.length > 0 || report.token !== undefined || file.startsWith(ownDirectory));
  if (meant.length === 0) {
    const status = areNeeded ? 'wrong' : 'skipped';
    yield { check: 'token-file', status, message: `no token file below ${podPath(secrets)}: --token-file names others` };
  }
  const nowMs = Date.now();
  for (const one of meant) {
    const { status, message, isVolumeWrong } = judge(one, nowMs);
    // A relative path does not say where a volume is mounted.
    const mend = isVolumeWrong && isAbsolute(one.file) && { mend: { for: 'pod' as const, yaml: volumeFor(one, meant) } };
    yield { check: 'token-file', subject: one.file, status, message, ...mend };
  }
}

interface Seen extends NamedFile {
  readonly report: TokenFileReport;
}

async function look(named: NamedFile): Promise<Seen> {
  return { ...named, report: await inspectTokenFile(named.file) };
}

interface Judgement extends Pick<Finding, 'status' | 'message'> {
  readonly isVolumeWrong?: boolean;
}

// The kubelet looks at a pod's volumes every 60 to 90 s.
const kubeletMs = 90_000;
const skewMs = 60_000;
const dayMs = 86_400_000;

function judge({ audience: wanted, report }: Seen, nowMs: number): Judgement {
  const { path, error, token, isRotated, writtenAt } = report;
  const wrong = (message: string, isVolumeWrong: boolean): Judgement => ({ status: 'wrong', message, isVolumeWrong });
  const neverRotated = 'It is a plain file, not a link into the volume: mounted with subPath, or copied, it is never rotated';
  if (error !== undefined) {
    const isDead = error.code === 'token_expired';
    const told = token !== undefined && !isDead ? `. Its audiences: ${listAudiences(token.audiences)}` : '';
    return wrong(error.message + (isDead && !isRotated ? ` ${neverRotated}` : told), !isDead || !isRotated);
  }
  const { audiences = [], issuedAt, expiresAt = new Date(nowMs) } = token ?? {};
  const ends = `expires ${fromNow(expiresAt, nowMs)}`;
  const is = `${path}: for ${listAudiences(audiences)}`;
  if (wanted !== undefined && !audiences.includes(wanted)) return wrong(`${is}, not for "${wanted}"`, true);
  if (!isRotated) return wrong(`${is}, ${ends}. ${neverRotated}`, true);
  if (issuedAt === undefined) return { status: 'ok', message: `${is}, ${ends}` };

  const behindMs = issuedAt.getTime() - Math.min(nowMs, writtenAt?.getTime() ?? nowMs);
  if (behindMs > skewMs) {
    const seconds = Math.round(behindMs / 1000);
    return {
      status: 'warning',
      message: `${is}, ${ends}. This node's clock is ${seconds} s behind the API server's, by which tokens end`,
    };
  }
  // kubelet, token_manager.go: at 80 % of its life, and after a day at the latest.
  const lifeMs = expiresAt.getTime() - issuedAt.getTime();
  const due = new Date(issuedAt.getTime() + Math.min(lifeMs * 0.8, dayMs));
  const lateMs = nowMs - due.getTime();
  if (lateMs > kubeletMs) {
    return wrong(
      `${is}, ${ends}. The kubelet should have rotated it ${fromNow(due, nowMs)}: look at the events of the pod and its node`,
      false,
    );
  }
  if (lateMs > 0) return { status: 'warning', message: `${is}, ${ends}. Its rotation is due; the kubelet comes by every 60 to 90 s` };
  const written = writtenAt === undefined ? '' : `, written ${fromNow(writtenAt, nowMs)}`;
  return { status: 'ok', message: `${is}, ${ends}${written}; due for rotation ${fromNow(due, nowMs)}` };
}

function listAudiences(audiences: readonly string[]): string {
  return audiences.length === 0 ? 'none' : audiences.map((audience) => `"${audience}"`).join(', ');
}

// A volume replaces the one that is there, so it holds the other tokens of the directory too.
function volumeFor({ file }: Seen, meant: readonly Seen[]): string {
  const directory = dirname(file);
  const tokens = meant
    .filter((one) => dirname(one.file) === directory)
    .map(({ file: path, audience, report: { token, error } }) => {
      const [own, ...others] = token?.audiences ?? [];
      const isUsable = own !== undefined && others.length === 0 && error?.code !== 'token_not_sendable';
      return { path: basename(path), audience: audience ?? (isUsable ? own : '<audience>') };
    });
  return formatDocuments([tokenVolume(directory, tokens)]);
}

// As the pod names them. The pod's own credential is for the API server, and no token to send.
function listFiles(directory: string, depth: number): readonly string[] {
  if (directory === serviceAccountDirectory) return [];
  const listed = namesIn(podPath(directory)).toSorted();
  return listed.flatMap((name) => {
    const path = join(directory, name);
    if (name.startsWith('..')) return [];
    if (!isDirectory(podPath(path))) return [path];
    return depth > 0 ? listFiles(path, depth - 1) : [];
  });
}

function namesIn(directory: string): readonly string[] {
  try {
    return readdirSync(directory);
  } catch {
    return [];
  }
}

function isDirectory(path: string): boolean {
  try {
    return statSync(path).isDirectory();
  } catch {
    return false;
  }
}
