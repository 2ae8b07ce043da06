// What is dear and can wait: in turns, so that all else passes it by.

const maxWaiting = 1_000;

/**
 * Makes a queue whose `turn()` resolves for one waiter in each turn of the event loop: between two of them, whatever else has arrived is done.
 * Where 1 000 wait already it resolves at once, so that whoever sends more waits in the socket and not in our memory.
 */
export function createTurns(): () => Promise<void> {
  const waiting: (() => void)[] = [];

  function beginNext(): void {
    waiting.shift()?.();
    if (waiting.length > 0) setImmediate(beginNext);
  }

  return () =>
    waiting.length >= maxWaiting
      ? Promise.resolve()
      : new Promise((resolve) => {
          waiting.push(resolve);
          if (waiting.length === 1) setImmediate(beginNext);
        });
}
