// One class per culprit: the caller, the cluster, this pod. A TypeError is the programmer's, such as for an option that is unknown.

/** Why a caller was refused. Stable: match on it rather than on a message or a class. */
export type AuthCode = 'missing_token' | 'invalid_token' | 'caller_not_allowed';

// Fixed per code: what a caller is told never depends on what was found out (the operator's reason is in the event).
const messages: Readonly<Record<AuthCode | 'review_unavailable', string>> = {
  missing_token: 'A ServiceAccount token is required',
  invalid_token: 'The ServiceAccount token was not accepted',
  caller_not_allowed: 'This caller may not call this route',
  review_unavailable: 'The ServiceAccount token cannot be checked at the moment',
};

const values = Symbol('values');

// Not enumerable, so that nothing prints it.
function hide(error: Error, field: PropertyKey, value: unknown): void {
  Object.defineProperty(error, field, { value, writable: true, configurable: true });
}

// Fields are writable (Koa assigns `status`), not enumerable (Express prints the object), and there is no stack:
// a refusal is not a bug, and outside production Express sends `err.stack` as the body.
class HttpError extends Error {
  declare readonly status: number;
  declare readonly statusCode: number;
  declare readonly headers: Readonly<Record<string, string>>;
  declare readonly expose: true;

  // Accessors to one hidden object: to define five fields on each error would cost three times all the rest.
  static {
    for (const field of ['code', 'status', 'statusCode', 'headers', 'expose']) {
      Object.defineProperty(this.prototype, field, {
        get(this: { readonly [values]?: Readonly<Record<string, unknown>> }) {
          return this[values]?.[field];
        },
        set(this: HttpError, value: unknown) {
          hide(this, field, value);
        },
        configurable: true,
      });
    }
  }

  constructor(name: string, code: string, message: string, status: number, headers: Readonly<Record<string, string>>) {
    // To take a stack down, only to replace it, would cost as much.
    const limit = Object.getOwnPropertyDescriptor(Error, 'stackTraceLimit');
    const mayLimit = limit?.writable === true;
    if (mayLimit) Error.stackTraceLimit = 0;
    super(message);
    if (mayLimit) Error.stackTraceLimit = limit.value as number;
    hide(this, 'stack', `${name}: ${message}`);
    hide(this, values, { code, status, statusCode: status, headers, expose: true });
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

  static {
    hide(this.prototype, 'name', 'AuthError');
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

  static {
    hide(this.prototype, 'name', 'ClusterError');
  }
}

/**
 * Why no token may be sent. `token_file_unreadable`: the file, or the pod's own token that it is compared with, cannot be read, or the client is
 * closed. `token_not_sendable`: what is in it is no token for exactly one other service. `token_expired`: it has expired, and nothing newer came.
 */
export type TokenFileCode = 'token_file_unreadable' | 'token_not_sendable' | 'token_expired';

/** This pod has no token that may be sent. `path` is the token file; the message says what is wrong with it and what to do. */
export class TokenFileError extends Error {
  declare readonly name: 'TokenFileError';
  readonly code: TokenFileCode;
  readonly path: string;

  constructor(code: TokenFileCode, path: string, message: string, options?: ErrorOptions) {
    super(message, options);
    hide(this, 'name', 'TokenFileError');
    this.code = code;
    this.path = path;
  }
}

/** Throws a TypeError on anything that is not an object, is a framework's request, or has a name that is not known. */
export function refuseUnknown(where: string, options: unknown, known: readonly string[]): void {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw new TypeError(`${where} takes an object with ${known.join(', ')}, not ${String(options)}`);
  }
  if ('rawHeaders' in options || 'req' in options)
    throw new TypeError(`${where} was given a request in place of options: call it once, with options, and give app.use what it returns`);
  const unknown = Object.keys(options).find((key) => !known.includes(key));
  if (unknown !== undefined) throw new TypeError(`${where} does not know ${JSON.stringify(unknown)}. It knows ${known.join(', ')}`);
}
