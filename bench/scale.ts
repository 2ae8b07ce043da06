// What a large cluster asks its API server, simulated: 1 000 callers, 100 replicas of what they call, and a day. A model of its own: it
// knows nothing of the guard's code but when a replica remembers.

/** A guard's settings, and how long the callers' tokens live. */
export interface Setting {
  readonly name: string;
  readonly mode: 'review' | 'signature';
  readonly ttlSeconds: number;
  /** `expirationSeconds` of the projected tokens. */
  readonly lifeSeconds: number;
}

export interface Outcome extends Setting {
  /** Questions to the API server per second: reviews, and by signature the loads of its keys. */
  readonly simulated: number;
  readonly formula: number;
}

export const cluster = { callers: 1_000, replicas: 100, hours: 24, requestsPerSecond: 10 } as const;

const settings: readonly Setting[] = [
  { name: 'review, cacheTtlMs 10 000', mode: 'review', ttlSeconds: 10, lifeSeconds: 3_600 },
  { name: 'review, cacheTtlMs 30 000', mode: 'review', ttlSeconds: 30, lifeSeconds: 3_600 },
  { name: 'review, cacheTtlMs 60 000', mode: 'review', ttlSeconds: 60, lifeSeconds: 3_600 },
  { name: 'review, cacheTtlMs 60 000, tokens of 10 minutes', mode: 'review', ttlSeconds: 60, lifeSeconds: 600 },
  { name: 'review, cacheTtlMs 300 000', mode: 'review', ttlSeconds: 300, lifeSeconds: 3_600 },
  { name: 'signature', mode: 'signature', ttlSeconds: 60, lifeSeconds: 3_600 },
];

// The kubelet renews a token at 80 % of its life, and up to ten seconds off, so that not all pods come at once.
const rotatesAfter = 0.8;
const rotationJitter = 10;
const keysEverySeconds = 300;
const seconds = cluster.hours * 3_600;

/**
 * What the manual says: each caller is reviewed by each replica once in the TTL and the gap to its next request there, and once more,
 * half of the time, for each new token. By signature each replica loads the keys every five minutes.
 */
export function formula({ mode, ttlSeconds, lifeSeconds }: Setting): number {
  const { callers, replicas, requestsPerSecond } = cluster;
  if (mode === 'signature') return replicas / keysEverySeconds;
  const gapSeconds = replicas / requestsPerSecond;
  return callers * replicas * (1 / (ttlSeconds + gapSeconds) + 1 / (2 * rotatesAfter * lifeSeconds));
}

/** Simulates each setting with a share of the callers, and counts for all. */
export async function simulate(share: number, tell: (progress: string) => void): Promise<readonly Outcome[]> {
  const outcomes: Outcome[] = [];
  for (const setting of settings) {
    const simulated = setting.mode === 'review' ? await countReviews(setting, share, tell) : await countKeyLoads();
    outcomes.push({ ...setting, simulated, formula: formula(setting) });
  }
  return outcomes;
}

// Each run with the same numbers, so that its figures can be had again.
function createRandom(seed: number): () => number {
  let state = seed;
  // mulberry32
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296;
  };
}

// At noon half as many again as on average, at midnight half as many.
const busyness = (at: number): number => 1 - Math.cos((at / seconds) * 2 * Math.PI) / 2;

// Callers differ: most within a third and three times the average (log-normal).
function rateOf(random: () => number): number {
  const spread = 0.5;
  const normal = Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  return cluster.requestsPerSecond * Math.exp(spread * normal - (spread * spread) / 2);
}

/** When all that a caller's token was remembered by is worth nothing: a new token, or a new pod once a day. In order. */
function renewals(lifeSeconds: number, random: () => number): readonly number[] {
  const times: number[] = [random() * seconds];
  for (let at = random() * rotatesAfter * lifeSeconds; at < seconds; at += rotatesAfter * lifeSeconds + random() * rotationJitter)
    times.push(at);
  return times.toSorted((a, b) => a - b);
}

async function countReviews({ name, ttlSeconds, lifeSeconds }: Setting, share: number, tell: (progress: string) => void): Promise<number> {
  const random = createRandom(20_260_101);
  // Each replica is replaced once a day, and forgets.
  const restarts = Array.from({ length: cluster.replicas }, () => random() * seconds);
  const callers = Math.max(1, Math.round(cluster.callers * share));
  let reviews = 0;
  for (let caller = 0; caller < callers; caller++) {
    const rate = rateOf(random) / cluster.replicas;
    const renewed = renewals(lifeSeconds, random);
    for (const restart of restarts) reviews += reviewsOfOne(rate, ttlSeconds, renewed, restart, random);
    if (caller % 20 > 0) continue;
    tell(`${name}: ${caller} of ${callers} callers`);
    await new Promise(setImmediate);
  }
  return (reviews / seconds) * (cluster.callers / callers);
}

// One caller at one replica. What is not remembered is reviewed at the next request.
function reviewsOfOne(rate: number, ttlSeconds: number, renewed: readonly number[], restart: number, random: () => number): number {
  let [at, next, reviews] = [0, 0, 0];
  for (;;) {
    at += -Math.log(1 - random()) / (rate * busyness(at));
    if (at >= seconds) return reviews;
    reviews += 1;
    while ((renewed[next] ?? seconds) <= at) next += 1;
    at = Math.min(at + ttlSeconds, renewed[next] ?? seconds, restart > at ? restart : seconds);
  }
}

// At the first request after five minutes, of any caller: hundreds of requests a second leave no gap.
async function countKeyLoads(): Promise<number> {
  const random = createRandom(20_260_102);
  const perReplica = (cluster.callers * cluster.requestsPerSecond) / cluster.replicas;
  const next = (at: number): number => at - Math.log(1 - random()) / (perReplica * busyness(at));
  let loads = 0;
  for (let replica = 0; replica < cluster.replicas; replica++) {
    const restart = random() * seconds;
    for (let at = next(0); at < seconds; loads++) at = next(Math.min(at + keysEverySeconds, restart > at ? restart : seconds));
  }
  return loads / seconds;
}
