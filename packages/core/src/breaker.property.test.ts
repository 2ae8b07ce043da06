import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, it, mock } from 'node:test';

import * as fc from 'fast-check';

import { type Breaker, createBreaker, type Trouble } from './breaker.ts';
import { createCaller } from './caller.ts';
import { cases } from './fixtures/cases.ts';
import type { Log } from './logger.ts';
import type { Verdict } from './token-review.ts';
import { createVerdicts, type Sourced } from './verdicts.ts';

const start = 1_800_000_000_000;
const memory = { verification: 'review' as const, cacheTtlMs: 60_000, refusalTtlMs: 5_000, staleIfErrorMs: 300_000 };
const quiet: Log = { info: () => {}, warn: () => {} };
const settled = (): Promise<unknown> => new Promise(setImmediate);

// What the rules allow, said a second time: five failures in a row ask our own question, its failure opens, its success shuts.
class Model {
  failures = 0;
  isOpen = false;
  isAsking = false;
  waits = 0;
  /** When the next question of our own is due, at the earliest and at the latest. */
  due: readonly [fromMs: number, toMs: number] | undefined;

  report(outcome: 'answered' | 'failed'): void {
    this.failures = outcome === 'answered' ? 0 : this.failures + 1;
    if (this.failures >= 5 && !this.isOpen) this.isAsking = true;
  }

  answer(isUp: boolean, nowMs: number): void {
    this.isAsking = false;
    this.isOpen = !isUp;
    if (isUp) {
      [this.failures, this.waits, this.due] = [0, 0, undefined];
      return;
    }
    const waitMs = [1_000, 2_000][this.waits] ?? 4_000;
    this.waits += 1;
    this.due = [nowMs + waitMs * 0.8, nowMs + waitMs * 1.2];
  }

  pass(asked: boolean, nowMs: number): void {
    if (this.due === undefined) return assert.equal(asked, false, 'our own question is asked though nothing is wrong');
    const [fromMs, toMs] = this.due;
    if (asked) assert.ok(nowMs >= Math.floor(fromMs), 'our own question is asked too early');
    else assert.ok(nowMs <= Math.ceil(toMs) + 1, 'our own question is asked too late');
    if (!asked) return;
    this.isAsking = true;
    this.due = undefined;
  }
}

const endings = fc.constantFrom(
  'accepted',
  'refused',
  'timeout',
  'timeout',
  'timeout',
  'connection_reset',
  'too_many_requests',
  'review_timed_out_inside',
);

function verdictOf(ending: string): Verdict {
  if (ending === 'refused') return { outcome: 'refused', reason: 'review_refused' };
  if (ending !== 'accepted') return { outcome: 'unavailable', reason: ending };
  const user = { uid: 'u', groups: [], extra: {} };
  const caller = createCaller({ namespace: 'api', name: 'api' }, user, ['secret-store'], Date.now() + 3_600_000);
  return { outcome: 'accepted', caller };
}

describe('the breaker, whatever happens', () => {
  let breakers: Breaker[];
  beforeEach(() => {
    breakers = [];
    mock.timers.enable({ apis: ['Date', 'setTimeout'], now: start });
  });
  afterEach(() => {
    for (const breaker of breakers) breaker.close();
    mock.timers.reset();
  });

  it('opens only after five failures in a row and one of its own question, reviews nobody while open, and asks again in time', async () => {
    const steps = fc.oneof(
      { weight: 6, arbitrary: fc.record({ step: fc.constant('check' as const), token: fc.nat(6) }) },
      { weight: 6, arbitrary: fc.record({ step: fc.constant('end' as const), which: fc.nat(6), ending: endings }) },
      // What an outage does, and what is rare otherwise.
      { weight: 2, arbitrary: fc.record({ step: fc.constant('fail' as const), times: fc.integer({ min: 1, max: 7 }) }) },
      { weight: 2, arbitrary: fc.record({ step: fc.constant('own' as const), isUp: fc.boolean() }) },
      {
        weight: 2,
        arbitrary: fc.record({ step: fc.constant('wait' as const), ms: fc.constantFrom(10, 500, 1_000, 3_000, 61_000, 240_000) }),
      },
    );
    await fc.assert(
      fc.asyncProperty(fc.array(steps, { maxLength: 40 }), async (plan) => {
        for (const old of breakers.splice(0)) old.close();
        const own: ((trouble: Trouble | undefined) => void)[] = [];
        const breaker = createBreaker(() => new Promise((resolve) => own.push(resolve)), quiet);
        breakers.push(breaker);
        const verdicts = createVerdicts(memory, breaker, quiet);
        const model = new Model();
        const lastYes = new Map<string, number>();
        const checked: Promise<void>[] = [];
        const reviews: { readonly key: string; readonly askedAtMs: number; readonly answer: (verdict: Verdict) => void }[] = [];

        async function check(key: string): Promise<void> {
          const wasOpen = model.isOpen;
          if (verdicts.recall(key) !== undefined) return;
          const answered = verdicts.ask(key, undefined, () => {
            assert.equal(wasOpen, false, 'a caller’s token is reviewed while the breaker is open');
            return new Promise((resolve) => reviews.push({ key, askedAtMs: Date.now(), answer: resolve }));
          });
          checked.push(answered.then((verdict) => isRight(key, verdict)));
          await settled();
          if (wasOpen) assert.equal((await Promise.race([answered, settled()])) === undefined, false, 'it waits while the breaker is open');
        }

        function isRight(key: string, verdict: Sourced): void {
          if (verdict.source !== 'stale') return;
          const sinceMs = lastYes.get(key);
          assert.ok(sinceMs !== undefined && Date.now() - sinceMs < memory.staleIfErrorMs, 'a stale answer is too old');
        }

        async function end(index: number, verdict: Verdict): Promise<void> {
          const [review] = reviews.splice(index, 1);
          if (review === undefined) return;
          if (verdict.outcome === 'accepted') lastYes.set(review.key, review.askedAtMs);
          if (verdict.outcome === 'refused') lastYes.delete(review.key);
          const isNeither =
            verdict.outcome === 'unavailable' && (verdict.reason === 'too_many_requests' || verdict.reason === 'review_timed_out_inside');
          if (!isNeither) model.report(verdict.outcome === 'unavailable' ? 'failed' : 'answered');
          review.answer(verdict);
          await settled();
        }

        for (const step of plan) {
          if (step.step === 'check') await check(`k${step.token}`);
          else if (step.step === 'end' && reviews.length > 0) await end(step.which % reviews.length, verdictOf(step.ending));
          else if (step.step === 'fail') {
            for (let time = 0; time < step.times && !model.isOpen; time++) {
              await check(`new${step.times}${time}`);
              await end(reviews.length - 1, verdictOf('timeout'));
            }
          } else if (step.step === 'own' && own.length > 0) {
            own.shift()?.(step.isUp ? undefined : { reason: 'timeout', detail: '' });
            model.answer(step.isUp, Date.now());
            await settled();
          } else if (step.step === 'wait') {
            for (let leftMs = step.ms; leftMs > 0; leftMs -= 100) {
              const before = own.length;
              mock.timers.tick(Math.min(100, leftMs));
              model.pass(own.length > before, Date.now());
              // With nothing due, the rest passes at once.
              if (model.due === undefined && leftMs > 100) {
                mock.timers.tick(leftMs - 100);
                break;
              }
            }
          }
          assert.equal(breaker.isOpen(), model.isOpen);
          assert.equal(own.length, model.isAsking ? 1 : 0);
        }
        for (const { answer } of reviews) answer(verdictOf('refused'));
        await Promise.all(checked);
      }),
      cases(2),
    );
  });

  it('is opened by no one caller, whatever it sends, while our own question is answered', async () => {
    const plans = fc.array(
      fc.record({ ending: endings, together: fc.integer({ min: 1, max: 8 }), waitMs: fc.constantFrom(0, 0, 100, 5_000) }),
      { maxLength: 30 },
    );
    await fc.assert(
      fc.asyncProperty(plans, async (plan) => {
        for (const old of breakers.splice(0)) old.close();
        const breaker = createBreaker(() => Promise.resolve(undefined), quiet);
        breakers.push(breaker);
        const verdicts = createVerdicts(memory, breaker, quiet);
        let sent = 0;
        for (const { ending, together, waitMs } of plan) {
          const bad = Array.from({ length: together }, () =>
            verdicts.ask(`bad${sent++}`, 'attacker', () => Promise.resolve(verdictOf(ending))),
          );
          const good = await verdicts.ask(`good${sent}`, 'good', () => Promise.resolve(verdictOf('accepted')));
          assert.equal(`${good.outcome} ${good.source}`, 'accepted review');
          await Promise.all(bad);
          await settled();
          assert.equal(breaker.isOpen(), false);
          mock.timers.tick(waitMs);
        }
      }),
      cases(5),
    );
  });
});
