// The services that this process calls: their origins, their token files, and what can be asked of them.

import { unlessAborted } from './abort.ts';
import { formatCredential, refusesToken, type TokenHeader } from './credential.ts';
import { refuseUnknown, TokenFileError } from './errors.ts';
import { createLog, type Log, type Logger } from './logger.ts';
import { createServiceFetch } from './service-fetch.ts';
import { answerRollCall } from './status.ts';
import { createTokenFile, type TokenFile } from './token-file.ts';

/** A service that is called: where it is, and the token for it. */
export interface TargetOptions {
  /** All spellings of one service, e.g. `'http://app.shop'` and `'http://app.shop.svc.cluster.local'`. The token goes nowhere else. */
  readonly origin: string | readonly string[];
  /** The projected token for this service, e.g. `/var/run/secrets/tokens/shop`. Its audience names the service. */
  readonly tokenFile: string;
  /** Default `'x-client-id'`; `'authorization'` sends `Bearer <token>`. It must be what the service's guard reads. */
  readonly header?: TokenHeader;
}

export interface ClientOptions {
  /** The services that this process calls, each with a token of its own. */
  readonly targets: readonly TargetOptions[];
  /** What `serviceFetch` calls. Default: the global `fetch` at the time of the call. */
  readonly fetch?: typeof fetch;
  /** Told about changes of state. Default: `process.emitWarning`, once for each kind. */
  readonly logger?: Logger;
}

/** One service that this process calls. */
export interface Target {
  readonly origins: readonly string[];
  /** The token header, for `http.request`, axios, got. It knows no redirect: forbid them, and ask anew for each request. Rejects with a TokenFileError. */
  headers(): Promise<Record<string, string>>;
}

/** The state of one target's token, for a health page. Never the token. */
export interface TargetStatus {
  readonly origins: readonly string[];
  readonly tokenFile: string;
  readonly audience?: string;
  /** When it was minted, where it says so. */
  readonly issuedAt?: Date;
  readonly expiresAt?: Date;
  readonly reloadedAt?: Date;
  /** Why the last reload failed; the last good token is sent while it lives. */
  readonly error?: string;
  /** Since when the service refuses the token itself, by its answers to `serviceFetch` and the interceptor; absent while it does not. */
  readonly refusedSince?: Date;
}

/** What calls services, each with the token that is meant for it. */
export interface ServiceClient extends AsyncDisposable {
  /**
   * `fetch` with the target's token. Follows redirects only within the origin. Where the token is refused and the file has a newer one, it
   * sends once more, unless the body is a stream or that of a `Request`. Rejects with a TypeError on an origin that is not named, with a
   * TokenFileError without a token.
   */
  readonly serviceFetch: typeof fetch;
  /** The target that an absolute URL belongs to. Throws a TypeError if none does. */
  target(url: string | URL): Target;
  /** The state of each target's token at this moment. Asks nobody, and reads no file. */
  status(): readonly TargetStatus[];
  /**
   * Resolves when every target has a live token, after at most 10 s for a file that is late; rejects with the first TokenFileError. When
   * `signal` aborts it rejects with what is wrong with a file that could not be read so far, a TokenFileError whose `cause` is the signal's
   * reason, and with that reason itself where nothing is known to be wrong.
   */
  ready(signal?: AbortSignal): Promise<void>;
  /** Ends watchers and timers; later calls reject. */
  close(): Promise<void>;
}

/** A target as the client's own fetch and the interceptor see it. */
export interface NamedTarget extends Target {
  readonly header: TokenHeader;
  readonly file: TokenFile;
  readonly answers: Answers;
}

/** What a target's answers say of the token that it was sent. */
interface Answers {
  /** Takes note of an answer that somebody is handed: `origin` gave it to `token`. */
  note(origin: string, token: string, status: number, challenge: Challenge): void;
  refusedSinceMs(): number | undefined;
}

type Challenge = Parameters<typeof refusesToken>[1];

// By its fetch, which the frameworks' clients share with the one they are made from.
const targetsOf = new WeakMap<typeof fetch, ReadonlyMap<string, NamedTarget>>();

/** For the interceptor: how the client finds the target of an origin. Throws a TypeError on what `createServiceClient` did not make. */
export function targetFinder(client: ServiceClient): (origin: string) => NamedTarget | undefined {
  const targets = targetsOf.get(client.serviceFetch);
  if (targets === undefined)
    throw new TypeError('createInterceptor takes the client that createServiceClient or a k8sSaAuthClient returned');
  // To compare is cheaper than to hash a string that was just made, and most requests go where the last one went.
  let lastOrigin: string | undefined;
  let last: NamedTarget | undefined;
  return (origin) => {
    if (origin === lastOrigin) return last;
    const target = targets.get(origin);
    if (target !== undefined) [lastOrigin, last] = [origin, target];
    return target;
  };
}

/**
 * Creates the calling side. Returns at once and follows the token files from then on.
 * Throws a TypeError on options that are not understood, an origin that is not one, or an origin named twice.
 */
export function createServiceClient(options: ClientOptions): ServiceClient {
  refuseUnknown('The service client', options, ['targets', 'fetch', 'logger']);
  if (!Array.isArray(options.targets) || options.targets.length === 0) {
    throw new TypeError(`"targets" is required: [{ origin: 'http://app.shop', tokenFile: '/var/run/secrets/tokens/shop' }]`);
  }
  if (options.fetch !== undefined && typeof options.fetch !== 'function') throw new TypeError('"fetch" takes a function, such as fetch');
  const log = createLog(options.logger);
  const read = (options.targets as readonly TargetOptions[]).map(readTarget);
  const seen = new Set<string>();
  for (const origin of read.flatMap(({ origins }) => origins)) {
    if (seen.has(origin)) throw new TypeError(`${origin} is named twice in "targets": one service has one audience, hence one token file`);
    seen.add(origin);
  }
  const targets: readonly NamedTarget[] = read.map(({ origins, header, tokenFile }) => {
    const file = createTokenFile(tokenFile, log);
    const answers = createAnswers(file, header, log);
    return { origins, header, file, answers, headers: async () => ({ [header]: formatCredential(await file.token(), header) }) };
  });
  const byOrigin = new Map(targets.flatMap((named) => named.origins.map((origin) => [origin, named] as const)));

  function target(url: string | URL): NamedTarget {
    const { origin } = new URL(url);
    const found = byOrigin.get(origin);
    if (found === undefined)
      throw new TypeError(`No token is sent to ${origin}: it is not named in "targets" (${[...byOrigin.keys()].join(', ')})`);
    return found;
  }

  const leave = answerRollCall((all) => all.targets.push(...targets.map(statusOf)));
  const close = async (): Promise<void> => {
    leave();
    for (const { file } of targets) file.close();
  };
  const client: ServiceClient = {
    serviceFetch: createServiceFetch(target, options.fetch),
    target,
    status: () => targets.map(statusOf),
    async ready(signal) {
      try {
        await unlessAborted(Promise.all(targets.map(({ file }) => file.token())), signal);
      } catch (cause) {
        const failed = targets.find(({ file }) => file.peek() === undefined && file.status().error !== undefined);
        const known = failed?.file.status().error;
        if (cause instanceof TokenFileError || known === undefined) throw cause;
        throw new TokenFileError(known.code, known.path, known.message, { cause });
      }
    },
    close,
    [Symbol.asyncDispose]: close,
  };
  targetsOf.set(client.serviceFetch, byOrigin);
  return client;
}

const tellEveryMs = 10_000;

// Only what this side knows is told: what another service writes into an answer may be anything.
function createAnswers(file: TokenFile, header: TokenHeader, log: Log): Answers {
  let sinceMs: number | undefined;
  let isTold = false;
  let toldAtMs = -Infinity;

  async function refuse(origin: string, token: string, status: number, challenge: Challenge): Promise<void> {
    await file.tokenAfter(token);
    const { loaded } = file.status();
    // Another one by now, or none that lives: that is not what was refused.
    if (file.peek() !== token || loaded === undefined) return;
    const nowMs = Date.now();
    sinceMs ??= nowMs;
    // Of several replicas one may refuse what the others take: told of every time, that would be a flood.
    if (isTold || (nowMs >= toldAtMs && nowMs - toldAtMs < tellEveryMs)) return;
    isTold = true;
    toldAtMs = nowMs;
    const { audience, issuedAtMs, expiresAtMs } = loaded;
    // Of 403s only this one refuses the token, so this asks for the word, whatever the status.
    const isInvalid = refusesToken(403, challenge);
    const details = {
      origin,
      tokenFile: file.path,
      status,
      ...(isInvalid && { code: 'invalid_token' }),
      header,
      audience,
      ...(issuedAtMs !== undefined && { issuedAt: new Date(issuedAtMs) }),
      expiresAt: new Date(expiresAtMs),
    };
    const issued = issuedAtMs === undefined ? '' : `, issued ${Math.round((nowMs - issuedAtMs) / 1_000)} s ago`;
    const sent = `the token in ${file.path} (audience ${JSON.stringify(audience)}${issued})`;
    // RFC 6750 §3.1: no error code where a request came without a token.
    const message = isInvalid
      ? `${origin} answers ${status} invalid_token to ${sent}. Its log has the reason: most often its guard has another audience, or its cluster does not know this pod`
      : `${origin} answers ${status} to ${sent}, without saying invalid_token: does it read another header than ${header}, or does something on the way take that off?`;
    log.warn('token_refused', details, message);
  }

  return {
    note(origin, token, status, challenge) {
      if (refusesToken(status, challenge)) {
        void refuse(origin, token, status, challenge);
        return;
      }
      // An outage says nothing of the token, nor does an answer that another one follows.
      if (sinceMs === undefined || status >= 500 || (status < 200 && status !== 101)) return;
      sinceMs = undefined;
      if (isTold)
        log.info({ kind: 'token_refused', origin, tokenFile: file.path }, `${origin} no longer refuses the token in ${file.path}`);
      isTold = false;
    },
    refusedSinceMs: () => sinceMs,
  };
}

function readTarget(options: TargetOptions): { origins: readonly string[]; tokenFile: string; header: TokenHeader } {
  refuseUnknown('A target', options, ['origin', 'tokenFile', 'header']);
  const { origin, tokenFile, header = 'x-client-id' } = options;
  const named = typeof origin === 'string' ? [origin] : origin;
  if (!Array.isArray(named) || named.length === 0)
    throw new TypeError(`"origin" is required: 'http://app.shop', or a list of all spellings`);
  if (typeof tokenFile !== 'string' || tokenFile === '')
    throw new TypeError(`"tokenFile" is required: the path of the projected token for ${named.join(', ')}`);
  if (header !== 'x-client-id' && header !== 'authorization')
    throw new TypeError(`"header" of the target ${named.join(', ')} is 'x-client-id' or 'authorization', not ${JSON.stringify(header)}`);
  return { origins: named.map(readOrigin), tokenFile, header };
}

function readOrigin(text: unknown): string {
  const url = typeof text === 'string' ? URL.parse(text) : null;
  const isOrigin =
    url !== null && /^https?:$/.test(url.protocol) && [url.origin, `${url.origin}/`].includes(url.href) && !url.host.includes('*');
  if (!isOrigin)
    throw new TypeError(
      `${JSON.stringify(text)} is not an origin: write scheme, host and port only, and no pattern, such as 'http://app.shop:8080'`,
    );
  return url.origin;
}

function statusOf({ origins, file, answers }: NamedTarget): TargetStatus {
  const { loaded, reloadedAtMs, error } = file.status();
  const refusedSinceMs = answers.refusedSinceMs();
  return {
    origins,
    tokenFile: file.path,
    ...(loaded && { audience: loaded.audience, expiresAt: new Date(loaded.expiresAtMs) }),
    ...(loaded?.issuedAtMs !== undefined && { issuedAt: new Date(loaded.issuedAtMs) }),
    ...(reloadedAtMs !== undefined && { reloadedAt: new Date(reloadedAtMs) }),
    ...(error && { error: error.message }),
    ...(refusedSinceMs !== undefined && { refusedSince: new Date(refusedSinceMs) }),
  };
}
