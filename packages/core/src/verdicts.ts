// What is remembered, for how long, and what is given in an outage.

import { hash, randomBytes } from 'node:crypto';

import { LRUCache } from 'lru-cache';

import { attemptMs } from './api-server.ts';
import type { Breaker } from './breaker.ts';
import { packCaller, unpackCaller } from './caller.ts';
import type { Log } from './logger.ts';
import { createPlaces, type Places } from './places.ts';
import type { Verdict } from './token-review.ts';

export interface MemoryOptions {
  readonly verification: 'review' | 'signature';
  readonly cacheTtlMs: number;
  readonly refusalTtlMs: number;
  readonly staleIfErrorMs: number;
}

/** A verdict, and where it came from. */
export type Sourced = Verdict & { readonly source: 'cache' | 'review' | 'signature' | 'stale' };

type AskCluster = (leftMs: number) => Promise<Verdict>;

type Accepted = Extract<Verdict, { outcome: 'accepted' }> & { readonly source: 'cache' };
type Refused = Extract<Sourced, { outcome: 'refused' }>;

// Leads to the memory's own entry, so that nothing is accepted by it that would not be accepted without it.
interface Held {
  readonly prefix: string;
  readonly token: string;
  readonly key: string;
  /** What the entry said, and what that means. */
  readonly packed: string;
  readonly accepted: Accepted;
}

export interface Verdicts {
  /** The part of a key that a set of audiences contributes: made once for each route. */
  prefix(audiences: readonly string[]): string;
  /** The key of a token. Neither the token nor a hash that another process could compute stays in memory, but for what `hold` holds. */
  key(prefix: string, token: string): string;
  /** Holds the last accepted token of a connection for as long as that lives: comparing costs a tenth of hashing (docs/decisions/006). */
  hold(connection: object | null | undefined, prefix: string, token: string, key: string): void;
  /** What `recall` would say of the token's key, where this is the token that the connection holds and it is still accepted. */
  recallHeld(connection: object | null | undefined, prefix: string, token: string): Sourced | undefined;
  /** The verdict that is still good, without waiting. */
  recall(key: string): Sourced | undefined;
  /** Whether a review accepted this token lately, so that it is certainly not forged. */
  isKnown(key: string): boolean;
  /**
   * The verdict of a review: one in flight for each key, however many wait for it. A waiter that goes away cancels nothing.
   * `spender` is the ServiceAccount whose budget it spends, where that is certain; `deadlineMs` is when it has waited long enough, on the clock of
   * `performance.now()`. Default: `patienceMs` from now.
   */
  ask(key: string, spender: string | undefined, review: AskCluster, deadlineMs?: number): Promise<Sourced>;
  /** How many acceptances and how many refusals are in memory. */
  sizes(): readonly [number, number];
}

const maxCallers = 10_000;
// As objects; the others wait as strings.
const maxUnpacked = 128;
const maxRefusals = 1_000;
/** How long a request waits for one verdict, its turn and its place included. With `authorize` there are two, each with as long. */
export const patienceMs = 5_000;
const warnEveryMs = 10_000;
// Of one ServiceAccount, of either memory.
const shareOfOne = 1 / 10;

/** `places` are shared where two memories ask the same server; `subject` is what they review, for the log. */
export function createVerdicts(
  options: MemoryOptions,
  breaker: Pick<Breaker, 'isOpen' | 'cause' | 'report'>,
  log: Log,
  places: Places = createPlaces(),
  subject: 'Tokens' | 'Access' = 'Tokens',
): Verdicts {
  const { verification: source, cacheTtlMs, refusalTtlMs } = options;
  // By signature there is no last review that could count: without keys, nobody knows.
  const staleIfErrorMs = source === 'review' ? options.staleIfErrorMs : 0;
  // Separate, so that a flood of bad tokens cannot push out good callers.
  const acceptances = createMemory<string>(maxCallers);
  const unpacked = new LRUCache<string, Accepted>({ max: maxUnpacked });
  const refusals = createMemory<Refused>(maxRefusals);
  const flights = new Map<string, Promise<Sourced>>();
  const processKey = randomBytes(32).toString('base64');
  const held = new WeakMap<object, Held>();
  const outOfTime = { outcome: 'unavailable', reason: 'queue_timeout', source } as const;
  // Whether the cluster failed when it was last asked, and whether the log was told of trouble: not of each, so as not to be flooded.
  let isFailing = false;
  let isDown = false;
  let warnedAtMs = -Infinity;

  const ask: Verdicts['ask'] = async (key, spender, review, deadlineMs = performance.now() + patienceMs) => {
    if (breaker.isOpen()) return withoutAsking(key);
    const flight = flights.get(key);
    if (flight === undefined) {
      const mine = fly(key, spender, review, deadlineMs).finally(() => flights.delete(key));
      flights.set(key, mine);
      return mine;
    }
    const limit = places.wait(spender, isKnown(key));
    if (limit !== undefined) return { outcome: 'unavailable', reason: limit, source };
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<Sourced>((resolve) => {
      timer = setTimeout(() => resolve(outOfTime), deadlineMs - performance.now());
    });
    const joined = await Promise.race([flight, late]).finally(() => {
      clearTimeout(timer);
      places.waited(spender);
    });
    // The one that asked may have had less time left.
    const isTheirs = joined.outcome === 'unavailable' && joined.reason === outOfTime.reason && performance.now() < deadlineMs;
    return isTheirs ? ask(key, spender, review, deadlineMs) : joined;
  };

  async function fly(key: string, spender: string | undefined, review: AskCluster, deadlineMs: number): Promise<Sourced> {
    const limit = await places.take(spender, isKnown(key), deadlineMs);
    if (limit !== undefined) return { outcome: 'unavailable', reason: limit, source };
    try {
      if (breaker.isOpen()) return withoutAsking(key);
      const leftMs = deadlineMs - performance.now();
      if (leftMs <= 0) return outOfTime;
      const askedAtMs = Date.now();
      const verdict = await review(leftMs);
      // We gave a server that answers others less time than it may take: our own limit, and nothing to hold against it.
      const isHurried = leftMs < attemptMs && !isFailing && verdict.outcome === 'unavailable' && verdict.reason === 'timeout';
      return isHurried ? outOfTime : settle(key, spender, verdict, askedAtMs);
    } finally {
      places.free(spender);
    }
  }

  // An acceptance counts from when the question was asked, which is when it was certainly still true.
  function settle(key: string, spender: string | undefined, verdict: Verdict, askedAtMs: number): Sourced {
    if (verdict.outcome === 'unavailable') {
      if (!harmlessReasons.has(verdict.reason)) {
        isFailing = true;
        breaker.report('failed');
      }
      if (ourReasons.has(verdict.reason)) return { ...verdict, source };
      tell(verdict);
      return acceptedStill(key) ?? { ...verdict, source };
    }
    isFailing = false;
    breaker.report('answered');
    tell(undefined);
    if (verdict.outcome === 'refused') {
      acceptances.forget(key);
      if (refusalTtlMs > 0) refusals.keep(key, spender, { ...verdict, source: 'cache' }, Date.now());
    } else {
      refusals.forget(key);
      const { caller } = verdict;
      if (Math.max(cacheTtlMs, staleIfErrorMs) > 0) {
        const packed = packCaller(caller);
        acceptances.keep(key, caller.serviceAccount, packed, askedAtMs, caller.expiresAt.getTime());
        unpacked.set(key, { ...verdict, source: 'cache' });
      }
    }
    return { ...verdict, source };
  }

  function acceptedWithin(key: string, ttlMs: number): Accepted | undefined {
    const packed = acceptances.recall(key, ttlMs);
    if (packed === undefined) return undefined;
    const recent = unpacked.get(key);
    if (recent !== undefined) return recent;
    const accepted: Accepted = { outcome: 'accepted', caller: unpackCaller(packed), source: 'cache' };
    unpacked.set(key, accepted);
    return accepted;
  }

  const isKnown = (key: string): boolean => acceptances.recall(key, staleIfErrorMs) !== undefined;

  function acceptedStill(key: string): Sourced | undefined {
    const stale = acceptedWithin(key, staleIfErrorMs);
    return stale && { ...stale, source: 'stale' };
  }

  function withoutAsking(key: string): Sourced {
    const detail = breaker.cause();
    return acceptedStill(key) ?? { outcome: 'unavailable', reason: 'breaker_open', ...(detail && { detail }), source };
  }

  function tell(trouble: { readonly reason: string; readonly detail?: string } | undefined): void {
    if ((trouble !== undefined) === isDown) return;
    // One caller's token may fail between others that do not: told of every time, that would be a flood of its making.
    const nowMs = Date.now();
    if (trouble !== undefined && nowMs >= warnedAtMs && nowMs - warnedAtMs < warnEveryMs) return;
    isDown = trouble !== undefined;
    if (isDown) warnedAtMs = nowMs;
    if (trouble === undefined) log.info({ kind: 'review_unavailable' }, `The API server reviews ${subject.toLowerCase()} again`);
    else log.warn('review_unavailable', trouble, `${subject} cannot be reviewed (${trouble.reason}): ${trouble.detail ?? 'no detail'}`);
  }

  return {
    sizes: () => [acceptances.size(), refusals.size()],
    prefix(audiences) {
      // Each with its length, so that no two lists read alike.
      const named = audiences.toSorted().map((audience) => `${audience.length}:${audience}`);
      return `${processKey} ${source} ${named.join('')} `;
    },
    key: (prefix, token) => hash('sha256', prefix + token, 'binary'),
    hold(connection, prefix, token, key) {
      const [packed, accepted] = [acceptances.recall(key, cacheTtlMs), acceptedWithin(key, cacheTtlMs)];
      if (connection && packed && accepted) held.set(connection, { prefix, token, key, packed, accepted });
    },
    recallHeld(connection, prefix, token) {
      const last = connection ? held.get(connection) : undefined;
      if (last === undefined || last.token !== token || last.prefix !== prefix) return undefined;
      return acceptances.recall(last.key, cacheTtlMs) === last.packed ? last.accepted : undefined;
    },
    recall: (key) => acceptedWithin(key, cacheTtlMs) ?? refusals.recall(key, refusalTtlMs),
    isKnown,
    ask,
  };
}

// Reasons of our own, which say nothing of the cluster; and those where it did answer, if not this question (C5).
const ourReasons = new Set(['unknown_keys', 'closed']);
const harmlessReasons = new Set([...ourReasons, 'too_many_requests', 'review_timed_out_inside']);

interface Memory<V> {
  recall(key: string, ttlMs: number): V | undefined;
  keep(key: string, owner: string | undefined, value: V, sinceMs: number, expiresAtMs?: number): void;
  forget(key: string): void;
  size(): number;
}

interface Owner {
  readonly name: string;
  readonly keys: Set<string>;
}

interface Kept<V> {
  readonly value: V;
  readonly sinceMs: number;
  readonly expiresAtMs: number;
  readonly owner: Owner | undefined;
}

// Bounded, with at most a share for each owner: past that, an owner pushes out only its own.
function createMemory<V>(max: number): Memory<V> {
  const owners = new Map<string, Owner>();
  const kept = new LRUCache<string, Kept<V>>({
    max,
    dispose({ owner }, key) {
      if (owner === undefined) return;
      owner.keys.delete(key);
      if (owner.keys.size === 0) owners.delete(owner.name);
    },
  });

  function ownerOf(name: string): Owner {
    const owner = owners.get(name) ?? { name, keys: new Set() };
    const [oldest] = owner.keys;
    if (oldest !== undefined && owner.keys.size >= max * shareOfOne) kept.delete(oldest);
    owners.set(name, owner);
    return owner;
  }

  return {
    recall(key, ttlMs) {
      const entry = kept.get(key);
      if (entry === undefined) return undefined;
      const nowMs = Date.now();
      const ageMs = nowMs - entry.sinceMs;
      // A clock that was set back makes nothing younger than it is.
      return ageMs >= 0 && ageMs < ttlMs && nowMs < entry.expiresAtMs ? entry.value : undefined;
    },
    keep(key, ownerName, value, sinceMs, expiresAtMs = Infinity) {
      kept.delete(key);
      const owner = ownerName === undefined ? undefined : ownerOf(ownerName);
      owner?.keys.add(key);
      kept.set(key, { value, sinceMs, expiresAtMs, owner });
    },
    forget: (key) => void kept.delete(key),
    size: () => kept.size,
  };
}
