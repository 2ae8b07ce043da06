// The only place that knows which faults were asked for, which requests they hit, and how often.
import { aName, aText, check, delay, readOptions, required, textRecord, wholeNumber } from './checks.ts';
import type { Checks } from './checks.ts';

/** A fault that {@link Authority.fail} takes: by name, or an answer as it is. */
export type Fault =
  | 'outage'
  | 'slow'
  | 'too-many-requests'
  | 'reset'
  | 'broken-body'
  | 'ignores-audiences'
  | 'forbidden'
  | 'unauthorized'
  | 'etcd-outage'
  | { readonly status: number; readonly headers?: Readonly<Record<string, string>>; readonly body?: string };

/** How often, how late and where a fault strikes. */
export interface FaultOptions {
  /** How many requests are hit. Default: all, until the fault is disposed of. */
  readonly times?: number;
  /** Milliseconds before the fault strikes. Default 0, 10 000 for `slow`, and for `etcd-outage` as long as a real API server waits. */
  readonly delayMs?: number;
  /** Which requests are hit, by their `resource` in `calls`, such as `subjectaccessreviews`. Default: TokenReviews, or all, as the fault is. */
  readonly resource?: string;
}

/** A fault that hits one request. */
export interface Strike {
  readonly fault: Exclude<Fault, 'outage'>;
  /** `undefined` where it was not said. */
  readonly delayMs: number | undefined;
}

/** The faults that are active. */
export interface Faults {
  /** Throws a `TypeError` on a fault or an option that does not exist. */
  add(fault: Exclude<Fault, 'outage'>, options: FaultOptions): Disposable;
  /** Takes the fault that hits a request for this resource, the one that was set last, and counts it. */
  strike(resource: string): Strike | undefined;
  clear(): void;
}

const everywhere = ['slow', 'too-many-requests', 'reset', 'unauthorized', 'etcd-outage'] as const;
const names = [...everywhere, 'outage', 'broken-body', 'ignores-audiences', 'forbidden'] as const;

const answerParts: Checks<Exclude<Fault, string>> = { status: required(wholeNumber(200, 599)), headers: textRecord, body: aText };

export const faultOptions: Checks<FaultOptions> = {
  times: wholeNumber(1),
  delayMs: delay,
  resource: check('what `calls` says of a request', aName.accepts),
};

/** Throws a `TypeError` that says what is wrong with a fault or its options; `where` says who was called. */
export function checkFault(where: string, fault: Fault, options: FaultOptions): void {
  if (typeof fault === 'string' && !names.includes(fault)) throw new TypeError(`there is no fault "${fault}", only ${names.join(', ')}`);
  if (typeof fault !== 'string') readOptions('an answer', fault, answerParts);
  const said = Object.values(readOptions(where, options, faultOptions));
  if (fault === 'outage' && said.some((option) => option !== undefined)) {
    throw new TypeError('an outage lasts until it is disposed of or recover(), for all requests: it takes no options');
  }
}

/** Makes an empty set of faults. */
export function createFaults(): Faults {
  let active: (Strike & { hits: (resource: string) => boolean; left: number })[] = [];
  return {
    add(fault, { times = Number.POSITIVE_INFINITY, delayMs, resource: only }) {
      const isEverywhere = everywhere.some((one) => one === fault);
      const hits = (resource: string): boolean => (only === undefined ? isEverywhere || resource === 'tokenreviews' : resource === only);
      const added = { fault, delayMs, hits, left: times };
      active.push(added);
      return {
        [Symbol.dispose]() {
          active = active.filter((one) => one !== added);
        },
      };
    },
    strike(resource) {
      const hit = active.findLast(({ hits }) => hits(resource));
      if (hit === undefined) return undefined;
      hit.left -= 1;
      if (hit.left <= 0) active = active.filter((one) => one !== hit);
      return hit;
    },
    clear() {
      active = [];
    },
  };
}
