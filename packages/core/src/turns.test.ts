import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

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

  it('lets an eighth go on where many wait', async () => {
    const turn = createTurns();
    let went = 0;
    const all = Array.from({ length: 80 }, () => turn().then(() => (went += 1)));
    await nextTurn();
    assert.equal(went, 10);
    await nextTurn();
    assert.equal(went, 19);
    await Promise.all(all);
    assert.equal(went, 80);
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
