// The soak: `pnpm soak`. Callers, deletions, rotations and faults at random against one guard, and for each request the answers that are right.

import { fork } from 'node:child_process';
import { once } from 'node:events';
import { Agent, type IncomingMessage, request as httpRequest } from 'node:http';
import { setTimeout as sleepFor } from 'node:timers/promises';
import { parseArgs } from 'node:util';

import type { GuardOptions, TokenHeader } from '@k8s-sa-auth/core';
import { createAuthority } from '@k8s-sa-auth/testing';

import { type Cluster, createCluster, createRandom, type Random } from './soak-cluster.ts';
import {
  type Answer,
  type Asked,
  createModel,
  type Judged,
  type Kind,
  type Model,
  noticedMs,
  type Question,
  type Token,
  type Windows,
} from './soak-model.ts';
import { isFor, plain, type Route, routes } from './soak-routes.ts';
import { describeCaller, type Listening, type StatusAnswer, type StatusQuestion, type Told, watchStalls } from './soak-server.ts';
import { createForger, type Forger } from './soak-tokens.ts';

const usage = `Soaks one guard: callers over loopback, and an authority whose pods, ServiceAccounts, keys, RoleBindings and API server go wrong at
random. Its routes: by its own audience, by another and by either, by a predicate, and by whether the cluster lets the caller read
an order; and each of them once more, observing. A model knows what happened and which answers each request may get.

Usage: pnpm soak [--seconds 60] [--callers 200] [--rate 300] [--seed N]

  --seconds   how long requests are sent
  --callers   how many callers, of one pod each, five pods to a ServiceAccount
  --rate      requests per second, of all callers together
  --seed      decides what each caller and the cluster do. When they do it is up to the machine, so a seed repeats a run closely, not exactly
  --help      print this

The guard runs with windows that a minute crosses often: cacheTtlMs 2 000, refusalTtlMs 1 000, staleIfErrorMs 6 000. An odd seed sends
tokens as Authorization: Bearer, an even one as X-Client-Id. A seed that leaves 2 or 3 when divided by 4 verifies by signature, another by
review.

Exits with 0 if no answer was wrong, no rejection unhandled, and the memory flat after warm-up; else with 1.`;

const memory = { cacheTtlMs: 2_000, refusalTtlMs: 1_000, staleIfErrorMs: 6_000 };
const orders = ['1', '2'];
// What callers have their tokens for, in turn; nobody asks for the last one.
const audiencesOf = [['shop'], ['shop'], ['vault'], ['shop'], ['vault', 'shop'], ['shop', 'elsewhere']];
const perServiceAccount = 5;
// Well above what a guard takes by its own limits: 5 s for a review, and 1 s for the keys.
const noAnswerMs = 20_000;
const shownDifferences = 5;
const mebibyte = 2 ** 20;
// What a remembered caller takes, of which a guard keeps at most 10 000. They outlive their windows until others need the room.
const rememberedBytes = 4_096;

interface Options {
  readonly seconds: number;
  readonly callers: number;
  readonly rate: number;
  readonly seed: number;
}

async function main(): Promise<number> {
  const options = readOptions();
  if (typeof options === 'string') {
    const isHelp = options === '';
    (isHelp ? console.log : console.error)(isHelp ? usage : `${options}\n\n${usage}`);
    return isHelp ? 0 : 2;
  }
  const interruption = new AbortController();
  for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => interruption.abort());
  return soak(options, interruption.signal);
}

function readOptions(): Options | string {
  try {
    const text = { type: 'string' } as const;
    const { values } = parseArgs({
      options: { seconds: text, callers: text, rate: text, seed: text, help: { type: 'boolean', short: 'h' } },
    });
    if (values.help === true) return '';
    const { seconds = '60', callers = '200', rate = '300', seed = String(Math.floor(Math.random() * 1e6)) } = values;
    for (const [name, value] of Object.entries({ seconds, callers, rate, seed })) {
      if (!/^[1-9]\d{0,8}$/.test(value)) throw new Error(`--${name} takes a whole number above zero, not ${value}`);
    }
    return { seconds: Number(seconds), callers: Number(callers), rate: Number(rate), seed: Number(seed) };
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

async function soak(options: Options, interruption: AbortSignal): Promise<number> {
  const { seconds, seed } = options;
  const header: TokenHeader = seed % 2 === 1 ? 'authorization' : 'x-client-id';
  const windows: Windows = { verification: seed % 4 < 2 ? 'review' : 'signature', ...memory };
  console.log(
    `seed ${seed}: ${options.callers} callers for ${seconds} s, ${options.rate} requests/s, ${header}, by ${windows.verification}`,
  );

  const troubles: string[] = [];
  process.on('unhandledRejection', (reason) => troubles.push(`unhandled rejection of the soak: ${String(reason)}`));
  await using authority = await createAuthority();
  const own = await authority.pod('guard/guard');
  const tally = createTally();
  const model = createModel(windows, tally.judged);
  using cluster = createCluster(authority, own, model, windows.verification);
  // Names the key that the guard has loaded when it is ready.
  await cluster.mint({ kind: 'good', serviceAccount: serviceAccountOf(0), pod: 'first', audiences: plain.audiences });

  const guardOptions: GuardOptions = { audience: plain.audiences, allow: ['fleet/*'], header, apiServer: own.apiServer, ...windows };
  const child = fork(new URL('soak-server.ts', import.meta.url), [JSON.stringify(guardOptions)], {
    execArgv: ['--expose-gc', '--no-warnings'],
  });
  const died = new AbortController();
  child.once('exit', (code, signal) => died.abort(new Error(`The guard's process ended: ${code ?? signal}`)));
  const [first] = (await once(child, 'message', { signal: died.signal }).catch(() => [])) as [Listening?];
  if (first === undefined) {
    console.error('The guard did not start');
    return 1;
  }

  const over = new AbortController();
  const ended = AbortSignal.any([over.signal, interruption, died.signal]);
  const observer = createObserver({
    ask: (question) => child.connected && child.send(question),
    model,
    troubles,
  });
  child.on('message', (answer: StatusAnswer) => observer.answered(answer));
  const client = createClient(first.port, header, model, observer);
  const world: World = { cluster, client, forger: createForger(), options, ended, events: [] };

  const startedMs = performance.now();
  const countOf = (resource: string): number => authority.count({ resource });
  const watch = setInterval(() => observer.askStatus(false), 100);
  const warmUpMs = Math.min(15_000, seconds * 333);
  const progress = createProgress(process.stdout, () => {
    const wrong = tally.differences.length === 0 ? 'none wrong' : `${tally.differences.length} WRONG`;
    const at = `${Math.floor((performance.now() - startedMs) / 1000)} s`.padStart(5);
    return `${at}  ${tally.count()} requests judged, ${wrong}, ${countOf('tokenreviews')} reviews  ${world.now ?? ''}`;
  });
  const timer = setTimeout(() => over.abort(), seconds * 1000);
  const warmedUp = sleep(warmUpMs, ended).then(() => observer.measureHeap());
  const remembered = sleep(warmUpMs, ended).then(() => tally.callers());
  const life = [...startCallers(world), causeFaults(world), causeDeletions(world), causeGrants(world), causeRotations(world), probe(world)];
  await Promise.all(life.map((part) => part.catch((error: unknown) => troubles.push(`the soak itself: ${String(error)}`))));

  clearTimeout(timer);
  await authority.recover();
  await client.quiet(died.signal);
  await observer.settle();
  clearInterval(watch);
  const heap = { warm: await warmedUp, end: await observer.measureHeap(), callers: tally.callers() - (await remembered) };
  progress.end();
  model.judge(Number.POSITIVE_INFINITY);
  client.close();
  if (child.connected) child.disconnect();
  if (died.signal.aborted) troubles.push(String(died.signal.reason));
  else await once(child, 'exit');

  const reviews = `${countOf('tokenreviews')} of tokens, ${countOf('subjectaccessreviews')} of access`;
  const isFlat = print(tally, { reviews, troubles, stalls: observer.stalls(), events: world.events, heap, seed });
  const isGood = tally.differences.length === 0 && troubles.length === 0 && isFlat;
  return !isGood ? 1 : interruption.aborted ? 130 : 0;
}

/** All that moves. */
interface World {
  readonly cluster: Cluster;
  readonly client: Client;
  readonly forger: Forger;
  readonly options: Options;
  readonly ended: AbortSignal;
  /** What befell the cluster, but for deletions. */
  readonly events: string[];
  /** The fault that lasts, for the progress line. */
  now?: string | undefined;
}

const serviceAccountOf = (index: number): string => `fleet/sa-${Math.floor(index / perServiceAccount)}`;
const podOf = (index: number): string => `pod-${index}`;
const pick = <T>(from: readonly T[], random: Random): T | undefined => from[Math.floor(random() * from.length)];
const sleep = (ms: number, signal: AbortSignal): Promise<void> => sleepFor(ms, undefined, { signal }).catch(() => undefined);

function startCallers(world: World): readonly Promise<void>[] {
  return Array.from({ length: world.options.callers }, (_, index) => call(world, index, createRandom(world.options.seed * 1_000 + index)));
}

// One caller: it uses its token until that is rotated or has been dead for a while, and now and then something else.
async function call({ cluster, client, forger, options, ended }: World, index: number, random: Random): Promise<void> {
  const thinkMs = (options.callers / options.rate) * 1000;
  const [serviceAccount, pod] = [serviceAccountOf(index), podOf(index)];
  const audiences = audiencesOf[index % audiencesOf.length] ?? [];
  // Three of ten observing.
  const notMine = routes.filter((one) => !isFor(audiences, one));
  const [observing = [], enforcing = []] = [true, false].map((isObserved) =>
    routes.filter((one) => isFor(audiences, one) && one.isObserved === isObserved),
  );
  const choose = (): Route => pick(random() < 0.3 ? observing : enforcing, random) ?? plain;
  const mint = (): Promise<Token> =>
    cluster.mint({
      kind: 'good',
      serviceAccount,
      pod,
      audiences,
      ...(random() < 0.2 && { secondsLeft: Math.floor(random() * 75) - 58 }),
    });
  const older: Token[] = [];
  let token = await mint();
  let route = choose();
  let renewMs = Date.now() + random() * 30_000;
  // Not all at once, and none before the first came through.
  await sleep(random() * thinkMs * 2, ended);

  while (!ended.aborted) {
    const { gone, expiresMs } = token;
    // One that is gone is used for a while, to see it refused; then the pod is there again, under its old name.
    const dead = Math.min(gone?.fromMs ?? Number.POSITIVE_INFINITY, expiresMs + 60_000);
    if (Date.now() > renewMs && (dead > Date.now() || dead + 20_000 * random() < Date.now())) {
      older.unshift(token);
      older.length = Math.min(older.length, 3);
      // A pod that was terminating has ended by now, and goes.
      if (gone !== undefined) await cluster.deletePod(serviceAccount, pod).catch(() => undefined);
      token = await mint();
      renewMs = Date.now() + 10_000 + random() * 30_000;
    }
    // For a while the same one, so that what is remembered is used.
    if (random() < 0.15) route = choose();
    await act(token, older, route);
    await sleep(thinkMs * (0.5 + random()), ended);
  }

  async function act(current: Token, past: readonly Token[], to: Route): Promise<void> {
    const chosen = random();
    if (chosen < 0.82) return client.send(current, to);
    if (chosen < 0.88) return client.send(pick(past, random) ?? current, to);
    if (chosen < 0.9) return void (await Promise.all([to, to, choose(), choose()].map((one) => client.send(current, one))));
    if (chosen < 0.92) return client.hangUp(current, to, random() * 30);
    if (chosen < 0.94) return client.send(tokenLike(current, 'forged', forger.forge(current.text, random)), to);
    if (chosen < 0.943) return client.send(tokenLike(current, 'forged, unknown key', forger.forgeUnknown(current.text, random)), to);
    if (chosen < 0.96) return client.send(tokenLike(current, 'malformed', forger.malform(current.text, random)), to);
    if (chosen < 0.965) return client.send(tokenLike(current, 'repeated', current.text), to);
    if (chosen < 0.97) return client.send(tokenLike(current, 'none', ''), to);
    if (chosen < 0.98) return client.send(current, pick(notMine, random) ?? to);
    if (chosen < 0.99)
      return client.send(await cluster.mint({ kind: 'stranger', serviceAccount: 'other/stranger', pod: 'stranger', audiences }), to);
    return client.send(await cluster.mint({ kind: 'not bound to a pod', serviceAccount, audiences }), to);
  }

  function tokenLike(real: Token, kind: Kind, text: string): Token {
    const key = kind === 'forged' ? real.key : undefined;
    return client.token({ kind, text, serviceAccount, pod, audiences, key, mintedMs: Date.now(), expiresMs: Date.now() + 600_000 });
  }
}

async function causeFaults(world: World): Promise<void> {
  const { cluster, ended, options } = world;
  const random = createRandom(options.seed * 1_000 + 900);
  await sleep(2_000, ended);
  for (let index = 0; !ended.aborted; index++) {
    const isOutage = index % 3 === 1;
    const fault = cluster.fail(isOutage, random);
    const fromMs = Date.now();
    world.now = fault.what;
    await sleep(random() < 0.6 && !isOutage ? 200 + random() * 1_500 : 3_000 + random() * 6_000, ended);
    await fault.end();
    world.now = undefined;
    world.events.push(`${fault.what} ${((Date.now() - fromMs) / 1000).toFixed(1)} s`);
    // Seldom long enough for the guard to have noticed for certain that it is over; after an outage always.
    await sleep(isOutage ? noticedMs + 1_000 : 5_000 + random() * 1_500, ended);
    if (random() < 0.5) cluster.blip(random);
    await sleep(random() * 2_000, ended);
  }
}

async function causeDeletions({ cluster, client, ended, options }: World): Promise<void> {
  const random = createRandom(options.seed * 1_000 + 901);
  while (!ended.aborted) {
    await sleep(random() * 1_500, ended);
    const index = Math.floor(random() * options.callers);
    const [serviceAccount, pod] = [serviceAccountOf(index), podOf(index)];
    const chosen = random();
    // What is gone already cannot go again.
    const deleted =
      chosen < 0.1
        ? cluster.deleteServiceAccount(serviceAccount)
        : chosen < 0.3
          ? cluster.terminatePod(serviceAccount, pod, 1 + random() * 10)
          : cluster.deletePod(serviceAccount, pod);
    await deleted.catch(() => undefined);
    // Seen for the first time when it is gone: the API server has nothing to remember.
    if (random() < 0.3) {
      const token = await cluster.mint({ kind: 'good', serviceAccount, pod: `brief-${index}`, audiences: plain.audiences });
      await cluster.deletePod(serviceAccount, `brief-${index}`);
      await client.send(token, plain);
    }
  }
}

// About half of the ServiceAccounts may read an order at any time.
async function causeGrants({ cluster, ended, options }: World): Promise<void> {
  const random = createRandom(options.seed * 1_000 + 903);
  const serviceAccounts = [...new Set(Array.from({ length: options.callers }, (_, index) => serviceAccountOf(index)))];
  for (const serviceAccount of serviceAccounts) {
    for (const order of orders) if (random() < 0.6) await cluster.toggleGrant(serviceAccount, order);
  }
  while (!ended.aborted) {
    await cluster.toggleGrant(pick(serviceAccounts, random) ?? '', pick(orders, random) ?? '');
    await sleep(random() * 300, ended);
  }
}

async function causeRotations({ cluster, ended, options, events }: World): Promise<void> {
  const random = createRandom(options.seed * 1_000 + 902);
  let keyMs = Date.now() + options.seconds * 1000 * (0.3 + random() * 0.3);
  while (!ended.aborted) {
    await sleep(3_000 + random() * 6_000, ended);
    if (ended.aborted) return;
    if (random() < 0.5) cluster.rotateCa();
    if (random() < 0.5) await cluster.rotateOwnToken();
    if (Date.now() < keyMs) continue;
    const retire = random() < 0.3;
    await cluster.rotateSigningKey(retire);
    events.push(retire ? 'signing key replaced' : 'signing key added');
    keyMs = Date.now() + 35_000 + random() * 20_000;
  }
}

// Tokens that nobody has seen before: what they get tells whether the cluster is asked.
async function probe({ cluster, client, ended, options }: World): Promise<void> {
  for (let index = 0; !ended.aborted; index++) {
    await sleep(400, ended);
    const serviceAccount = serviceAccountOf(index % options.callers);
    const route = routes[index % routes.length] ?? plain;
    const token = await cluster.mint({ kind: 'good', serviceAccount, pod: `probe-${index}`, audiences: route.audiences });
    // Not waited for: in an outage that is slow, the next one should be there when it ends.
    void client.send(token, route);
  }
}

interface Client {
  readonly token: Model['token'];
  /** Resolves when it was answered; never rejects. */
  send(token: Token, route: Route): Promise<void>;
  hangUp(token: Token, route: Route, afterMs: number): Promise<void>;
  /** Resolves when nothing is under way. */
  quiet(gaveUp: AbortSignal): Promise<void>;
  close(): void;
}

// What a decision says of a request; nothing is said of one that failed, but where it is only observed.
function readDecision(decision: Told['decisions'][number] | undefined): Answer | undefined {
  if (decision === undefined || decision.reason === 'guard_failed') return 'failed';
  if (decision.reason === 'observe_timeout') return 'observe_timeout';
  return decision.code ?? (decision.outcome === 'allowed' ? 'allowed' : undefined);
}

// Signed by the cluster, so that its caller may be proven.
const isReal = ({ kind }: Token): boolean => kind === 'good' || kind === 'stranger' || kind === 'not bound to a pod';

const callerOf = ({ serviceAccount, pod, audiences }: Token, route: Route): string =>
  describeCaller({
    serviceAccount,
    ...(pod !== '' && { pod: { name: pod, uid: '' } }),
    audiences: route.audiences.filter((audience) => audiences.includes(audience)),
  });

function createClient(port: number, header: TokenHeader, model: Model, observer: Observer): Client {
  const agent = new Agent({ keepAlive: true });
  const underWay = new Set<Promise<void>>();

  // Status, `Cache-Control`, `Retry-After` and challenge.
  const shows: Readonly<Partial<Record<Answer, string>>> = {
    failed: '500 - - -',
    review_unavailable: '503 no-store soon -',
    ...(header === 'authorization'
      ? {
          allowed: '200 - - -',
          missing_token: '401 no-store - Bearer realm="kubernetes"',
          invalid_token: '401 no-store - Bearer realm="kubernetes", error="invalid_token"',
          caller_not_allowed: '403 no-store - Bearer realm="kubernetes", error="insufficient_scope"',
        }
      : {
          allowed: '200 private - -',
          missing_token: '401 no-store - ServiceAccount header="X-Client-Id"',
          invalid_token: '403 no-store - ServiceAccount header="X-Client-Id", error="invalid_token"',
          caller_not_allowed: '403 no-store - ServiceAccount header="X-Client-Id", error="caller_not_allowed"',
        }),
  };

  function headersOf({ kind, text }: Token, number: number): Record<string, string | string[]> {
    const value = header === 'authorization' ? `Bearer ${text}` : text;
    const credentials = kind === 'none' ? {} : { [header]: kind === 'repeated' ? [value, value] : value };
    return { 'x-request-number': String(number), ...credentials };
  }

  function start(token: Token, route: Route, hangUpAfterMs: number | undefined): Promise<void> {
    const asked = model.sent(token, route);
    const done = new Promise<void>((resolve) => {
      let isOver = false;
      const end = (answer: string, source = ''): void => {
        if (isOver) return;
        isOver = true;
        clearTimeout(timer);
        const behind = model.ended(asked, answer, source);
        if (behind !== undefined) observer.abandoned(behind);
        resolve();
      };
      const { path } = route;
      const request = httpRequest({ agent, host: '127.0.0.1', port, path, headers: headersOf(token, asked.number) }, (response) => {
        let body = '';
        response.setEncoding('utf8').on('data', (text: string) => (body += text));
        response.once('error', (error) => end(`broken answer: ${error.message}`));
        response.once('end', () => end(...readAnswer(response, body, asked)));
      });
      const giveUp = (): void => {
        if (isOver) return;
        if (hangUpAfterMs === undefined) return end(`no answer within ${noAnswerMs} ms`);
        isOver = true;
        request.destroy();
        observer.abandoned(asked);
        resolve();
      };
      const timer = setTimeout(giveUp, hangUpAfterMs ?? noAnswerMs);
      request.once('error', (error) => end(`no answer: ${error.message}`));
      request.end();
    });
    underWay.add(done);
    void done.then(() => underWay.delete(done));
    return done;
  }

  // What the guard made of it, and by what. It is no answer unless all that is seen of it agrees.
  function readAnswer({ statusCode, headers }: IncomingMessage, body: string, { token, route }: Asked): readonly [string, string] {
    const told = JSON.parse(String(headers['x-told'])) as Told;
    const [decision] = told.decisions;
    const { isObserved } = route;
    const caller = callerOf(token, route);
    const answer = readDecision(decision);
    const retryAfter = headers['retry-after']?.replace(/^[1-5]$/, 'soon') ?? '-';
    const shown = `${statusCode} ${headers['cache-control'] ?? '-'} ${retryAfter} ${headers['www-authenticate'] ?? '-'}`;
    // Nobody decides what ends as a 500.
    const isDecided = told.decisions.length === (answer === 'failed' && !isObserved ? 0 : 1);
    const isTold = told.decisions.every(
      (one) =>
        one.enforced === !isObserved &&
        one.audiences.join() === route.audiences.toSorted().join() &&
        one.route === route.path &&
        (one.caller === undefined || (isReal(token) && one.caller === caller)),
    );
    const isLeft = told.headers === (isObserved || token.kind === 'none' ? 'as they were' : 'without the token');
    const isSaid = answer === 'allowed' ? body === caller : !isObserved || body === 'nobody';
    const isShown = answer !== undefined && shown === (isObserved ? '200 - - -' : shows[answer]);
    const isAnswer = isDecided && isTold && isLeft && isSaid && isShown;
    return [isAnswer ? answer : `${shown} ${JSON.stringify({ body, told })}`, decision?.source ?? ''];
  }

  return {
    token: (token) => model.token(token),
    send: (token, route) => start(token, route, undefined),
    hangUp: (token, route, afterMs) => start(token, route, afterMs),
    async quiet(gaveUp) {
      while (underWay.size > 0 && !gaveUp.aborted) await Promise.race([Promise.all(underWay), sleep(noAnswerMs, gaveUp)]);
    },
    close: () => agent.destroy(),
  };
}

interface Observer {
  /** The client has hung up: the guard's process says when it has decided all the same. */
  abandoned(asked: Asked): void;
  askStatus(measure: boolean): number;
  answered(answer: StatusAnswer): void;
  /** Resolves when all that was abandoned is decided. */
  settle(): Promise<void>;
  measureHeap(): Promise<number>;
  stalls(): number;
}

// Lets the model judge what ended before a question that was answered: by then it knows of all stalls until then.
function createObserver({ ask, model, troubles }: { ask: (question: StatusQuestion) => void; model: Model; troubles: string[] }): Observer {
  const questions = new Map<number, number>();
  const abandoned = new Map<Asked, { readonly afterNumber: number; missed: number }>();
  const measuring = new Map<number, (bytes: number) => void>();
  const takeStalls = watchStalls(500);
  let asked = 0;
  let stalls = 0;
  let told = 0;

  const observer: Observer = {
    abandoned: (one) => void abandoned.set(one, { afterNumber: asked, missed: 0 }),
    askStatus(measure) {
      asked += 1;
      questions.set(asked, Date.now());
      ask({ number: asked, measure });
      return asked;
    },
    answered(answer) {
      for (const { fromMs, toMs } of [...answer.stalls, ...takeStalls()]) {
        stalls += 1;
        const stall: Parameters<Model['trouble']>[0] = {
          what: 'a process stood still',
          isHard: false,
          strikes: 'processes',
          fromMs,
          sureFromMs: fromMs,
        };
        model.over(model.trouble(stall), fromMs, toMs);
      }
      troubles.push(...answer.troubles.slice(told));
      told = answer.troubles.length;
      for (const [one, seen] of abandoned) {
        if (answer.number <= seen.afterNumber) continue;
        // It may have arrived between two questions, not after both.
        seen.missed = answer.checking.includes(one.number) ? 0 : seen.missed + 1;
        if (seen.missed < 2) continue;
        abandoned.delete(one);
        model.ended(one, undefined, '');
      }
      model.judge(questions.get(answer.number) ?? 0);
      questions.delete(answer.number);
      if (answer.heapBytes !== undefined) measuring.get(answer.number)?.(answer.heapBytes);
    },
    async settle() {
      const untilMs = Date.now() + noAnswerMs;
      while (abandoned.size > 0 && Date.now() < untilMs) await sleepFor(50);
    },
    measureHeap: () =>
      Promise.race([
        new Promise<number>((resolve) => measuring.set(observer.askStatus(true), resolve)),
        sleepFor(5_000, 0, { ref: false }),
      ]),
    stalls: () => stalls,
  };
  return observer;
}

interface Tally {
  readonly judged: Judged;
  /** Each in full, the first ones at least. */
  readonly differences: readonly string[];
  readonly rows: ReadonlyMap<string, ReadonlyMap<string, number>>;
  readonly sources: ReadonlyMap<string, number>;
  count(): number;
  /** Requests for which one answer only was right. */
  certain(): number;
  /** Tokens that were accepted at least once, counted for each set of audiences: what the guard may remember. */
  callers(): number;
}

function createTally(): Tally {
  const rows = new Map<string, Map<string, number>>();
  const sources = new Map<string, number>();
  const differences: string[] = [];
  const accepted = new WeakSet<Question>();
  let count = 0;
  let certain = 0;
  let callers = 0;
  return {
    differences,
    rows,
    sources,
    count: () => count,
    certain: () => certain,
    callers: () => callers,
    judged(asked, right, explain) {
      const { token, route, question, isGranted, answer = '', source, sentMs } = asked;
      count += 1;
      if (right.size === 1) certain += 1;
      const isGone = token.kind === 'good' && token.gone !== undefined && token.gone.fromMs <= sentMs;
      const state = isGone ? 'good, but gone' : token.expiresMs < sentMs ? 'good, but expired' : 'good';
      const by = isGranted === undefined ? (route.isRuled ? ', by predicate' : '') : isGranted ? ', granted' : ', not granted';
      const isElsewhere = token.kind === 'good' && question === undefined;
      const kind = isElsewhere ? 'other audience' : token.kind === 'good' ? `${state}${by}` : token.kind;
      const rowName = route.isObserved ? `observed: ${kind}` : kind;
      const row = rows.get(rowName) ?? new Map<string, number>();
      rows.set(rowName, row.set(answer, (row.get(answer) ?? 0) + 1));
      sources.set(source, (sources.get(source) ?? 0) + 1);
      if (answer === 'allowed' && question !== undefined && !accepted.has(question)) {
        callers += 1;
        accepted.add(question);
      }
      if (right.has(answer as Answer)) return;
      const story = differences.length < shownDifferences ? `\n${explain()}` : '';
      differences.push(
        `#${asked.number} ${rowName}: ${answer}, where right is ${[...right].join(' or ') || 'nothing, or nothing so late'}${story}`,
      );
    },
  };
}

function createProgress(stream: NodeJS.WriteStream, line: () => string): { end(): void } {
  const timer = setInterval(() => stream.write(stream.isTTY ? `\r\u001B[K${line()}` : `${line()}\n`), stream.isTTY ? 250 : 5_000);
  return {
    end() {
      clearInterval(timer);
      if (stream.isTTY) stream.write('\r\u001B[K');
    },
  };
}

interface Outcome {
  readonly reviews: string;
  readonly troubles: readonly string[];
  readonly stalls: number;
  readonly events: readonly string[];
  readonly heap: { readonly warm: number; readonly end: number; readonly callers: number };
  readonly seed: number;
}

/** Prints what came of it, and tells whether the memory was flat. */
function print(tally: Tally, { reviews, troubles, stalls, events, heap, seed }: Outcome): boolean {
  const answers = ['allowed', 'missing_token', 'invalid_token', 'caller_not_allowed', 'failed', 'review_unavailable', 'observe_timeout'];
  const kindWidth = 42;
  const inColumns = (texts: readonly (string | number)[]): string =>
    [...answers, 'other'].map((answer, at) => String(texts[at]).padStart(answer.length + 2)).join('');
  console.log(`\n${'requests'.padEnd(kindWidth)}${inColumns([...answers, 'other'])}`);
  for (const [kind, row] of [...tally.rows].toSorted(([a], [b]) => a.localeCompare(b))) {
    const known = answers.map((answer) => row.get(answer) ?? 0);
    const others = [...row.values()].reduce((sum, one) => sum + one, 0) - known.reduce((sum, one) => sum + one, 0);
    console.log(`${kind.padEnd(kindWidth)}${inColumns([...known, others])}`);
  }
  const inMebibytes = (bytes: number): string => `${(bytes / mebibyte).toFixed(1)} MiB`;
  const limit = heap.warm * 1.1 + 2 * mebibyte + Math.min(heap.callers, 10_000) * rememberedBytes;
  const isFlat = heap.end <= limit;
  const bySource = [...tally.sources].map(([source, count]) => `${count} by ${source || 'nobody'}`).join(', ');
  const facts = {
    requests: `${tally.count()}, of which ${tally.certain()} had one right answer only: ${bySource}`,
    reviews,
    cluster: events.join(', ') || 'nothing befell it',
    heap: `${inMebibytes(heap.warm)} after warm-up, ${inMebibytes(heap.end)} at the end; flat is at most ${inMebibytes(limit)}: 10 % and 2 MiB more, and 4 KiB for each of ${heap.callers} callers first seen since`,
    'stood still': `${stalls} times for more than 0.5 s, in which any review may fail`,
    unhandled: `${troubles.length} rejections, process warnings and the like`,
    differences: `${tally.differences.length}`,
    seed: `${seed}`,
  };
  console.log();
  for (const difference of tally.differences.slice(0, shownDifferences)) console.log(`${difference}\n`);
  for (const trouble of troubles.slice(0, shownDifferences)) console.log(`${trouble}\n`);
  for (const [name, text] of Object.entries(facts)) console.log(`${name.padEnd(14)}${text}`);
  return isFlat;
}

process.exitCode = await main();
