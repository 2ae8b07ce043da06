// The process that is soaked: a guard and its routes before a handler, and what this process alone can tell of itself: what it still
// decides, its stalls, its heap, and what went wrong unseen.

import { AsyncLocalStorage } from 'node:async_hooks';
import { subscribe } from 'node:diagnostics_channel';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';

import { AuthError, ClusterError, createGuard, type Decision, decisionChannel, type GuardOptions } from '@k8s-sa-auth/core';

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
  /** Unhandled rejections, and process warnings of each kind, ever since the start. */
  readonly troubles: readonly string[];
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

async function serve(options: GuardOptions): Promise<void> {
  const takeStalls = watchStalls(500);
  const troubles: string[] = [];
  process.on('unhandledRejection', (reason) => troubles.push(`unhandled rejection: ${String(reason)}`));
  process.on('warning', ({ message }) => {
    if (!troubles.includes(`warning: ${message}`)) troubles.push(`warning: ${message}`);
  });
  // Ctrl-C reaches this process too; the soak says when it is over.
  process.on('SIGINT', () => undefined);
  process.once('disconnect', () => process.exit());

  const silent = (): void => undefined;
  const guard = createGuard({ ...options, logger: { info: silent, warn: silent, error: silent } });
  const { allow } = options;
  const vault = guard.with({ allow, audience: 'vault' });
  const orders = guard.with({
    allow,
    authorize: { verb: 'get', group: 'shop.example', resource: 'orders', namespace: 'shop', name: ({ params }) => params['order'] },
  });
  const decided = new AsyncLocalStorage<{ source?: Decision['source'] }>();
  subscribe(decisionChannel, (message) => {
    const store = decided.getStore();
    if (store !== undefined) store.source = (message as Decision).source;
  });
  const checking = new Set<number>();

  const server = createServer((request, response) => {
    const number = Number(request.headers['x-request-number']);
    const decision: { source?: Decision['source'] } = {};
    const [, order] = /^\/orders\/(.+)$/.exec(request.url ?? '') ?? [];
    const route = order !== undefined ? orders : request.url === '/vault' ? vault : guard;
    checking.add(number);
    void decided
      .run(decision, () => route.check(request, undefined, { order }))
      .then(
        (caller) => {
          for (const [name, value] of Object.entries(guard.responseHeaders)) response.setHeader(name, value);
          return { status: 200, body: `${caller?.serviceAccount} ${caller?.pod?.name}` };
        },
        (error: unknown) => {
          if (!(error instanceof AuthError || error instanceof ClusterError)) return { status: 500, body: String(error) };
          for (const [name, value] of Object.entries(error.headers)) response.setHeader(name, value);
          return { status: error.status, body: error.message };
        },
      )
      .then(({ status, body }) => {
        checking.delete(number);
        response.setHeader('x-decided-by', decision.source ?? '');
        response.statusCode = status;
        response.end(body);
      });
  });
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
