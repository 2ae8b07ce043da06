// When to stop asking the cluster, and when to ask again.

import { type Log, printable } from './logger.ts';

/** Why the API server did not answer: fixed text, and more about it. */
export interface Trouble {
  readonly reason: string;
  readonly detail: string;
}

export interface Breaker {
  /** While open nobody's token is reviewed: the cluster would not answer. */
  isOpen(): boolean;
  /** What the last question of our own met, while open. */
  cause(): string | undefined;
  state(): 'shut' | 'asking' | 'open';
  /** Told of each review: whether the cluster answered, or failed. */
  report(outcome: 'answered' | 'failed'): void;
  close(): void;
}

const failuresInARow = 5;
const firstWaitMs = 1_000;
const longestWaitMs = 4_000;

/**
 * After five failures in a row it asks a question of our own, and opens only if that fails too: a token that makes the API server hang is one
 * caller's trouble. While open, only that question is asked, and its success closes it: no caller's token is ever the trial.
 */
export function createBreaker(askOurOwn: () => Promise<Trouble | undefined>, log: Log): Breaker {
  let failures = 0;
  let state: 'shut' | 'asking' | 'open' | 'ended' = 'shut';
  let waitMs = firstWaitMs;
  let timer: NodeJS.Timeout | undefined;
  let trouble: Trouble | undefined;

  const isOpen = (): boolean => state === 'open';

  async function ask(): Promise<void> {
    const last = trouble;
    trouble = await askOurOwn();
    if (state === 'ended') return;
    if (trouble === undefined) {
      if (isOpen()) log.info({ kind: 'breaker_open' }, 'The API server answers again, and tokens are reviewed');
      failures = 0;
      state = 'shut';
      waitMs = firstWaitMs;
      return;
    }
    state = 'open';
    // Told again where it has become another trouble.
    if (trouble.reason !== last?.reason) {
      const { reason, detail } = trouble;
      log.warn('breaker_open', trouble, `No token is reviewed until the API server answers our own question (${reason}): ${detail}`);
    }
    // ± 20 %, so that the replicas of a service do not ask as one.
    timer = setTimeout(() => void ask(), waitMs * (0.8 + Math.random() * 0.4)).unref();
    waitMs = Math.min(waitMs * 2, longestWaitMs);
  }

  return {
    isOpen,
    cause: () => trouble && printable(`${trouble.reason}: ${trouble.detail}`),
    state: () => (state === 'ended' ? 'shut' : state),
    report(outcome) {
      failures = outcome === 'answered' ? 0 : failures + 1;
      if (failures < failuresInARow || state !== 'shut') return;
      state = 'asking';
      void ask();
    },
    close() {
      state = 'ended';
      clearTimeout(timer);
    },
  };
}
