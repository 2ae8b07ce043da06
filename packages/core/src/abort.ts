// How a wait ends when its signal aborts.

/** The promise's outcome, or a rejection with the signal's reason once that aborts. Leaves nothing on the signal. */
export async function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal | null | undefined): Promise<T> {
  if (!signal) return promise;
  let abort = (): void => {};
  const aborted = new Promise<never>((_resolve, reject) => {
    // An AbortSignal's reason is whatever its owner chose.
    abort = () => reject(signal.reason as Error);
    if (signal.aborted) abort();
    else signal.addEventListener('abort', abort);
  });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener('abort', abort);
  }
}
