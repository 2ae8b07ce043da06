// What the soak knows of each token and of the cluster, and from that which answers to a request are right (C1 to C9 of the guard's rules).
// It knows nothing of the guard but its windows, and guesses nothing: what it cannot tell apart is all right, what it can tell is not.

export interface Windows {
  readonly cacheTtlMs: number;
  readonly refusalTtlMs: number;
  readonly staleIfErrorMs: number;
}

/** What is wrong with a token from the start, if anything. */
export type Kind =
  | 'good'
  | 'stranger'
  | 'not bound to a pod'
  | 'forged'
  | 'forged, unknown key'
  | 'malformed'
  | 'other audience'
  | 'repeated'
  | 'none';

export type Answer = 'allowed' | 'missing_token' | 'invalid_token' | 'caller_not_allowed' | 'review_unavailable';

/** A signing key of the cluster. */
export interface Key {
  /** When the guard had certainly loaded it: an answer to a request that ended then could not have been given without. */
  knownFromMs: number;
}

export interface Token {
  readonly kind: Kind;
  readonly text: string;
  readonly serviceAccount: string;
  readonly pod: string;
  /** Absent where no key of the cluster is named. */
  readonly key: Key | undefined;
  readonly mintedMs: number;
  readonly expiresMs: number;
  /** When its pod, its ServiceAccount or its key went: certainly good until `fromMs`, certainly gone after `byMs`. */
  gone: { readonly fromMs: number; readonly byMs: number; readonly why: string } | undefined;
  readonly requests: Asked[];
  /** What is known after each request, in the order in which they ended. */
  readonly remembered: Remembered[];
}

/** One request. Times are in milliseconds since the epoch: what happened in between happened between `sentMs` and `endedMs`. */
export interface Asked {
  readonly number: number;
  readonly token: Token;
  readonly sentMs: number;
  endedMs: number;
  /** Absent where the client hung up: the guard went on deciding until `endedMs` and nobody saw what. */
  answer: string | undefined;
  source: string;
  /** The most requests that were being decided at any time meanwhile; and of the same ServiceAccount. */
  peak: number;
  peakOfOne: number;
}

interface Remembered {
  readonly atMs: number;
  /** An acceptance that was asked for at this time or later is certainly remembered; absent where none is. */
  readonly acceptedFromMs: number | undefined;
  /** No acceptance is remembered that was asked for later than this. */
  readonly acceptedByMs: number;
  /** No refusal is remembered that is later than this. */
  readonly refusedByMs: number;
  /** A review has said no, and a token that is gone does not come back. */
  readonly isRefused: boolean;
}

/** A time in which the cluster may not be answering, or did not until a moment ago. */
export interface Trouble {
  readonly what: string;
  /** Certainly no review succeeds while it lasts. */
  readonly isHard: boolean;
  readonly fromMs: number;
  readonly sureFromMs: number;
  sureUntilMs: number;
  endedMs: number;
  /** When the guard has certainly noticed that it is over. */
  calmFromMs: number;
}

export interface Model {
  token(token: Pick<Token, 'kind' | 'text' | 'serviceAccount' | 'pod' | 'key' | 'mintedMs' | 'expiresMs'>): Token;
  /** The token is good until `fromMs` and gone after `byMs`; what was said before and is earlier stays. */
  bury(token: Token, why: string, fromMs: number, byMs: number): void;
  trouble(what: string, isHard: boolean, fromMs: number, sureFromMs: number): Trouble;
  /** `sureUntilMs`: it certainly lasted until then; `endedMs`: it was certainly over then. */
  over(trouble: Trouble, sureUntilMs: number, endedMs: number): void;
  sent(token: Token): Asked;
  ended(asked: Asked, answer: string | undefined, source: string): void;
  /** Judges what ended before `beforeMs`, in that order, once all is known about the time until then. */
  judge(beforeMs: number): void;
}

/** Sees each request as it is judged. `right`: the answers that are. `explain`: what is known that bears on it, as a time line. */
export type Judged = (asked: Asked, right: ReadonlySet<Answer>, explain: () => string) => void;

// Of a real API server, and of the authority: a yes is remembered, and a token is taken for a while after its expiry.
const serverMemoryMs = 10_000;
const leewayMs = 60_000;
// C5: a trial takes at most 3 s, and the next one comes after at most 4 s + 20 %. Timers may be late by what does not yet count as a stall.
const trialMs = 3_600;
/** When the guard has certainly noticed that trouble is over. */
export const noticedMs = 3_600 + 5_300 + 3_600;
// The longest that the soak lets an answer take: the API server may still review a token that the guard has given up on.
export const slowestMs = 5_000;
// C6, C8, V3.
const maxInFlight = 32;
const maxInFlightOfOne = 8;
const unknownPerSecond = 10;

export function createModel({ cacheTtlMs, refusalTtlMs, staleIfErrorMs }: Windows, judged: Judged): Model {
  const startedMs = Date.now();
  const outstanding = new Set<Asked>();
  const outstandingOf = new Map<string, Set<Asked>>();
  const toJudge: Asked[] = [];
  // How many requests may have named an unknown key in each second.
  const unknownIn = new Map<number, number>();
  let troubles: Trouble[] = [];
  let asked = 0;

  const isNamingUnknownKey = ({ token: { kind, key }, sentMs }: Asked): boolean =>
    kind === 'forged, unknown key' || (key !== undefined && key.knownFromMs > sentMs);
  const second = (ms: number): number => Math.floor(ms / 1000);

  const overlapping = ({ token, sentMs, endedMs }: Asked): readonly Asked[] =>
    token.requests.filter((other) => other.endedMs >= sentMs && other.sentMs <= endedMs);

  /** What was known when the request was sent, of all that had ended by then. */
  const rememberedAt = ({ remembered }: Token, ms: number): Remembered => remembered.findLast(({ atMs }) => atMs <= ms) ?? nothing;

  function isLimited(one: Asked): boolean {
    if (!isNamingUnknownKey(one)) return false;
    for (let at = second(one.sentMs); at <= second(one.endedMs); at++) {
      let count = unknownIn.get(at) ?? 0;
      for (const other of outstanding) if (isNamingUnknownKey(other) && second(other.sentMs) <= at) count += 1;
      if (count > unknownPerSecond) return true;
    }
    return false;
  }

  interface Facts {
    /** A review that tells of this request was asked for at this time or later: one may be shared with a request that came before. */
    readonly reviewedFromMs: number;
    readonly isHard: boolean;
    readonly isTroubled: boolean;
    readonly before: Remembered;
    readonly mayBeReviewed: boolean;
    readonly mayBeCached: boolean;
    readonly mayBeStale: boolean;
    readonly isSurelyCached: boolean;
    readonly isSurelyStale: boolean;
  }

  function findFacts(one: Asked): Facts {
    const { token, sentMs, endedMs } = one;
    const together = overlapping(one);
    const reviewedFromMs = Math.min(...together.map((other) => other.sentMs));
    const isHard = troubles.some((trouble) => trouble.isHard && trouble.sureFromMs <= reviewedFromMs && endedMs <= trouble.sureUntilMs);
    const isTroubled = troubles.some((trouble) => trouble.fromMs <= endedMs && reviewedFromMs <= trouble.calmFromMs);
    const before = rememberedAt(token, sentMs);
    const yesByMs = lastYesMs(token);
    // The API server's yes, at the latest; a guard that remembers it counts from when it asked.
    const acceptedByMs = Math.min(before.acceptedByMs, yesByMs);
    const mayBeErased = token.gone !== undefined && token.gone.fromMs <= endedMs;
    const from = mayBeErased ? undefined : before.acceptedFromMs;
    const isWithin = (ttlMs: number): boolean => from !== undefined && endedMs < Math.min(from + ttlMs, token.expiresMs);
    const isQueued = together.some(({ peak, peakOfOne }) => peak > maxInFlight || peakOfOne > maxInFlightOfOne);
    return {
      reviewedFromMs,
      isHard,
      isTroubled,
      before,
      mayBeReviewed: !isHard && sentMs <= token.expiresMs + leewayMs && reviewedFromMs <= yesByMs,
      mayBeCached: sentMs < Math.min(acceptedByMs + cacheTtlMs, token.expiresMs),
      mayBeStale: isTroubled && sentMs < Math.min(acceptedByMs + staleIfErrorMs, token.expiresMs),
      isSurelyCached: isWithin(cacheTtlMs),
      isSurelyStale: isWithin(staleIfErrorMs) && !isQueued && !isLimited(one),
    };
  }

  // Until when the API server can have said yes: while all is there, and as long as it remembers the last time that it looked.
  function lastYesMs({ gone, requests }: Token): number {
    if (gone === undefined) return Number.POSITIVE_INFINITY;
    const looked = requests.filter(({ sentMs }) => sentMs <= gone.byMs);
    return Math.min(gone.byMs, Math.max(...looked.map(({ endedMs }) => endedMs + slowestMs))) + serverMemoryMs;
  }

  function rightAnswers(one: Asked, facts: Facts): ReadonlySet<Answer> {
    const { token, sentMs, endedMs } = one;
    const { before, isHard, isTroubled } = facts;
    const right = new Set<Answer>();
    const mayBeUnavailable = isTroubled || isLimited(one);
    switch (token.kind) {
      case 'none':
        return right.add('missing_token');
      case 'malformed':
      case 'other audience':
      case 'repeated':
        return right.add('invalid_token');
      case 'forged': {
        // Known to be forged where the key is known; else the cluster says so, if it can be asked.
        if (mayBeUnavailable && token.key !== undefined && token.key.knownFromMs > sentMs) right.add('review_unavailable');
        return right.add('invalid_token');
      }
      case 'forged, unknown key': {
        if (mayBeUnavailable) right.add('review_unavailable');
        if (!isHard) right.add('invalid_token');
        return right;
      }
      case 'stranger': {
        // Where the key is known the claims can be believed, and nobody need be asked (C8).
        right.add('caller_not_allowed');
        if (sentMs < before.refusedByMs + refusalTtlMs) right.add('invalid_token');
        if (token.key !== undefined && token.key.knownFromMs <= sentMs && endedMs <= token.expiresMs + leewayMs) return right;
      }
    }
    const accepted = { good: 'allowed', stranger: 'caller_not_allowed', 'not bound to a pod': 'invalid_token' } as const;
    if (!before.isRefused && (facts.mayBeReviewed || facts.mayBeCached || facts.mayBeStale)) right.add(accepted[token.kind]);
    const isGone = token.gone !== undefined && token.gone.fromMs <= endedMs;
    if (endedMs > token.expiresMs + leewayMs || (isGone && !isHard) || sentMs < before.refusedByMs + refusalTtlMs)
      right.add('invalid_token');
    if (mayBeUnavailable && !facts.isSurelyCached && !facts.isSurelyStale) right.add('review_unavailable');
    return right;
  }

  // What the guard may, and what it must remember from here on.
  function remember(one: Asked, facts: Facts): void {
    const { token, answer, endedMs } = one;
    const { isHard, isSurelyCached, before } = facts;
    const last = token.remembered.at(-1) ?? nothing;
    const reviewedByMs = isHard || (isSurelyCached && answer === 'allowed') ? Number.NEGATIVE_INFINITY : endedMs;
    const acceptedByMs = Math.max(last.acceptedByMs, reviewedByMs);
    const refusedByMs = Math.max(last.refusedByMs, reviewedByMs);
    const isClear = token.kind === 'good';
    if (isClear && answer === 'allowed' && !last.isRefused) {
      // An acceptance that was remembered is no younger for having been used; and none is older than the first request.
      const firstMs = Math.min(...token.requests.map(({ sentMs }) => sentMs));
      const fromMs = facts.mayBeCached || facts.mayBeStale ? (before.acceptedFromMs ?? firstMs) : facts.reviewedFromMs;
      const acceptedFromMs = Math.max(last.acceptedFromMs ?? Number.NEGATIVE_INFINITY, fromMs);
      token.remembered.push({ ...last, atMs: endedMs, acceptedFromMs, acceptedByMs });
    } else if (isClear && answer === 'invalid_token') {
      token.remembered.push({
        atMs: endedMs,
        acceptedFromMs: undefined,
        acceptedByMs: Number.NEGATIVE_INFINITY,
        refusedByMs,
        isRefused: true,
      });
    } else if (answer !== 'review_unavailable') {
      token.remembered.push({ ...last, atMs: endedMs, acceptedByMs, refusedByMs });
    }
  }

  function learn({ token, sentMs, endedMs, answer, source }: Asked): void {
    const { key, kind } = token;
    const isScreened = source === 'screening' && (kind === 'forged' ? answer === 'invalid_token' : answer === 'caller_not_allowed');
    if (isScreened && key !== undefined && (kind === 'forged' || kind === 'stranger')) key.knownFromMs = Math.min(key.knownFromMs, endedMs);
    // Nobody had seen this token: it was reviewed, so the breaker is shut, and no trial of before can open it any more.
    if (kind !== 'good' || answer !== 'allowed' || token.requests.length > 1) return;
    for (const trouble of troubles) {
      if (trouble.endedMs + trialMs <= sentMs) trouble.calmFromMs = Math.min(trouble.calmFromMs, endedMs);
    }
  }

  function explain(one: Asked, facts: Facts): string {
    const { token } = one;
    const at = (ms: number): string =>
      ms < startedMs ? 'before the start' : Number.isFinite(ms) ? `${((ms - startedMs) / 1000).toFixed(3)} s` : 'not yet';
    const lines = [
      `token: ${token.kind}, ${token.serviceAccount} ${token.pod}, minted ${at(token.mintedMs)}, expires ${at(token.expiresMs)}`,
      `key: ${token.key === undefined ? 'none of the cluster' : `known to the guard from ${at(token.key.knownFromMs)}`}`,
      ...(token.gone === undefined ? [] : [`gone: ${token.gone.why}, ${at(token.gone.fromMs)} to ${at(token.gone.byMs)}`]),
      ...troubles
        .filter(({ fromMs, calmFromMs }) => fromMs < one.endedMs + 1_000 && calmFromMs > one.sentMs - 15_000)
        .map(({ what, isHard, fromMs, endedMs, calmFromMs }) => {
          return `cluster: ${what}${isHard ? '' : ' (some may get through)'}, ${at(fromMs)} to ${at(endedMs)}, noticed by ${at(calmFromMs)}`;
        }),
      ...token.requests.slice(-25).map((other) => {
        const { number, sentMs, endedMs, answer = 'hung up', source, peak, peakOfOne } = other;
        const mark = other === one ? '>' : ' ';
        return `${mark} #${number} ${at(sentMs)} to ${at(endedMs)}: ${answer} (${source}), among ${peak}, ${peakOfOne} of its own`;
      }),
      `facts: ${JSON.stringify(facts, (_name, value: unknown) => (typeof value === 'number' ? at(value) : value))}`,
    ];
    return lines.map((line) => `    ${line}`).join('\n');
  }

  return {
    token: (token) => ({ ...token, gone: undefined, requests: [], remembered: [] }),
    bury(token, why, fromMs, byMs) {
      if (token.gone === undefined || fromMs < token.gone.fromMs) token.gone = { fromMs, byMs, why };
    },
    trouble(what, isHard, fromMs, sureFromMs) {
      const never = Number.POSITIVE_INFINITY;
      const trouble = { what, isHard, fromMs, sureFromMs, sureUntilMs: never, endedMs: never, calmFromMs: never };
      troubles.push(trouble);
      return trouble;
    },
    over(trouble, sureUntilMs, endedMs) {
      trouble.sureUntilMs = sureUntilMs;
      trouble.endedMs = endedMs;
      trouble.calmFromMs = endedMs + noticedMs;
    },
    sent(token) {
      const one: Asked = {
        number: ++asked,
        token,
        sentMs: Date.now(),
        endedMs: Number.POSITIVE_INFINITY,
        answer: undefined,
        source: '',
        peak: 0,
        peakOfOne: 0,
      };
      token.requests.push(one);
      const ofOne = outstandingOf.get(token.serviceAccount) ?? new Set();
      outstandingOf.set(token.serviceAccount, ofOne.add(one));
      outstanding.add(one);
      for (const other of outstanding) other.peak = Math.max(other.peak, outstanding.size);
      for (const other of ofOne) other.peakOfOne = Math.max(other.peakOfOne, ofOne.size);
      return one;
    },
    ended(one, answer, source) {
      // Up to the next whole millisecond, as `sentMs` is down to one.
      Object.assign(one, { endedMs: Date.now() + 1, answer, source });
      outstanding.delete(one);
      outstandingOf.get(one.token.serviceAccount)?.delete(one);
      if (isNamingUnknownKey(one)) {
        for (let at = second(one.sentMs); at <= second(one.endedMs); at++) unknownIn.set(at, (unknownIn.get(at) ?? 0) + 1);
      }
      learn(one);
      toJudge.push(one);
    },
    judge(beforeMs) {
      const count = toJudge.findIndex(({ endedMs }) => endedMs > beforeMs);
      for (const one of toJudge.splice(0, count === -1 ? toJudge.length : count)) {
        const facts = findFacts(one);
        if (one.answer !== undefined) judged(one, rightAnswers(one, facts), () => explain(one, facts));
        remember(one, facts);
      }
      const forgottenMs = Math.min(beforeMs, ...[...outstanding].map(({ sentMs }) => sentMs)) - 120_000;
      troubles = troubles.filter(({ calmFromMs }) => calmFromMs > forgottenMs);
      for (const at of unknownIn.keys()) if (at < second(forgottenMs)) unknownIn.delete(at);
    },
  };
}

const nothing: Remembered = {
  atMs: Number.NEGATIVE_INFINITY,
  acceptedFromMs: undefined,
  acceptedByMs: Number.NEGATIVE_INFINITY,
  refusedByMs: Number.NEGATIVE_INFINITY,
  isRefused: false,
};
