// What a step is: something that is sent, what has to come of it, and how the two are compared.

import { setTimeout as delay } from 'node:timers/promises';

import type { Authority } from '@k8s-sa-auth/testing';

import type { Report } from './report.ts';

/** What came back. */
export interface Answer {
  readonly status: number;
  /** Why a guard refused: `invalid_token` and so on. */
  readonly code?: string | undefined;
  readonly retryAfter?: string | undefined;
  readonly body: string;
}

export interface Step {
  readonly sent: string;
  /** `reviews`: how often the API server had to be asked; left out where that may differ. Whatever is named has to come out so. */
  readonly expected: {
    readonly status: number;
    readonly code?: string;
    readonly reviews?: number | { readonly atLeast: number };
    readonly body?: string;
    readonly retryAfter?: RegExp;
  };
  readonly why: string | ((answer: Answer) => string);
  act(): Promise<Answer>;
}

/** Steps that belong together. */
export interface Chapter {
  readonly heading: string;
  readonly notes?: readonly string[];
  readonly steps: readonly Step[];
}

/** How many TokenReviews the API server has answered. */
export function countReviews({ calls }: Pick<Authority, 'calls'>): number {
  return calls.filter(({ resource }) => resource === 'tokenreviews').length;
}

/** Sends a GET with a token in `X-Client-Id`, or without one. */
export async function send(url: string, { token, signal }: { readonly token?: string; readonly signal: AbortSignal }): Promise<Answer> {
  const answer = await fetch(url, {
    headers: token === undefined ? {} : { 'x-client-id': token },
    redirect: 'manual',
    signal: AbortSignal.any([signal, AbortSignal.timeout(15_000)]),
  });
  const body = await answer.text();
  return {
    status: answer.status,
    // Fastify's error body names the code; all three frameworks carry it in the challenge.
    code: codeIn(body) ?? /error="(\w+)"/.exec(answer.headers.get('www-authenticate') ?? '')?.[1],
    retryAfter: answer.headers.get('retry-after') ?? undefined,
    body,
  };
}

function codeIn(body: string): string | undefined {
  try {
    const { code }: { readonly code?: unknown } = Object(JSON.parse(body));
    return typeof code === 'string' ? code : undefined;
  } catch {
    return undefined;
  }
}

/** Runs all steps, one after the other, and goes on after one that fails. Returns what was sent in those that failed, and the count. */
export async function runSteps(
  chapters: readonly Chapter[],
  { authority, report, signal }: { readonly authority: Pick<Authority, 'calls'>; readonly report: Report; readonly signal: AbortSignal },
): Promise<{ readonly count: number; readonly failed: readonly string[] }> {
  const failed: string[] = [];
  for (const { heading, notes = [], steps } of chapters) {
    report.heading(heading, chapters[0]?.heading === heading);
    for (const note of notes) report.note(note);
    for (const step of steps) {
      report.pending(step.sent);
      const before = countReviews(authority);
      const answer = await step.act().catch(async (error: unknown) => {
        // Ctrl-C reaches the services too, and they may be gone before it is known here.
        await delay(100);
        signal.throwIfAborted();
        return error instanceof Error ? error : new Error(String(error));
      });
      signal.throwIfAborted();
      const reviews = countReviews(authority) - before;
      const faults = findFaults(step, answer, reviews);
      if (faults.length > 0) failed.push(step.sent);
      const { answered, why } =
        answer instanceof Error
          ? { answered: 'no answer', why: '' }
          : {
              answered: `${answer.status} ${answer.code ?? ''}`.trim(),
              why: typeof step.why === 'string' ? step.why : step.why(answer),
            };
      report.step({ sent: step.sent, answer: answered, asked: formatReviews(reviews), why: faults.length === 0 ? why : '', faults });
    }
  }
  return { count: chapters.flatMap(({ steps }) => steps).length, failed };
}

function formatReviews(count: number): string {
  if (count === 0) return '—';
  return count === 1 ? '1 review' : `${count} reviews`;
}

function findFaults({ expected }: Step, answer: Answer | Error, reviews: number): readonly string[] {
  if (answer instanceof Error) {
    const { cause } = answer;
    return [`expected ${expected.status}, got ${answer.message}${cause instanceof Error ? `: ${cause.message}` : ''}`];
  }
  const { status, code, retryAfter = '', body } = answer;
  const [wanted, got] = [`${expected.status} ${expected.code ?? ''}`.trim(), `${status} ${code ?? ''}`.trim()];
  const faults = wanted === got ? [] : [`expected ${wanted}, got ${got}: ${body}`];
  if (expected.body !== undefined && !body.includes(expected.body)) faults.push(`expected "${expected.body}", got "${body}"`);
  if (expected.retryAfter?.test(retryAfter) === false) faults.push(`expected Retry-After ${expected.retryAfter}, got "${retryAfter}"`);
  const wantedReviews = expected.reviews;
  const isAsExpected =
    wantedReviews === undefined || (typeof wantedReviews === 'number' ? reviews === wantedReviews : reviews >= wantedReviews.atLeast);
  if (!isAsExpected) {
    const count = typeof wantedReviews === 'number' ? wantedReviews : `at least ${wantedReviews.atLeast}`;
    faults.push(`expected ${count} TokenReviews, got ${reviews}`);
  }
  return faults;
}
