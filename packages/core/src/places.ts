// Who waits for whom: the places for reviews in flight, the queue before them, and what one ServiceAccount may take of both.

import { maxInFlight } from './api-server.ts';

const maxWaiting = 1_000;
// Of one ServiceAccount, where it is certain whose token it is.
const maxInFlightOfOne = 8;
const maxWaitingOfOne = 100;

export interface Places {
  /** Takes one of the places for reviews in flight, waiting for it if need be; or tells which limit stands in the way. */
  take(spender: string | undefined, deadlineMs: number): Promise<string | undefined>;
  free(spender: string | undefined): void;
  /** Counts a request that waits for another's review; or tells which limit stands in the way. */
  wait(spender: string | undefined): string | undefined;
  waited(spender: string | undefined): void;
  counts(): { readonly inFlight: number; readonly waiting: number };
}

export function createPlaces(): Places {
  const all = { inFlight: 0, waiting: 0 };
  const ofOne = new Map<string, { inFlight: number; waiting: number }>();
  const queue: { readonly spender: string | undefined; readonly start: () => void }[] = [];

  function count(spender: string | undefined, what: 'inFlight' | 'waiting', by: 1 | -1): void {
    all[what] += by;
    if (spender === undefined) return;
    const mine = ofOne.get(spender) ?? { inFlight: 0, waiting: 0 };
    mine[what] += by;
    if (mine.inFlight + mine.waiting === 0) ofOne.delete(spender);
    else ofOne.set(spender, mine);
  }

  const mineOf = (spender: string | undefined): { inFlight: number; waiting: number } | undefined =>
    spender === undefined ? undefined : ofOne.get(spender);
  const isFree = (spender: string | undefined): boolean =>
    all.inFlight < maxInFlight && (mineOf(spender)?.inFlight ?? 0) < maxInFlightOfOne;

  function wait(spender: string | undefined): string | undefined {
    if (all.waiting >= maxWaiting) return 'queue_full';
    if ((mineOf(spender)?.waiting ?? 0) >= maxWaitingOfOne) return 'queue_of_caller_full';
    count(spender, 'waiting', 1);
    return undefined;
  }

  return {
    wait,
    waited: (spender) => count(spender, 'waiting', -1),
    counts: () => all,
    async take(spender, deadlineMs) {
      if (isFree(spender)) {
        count(spender, 'inFlight', 1);
        return undefined;
      }
      const limit = wait(spender);
      if (limit !== undefined) return limit;
      const isLate = await new Promise<boolean>((resolve) => {
        const entry = {
          spender,
          start: () => {
            clearTimeout(timer);
            count(spender, 'inFlight', 1);
            resolve(false);
          },
        };
        const timer = setTimeout(() => {
          queue.splice(queue.indexOf(entry), 1);
          resolve(true);
        }, deadlineMs - performance.now());
        queue.push(entry);
      });
      count(spender, 'waiting', -1);
      return isLate ? 'queue_timeout' : undefined;
    },
    free(spender) {
      count(spender, 'inFlight', -1);
      const next = queue.findIndex((entry) => isFree(entry.spender));
      if (next >= 0) queue.splice(next, 1)[0]?.start();
    },
  };
}
