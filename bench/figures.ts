// What is measured: the names, what each must reach, and how rounds become one figure.

/** What must be reached. */
export type Bar = { readonly least: number } | { readonly most: number };

interface Named {
  readonly what: string;
  readonly bar: Bar;
  readonly unit: string;
}

const times = '×';

/** Each figure: what it says, and its bar. */
export const figures = {
  'hot.fastify': {
    what: 'Fastify with the guard, a remembered token ÷ without it, the same headers sent',
    bar: { least: 0.95 },
    unit: times,
  },
  'hot.express': { what: 'Express, the same', bar: { least: 0.95 }, unit: times },
  'hot.koa': { what: 'Koa, the same', bar: { least: 0.95 }, unit: times },
  'peer.fastify-jwt': { what: 'Fastify with the guard ÷ with `@fastify/jwt`', bar: { least: 2.5 }, unit: times },
  'peer.koa-jwt': { what: 'Koa with the guard ÷ with `koa-jwt`', bar: { least: 2.5 }, unit: times },
  'peer.express-oauth2-jwt-bearer': {
    what: 'Express with the guard ÷ with `express-oauth2-jwt-bearer`',
    bar: { least: 2.5 },
    unit: times,
  },
  'peer.fastify-jwt-cache': { what: 'Fastify with the guard ÷ with `@fastify/jwt` and its cache', bar: { least: 1.3 }, unit: times },
  'verdict.hit_us': { what: 'one decision on a remembered token, inside core', bar: { most: 2 }, unit: 'µs' },
  'cold.sdk': { what: 'tokens reviewed per second ÷ by `createTokenReview` of `@kubernetes/client-node`', bar: { least: 15 }, unit: times },
  'cold.https': { what: 'tokens reviewed per second ÷ by a bare kept-alive `https.Agent`', bar: { least: 0.85 }, unit: times },
  'herd.reviews': {
    what: 'TokenReviews for 10 000 simultaneous first requests with one token (1 001 wait for it, the others are told to come again)',
    bar: { most: 1 },
    unit: '',
  },
  'flood.reviews': { what: 'API calls for distinct forged tokens under a known key', bar: { most: 0 }, unit: '' },
  'flood.good': { what: 'p99 of good callers during that flood ÷ before', bar: { most: 2 }, unit: times },
  'client.undici': { what: 'undici requests per second with the interceptor ÷ the header by hand', bar: { least: 0.97 }, unit: times },
  'import.ms': { what: 'importing core in a pod, above bare Node: time', bar: { most: 40 }, unit: 'ms' },
  'import.mb': { what: 'importing core in a pod, above bare Node: memory', bar: { most: 10 }, unit: 'MB' },
  'cache.bytes': { what: 'memory for each remembered caller', bar: { most: 600 }, unit: 'B' },
  scale: { what: 'reviews per second in a simulated cluster ÷ by the formula: the worst case', bar: { least: 0.9 }, unit: times },
} as const satisfies Record<string, Named>;

export type FigureName = keyof typeof figures;

/** A figure as it was measured. */
export interface Figure {
  readonly name: FigureName;
  readonly value: number;
  readonly unit: string;
  readonly bar: Bar;
  readonly isMet: boolean;
  /** Of each round, in order; the value is their median, unless `details` says otherwise. Figures that are no ratio have `samples`. */
  readonly ratios?: readonly number[];
  readonly samples?: readonly number[];
  /** What else was seen. */
  readonly details: Details;
}

/** Numbers by name, with the unit in the name. */
export type Details = Readonly<Record<string, number>>;

export function figureOf(name: FigureName, rounds: readonly number[], details: Details = {}, value: number = median(rounds)): Figure {
  const { bar, unit }: Named = figures[name];
  const kept = { [unit === times ? 'ratios' : 'samples']: rounds.map(round) };
  const rounded = Object.fromEntries(Object.entries(details).map(([key, number]) => [key, round(number)]));
  return { name, value, unit, bar, isMet: meets(value, bar), ...kept, details: rounded };
}

export const meets = (value: number, bar: Bar): boolean => ('least' in bar ? value >= bar.least : value <= bar.most);

/** The share `at` (0 to 1) of the numbers is at most this. NaN of none. */
export const quantile = (numbers: readonly number[], at: number): number =>
  numbers.toSorted((a, b) => a - b)[Math.min(Math.floor(numbers.length * at), numbers.length - 1)] ?? Number.NaN;

export const median = (numbers: readonly number[]): number => quantile(numbers, 0.5);

// Four digits that count: more would be noise, and fewer would hide a bar.
const round = (number: number): number => Number(number.toPrecision(4));
