import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, it, mock } from 'node:test';

import { createPlaces } from './places.ts';

describe('createPlaces', () => {
  beforeEach(() => mock.timers.enable({ apis: ['setTimeout'] }));
  afterEach(() => mock.timers.reset());

  it('gives a place that becomes free to one that still waits, not to one that has waited in vain', async () => {
    const places = createPlaces();
    for (let taken = 0; taken < 32; taken++) assert.equal(await places.take(undefined, false, Infinity), undefined);
    const nowMs = performance.now();
    const [early, late] = [places.take('api', false, nowMs + 1_000), places.take('jobs', false, nowMs + 9_000)];
    assert.deepEqual(places.counts(), { inFlight: 32, waiting: 2 });
    mock.timers.tick(5_000);
    assert.equal(await early, 'queue_timeout');
    places.free(undefined);
    assert.equal(await late, undefined);
    assert.deepEqual(places.counts(), { inFlight: 32, waiting: 0 });
    places.free('jobs');
    assert.deepEqual(places.counts(), { inFlight: 31, waiting: 0 });
  });

  it('takes nobody out of the queue for one that has its place already', async () => {
    const places = createPlaces();
    for (let taken = 0; taken < 32; taken++) assert.equal(await places.take(undefined, false, Infinity), undefined);
    const nowMs = performance.now();
    const early = places.take('api', false, nowMs + 1_000);
    places.free(undefined);
    assert.equal(await early, undefined);
    const late = places.take('jobs', false, nowMs + 9_000);
    mock.timers.tick(5_000);
    places.free('api');
    assert.equal(await late, undefined);
  });
});
