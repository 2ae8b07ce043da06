// What is remembered, for how long, and who waits for whom.

import { hash, randomBytes } from 'node:crypto';

import { LRUCache } from 'lru-cache';

import { maxInFlight } from './api-server.ts';
import type { Log } from './logger.ts';
import type { Verdict } from './token-review.ts';

export interface MemoryOptions {
  readonly cacheTtlMs: number;
  readonly refusalTtlMs: number;
  readonly staleIfErrorMs: number;
}

/** A verdict, and where it came from. */
export type Sourced = Verdict & { readonly source: 'cache' | 'review' | 'stale' };

type Accepted = Extract<Verdict, { outcome: 'accepted' }>;
type Refused = Extract<Verdict, { outcome: 'refused' }>;

export interface Verdicts {
  /** The part of a key that a set of audiences contributes: made once for each route. */
  prefix(audiences: readonly string[]): string;
  /** The key of a token. Neither the token nor a hash that another process could compute stays in memory. */
  key(prefix: string, token: string): string;
  /** The verdict that is still good, without waiting. */
  recall(key: string): Sourced | undefined;
  /** The verdict of a review: one in flight for each key, however many wait for it. A waiter that goes away cancels nothing. */
  ask(key: string, review: (budgetMs: number) => Promise<Verdict>): Promise<Sourced>;
}

const maxCallers = 10_000;
const maxRefusals = 1_000;
const maxWaiting = 1_000;
const budgetMs = 5_000;

export function createVerdicts({ cacheTtlMs, refusalTtlMs, staleIfErrorMs }: MemoryOptions, log: Log): Verdicts {
  // Separate, so that a flood of bad tokens cannot push out good callers.
  const acceptances = new LRUCache<string, { readonly verdict: Accepted; readonly reviewedAtMs: number; readonly expiresAtMs: number }>({
    max: maxCallers,
  });
  const refusals = new LRUCache<string, { readonly verdict: Refused; readonly reviewedAtMs: number }>({ max: maxRefusals });
  const flights = new Map<string, Promise<Sourced>>();
  const queue: (() => void)[] = [];
  let inFlight = 0;
  let waiting = 0;
  let isDown = false;
  const processKey = randomBytes(32).toString('base64');

  // A clock that was set back makes nothing younger than it is.
  function isWithin(sinceMs: number, ttlMs: number): boolean {
    const ageMs = Date.now() - sinceMs;
    return ageMs >= 0 && ageMs < ttlMs;
  }

  function acceptanceWithin(key: string, ttlMs: number): Accepted | undefined {
    const kept = acceptances.get(key);
    return kept !== undefined && isWithin(kept.reviewedAtMs, ttlMs) && Date.now() < kept.expiresAtMs ? kept.verdict : undefined;
  }

  async function fly(key: string, review: (budgetMs: number) => Promise<Verdict>): Promise<Sourced> {
    const deadlineMs = performance.now() + budgetMs;
    const limit = await takePlace(deadlineMs);
    if (limit !== undefined) return { ...limit, source: 'review' };
    try {
      const askedAtMs = Date.now();
      return settle(key, await review(deadlineMs - performance.now()), askedAtMs);
    } finally {
      inFlight -= 1;
      queue.shift()?.();
    }
  }

  // An acceptance counts from when the question was asked, which is when it was certainly still true.
  function settle(key: string, verdict: Verdict, askedAtMs: number): Sourced {
    if (verdict.outcome === 'unavailable') {
      tell(verdict);
      const stale = acceptanceWithin(key, staleIfErrorMs);
      return stale === undefined ? { ...verdict, source: 'review' } : { ...stale, source: 'stale' };
    }
    tell(undefined);
    if (verdict.outcome === 'refused') {
      acceptances.delete(key);
      if (refusalTtlMs > 0) refusals.set(key, { verdict, reviewedAtMs: Date.now() });
    } else if (Math.max(cacheTtlMs, staleIfErrorMs) > 0) {
      acceptances.set(key, { verdict, reviewedAtMs: askedAtMs, expiresAtMs: verdict.caller.expiresAt.getTime() });
    }
    return { ...verdict, source: 'review' };
  }

  function tell(trouble: { readonly reason: string; readonly detail?: string } | undefined): void {
    if (trouble === undefined ? isDown : !isDown) {
      isDown = trouble !== undefined;
      if (trouble === undefined) log.info({}, 'The API server reviews tokens again');
      else log.warn('review_unavailable', trouble, `Tokens cannot be reviewed (${trouble.reason}): ${trouble.detail ?? 'no detail'}`);
    }
  }

  // One of the places for reviews in flight, or the limit that stands in the way.
  async function takePlace(deadlineMs: number): Promise<Verdict | undefined> {
    if (inFlight < maxInFlight) {
      inFlight += 1;
      return undefined;
    }
    if (waiting >= maxWaiting) return { outcome: 'unavailable', reason: 'queue_full' };
    waiting += 1;
    const isMine = await new Promise<boolean>((resolve) => {
      const take = (): void => {
        clearTimeout(timer);
        inFlight += 1;
        resolve(true);
      };
      const timer = setTimeout(() => {
        queue.splice(queue.indexOf(take), 1);
        resolve(false);
      }, deadlineMs - performance.now());
      queue.push(take);
    });
    waiting -= 1;
    return isMine ? undefined : { outcome: 'unavailable', reason: 'queue_timeout' };
  }

  return {
    prefix(audiences) {
      // Each with its length, so that no two lists read alike.
      const named = audiences.toSorted().map((audience) => `${audience.length}:${audience}`);
      return `${processKey} review ${named.join('')} `;
    },
    key: (prefix, token) => hash('sha256', prefix + token, 'base64'),
    recall(key) {
      const accepted = acceptanceWithin(key, cacheTtlMs);
      if (accepted !== undefined) return { ...accepted, source: 'cache' };
      const refused = refusals.get(key);
      return refused !== undefined && isWithin(refused.reviewedAtMs, refusalTtlMs) ? { ...refused.verdict, source: 'cache' } : undefined;
    },
    async ask(key, review) {
      const flight = flights.get(key);
      if (flight === undefined) {
        const mine = fly(key, review).finally(() => flights.delete(key));
        flights.set(key, mine);
        return mine;
      }
      if (waiting >= maxWaiting) return { outcome: 'unavailable', reason: 'queue_full', source: 'review' };
      waiting += 1;
      try {
        return await flight;
      } finally {
        waiting -= 1;
      }
    },
  };
}
