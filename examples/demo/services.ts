// The three services as processes of their own: which port, when one is ready, what it printed, how it ends.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

/** A service that runs. */
export interface Service {
  readonly name: string;
  readonly url: string;
  readonly pid: number;
  /** Ends it with a SIGTERM, as the kubelet does. Resolves to the exit code; null where it had to be killed. */
  stop(): Promise<number | null>;
}

export interface StartOptions {
  /** The folder of its `server.ts`. */
  readonly name: string;
  readonly port: number;
  /** Its whole environment, but for PATH and LISTEN_ADDR. */
  readonly env: Readonly<Record<string, string>>;
}

/** Starts services, keeps what they print, and ends those that are left. */
export interface Launcher {
  /** Resolves when `/readyz` says so. Rejects with what the service printed if it ends, is not ready in time, or `signal` aborts. */
  start(options: StartOptions): Promise<Service>;
  /** What the services printed, the last lines of each. */
  output(): readonly { readonly name: string; readonly lines: readonly string[] }[];
  stopAll(): Promise<void>;
}

const readyWithinMs = 15_000;
const killAfterMs = 5_000;
const keptLines = 40;

/** Makes a launcher whose waits end with `signal`. */
export function createLauncher(signal: AbortSignal): Launcher {
  const running = new Set<Service>();
  const printed: { readonly name: string; lines: string[] }[] = [];

  return {
    async start({ name, port, env }) {
      const url = `http://127.0.0.1:${port}`;
      const file = fileURLToPath(new URL(`../${name}/server.ts`, import.meta.url));
      const child = spawn(process.execPath, [file], {
        // Nothing of our own environment but PATH: a pod has none of it either.
        env: { PATH: process.env['PATH'] ?? '', ...env, LISTEN_ADDR: `127.0.0.1:${port}` },
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      const kept = { name, lines: [] as string[] };
      printed.push(kept);
      for (const stream of [child.stdout, child.stderr]) {
        stream.setEncoding('utf8').on('data', (text: string) => {
          kept.lines = [...kept.lines, ...text.split('\n').filter((line) => line !== '')].slice(-keptLines);
        });
      }
      const service: Service = { name, url, pid: child.pid ?? 0, stop: () => stop(child).finally(() => running.delete(service)) };
      running.add(service);
      await waitUntilReady(child, name, url, signal).catch((error: unknown) => {
        signal.throwIfAborted();
        throw error;
      });
      return service;
    },
    output: () => printed,
    async stopAll() {
      await Promise.all([...running].map((service) => service.stop()));
    },
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
    const { ok } = await fetch(`${url}/readyz`, { signal });
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
