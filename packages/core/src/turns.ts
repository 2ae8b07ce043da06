// What is dear and can wait: in turns, so that all else passes it by.

const maxWaiting = 1_000;
const shareOfWaiting = 1 / 8;

/**
 * Makes a queue whose `turn()` resolves for an eighth of those that wait, and one at least, in each turn of the event loop: in between, whatever
 * else has arrived is done, and where a turn takes long nobody waits for many of them. Where 1 000 wait already it resolves at once, so that
 * whoever sends more waits in the socket and not in our memory.
 */
export function createTurns(): () => Promise<void> {
  const waiting: (() => void)[] = [];

  function beginNext(): void {
    for (const begin of waiting.splice(0, Math.ceil(waiting.length * shareOfWaiting))) begin();
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
