// How a request is decided: the page to open first.

import { inspect } from 'node:util';

import { ApiServerError, connectApiServer } from './api-server.ts';
import { createBreaker, type Trouble } from './breaker.ts';
import { type AskedFor, type Caller, formatAccount, formatUsername } from './caller.ts';
import {
  explained,
  type IncomingRequest,
  type Refusal,
  refusalError,
  responseHeadersFor,
  showsToken,
  takeCredential,
  unavailableError,
} from './credential.ts';
import { createReporter, type Decision, type Ruling } from './decision.ts';
import { refuseUnknown } from './errors.ts';
import { createLog, printable } from './logger.ts';
import {
  connectionOptions,
  type ConnectionOptions,
  type GuardOptions,
  optInOptions,
  readConnection,
  readRoute,
  readSettings,
  type Route,
  type RouteGuard,
  routeOptions,
} from './options.ts';
import { createPlaces } from './places.ts';
import { createReadiness } from './readiness.ts';
import { screen as screenClaims, type ScreenedClaims, type ScreeningRefusal } from './screening.ts';
import { createSigningKeys, type Signature } from './signing-keys.ts';
import { answerRollCall } from './status.ts';
import { type AuthorizedRequest, plainPath, type Requirement, reviewAccess } from './subject-access-review.ts';
import { mayCreate, type ReviewKind, reviewToken, type Verdict } from './token-review.ts';
import { createTurns } from './turns.ts';
import { createVerdicts, patienceMs, type Sourced } from './verdicts.ts';
import { createVerification } from './verification.ts';

type ReadParams = AuthorizedRequest['params'] | (() => AuthorizedRequest['params']);

/** What stands in front of handlers. All guards made from one by `with` share its connection and memory. */
export interface Guard extends AsyncDisposable {
  /**
   * Decides one request and takes the token off it. `route` is the framework's pattern, for events and predicates; `params` are the values
   * that it has in this URL, for `authorize`, or a function that reads them, called only if `authorize` needs them.
   * Rejects with an AuthError (401, 403) or a ClusterError (503), whose `headers` belong on the response.
   * Resolves to undefined only when observing. Anything else it rejects with is a mistake in options or `allow`: a 500.
   */
  check(request: IncomingRequest, route?: string, params?: ReadParams): Promise<Caller | undefined>;
  /**
   * The same for adapters: a remembered caller is returned as it is; a promise is returned for a refusal, and where there is something to wait
   * for. Never throws. Tell them apart by `'then' in result`, not by `instanceof Promise`: a promise may be of another realm.
   */
  checkNow(...request: Parameters<Guard['check']>): Caller | Promise<Caller | undefined>;
  /**
   * Whether a request shows a token in this guard's header, good or bad. Where not, another scheme may decide it. `Authorization` is shared
   * with other schemes: there a token counts if it holds a ServiceAccount's claims, proven or not, and so does a header that is repeated, or a
   * Bearer token with a comma or white space in it, which nobody should accept. Takes nothing off.
   */
  hasToken(request: IncomingRequest): boolean;
  /** False in observe mode: that a request passes then says nothing about who sent it. */
  readonly enforced: boolean;
  /**
   * Takes the token, if `hasToken`, off a request that needs no decision, so that a public route does not see it either. Not while observing, nor
   * with `forwardToken`.
   */
  discard(request: IncomingRequest): void;
  /** A guard for routes that decide something for themselves. Throws a TypeError on options that are not understood. */
  with(route: RouteGuard): Guard;
  /** Belongs on every answer behind this guard, before the handler runs, so that no shared cache keeps it. Empty while observing. */
  readonly responseHeaders: Readonly<Record<string, string>>;
  /**
   * Resolves once the cluster has said that we may review tokens, and stays so until closed: an outage takes no replica out of service.
   * Rejects with a ClusterError that says what to mend (with the ClusterRoleBinding to apply, where that is it), with a TypeError
   * if an audience is the API server's, or when `signal` aborts.
   */
  ready(signal?: AbortSignal): Promise<void>;
  /** Drops the connections; what would need to ask the cluster is then answered 503. */
  close(): Promise<void>;
}

/** A guard without an audience of its own: each route names one. */
export type OptInGuard = Omit<Guard, 'check' | 'checkNow'>;

/**
 * Creates a guard. Throws a TypeError that says what to write if the options are not understood, or if there is no API server to ask.
 * Touches no network: the first request does, or `ready()`.
 */
export function createGuard(options: GuardOptions): Guard {
  refuseUnknown('The guard', options, [...routeOptions, ...connectionOptions]);
  return createFamily(options, readRoute(pick(options, routeOptions), undefined));
}

/** Creates a guard whose routes alone name audience and callers. They inherit what else it says. Throws as `createGuard` does. */
export function createOptInGuard(options: ConnectionOptions & Pick<RouteGuard, (typeof optInOptions)[number]>): OptInGuard {
  refuseUnknown('A guard whose routes alone name "audience" and "allow"', options, [...optInOptions, ...connectionOptions]);
  const settings = readSettings(pick(options, optInOptions), undefined);
  return createFamily(options, { ...settings, audiences: [], isAllowed: () => false, mayBeAllowed: () => false });
}

/**
 * For adapters: throws a TypeError if `other` is no scheme that could decide what a guard leaves to it, since it is no function, or a guard that
 * only observes. `call` and `takes` are for the message: `'guard.or(other)'`, `'middleware'`.
 */
export function checkScheme(other: unknown, call: string, takes: string): void {
  if (typeof other !== 'function') throw new TypeError(`${call} takes ${takes}`);
  if ('enforced' in other && other.enforced === false) {
    throw new TypeError(
      `${call}: the other is a guard that only observes, so whoever sends no token would pass. Let it enforce, or leave it out`,
    );
  }
}

function pick<O extends object, K extends keyof O>(options: O, names: readonly K[]): Pick<O, K> {
  return Object.fromEntries(names.filter((name) => Object.hasOwn(options, name)).map((name) => [name, options[name]])) as Pick<O, K>;
}

interface Screened {
  readonly claims: ScreenedClaims;
  readonly spender: string | undefined;
}

// The check of one token's signature, shared by all requests with that token until the last of them is decided.
interface Screening {
  askers: number;
  signature?: Promise<Signature>;
}

// One request, on its way through the decision.
interface Incoming {
  readonly request: IncomingRequest;
  readonly asked: AskedFor;
  readonly params: ReadParams;
}

const observeMs = 250;
const trialMs = 3_000;

function createFamily(options: ConnectionOptions, firstRoute: Route): Guard {
  const settings = readConnection(options);
  const { header, forwardToken, verification } = settings;
  const log = createLog(settings.logger);
  const reporter = createReporter(settings.logger && log);
  const apiServer = connectApiServer(settings.apiServer, log);
  const askOurOwn = (): Promise<Trouble | undefined> =>
    mayCreate(apiServer, 'TokenReviews', trialMs).then(
      () => undefined,
      (error: unknown) => {
        const { reason, message } = error instanceof ApiServerError ? error : { reason: 'guard_failed', message: describeError(error) };
        return reason === 'too_many_requests' ? undefined : { reason, detail: printable(message) };
      },
    );
  const breaker = createBreaker(askOurOwn, log);
  const signingKeys = createSigningKeys(apiServer, log);
  const isBySignature = verification === 'signature';
  const verify = createVerification(apiServer, signingKeys);
  const takeTurn = createTurns();
  const screenings = new Map<string, Screening>();
  const places = createPlaces();
  // By signature no token is reviewed: these verdicts need no breaker, and have places of their own, so as not to wait behind access reviews.
  const verdicts = isBySignature
    ? createVerdicts(settings, { isOpen: () => false, cause: () => undefined, report: () => {} }, log)
    : createVerdicts(settings, breaker, log, places);
  const accesses = createVerdicts({ ...settings, verification: 'review' }, breaker, log, places, 'Access');
  const accessPrefix = accesses.prefix([]);
  const audiences = new Set<string>();
  const kinds = new Set<ReviewKind>(isBySignature ? [] : ['TokenReviews']);
  const readiness = createReadiness(verification, apiServer, signingKeys, audiences, kinds, log);

  // The whole decision: read the token, recall its verdict or ask for one, is this caller allowed. A promise only where there is something to wait for.
  function decide(route: Route, prefix: string, incoming: Incoming): Ruling | Promise<Ruling> {
    const { request } = incoming;
    const credential = takeCredential(request, header, forwardToken || route.mode === 'observe');
    if ('code' in credential) return { outcome: 'refused', ...explained(credential, request, header), source: 'screening' };
    const { token } = credential;
    // Asked in this order, since a field that is not there is slow to look for on a request of Express.
    const connection = request.httpVersionMajor === 2 ? request.stream?.session : request.socket;
    const held = verdicts.recallHeld(connection, prefix, token);
    if (held !== undefined) return admit(route, held, incoming);
    const key = verdicts.key(prefix, token);
    const remembered = verdicts.recall(key);
    if (remembered === undefined) return decideAnew(route, key, token, incoming);
    verdicts.hold(connection, prefix, token, key);
    return admit(route, remembered, incoming);
  }

  // Screen the token, and ask the cluster about it.
  async function decideAnew(route: Route, key: string, token: string, incoming: Incoming): Promise<Ruling> {
    const deadlineMs = performance.now() + patienceMs;
    const screening = screenings.get(key) ?? { askers: 0 };
    screenings.set(key, screening);
    screening.askers += 1;
    try {
      const screened = await screen(route, key, token, screening);
      if ('outcome' in screened) return screened;
      const { claims, spender } = screened;
      const claimant = spender && formatAccount(claims.identity);
      const review = async (leftMs: number): Promise<Verdict> => {
        const asked = isBySignature
          ? verify(token, claims, route.audiences)
          : reviewToken(apiServer, token, claims, route.audiences, leftMs);
        const verdict = await asked.catch(hideMistake);
        return verdict.outcome === 'refused' && claimant !== undefined ? { ...verdict, claimant } : verdict;
      };
      const verdict = await verdicts.ask(key, spender, review, deadlineMs);
      if (verdict.outcome === 'unavailable' && verdict.reason === 'queue_of_caller_full' && claimant) return { ...verdict, claimant };
      return await admit(route, verdict, incoming);
    } finally {
      screening.askers -= 1;
      if (screening.askers === 0) screenings.delete(key);
    }
  }

  // What a verdict means on this route: is this caller allowed, by the route and then by the cluster's own rules.
  function admit(route: Route, verdict: Sourced, incoming: Incoming): Ruling | Promise<Ruling> {
    if (verdict.outcome === 'unavailable') return verdict;
    if (verdict.outcome === 'refused') return { ...verdict, code: 'invalid_token' };
    const { caller, source } = verdict;
    if (route.requirePod && caller.pod === undefined) {
      return { outcome: 'refused', code: 'invalid_token', reason: 'not_bound_to_a_pod', caller, source };
    }
    const isAllowed = route.isAllowed(caller, incoming.asked);
    return typeof isAllowed === 'boolean'
      ? grant(isAllowed, route, caller, source, incoming)
      : isAllowed.then((late) => grant(late, route, caller, source, incoming));
  }

  function grant(
    isAllowed: boolean,
    { requirement }: Route,
    caller: Caller,
    source: Sourced['source'],
    incoming: Incoming,
  ): Ruling | Promise<Ruling> {
    if (isAllowed !== true) return { outcome: 'refused', code: 'caller_not_allowed', reason: 'not_in_allow', caller, source };
    if (requirement === undefined) return { outcome: 'allowed', caller, source };
    const { request, asked, params } = incoming;
    const read = typeof params === 'function' ? params() : params;
    const spec = requirement({ ...asked, params: read, headers: request.headers, path: plainPath(request) });
    return authorize(caller, source, spec);
  }

  // Remembered by all that the cluster is told, since its rules may look at any of it.
  function authorize(caller: Caller, source: Sourced['source'], spec: ReturnType<Requirement>): Ruling | Promise<Ruling> {
    const refused = { outcome: 'refused', code: 'caller_not_allowed', caller } as const;
    if (spec === undefined) return { ...refused, reason: 'nothing_to_authorize', source };
    const conclude = (access: Sourced): Ruling => {
      // The source of the answer that was asked for last; where one of the two was kept through an outage, 'stale'.
      const decided = access.source === 'cache' || source === 'stale' ? source : access.source;
      if (access.outcome === 'accepted') return { outcome: 'allowed', caller, source: decided };
      return access.outcome === 'refused' ? { ...access, ...refused, source: decided } : access;
    };
    const key = accesses.key(accessPrefix, JSON.stringify([caller.username, caller.uid, caller.groups, caller.extra, spec]));
    const remembered = accesses.recall(key);
    if (remembered !== undefined) return conclude(remembered);
    return accesses.ask(key, caller.username, (leftMs) => reviewAccess(apiServer, caller, spec, leftMs)).then(conclude);
  }

  // What can be told before a review: by shape, claims and signature. Only claims that one of the cluster's keys signed, or that a review accepted
  // lately, say whose budget the review spends; and only the former that nobody so named is allowed here.
  async function screen(route: Route, key: string, token: string, screening: Screening): Promise<Ruling | Screened> {
    const source = 'screening';
    const claims = screenClaims(token, route.audiences);
    if ('code' in claims) return { outcome: 'refused', ...nameOwner(token, claims), source };
    const spender = formatUsername(claims.identity);
    if (verdicts.isKnown(key)) return { claims, spender };
    const signature = await screenSignature(screening, token, claims);
    if (signature === 'forged') return { outcome: 'refused', code: 'invalid_token', reason: 'forged', source };
    if (signature === 'limited') return { outcome: 'unavailable', reason: 'unknown_keys', source };
    if (signature === 'unscreened') return { claims, spender: undefined };
    if (!route.mayBeAllowed(claims.identity)) {
      const claimant = formatAccount(claims.identity);
      return { outcome: 'refused', code: 'caller_not_allowed', reason: 'not_in_allow', claimant, source };
    }
    return { claims, spender };
  }

  // Names the owner of a token that the cluster did sign, but for another audience, or that has expired: that is a mistake for somebody to mend.
  function nameOwner(token: string, { claims, ...refusal }: ScreeningRefusal): Refusal & Pick<Decision, 'claimant'> {
    if (claims === undefined) return refusal;
    const owned = signingKeys.hasSigned(token, claims);
    if (owned === 'unlooked') return { ...refusal, detail: 'Whose it is was not looked at: there are more than ten of these in a second' };
    if (!owned) return refusal;
    const what =
      refusal.reason === 'expired'
        ? `It expired at ${new Date(claims.expiresAtMs).toISOString()}, and it is ${new Date().toISOString()} here`
        : `It is for ${claims.audiences.join(', ')}`;
    return { ...refusal, claimant: formatAccount(claims.identity), detail: printable(what) };
  }

  // To verify is the dearest thing that a stranger can make us do. So it waits for its turn, remembered callers are spared it, and it is done once
  // for all requests with the same token. By signature only the turn is waited for here: the verdict that follows does the verifying.
  function screenSignature(screening: Screening, token: string, claims: ScreenedClaims): Promise<Signature> {
    screening.signature ??= takeTurn().then(() => (isBySignature ? 'unscreened' : signingKeys.screen(token, claims)));
    return screening.signature;
  }

  // The same decision, for the record: it neither fails nor holds a request up.
  async function observe(...decided: Parameters<typeof decide>): Promise<Ruling> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<Ruling>((resolve) => {
      timer = setTimeout(() => resolve({ outcome: 'unavailable', reason: 'observe_timeout', source: 'review' }), observeMs);
    });
    const failed = (error: unknown): Ruling => ({
      outcome: 'unavailable',
      reason: 'guard_failed',
      detail: describeError(error),
      source: 'review',
    });
    const ruling = await Promise.race([(async () => decide(...decided))().catch(failed), late]);
    clearTimeout(timer);
    return ruling;
  }

  function guardRoute(route: Route): Guard {
    const prefix = verdicts.prefix(route.audiences);
    for (const audience of route.audiences) audiences.add(audience);
    if (route.requirement !== undefined) kinds.add('SubjectAccessReviews');
    const enforced = route.mode === 'enforce';
    if (!enforced && route.audiences.length > 0) {
      const { audiences: named } = route;
      log.warn('observing', { audiences: named }, `The guard for ${named.join(', ')} only observes: nothing is refused`);
    }

    function conclude(
      ruling: Ruling,
      request: IncomingRequest,
      asked: AskedFor,
      startedMs: number | undefined,
    ): Caller | undefined | Promise<never> {
      const isAllowed = ruling.outcome === 'allowed';
      if (!isAllowed || reporter.isHeard()) reporter.report(ruling, { enforced, audiences: route.audiences, request: asked, startedMs });
      if (isAllowed) return ruling.caller;
      if (!enforced) return undefined;
      // Not thrown, which would cost as much as hashing the token.
      return Promise.reject(ruling.outcome === 'refused' ? refusalError(ruling.code, request, header) : unavailableError(request));
    }

    function checkNow(request: IncomingRequest, pattern?: string, params: ReadParams = {}): Caller | Promise<Caller | undefined> {
      try {
        // The clock is looked at where somebody is told, or something waited for.
        const startedMs = reporter.isHeard() ? performance.now() : undefined;
        const asked: AskedFor = { method: request.method ?? 'GET', route: pattern };
        const ruling = (enforced ? decide : observe)(route, prefix, { request, asked, params });
        if (!('then' in ruling)) return conclude(ruling, request, asked, startedMs) ?? Promise.resolve(undefined);
        const sinceMs = startedMs ?? performance.now();
        return ruling.then((late) => conclude(late, request, asked, sinceMs));
      } catch (error) {
        return Promise.reject(error);
      }
    }

    return {
      checkNow,
      check: async (...asked) => checkNow(...asked),
      hasToken: (request) => showsToken(request, header),
      enforced,
      discard(request) {
        if (showsToken(request, header)) takeCredential(request, header, forwardToken || !enforced);
      },
      with: (own) => {
        refuseUnknown('A route’s guard', own, routeOptions);
        return guardRoute(readRoute(own, route));
      },
      responseHeaders: enforced ? responseHeadersFor(header) : {},
      ready: (signal) => readiness.ready(signal),
      close,
      [Symbol.asyncDispose]: close,
    };
  }

  const leave = answerRollCall(({ guards }) => {
    const keysLoadedAt = signingKeys.loadedAt();
    const { inFlight, waiting } = places.counts();
    const [callersRemembered, refusalsRemembered] = verdicts.sizes();
    guards.push({
      audiences: [...audiences],
      verification,
      reviewsInFlight: inFlight,
      requestsWaiting: waiting,
      callersRemembered,
      refusalsRemembered,
      accessesRemembered: accesses.sizes().reduce((sum, size) => sum + size),
      breaker: breaker.state(),
      ...(keysLoadedAt && { keysLoadedAt }),
    });
  });

  async function close(): Promise<void> {
    leave();
    reporter.close();
    readiness.close();
    breaker.close();
    apiServer.close();
  }

  return guardRoute(firstRoute);
}

// A mistake in our options is a 500, and frameworks answer with an error's message: its words are for the operator.
function hideMistake(cause: unknown): never {
  throw new Error("The guard's options are wrong", { cause });
}

// What a predicate threw may refuse to be printed.
function describeError(error: unknown): string {
  try {
    return printable(inspect(error instanceof Error ? (error.cause ?? error) : error, { depth: 0 }));
  } catch {
    return 'an error that cannot be printed';
  }
}
