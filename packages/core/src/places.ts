// Who waits for whom: the places for reviews in flight, the queue before them, and what one ServiceAccount may take of both.

import { maxInFlight } from './api-server.ts';

const maxWaiting = 1_000;
// Of one ServiceAccount, where it is certain whose token it is. What was accepted lately gets half of all: many requests may come at once with
// what has just been forgotten, and others must still find a place.
const ofOneNew = { inFlight: 8, waiting: 100 } as const;
const ofOneKnown = { inFlight: maxInFlight / 2, waiting: maxWaiting / 2 } as const;

export interface Places {
  /**
   * Takes one of the places for reviews in flight, waiting for it if need be; or tells which limit stands in the way. `isKnown`: it was accepted
   * lately.
   */
  take(spender: string | undefined, isKnown: boolean, deadlineMs: number): Promise<string | undefined>;
  free(spender: string | undefined): void;
  /** Counts a request that waits for another's review; or tells which limit stands in the way. */
  wait(spender: string | undefined, isKnown: boolean): string | undefined;
  waited(spender: string | undefined): void;
  counts(): { readonly inFlight: number; readonly waiting: number };
}

export function createPlaces(): Places {
  const all = { inFlight: 0, waiting: 0 };
  const ofOne = new Map<string, { inFlight: number; waiting: number }>();
  const queue: { readonly spender: string | undefined; readonly isKnown: boolean; readonly start: () => void }[] = [];

  function count(spender: string | undefined, what: 'inFlight' | 'waiting', by: 1 | -1): void {
    all[what] += by;
    if (spender === undefined) return;
    const mine = ofOne.get(spender) ?? { inFlight: 0, waiting: 0 };
    mine[what] += by;
    if (mine.inFlight + mine.waiting === 0) ofOne.delete(spender);
    else ofOne.set(spender, mine);
  }

  const has = (spender: string | undefined, what: 'inFlight' | 'waiting'): number =>
    spender === undefined ? 0 : (ofOne.get(spender)?.[what] ?? 0);
  const limits = (isKnown: boolean): typeof ofOneNew | typeof ofOneKnown => (isKnown ? ofOneKnown : ofOneNew);
  const isFree = (spender: string | undefined, isKnown: boolean): boolean =>
    all.inFlight < maxInFlight && has(spender, 'inFlight') < limits(isKnown).inFlight;

  function wait(spender: string | undefined, isKnown: boolean): string | undefined {
    if (all.waiting >= maxWaiting) return 'queue_full';
    if (has(spender, 'waiting') >= limits(isKnown).waiting) return 'queue_of_caller_full';
    count(spender, 'waiting', 1);
    return undefined;
  }

  return {
    wait,
    waited: (spender) => count(spender, 'waiting', -1),
    counts: () => all,
    async take(spender, isKnown, deadlineMs) {
      if (isFree(spender, isKnown)) {
        count(spender, 'inFlight', 1);
        return undefined;
      }
      const limit = wait(spender, isKnown);
      if (limit !== undefined) return limit;
      const isLate = await new Promise<boolean>((resolve) => {
        const entry = {
          spender,
          isKnown,
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
      const next = queue.findIndex((entry) => isFree(entry.spender, entry.isKnown));
      if (next >= 0) queue.splice(next, 1)[0]?.start();
    },
  };
}
