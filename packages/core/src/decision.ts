// The event that every decision becomes, and what a logger gets of it.

import { channel } from 'node:diagnostics_channel';

import type { AskedFor, Caller } from './caller.ts';
import type { AuthCode } from './errors.ts';
import type { Log } from './logger.ts';

/** One decision of a guard: what is published on the `node:diagnostics_channel` named `k8s-sa-auth:decision`. Never holds a token. */
export interface Decision {
  /** `unavailable`: nobody knows who is calling, which is answered 503. */
  readonly outcome: 'allowed' | 'refused' | 'unavailable';
  /** False in observe mode: what the guard would have done. */
  readonly enforced: boolean;
  readonly code?: AuthCode | 'review_unavailable';
  /** Why, for operators: fixed text such as `expired` or `own_permission_missing`. */
  readonly reason?: string;
  /**
   * More about the reason, in at most 256 printable characters: the API server's words, or ours on why it could not be asked, what a predicate
   * threw while observing, or what a `claimant`'s token is for or when it expired. It can name uids and audiences, so it is not for callers.
   */
  readonly detail?: string;
  /** Only where it was proven. */
  readonly caller?: Caller;
  /**
   * Whose token it is, as `'namespace/name'`, where nobody was proven but a signature of the cluster, or an earlier review of the same token, says
   * so: of refusals, and of `queue_of_caller_full`.
   */
  readonly claimant?: string;
  /** The route's audiences: what the token had to be for. */
  readonly audiences: readonly string[];
  readonly request: AskedFor;
  /** What decided: local screening, memory, a review (or the signature alone), or an acceptance kept through an outage. */
  readonly source: 'screening' | 'cache' | 'review' | 'signature' | 'stale';
  /** How long the decision took. Without a subscriber only waiting is measured, so that a log says 0 where there was none. */
  readonly durationMs: number;
}

/** How a request was decided, before it becomes an event. */
export type Ruling = Pick<Decision, 'source'> &
  (
    | { readonly outcome: 'allowed'; readonly caller: Caller }
    | ({ readonly outcome: 'refused'; readonly code: AuthCode; readonly reason: string } & Pick<Decision, 'detail' | 'caller' | 'claimant'>)
    | ({ readonly outcome: 'unavailable'; readonly reason: string } & Pick<Decision, 'detail' | 'claimant'>)
  );

/** Subscribe with `diagnostics_channel.subscribe(decisionChannel, …)`. A subscriber that throws ends the process. */
export const decisionChannel = 'k8s-sa-auth:decision';

const decisions = channel(decisionChannel);

const messages = {
  refused: ['Request refused', 'Request would be refused'],
  unavailable: ['Request answered 503: nobody knows who is calling', 'Request not decided: nobody knows who is calling'],
} as const;

/** Who is told of decisions. */
export interface Reporter {
  /** Whether somebody subscribed. Most often nobody listens and all is well, and there is nothing to report. */
  isHeard(): boolean;
  /** Publishes a ruling with what it was about, and logs it unless all is well. */
  report(ruling: Ruling, about: Pick<Decision, 'enforced' | 'audiences' | 'request'> & { readonly startedMs: number | undefined }): void;
  /** Logs what was held back and not yet told. */
  close(): void;
}

/** Without a log, only subscribers are told. */
export function createReporter(log: Log | undefined): Reporter {
  const lines = log && createLines(log);
  return {
    isHeard: () => decisions.hasSubscribers,
    report(ruling, { enforced, audiences, request, startedMs }) {
      const isLogged = lines !== undefined && ruling.outcome !== 'allowed';
      const durationMs = startedMs === undefined ? 0 : performance.now() - startedMs;
      const about = { enforced, audiences, request: { ...request, method: plainMethod(request.method) }, durationMs };
      const decision: Decision =
        ruling.outcome === 'unavailable' ? { ...ruling, code: 'review_unavailable', ...about } : { ...ruling, ...about };
      if (decisions.hasSubscribers) decisions.publish(decision);
      if (isLogged) lines.add(decision, messages[ruling.outcome][enforced ? 0 : 1]);
    },
    close: () => lines?.close(),
  };
}

// Over HTTP/2 a method is whatever the caller writes.
const plainMethod = (method: string): string => (/^[A-Za-z-]{1,20}$/.test(method) ? method : '(other)');

const windowMs = 10_000;
// So many callers, named by a review or by a signature of the cluster, have lines of their own; all others share one for each kind of refusal.
// Kinds are bounded by themselves: their audiences and reasons are ours.
const maxCallers = 1_000;

// One kind of refusal, within its window.
interface Line {
  readonly key: string;
  readonly isOfCaller: boolean;
  readonly message: string;
  /** What is told at the end of the window: the last of those held back. */
  last: Omit<Decision, 'caller'> & { readonly caller?: string };
  held: number;
  timer: NodeJS.Timeout;
}

// Whoever sends a thousand bad tokens a second must fill no disk, and no refusal may go uncounted: the first of a kind is logged at once, the
// others of the next ten seconds as one line at their end, which says how many requests it stands for.
function createLines(log: Log): { add(decision: Decision, message: string): void; close(): void } {
  const lines = new Map<string, Line>();
  let callers = 0;

  function endWindow(line: Line): void {
    if (line.held > 0) {
      log.info({ ...line.last, times: line.held }, line.message);
      line.held = 0;
      line.timer = startWindow(() => endWindow(line));
    } else {
      lines.delete(line.key);
      if (line.isOfCaller) callers -= 1;
    }
  }

  return {
    add({ caller, claimant, ...decision }, message) {
      const kind = `${decision.enforced} ${decision.reason} ${decision.audiences.join()}`;
      const name = caller?.serviceAccount ?? claimant;
      const own = name && `${kind} ${name}`;
      const isOfCaller = own !== undefined && (lines.has(own) || callers < maxCallers);
      const key = isOfCaller ? own : kind;
      const last = { ...decision, ...(name && isOfCaller && { [caller ? 'caller' : 'claimant']: name }) };
      const line = lines.get(key);
      if (line !== undefined) {
        line.last = last;
        line.held += 1;
        return;
      }
      if (isOfCaller) callers += 1;
      const begun: Line = { key, isOfCaller, message, last, held: 0, timer: startWindow(() => endWindow(begun)) };
      lines.set(key, begun);
      log.info({ ...last, times: 1 }, message);
    },
    close() {
      for (const { timer, held, last, message } of lines.values()) {
        clearTimeout(timer);
        if (held > 0) log.info({ ...last, times: held }, message);
      }
      lines.clear();
      callers = 0;
    },
  };
}

// It keeps no process alive: one that ends without close() loses what it held back.
const startWindow = (end: () => void): NodeJS.Timeout => setTimeout(end, windowMs).unref();
