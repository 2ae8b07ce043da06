// What the interceptor costs: requests per second of undici's `request` with it, and with the same header put on by hand, against a
// server in another process. Both in turns within one run, so that what else the machine does falls on both.

import { fork } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';

import { createServiceClient } from '@k8s-sa-auth/core';
import { createInterceptor } from '@k8s-sa-auth/core/undici';
import { createAuthority } from '@k8s-sa-auth/testing';
import { Agent, type Dispatcher, request } from 'undici';

// The first 10 warm up.
const rounds = 110;
const requestsPerRound = 1_000;
const inFlight = 16;

async function serve(): Promise<void> {
  const server = createServer((_request, response) => response.end('ok')).listen(0, '127.0.0.1');
  await once(server, 'listening');
  process.send?.((server.address() as AddressInfo).port);
  process.once('disconnect', () => process.exit());
}

async function requestsPerSecond(origin: string, dispatcher: Dispatcher, headers: Record<string, string>): Promise<number> {
  let left = requestsPerRound;
  const worker = async (): Promise<void> => {
    while (left-- > 0) {
      const { body } = await request(`${origin}/orders`, { dispatcher, headers });
      await body.text();
    }
  };
  const startedAt = performance.now();
  await Promise.all(Array.from({ length: inFlight }, worker));
  return (requestsPerRound / (performance.now() - startedAt)) * 1_000;
}

const median = (numbers: readonly number[]): number => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)] ?? Number.NaN;

async function compare(): Promise<void> {
  const server = fork(import.meta.filename, ['serve']);
  const [port] = (await once(server, 'message')) as [number];
  const origin = `http://127.0.0.1:${port}`;
  const authority = await createAuthority();
  const api = await authority.pod('api/api', { tokens: { shop: 'shop' } });
  const client = createServiceClient({ targets: [{ origin, tokenFile: api.tokenFile('shop') }] });
  const agents = [new Agent({ connections: inFlight }), new Agent({ connections: inFlight })] as const;
  const intercepted = agents[1].compose(createInterceptor(client));
  const accept = { accept: 'application/json' };
  const byHand = { ...accept, ...(await client.target(origin).headers()) };

  const rates: (readonly [without: number, withIt: number])[] = [];
  const plain = (): Promise<number> => requestsPerSecond(origin, agents[0], byHand);
  const withToken = (): Promise<number> => requestsPerSecond(origin, intercepted, accept);
  for (let round = 0; round < rounds; round += 2) {
    rates.push([await plain(), await withToken()]);
    const first = await withToken();
    rates.push([await plain(), first]);
  }
  const counted = rates.slice(10);
  const [without, withIt] = [median(counted.map(([rate]) => rate)), median(counted.map(([, rate]) => rate))];
  const ratio = median(counted.map(([plainRate, rate]) => rate / plainRate));
  console.log(`without ${without.toFixed(0)}/s, with ${withIt.toFixed(0)}/s, ratio ${ratio.toFixed(3)}`);

  server.disconnect();
  await Promise.all([...agents.map((agent) => agent.close()), client.close(), authority.close()]);
}

await (process.argv[2] === 'serve' ? serve() : compare());
