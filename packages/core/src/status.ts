// Who is there to be looked at: the guards and clients of this process that are not closed.

import { channel } from 'node:diagnostics_channel';

import type { TargetStatus } from './service-client.ts';

/** The state of one guard and of all guards made from it by `with`. */
export interface GuardStatus {
  /** All that its routes name. */
  readonly audiences: readonly string[];
  readonly verification: 'review' | 'signature';
  /** Reviews under way, at most 32. */
  readonly reviewsInFlight: number;
  /** Requests that wait for a review, their own or another's for the same token: at most 1 000. */
  readonly requestsWaiting: number;
  /** Accepted tokens in memory, at most 10 000. One whose time is over counts until something takes its place. */
  readonly callersRemembered: number;
  /** Refused tokens in memory, at most 1 000. */
  readonly refusalsRemembered: number;
  /** Answers to `authorize` in memory, yes and no: at most 11 000. */
  readonly accessesRemembered: number;
  /** `open`: the cluster does not answer, so nobody's token is reviewed. `asking`: it is being asked whether to open. */
  readonly breaker: 'shut' | 'asking' | 'open';
  /** When the cluster's signing keys were last loaded; absent where they never were. */
  readonly keysLoadedAt?: Date;
}

/** What the guards and clients of a process say of themselves. Never a token. */
export interface ProcessStatus {
  readonly guards: readonly GuardStatus[];
  readonly targets: readonly TargetStatus[];
}

/** Where guards and clients put what they say of themselves. */
interface RollCall {
  readonly guards: GuardStatus[];
  readonly targets: TargetStatus[];
}

// By its name, so that an adapter's copy of this package and the program's own see the same guards.
const rollCall = channel('k8s-sa-auth:roll-call');

/** The state of every guard and every target of this process, whoever made them, until they are closed: for gauges and health pages. */
export function processStatus(): ProcessStatus {
  const all: RollCall = { guards: [], targets: [] };
  rollCall.publish(all);
  return all;
}

/** Answers every roll call until the returned function is called. `answer` must not throw. */
export function answerRollCall(answer: (all: RollCall) => void): () => void {
  const listener = (all: unknown): void => answer(all as RollCall);
  rollCall.subscribe(listener);
  return () => rollCall.unsubscribe(listener);
}
