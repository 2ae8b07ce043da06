import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, it, mock } from 'node:test';

import { type Caller, createCaller } from './caller.ts';
import type { Log } from './logger.ts';
import type { Verdict } from './token-review.ts';
import { createVerdicts, type MemoryOptions } from './verdicts.ts';

const start = 1_800_000_000_000;
const options: MemoryOptions = { verification: 'review', cacheTtlMs: 60_000, refusalTtlMs: 5_000, staleIfErrorMs: 300_000 };
const shut = { isOpen: () => false, cause: () => undefined, report: () => {} };
const quiet: Log = { info: () => {}, warn: () => {} };

function callerUntil(expiresAtMs: number): Caller {
  return createCaller({ namespace: 'api', name: 'api' }, { uid: 'u', groups: [], extra: {} }, ['secret-store'], expiresAtMs);
}

const accepted = (expiresAtMs = start + 3_600_000): Verdict => ({ outcome: 'accepted', caller: callerUntil(expiresAtMs) });
const refused: Verdict = { outcome: 'refused', reason: 'review_refused' };
const unavailable: Verdict = { outcome: 'unavailable', reason: 'timeout' };
const callerOf = (verdict: Verdict | undefined): Caller | undefined => (verdict?.outcome === 'accepted' ? verdict.caller : undefined);
const answering = (verdict: Verdict) => () => Promise.resolve(verdict);

describe('createVerdicts', () => {
  beforeEach(() => mock.timers.enable({ apis: ['Date'], now: start }));
  afterEach(() => mock.timers.reset());

  it('remembers an acceptance for its time and no longer', async () => {
    const verdicts = createVerdicts(options, shut, quiet);
    await verdicts.ask('k', undefined, answering(accepted()));
    mock.timers.setTime(start + 59_999);
    assert.equal(verdicts.recall('k')?.outcome, 'accepted');
    assert.equal(verdicts.recall('k')?.source, 'cache');
    mock.timers.setTime(start + 60_000);
    assert.equal(verdicts.recall('k'), undefined);
  });

  it('does not extend it by a hit', async () => {
    const verdicts = createVerdicts(options, shut, quiet);
    await verdicts.ask('k', undefined, answering(accepted()));
    mock.timers.setTime(start + 40_000);
    verdicts.recall('k');
    mock.timers.setTime(start + 70_000);
    assert.equal(verdicts.recall('k'), undefined);
  });

  it('forgets at exp', async () => {
    const verdicts = createVerdicts(options, shut, quiet);
    await verdicts.ask('k', undefined, answering(accepted(start + 10_000)));
    mock.timers.setTime(start + 9_999);
    assert.equal(verdicts.recall('k')?.outcome, 'accepted');
    mock.timers.setTime(start + 10_000);
    assert.equal(verdicts.recall('k'), undefined);
  });

  it('remembers a refusal for its own, shorter time', async () => {
    const verdicts = createVerdicts(options, shut, quiet);
    await verdicts.ask('k', undefined, answering(refused));
    mock.timers.setTime(start + 4_999);
    assert.equal(verdicts.recall('k')?.outcome, 'refused');
    mock.timers.setTime(start + 5_000);
    assert.equal(verdicts.recall('k'), undefined);
  });

  it('keeps nothing where a time is zero or less', async () => {
    const verdicts = createVerdicts({ verification: 'review', cacheTtlMs: 0, refusalTtlMs: -1, staleIfErrorMs: 0 }, shut, quiet);
    await verdicts.ask('good', undefined, answering(accepted()));
    await verdicts.ask('bad', undefined, answering(refused));
    assert.equal(verdicts.recall('good'), undefined);
    assert.equal(verdicts.recall('bad'), undefined);
    assert.equal((await verdicts.ask('good', undefined, answering(unavailable))).outcome, 'unavailable');
  });

  it('keeps nothing for longer because the clock was set back', async () => {
    const verdicts = createVerdicts(options, shut, quiet);
    await verdicts.ask('k', undefined, answering(accepted()));
    mock.timers.setTime(start - 1);
    assert.equal(verdicts.recall('k'), undefined);
  });

  it('does not remember that nobody knows', async () => {
    const verdicts = createVerdicts(options, shut, quiet);
    await verdicts.ask('k', undefined, answering(unavailable));
    assert.equal(verdicts.recall('k'), undefined);
    assert.equal((await verdicts.ask('k', undefined, answering(accepted()))).outcome, 'accepted');
  });

  it('accepts on in an outage until staleIfErrorMs after the last review', async () => {
    const verdicts = createVerdicts(options, shut, quiet);
    await verdicts.ask('k', undefined, answering(accepted()));
    mock.timers.setTime(start + 299_999);
    const stale = await verdicts.ask('k', undefined, answering(unavailable));
    assert.equal(stale.outcome, 'accepted');
    assert.equal(stale.source, 'stale');
    mock.timers.setTime(start + 300_000);
    assert.equal((await verdicts.ask('k', undefined, answering(unavailable))).outcome, 'unavailable');
  });

  it('renews nothing by a stale answer', async () => {
    const verdicts = createVerdicts(options, shut, quiet);
    await verdicts.ask('k', undefined, answering(accepted()));
    mock.timers.setTime(start + 200_000);
    await verdicts.ask('k', undefined, answering(unavailable));
    assert.equal(verdicts.recall('k'), undefined);
    mock.timers.setTime(start + 400_000);
    assert.equal((await verdicts.ask('k', undefined, answering(unavailable))).outcome, 'unavailable');
  });

  it('accepts nothing past exp, outage or not', async () => {
    const verdicts = createVerdicts(options, shut, quiet);
    await verdicts.ask('k', undefined, answering(accepted(start + 100_000)));
    mock.timers.setTime(start + 100_000);
    assert.equal((await verdicts.ask('k', undefined, answering(unavailable))).outcome, 'unavailable');
  });

  it('erases an acceptance by a refusal at once', async () => {
    const verdicts = createVerdicts(options, shut, quiet);
    await verdicts.ask('k', undefined, answering(accepted()));
    await verdicts.ask('k', undefined, answering(refused));
    assert.equal(verdicts.recall('k')?.outcome, 'refused');
    mock.timers.setTime(start + 10_000);
    assert.equal((await verdicts.ask('k', undefined, answering(unavailable))).outcome, 'unavailable');
  });

  it('erases a refusal by an acceptance', async () => {
    const verdicts = createVerdicts({ ...options, cacheTtlMs: 0, refusalTtlMs: 120_000 }, shut, quiet);
    await verdicts.ask('k', undefined, answering(refused));
    mock.timers.setTime(start - 10_000);
    await verdicts.ask('k', undefined, answering(accepted()));
    mock.timers.setTime(start + 10_000);
    assert.equal(verdicts.recall('k'), undefined);
  });

  it('makes one review for all who wait for the same verdict', async () => {
    const verdicts = createVerdicts(options, shut, quiet);
    let reviews = 0;
    const review = (): Promise<Verdict> => {
      reviews += 1;
      return Promise.resolve(accepted());
    };
    const answers = await Promise.all(Array.from({ length: 500 }, () => verdicts.ask('k', undefined, review)));
    assert.equal(reviews, 1);
    assert.ok(answers.every(({ outcome }) => outcome === 'accepted'));
  });

  it('lets a mistake in the options end as an error for all who wait, and forgets it', async () => {
    const verdicts = createVerdicts(options, shut, quiet);
    const mistaken = (): Promise<Verdict> => Promise.reject(new TypeError('audience'));
    const answers = await Promise.allSettled([verdicts.ask('k', undefined, mistaken), verdicts.ask('k', undefined, mistaken)]);
    assert.deepEqual(
      answers.map(({ status }) => status),
      ['rejected', 'rejected'],
    );
    assert.equal((await verdicts.ask('k', undefined, answering(accepted()))).outcome, 'accepted');
  });

  it('has at most 32 reviews in flight, and 1 000 waiting', async () => {
    const verdicts = createVerdicts(options, shut, quiet);
    const finish: (() => void)[] = [];
    let most = 0;
    let inFlight = 0;
    const slow = (): Promise<Verdict> => {
      inFlight += 1;
      most = Math.max(most, inFlight);
      return new Promise((resolve) => {
        finish.push(() => {
          inFlight -= 1;
          resolve(accepted());
        });
      });
    };
    const asked = Array.from({ length: 32 + 1_000 + 5 }, (_item, index) => verdicts.ask(`k${index}`, undefined, slow));
    await Promise.resolve();
    assert.equal(finish.length, 32);
    const turnedAway = await Promise.all(asked.slice(-5));
    assert.ok(turnedAway.every((verdict) => verdict.outcome === 'unavailable' && verdict.reason === 'queue_full'));
    const waiterOnAnother = await verdicts.ask('k0', undefined, slow);
    assert.equal(waiterOnAnother.outcome, 'unavailable');
    while (finish.length > 0) {
      finish.shift()?.();
      await new Promise(setImmediate);
    }
    assert.ok((await Promise.all(asked.slice(0, -5))).every(({ outcome }) => outcome === 'accepted'));
    assert.equal(most, 32);
  });

  it('lets nobody wait for a place for more than 5 s', async () => {
    mock.timers.reset();
    mock.timers.enable({ apis: ['Date', 'setTimeout'], now: start });
    const verdicts = createVerdicts(options, shut, quiet);
    for (let index = 0; index < 32; index++) void verdicts.ask(`busy${index}`, undefined, () => new Promise(() => {}));
    const waiting = verdicts.ask('k', undefined, answering(accepted()));
    await Promise.resolve();
    mock.timers.tick(5_000);
    assert.deepEqual(await waiting, { outcome: 'unavailable', reason: 'queue_timeout', source: 'review' });
  });

  it('does not take our own limits for a reason to accept on', async () => {
    mock.timers.reset();
    mock.timers.enable({ apis: ['Date', 'setTimeout'], now: start });
    const verdicts = createVerdicts(options, shut, quiet);
    await verdicts.ask('k', undefined, answering(accepted()));
    mock.timers.setTime(start + 60_000);
    for (let index = 0; index < 32; index++) void verdicts.ask(`busy${index}`, undefined, () => new Promise(() => {}));
    const waiting = verdicts.ask('k', undefined, answering(unavailable));
    await Promise.resolve();
    mock.timers.tick(5_000);
    assert.equal((await waiting).outcome, 'unavailable');
  });

  it('does not let a flood of refusals push out a caller', async () => {
    const verdicts = createVerdicts(options, shut, quiet);
    await verdicts.ask('good', undefined, answering(accepted()));
    for (let index = 0; index < 3_000; index++) await verdicts.ask(`bad${index}`, undefined, answering(refused));
    assert.equal(verdicts.recall('good')?.outcome, 'accepted');
    assert.equal(verdicts.recall('bad0'), undefined);
    assert.equal(verdicts.recall('bad2999')?.outcome, 'refused');
  });

  it('remembers at most 10 000 callers', async () => {
    const verdicts = createVerdicts(options, shut, quiet);
    for (let index = 0; index <= 10_000; index++) {
      const caller = createCaller(
        { namespace: 'api', name: `api-${index}` },
        { uid: 'u', groups: [], extra: {} },
        ['secret-store'],
        start + 60_000,
      );
      await verdicts.ask(`k${index}`, undefined, answering({ outcome: 'accepted', caller }));
    }
    assert.equal(verdicts.recall('k0'), undefined);
    assert.equal(verdicts.recall('k10000')?.outcome, 'accepted');
  });

  it('says once that the cluster cannot be asked, and once that it can', async () => {
    const told: string[] = [];
    const verdicts = createVerdicts(options, shut, {
      info: (_details, message) => told.push(`info ${message}`),
      warn: (kind) => told.push(`warn ${kind}`),
    });
    await verdicts.ask('a', undefined, answering(unavailable));
    await verdicts.ask('b', undefined, answering(unavailable));
    await verdicts.ask('c', undefined, answering(refused));
    await verdicts.ask('d', undefined, answering(accepted()));
    assert.deepEqual(told, ['warn review_unavailable', 'info The API server reviews tokens again']);
  });

  it('says it at most once in 10 s, however often one token fails between others that do not', async () => {
    const told: string[] = [];
    const verdicts = createVerdicts(options, shut, { info: () => told.push('info'), warn: () => told.push('warn') });
    for (const key of ['a', 'b', 'c']) {
      await verdicts.ask(key, undefined, answering(unavailable));
      await verdicts.ask(key, undefined, answering(refused));
    }
    assert.deepEqual(told, ['warn', 'info']);
    mock.timers.tick(9_999);
    await verdicts.ask('d', undefined, answering(unavailable));
    assert.equal(told.length, 2);
    mock.timers.tick(1);
    await verdicts.ask('e', undefined, answering(unavailable));
    assert.deepEqual(told, ['warn', 'info', 'warn']);
    // A clock that was set back silences nothing.
    await verdicts.ask('f', undefined, answering(refused));
    mock.timers.setTime(Date.now() - 3_600_000);
    await verdicts.ask('g', undefined, answering(unavailable));
    assert.deepEqual(told, ['warn', 'info', 'warn', 'info', 'warn']);
  });

  it('tells how many it remembers', async () => {
    const verdicts = createVerdicts(options, shut, quiet);
    assert.deepEqual(verdicts.sizes(), [0, 0]);
    await verdicts.ask('a', undefined, answering(accepted()));
    await verdicts.ask('b', undefined, answering(accepted()));
    await verdicts.ask('c', undefined, answering(refused));
    assert.deepEqual(verdicts.sizes(), [2, 1]);
  });

  it('gives a caller back as it was, however many were kept since', async () => {
    const verdicts = createVerdicts(options, shut, quiet);
    const first = accepted();
    await verdicts.ask('first', undefined, answering(first));
    assert.equal(callerOf(verdicts.recall('first')), callerOf(first));
    for (let at = 0; at < 200; at += 1) await verdicts.ask(`k${at}`, undefined, answering(accepted()));
    const again = verdicts.recall('first');
    assert.deepEqual(callerOf(again), callerOf(first));
    assert.equal(callerOf(verdicts.recall('first')), callerOf(again));
  });

  it('holds the last accepted token of a connection, and accepts it no longer than the memory does', async () => {
    const verdicts = createVerdicts(options, shut, quiet);
    const [connection, prefix] = [{}, verdicts.prefix(['a'])];
    const key = verdicts.key(prefix, 't');
    const recalled = (): string | undefined => verdicts.recallHeld(connection, prefix, 't')?.source;
    const meet = async (verdict: Verdict): Promise<void> => {
      await verdicts.ask(key, undefined, answering(verdict));
      verdicts.hold(connection, prefix, 't', key);
    };

    verdicts.hold(connection, prefix, 't', key);
    assert.equal(recalled(), undefined);
    await meet(accepted());
    assert.equal(recalled(), 'cache');
    assert.equal(verdicts.recallHeld(connection, prefix, 't1'), undefined);
    assert.equal(verdicts.recallHeld(connection, verdicts.prefix(['b']), 't'), undefined);
    assert.equal(verdicts.recallHeld({}, prefix, 't'), undefined);
    await verdicts.ask(key, undefined, answering(refused));
    assert.equal(recalled(), undefined, 'after a refusal');
    await meet(accepted());
    for (let index = 0; index < 1_000; index++) await verdicts.ask(`k${index}`, undefined, answering(accepted()));
    assert.equal(recalled(), undefined, 'after others have pushed it out');
    await meet(accepted());
    mock.timers.tick(60_000);
    assert.equal(recalled(), undefined, 'after cacheTtlMs');
  });

  it('takes no caller on a kept connection for one that is not heard of any more', async () => {
    const verdicts = createVerdicts(options, shut, quiet);
    const [connection, prefix] = [{}, verdicts.prefix(['a'])];
    const key = verdicts.key(prefix, 't');
    await verdicts.ask(key, undefined, answering(accepted()));
    verdicts.hold(connection, prefix, 't', key);
    for (let index = 0; index < 11_000; index++) {
      const other = createCaller(
        { namespace: 'others', name: `n${index % 20}` },
        { uid: 'u', groups: [], extra: {} },
        ['a'],
        start + 3_600_000,
      );
      await verdicts.ask(`k${index}`, undefined, answering({ outcome: 'accepted', caller: other }));
      if (index % 1_000 === 0) assert.equal(verdicts.recallHeld(connection, prefix, 't')?.source, 'cache');
    }
    assert.equal(verdicts.recall('k0'), undefined);
    assert.equal(verdicts.isKnown(key), true);
  });

  it('asks nothing once it has waited long enough', async () => {
    const verdicts = createVerdicts(options, shut, quiet);
    const nobody = (): Promise<Verdict> => assert.fail('asked');
    const late = { outcome: 'unavailable', reason: 'queue_timeout', source: 'review' };
    assert.deepEqual(await verdicts.ask('k', 'api/api', nobody, performance.now()), late);
    assert.equal((await verdicts.ask('k', 'api/api', answering(accepted()))).outcome, 'accepted');
  });

  it('takes its own hurry for no failure of a server that answers others', async () => {
    const reports: string[] = [];
    const verdicts = createVerdicts(
      options,
      { isOpen: () => false, cause: () => undefined, report: (outcome) => void reports.push(outcome) },
      quiet,
    );
    const soon = (): number => performance.now() + 2_000;
    await verdicts.ask('k', undefined, answering(accepted()));
    mock.timers.tick(60_000);
    const hurried = { outcome: 'unavailable', reason: 'queue_timeout', source: 'review' };
    assert.deepEqual(await verdicts.ask('k', undefined, answering(unavailable), soon()), hurried);
    assert.deepEqual(reports, ['answered']);
    await verdicts.ask('other', undefined, answering(unavailable));
    assert.equal((await verdicts.ask('k', undefined, answering(unavailable), soon())).source, 'stale');
    assert.deepEqual(reports, ['answered', 'failed', 'failed']);
    await verdicts.ask('other', undefined, answering(accepted()));
    assert.deepEqual(await verdicts.ask('k', undefined, answering(unavailable), soon()), hurried);
  });

  it('waits for another’s review as long as its own deadline says, no longer and no shorter', async () => {
    const verdicts = createVerdicts(options, shut, quiet);
    const never = (): Promise<Verdict> => new Promise(() => {});
    void verdicts.ask('slow', undefined, never);
    const late = await verdicts.ask('slow', undefined, never, performance.now());
    assert.deepEqual(late, { outcome: 'unavailable', reason: 'queue_timeout', source: 'review' });

    let finish: (verdict: Verdict) => void = () => {};
    const hurried = verdicts.ask('k', undefined, () => new Promise((resolve) => (finish = resolve)), performance.now() + 2_000);
    const patient = verdicts.ask('k', undefined, answering(accepted()));
    await new Promise(setImmediate);
    finish(unavailable);
    assert.equal((await hurried).outcome, 'unavailable');
    assert.equal((await patient).outcome, 'accepted');
  });

  it('keys by audiences and token, and by neither alone', () => {
    const verdicts = createVerdicts(options, shut, quiet);
    const key = (audiences: readonly string[], token: string): string => verdicts.key(verdicts.prefix(audiences), token);
    assert.equal(key(['a', 'b'], 't'), key(['b', 'a'], 't'));
    assert.notEqual(key(['a'], 't'), key(['b'], 't'));
    assert.notEqual(key(['ab'], 't'), key(['a', 'b'], 't'));
    assert.notEqual(key(['a'], 't1'), key(['a'], 't2'));
    assert.notEqual(key(['a'], 't'), createVerdicts(options, shut, quiet).key(createVerdicts(options, shut, quiet).prefix(['a']), 't'));
    assert.equal(key(['a'], 't').length, 32);
  });

  it('asks nobody while the breaker is open: known callers go on without waiting', async () => {
    let isOpen = false;
    const verdicts = createVerdicts(options, { isOpen: () => isOpen, cause: () => 'timeout: no answer', report: () => {} }, quiet);
    await verdicts.ask('known', undefined, answering(accepted()));
    isOpen = true;
    mock.timers.setTime(start + 120_000);
    const nobody = (): Promise<Verdict> => assert.fail('asked');
    assert.equal((await verdicts.ask('known', undefined, nobody)).source, 'stale');
    assert.deepEqual(await verdicts.ask('unknown', undefined, nobody), {
      outcome: 'unavailable',
      reason: 'breaker_open',
      detail: 'timeout: no answer',
      source: 'review',
    });
  });

  it('tells the breaker which reviews failed, and which were answered', async () => {
    const reports: string[] = [];
    const verdicts = createVerdicts(
      options,
      { isOpen: () => false, cause: () => undefined, report: (outcome) => void reports.push(outcome) },
      quiet,
    );
    await verdicts.ask('a', undefined, answering(unavailable));
    await verdicts.ask('b', undefined, answering(accepted()));
    await verdicts.ask('c', undefined, answering(refused));
    await verdicts.ask('d', undefined, answering({ outcome: 'unavailable', reason: 'too_many_requests' }));
    await verdicts.ask('e', undefined, answering({ outcome: 'unavailable', reason: 'review_timed_out_inside' }));
    assert.deepEqual(reports, ['failed', 'answered', 'answered']);
  });

  it('gives one ServiceAccount at most 8 reviews in flight and 100 waiting, and others their turn', async () => {
    const verdicts = createVerdicts(options, shut, quiet);
    const finish: (() => void)[] = [];
    const slow = (): Promise<Verdict> => new Promise((resolve) => finish.push(() => resolve(accepted())));
    const greedy = Array.from({ length: 8 + 100 + 3 }, (_item, index) => verdicts.ask(`g${index}`, 'greedy', slow));
    await Promise.resolve();
    assert.equal(finish.length, 8);
    const turnedAway = await Promise.all(greedy.slice(-3));
    assert.ok(turnedAway.every((verdict) => verdict.outcome === 'unavailable' && verdict.reason === 'queue_of_caller_full'));
    assert.equal((await verdicts.ask('o', 'other', answering(accepted()))).outcome, 'accepted');
    assert.equal((await verdicts.ask('u', undefined, answering(accepted()))).outcome, 'accepted');
    while (finish.length > 0) {
      finish.shift()?.();
      await new Promise(setImmediate);
    }
    assert.ok((await Promise.all(greedy.slice(0, -3))).every(({ outcome }) => outcome === 'accepted'));
  });

  it('gives it half of all where it asks again about what was accepted lately', async () => {
    const verdicts = createVerdicts(options, shut, quiet);
    const keys = Array.from({ length: 16 + 500 + 3 }, (_item, index) => `g${index}`);
    for (const key of keys) await verdicts.ask(key, 'greedy', answering(accepted()));
    mock.timers.setTime(start + 60_000);
    const finish: (() => void)[] = [];
    const slow = (): Promise<Verdict> => new Promise((resolve) => finish.push(() => resolve(accepted())));
    const greedy = keys.map((key) => verdicts.ask(key, 'greedy', slow));
    await Promise.resolve();
    assert.equal(finish.length, 16);
    const turnedAway = await Promise.all(greedy.slice(-3));
    assert.ok(turnedAway.every((verdict) => verdict.outcome === 'unavailable' && verdict.reason === 'queue_of_caller_full'));
    assert.equal((await verdicts.ask('o', 'other', answering(accepted()))).outcome, 'accepted');
    // What nobody knows yet has the smaller share, of the same ServiceAccount.
    const fresh = await verdicts.ask('fresh', 'greedy', answering(accepted()));
    assert.ok(fresh.outcome === 'unavailable' && fresh.reason === 'queue_of_caller_full');
    while (finish.length > 0) {
      finish.shift()?.();
      await new Promise(setImmediate);
    }
    assert.ok((await Promise.all(greedy.slice(0, -3))).every(({ outcome }) => outcome === 'accepted'));
  });

  it('answers at once while the breaker is open, though all places are taken and the same token is under review', async () => {
    let isOpen = false;
    const verdicts = createVerdicts(options, { isOpen: () => isOpen, cause: () => 'timeout: no answer', report: () => {} }, quiet);
    const unasked = (): Promise<Verdict> => assert.fail('It was asked');
    // What is not answered within a few turns waits.
    const soon = async (answer: Promise<object>): Promise<object> => {
      const turns = async (): Promise<object> => {
        for (let turn = 0; turn < 3; turn++) await new Promise(setImmediate);
        return { reason: 'it waits' };
      };
      return Promise.race([answer, turns()]);
    };
    await verdicts.ask('known', undefined, answering(accepted()));
    mock.timers.setTime(start + 120_000);
    let finish = (): void => {};
    const busy = Array.from({ length: 32 }, (_item, index) =>
      verdicts.ask(`busy${index}`, undefined, () => new Promise((resolve) => (finish = () => resolve(unavailable)))),
    );
    const queued = verdicts.ask('queued', undefined, unasked);
    await new Promise(setImmediate);
    assert.equal(busy.length, 32);
    isOpen = true;
    assert.partialDeepStrictEqual(await soon(verdicts.ask('known', undefined, unasked)), { source: 'stale' });
    assert.partialDeepStrictEqual(await soon(verdicts.ask('busy0', undefined, unasked)), { reason: 'breaker_open' });
    finish();
    assert.deepEqual(await queued, { outcome: 'unavailable', reason: 'breaker_open', detail: 'timeout: no answer', source: 'review' });
  });

  it('gives one ServiceAccount a tenth of the memory', async () => {
    const verdicts = createVerdicts(options, shut, quiet);
    await verdicts.ask('first', undefined, answering(accepted()));
    for (let index = 0; index < 1_000; index++) await verdicts.ask(`k${index}`, undefined, answering(accepted()));
    assert.equal(verdicts.recall('first'), undefined);
    assert.equal(verdicts.recall('k0')?.outcome, 'accepted');
    for (let index = 0; index < 101; index++) await verdicts.ask(`r${index}`, 'greedy', answering(refused));
    assert.equal(verdicts.recall('r0'), undefined);
    assert.equal(verdicts.recall('r1')?.outcome, 'refused');
  });
});
