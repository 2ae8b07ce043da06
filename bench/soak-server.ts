// The process that is soaked: a guard and its routes before a handler, and what this process alone can tell of itself: what it decided and
// still decides, its stalls, its heap, and what went wrong unseen.

import { AsyncLocalStorage } from 'node:async_hooks';
import { subscribe } from 'node:diagnostics_channel';
import { once } from 'node:events';
import { createServer, type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleepFor } from 'node:timers/promises';

import {
  type AllowPredicate,
  AuthError,
  type Caller,
  ClusterError,
  createGuard,
  type Decision,
  decisionChannel,
  type Guard,
  type GuardOptions,
} from '@k8s-sa-auth/core';

import { plain, type Route, routes, ruleOf } from './soak-routes.ts';

/** What the soak asks, again and again. `measure`: collect garbage first, and tell the heap. */
export interface StatusQuestion {
  readonly number: number;
  readonly measure: boolean;
}

/** A time in which a process did nothing, in milliseconds since the epoch: anything may have timed out in it. */
export interface Stall {
  readonly fromMs: number;
  readonly toMs: number;
}

export interface StatusAnswer {
  readonly number: number;
  /** The requests that are still being decided, by their number. */
  readonly checking: readonly number[];
  readonly stalls: readonly Stall[];
  readonly heapBytes: number | undefined;
  /** Unhandled rejections, and once each what else should not be: process warnings, decisions that nobody waits for. Ever since the start. */
  readonly troubles: readonly string[];
}

/** What each answer carries in `x-told`, beside what a handler would say. */
export interface Told {
  /** The events that were published: `route` is the pattern that they name, `caller` whom they call proven. */
  readonly decisions: readonly (Pick<Decision, 'outcome' | 'enforced' | 'audiences' | 'source'> & {
    readonly code: Decision['code'] | undefined;
    readonly reason: string | undefined;
    readonly route: string | undefined;
    readonly caller: string | undefined;
  })[];
  /** What the handler finds of the request's headers. */
  readonly headers: 'as they were' | 'without the token' | 'changed';
}

export interface Listening {
  readonly port: number;
}

/** Tells of each time in which this process did nothing for longer than `limitMs`; each is told once. */
export function watchStalls(limitMs: number): () => readonly Stall[] {
  let lastMs = performance.now();
  let stalls: Stall[] = [];
  const tick = (): void => {
    const nowMs = performance.now();
    const gapMs = nowMs - lastMs;
    if (gapMs > limitMs) stalls.push({ fromMs: Date.now() - gapMs, toMs: Date.now() });
    lastMs = nowMs;
  };
  setInterval(tick, 50).unref();
  return () => {
    tick();
    const told = stalls;
    stalls = [];
    return told;
  };
}

/** What a handler would say of its caller. */
export const describeCaller = ({ serviceAccount, pod, audiences }: Pick<Caller, 'serviceAccount' | 'pod' | 'audiences'>): string =>
  `${serviceAccount} ${pod?.name} for ${audiences.toSorted().join(' and ')}`;

// Longer than an observing guard waits.
const lateMs = 500;
// Longer than what is decided behind it can last: 5 s for each review that it may take, and 1 s for the keys.
const behindMs = ({ order }: Route): number => (order === undefined ? 6_500 : 12_000);

// At once or in a promise, in turns.
function createPredicate(): AllowPredicate {
  let asked = 0;
  const predicate = ({ pod }: Caller, { route = '' }: { readonly route: string | undefined }): unknown => {
    const rule = ruleOf(route, pod?.name ?? '');
    const say = (): unknown => {
      if (rule === 'throws') throw new Error('The predicate throws');
      return rule === 'something else' ? 'true' : rule !== 'false';
    };
    asked += 1;
    if (rule === 'true, late') return sleepFor(lateMs).then(say);
    return asked % 2 === 0 ? say() : Promise.resolve().then(say);
  };
  return predicate as AllowPredicate;
}

async function serve(options: GuardOptions): Promise<void> {
  const takeStalls = watchStalls(500);
  const troubles: string[] = [];
  const tellOnce = (trouble: string): void => {
    if (!troubles.includes(trouble)) troubles.push(trouble);
  };
  process.on('unhandledRejection', (reason) => troubles.push(`unhandled rejection: ${String(reason)}`));
  process.on('warning', ({ message }) => tellOnce(`warning: ${message}`));
  // Ctrl-C reaches this process too; the soak says when it is over.
  process.on('SIGINT', () => undefined);
  process.once('disconnect', () => process.exit());

  const silent = (): void => undefined;
  const guard = createGuard({ ...options, logger: { info: silent, warn: silent, error: silent } });
  const predicate = createPredicate();
  const guards = new Map<string, Guard>();
  const guarded = new Map(routes.map((route) => [route.path, { route, own: route === plain ? guard : guardOf(route) }]));

  // One for all that are told the same, as a router has.
  function guardOf({ audiences, isRuled, isObserved, order }: Route): Guard {
    const isAuthorized = order !== undefined;
    const name = JSON.stringify([audiences, isRuled, isObserved, isAuthorized]);
    const own =
      guards.get(name) ??
      guard.with({
        audience: audiences,
        allow: isRuled ? predicate : options.allow,
        ...(isObserved && { mode: 'observe' }),
        ...(isAuthorized && {
          authorize: { verb: 'get', group: 'shop.example', resource: 'orders', namespace: 'shop', name: ({ params }) => params['order'] },
        }),
      });
    guards.set(name, own);
    return own;
  }

  const decided = new AsyncLocalStorage<{ readonly decisions: Decision[]; isAnswered: boolean }>();
  subscribe(decisionChannel, (message) => {
    const store = decided.getStore();
    if (store?.isAnswered !== false) tellOnce('a decision was told where none was asked for, or after the answer');
    store?.decisions.push(message as Decision);
  });
  const checking = new Set<number>();

  const server = createServer((request, response) => {
    const number = Number(request.headers['x-request-number']);
    const { route, own } = guarded.get(request.url ?? '') ?? { route: plain, own: guard };
    const store = { decisions: new Array<Decision>(), isAnswered: false };
    const compareHeaders = watchHeaders(request);
    checking.add(number);
    void decided
      .run(store, () => own.check(request, route.path, { order: route.order }))
      .then(
        (caller) => {
          for (const [name, value] of Object.entries(own.responseHeaders)) response.setHeader(name, value);
          return { status: 200, body: caller === undefined ? 'nobody' : describeCaller(caller) };
        },
        (error: unknown) => {
          if (!(error instanceof AuthError || error instanceof ClusterError)) return { status: 500, body: String(error) };
          for (const [name, value] of Object.entries(error.headers)) response.setHeader(name, value);
          return { status: error.status, body: error.message };
        },
      )
      .then(({ status, body }) => {
        store.isAnswered = true;
        const over = (): boolean => checking.delete(number);
        if (store.decisions.some(({ reason }) => reason === 'observe_timeout')) setTimeout(over, behindMs(route));
        else over();
        const told: Told = {
          decisions: store.decisions.map((decision) => ({
            outcome: decision.outcome,
            enforced: decision.enforced,
            code: decision.code,
            reason: decision.reason,
            audiences: decision.audiences,
            source: decision.source,
            route: decision.request.route,
            caller: decision.caller && describeCaller(decision.caller),
          })),
          headers: compareHeaders(),
        };
        response.setHeader('x-told', JSON.stringify(told));
        response.statusCode = status;
        response.end(body);
      });
  });

  function watchHeaders(request: IncomingMessage): () => Told['headers'] {
    const { header = 'x-client-id' } = options;
    const write = (): string => JSON.stringify([request.rawHeaders, request.headers]);
    const before = write();
    return () => {
      if (write() === before) return 'as they were';
      const { headers, headersDistinct, rawHeaders } = request;
      const isLeft = header in headers || header in headersDistinct || rawHeaders.some((name) => name.toLowerCase() === header);
      return isLeft ? 'changed' : 'without the token';
    };
  }

  // An idle connection that the server drops while the client writes would be no fault of the guard's.
  server.keepAliveTimeout = 0;
  server.listen(0, '127.0.0.1');
  await Promise.all([once(server, 'listening'), guard.ready()]);
  process.send?.({ port: (server.address() as AddressInfo).port } satisfies Listening);

  process.on('message', ({ number, measure }: StatusQuestion) => {
    const answer = { number, checking: [...checking], stalls: takeStalls(), heapBytes: measure ? measureHeap() : undefined, troubles };
    process.send?.(answer satisfies StatusAnswer);
  });
}

function measureHeap(): number {
  // Twice: what finalizers let go of in the first is collected in the second.
  globalThis.gc?.();
  globalThis.gc?.();
  return process.memoryUsage().heapUsed;
}

if (import.meta.main) await serve(JSON.parse(process.argv[2] ?? '{}') as GuardOptions);
