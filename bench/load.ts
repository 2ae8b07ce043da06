// The load: how requests are sent to an app, as many as it takes with a few connections, or at a pace; and what came back.
// Of undici it takes the lowest layer, `Client.dispatch`, which costs little more than writing ready bytes to a socket.

import { Client, type Dispatcher } from 'undici';

import { answerParent, awake, type Rate, rateOf } from './child.ts';
import { quantile } from './figures.ts';

type Headers = Readonly<Record<string, string>>;

/** So many requests, on 16 connections that are kept from round to round. */
export interface Even {
  readonly port: number;
  readonly path: string;
  readonly headers: Headers;
  readonly requests: number;
  /** Let the event loop sleep when it has nothing to do. Default false. */
  readonly maySleep?: boolean;
}

/** Requests at a pace; `seconds` of it. */
export interface Paced {
  readonly port: number;
  readonly path: string;
  readonly token: string;
  readonly perSecond: number;
  readonly seconds: number;
  /** Forge the token's signature, another one for each request: where their numbering goes on, so that they differ from round to round. */
  readonly forgedFrom?: number;
}

/** How long the answers took, in ms, and how each status was counted. */
export interface Felt {
  readonly p50: number;
  readonly p99: number;
  readonly statuses: Readonly<Record<string, number>>;
}

const connections = 16;
const pools = new Map<string, readonly Client[]>();

function clients(port: number, kind: string): readonly Client[] {
  const name = `${kind} ${port}`;
  const pool = pools.get(name) ?? Array.from({ length: connections }, () => new Client(`http://127.0.0.1:${port}`));
  pools.set(name, pool);
  return pool;
}

// Undici has no promise at this layer, and a request needs none.
function send(client: Client, path: string, headers: Headers, done: (status: number) => void, fail: (error: Error) => void): void {
  let status = 0;
  const handler: Dispatcher.DispatchHandler = {
    onRequestStart() {},
    onResponseStart(_controller, statusCode) {
      status = statusCode;
    },
    onResponseData() {},
    onResponseEnd: () => done(status),
    onResponseError: (_controller, error) => fail(error),
  };
  client.dispatch({ path, method: 'GET', headers: { ...headers } }, handler);
}

function sendEvenly({ port, path, headers, requests }: Even): Promise<unknown> {
  let left = requests;
  const loop = (client: Client): Promise<void> =>
    new Promise((resolve, reject) => {
      const next = (status: number): void => {
        if (status !== 200) reject(new Error(`A request was answered ${status}`));
        else if (left-- > 0) send(client, path, headers, next, reject);
        else resolve();
      };
      next(200);
    });
  return Promise.all(clients(port, 'even').map(loop));
}

async function sendAtPace({ port, path, token, perSecond, seconds, forgedFrom }: Paced): Promise<Felt> {
  const [header = '', payload = '', signature = ''] = token.split('.');
  const tokenOf = (index: number): string =>
    forgedFrom === undefined ? token : `${header}.${payload}.${(forgedFrom + index).toString(36).padStart(8, 'A')}${signature.slice(8)}`;
  const latencies: number[] = [];
  const statuses: Record<string, number> = {};
  const pool = clients(port, 'paced');
  const all = perSecond * seconds;
  const startedMs = performance.now();
  let [sent, open] = [0, 0];

  await new Promise<void>((resolve, reject) => {
    const sendNext = (client: Client): void => {
      const sentMs = performance.now();
      const done = (status: number): void => {
        latencies.push(performance.now() - sentMs);
        statuses[status] = (statuses[status] ?? 0) + 1;
        open -= 1;
        if (open === 0 && sent >= all) resolve();
      };
      open += 1;
      send(client, path, { 'x-client-id': tokenOf(sent) }, done, reject);
    };
    const pace = (): void => {
      const due = Math.min(all, ((performance.now() - startedMs) / 1_000) * perSecond);
      for (; sent < due; sent++) {
        const client = pool[sent % connections];
        if (client !== undefined) sendNext(client);
      }
      if (sent < all) setTimeout(pace, 1);
    };
    pace();
  });
  return { p50: quantile(latencies, 0.5), p99: quantile(latencies, 0.99), statuses };
}

answerParent(async () => async (question: Even | Paced) => {
  if ('requests' in question) {
    const work = (): Promise<Rate> => rateOf(question.requests, () => sendEvenly(question));
    return question.maySleep === true ? work() : awake(work);
  }
  return sendAtPace(question);
});
