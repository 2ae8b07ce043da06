import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import type { Line, Report } from './report.ts';
import { type Answer, runSteps, type Step } from './steps.ts';

const review = { verb: 'create', resource: 'tokenreviews', status: 201 };
const { signal } = new AbortController();

function collect(): { readonly report: Report; readonly lines: Line[] } {
  const lines: Line[] = [];
  const nothing = (): void => {};
  const step = (line: Line): void => void lines.push(line);
  return {
    lines,
    report: {
      title: nothing,
      fact: nothing,
      heading: nothing,
      note: nothing,
      pending: nothing,
      summary: nothing,
      interrupted: nothing,
      plain: nothing,
      step,
    },
  };
}

const stepOf = (expected: Step['expected'], act: () => Promise<Answer>): Step => ({ sent: 'a token', expected, why: 'because', act });
const ok: Answer = { status: 200, body: 'Hello' };

async function runOne(
  step: Step,
  calls: (typeof review)[] = [],
): Promise<{ readonly line: Line | undefined; readonly failed: readonly string[] }> {
  const { report, lines } = collect();
  const { failed } = await runSteps([{ heading: 'A chapter', steps: [step] }], { authority: { calls }, report, signal });
  return { line: lines[0], failed };
}

describe('runSteps', () => {
  it('shows a step that came out as it should, and how often the API server was asked', async () => {
    const calls: (typeof review)[] = [review];
    const act = async (): Promise<Answer> => {
      calls.push(review);
      return ok;
    };
    const { line, failed } = await runOne(stepOf({ status: 200, reviews: 1, body: 'Hello' }, act), calls);
    assert.deepEqual(line, { sent: 'a token', answer: '200', asked: '1 review', why: 'because', faults: [] });
    assert.deepEqual(failed, []);
  });

  it('says what was expected and what came instead', async () => {
    const { line, failed } = await runOne(stepOf({ status: 403, code: 'invalid_token' }, async () => ok));
    assert.deepEqual(line?.faults, ['expected 403 invalid_token, got 200: Hello']);
    assert.deepEqual(failed, ['a token']);
  });

  it('notices another code, another body, another Retry-After and another number of reviews', async () => {
    const act = async (): Promise<Answer> => ({ status: 503, code: 'b', retryAfter: '9', body: 'Hello' });
    const { line } = await runOne(stepOf({ status: 503, code: 'a', body: 'Good bye', retryAfter: /^[1-5]$/, reviews: 1 }, act));
    assert.deepEqual(line?.faults, [
      'expected 503 a, got 503 b: Hello',
      'expected "Good bye", got "Hello"',
      'expected Retry-After /^[1-5]$/, got "9"',
      'expected 1 TokenReviews, got 0',
    ]);
  });

  it('goes on after a step that gets no answer', async () => {
    const { report, lines } = collect();
    const refused = stepOf({ status: 200 }, async () => {
      throw new TypeError('fetch failed', { cause: new Error('connect ECONNREFUSED') });
    });
    const steps = [refused, stepOf({ status: 200 }, async () => ok)];
    const { count, failed } = await runSteps([{ heading: 'A chapter', steps }], { authority: { calls: [] }, report, signal });
    assert.equal(count, 2);
    assert.deepEqual(failed, ['a token']);
    assert.deepEqual(
      lines.map(({ faults }) => faults),
      [['expected 200, got fetch failed: connect ECONNREFUSED'], []],
    );
  });

  it('stops when it is interrupted', async () => {
    const { report, lines } = collect();
    const interruption = new AbortController();
    const act = async (): Promise<Answer> => {
      interruption.abort('SIGINT');
      return ok;
    };
    const running = runSteps([{ heading: 'A chapter', steps: [stepOf({ status: 200 }, act), stepOf({ status: 200 }, act)] }], {
      authority: { calls: [] },
      report,
      signal: interruption.signal,
    });
    await assert.rejects(running, (reason) => reason === 'SIGINT');
    assert.deepEqual(lines, []);
  });
});
