// One class per culprit: the caller, the cluster, this pod. A TypeError is the programmer's.

/** Why a caller was refused. Stable: match on it rather than on a message or a class. */
export type AuthCode = 'missing_token' | 'invalid_token' | 'caller_not_allowed';

// Fixed per code: what a caller is told never depends on what was found out (the operator's reason is in the event).
const messages: Readonly<Record<AuthCode | 'review_unavailable', string>> = {
  missing_token: 'A ServiceAccount token is required',
  invalid_token: 'The ServiceAccount token was not accepted',
  caller_not_allowed: 'This caller may not call this route',
  review_unavailable: 'The ServiceAccount token cannot be checked at the moment',
};

const fields = ['code', 'status', 'statusCode', 'headers', 'expose'] as const;

// Fields are writable (Koa assigns `status`), not enumerable (Express prints the object), and there is no stack:
// a refusal is not a bug, and outside production Express sends `err.stack` as the body.
class HttpError extends Error {
  declare readonly status: number;
  declare readonly statusCode: number;
  declare readonly headers: Readonly<Record<string, string>>;
  declare readonly expose: true;
  readonly #values: Record<(typeof fields)[number], unknown>;

  // Once for all of them: to define these on each error would cost several times the rest of it.
  static {
    for (const field of fields) {
      Object.defineProperty(this.prototype, field, {
        get(this: HttpError) {
          return this.#values[field];
        },
        set(this: HttpError, value: unknown) {
          this.#values[field] = value;
        },
        configurable: true,
      });
    }
  }

  constructor(code: string, message: string, status: number, headers: Readonly<Record<string, string>>) {
    // To take a stack down would cost more than all the rest.
    const limit = Object.getOwnPropertyDescriptor(Error, 'stackTraceLimit');
    const mayLimit = limit?.writable === true;
    if (mayLimit) Error.stackTraceLimit = 0;
    super(message);
    if (mayLimit) Error.stackTraceLimit = limit.value as number;
    else Object.defineProperty(this, 'stack', { value: String(this), writable: true, configurable: true });
    this.#values = { code, status, statusCode: status, headers, expose: true };
  }
}

const nameErrors = (prototype: Error, name: string): void =>
  void Object.defineProperty(prototype, 'name', { value: name, writable: true, configurable: true });

/**
 * The caller was refused: 401 or 403, with the headers that belong on the response (`www-authenticate`, `cache-control`).
 * Match on `code`. The message is fixed text for each code.
 */
export class AuthError extends HttpError {
  declare readonly name: 'AuthError';
  declare readonly code: AuthCode;

  constructor(code: AuthCode, status: number, headers: Readonly<Record<string, string>>) {
    super(code, messages[code], status, headers);
  }

  static {
    nameErrors(this.prototype, 'AuthError');
  }
}

/**
 * The cluster could not be asked, so nobody knows who is calling: 503 with `retry-after`.
 * Match on `code`. From `ready()` the message says what is wrong and what to do; on a request it is fixed text.
 */
export class ClusterError extends HttpError {
  declare readonly name: 'ClusterError';
  declare readonly code: 'review_unavailable';

  constructor(headers: Readonly<Record<string, string>>, message: string = messages.review_unavailable) {
    super('review_unavailable', message, 503, headers);
  }

  static {
    nameErrors(this.prototype, 'ClusterError');
  }
}

export type TokenFileCode = 'token_file_unreadable' | 'token_not_sendable' | 'token_expired';

/** This pod has no token that may be sent. `path` is the token file; the message says what is wrong with it and what to do. */
export class TokenFileError extends Error {
  declare readonly name: 'TokenFileError';
  readonly code: TokenFileCode;
  readonly path: string;

  constructor(code: TokenFileCode, path: string, message: string) {
    super(message);
    Object.defineProperty(this, 'name', { value: 'TokenFileError', configurable: true });
    this.code = code;
    this.path = path;
  }
}
