// How the kubelet hands a token over and how it changes: projected volumes, the `..data` swap, reload, expiry.

import { channel } from 'node:diagnostics_channel';
import { constants, watch, type FSWatcher } from 'node:fs';
import { type FileHandle, open, stat } from 'node:fs/promises';
import { basename, dirname, isAbsolute, join, resolve as resolvePath } from 'node:path';

import { type TokenFileCode, TokenFileError } from './errors.ts';
import type { Log } from './logger.ts';
import { claimsOf, maxTokenLength, parseJwt, readClaims } from './screening.ts';

/** Where the kubelet puts the pod's own credential for the API server. */
export const serviceAccountDirectory = '/var/run/secrets/kubernetes.io/serviceaccount';

/** A path as this pod sees it: below `K8S_SA_AUTH_ROOT`, if that is set, which is how a local process plays a pod. */
export function podPath(path: string): string {
  const root = process.env['K8S_SA_AUTH_ROOT'];
  if (!root || !isAbsolute(path) || path.startsWith(join(resolvePath(root), '/'))) return path;
  return join(root, path);
}

/** Reads a small regular file (symlinks followed), trimmed. Throws a TokenFileError that says what is wrong with it. */
export async function readSmallFile(
  path: string,
  maxBytes: number,
  ifMissing = 'does not exist. Mount a projected volume there, with a serviceAccountToken source',
): Promise<string> {
  const unreadable = (what: string): TokenFileError => new TokenFileError('token_file_unreadable', path, `${path} ${what}`);
  let file: FileHandle | undefined;
  try {
    // O_NONBLOCK: a FIFO in its place must not hang the process.
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const stats = await file.stat();
    if (!stats.isFile()) throw unreadable('is not a regular file. Name the file itself, not the directory of the volume');
    if (stats.size > maxBytes) throw unreadable(`has ${stats.size} bytes, too many for what should be in it (at most ${maxBytes})`);
    const text = (await file.readFile('utf8')).trim();
    if (text === '') throw unreadable('is empty. The kubelet fills it; if it stays empty, look at the events of the pod');
    return text;
  } catch (error) {
    if (error instanceof TokenFileError) throw error;
    const code = (error as NodeJS.ErrnoException).code ?? 'unknown error';
    if (code === 'ENOENT') throw unreadable(ifMissing);
    throw unreadable(`cannot be read (${code}). The volume must be readable by the user that this process runs as`);
  } finally {
    await file?.close();
  }
}

/** A token and what it says of itself. */
export interface LoadedToken {
  readonly token: string;
  readonly audience: string;
  readonly expiresAtMs: number;
  readonly issuedAtMs: number | undefined;
}

/**
 * Reads a token that may be sent to another service: one compact JWT that is alive, for one audience that is not the API server's.
 * Anyone who receives a token for the API server could act as this pod there. Throws a TokenFileError.
 */
export async function loadSendableToken(path: string): Promise<LoadedToken> {
  const token = await readSmallFile(path, maxTokenLength);
  const unsendable = (what: string): TokenFileError => new TokenFileError('token_not_sendable', path, `The token in ${path} ${what}`);
  const jwt = parseJwt(token);
  if (jwt === undefined) throw unsendable('is not one compact JWT. The file must hold the token and nothing else');
  const claims = readClaims(jwt);
  const [audience, ...others] = claims?.audiences ?? [];
  if (claims === undefined || audience === undefined) {
    throw unsendable('has no expiry or no audience. Use a projected serviceAccountToken with an audience, not a token from a Secret');
  }
  if (others.length > 0)
    throw unsendable('names more than one audience, so one service could use it at another. Mint one token for each service');
  if (audience === claims.issuer || (await apiServerAudiences(path)).includes(audience)) {
    throw unsendable("is meant for the API server. Set the target's own audience in the pod's serviceAccountToken volume source");
  }
  if (Date.now() >= claims.expiresAtMs) throw expired(path, claims.expiresAtMs);
  return { token, audience, expiresAtMs: claims.expiresAtMs, issuedAtMs: claims.issuedAtMs };
}

// Known where the pod has its default token; a pod without one (automountServiceAccountToken: false) goes by the issuer alone. Where it is there
// and cannot be read nothing is sent, since it might forbid just that.
async function apiServerAudiences(path: string): Promise<readonly string[]> {
  const own = podPath(`${serviceAccountDirectory}/token`);
  const isThere = await stat(own).then(
    () => true,
    (error: NodeJS.ErrnoException) => !['ENOENT', 'ENOTDIR'].includes(error.code ?? ''),
  );
  if (!isThere) return [];
  const claims = claimsOf(await readSmallFile(own, maxTokenLength).catch(() => ''));
  if (claims !== undefined) return claims.audiences;
  throw new TokenFileError(
    'token_file_unreadable',
    path,
    `${own}, the pod's own token, cannot be read or is none. It tells whether the token in ${path} is meant for the API server, so that is not sent`,
  );
}

/** One reload of a token file: what is published on the `node:diagnostics_channel` named `k8s-sa-auth:token-reload`. Never holds a token. */
export interface TokenReload {
  /** The path as this process sees it. */
  readonly tokenFile: string;
  /** Why it failed; absent where it did not. */
  readonly code?: TokenFileCode;
  /** Of the token that is sent from now on: after a failure the last good one, if there is one. */
  readonly audience?: string;
  readonly expiresAt?: Date;
}

/** Subscribe with `diagnostics_channel.subscribe(tokenReloadChannel, …)`. A subscriber that throws ends the process. */
export const tokenReloadChannel = 'k8s-sa-auth:token-reload';

const reloads = channel(tokenReloadChannel);

export interface TokenFile {
  readonly path: string;
  /** The live token, without waiting; undefined if there is none (yet). No disk access. */
  peek(): string | undefined;
  /** The live token. Waits up to 10 s for a file that was never there. Throws a TokenFileError. */
  token(): Promise<string>;
  /** After `refused` was refused: the live token if that is another one by now. Looks at the file again, at most once a second. */
  tokenAfter(refused: string): Promise<string | undefined>;
  status(): {
    readonly loaded: LoadedToken | undefined;
    readonly reloadedAtMs: number | undefined;
    readonly error: TokenFileError | undefined;
  };
  close(): void;
}

const reloadEveryMs = 300_000;
const retryMs = 10_000;
const firstWaitMs = 10_000;
const graceMs = 1_500;
const pollMs = 100;
const lookAgainMs = 1_000;

/** Follows a token file. Returns at once; the first load is under way. Neither its watcher nor its timer keeps the process alive. */
export function createTokenFile(file: string, log: Log): TokenFile {
  const path = podPath(file);
  let loaded: LoadedToken | undefined;
  let reloadedAtMs: number | undefined;
  let reloadAtMs = 0;
  let error: TokenFileError | undefined;
  let warned = false;
  let loading: Promise<void> | undefined;
  let changed = false;
  let firstWait: Promise<void> | undefined;
  let stopWaiting = (): void => {};
  let lookedAt = -Infinity;
  let triedAt = -Infinity;
  let watcher: FSWatcher | undefined;
  let timer: NodeJS.Timeout | undefined;
  let grace: NodeJS.Timeout | undefined;
  let closed = false;

  const live = (now = Date.now()): LoadedToken | undefined => (loaded !== undefined && now < loaded.expiresAtMs ? loaded : undefined);

  function reload(): Promise<void> {
    changed = loading !== undefined;
    loading ??= load().finally(() => {
      loading = undefined;
      if (changed && !closed) void reload();
    });
    return loading;
  }

  async function load(): Promise<void> {
    // Before the file is read: a swap in between is told of.
    follow();
    try {
      loaded = await loadSendableToken(path);
      reloadedAtMs = Date.now();
      error = undefined;
      // Its directory may have come since it was looked for, and the file have changed in between.
      if (follow()) changed = true;
    } catch (cause) {
      if (!(cause instanceof TokenFileError)) throw cause;
      error = cause;
    }
    triedAt = performance.now();
    if (closed) return;
    schedule();
    report();
  }

  function report(): void {
    const { audience, expiresAtMs } = loaded ?? {};
    if (reloads.hasSubscribers) {
      const event: TokenReload = {
        tokenFile: path,
        ...(error && { code: error.code }),
        ...(audience !== undefined && { audience }),
        ...(expiresAtMs !== undefined && { expiresAt: new Date(expiresAtMs) }),
      };
      reloads.publish(event);
    }
    if (error === undefined) {
      if (warned) log.info({ kind: 'token_file', tokenFile: path }, `The token in ${path} can be sent again`);
      warned = false;
    } else if (loaded !== undefined) {
      warn();
    } else {
      // A volume that is mounted with the pod may be a moment late, and that is no trouble.
      grace ??= setTimeout(warn, graceMs).unref();
    }
  }

  function warn(): void {
    if (warned || error === undefined) return;
    warned = true;
    const kept = live() === undefined ? '' : '. The last good token is sent while it lives';
    log.warn('token_file', { tokenFile: path, code: error.code }, error.message + kept);
  }

  // Before expiry, from when 20 % of its life is left (the kubelet rotates at 80 %), and every 5 minutes: a subPath mount never tells.
  function schedule(): void {
    const now = Date.now();
    let waitMs = retryMs;
    if (loaded !== undefined && error === undefined) {
      const lifeMs = loaded.expiresAtMs - (loaded.issuedAtMs ?? now);
      waitMs = Math.min(reloadEveryMs, Math.max(retryMs, loaded.expiresAtMs - lifeMs / 5 - now));
    }
    reloadAtMs = now + waitMs;
    clearTimeout(timer);
    timer = setTimeout(() => void reload(), waitMs).unref();
  }

  // Watches the directory, where the kubelet renames `..data`; the file itself is a symlink that never changes. Where the directory is not there,
  // the next load tries again. When it is removed or renamed, its watcher reports the directory's own name: it is let go, and the next load
  // watches the new one. Returns whether watching begins with this call.
  function follow(): boolean {
    if (watcher !== undefined || closed) return false;
    const directory = dirname(path);
    try {
      watcher = watch(directory, { persistent: false }, (_event, name) => {
        if (name === basename(directory)) unfollow();
        if (name === null || ['..data', basename(path), basename(directory)].includes(name)) void reload();
      });
      watcher.on('error', unfollow);
      return true;
    } catch {
      watcher = undefined;
      return false;
    }
  }

  function unfollow(): void {
    watcher?.close();
    watcher = undefined;
  }

  async function waitForFirst(): Promise<void> {
    for (let waitedMs = 0; waitedMs < firstWaitMs && !closed; waitedMs += pollMs) {
      await (loading ?? reload());
      // Only a file that is not there can be late; one with the wrong thing in it will not mend itself.
      if (error?.code !== 'token_file_unreadable') return;
      await new Promise<void>((resolve) => {
        const poll = setTimeout(resolve, pollMs);
        stopWaiting = () => {
          clearTimeout(poll);
          resolve();
        };
      });
    }
  }

  void reload();

  return {
    path,
    peek() {
      if (closed) return undefined;
      const now = Date.now();
      if (now >= reloadAtMs && loaded !== undefined && loading === undefined) void reload();
      return live(now)?.token;
    },
    async token() {
      const token = this.peek();
      if (token !== undefined) return token;
      if (loaded === undefined) await (firstWait ??= waitForFirst());
      // Not for each of those that ask while there is none.
      const hasJustFailed = error !== undefined && performance.now() - triedAt < lookAgainMs;
      if (live() === undefined && !closed && !hasJustFailed) await (loading ?? reload());
      if (closed) throw new TokenFileError('token_file_unreadable', path, `The client that reads ${path} is closed`);
      const current = live();
      if (current !== undefined) return current.token;
      throw error ?? expired(path, loaded?.expiresAtMs ?? 0);
    },
    async tokenAfter(refused) {
      if (this.peek() === refused) {
        if (performance.now() - lookedAt >= lookAgainMs) {
          lookedAt = performance.now();
          void reload();
        }
        // The load under way may have begun before a swap; the one that follows it did not.
        while (loading !== undefined) await loading;
      }
      const current = this.peek();
      return current === refused ? undefined : current;
    },
    status: () => ({ loaded, reloadedAtMs, error }),
    close() {
      closed = true;
      clearTimeout(timer);
      clearTimeout(grace);
      stopWaiting();
      unfollow();
    },
  };
}

function expired(path: string, expiresAtMs: number): TokenFileError {
  return new TokenFileError(
    'token_expired',
    path,
    `The token in ${path} expired at ${new Date(expiresAtMs).toISOString()}, and it is ${new Date().toISOString()}. The kubelet has not rotated it: is the pod terminating, the volume mounted with subPath, or the clock off?`,
  );
}
