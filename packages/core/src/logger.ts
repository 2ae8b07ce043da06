// Who is told about changes of state, what happens when nobody listens, and what may be told of what others wrote.

/** Pino's order of arguments; `console` does not fit, `fastify.log` and any pino logger do. */
export interface Logger {
  info(details: object, message: string): void;
  warn(details: object, message: string): void;
  /** Required, but not called so far: whatever is worse than `info` is a warning. */
  error(details: object, message: string): void;
}

export interface Log {
  info(details: object, message: string): void;
  /** A change for the worse. Without a logger it becomes a process warning, once for each kind. */
  warn(kind: string, details: object, message: string): void;
}

const warned = new Set<string>();

function warnOnce(kind: string, message: string): void {
  if (warned.has(kind)) return;
  warned.add(kind);
  process.emitWarning(message, { type: 'K8sSaAuthWarning', code: kind.toUpperCase() });
}

/** Throws a TypeError on what is no logger. */
export function createLog(logger: Logger | undefined): Log {
  if (logger === undefined) return { info: () => {}, warn: (kind, _details, message) => warnOnce(kind, message) };
  if (!(['info', 'warn', 'error'] as const).every((level) => typeof logger?.[level] === 'function')) {
    throw new TypeError('"logger" needs info, warn and error, each called with an object and a message, as pino has them');
  }
  // A logger that fails must not decide a request.
  const tell = (level: 'info' | 'warn', details: object, message: string): void => {
    const fail = (): void => warnOnce('logger_failed', `The logger failed. It was to be told: ${message}`);
    try {
      const told: unknown = logger[level](details, message);
      // A promise of an async one that rejects would end the process.
      if (told instanceof Promise) told.catch(fail);
    } catch {
      fail();
    }
  };
  return {
    info: (details, message) => tell('info', details, message),
    warn: (kind, details, message) => tell('warn', { ...details, kind }, message),
  };
}

/** For the operator's eyes: no token that it may have echoed, nothing that a terminal would obey, and not at any length. */
export function printable(text: string): string {
  return withoutTokens(text.slice(0, 2_048))
    .replaceAll(/[^\x20-\x7e]/g, ' ')
    .slice(0, 256);
}

/** The text, with `[token]` for what looks like one: base64url of what begins with a brace, then a quote or white space. */
export function withoutTokens(text: string): string {
  // Capitals tell it from names that begin alike, such as ewallet-service.shop.
  return text.replaceAll(/\be(?:y[A-L]|w(?=[\w-]*[A-Z])[k-r0-3])[\w-]{5,}\.[\w-]+(?:\.[\w-]*)?/g, '[token]');
}
