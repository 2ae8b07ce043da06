// The only place that runs the processes of pods: what they find in their environment, and how they end.
import { spawn } from 'node:child_process';
import type { ChildProcess, StdioOptions } from 'node:child_process';
import { once } from 'node:events';
import { aName, check, readOptions } from './checks.ts';
import type { Checks } from './checks.ts';
import { isRecord } from './json.ts';
import type { Pod } from './pods.ts';

/** Options of {@link Authority.run}. */
export interface RunOptions {
  /** More environment, which replaces what the pod's own says. Default: none. */
  readonly env?: Readonly<Record<string, string>>;
  /** The working directory. Default: this process's. */
  readonly cwd?: string;
  /** As of `child_process.spawn`. Default `'inherit'`. */
  readonly stdio?: StdioOptions;
}

// spawn() itself looks at what `stdio` is.
const runOptions: Checks<RunOptions> = { env: check('an object', isRecord), cwd: aName, stdio: check('as of spawn()', () => true) };

/** The processes of a cluster's pods. */
export interface Processes {
  run(pod: Pod, command: string, args: readonly string[], options: RunOptions): ChildProcess;
  /** Ends a pod's processes: with SIGTERM, and what is left after `graceMs` with SIGKILL. Resolves when there is none. */
  stop(uid: string, graceMs: number): Promise<void>;
  stopAll(graceMs: number): Promise<void>;
  /** Sends all of them a SIGKILL, and does not wait. */
  killAll(): void;
}

/** Makes an empty set of processes. */
export function createProcesses(): Processes {
  const running = new Map<ChildProcess, string>();

  async function end(child: ChildProcess, graceMs: number): Promise<void> {
    const ended = once(child, 'close');
    child.kill(graceMs > 0 ? 'SIGTERM' : 'SIGKILL');
    const timer = setTimeout(() => child.kill('SIGKILL'), graceMs);
    await ended;
    clearTimeout(timer);
  }

  async function endAll(children: readonly ChildProcess[], graceMs: number): Promise<void> {
    await Promise.all(children.map((child) => end(child, graceMs)));
  }

  return {
    run({ uid, env: own }, command, args, options) {
      const { env, cwd, stdio = 'inherit' } = readOptions('run()', options, runOptions);
      // Of this process's environment only PATH: a pod has none of it either.
      const child = spawn(command, args, {
        stdio,
        env: { PATH: process.env['PATH'] ?? '', ...own, ...env },
        ...(cwd === undefined ? {} : { cwd }),
      });
      // One that could not be started has no pid.
      if (child.pid !== undefined) running.set(child, uid);
      child.once('close', () => running.delete(child));
      return child;
    },
    stop: (uid, graceMs) =>
      endAll(
        [...running].filter(([, pod]) => pod === uid).map(([child]) => child),
        graceMs,
      ),
    stopAll: (graceMs) => endAll([...running.keys()], graceMs),
    killAll() {
      for (const child of running.keys()) child.kill('SIGKILL');
    },
  };
}
