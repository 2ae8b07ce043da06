import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, it, mock } from 'node:test';

import { createBreaker, type Trouble } from './breaker.ts';

// A cluster that answers or not, and how often it was asked.
function cluster(answers: boolean) {
  const state = { answers, reason: 'timeout', asked: 0, told: [] as string[] };
  const askOurOwn = (): Promise<Trouble | undefined> => {
    state.asked += 1;
    return Promise.resolve(state.answers ? undefined : { reason: state.reason, detail: 'no answer' });
  };
  const log = {
    info: (_details: object, message: string) => void state.told.push(`info ${message}`),
    warn: (kind: string) => void state.told.push(`warn ${kind}`),
  };
  const breaker = createBreaker(askOurOwn, log);
  return { state, breaker, fail: (times: number) => Array.from({ length: times }, () => breaker.report('failed')) };
}
const settled = (): Promise<unknown> => new Promise(setImmediate);

describe('createBreaker', () => {
  beforeEach(() => mock.timers.enable({ apis: ['setTimeout'] }));
  afterEach(() => mock.timers.reset());

  it('stays shut through four failures', async () => {
    const { breaker, state, fail } = cluster(false);
    fail(4);
    await settled();
    assert.equal(breaker.isOpen(), false);
    assert.equal(state.asked, 0);
  });

  it('opens after five in a row, if our own question fails too', async () => {
    const { breaker, state, fail } = cluster(false);
    fail(5);
    assert.equal(breaker.isOpen(), false);
    await settled();
    assert.equal(breaker.isOpen(), true);
    assert.equal(state.asked, 1);
  });

  it('stays shut where our own question is answered, however many of one caller’s fail', async () => {
    const { breaker, state, fail } = cluster(true);
    fail(5);
    await settled();
    fail(4);
    await settled();
    assert.equal(breaker.isOpen(), false);
    assert.equal(state.asked, 1);
  });

  it('counts from the last answer', async () => {
    const { breaker, state, fail } = cluster(false);
    fail(4);
    breaker.report('answered');
    fail(4);
    await settled();
    assert.equal(breaker.isOpen(), false);
    assert.equal(state.asked, 0);
  });

  it('asks again after 1, 2, 4 and 4 s, each ± 20 %', async () => {
    mock.method(Math, 'random', () => 0.5);
    const { state, fail } = cluster(false);
    fail(5);
    await settled();
    const asked: number[] = [];
    for (let seconds = 1; seconds <= 11; seconds++) {
      mock.timers.tick(1_000);
      await settled();
      asked.push(state.asked);
    }
    assert.deepEqual(asked, [2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5]);
    mock.restoreAll();
  });

  it('shuts when its question is answered, and starts anew', async () => {
    const { breaker, state, fail } = cluster(false);
    fail(5);
    await settled();
    state.answers = true;
    mock.timers.tick(1_200);
    await settled();
    assert.equal(breaker.isOpen(), false);
    state.answers = false;
    fail(4);
    await settled();
    assert.equal(breaker.isOpen(), false);
    fail(1);
    await settled();
    assert.equal(breaker.isOpen(), true);
    // Waits as at first again.
    const { asked } = state;
    mock.timers.tick(1_200);
    await settled();
    assert.equal(state.asked, asked + 1);
  });

  it('tells once that it opens, and once that it shuts again', async () => {
    const { breaker, state, fail } = cluster(false);
    fail(5);
    await settled();
    mock.timers.tick(1_200);
    await settled();
    assert.deepEqual(state.told, ['warn breaker_open']);
    assert.equal(breaker.state(), 'open');
    state.answers = true;
    mock.timers.tick(2_400);
    await settled();
    assert.deepEqual(state.told, ['warn breaker_open', 'info The API server answers again, and tokens are reviewed']);
    assert.equal(breaker.state(), 'shut');
  });

  it('says what our own question met while it is open, and tells when that is another trouble', async () => {
    const { breaker, state, fail } = cluster(false);
    assert.equal(breaker.cause(), undefined);
    fail(5);
    await settled();
    assert.equal(breaker.cause(), 'timeout: no answer');
    state.reason = 'own_credentials_refused';
    mock.timers.tick(1_200);
    await settled();
    assert.equal(breaker.cause(), 'own_credentials_refused: no answer');
    mock.timers.tick(2_400);
    await settled();
    assert.deepEqual(state.told, ['warn breaker_open', 'warn breaker_open']);
    state.answers = true;
    mock.timers.tick(4_800);
    await settled();
    assert.equal(breaker.cause(), undefined);
  });

  it('tells nothing of a question that was answered', async () => {
    const { breaker, state, fail } = cluster(true);
    fail(5);
    assert.equal(breaker.state(), 'asking');
    await settled();
    assert.deepEqual([breaker.state(), state.told], ['shut', []]);
  });

  it('is not shut by an answer that was still under way', async () => {
    const { breaker, fail } = cluster(false);
    fail(5);
    await settled();
    breaker.report('answered');
    assert.equal(breaker.isOpen(), true);
  });

  it('asks one question at a time', async () => {
    const { state, fail } = cluster(false);
    fail(50);
    await settled();
    fail(50);
    await settled();
    assert.equal(state.asked, 1);
  });

  it('stays ended where it was closed while its question was under way', async () => {
    const { breaker, state, fail } = cluster(false);
    fail(5);
    breaker.close();
    await settled();
    mock.timers.tick(10_000);
    await settled();
    assert.deepEqual([breaker.isOpen(), breaker.state(), state.asked, state.told], [false, 'shut', 1, []]);
  });

  it('asks nothing after close', async () => {
    const { breaker, state, fail } = cluster(false);
    fail(5);
    await settled();
    breaker.close();
    mock.timers.tick(10_000);
    await settled();
    assert.equal(state.asked, 1);
  });
});
