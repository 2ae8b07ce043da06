import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, it, mock } from 'node:test';

import { type Caller, createCaller } from './caller.ts';
import type { Log } from './logger.ts';
import type { Verdict } from './token-review.ts';
import { createVerdicts, type MemoryOptions } from './verdicts.ts';

const start = 1_800_000_000_000;
const options: MemoryOptions = { cacheTtlMs: 60_000, refusalTtlMs: 5_000, staleIfErrorMs: 300_000 };
const quiet: Log = { info: () => {}, warn: () => {} };

function callerUntil(expiresAtMs: number): Caller {
  return createCaller({ namespace: 'api', name: 'api' }, { uid: 'u', groups: [], extra: {} }, ['secret-store'], expiresAtMs);
}

const accepted = (expiresAtMs = start + 3_600_000): Verdict => ({ outcome: 'accepted', caller: callerUntil(expiresAtMs) });
const refused: Verdict = { outcome: 'refused', reason: 'review_refused' };
const unavailable: Verdict = { outcome: 'unavailable', reason: 'timeout' };
const answering = (verdict: Verdict) => () => Promise.resolve(verdict);

describe('createVerdicts', () => {
  beforeEach(() => mock.timers.enable({ apis: ['Date'], now: start }));
  afterEach(() => mock.timers.reset());

  it('remembers an acceptance for its time and no longer', async () => {
    const verdicts = createVerdicts(options, quiet);
    await verdicts.ask('k', answering(accepted()));
    mock.timers.setTime(start + 59_999);
    assert.equal(verdicts.recall('k')?.outcome, 'accepted');
    assert.equal(verdicts.recall('k')?.source, 'cache');
    mock.timers.setTime(start + 60_000);
    assert.equal(verdicts.recall('k'), undefined);
  });

  it('does not extend it by a hit', async () => {
    const verdicts = createVerdicts(options, quiet);
    await verdicts.ask('k', answering(accepted()));
    mock.timers.setTime(start + 40_000);
    verdicts.recall('k');
    mock.timers.setTime(start + 70_000);
    assert.equal(verdicts.recall('k'), undefined);
  });

  it('forgets at exp', async () => {
    const verdicts = createVerdicts(options, quiet);
    await verdicts.ask('k', answering(accepted(start + 10_000)));
    mock.timers.setTime(start + 9_999);
    assert.equal(verdicts.recall('k')?.outcome, 'accepted');
    mock.timers.setTime(start + 10_000);
    assert.equal(verdicts.recall('k'), undefined);
  });

  it('remembers a refusal for its own, shorter time', async () => {
    const verdicts = createVerdicts(options, quiet);
    await verdicts.ask('k', answering(refused));
    mock.timers.setTime(start + 4_999);
    assert.equal(verdicts.recall('k')?.outcome, 'refused');
    mock.timers.setTime(start + 5_000);
    assert.equal(verdicts.recall('k'), undefined);
  });

  it('keeps nothing where a time is zero or less', async () => {
    const verdicts = createVerdicts({ cacheTtlMs: 0, refusalTtlMs: -1, staleIfErrorMs: 0 }, quiet);
    await verdicts.ask('good', answering(accepted()));
    await verdicts.ask('bad', answering(refused));
    assert.equal(verdicts.recall('good'), undefined);
    assert.equal(verdicts.recall('bad'), undefined);
    assert.equal((await verdicts.ask('good', answering(unavailable))).outcome, 'unavailable');
  });

  it('keeps nothing for longer because the clock was set back', async () => {
    const verdicts = createVerdicts(options, quiet);
    await verdicts.ask('k', answering(accepted()));
    mock.timers.setTime(start - 1);
    assert.equal(verdicts.recall('k'), undefined);
  });

  it('does not remember that nobody knows', async () => {
    const verdicts = createVerdicts(options, quiet);
    await verdicts.ask('k', answering(unavailable));
    assert.equal(verdicts.recall('k'), undefined);
    assert.equal((await verdicts.ask('k', answering(accepted()))).outcome, 'accepted');
  });

  it('accepts on in an outage until staleIfErrorMs after the last review', async () => {
    const verdicts = createVerdicts(options, quiet);
    await verdicts.ask('k', answering(accepted()));
    mock.timers.setTime(start + 299_999);
    const stale = await verdicts.ask('k', answering(unavailable));
    assert.equal(stale.outcome, 'accepted');
    assert.equal(stale.source, 'stale');
    mock.timers.setTime(start + 300_000);
    assert.equal((await verdicts.ask('k', answering(unavailable))).outcome, 'unavailable');
  });

  it('renews nothing by a stale answer', async () => {
    const verdicts = createVerdicts(options, quiet);
    await verdicts.ask('k', answering(accepted()));
    mock.timers.setTime(start + 200_000);
    await verdicts.ask('k', answering(unavailable));
    assert.equal(verdicts.recall('k'), undefined);
    mock.timers.setTime(start + 400_000);
    assert.equal((await verdicts.ask('k', answering(unavailable))).outcome, 'unavailable');
  });

  it('accepts nothing past exp, outage or not', async () => {
    const verdicts = createVerdicts(options, quiet);
    await verdicts.ask('k', answering(accepted(start + 100_000)));
    mock.timers.setTime(start + 100_000);
    assert.equal((await verdicts.ask('k', answering(unavailable))).outcome, 'unavailable');
  });

  it('erases an acceptance by a refusal at once', async () => {
    const verdicts = createVerdicts(options, quiet);
    await verdicts.ask('k', answering(accepted()));
    await verdicts.ask('k', answering(refused));
    assert.equal(verdicts.recall('k')?.outcome, 'refused');
    mock.timers.setTime(start + 10_000);
    assert.equal((await verdicts.ask('k', answering(unavailable))).outcome, 'unavailable');
  });

  it('makes one review for all who wait for the same verdict', async () => {
    const verdicts = createVerdicts(options, quiet);
    let reviews = 0;
    const review = (): Promise<Verdict> => {
      reviews += 1;
      return Promise.resolve(accepted());
    };
    const answers = await Promise.all(Array.from({ length: 500 }, () => verdicts.ask('k', review)));
    assert.equal(reviews, 1);
    assert.ok(answers.every(({ outcome }) => outcome === 'accepted'));
  });

  it('lets a mistake in the options end as an error for all who wait, and forgets it', async () => {
    const verdicts = createVerdicts(options, quiet);
    const mistaken = (): Promise<Verdict> => Promise.reject(new TypeError('audience'));
    const answers = await Promise.allSettled([verdicts.ask('k', mistaken), verdicts.ask('k', mistaken)]);
    assert.deepEqual(
      answers.map(({ status }) => status),
      ['rejected', 'rejected'],
    );
    assert.equal((await verdicts.ask('k', answering(accepted()))).outcome, 'accepted');
  });

  it('has at most 32 reviews in flight, and 1 000 waiting', async () => {
    const verdicts = createVerdicts(options, quiet);
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
    const asked = Array.from({ length: 32 + 1_000 + 5 }, (_item, index) => verdicts.ask(`k${index}`, slow));
    await Promise.resolve();
    assert.equal(finish.length, 32);
    const turnedAway = await Promise.all(asked.slice(-5));
    assert.ok(turnedAway.every((verdict) => verdict.outcome === 'unavailable' && verdict.reason === 'queue_full'));
    const waiterOnAnother = await verdicts.ask('k0', slow);
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
    const verdicts = createVerdicts(options, quiet);
    for (let index = 0; index < 32; index++) void verdicts.ask(`busy${index}`, () => new Promise(() => {}));
    const waiting = verdicts.ask('k', answering(accepted()));
    await Promise.resolve();
    mock.timers.tick(5_000);
    assert.deepEqual(await waiting, { outcome: 'unavailable', reason: 'queue_timeout', source: 'review' });
  });

  it('does not take our own limits for a reason to accept on', async () => {
    mock.timers.reset();
    mock.timers.enable({ apis: ['Date', 'setTimeout'], now: start });
    const verdicts = createVerdicts(options, quiet);
    await verdicts.ask('k', answering(accepted()));
    mock.timers.setTime(start + 60_000);
    for (let index = 0; index < 32; index++) void verdicts.ask(`busy${index}`, () => new Promise(() => {}));
    const waiting = verdicts.ask('k', answering(unavailable));
    await Promise.resolve();
    mock.timers.tick(5_000);
    assert.equal((await waiting).outcome, 'unavailable');
  });

  it('does not let a flood of refusals push out a caller', async () => {
    const verdicts = createVerdicts(options, quiet);
    await verdicts.ask('good', answering(accepted()));
    for (let index = 0; index < 3_000; index++) await verdicts.ask(`bad${index}`, answering(refused));
    assert.equal(verdicts.recall('good')?.outcome, 'accepted');
    assert.equal(verdicts.recall('bad0'), undefined);
    assert.equal(verdicts.recall('bad2999')?.outcome, 'refused');
  });

  it('remembers at most 10 000 callers', async () => {
    const verdicts = createVerdicts(options, quiet);
    for (let index = 0; index <= 10_000; index++) await verdicts.ask(`k${index}`, answering(accepted()));
    assert.equal(verdicts.recall('k0'), undefined);
    assert.equal(verdicts.recall('k10000')?.outcome, 'accepted');
  });

  it('says once that the cluster cannot be asked, and once that it can', async () => {
    const told: string[] = [];
    const verdicts = createVerdicts(options, {
      info: (_details, message) => told.push(`info ${message}`),
      warn: (kind) => told.push(`warn ${kind}`),
    });
    await verdicts.ask('a', answering(unavailable));
    await verdicts.ask('b', answering(unavailable));
    await verdicts.ask('c', answering(refused));
    await verdicts.ask('d', answering(accepted()));
    assert.deepEqual(told, ['warn review_unavailable', 'info The API server reviews tokens again']);
  });

  it('keys by audiences and token, and by neither alone', () => {
    const verdicts = createVerdicts(options, quiet);
    const key = (audiences: readonly string[], token: string): string => verdicts.key(verdicts.prefix(audiences), token);
    assert.equal(key(['a', 'b'], 't'), key(['b', 'a'], 't'));
    assert.notEqual(key(['a'], 't'), key(['b'], 't'));
    assert.notEqual(key(['ab'], 't'), key(['a', 'b'], 't'));
    assert.notEqual(key(['a'], 't1'), key(['a'], 't2'));
    assert.notEqual(key(['a'], 't'), createVerdicts(options, quiet).key(createVerdicts(options, quiet).prefix(['a']), 't'));
    assert.match(key(['a'], 't'), /^[\w+/]{43}=$/);
  });
});
