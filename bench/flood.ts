// What a flood costs: distinct forged tokens under a known key, an insider who mints good ones, and a crowd that meets an outage. Prints what
// good callers saw meanwhile, the reviews made, and the memory held. Bounded: `node bench/flood.ts [--tokens 100000]`.

import { parseArgs } from 'node:util';

import { createGuard } from '@k8s-sa-auth/core';
import { createAuthority } from '@k8s-sa-auth/testing';

const { values } = parseArgs({ options: { tokens: { type: 'string', default: '100000' } } });
const count = Number(values.tokens);
if (!Number.isInteger(count) || count < 1 || count > 10_000_000) throw new TypeError('--tokens is a whole number from 1 to 10 000 000');

const authority = await createAuthority();
const { apiServer } = await authority.pod('store/store');
const logger = { info: () => {}, warn: () => {}, error: () => {} };
const newGuard = (cacheTtlMs = 60_000) => createGuard({ audience: 'store', allow: ['api/*'], cacheTtlMs, apiServer, logger });
const mint = (serviceAccount: string, pod: string): Promise<string> => authority.token(serviceAccount, { audience: 'store', pod });
const reviews = (): number => authority.calls.filter(({ resource }) => resource === 'tokenreviews').length;
const heapMiB = (): string => `${(process.memoryUsage().heapUsed / 2 ** 20).toFixed(1)} MiB`;

let guard = newGuard();
async function send(token: string): Promise<number> {
  try {
    await guard.check({ method: 'GET', headers: { 'x-client-id': token }, rawHeaders: ['X-Client-Id', token] });
    return 200;
  } catch (error) {
    return error instanceof Error && 'status' in error ? Number(error.status) : 500;
  }
}

async function timed(token: string): Promise<number> {
  const startedMs = performance.now();
  const status = await send(token);
  if (status !== 200) throw new Error(`a good caller saw ${status}`);
  return performance.now() - startedMs;
}

const p99 = (samples: readonly number[]): number => samples.toSorted((a, b) => a - b)[Math.floor(samples.length * 0.99)] ?? 0;
const tally = (statuses: readonly number[]): string =>
  [...new Set(statuses)].map((status) => `${statuses.filter((one) => one === status).length} × ${status}`).join(', ');

await guard.ready();
const good = await mint('api/good', 'good');
await timed(good);
const before: number[] = [];
for (let index = 0; index < 2_000; index++) before.push(await timed(good));

const [header = '', payload = '', signature = ''] = good.split('.');
const forged = (index: number): string => `${header}.${payload}.${index.toString(36).padStart(8, 'A')}${signature.slice(8)}`;
const asked = reviews();
const during: number[] = [];
const statuses = new Set<number>();
const heapBefore = heapMiB();
for (let index = 1; index <= count; index++) {
  statuses.add(await send(forged(index)));
  if (index % 50 === 0) during.push(await timed(good));
}
console.log(
  `forged tokens      ${count}, each answered ${[...statuses].join(', ')}, by ${reviews() - asked} reviews; heap ${heapBefore} → ${heapMiB()}`,
);
console.log(`good caller, p99   ${p99(before).toFixed(3)} ms before, ${p99(during).toFixed(3)} ms during`);

const insiders = await Promise.all(Array.from({ length: 2_000 }, (_item, index) => mint('api/insider', `pod-${index}`)));
const others = await Promise.all(Array.from({ length: 20 }, (_item, index) => mint(`api/other-${index}`, `other-${index}`)));
const flood = Promise.all(insiders.map(send));
const served = await Promise.all(others.map(send));
console.log(`an insider         2000 new tokens at once: ${tally(await flood)}; 20 other new callers meanwhile: ${tally(served)}`);
await guard.close();

guard = newGuard(0);
await guard.ready();
const known = await Promise.all(Array.from({ length: 500 }, (_item, index) => mint(`api/api-${index % 50}`, `known-${index}`)));
const unknown = await Promise.all(Array.from({ length: 500 }, (_item, index) => mint(`api/api-${index % 50}`, `unknown-${index}`)));
for (const token of known) await send(token);
authority.fail('outage');
const outage = await Promise.all([...known, ...unknown].map(send));
console.log(`an outage          500 known: ${tally(outage.slice(0, 500))}; 500 unknown: ${tally(outage.slice(500))}`);
await authority.recover();
const recoveredMs = performance.now();
const probe = known[0] ?? '';
for (let asks = reviews(); reviews() === asks;) {
  await send(probe);
  await new Promise(setImmediate);
}
const backMs = performance.now() - recoveredMs;
const askedBefore = reviews();
const after = await Promise.all([...known, ...unknown].map(send));
console.log(
  `the recovery       used again after ${backMs.toFixed(0)} ms; all 1000 at once: ${tally(after)}, by ${reviews() - askedBefore} reviews`,
);

await guard.close();
await authority.close();
