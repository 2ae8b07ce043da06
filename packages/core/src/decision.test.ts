import assert from 'node:assert/strict';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { afterEach, beforeEach, describe, it, mock } from 'node:test';

import { type Caller, createCaller } from './caller.ts';
import { createReporter, type Decision, decisionChannel, type Reporter, type Ruling } from './decision.ts';

type Line = Decision & { readonly times: number; readonly caller?: string; readonly message: string };
let lines: Line[];
let reporter: Reporter;
const log = { info: (details: object, message: string) => void lines.push({ ...details, message } as Line), warn: () => assert.fail() };

const about = { enforced: true, audiences: ['secret-store'], request: { method: 'GET', route: '/secrets/:id' }, startedMs: 1 };
const refused: Ruling = { outcome: 'refused', code: 'invalid_token', reason: 'expired', source: 'screening' };
const callerOf = (name: string): Caller =>
  createCaller({ namespace: 'shop', name }, { uid: '', groups: [], extra: {} }, ['secret-store'], Date.now() + 60_000);
const notAllowed = (name: string): Ruling => ({
  outcome: 'refused',
  code: 'caller_not_allowed',
  reason: 'not_in_allow',
  caller: callerOf(name),
  source: 'cache',
});
const report = (ruling: Ruling, times = 1, route: Partial<typeof about> = {}): void => {
  for (let index = 0; index < times; index++) reporter.report(ruling, { ...about, ...route });
};
const told = (): unknown[] => lines.map(({ reason, times, caller }) => [reason, times, ...(caller ? [caller] : [])]);

describe('createReporter', () => {
  beforeEach(() => {
    mock.timers.enable({ apis: ['setTimeout'] });
    lines = [];
    reporter = createReporter(log);
  });
  afterEach(() => mock.timers.reset());

  it('logs the first of a kind at once, and counts the others of its 10 s in one line', () => {
    report(refused, 1_000);
    assert.deepEqual(told(), [['expired', 1]]);
    mock.timers.tick(9_999);
    assert.equal(lines.length, 1);
    mock.timers.tick(1);
    assert.deepEqual(told(), [
      ['expired', 1],
      ['expired', 999],
    ]);
  });

  it('tells a method that nobody has, as HTTP/2 lets a caller write it, without its words', () => {
    const decisions: unknown[] = [];
    const listen = (decision: unknown): void => void decisions.push((decision as Decision).request);
    subscribe(decisionChannel, listen);
    for (const method of ['M-SEARCH', 'eyJhbGciOiJSUzI1NiJ9.e30.c2ln', 'X'.repeat(21), ''])
      report(refused, 1, { request: { method, route: '/' } });
    unsubscribe(decisionChannel, listen);
    assert.deepEqual(
      decisions,
      ['M-SEARCH', '(other)', '(other)', '(other)'].map((method) => ({ method, route: '/' })),
    );
  });

  it('writes one line in 10 s while it goes on, and is ready for the next when it is over', () => {
    for (let second = 0; second < 25; second++) {
      report(refused, 2);
      mock.timers.tick(1_000);
    }
    mock.timers.tick(5_000);
    mock.timers.tick(10_000);
    report(refused);
    assert.deepEqual(told(), [
      ['expired', 1],
      ['expired', 19],
      ['expired', 20],
      ['expired', 10],
      ['expired', 1],
    ]);
  });

  it('keeps apart those whom a signature of the cluster names', () => {
    const signed = (claimant: string): Ruling => ({
      outcome: 'refused',
      code: 'caller_not_allowed',
      reason: 'not_in_allow',
      claimant,
      source: 'screening',
    });
    for (const claimant of ['shop/cart', 'shop/till', 'shop/cart']) report(signed(claimant));
    mock.timers.tick(10_000);
    assert.deepEqual(
      lines.map(({ claimant, times }) => [claimant, times]),
      [
        ['shop/cart', 1],
        ['shop/till', 1],
        ['shop/cart', 1],
      ],
    );
  });

  it('tells the last of those held back', () => {
    report({ ...refused, detail: 'first' });
    report({ ...refused, detail: 'second' });
    report({ ...refused, detail: 'third' });
    mock.timers.tick(10_000);
    assert.deepEqual(
      lines.map(({ detail }) => detail),
      ['first', 'third'],
    );
  });

  it('keeps apart reasons, audiences, callers that were proven, and what is only observed', () => {
    report(refused);
    report({ ...refused, reason: 'forged' });
    report(refused, 1, { audiences: ['admin'] });
    report(notAllowed('cart'));
    report(notAllowed('till'));
    report(refused, 1, { enforced: false });
    assert.deepEqual(told(), [
      ['expired', 1],
      ['forged', 1],
      ['expired', 1],
      ['not_in_allow', 1, 'shop/cart'],
      ['not_in_allow', 1, 'shop/till'],
      ['expired', 1],
    ]);
    assert.deepEqual([lines.at(-2)?.message, lines.at(-1)?.message], ['Request refused', 'Request would be refused']);
  });

  it('keeps no more than a thousand callers apart, and loses no count of the others', () => {
    for (let index = 0; index < 1_500; index++) report(notAllowed(`caller-${index}`), 2);
    assert.deepEqual(told().slice(999, 1_002), [
      ['not_in_allow', 1, 'shop/caller-999'],
      ['not_in_allow', 1],
    ]);
    mock.timers.tick(10_000);
    assert.equal(
      lines.reduce((sum, { times }) => sum + times, 0),
      3_000,
    );
    assert.equal(lines.length, 2_002);
    // Those lines began windows of their own, which nothing fills.
    mock.timers.tick(10_000);
    lines = [];
    report(notAllowed('caller-1499'));
    assert.deepEqual(told(), [['not_in_allow', 1, 'shop/caller-1499']]);
  });

  it('logs 503s with their code', () => {
    report({ outcome: 'unavailable', reason: 'timeout', source: 'review' });
    assert.deepEqual([lines[0]?.code, lines[0]?.message], ['review_unavailable', 'Request answered 503: nobody knows who is calling']);
  });

  it('logs nothing of a request that is let in', () => {
    report({ outcome: 'allowed', caller: callerOf('cart'), source: 'cache' });
    assert.deepEqual(lines, []);
  });

  it('logs what it held back when it is closed, and only once', () => {
    report(refused, 5);
    reporter.close();
    mock.timers.tick(10_000);
    assert.deepEqual(told(), [
      ['expired', 1],
      ['expired', 4],
    ]);
  });

  it('logs what it is told after it was closed', () => {
    report(refused, 5);
    reporter.close();
    report(refused);
    assert.deepEqual(told().slice(2), [['expired', 1]]);
  });

  it('keeps no process alive for what it holds back', () => {
    mock.timers.reset();
    const timers = (): number => process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length;
    const before = timers();
    report(refused, 2);
    assert.equal(timers(), before);
    reporter.close();
  });

  it('publishes every decision, with and without a log', () => {
    const seen: Decision[] = [];
    const listen = (decision: unknown): void => void seen.push(decision as Decision);
    subscribe(decisionChannel, listen);
    report(refused, 3);
    reporter = createReporter(undefined);
    report(refused, 2);
    report({ outcome: 'allowed', caller: callerOf('cart'), source: 'cache' });
    unsubscribe(decisionChannel, listen);
    assert.deepEqual(
      seen.map(({ outcome }) => outcome),
      [...Array.from({ length: 5 }, () => 'refused'), 'allowed'],
    );
    assert.equal(lines.length, 1);
  });
});
