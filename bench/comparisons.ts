// What is compared with what: each comparison takes turns within one run (A B A B …), so that what else the machine does falls on both.

import { execFileSync, spawnSync } from 'node:child_process';
import { createPublicKey, type JsonWebKey } from 'node:crypto';
import { mkdtempSync, mkdirSync, readFileSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { request } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';

import { type Child, type Rate, startChild } from './child.ts';
import type { Calls, Requests } from './client.ts';
import type { Crowd, Decider, Task } from './decider.ts';
import { type Details, type Figure, type FigureName, figureOf, median } from './figures.ts';
import type { Even, Felt, Paced } from './load.ts';
import type { Reviewer, Tokens } from './reviewer.ts';
import { simulate } from './scale.ts';
import type { App, Guarded, Usage } from './server.ts';

/** What the comparisons of one run share. */
export interface Stage extends AsyncDisposable {
  readonly authority: Authority;
  /** The pod whose guard is measured. */
  readonly store: Pod;
  /** A token for it, good for a day, so that no round sees it expire. */
  readonly token: string;
  readonly isQuick: boolean;
  /** Says how far a comparison has come. */
  readonly tell: (progress: string) => void;
}

export interface Comparison {
  readonly names: readonly FigureName[];
  readonly run: (stage: Stage) => Promise<readonly Figure[]>;
}

const audience = 'store';

export async function openStage(isQuick: boolean, tell: Stage['tell']): Promise<Stage> {
  const authority = await createAuthority();
  const store = await authority.pod('store/store');
  const token = await authority.token('api/api', { audience, pod: 'api-6d9f7c5b8-x7k2p', expirationSeconds: 86_400 });
  return { authority, store, token, isQuick, tell, [Symbol.asyncDispose]: () => authority.close() };
}

type Turn = () => Promise<Rate>;

// What each of those that are compared did in one round: first the plain one, then ours, then what may stand beside them.
type Round = readonly [Rate, Rate, ...Rate[]];

// Rounds of A and B in turn; the first ones warm up.
async function interleave(stage: Stage, count: number, warmUp: number, turns: readonly [Turn, Turn, ...Turn[]]): Promise<readonly Round[]> {
  const rounds: Round[] = [];
  const [first, second, ...others] = turns;
  for (let at = -warmUp; at < count; at++) {
    stage.tell(at < 0 ? 'warming up' : `round ${at + 1} of ${count}`);
    const round: [Rate, Rate, ...Rate[]] = [await first(), await second()];
    for (const turn of others) round.push(await turn());
    if (at >= 0) rounds.push(round);
  }
  return rounds;
}

// The ratios are the second's to the first's, by which the first is the plain one.
function ratioFigure(name: FigureName, rounds: readonly Round[], names: readonly [string, string], beside: Details = {}): Figure {
  const middle = (of: 0 | 1, what: keyof Rate): number => median(rounds.map((round) => round[of][what]));
  const ratiosOf = (what: keyof Rate): readonly number[] => rounds.map(([first, second]) => second[what] / first[what]);
  return figureOf(name, ratiosOf('perSecond'), {
    [`${names[0]}.per_second`]: middle(0, 'perSecond'),
    [`${names[1]}.per_second`]: middle(1, 'perSecond'),
    [`${names[0]}.cpu_us`]: middle(0, 'cpuMicros'),
    [`${names[1]}.cpu_us`]: middle(1, 'cpuMicros'),
    cpu_ratio: median(ratiosOf('cpuMicros')),
    ...beside,
  });
}

// Requests to two apps, each in a process of its own, from a third one.

const requestsPerRound = 4_000;

async function compareApps(stage: Stage, name: FigureName, framework: App['framework'], plain: Guarded): Promise<readonly Figure[]> {
  const keys = await publishKeys(stage);
  // A process may be some percent faster than another of the same program for as long as it lives, so a few of each are compared.
  const [processes, count, warmUp] = stage.isQuick ? [2, 4, 2] : [8, 10, 4];
  const isBare = plain === 'bare';
  const names: readonly Guarded[] = isBare ? [plain, 'guard', 'bare without headers'] : [plain, 'guard'];
  const compared = names.map((each) => appOf(stage, keys, framework, each));
  const rounds: Round[] = [];
  for (let index = 0; index < processes; index++) {
    const told = { ...stage, tell: (progress: string) => stage.tell(`processes ${index + 1} of ${processes}, ${progress}`) };
    rounds.push(...(await compareProcesses(told, name, compared, count, warmUp)));
  }
  keys.close();
  // The answer's two headers are part of what a guard costs, though any app that keeps its answers out of shared caches sends them.
  const beside = isBare && {
    ratio_to_bare_without_headers: median(rounds.map(([, ours, other]) => ours.perSecond / (other?.perSecond ?? 0))),
  };
  return [ratioFigure(name, rounds, [isBare ? 'bare' : 'peer', 'guard'], { ...beside })];
}

async function compareProcesses(
  stage: Stage,
  name: string,
  apps: readonly App[],
  count: number,
  warmUp: number,
): Promise<readonly Round[]> {
  await using processes = new AsyncDisposableStack();
  const load = processes.use(startChild('load.ts'));
  const start = async (app: App): Promise<Turn> => {
    const child = processes.use(startChild('server.ts', app));
    const { port, path } = await child.ask<Usage>({});
    const { status } = await fetch(`http://127.0.0.1:${port}${path}`);
    const wanted = isUnguarded(app) ? 200 : 401;
    if (status !== wanted) throw new Error(`${name}: a request without a token is answered ${status}, not ${wanted}`);
    // Each is sent the token in the header that it reads by default; where nothing reads it, in ours.
    const isPeer = !isUnguarded(app) && app.guarded !== 'guard';
    const headers = { accept: '*/*', ...(isPeer ? { authorization: `Bearer ${stage.token}` } : { 'x-client-id': stage.token }) };
    return async () => {
      const before = await child.ask<Usage>({});
      const { perSecond } = await load.ask<Rate>({ port, path, headers, requests: requestsPerRound } satisfies Even);
      const { cpuMicros } = await child.ask<Usage>({});
      return { perSecond, cpuMicros: (cpuMicros - before.cpuMicros) / requestsPerRound };
    };
  };
  const [first, second, ...others] = await Promise.all(apps.map(start));
  if (first === undefined || second === undefined) throw new Error(`${name}: two apps are compared`);
  return await interleave(stage, count, warmUp, [first, second, ...others]);
}

const isUnguarded = ({ guarded }: App): boolean => guarded === 'bare' || guarded === 'bare without headers';

export interface PublishedKeys {
  readonly jwksUri: string;
  readonly publicKey: string;
  readonly issuer: string;
  close(): void;
}

// The cluster's key, for peers that want it in PEM and for those that load it, without credentials.
export async function publishKeys({ authority, store, token }: Stage): Promise<PublishedKeys> {
  const headers = { authorization: `Bearer ${readFileSync(store.apiServer.tokenFile, 'utf8')}` };
  const text = await new Promise<string>((resolve, reject) => {
    const sent = request(`${authority.url}/openid/v1/jwks`, { ca: readFileSync(authority.caFile), headers, agent: false }, (response) => {
      response
        .setEncoding('utf8')
        .toArray()
        .then((chunks) => resolve(chunks.join('')), reject);
    });
    sent.on('error', reject).end();
  });
  const [key] = (JSON.parse(text) as { readonly keys: readonly JsonWebKey[] }).keys;
  if (key === undefined) throw new Error('The authority publishes no key');
  const server = createServer((_request, response) => response.setHeader('content-type', 'application/json').end(text));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { iss } = JSON.parse(Buffer.from(token.split('.')[1] ?? '', 'base64url').toString()) as { readonly iss: string };
  return {
    jwksUri: `http://127.0.0.1:${(server.address() as AddressInfo).port}/jwks`,
    publicKey: createPublicKey({ key, format: 'jwk' }).export({ type: 'spki', format: 'pem' }).toString(),
    issuer: iss,
    close() {
      server.close();
      server.closeAllConnections();
    },
  };
}

export function appOf({ store }: Stage, { jwksUri, publicKey, issuer }: PublishedKeys, framework: App['framework'], guarded: Guarded): App {
  return { framework, guarded, audience, apiServer: store.apiServer, publicKey, jwksUri, issuer };
}

// Reviews, made by two processes in turn and answered by this one.

async function compareReviews(stage: Stage, name: FigureName, by: 'sdk' | 'https'): Promise<readonly Figure[]> {
  const start = (who: Reviewer['by']): Child =>
    startChild('reviewer.ts', { by: who, audience, apiServer: stage.store.apiServer } satisfies Reviewer);
  await using other = start(by);
  await using ours = start('guard');
  // The Kubernetes client shakes hands for each review: fewer of them take as long.
  const counts = { sdk: 200, https: 1_000, guard: 1_000 };
  const tokens = await mint(stage, counts.guard + 16);
  const turn =
    (child: Child, count: number): Turn =>
    () =>
      child.ask<Rate>({ tokens: tokens.slice(0, count + 16) } satisfies Tokens);
  // What a review takes goes down until some ten thousand were made.
  const [count, warmUp] = stage.isQuick ? [4, 2] : [15, 10];
  const measured = await interleave(stage, count, warmUp, [turn(other, counts[by]), turn(ours, counts.guard)]);
  return [ratioFigure(name, measured, [by, 'guard'])];
}

// Of many ServiceAccounts, as the budget of one of them would hold the others up.
function mint({ authority, tell }: Stage, count: number, from = 0): Promise<string[]> {
  tell(`signing ${count} tokens`);
  const issue = (index: number): Promise<string> => {
    const service = index % 1_000;
    const serviceAccount = `team-${service % 50}/service-${service}`;
    const pod = `service-${service}-6d9f7c5b8-${index.toString(36).padStart(5, '0')}`;
    return authority.token(serviceAccount, { audience, pod, expirationSeconds: 86_400 });
  };
  return Promise.all(Array.from({ length: count }, (_item, index) => issue(from + index)));
}

const startDecider = ({ store }: Stage, guards: number, ...execArgv: readonly string[]): Child =>
  startChild('decider.ts', { audience, apiServer: store.apiServer, guards } satisfies Decider, execArgv);

const reviewsOf = ({ authority }: Stage): number => authority.count({ resource: 'tokenreviews' });

async function measureHit(stage: Stage): Promise<readonly Figure[]> {
  await using decider = startDecider(stage, 1);
  const ask = (batches: number): Promise<readonly number[]> => decider.ask({ task: 'hit', token: stage.token, batches } satisfies Task);
  stage.tell('warming up');
  await ask(50);
  stage.tell('deciding');
  return [figureOf('verdict.hit_us', await ask(stage.isQuick ? 100 : 400))];
}

async function measureHerd(stage: Stage): Promise<readonly Figure[]> {
  const samples: number[] = [];
  const statuses: Record<string, number> = {};
  const waited: number[] = [];
  let again: Crowd | undefined;
  for (let round = 0; round < (stage.isQuick ? 1 : 3); round++) {
    stage.tell(`crowd ${round + 1}`);
    await using decider = startDecider(stage, 1);
    const meet = (): Promise<Crowd> => decider.ask({ task: 'crowd', token: stage.token, size: 10_000 } satisfies Task);
    const asked = reviewsOf(stage);
    const crowd = await meet();
    samples.push(reviewsOf(stage) - asked);
    again = await meet();
    for (const [status, count] of Object.entries(crowd.statuses)) statuses[status] = count;
    waited.push(crowd.ms);
  }
  const counted = Object.entries(statuses).map(([status, count]) => [`answered_${status}`, count]);
  const details = {
    ...Object.fromEntries(counted),
    all_answered_ms: median(waited),
    answered_200_when_asked_again: again?.statuses['200'] ?? 0,
  };
  return [figureOf('herd.reviews', samples, details, Math.max(...samples))];
}

async function measureFlood(stage: Stage): Promise<readonly Figure[]> {
  const keys = await publishKeys(stage);
  // So that no review of the good callers' own falls into it.
  await using app = startChild('server.ts', { ...appOf(stage, keys, 'fastify', 'guard'), cacheTtlMs: 600_000 } satisfies App);
  // Two processes, so that good callers wait for the app and not for the forger beside them.
  await using load = startChild('load.ts');
  await using forger = startChild('load.ts');
  keys.close();
  const { port, path } = await app.ask<Usage>({});
  const [rounds, perRound] = stage.isQuick ? [2, 5_000] : [5, 20_000];
  const forgedPerSecond = 2_000;
  let from = 0;
  const send = async (forged: number, seconds: number): Promise<Felt> => {
    const paced = { port, path, token: stage.token, seconds };
    const [good, refused] = await Promise.all([
      load.ask<Felt>({ ...paced, perSecond: 1_000 } satisfies Paced),
      forged === 0 ? undefined : forger.ask<Felt>({ ...paced, perSecond: forged / seconds, forgedFrom: from } satisfies Paced),
    ]);
    from += forged;
    for (const [felt, status] of [
      [good, '200'],
      [refused, '403'],
    ] as const) {
      const wrong = Object.keys(felt?.statuses ?? {}).find((answered) => answered !== status);
      if (wrong !== undefined) throw new Error(`The flood: a request was answered ${wrong}, not ${status}`);
    }
    return good;
  };
  stage.tell('warming up');
  await send(0, 1);
  await send(forgedPerSecond, 1);
  const pairs: (readonly [Felt, Felt])[] = [];
  const calls: number[] = [];
  const cpuMicros: number[] = [];
  for (let round = 0; round < rounds; round++) {
    stage.tell(`round ${round + 1} of ${rounds}`);
    const before = await send(0, stage.isQuick ? 1 : 3);
    const asked = stage.authority.count();
    const used = await app.ask<Usage>({});
    pairs.push([before, await send(perRound, perRound / forgedPerSecond)]);
    cpuMicros.push((await app.ask<Usage>({})).cpuMicros - used.cpuMicros);
    calls.push(stage.authority.count() - asked);
  }
  const details = {
    before_p50_ms: median(pairs.map(([before]) => before.p50)),
    during_p50_ms: median(pairs.map(([, during]) => during.p50)),
    before_p99_ms: median(pairs.map(([before]) => before.p99)),
    during_p99_ms: median(pairs.map(([, during]) => during.p99)),
    forged_per_second: forgedPerSecond,
    server_busy_percent: (median(cpuMicros) / (perRound / forgedPerSecond)) * 1e-4,
  };
  const all = calls.reduce((sum, one) => sum + one, 0);
  return [
    figureOf('flood.reviews', calls, { forged_tokens: rounds * perRound }, all),
    figureOf(
      'flood.good',
      pairs.map(([before, during]) => during.p99 / before.p99),
      details,
    ),
  ];
}

async function compareClients(stage: Stage): Promise<readonly Figure[]> {
  const api = await stage.authority.pod('api/api', { tokens: { shop: 'shop' } });
  await using answerer = startChild('answerer.ts');
  const origin = await answerer.ask<string>({});
  await using client = startChild('client.ts', { origin, tokenFile: api.tokenFile('shop') } satisfies Calls);
  const turn =
    (by: Requests['by']): Turn =>
    () =>
      client.ask<Rate>({ by, requests: 2_000 } satisfies Requests);
  const measured = await interleave(stage, stage.isQuick ? 15 : 100, 5, [turn('hand'), turn('interceptor')]);
  return [ratioFigure('client.undici', measured, ['hand', 'interceptor'])];
}

// What is imported is what is published: compiled, and with its dependencies beside it.
async function measureImport(stage: Stage): Promise<readonly Figure[]> {
  const root = join(import.meta.dirname, '..');
  const core = join(root, 'packages', 'core');
  const project = mkdtempSync(join(tmpdir(), 'k8s-sa-auth-import-'));
  const installed = join(project, 'node_modules', '@k8s-sa-auth', 'core');
  try {
    stage.tell('compiling');
    execFileSync(join(root, 'node_modules', '.bin', 'tsc'), [
      '-p',
      core,
      '--outDir',
      join(installed, 'dist'),
      '--tsBuildInfoFile',
      join(project, 'info'),
    ]);
    const manifest = JSON.parse(readFileSync(join(core, 'package.json'), 'utf8')) as {
      readonly publishConfig: { readonly exports: object };
      readonly dependencies: object;
    };
    writeFileSync(join(installed, 'package.json'), JSON.stringify({ ...manifest, exports: manifest.publishConfig.exports }));
    for (const name of Object.keys(manifest.dependencies)) {
      mkdirSync(join(project, 'node_modules', name, '..'), { recursive: true });
      symlinkSync(realpathSync(join(core, 'node_modules', name)), join(project, 'node_modules', name));
    }
    const tell = 'process.stdout.write(String(process.memoryUsage.rss()));';
    writeFileSync(join(project, 'bare.mjs'), tell);
    writeFileSync(join(project, 'core.mjs'), `import '@k8s-sa-auth/core'; ${tell}`);

    const start = (file: string): { readonly ms: number; readonly mb: number } => {
      const startedMs = performance.now();
      const { status, stdout, stderr } = spawnSync(process.execPath, [join(project, file)], {
        env: { PATH: process.env['PATH'] ?? '', ...stage.store.env },
        encoding: 'utf8',
      });
      const ms = performance.now() - startedMs;
      if (status !== 0) throw new Error(stderr);
      return { ms, mb: Number(stdout) / 1e6 };
    };
    const pairs: (readonly [ReturnType<typeof start>, ReturnType<typeof start>])[] = [];
    const rounds = stage.isQuick ? 10 : 50;
    for (let round = -3; round < rounds; round++) {
      stage.tell(round < 0 ? 'warming up' : `round ${round + 1} of ${rounds}`);
      const pair = [start('bare.mjs'), start('core.mjs')] as const;
      if (round >= 0) pairs.push(pair);
      // A breath, for what the terminal says meanwhile.
      await new Promise(setImmediate);
    }
    const over = (what: 'ms' | 'mb'): readonly number[] => pairs.map(([bare, withCore]) => withCore[what] - bare[what]);
    const bare = (what: 'ms' | 'mb'): number => median(pairs.map(([one]) => one[what]));
    return [
      figureOf('import.ms', over('ms'), { bare_node_ms: bare('ms') }),
      figureOf('import.mb', over('mb'), { bare_node_mb: bare('mb') }),
    ];
  } finally {
    rmSync(project, { recursive: true });
  }
}

// One guard remembers 10 000 callers; ten of them, 100 000.
async function measureMemory(stage: Stage): Promise<readonly Figure[]> {
  const [perGuard, batch] = [10_000, 500];
  const guards = stage.isQuick ? 1 : 10;
  await using decider = startDecider(stage, guards, '--expose-gc');
  const ask = (task: Task): Promise<number> => decider.ask(task);
  // Connections, keys and compiled code are there before it is weighed.
  for (let guard = 0; guard < guards; guard++) await ask({ task: 'remember', guard, tokens: [stage.token] });
  const samples: number[] = [];
  let before = await ask({ task: 'heap' });
  const empty = before;
  for (let guard = 0; guard < guards; guard++) {
    // One place is taken by the first token.
    let tokens: string[] = [];
    for (let from = guard * perGuard + 1; from < (guard + 1) * perGuard; from += batch) {
      tokens = await mint(stage, Math.min(batch, (guard + 1) * perGuard - from), from);
      stage.tell(`${from} remembered`);
      await ask({ task: 'remember', guard, tokens });
    }
    const asked = reviewsOf(stage);
    await ask({ task: 'remember', guard, tokens });
    if (reviewsOf(stage) !== asked) throw new Error('What was weighed is not remembered');
    const after = await ask({ task: 'heap' });
    samples.push((after - before) / (perGuard - 1));
    before = after;
  }
  const remembered = guards * (perGuard - 1);
  return [figureOf('cache.bytes', samples, { callers: remembered, heap_mb: before / 1e6 }, (before - empty) / remembered)];
}

async function measureScale({ isQuick, tell }: Stage): Promise<readonly Figure[]> {
  const outcomes = await simulate(isQuick ? 0.02 : 1, tell);
  const details = outcomes.flatMap(({ name, simulated, formula }) => [
    [`${name}.simulated`, simulated],
    [`${name}.formula`, formula],
  ]);
  const ratios = outcomes.map(({ simulated, formula }) => simulated / formula);
  // Too much would be as wrong as too little.
  const worst = Math.min(...ratios.map((ratio) => Math.min(ratio, 1 / ratio)));
  return [figureOf('scale', ratios, Object.fromEntries(details), worst)];
}

/** All comparisons, in the order of the table. */
export const comparisons: readonly Comparison[] = [
  { names: ['hot.fastify'], run: (stage) => compareApps(stage, 'hot.fastify', 'fastify', 'bare') },
  { names: ['hot.express'], run: (stage) => compareApps(stage, 'hot.express', 'express', 'bare') },
  { names: ['hot.koa'], run: (stage) => compareApps(stage, 'hot.koa', 'koa', 'bare') },
  { names: ['peer.fastify-jwt'], run: (stage) => compareApps(stage, 'peer.fastify-jwt', 'fastify', '@fastify/jwt') },
  { names: ['peer.koa-jwt'], run: (stage) => compareApps(stage, 'peer.koa-jwt', 'koa', 'koa-jwt') },
  {
    names: ['peer.express-oauth2-jwt-bearer'],
    run: (stage) => compareApps(stage, 'peer.express-oauth2-jwt-bearer', 'express', 'express-oauth2-jwt-bearer'),
  },
  {
    names: ['peer.fastify-jwt-cache'],
    run: (stage) => compareApps(stage, 'peer.fastify-jwt-cache', 'fastify', '@fastify/jwt with its cache'),
  },
  { names: ['verdict.hit_us'], run: measureHit },
  { names: ['cold.sdk'], run: (stage) => compareReviews(stage, 'cold.sdk', 'sdk') },
  { names: ['cold.https'], run: (stage) => compareReviews(stage, 'cold.https', 'https') },
  { names: ['herd.reviews'], run: measureHerd },
  { names: ['flood.reviews', 'flood.good'], run: measureFlood },
  { names: ['client.undici'], run: compareClients },
  { names: ['import.ms', 'import.mb'], run: measureImport },
  { names: ['cache.bytes'], run: measureMemory },
  { names: ['scale'], run: measureScale },
];
