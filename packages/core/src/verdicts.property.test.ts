import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, it, mock } from 'node:test';

import * as fc from 'fast-check';

import { createCaller } from './caller.ts';
import { cases } from './fixtures/cases.ts';
import type { Log } from './logger.ts';
import type { Verdict } from './token-review.ts';
import { createVerdicts, type Sourced } from './verdicts.ts';

const start = 1_800_000_000_000;
const quiet: Log = { info: () => {}, warn: () => {} };
const settled = (): Promise<unknown> => new Promise(setImmediate);

function accepted(expiresAtMs: number): Verdict {
  const user = { uid: 'u', groups: [], extra: {} };
  return { outcome: 'accepted', caller: createCaller({ namespace: 'api', name: 'api' }, user, ['secret-store'], expiresAtMs) };
}

const options = fc.record({
  verification: fc.constant('review' as const),
  cacheTtlMs: fc.constantFrom(-1, 0, 1_000, 60_000, 400_000),
  refusalTtlMs: fc.constantFrom(-1, 0, 5_000, 120_000),
  staleIfErrorMs: fc.constantFrom(0, 30_000, 300_000),
});
const nothingKept = { verification: 'review' as const, cacheTtlMs: 0, refusalTtlMs: 0, staleIfErrorMs: 0 };
const keys = fc.constantFrom('a', 'b');
const waits = fc.constantFrom(0, 0, 1, 999, 5_000, 30_000, 60_000, 240_000, -10_000);
const troubles = fc.constantFrom('timeout', 'too_many_requests', 'review_timed_out_inside', 'api_server_error', 'unknown_keys', 'closed');
const endings = fc.oneof(
  fc.record({ outcome: fc.constant('accepted' as const), livesMs: fc.constantFrom(1, 20_000, 3_600_000, 3_600_000) }),
  fc.record({ outcome: fc.constant('refused' as const), reason: fc.constant('review_refused') }),
  fc.record({ outcome: fc.constant('unavailable' as const), reason: troubles }),
);
// A check is most often answered before the next begins.
const steps = fc.oneof(
  { weight: 6, arbitrary: fc.record({ step: fc.constant('check' as const), key: keys, waitMs: waits, ending: endings }) },
  { weight: 2, arbitrary: fc.record({ step: fc.constant('ask' as const), key: keys }) },
  { weight: 2, arbitrary: fc.record({ step: fc.constant('answer' as const), key: keys, ending: endings }) },
  { weight: 2, arbitrary: fc.record({ step: fc.constant('wait' as const), waitMs: waits }) },
  { weight: 1, arbitrary: fc.record({ step: fc.constant('breaker' as const), isOpen: fc.boolean() }) },
);

type Generated<A> = A extends fc.Arbitrary<infer E> ? E : never;

interface Review {
  readonly askedAtMs: number;
  readonly answer: (verdict: Verdict) => void;
  readonly waiting: Promise<Sourced>[];
}

// What has to be remembered, as the promises say it: the last yes and the last no of each key, and when.
class Model {
  readonly yes = new Map<string, { readonly sinceMs: number; readonly expiresAtMs: number }>();
  readonly no = new Map<string, number>();

  isAccepted(key: string, nowMs: number, withinMs: number): boolean {
    const yes = this.yes.get(key);
    return yes !== undefined && nowMs < yes.expiresAtMs && isWithin(yes.sinceMs, nowMs, withinMs);
  }

  recall(key: string, nowMs: number, ttl: { readonly cacheTtlMs: number; readonly refusalTtlMs: number }): string {
    if (this.isAccepted(key, nowMs, ttl.cacheTtlMs)) return 'accepted cache';
    const no = this.no.get(key);
    return no !== undefined && isWithin(no, nowMs, ttl.refusalTtlMs) ? 'refused cache' : 'nothing';
  }
}

// A clock that was set back makes nothing younger.
const isWithin = (sinceMs: number, nowMs: number, ttlMs: number): boolean => nowMs >= sinceMs && nowMs - sinceMs < ttlMs;
const told = (verdict: Sourced | undefined): string => (verdict === undefined ? 'nothing' : `${verdict.outcome} ${verdict.source}`);

describe('createVerdicts, whatever happens', () => {
  beforeEach(() => mock.timers.enable({ apis: ['Date'], now: start }));
  afterEach(() => mock.timers.reset());

  it('remembers as long as it may, accepts on through an outage as long as it may, and asks once at a time', async () => {
    await fc.assert(
      fc.asyncProperty(options, fc.array(steps, { maxLength: 30 }), async (ttl, plan) => {
        let nowMs = start;
        mock.timers.setTime(nowMs);
        let isOpen = false;
        let asked = 0;
        const reported: string[] = [];
        const verdicts = createVerdicts(
          ttl,
          { isOpen: () => isOpen, cause: () => 'timeout: no answer', report: (outcome) => void reported.push(outcome) },
          quiet,
        );
        const model = new Model();
        const reviews = new Map<string, Review>();
        const otherwise = (key: string): string =>
          model.isAccepted(key, nowMs, ttl.staleIfErrorMs) ? 'accepted stale' : 'unavailable review';

        async function ask(key: string): Promise<void> {
          if (told(verdicts.recall(key)) !== 'nothing') return;
          const before = asked;
          let resolveReview: Review['answer'] | undefined;
          const verdict = verdicts.ask(key, undefined, () => {
            asked += 1;
            return new Promise((resolve) => {
              resolveReview = resolve;
            });
          });
          await settled();
          if (isOpen) {
            assert.equal(asked, before, 'a token is reviewed while the breaker is open');
            assert.equal(told(await verdict), otherwise(key));
            return;
          }
          const review = reviews.get(key);
          assert.equal(asked, review === undefined ? before + 1 : before);
          if (review !== undefined) review.waiting.push(verdict);
          else if (resolveReview !== undefined) reviews.set(key, { askedAtMs: nowMs, answer: resolveReview, waiting: [verdict] });
        }

        async function answer(key: string, verdict: Verdict): Promise<void> {
          const review = reviews.get(key);
          if (review === undefined) return;
          reviews.delete(key);
          if (verdict.outcome === 'accepted') {
            model.yes.set(key, { sinceMs: review.askedAtMs, expiresAtMs: verdict.caller.expiresAt.getTime() });
            model.no.delete(key);
          } else if (verdict.outcome === 'refused') {
            model.yes.delete(key);
            model.no.set(key, nowMs);
          }
          // Our own limits are no reason to accept on.
          const isOurLimit = verdict.outcome === 'unavailable' && ['unknown_keys', 'closed'].includes(verdict.reason);
          const expected = verdict.outcome === 'unavailable' && !isOurLimit ? otherwise(key) : `${verdict.outcome} review`;
          const before = reported.length;
          review.answer(verdict);
          for (const each of await Promise.all(review.waiting)) assert.equal(told(each), expected);
          const isNoFailure =
            verdict.outcome === 'unavailable' &&
            ['too_many_requests', 'review_timed_out_inside', 'unknown_keys', 'closed'].includes(verdict.reason);
          assert.deepEqual(reported.slice(before), isNoFailure ? [] : [verdict.outcome === 'unavailable' ? 'failed' : 'answered']);
        }

        const end = ({ ...ending }: Generated<typeof endings>): Verdict =>
          ending.outcome === 'accepted' ? accepted(nowMs + ending.livesMs) : ending;

        for (const step of plan) {
          if ('waitMs' in step) mock.timers.setTime((nowMs += step.waitMs));
          if (step.step === 'breaker') ({ isOpen } = step);
          if (step.step === 'check' || step.step === 'ask') await ask(step.key);
          if (step.step === 'check' || step.step === 'answer') await answer(step.key, end(step.ending));
          for (const key of ['a', 'b']) assert.equal(told(verdicts.recall(key)), model.recall(key, nowMs, ttl));
        }
      }),
      cases(),
    );
  });

  it('keeps to its places: 32 in flight, 8 of one ServiceAccount, and none idle while somebody waits for it', async () => {
    const spenders = fc.constantFrom(undefined, undefined, 'greedy', 'other', 'third');
    const turns = fc.array(
      fc.oneof(fc.record({ ask: spenders, times: fc.integer({ min: 1, max: 12 }) }), fc.record({ finish: fc.nat() })),
      { maxLength: 60 },
    );
    await fc.assert(
      fc.asyncProperty(turns, async (plan) => {
        const verdicts = createVerdicts(nothingKept, { isOpen: () => false, cause: () => undefined, report: () => {} }, quiet);
        const flying: { readonly spender: string | undefined; readonly finish: () => void }[] = [];
        const outstanding = new Map<string | undefined, number>();
        const all: Promise<Sourced>[] = [];
        const count = (spender: string | undefined, by: number): Map<string | undefined, number> =>
          outstanding.set(spender, (outstanding.get(spender) ?? 0) + by);
        const finish = (index: number): void => {
          const [one] = flying.splice(index, 1);
          if (one === undefined) return;
          count(one.spender, -1);
          one.finish();
        };

        for (const turn of plan) {
          for (let time = 0; 'ask' in turn && time < turn.times && all.length < 90; time++) {
            const { ask: spender } = turn;
            count(spender, 1);
            const review = (): Promise<Verdict> =>
              new Promise((resolve) => flying.push({ spender, finish: () => resolve({ outcome: 'refused', reason: 'review_refused' }) }));
            all.push(verdicts.ask(`k${all.length}`, spender, review));
          }
          if ('finish' in turn && flying.length > 0) finish(turn.finish % flying.length);
          await settled();
          assert.ok(flying.length <= 32);
          for (const [spender, wanted] of outstanding) {
            const mine = flying.filter((one) => one.spender === spender).length;
            if (spender !== undefined) assert.ok(mine <= 8);
            assert.ok(flying.length === 32 || mine === (spender === undefined ? wanted : Math.min(8, wanted)), 'a place is left idle');
          }
        }
        while (flying.length > 0) {
          finish(0);
          await settled();
        }
        assert.ok((await Promise.all(all)).every(({ outcome }) => outcome === 'refused'));
      }),
      cases(20),
    );
  });

  it('gives two tokens one key nowhere: not under other audiences, not under another way to write the same bytes', () => {
    const verdicts = createVerdicts(nothingKept, { isOpen: () => false, cause: () => undefined, report: () => {} }, quiet);
    const audience = fc.oneof(
      fc.constantFrom('a', 'b', 'ab', '1:a', 'a1:b', '2:ab'),
      fc.string({ minLength: 1 }).filter((text) => /^[^\s,]+$/.test(text)),
    );
    const questions = fc.record({
      audiences: fc.uniqueArray(audience, { minLength: 1, maxLength: 3 }),
      token: fc.oneof(fc.constantFrom('t', 't1', '1:a t'), fc.string()),
    });
    fc.assert(
      fc.property(questions, questions, (one, other) => {
        const key = ({ audiences, token }: typeof one): string => verdicts.key(verdicts.prefix(audiences), token);
        const isSame = one.token === other.token && one.audiences.toSorted().join() === other.audiences.toSorted().join();
        assert.equal(key(one) === key(other), isSame);
        assert.equal(key(one), key({ ...one, audiences: one.audiences.toReversed() }));
        if (one.token.length > 8) assert.ok(!key(one).includes(one.token));
      }),
      cases(),
    );
  });

  it('recalls by a connection what it recalls by the key, or nothing', async () => {
    const ttl = { verification: 'review' as const, cacheTtlMs: 60_000, refusalTtlMs: 5_000, staleIfErrorMs: 300_000 };
    const requests = fc.record({
      connection: fc.constantFrom(0, 0, 0, 1, 2),
      audience: fc.constantFrom('a', 'a', 'a', 'b'),
      token: fc.constantFrom('t', 't', 't', 't1'),
      waitMs: fc.constantFrom(0, 0, 0, 0, 0, 1, 59_999, 60_000, -10_000),
      ending: fc.constantFrom('none', 'none', 'accepted', 'accepted for 20 s', 'refused', 'unavailable'),
    });
    let recalledByConnection = 0;
    await fc.assert(
      fc.asyncProperty(fc.array(requests, { maxLength: 30 }), async (all) => {
        let nowMs = start;
        mock.timers.setTime(nowMs);
        const verdicts = createVerdicts(ttl, { isOpen: () => false, cause: () => undefined, report: () => {} }, quiet);
        const connections = [{}, {}, undefined];
        for (const { connection: at, audience, token, waitMs, ending } of all) {
          mock.timers.setTime((nowMs += waitMs));
          const connection = connections[at];
          const prefix = verdicts.prefix([audience]);
          const key = verdicts.key(prefix, token);
          const byConnection = verdicts.recallHeld(connection, prefix, token);
          if (byConnection !== undefined) {
            recalledByConnection += 1;
            assert.deepEqual(byConnection, verdicts.recall(key));
          }
          if (ending === 'accepted') await verdicts.ask(key, undefined, async () => accepted(nowMs + 3_600_000));
          if (ending === 'accepted for 20 s') await verdicts.ask(key, undefined, async () => accepted(nowMs + 20_000));
          if (ending === 'refused') await verdicts.ask(key, undefined, async () => ({ outcome: 'refused', reason: 'review_refused' }));
          if (ending === 'unavailable') await verdicts.ask(key, undefined, async () => ({ outcome: 'unavailable', reason: 'timeout' }));
          verdicts.hold(connection, prefix, token, key);
        }
      }),
      cases(),
    );
    assert.ok(recalledByConnection > 0);
  });
});
