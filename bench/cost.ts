// Where the microseconds of a guarded request go, for docs/performance.md: hashing alone, in a hook, and before a client that sleeps; what an
// app pays for asking others itself; and what a profiler finds in each framework. `pnpm bench:cost [hash] [hooks] [outgoing] [profile]`; a few
// minutes for all of it, each part of which it writes to bench/results/cost.json.

import { createHash, hash, randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { loadavg } from 'node:os';

import { type Child, startChild } from './child.ts';
import { appOf, openStage, publishKeys } from './comparisons.ts';
import { median } from './figures.ts';
import type { Hook } from './hooks.ts';
import type { Even } from './load.ts';
import type { Asker, Way } from './outgoing.ts';
import { type Cost, costsFile, readCosts } from './report.ts';
import type { App, Asked, Usage } from './server.ts';

let said: string[] = [];
function say(text: string): void {
  said.push(text);
  console.log(text);
}

async function measureHash(): Promise<void> {
  const token = randomBytes(820).toString('base64url');
  const bytes = Buffer.from(token);
  const prefix = randomBytes(48).toString('base64');
  const sha256 = (text: string | Buffer): string => hash('sha256', text, 'base64');
  const junk = Buffer.alloc(2 ** 23);
  const evict = (): void => {
    for (let at = 0; at < 2 ** 18; at += 64) junk[(at * 7) % junk.length] = at;
  };
  const anew = (): string => bytes.toString('latin1');
  const other = anew();
  const known = new Map([[other, true]]);
  const tries: Readonly<Record<string, (fresh: string) => unknown>> = {
    'making the string that a request brings': anew,
    'hashing the same string again and again': () => sha256(other),
    'hashing its bytes': () => sha256(bytes),
    'hashing a string that is new each time': sha256,
    'the same, behind a prefix': (fresh) => sha256(prefix + fresh),
    'the same, to hex': (fresh) => hash('sha256', prefix + fresh, 'hex'),
    'the same, by createHash': (fresh) =>
      createHash('sha256')
        .update(prefix + fresh)
        .digest('base64'),
    'the same, with SHA-1': (fresh) => hash('sha1', prefix + fresh, 'base64'),
    'the same, with BLAKE2s': (fresh) => hash('blake2s256', prefix + fresh, 'base64'),
    'looking a new string up in a Map': (fresh) => known.get(fresh),
    'emptying 256 KiB of the processor’s caches': evict,
    'emptying them, and hashing behind a prefix': (fresh) => {
      evict();
      return sha256(prefix + fresh);
    },
    'comparing a new string with an equal one': (fresh) => fresh === other,
  };
  say(`A token of ${token.length} characters, in a loop, µs of CPU (median of 60 × 2 000):`);
  for (const [name, work] of Object.entries(tries)) {
    const micros: number[] = [];
    for (let round = 0; round < 60; round++) {
      const inputs = Array.from({ length: 2_000 }, anew);
      const before = process.cpuUsage();
      for (const input of inputs) work(input);
      const { user, system } = process.cpuUsage(before);
      micros.push((user + system) / inputs.length);
    }
    say(`  ${median(micros).toFixed(2).padStart(6)}  ${name}`);
  }
}

const requests = 4_000;
const headers = { accept: '*/*', 'x-client-id': randomBytes(820).toString('base64url') };

async function cpuOf(app: Child, load: Child, maySleep: boolean): Promise<number> {
  const { port, path, cpuMicros } = await app.ask<Usage>({});
  await load.ask({ port, path, headers, requests, maySleep } satisfies Even);
  return ((await app.ask<Usage>({})).cpuMicros - cpuMicros) / requests;
}

async function measureHooks(): Promise<void> {
  const hooks: readonly Hook[] = [
    'nothing, in a hook',
    'a wait of 3 µs',
    'a wait of 6 µs',
    'a wait of 10 µs',
    'hashing the token',
    'comparing it with the connection’s last one',
    'remembering it for the request in a WeakMap',
    'reading headersDistinct',
    'deleting the header from headers',
  ];
  say(
    '\nWhat a hook of Fastify adds to the CPU time of a request, µs (median of 30 rounds), by a client that sleeps and one that does not:',
  );
  await using load = startChild('load.ts');
  await using bare = startChild('hooks.ts', {});
  for (const hook of hooks) {
    await using app = startChild('hooks.ts', { hook });
    const added = async (maySleep: boolean): Promise<string> => {
      const micros: number[] = [];
      for (let round = -4; round < 30; round++) {
        const plain = await cpuOf(bare, load, maySleep);
        const hooked = await cpuOf(app, load, maySleep);
        if (round >= 0) micros.push(hooked - plain);
      }
      return median(micros).toFixed(1).padStart(6);
    };
    say(`  ${await added(true)} ${await added(false)}  ${hook}`);
  }
}

// Identical processes differ, so each way gets several of them, and all take turns.
async function measureOutgoing(): Promise<void> {
  await using stage = await openStage(true, () => {});
  const { url, caFile } = stage.authority;
  const ways: readonly Way[] = [
    'nothing (the same again)',
    'lines written to a TLS socket',
    'requests by node:https',
    'requests by undici',
  ];
  const micros = new Map<Way, number[]>(ways.map((by) => [by, []]));
  for (let processes = 0; processes < 5; processes++) {
    await using started = new AsyncDisposableStack();
    const load = started.use(startChild('load.ts'));
    const start = (by: Way): Child => started.use(startChild('outgoing.ts', { by, url, caFile } satisfies Asker));
    const bare = start('nothing (the same again)');
    const apps = ways.map((by) => [by, start(by)] as const);
    for (let round = -6; round < 14; round++) {
      const plain = await cpuOf(bare, load, false);
      for (const [by, app] of apps) {
        const added = (await cpuOf(app, load, false)) - plain;
        if (round >= 0) micros.get(by)?.push(added);
      }
    }
  }
  say(
    '\nWhat a bare request of Express costs more, µs of CPU, once its process has asked another server 20 times by (median of 70 rounds):',
  );
  for (const [by, added] of micros) say(`  ${median(added).toFixed(1).padStart(6)}  ${by}`);
}

async function measureProfiles(): Promise<void> {
  await using stage = await openStage(true, () => {});
  const keys = await publishKeys(stage);
  const sent = { accept: '*/*', 'x-client-id': stage.token };
  for (const framework of ['fastify', 'express', 'koa'] as const) {
    const profileOf = async (guarded: App['guarded']): Promise<ReadonlyMap<string, number>> => {
      await using app = startChild('server.ts', appOf(stage, keys, framework, guarded));
      await using load = startChild('load.ts');
      const { port, path } = await app.ask<Usage>({});
      const send = (count: number): Promise<unknown> => load.ask({ port, path, headers: sent, requests: count } satisfies Even);
      await send(20_000);
      await app.ask({ profile: 'start' } satisfies Asked);
      await send(60_000);
      const { self = {} } = await app.ask<Usage>({ profile: 'stop' } satisfies Asked);
      return new Map(Object.entries(self).map(([name, micros]) => [name, micros / 60_000]));
    };
    const [bare, guarded] = [await profileOf('bare'), await profileOf('guard')];
    const names = [...new Set([...bare.keys(), ...guarded.keys()])].filter((name) => !name.startsWith('(idle)'));
    const rows = names.map((name) => ({ name, without: bare.get(name) ?? 0, withIt: guarded.get(name) ?? 0 }));
    const all = (which: 'without' | 'withIt'): string => rows.reduce((sum, row) => sum + row[which], 0).toFixed(1);
    say(`${framework}, µs a request by a profile: ${all('without')} without the guard, ${all('withIt')} with it. What differs most:`);
    for (const { name, without, withIt } of rows.toSorted((a, b) => b.withIt - b.without - a.withIt + a.without).slice(0, 16))
      say(`  ${(withIt - without).toFixed(2).padStart(6)}  (${without.toFixed(2)} → ${withIt.toFixed(2)})  ${name}`);
  }
  keys.close();
}

const parts = { hash: measureHash, hooks: measureHooks, outgoing: measureOutgoing, profile: measureProfiles };
const named = process.argv.slice(2);
const costs: Record<string, Cost> = readCosts();
for (const [name, measure] of Object.entries(parts)) {
  if (named.length > 0 && !named.includes(name)) continue;
  said = [];
  const circumstances = `${new Date().toISOString().slice(0, 10)}, Node ${process.versions.node}, load ${loadavg()[0]?.toFixed(1)} at the start`;
  await measure();
  costs[name] = { circumstances, lines: said };
}
writeFileSync(costsFile, `${JSON.stringify(costs, undefined, 2)}\n`);
