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

// Fields are writable (Koa assigns `status`), not enumerable (Express prints the object), and there is no stack:
// a refusal is not a bug, and outside production Express sends `err.stack` as the body.
class HttpError extends Error {
  declare readonly status: number;
  declare readonly statusCode: number;
  declare readonly headers: Readonly<Record<string, string>>;
  declare readonly expose: true;

  constructor(name: string, code: string, message: string, status: number, headers: Readonly<Record<string, string>>) {
    // Taking down a stack, only to replace it, would be three quarters of what a refusal's error costs.
    const limit = Object.getOwnPropertyDescriptor(Error, 'stackTraceLimit');
    const mayLimit = limit?.writable === true;
    if (mayLimit) Error.stackTraceLimit = 0;
    super(message);
    if (mayLimit) Error.stackTraceLimit = limit.value as number;
    const fields = { name, code, status, statusCode: status, headers, expose: true, stack: `${name}: ${message}` };
    for (const [field, value] of Object.entries(fields)) Object.defineProperty(this, field, { value, writable: true, configurable: true });
  }
}

/**
 * The caller was refused: 401 or 403, with the headers that belong on the response (`www-authenticate`, `cache-control`).
 * Match on `code`. The message is fixed text for each code.
 */
export class AuthError extends HttpError {
  declare readonly name: 'AuthError';
  declare readonly code: AuthCode;

  constructor(code: AuthCode, status: number, headers: Readonly<Record<string, string>>) {
    super('AuthError', code, messages[code], status, headers);
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
    super('ClusterError', 'review_unavailable', message, 503, headers);
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
