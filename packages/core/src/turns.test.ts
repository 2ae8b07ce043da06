import assert from 'node:assert/strict';
import { describe, it, mock } from 'node:test';

import { createTurns } from './turns.ts';

const nextTurn = (): Promise<unknown> => new Promise(setImmediate);

describe('createTurns', () => {
  it('lets one of a few go on in each turn of the event loop, in the order in which they came', async () => {
    const turn = createTurns();
    const went: number[] = [];
    const all = [1, 2, 3].map((each) => turn().then(() => went.push(each)));
    assert.deepEqual(went, []);
    await nextTurn();
    assert.deepEqual(went, [1]);
    await nextTurn();
    assert.deepEqual(went, [1, 2]);
    await Promise.all(all);
    assert.deepEqual(went, [1, 2, 3]);
  });

  it('lets all go on within eight turns, however many wait, and one in each of them again thereafter', async () => {
    const turn = createTurns();
    for (const many of [80, 1_000]) {
      let went = 0;
      for (let each = 0; each < many; each++) void turn().then(() => (went += 1));
      for (let turns = 1; turns <= 8; turns++) {
        await nextTurn();
        assert.equal(went, (many / 8) * turns);
      }
    }
    let went = 0;
    const all = [1, 2].map(() => turn().then(() => (went += 1)));
    await nextTurn();
    assert.equal(went, 1);
    await Promise.all(all);
  });

  it('goes on where somebody has put fake timers in place', async () => {
    const turn = createTurns();
    mock.timers.enable({ apis: ['setImmediate'] });
    try {
      await turn();
    } finally {
      mock.timers.reset();
    }
  });

  it('begins again after a pause', async () => {
    const turn = createTurns();
    await turn();
    await nextTurn();
    await Promise.all([turn(), turn()]);
  });

  it('lets go on at once whoever comes when 1 000 wait', async () => {
    const turn = createTurns();
    const went: number[] = [];
    const all = Array.from({ length: 1_001 }, (_item, each) => turn().then(() => went.push(each)));
    await Promise.resolve();
    assert.deepEqual(went, [1_000]);
    await Promise.all(all);
    assert.equal(went.length, 1_001);
    assert.deepEqual(went.slice(0, 3), [1_000, 0, 1]);
  });
});
