// The three services as their manifests describe them, each a process in its pod: which port, when one is ready, what it printed, how it ends.

import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import type { Authority, Pod } from '@k8s-sa-auth/testing';
import { parseAllDocuments } from 'yaml';

/** A service that runs. */
export interface Service {
  readonly name: string;
  readonly url: string;
  readonly pid: number;
  /** Ends it with a SIGTERM, as the kubelet does. Resolves to the exit code; null where it had to be killed. */
  stop(): Promise<number | null>;
}

/** What a manifest says of the container that a service runs in. */
export interface Container {
  readonly command: readonly string[];
  /** Where it says that it is ready. */
  readonly readyPath: string;
}

export interface StartOptions {
  /** The folder of its manifest. */
  readonly name: string;
  readonly pod: Pod;
  /** What differs from what the manifest says. */
  readonly env: Readonly<Record<string, string>>;
  /** Where it will listen. */
  readonly port: number;
}

/** Starts services, and keeps what they print. They end with the authority. */
export interface Launcher {
  /** Resolves when the service says that it is ready. Rejects if it ends, is not ready in time, or `signal` aborts. */
  start(options: StartOptions): Promise<Service>;
  /** What the services printed, the last lines of each. */
  output(): readonly { readonly name: string; readonly lines: readonly string[] }[];
}

const readyWithinMs = 15_000;
const killAfterMs = 5_000;
const keptLines = 40;

/** The manifest of a service. */
export function manifestOf(name: string): string {
  return fileURLToPath(new URL(`../${name}/k8s.yaml`, import.meta.url));
}

/** Reads the container of the Deployment in a service's manifest. */
export function readContainer(name: string): Container {
  interface Deployment {
    readonly kind: string;
    readonly spec: { readonly template: { readonly spec: { readonly containers: readonly Described[] } } };
  }
  interface Described {
    readonly command: readonly string[];
    readonly readinessProbe: { readonly httpGet: { readonly path: string } };
  }
  const objects = parseAllDocuments(readFileSync(manifestOf(name), 'utf8')).map((document) => document.toJS() as Deployment);
  const [described] = objects.find(({ kind }) => kind === 'Deployment')?.spec.template.spec.containers ?? [];
  if (described === undefined) throw new Error(`${manifestOf(name)} holds no Deployment`);
  return { command: described.command, readyPath: described.readinessProbe.httpGet.path };
}

/** Makes a launcher whose waits end with `signal`. */
export function createLauncher(authority: Pick<Authority, 'run'>, signal: AbortSignal): Launcher {
  const printed: { readonly name: string; lines: string[] }[] = [];

  return {
    async start({ name, pod, port, env }) {
      const url = `http://127.0.0.1:${port}`;
      const { command, readyPath } = readContainer(name);
      const [program = '', ...args] = command;
      const child = authority.run(pod, program === 'node' ? process.execPath : program, args, {
        cwd: fileURLToPath(new URL('..', import.meta.url)),
        env: { ...env, LISTEN_ADDR: `127.0.0.1:${port}` },
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      const kept = { name, lines: [] as string[] };
      printed.push(kept);
      for (const stream of [child.stdout, child.stderr]) {
        stream?.setEncoding('utf8').on('data', (text: string) => {
          kept.lines = [...kept.lines, ...text.split('\n').filter((line) => line !== '')].slice(-keptLines);
        });
      }
      await waitUntilReady(child, name, `${url}${readyPath}`, signal).catch((error: unknown) => {
        signal.throwIfAborted();
        throw error;
      });
      return { name, url, pid: child.pid ?? 0, stop: () => stop(child) };
    },
    output: () => printed,
  };
}

async function waitUntilReady(child: ChildProcess, name: string, url: string, signal: AbortSignal): Promise<void> {
  const ended = new AbortController();
  const end = (reason: string): void => ended.abort(new Error(`${name} ${reason}`));
  child.once('error', (error) => end(`cannot be started: ${error.message}`));
  child.once('exit', (code) => end(`ended with code ${code} before it was ready`));
  const timer = setTimeout(() => end(`was not ready within ${readyWithinMs / 1000} s`), readyWithinMs);
  const either = AbortSignal.any([signal, ended.signal]);
  try {
    while (!(await isReady(url, either))) await delay(25, undefined, { signal: either });
  } catch {
    either.throwIfAborted();
  } finally {
    clearTimeout(timer);
  }
}

async function isReady(url: string, signal: AbortSignal): Promise<boolean> {
  try {
    const { ok } = await fetch(url, { signal });
    return ok;
  } catch {
    signal.throwIfAborted();
    return false;
  }
}

async function stop(child: ChildProcess): Promise<number | null> {
  if (child.pid !== undefined && child.exitCode === null && child.signalCode === null) {
    const exited = once(child, 'exit');
    child.kill('SIGTERM');
    const timer = setTimeout(() => child.kill('SIGKILL'), killAfterMs);
    await exited;
    clearTimeout(timer);
  }
  return child.exitCode;
}

/** The wished-for ports, each replaced by any free one where it is taken. */
export async function choosePorts(wished: readonly number[]): Promise<readonly number[]> {
  const held = await Promise.all(wished.map((port) => hold(port).catch(() => hold(0))));
  await Promise.all(held.map(({ server }) => new Promise((resolve) => void server.close(resolve))));
  return held.map(({ port }) => port);
}

async function hold(wished: number): Promise<{ readonly server: ReturnType<typeof createServer>; readonly port: number }> {
  const server = createServer().listen(wished, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  return { server, port: typeof address === 'object' && address !== null ? address.port : wished };
}
