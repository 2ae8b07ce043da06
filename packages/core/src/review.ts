// What a question to the API server about a caller is to whoever looks on: one event when it is asked, one when it is over.

import { tracingChannel } from 'node:diagnostics_channel';

import { type Answer, type ApiServerConnection, ApiServerError, type Question } from './api-server.ts';
import { printable } from './logger.ts';
import type { Verdict } from './token-review.ts';

/** One review: what the events of the tracing channel `k8s-sa-auth:review` are about. Never holds a token. */
export interface Review {
  readonly resource: 'tokenreviews' | 'subjectaccessreviews';
  readonly method: 'POST';
  /** Where the API server is asked. */
  readonly url: string;
  /** The HTTP status of its last answer, once there is one. */
  readonly status?: number;
  /** What came of it, when it is over. */
  readonly result?: Verdict;
  /** Where it rejected: a mistake in our own options. */
  readonly error?: unknown;
}

/** Subscribe with `diagnostics_channel.tracingChannel(reviewChannel).subscribe({ … })`. A subscriber that throws ends the process. */
export const reviewChannel = 'k8s-sa-auth:review';

const reviews = tracingChannel<string, Review>(reviewChannel);

type Ask = (question: Pick<Question, 'body' | 'maxAnswerBytes'>) => Promise<Answer>;

/** Asks what `inquire` asks, and tells subscribers. Rejects as that does, but for an API server that gives no answer: nobody knows. */
export function traceReview(
  apiServer: ApiServerConnection,
  kind: { readonly group: string; readonly resource: Review['resource'] },
  budgetMs: number,
  inquire: (ask: Ask) => Promise<Verdict>,
): Promise<Verdict> {
  const { host, pathname } = apiServer.url;
  const path = `/apis/${kind.group}/v1/${kind.resource}`;
  const event: Review & { status?: number } = {
    resource: kind.resource,
    method: 'POST',
    url: `https://${host}${pathname.replace(/\/$/, '')}${path}`,
  };
  const ask: Ask = async (question) => {
    const answer = await apiServer.ask({ method: 'POST', path, ...question }, budgetMs);
    event.status = answer.status;
    return answer;
  };
  const knowing = async (): Promise<Verdict> => {
    try {
      return await inquire(ask);
    } catch (error) {
      if (error instanceof ApiServerError) return { outcome: 'unavailable', reason: error.reason, detail: printable(error.message) };
      throw error;
    }
  };
  return reviews.tracePromise(knowing, event);
}
