// What the soak knows of each token and of the cluster, and from that which answers to a request are right (G2, G8, V3, V6 and C1 to C9 of the
// guard's rules, and for access what docs/authorizing.md says).
// It knows nothing of the guard but its windows and routes, and guesses nothing: what it cannot tell apart is all right, what it can tell is not.

import { isFor, type Route, ruleOf } from './soak-routes.ts';

export interface Windows {
  readonly verification: 'review' | 'signature';
  readonly cacheTtlMs: number;
  readonly refusalTtlMs: number;
  readonly staleIfErrorMs: number;
}

/** What is wrong with a token from the start, if anything. */
export type Kind = 'good' | 'stranger' | 'not bound to a pod' | 'forged' | 'forged, unknown key' | 'malformed' | 'repeated' | 'none';

/**
 * What the guard made of a request, or of one that it only observed would have made. `failed`: its predicate threw. `observe_timeout`: it went
 * on without knowing.
 */
export type Answer =
  | 'allowed'
  | 'missing_token'
  | 'invalid_token'
  | 'caller_not_allowed'
  | 'review_unavailable'
  | 'failed'
  | 'observe_timeout';

/** A signing key of the cluster. */
export interface Key {
  readonly madeMs: number;
  /** When the guard had certainly loaded it: an answer to a request that ended then could not have been given without. */
  knownFromMs: number;
  /** Since when the cluster publishes it no more. */
  retiredMs: number;
  /** The one that is published instead: who knows that one has forgotten this one. */
  next: Key | undefined;
}

/** What the guard asks the cluster about, and remembers. */
export interface Question {
  readonly requests: Asked[];
  /** What is known after each request, in the order in which they ended. */
  readonly remembered: Remembered[];
}

export interface Token {
  readonly kind: Kind;
  readonly text: string;
  readonly serviceAccount: string;
  readonly pod: string;
  readonly audiences: readonly string[];
  /** Absent where no key of the cluster is named. */
  readonly key: Key | undefined;
  readonly mintedMs: number;
  readonly expiresMs: number;
  /** When its pod, its ServiceAccount or its key went: certainly good until `fromMs`, certainly gone after `byMs`. */
  gone: { readonly fromMs: number; readonly byMs: number; readonly why: string } | undefined;
  /** Whether it is good, for each set of audiences: what is known for one says nothing of another, whichever routes ask and whatever their mode. */
  readonly questions: Map<string, Question>;
  /** Whether its caller may read each order: no other token's question is the same, since the cluster is told which token it is. */
  readonly accesses: Map<string, Question>;
}

/** One request. Times are in milliseconds since the epoch: what happened in between happened between `sentMs` and `endedMs`. */
export interface Asked {
  readonly number: number;
  readonly token: Token;
  readonly route: Route;
  /** What it takes to decide it: absent where the token's claims refuse it, and where the cluster's rules are not asked. */
  readonly question: Question | undefined;
  readonly access: Question | undefined;
  /** Whether its caller could read the route's order when it was sent; absent where there is none. */
  readonly isGranted: boolean | undefined;
  readonly sentMs: number;
  endedMs: number;
  /** Absent where the client hung up, or an observing guard did not wait: it went on deciding until `endedMs` and nobody saw what. */
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
  /** A review has said no of a token, and none will say yes: one that is gone does not come back. */
  readonly isRefused: boolean;
}

/** A time in which the cluster may not be answering, or did not until a moment ago. */
export interface Trouble {
  readonly what: string;
  /** Certainly no review succeeds while it lasts. */
  readonly isHard: boolean;
  /** Reviews of tokens only, whatever the cluster is asked, or the soak's own processes, in which anything may be late. */
  readonly strikes: 'tokens' | 'cluster' | 'processes';
  readonly fromMs: number;
  readonly sureFromMs: number;
  sureUntilMs: number;
  endedMs: number;
  /** When the guard has certainly noticed that it is over. */
  calmFromMs: number;
}

// An order may be read from here on, or may not be.
interface Grant {
  readonly isGranted: boolean;
  readonly fromMs: number;
  readonly byMs: number;
}

export interface Model {
  token(token: Omit<Token, 'gone' | 'questions' | 'accesses'>): Token;
  /** The token is good until `fromMs` and gone after `byMs`; what was said before and is earlier stays. */
  bury(token: Token, why: string, fromMs: number, byMs: number): void;
  /** From now on a ServiceAccount may read an order, or may not: certainly not before `fromMs`, certainly after `byMs`. Nobody may at first. */
  grant(serviceAccount: string, order: string, isGranted: boolean, fromMs: number, byMs: number): void;
  trouble(trouble: Pick<Trouble, 'what' | 'isHard' | 'strikes' | 'fromMs' | 'sureFromMs'>): Trouble;
  /** `sureUntilMs`: it certainly lasted until then; `endedMs`: it was certainly over then. */
  over(trouble: Trouble, sureUntilMs: number, endedMs: number): void;
  sent(token: Token, route: Route): Asked;
  /** Gives what is still being decided behind an observing guard that did not wait. That has ended without an answer, some time later. */
  ended(asked: Asked, answer: string | undefined, source: string): Asked | undefined;
  /** Judges what ended before `beforeMs`, in that order, once all is known about the time until then. */
  judge(beforeMs: number): void;
}

/**
 * Sees each request as it is judged. `right`: the answers that are, none of them where any comes too late. `explain`: what is known that bears
 * on it, as a time line.
 */
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
// Of a guard that waits for nothing, on a machine with other work to do.
const promptMs = 2_000;
// G8: when an observing guard goes on. Timers may fire within the millisecond before, and be late by what does not yet count as a stall, here and
// there.
const observeMs = 249;
const observedMs = 1_250;
// C6, C8, V3.
const maxInFlight = 32;
const maxInFlightOfOne = 8;
const unknownPerSecond = 10;
const keysEveryMs = 30_000;
const keysLoadMs = 1_000;

export function createModel({ verification, cacheTtlMs, refusalTtlMs, staleIfErrorMs }: Windows, judged: Judged): Model {
  const isBySignature = verification === 'signature';
  const startedMs = Date.now();
  const grants = new Map<string, Grant[]>();
  const outstanding = new Set<Asked>();
  const outstandingOf = new Map<string, Set<Asked>>();
  const toJudge: Asked[] = [];
  // How many requests may have named an unknown key in each second.
  const unknownIn = new Map<number, number>();
  let troubles: Trouble[] = [];
  let asked = 0;

  // V3: how many of them are reviewed is limited. By signature none is.
  const isNamingUnknownKey = ({ token: { kind, key }, sentMs }: Asked): boolean =>
    !isBySignature && (kind === 'forged, unknown key' || (key !== undefined && key.knownFromMs > sentMs));
  const second = (ms: number): number => Math.floor(ms / 1000);
  const grantsTo = (serviceAccount: string, order: string | undefined): readonly Grant[] => grants.get(`${serviceAccount} ${order}`) ?? [];

  const overlapping = ({ sentMs, endedMs }: Asked, { requests }: Question): readonly Asked[] =>
    requests.filter((other) => other.endedMs >= sentMs && other.sentMs <= endedMs);

  /** What was known when the request was sent, of all that had ended by then. */
  const rememberedAt = ({ remembered }: Question, ms: number): Remembered => remembered.findLast(({ atMs }) => atMs <= ms) ?? nothing;

  function isLimited(one: Asked): boolean {
    if (!isNamingUnknownKey(one)) return false;
    for (let at = second(one.sentMs); at <= second(one.endedMs); at++) {
      let count = unknownIn.get(at) ?? 0;
      for (const other of outstanding) if (isNamingUnknownKey(other) && second(other.sentMs) <= at) count += 1;
      if (count > unknownPerSecond) return true;
    }
    return false;
  }

  // V6: whether the keys that the guard goes by may lack this one, and be too young to be loaded again.
  function mayLackKey({ token: { kind, key }, sentMs, endedMs }: Asked): boolean {
    if (!isBySignature) return false;
    if (key === undefined) return kind === 'forged, unknown key';
    if (key.retiredMs <= endedMs) return true;
    if (key.knownFromMs <= sentMs) return false;
    const lastLoadMs = sentMs - keysEveryMs - keysLoadMs;
    return lastLoadMs < key.madeMs || troubles.some(({ fromMs, endedMs: overMs }) => fromMs <= endedMs && lastLoadMs <= overMs);
  }

  /** What the cluster can say, and what stands in its way. */
  interface Conditions {
    /** It can have said yes, and no, until then at the latest. */
    readonly yesByMs: number;
    readonly noByMs: number;
    readonly troubles: readonly Trouble[];
    readonly staleIfErrorMs: number;
  }

  interface Facts extends Omit<Conditions, 'troubles' | 'staleIfErrorMs'> {
    /** A review that tells of this request was asked for at this time or later: one may be shared with a request that came before. */
    readonly reviewedFromMs: number;
    readonly isHard: boolean;
    readonly isTroubled: boolean;
    /** Nobody else asked meanwhile. */
    readonly isAlone: boolean;
    readonly before: Remembered;
    readonly mayBeReviewed: boolean;
    readonly mayBeCached: boolean;
    readonly mayBeStale: boolean;
    readonly mayBeRefused: boolean;
    readonly isSurelyCached: boolean;
    readonly isSurelyStale: boolean;
  }

  function findFacts(one: Asked, question: Question, { yesByMs, noByMs, ...conditions }: Conditions): Facts {
    const { token, sentMs, endedMs } = one;
    const together = overlapping(one, question);
    const reviewedFromMs = Math.min(...together.map((other) => other.sentMs));
    const isHard = conditions.troubles.some(
      (trouble) => trouble.isHard && trouble.sureFromMs <= reviewedFromMs && endedMs <= trouble.sureUntilMs,
    );
    const isTroubled = conditions.troubles.some((trouble) => trouble.fromMs <= endedMs && reviewedFromMs <= trouble.calmFromMs);
    const before = rememberedAt(question, sentMs);
    // The cluster's yes, at the latest; a guard that remembers it counts from when it asked.
    const acceptedByMs = Math.min(before.acceptedByMs, yesByMs);
    const isErased = before.acceptedFromMs !== undefined && before.acceptedFromMs <= noByMs;
    const from = isErased ? undefined : before.acceptedFromMs;
    const isWithin = (ttlMs: number): boolean => from !== undefined && endedMs < Math.min(from + ttlMs, token.expiresMs);
    const isQueued = together.some(({ peak, peakOfOne }) => peak > maxInFlight || peakOfOne > maxInFlightOfOne);
    return {
      reviewedFromMs,
      isHard,
      isTroubled,
      isAlone: together.length === 1,
      before,
      yesByMs,
      noByMs,
      mayBeReviewed: !isHard && sentMs <= token.expiresMs + leewayMs && reviewedFromMs <= yesByMs,
      mayBeCached: sentMs < Math.min(acceptedByMs + cacheTtlMs, token.expiresMs),
      mayBeStale: isTroubled && sentMs < Math.min(acceptedByMs + conditions.staleIfErrorMs, token.expiresMs),
      mayBeRefused: (!isHard && reviewedFromMs <= noByMs) || sentMs < before.refusedByMs + refusalTtlMs,
      isSurelyCached: isWithin(cacheTtlMs),
      isSurelyStale: isWithin(conditions.staleIfErrorMs) && !isQueued,
    };
  }

  /** Undefined where nothing is asked about the token. */
  function findTokenFacts(one: Asked): Facts | undefined {
    const { token, question, endedMs } = one;
    if (question === undefined) return undefined;
    const { key, gone } = token;
    const [always, never] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
    if (isBySignature) {
      // The guard's keys say yes, and know nothing but keys.
      const noByMs = key !== undefined && key.retiredMs <= endedMs ? endedMs : never;
      return findFacts(one, question, { yesByMs: key?.next?.knownFromMs ?? always, noByMs, troubles: [], staleIfErrorMs: 0 });
    }
    if (gone === undefined) return findFacts(one, question, { yesByMs: always, noByMs: never, troubles, staleIfErrorMs });
    // The API server says yes while all is there, and as long as it remembers the last time that it looked.
    const looked = question.requests.filter(({ sentMs }) => sentMs <= gone.byMs);
    const lookedByMs = Math.max(...looked.map((other) => other.endedMs + slowestMs));
    const yesByMs = Math.min(gone.byMs, lookedByMs) + serverMemoryMs;
    return findFacts(one, question, { yesByMs, noByMs: gone.fromMs <= endedMs ? endedMs : never, troubles, staleIfErrorMs });
  }

  /** Undefined where nobody asks what the caller may do. */
  function findAccessFacts(one: Asked): Facts | undefined {
    const { token, route, access, endedMs } = one;
    if (access === undefined) return undefined;
    // What is changed counts at once.
    const last = grantsTo(token.serviceAccount, route.order).findLast(({ fromMs }) => fromMs <= endedMs);
    const untilMs = last === undefined ? Number.NEGATIVE_INFINITY : Math.min(last.byMs, endedMs);
    return findFacts(one, access, {
      yesByMs: last?.isGranted === true ? endedMs : untilMs,
      noByMs: last?.isGranted === true ? untilMs : endedMs,
      troubles: troubles.filter(({ strikes }) => strikes !== 'tokens'),
      staleIfErrorMs,
    });
  }

  function rightAnswers(one: Asked, facts: Facts | undefined, access: Facts | undefined): ReadonlySet<Answer> {
    if (isLate(one)) return new Set();
    const right = rightOfToken(one, facts);
    // First who is calling, then whether it may.
    if (access !== undefined && right.delete('allowed')) {
      if (access.mayBeReviewed || access.mayBeCached || access.mayBeStale) right.add('allowed');
      if (access.mayBeRefused) right.add('caller_not_allowed');
      if (access.isTroubled && !access.isSurelyCached && !access.isSurelyStale) right.add('review_unavailable');
    }
    if (facts !== undefined && mayBeOutOfTime(one, facts, access)) right.add('observe_timeout');
    return right;
  }

  // By signature nobody is asked who is calling, so there is nobody to wait for; and a guard that observes waits for nobody.
  function isLate(one: Asked): boolean {
    const { route, access, sentMs, endedMs } = one;
    const isPrompt = isBySignature && access === undefined && !mayLackKey(one);
    if (endedMs - sentMs < (route.isObserved ? observedMs : isPrompt ? promptMs : Number.POSITIVE_INFINITY)) return false;
    return !troubles.some((trouble) => trouble.strikes === 'processes' && trouble.fromMs <= endedMs && sentMs <= trouble.endedMs);
  }

  // Whether an observing guard may have gone on without knowing. How long a review takes is up to the machine, so that both are right where the
  // request took that long; what is remembered, or refused by its shape and claims, is known before any time has passed.
  function mayBeOutOfTime({ token, route, sentMs, endedMs }: Asked, facts: Facts, access: Facts | undefined): boolean {
    if (!route.isObserved || endedMs - sentMs < observeMs) return false;
    if (token.kind === 'none' || token.kind === 'malformed' || token.kind === 'repeated') return false;
    return !facts.isSurelyCached || access?.isSurelyCached === false;
  }

  /** What comes of a token that is accepted, before the cluster's rules are asked. */
  function admit({ token: { kind, pod }, route: { path, isRuled, isObserved } }: Asked): Answer {
    if (kind === 'not bound to a pod') return 'invalid_token';
    if (!isRuled) return kind === 'stranger' ? 'caller_not_allowed' : 'allowed';
    switch (ruleOf(path, pod)) {
      case 'true':
        return 'allowed';
      case 'true, late':
        return isObserved ? 'observe_timeout' : 'allowed';
      case 'throws':
        return 'failed';
      default:
        return 'caller_not_allowed';
    }
  }

  // A predicate, and the cluster's rules, are asked about a caller that is known; a list refuses those that only say who they are too.
  const tellsOfAcceptance = ({ route, answer }: Asked): boolean =>
    answer === 'allowed' || answer === 'failed' || (answer === 'caller_not_allowed' && (route.isRuled || route.order !== undefined));

  function rightOfToken(one: Asked, facts: Facts | undefined): Set<Answer> {
    const { token, route, sentMs, endedMs } = one;
    const right = new Set<Answer>();
    if (token.kind === 'none') return right.add('missing_token');
    if (token.kind === 'malformed' || token.kind === 'repeated' || facts === undefined) return right.add('invalid_token');
    const { before, isHard, isTroubled } = facts;
    const isOverLimit = isLimited(one);
    const mayBeUnavailable = isTroubled || isOverLimit || mayLackKey(one);
    switch (token.kind) {
      case 'forged': {
        // Known to be forged where the key is known; else the cluster says so, if it can be asked.
        const isUnknown = isBySignature || (token.key !== undefined && token.key.knownFromMs > sentMs);
        if (mayBeUnavailable && isUnknown) right.add('review_unavailable');
        return right.add('invalid_token');
      }
      case 'forged, unknown key': {
        if (mayBeUnavailable) right.add('review_unavailable');
        if (!isHard) right.add('invalid_token');
        return right;
      }
      case 'stranger': {
        if (isBySignature || route.isRuled) break;
        // Where the key is known the claims can be believed, and nobody need be asked (C8): no pattern fits them.
        right.add('caller_not_allowed');
        if (sentMs < before.refusedByMs + refusalTtlMs) right.add('invalid_token');
        if (token.key !== undefined && token.key.knownFromMs <= sentMs && endedMs <= token.expiresMs + leewayMs) return right;
      }
    }
    if (!before.isRefused && (facts.mayBeReviewed || facts.mayBeCached || facts.mayBeStale)) right.add(admit(one));
    if (endedMs > token.expiresMs + leewayMs || facts.mayBeRefused) right.add('invalid_token');
    if (mayBeUnavailable && !facts.isSurelyCached && (isOverLimit || !facts.isSurelyStale)) right.add('review_unavailable');
    return right;
  }

  // What the guard may, and what it must remember from here on.
  function remember(one: Asked, facts: Facts | undefined, access: Facts | undefined): void {
    const { token, question, answer } = one;
    // What is decided behind an observing guard that did not wait is another's to tell.
    if (question === undefined || facts === undefined || answer === 'observe_timeout') return;
    const isAccepted = tellsOfAcceptance(one);
    if (one.access !== undefined && access !== undefined && (isAccepted || answer === undefined)) {
      keep(one.access, one, answer === undefined ? undefined : answer === 'allowed' ? 'accepted' : 'refused', access);
    }
    const verdict = isAccepted ? 'accepted' : answer === 'invalid_token' ? 'refused' : undefined;
    // Where nobody knows whether the caller may, it may have been accepted before.
    if (answer !== 'review_unavailable' || access !== undefined) keep(question, one, token.kind === 'good' ? verdict : undefined, facts);
  }

  /** `verdict`: undefined where nobody saw it. */
  function keep(question: Question, one: Asked, verdict: 'accepted' | 'refused' | undefined, facts: Facts): void {
    const { requests, remembered } = question;
    const { endedMs } = one;
    const isForGood = question === one.question;
    const last = remembered.at(-1) ?? nothing;
    const { isHard, isSurelyCached, before, yesByMs, noByMs } = facts;
    const reviewedByMs = isHard || (isSurelyCached && verdict === 'accepted') ? Number.NEGATIVE_INFINITY : endedMs;
    const acceptedByMs = Math.max(last.acceptedByMs, Math.min(reviewedByMs, yesByMs));
    const refusedByMs = Math.max(last.refusedByMs, Math.min(reviewedByMs, noByMs));
    if (verdict === 'refused') {
      // One that came before, and is told of after it, may have been accepted since.
      const isErased = isForGood || facts.isAlone;
      remembered.push({
        atMs: endedMs,
        acceptedFromMs: undefined,
        acceptedByMs: isErased ? Number.NEGATIVE_INFINITY : last.acceptedByMs,
        refusedByMs,
        isRefused: isForGood,
      });
    } else if (verdict === 'accepted' && !last.isRefused) {
      // An acceptance that was remembered is no younger for having been used; and none is older than the first request.
      const firstMs = Math.min(...requests.map(({ sentMs }) => sentMs));
      const fromMs = facts.mayBeCached || facts.mayBeStale ? (before.acceptedFromMs ?? firstMs) : facts.reviewedFromMs;
      const acceptedFromMs = Math.max(last.acceptedFromMs ?? Number.NEGATIVE_INFINITY, fromMs);
      remembered.push({ ...last, atMs: endedMs, acceptedFromMs, acceptedByMs });
    } else {
      remembered.push({ ...last, atMs: endedMs, acceptedByMs, refusedByMs });
    }
  }

  function learn(one: Asked): void {
    const { token, route, question, sentMs, endedMs, answer, source } = one;
    if (question === undefined) return;
    const { key, kind } = token;
    const isAccepted = tellsOfAcceptance(one);
    const isScreened = source === 'screening' && (kind === 'forged' ? answer === 'invalid_token' : answer === 'caller_not_allowed');
    const tellsOfKey = isBySignature
      ? (kind === 'good' && isAccepted) || (kind === 'stranger' && (isAccepted || answer === 'caller_not_allowed'))
      : isScreened && (kind === 'forged' || kind === 'stranger');
    if (tellsOfKey && key !== undefined) key.knownFromMs = Math.min(key.knownFromMs, endedMs);
    // Nobody had seen this token: the cluster was asked, so the breaker is shut, and no trial of before can open it any more.
    if (kind !== 'good' || !isAccepted || (isBySignature && route.order === undefined) || question.requests.length > 1) return;
    for (const trouble of troubles) {
      if (trouble.endedMs + trialMs <= sentMs) trouble.calmFromMs = Math.min(trouble.calmFromMs, endedMs);
    }
  }

  function explain(one: Asked, facts: Facts | undefined, access: Facts | undefined): string {
    const { token, route } = one;
    const requests = [...token.questions.values()].flatMap((question) => question.requests).toSorted((a, b) => a.number - b.number);
    const at = (ms: number): string =>
      ms < startedMs ? 'before the start' : Number.isFinite(ms) ? `${((ms - startedMs) / 1000).toFixed(3)} s` : 'not yet';
    const lines = [
      `token: ${token.kind}, for ${token.audiences.join(' and ')}, ${token.serviceAccount} ${token.pod}, minted ${at(token.mintedMs)}, expires ${at(token.expiresMs)}`,
      `key: ${token.key === undefined ? 'none of the cluster' : `known to the guard from ${at(token.key.knownFromMs)}, retired ${at(token.key.retiredMs)}`}`,
      ...(token.gone === undefined ? [] : [`gone: ${token.gone.why}, ${at(token.gone.fromMs)} to ${at(token.gone.byMs)}`]),
      ...troubles
        .filter(({ fromMs, calmFromMs }) => fromMs < one.endedMs + 1_000 && calmFromMs > one.sentMs - 15_000)
        .map(({ what, isHard, fromMs, endedMs, calmFromMs }) => {
          return `cluster: ${what}${isHard ? '' : ' (some may get through)'}, ${at(fromMs)} to ${at(endedMs)}, noticed by ${at(calmFromMs)}`;
        }),
      ...grantsTo(token.serviceAccount, route.order)
        .slice(-5)
        .map(({ isGranted, fromMs, byMs }) => `order ${route.order}: ${isGranted ? 'granted' : 'revoked'} ${at(fromMs)} to ${at(byMs)}`),
      ...requests.slice(-25).map((other) => {
        const { number, sentMs, endedMs, answer = 'not seen', source, peak, peakOfOne } = other;
        const what = `${other === one ? '>' : ' '} #${number} ${other.route.path} ${at(sentMs)} to ${at(endedMs)}`;
        return `${what}: ${answer} (${source}), among ${peak}, ${peakOfOne} of its own`;
      }),
      `facts: ${JSON.stringify({ token: facts, access }, (_name, value: unknown) => (typeof value === 'number' ? at(value) : value))}`,
    ];
    return lines.map((line) => `    ${line}`).join('\n');
  }

  function begin(asking: Pick<Asked, 'number' | 'token' | 'route' | 'question' | 'access' | 'isGranted' | 'sentMs'>): Asked {
    const one: Asked = { ...asking, endedMs: Number.POSITIVE_INFINITY, answer: undefined, source: '', peak: 0, peakOfOne: 0 };
    const { token, question, access } = one;
    question?.requests.push(one);
    access?.requests.push(one);
    const ofOne = outstandingOf.get(token.serviceAccount) ?? new Set();
    outstandingOf.set(token.serviceAccount, ofOne.add(one));
    outstanding.add(one);
    for (const other of outstanding) other.peak = Math.max(other.peak, outstanding.size);
    for (const other of ofOne) other.peakOfOne = Math.max(other.peakOfOne, ofOne.size);
    return one;
  }

  return {
    token: (token) => ({ ...token, gone: undefined, questions: new Map(), accesses: new Map() }),
    bury(token, why, fromMs, byMs) {
      if (token.gone === undefined || fromMs < token.gone.fromMs) token.gone = { fromMs, byMs, why };
    },
    grant(serviceAccount, order, isGranted, fromMs, byMs) {
      const name = `${serviceAccount} ${order}`;
      const all = grants.get(name) ?? [];
      all.push({ isGranted, fromMs, byMs });
      grants.set(name, all);
    },
    trouble(begun) {
      const never = Number.POSITIVE_INFINITY;
      const trouble = { ...begun, sureUntilMs: never, endedMs: never, calmFromMs: never };
      troubles.push(trouble);
      return trouble;
    },
    over(trouble, sureUntilMs, endedMs) {
      trouble.sureUntilMs = sureUntilMs;
      trouble.endedMs = endedMs;
      trouble.calmFromMs = endedMs + noticedMs;
    },
    sent(token, route) {
      const { order, audiences } = route;
      const isMeant = isFor(token.audiences, route);
      return begin({
        number: ++asked,
        token,
        route,
        question: isMeant ? questionIn(token.questions, audiences.toSorted().join()) : undefined,
        access: isMeant && token.kind === 'good' && order !== undefined ? questionIn(token.accesses, order) : undefined,
        isGranted: order === undefined ? undefined : grantsTo(token.serviceAccount, order).at(-1)?.isGranted === true,
        sentMs: Date.now(),
      });
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
      return answer === 'observe_timeout' ? begin(one) : undefined;
    },
    judge(beforeMs) {
      const count = toJudge.findIndex(({ endedMs }) => endedMs > beforeMs);
      for (const one of toJudge.splice(0, count === -1 ? toJudge.length : count)) {
        const facts = findTokenFacts(one);
        const access = findAccessFacts(one);
        if (one.answer !== undefined) judged(one, rightAnswers(one, facts, access), () => explain(one, facts, access));
        remember(one, facts, access);
      }
      const forgottenMs = Math.min(beforeMs, ...[...outstanding].map(({ sentMs }) => sentMs)) - 120_000;
      troubles = troubles.filter(({ calmFromMs }) => calmFromMs > forgottenMs);
      for (const at of unknownIn.keys()) if (at < second(forgottenMs)) unknownIn.delete(at);
    },
  };
}

function questionIn(questions: Map<string, Question>, name: string): Question {
  const question = questions.get(name) ?? { requests: [], remembered: [] };
  questions.set(name, question);
  return question;
}

const nothing: Remembered = {
  atMs: Number.NEGATIVE_INFINITY,
  acceptedFromMs: undefined,
  acceptedByMs: Number.NEGATIVE_INFINITY,
  refusedByMs: Number.NEGATIVE_INFINITY,
  isRefused: false,
};
