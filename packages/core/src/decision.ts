// The event that every decision becomes, and what a logger gets of it.

import { channel } from 'node:diagnostics_channel';

import type { AskedFor, Caller } from './caller.ts';
import type { AuthCode } from './errors.ts';
import type { Log } from './logger.ts';

/** One decision of a guard: what is published on the `node:diagnostics_channel` named `k8s-sa-auth:decision`. Never holds a token. */
export interface Decision {
  readonly outcome: 'allowed' | 'refused' | 'unavailable';
  /** False in observe mode: what the guard would have done. */
  readonly enforced: boolean;
  readonly code?: AuthCode | 'review_unavailable';
  /** Why, for operators: fixed text such as `expired` or `own_permission_missing`. */
  readonly reason?: string;
  /** What the API server said beside it: at most 256 printable characters. It names uids and audiences, so it is not for callers. */
  readonly detail?: string;
  /** Only where it was proven. */
  readonly caller?: Caller;
  /** The route's audiences: what the token had to be for. */
  readonly audiences: readonly string[];
  readonly request: AskedFor;
  /** What decided: local screening, memory, a review (or the signature alone), or an acceptance kept through an outage. */
  readonly source: 'screening' | 'cache' | 'review' | 'signature' | 'stale';
  readonly durationMs: number;
}

/** How a request was decided, before it becomes an event. */
export type Ruling = Pick<Decision, 'source'> &
  (
    | { readonly outcome: 'allowed'; readonly caller: Caller }
    | { readonly outcome: 'refused'; readonly code: AuthCode; readonly reason: string; readonly detail?: string; readonly caller?: Caller }
    | { readonly outcome: 'unavailable'; readonly reason: string; readonly detail?: string }
  );

/** Subscribe with `diagnostics_channel.subscribe(decisionChannel, …)`. A subscriber that throws ends the process. */
export const decisionChannel = 'k8s-sa-auth:decision';

const decisions = channel(decisionChannel);

const messages = {
  refused: ['Request refused', 'Request would be refused'],
  unavailable: ['Request answered 503: nobody knows who is calling', 'Request not decided: nobody knows who is calling'],
} as const;

/** Publishes a ruling with what it was about, and logs it unless all is well. */
export function reportDecision(
  ruling: Ruling,
  about: Pick<Decision, 'enforced' | 'audiences' | 'request'> & { readonly startedMs: number },
  log: Log,
): void {
  // Most decisions: nobody listens, and all is well.
  if (ruling.outcome === 'allowed' && !decisions.hasSubscribers) return;
  const { startedMs, ...rest } = about;
  const decision: Decision = {
    ...ruling,
    ...(ruling.outcome === 'unavailable' && { code: 'review_unavailable' }),
    ...rest,
    durationMs: performance.now() - startedMs,
  };
  if (decisions.hasSubscribers) decisions.publish(decision);
  if (ruling.outcome === 'allowed') return;
  const { caller, ...told } = decision;
  log.info({ ...told, ...(caller && { caller: caller.serviceAccount }) }, messages[ruling.outcome][about.enforced ? 0 : 1]);
}
