import assert from 'node:assert/strict';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { after, before, describe, it } from 'node:test';
import { inspect } from 'node:util';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';

import { createGuard, type Guard } from './guard.ts';
import { createServiceClient } from './service-client.ts';
import { processStatus } from './status.ts';
import { type Review, reviewChannel } from './review.ts';

const logger = { info: () => {}, warn: () => {}, error: () => {} };
let authority: Authority;
let store: Pod;
const newGuard = (): Guard => createGuard({ audience: 'secret-store', allow: 'any', apiServer: store.apiServer, logger });

before(async () => {
  authority = await createAuthority();
  store = await authority.pod('secret-store/secret-store');
});
after(() => authority.close());

describe('processStatus', () => {
  it('tells of every guard and target, until it is closed', async () => {
    const guards = [newGuard(), newGuard()];
    const client = createServiceClient({ targets: [{ origin: 'http://store', tokenFile: '/nowhere' }], logger });
    const count = (): readonly number[] => [processStatus().guards.length, processStatus().targets.length];
    assert.deepEqual(count(), [2, 1]);
    assert.deepEqual(processStatus().targets, client.status());
    await client.close();
    await guards[0]?.close();
    assert.deepEqual(count(), [1, 0]);
    await guards[1]?.close();
    assert.deepEqual(count(), [0, 0]);
  });

  it('tells of one guard, with all audiences of its routes, whatever is made from it', async () => {
    const guard = newGuard();
    guard.with({ allow: 'any', audience: 'admin' });
    guard.with({ allow: 'any' });
    await guard.ready();
    const [status, ...others] = processStatus().guards;
    assert.deepEqual(others, []);
    assert.ok(status?.keysLoadedAt instanceof Date);
    assert.deepEqual(status, {
      audiences: ['secret-store', 'admin'],
      verification: 'review',
      reviewsInFlight: 0,
      requestsWaiting: 0,
      callersRemembered: 0,
      refusalsRemembered: 0,
      accessesRemembered: 0,
      breaker: 'shut',
      keysLoadedAt: status.keysLoadedAt,
    });
    await guard.close();
  });
});

describe('the events of a review', () => {
  it('tell where it was asked, what came of it, and no token', async () => {
    const seen: unknown[] = [];
    const printed: string[] = [];
    const listeners = ['start', 'end', 'asyncStart', 'asyncEnd', 'error'].map((name) => {
      const listen = (message: unknown): void => {
        const { status, result } = message as Review;
        seen.push([name, status, result?.outcome]);
        printed.push(inspect(message, { depth: 20, showHidden: true }), JSON.stringify(message));
      };
      subscribe(`tracing:${reviewChannel}:${name}`, listen);
      return () => unsubscribe(`tracing:${reviewChannel}:${name}`, listen);
    });
    const guard = newGuard();
    const token = await authority.token('api/api', { audience: 'secret-store', pod: 'api-0' });
    await guard.check({ headers: { 'x-client-id': token }, rawHeaders: ['x-client-id', token] });
    for (const stop of listeners) stop();
    await guard.close();
    assert.deepEqual(seen, [
      ['start', undefined, undefined],
      ['end', undefined, undefined],
      ['asyncStart', 201, 'accepted'],
      ['asyncEnd', 201, 'accepted'],
    ]);
    assert.ok(printed.every((text) => text.includes(`${store.apiServer.url}/apis/authentication.k8s.io/v1/tokenreviews`)));
    assert.ok(printed.every((text) => !text.includes(token.split('.')[2] ?? assert.fail())));
  });
});
