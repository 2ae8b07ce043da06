// What is dear and can wait: in turns, so that all else passes it by.

const maxWaiting = 1_000;
const inTurns = 8;
// As it is when this is loaded: a user's fake timers hold nobody up.
const { setImmediate: inNextTurn } = globalThis;

/**
 * Creates a function whose promise resolves when it is one's turn: in each turn of the event loop for one of those that wait, or for an eighth of
 * them where they are more than eight, so that nobody waits for more than eight turns. In between, the event loop does whatever else has
 * arrived. Where 1 000 wait already the promise resolves at once: whoever sends more then waits in the socket and not in our memory.
 */
export function createTurns(): () => Promise<void> {
  const waiting: (() => void)[] = [];
  let atOnce = 0;

  function beginNext(): void {
    // Never fewer than before until all have gone: the last ones would wait for dozens of turns.
    atOnce = Math.max(atOnce, Math.ceil(waiting.length / inTurns));
    for (const begin of waiting.splice(0, atOnce)) begin();
    if (waiting.length > 0) inNextTurn(beginNext);
    else atOnce = 0;
  }

  return () =>
    waiting.length >= maxWaiting
      ? Promise.resolve()
      : new Promise((resolve) => {
          waiting.push(resolve);
          if (waiting.length === 1) inNextTurn(beginNext);
        });
}
