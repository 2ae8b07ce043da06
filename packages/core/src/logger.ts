// Who is told about changes of state, and what happens when nobody listens.

/** Pino's order of arguments; `console` does not fit, `fastify.log` and any pino logger do. */
export interface Logger {
  info(details: object, message: string): void;
  warn(details: object, message: string): void;
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

export function createLog(logger: Logger | undefined): Log {
  if (logger === undefined) return { info: () => {}, warn: (kind, _details, message) => warnOnce(kind, message) };
  // A logger that fails must not decide a request.
  const tell = (level: 'info' | 'warn', details: object, message: string): void => {
    try {
      logger[level](details, message);
    } catch {
      warnOnce('logger_failed', `The logger failed. It was to be told: ${message}`);
    }
  };
  return {
    info: (details, message) => tell('info', details, message),
    warn: (kind, details, message) => tell('warn', { ...details, kind }, message),
  };
}
