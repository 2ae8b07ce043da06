// A guard alone in a process: what one of its decisions takes, what it does with a crowd, and what it takes to remember.

import { Socket } from 'node:net';

import { createGuard, type Guard, type IncomingRequest } from '@k8s-sa-auth/core';

import { answerParent, inFlight } from './child.ts';

export interface Decider {
  readonly audience: string;
  readonly apiServer: { readonly url: string; readonly caFile: string; readonly tokenFile: string };
  readonly guards: number;
}

export type Task =
  | { readonly task: 'hit'; readonly token: string; readonly batches: number }
  | { readonly task: 'crowd'; readonly token: string; readonly size: number }
  | { readonly task: 'remember'; readonly guard: number; readonly tokens: readonly string[] }
  | { readonly task: 'heap' };

/** How many requests of a crowd were answered with each status, and how long the last one waited, in ms. */
export interface Crowd {
  readonly statuses: Readonly<Record<string, number>>;
  readonly ms: number;
}

const perBatch = 1_000;
const connections = 16;
const sockets = Array.from({ length: connections }, () => new Socket());

// As Node hands a request over: the token is a string of its own each time, cut out of the bytes that came.
function requestWith(bytes: Buffer, index: number): IncomingRequest {
  const token = bytes.toString('latin1');
  const headers = { host: 'app.store.svc', accept: '*/*', 'user-agent': 'undici', 'x-client-id': token };
  const rawHeaders = ['Host', 'app.store.svc', 'Accept', '*/*', 'User-Agent', 'undici', 'X-Client-Id', token];
  return Object.assign({ method: 'GET', headers, rawHeaders }, { socket: sockets[index % connections] ?? new Socket() });
}

async function hit(guard: Guard, token: string, batches: number): Promise<readonly number[]> {
  const bytes = Buffer.from(token);
  await guard.check(requestWith(bytes, 0));
  const micros: number[] = [];
  for (let batch = 0; batch < batches; batch++) {
    const requests = Array.from({ length: perBatch }, (_item, index) => requestWith(bytes, index));
    const startedMs = performance.now();
    for (const request of requests) await guard.check(request, '/orders/:id');
    micros.push(((performance.now() - startedMs) / perBatch) * 1_000);
  }
  return micros;
}

async function meetCrowd(guard: Guard, token: string, size: number): Promise<Crowd> {
  const bytes = Buffer.from(token);
  const requests = Array.from({ length: size }, (_item, index) => requestWith(bytes, index));
  const startedMs = performance.now();
  const answers = await Promise.allSettled(requests.map((request) => guard.check(request)));
  const ms = performance.now() - startedMs;
  const statuses: Record<string, number> = {};
  for (const answer of answers) {
    const reason: unknown = answer.status === 'rejected' ? answer.reason : { status: 200 };
    const status = reason instanceof Object && 'status' in reason ? String(reason.status) : String(reason);
    statuses[status] = (statuses[status] ?? 0) + 1;
  }
  return { statuses, ms };
}

function heapBytes(): number {
  if (globalThis.gc === undefined) throw new Error('Start this process with --expose-gc');
  for (let times = 0; times < 4; times++) globalThis.gc();
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

answerParent(async ({ audience, apiServer, guards: count }: Decider) => {
  const guards = Array.from({ length: count }, () => createGuard({ audience, allow: 'any', apiServer }));
  const guardAt = (index: number): Guard => {
    const guard = guards[index];
    if (guard === undefined) throw new Error(`There is no guard ${index}`);
    return guard;
  };
  return async (question: Task): Promise<unknown> => {
    if (question.task === 'heap') return heapBytes();
    if (question.task === 'hit') return hit(guardAt(0), question.token, question.batches);
    if (question.task === 'crowd') return meetCrowd(guardAt(0), question.token, question.size);
    const { tokens, guard } = question;
    await inFlight(tokens.length, 16, async (index) => {
      const token = tokens[index] ?? '';
      await guardAt(guard).check({ method: 'GET', headers: { 'x-client-id': token }, rawHeaders: ['X-Client-Id', token] });
    });
    return tokens.length;
  };
});
