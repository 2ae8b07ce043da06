// How the API server is asked: over kept connections, with credentials that are reloaded, in two attempts, reading no more than it may.

import type { ClientRequest, IncomingMessage } from 'node:http';
import type { RequestOptions } from 'node:https';

import { type ApiServer, type Credentials, findEndpoint } from './endpoint.ts';
import { type Log, printable } from './logger.ts';
import { type Claims, claimsOf } from './screening.ts';

export interface Question {
  readonly method: 'GET' | 'POST';
  readonly path: string;
  readonly body?: object;
  /** Default `application/json`. */
  readonly accept?: string;
  readonly maxAnswerBytes: number;
}

export interface Answer {
  readonly status: number;
  readonly body: string;
  readonly retryAfterMs: number | undefined;
}

/** Why the API server gave no answer: a reason that is fixed text, and a message for the operator. */
export class ApiServerError extends Error {
  declare readonly name: 'ApiServerError';
  readonly reason: string;
  readonly mayRetry: boolean;

  constructor(reason: string, message: string, mayRetry = false) {
    super(message);
    Object.defineProperty(this, 'name', { value: 'ApiServerError', configurable: true });
    this.reason = reason;
    this.mayRetry = mayRetry;
  }
}

export interface ApiServerConnection {
  /** Where the API server is. */
  readonly url: URL;
  /** `budgetMs` bounds both attempts and the wait between them. Rejects with an ApiServerError. */
  ask(question: Question, budgetMs: number): Promise<Answer>;
  /** The claims of the token that we ask with; undefined where it is another kind of credential. */
  ownClaims(): Promise<Claims | undefined>;
  close(): void;
}

// Credentials, as each request needs them; the TLS material is part of the connection.
interface Loaded extends Pick<Credentials, 'headers'> {
  readonly claims: Claims | undefined;
  readonly connection: RequestOptions & { readonly keptAs: string };
}

/** Reviews in flight, and connections kept. */
export const maxInFlight = 32;
/** How long the server may take to answer. */
export const attemptMs = 3_000;
const reloadEveryMs = 60_000;
// The server drops an idle connection after 90 s without a word.
const idleMs = 60_000;

// Loaded by the first guard: a process that only calls others is spared 6 MB.
const https = (): typeof import('node:https') => process.getBuiltinModule('node:https');
const tls = (): typeof import('node:tls') => process.getBuiltinModule('node:tls');

/** Throws a TypeError at once if there is no API server to be found, or none that could be trusted. Touches no network. */
export function connectApiServer(options: ApiServer | undefined, log: Log): ApiServerConnection {
  const endpoint = findEndpoint(options);
  const { url } = endpoint;
  const address = { host: url.hostname.replace(/^\[(.*)\]$/, '$1'), port: url.port || 443 };
  const basePath = url.pathname.replace(/\/$/, '');
  const agent = new (https().Agent)({ keepAlive: true, maxSockets: maxInFlight, maxFreeSockets: maxInFlight, timeout: idleMs });
  // A kept connection is found by the text of all its TLS options, certificates included: put together once, and not for each request.
  const nameOf = agent.getName.bind(agent);
  agent.getName = (request: RequestOptions & { readonly keptAs?: string } = {}) => request.keptAs ?? nameOf(request);
  let current: Loaded | undefined;
  let readAtMs = 0;
  let reading: Promise<Loaded> | undefined;
  let isLate = false;
  let failing = false;
  let closed = false;

  // A reload that takes too long goes on by itself while the last credentials serve, if there are any: a kubeconfig may run a program for them,
  // and that may hang.
  async function credentials(again = false): Promise<Loaded> {
    const ageMs = Date.now() - readAtMs;
    if (current !== undefined && (isLate || (!again && ageMs >= 0 && ageMs < reloadEveryMs))) return current;
    reading ??= reload().finally(() => {
      reading = undefined;
      isLate = false;
    });
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<Loaded>((resolve, reject) => {
      timer = setTimeout(() => {
        isLate = true;
        if (current === undefined)
          reject(new ApiServerError('own_credentials_unreadable', 'The credentials for the API server take too long to read'));
        else resolve(current);
      }, attemptMs);
    });
    return Promise.race([reading, late]).finally(() => clearTimeout(timer));
  }

  // A reload that fails keeps the last credentials: the API server will say when they are no longer good.
  async function reload(): Promise<Loaded> {
    try {
      const { tls: material, headers } = await endpoint.readCredentials();
      // Throws on a certificate or a key that is none, which each request would do.
      tls().createSecureContext(material);
      // Said, so that NODE_TLS_REJECT_UNAUTHORIZED=0 does not undo it.
      const connection = { agent, ...address, ...material, rejectUnauthorized: true };
      const claims = claimsOf((headers['authorization'] ?? '').replace(/^Bearer /, ''));
      current = { headers, claims, connection: { ...connection, keptAs: nameOf(connection) } };
      if (failing) log.info({ kind: 'api_server_credentials' }, 'The credentials for the API server can be read again');
      failing = false;
    } catch (error) {
      const message = `The credentials for the API server cannot be read: ${printable(error instanceof Error ? error.message : String(error))}`;
      if (current === undefined) throw new ApiServerError('own_credentials_unreadable', message);
      if (!failing) log.warn('api_server_credentials', {}, message);
      failing = true;
    }
    readAtMs = Date.now();
    return current;
  }

  // After close() a failure is our own doing, and is told as that.
  async function attempt(question: Question, used: Loaded, deadlineMs: number): Promise<Answer | ApiServerError> {
    const outcome = closed ? undefined : await send(basePath + question.path, used, question, deadlineMs - performance.now());
    return outcome === undefined || (closed && outcome instanceof ApiServerError)
      ? new ApiServerError('closed', 'The guard is closed')
      : outcome;
  }

  async function ask(question: Question, budgetMs: number): Promise<Answer> {
    const deadlineMs = performance.now() + budgetMs;
    const used = await credentials();
    const first = await attempt(question, used, deadlineMs);
    const again = await secondChance(first, used, deadlineMs);
    const outcome = again === undefined ? first : await attempt(question, again, deadlineMs);
    if (outcome instanceof ApiServerError) throw outcome;
    return outcome;
  }

  // With newer credentials where ours were refused or the CA changed, or after a wait where the server is in trouble; else not at all.
  async function secondChance(outcome: Answer | ApiServerError, used: Loaded, deadlineMs: number): Promise<Loaded | undefined> {
    if (outcome instanceof ApiServerError ? outcome.reason === 'certificate_not_trusted' : outcome.status === 401) {
      const newer = await credentials(true);
      const isNewer =
        newer.headers['authorization'] !== used.headers['authorization'] || String(newer.connection.ca) !== String(used.connection.ca);
      return isNewer ? newer : undefined;
    }
    const waitMs = waitBeforeRetry(outcome);
    if (waitMs === undefined || performance.now() + waitMs >= deadlineMs) return undefined;
    await new Promise((resolve) => setTimeout(resolve, waitMs));
    return credentials();
  }

  return {
    url,
    ask,
    async ownClaims() {
      const { claims } = await credentials();
      return claims;
    },
    close() {
      closed = true;
      agent.destroy();
    },
  };
}

const retriedStatuses = new Set([429, 500, 502, 503, 504]);

function waitBeforeRetry(outcome: Answer | ApiServerError): number | undefined {
  const jitterMs = 50 + Math.random() * 100;
  if (outcome instanceof ApiServerError) return outcome.mayRetry ? jitterMs : undefined;
  return retriedStatuses.has(outcome.status) ? (outcome.retryAfterMs ?? jitterMs) : undefined;
}

// Never rejects: an attempt ends in an answer or in the reason why there is none.
function send(path: string, { connection, headers }: Loaded, question: Question, leftMs: number): Promise<Answer | ApiServerError> {
  return new Promise((resolve) => {
    // As text, which goes out in one write with the head.
    const body = question.body === undefined ? undefined : JSON.stringify(question.body);
    const request = https().request({
      ...connection,
      method: question.method,
      path,
      headers: {
        ...headers,
        ...(body && { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) }),
        accept: question.accept ?? 'application/json',
        'user-agent': 'k8s-sa-auth',
      },
    });
    let isSecure = false;
    let failure: ApiServerError | undefined;
    const end = (outcome: Answer | ApiServerError): void => {
      clearTimeout(timer);
      resolve(outcome);
    };
    const fail = (error: ApiServerError): void => {
      failure = error;
      request.destroy();
      end(error);
    };
    const timer = setTimeout(
      () => fail(new ApiServerError('timeout', 'The API server did not answer in time')),
      Math.max(0, Math.min(attemptMs, leftMs)),
    );
    request.once('socket', (socket) => {
      // Of a kept connection too, whether free before or handed on by the agent's queue: there the listener would never come off, and it holds
      // the request, as the request holds the token.
      isSecure = socket instanceof tls().TLSSocket && socket.authorized;
      if (isSecure) return;
      socket.once('secureConnect', () => {
        isSecure = true;
      });
    });
    request.on('error', (error: NodeJS.ErrnoException) => end(failure ?? explain(error, request, !isSecure)));
    request.once('response', (response) => {
      const chunks: Buffer[] = [];
      let bytes = 0;
      response.on('data', (chunk: Buffer) => {
        bytes += chunk.length;
        if (bytes > question.maxAnswerBytes)
          fail(new ApiServerError('answer_too_large', 'The API server answers more than a review can hold'));
        else chunks.push(chunk);
      });
      response.once('end', () =>
        end({ status: response.statusCode ?? 0, body: Buffer.concat(chunks).toString(), retryAfterMs: readRetryAfter(response) }),
      );
      response.on('error', () =>
        end(failure ?? new ApiServerError('answer_truncated', 'The connection ended in the middle of the answer')),
      );
    });
    request.end(body);
  });
}

// A connection that was never made, or that had been dropped while idle, carried no question: asking again asks once.
function explain(error: NodeJS.ErrnoException, { host, reusedSocket }: ClientRequest, isConnecting: boolean): ApiServerError {
  const code = error.code ?? error.message;
  if (/CERT|UNABLE_TO_|ERR_TLS/.test(code)) {
    return new ApiServerError(
      'certificate_not_trusted',
      `The certificate of the API server at ${host} is not trusted (${code}): is the CA file the cluster's?`,
    );
  }
  if (isConnecting) return new ApiServerError('connection_failed', `The API server at ${host} cannot be connected to (${code})`, true);
  return new ApiServerError('connection_reset', `The connection to the API server ended before an answer (${code})`, reusedSocket);
}

// RFC 9110 §10.2.3; API servers send whole seconds.
function readRetryAfter(response: IncomingMessage): number | undefined {
  const value = response.headers['retry-after'] ?? '';
  return /^\d{1,5}$/.test(value) ? Number(value) * 1000 : undefined;
}
