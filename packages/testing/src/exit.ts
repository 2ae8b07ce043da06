// The only place that listens for the end of this process: what an authority that nobody closed would leave behind.

const cleanups = new Set<() => void>();

/** Lets `cleanup` run when this process exits; it has to be synchronous. Returns how to take that off again. */
export function onExit(cleanup: () => void): () => void {
  // One listener for all: Node takes more than ten for a leak.
  if (cleanups.size === 0) process.on('exit', cleanUp);
  cleanups.add(cleanup);
  return () => {
    cleanups.delete(cleanup);
    if (cleanups.size === 0) process.off('exit', cleanUp);
  };
}

function cleanUp(): void {
  for (const cleanup of cleanups) {
    try {
      cleanup();
    } catch {
      // The others come first, and an error would hide how the process ends.
    }
  }
}
