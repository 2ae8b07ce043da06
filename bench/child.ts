// The processes of a measurement: how one is started, asked and ended, and how it answers.

import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';

/** A process that measures or is measured. */
export interface Child extends AsyncDisposable {
  /** Asks one thing at a time. Rejects with what the process threw, when it ends, and after two minutes. */
  ask<Answer>(question: unknown): Promise<Answer>;
}

interface Sent {
  readonly error?: string;
  readonly answer?: unknown;
}

const running = new Set<ChildProcess>();
const answerWithinMs = 120_000;

/** Starts `file` of this folder with an argument for its `answerParent`. */
export function startChild(file: string, argument: unknown = {}, execArgv: readonly string[] = []): Child {
  const child = fork(join(import.meta.dirname, file), [JSON.stringify(argument)], {
    execArgv: [...execArgv],
    // As deployed. Warnings are for whoever deploys; here they would stand in the middle of the results.
    env: { ...process.env, NODE_ENV: 'production', NODE_NO_WARNINGS: '1' },
    stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
  });
  running.add(child);
  // Express writes down each refusal. Told only where the process ends.
  let lastWords = '';
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    lastWords = (lastWords + text).slice(-4_096);
  });
  child.once('exit', () => running.delete(child));

  return {
    async ask<Answer>(question: unknown): Promise<Answer> {
      const ended = new AbortController();
      const { signal } = ended;
      const timer = setTimeout(() => ended.abort(new Error(`${file} does not answer`)), answerWithinMs);
      child.once('exit', (code, by) => ended.abort(new Error(`${file} ended (${by ?? code})\n${lastWords}`)));
      try {
        const answered = once(child, 'message', { signal });
        child.send({ question });
        const [{ error, answer }] = (await answered) as [Sent];
        if (error !== undefined) throw new Error(`${file}: ${error}`);
        return answer as Answer;
      } catch (error) {
        throw signal.aborted ? signal.reason : error;
      } finally {
        clearTimeout(timer);
        child.removeAllListeners('exit').once('exit', () => running.delete(child));
      }
    },
    async [Symbol.asyncDispose]() {
      if (!running.has(child)) return;
      const ended = once(child, 'exit');
      child.kill('SIGKILL');
      await ended;
    },
  };
}

/** Ends every process that was started, so that nothing goes on behind a terminal that was given back. */
export function endChildren(): void {
  for (const child of running) child.kill('SIGKILL');
}

/** In a process that was started: makes its answers from the argument. It ends with its parent, and not by the terminal's Ctrl-C. */
export function answerParent(start: (argument: never) => Promise<(question: never) => Promise<unknown>>): void {
  process.on('SIGINT', () => {});
  process.once('disconnect', () => process.exit());
  const started = start(JSON.parse(process.argv[2] ?? '{}') as never);
  process.on('message', ({ question }: { readonly question: never }) => {
    started
      .then((answer) => answer(question))
      .then(
        (answer) => process.send?.({ answer } satisfies Sent),
        (error: unknown) =>
          process.send?.({ error: error instanceof Error ? (error.stack ?? error.message) : String(error) } satisfies Sent),
      );
  });
}

/** A stretch of work in a process: what came of each second, and the CPU time of this process for each item. */
export interface Rate {
  readonly perSecond: number;
  readonly cpuMicros: number;
}

/** Times the work on `items` things. */
export async function rateOf(items: number, work: () => Promise<unknown>): Promise<Rate> {
  const cpu = process.cpuUsage();
  const startedMs = performance.now();
  await work();
  const ms = performance.now() - startedMs;
  const { user, system } = process.cpuUsage(cpu);
  return { perSecond: (items / ms) * 1_000, cpuMicros: (user + system) / items };
}

/** Works on `items` things, so many of them at a time. */
export async function inFlight(items: number, atATime: number, work: (index: number) => Promise<unknown>): Promise<void> {
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < items) await work(next++);
  };
  await Promise.all(Array.from({ length: atATime }, worker));
}

/** Does the work with an event loop that never sleeps: see docs/performance.md, "A client that sleeps". */
export async function awake<Result>(work: () => Promise<Result>): Promise<Result> {
  let isAwake = true;
  const spin = (): void => {
    if (isAwake) setImmediate(spin);
  };
  spin();
  try {
    return await work();
  } finally {
    isAwake = false;
  }
}
