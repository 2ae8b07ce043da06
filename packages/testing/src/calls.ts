// The only place that remembers what was asked of the authority: the last requests, and how many of each there were.
import { aText, check, readOptions } from './checks.ts';
import type { Checks } from './checks.ts';

/** A request that was answered; a token is never part of it. */
export interface Call {
  readonly verb: string;
  /** A resource, `serviceaccounts/token` with its subresource, or a path that is no resource. */
  readonly resource: string;
  /** Who asked, as `namespace/name`, where a ServiceAccount did. */
  readonly serviceAccount?: string;
  /** The HTTP status; 0 where the connection was cut instead. */
  readonly status: number;
}

const callFields: Checks<Call> = {
  verb: aText,
  resource: aText,
  serviceAccount: aText,
  status: check('a status, or 0', Number.isInteger),
};

/** The log of one authority. */
export interface CallLog {
  /** The last 10 000 at most, oldest first. */
  readonly calls: readonly Call[];
  record(call: Call): void;
  /** How many calls had all of these, since the start or `clear()`. */
  count(like?: Partial<Call>): number;
  /** The calls that differ, and how many of each there were. */
  counts(): readonly (Call & { readonly count: number })[];
  clear(): void;
}

/** Makes an empty log. */
export function createCallLog(): CallLog {
  const calls: Call[] = [];
  const counted = new Map<string, Call & { count: number }>();

  return {
    calls,
    record(call) {
      if (calls.length >= 10_000) calls.splice(0, 1000);
      calls.push(call);
      const { verb, resource, serviceAccount = '', status } = call;
      const key = `${verb} ${resource} ${serviceAccount} ${status}`;
      const entry = counted.get(key) ?? { ...call, count: 0 };
      entry.count += 1;
      counted.set(key, entry);
    },
    count(like = {}) {
      const { verb, resource, serviceAccount, status } = readOptions<Partial<Call>>('count()', like, callFields);
      return [...counted.values()]
        .filter(
          (one) =>
            (verb ?? one.verb) === one.verb &&
            (resource ?? one.resource) === one.resource &&
            (serviceAccount ?? one.serviceAccount) === one.serviceAccount &&
            (status ?? one.status) === one.status,
        )
        .reduce((sum, { count }) => sum + count, 0);
    },
    counts: () => [...counted.values()],
    clear() {
      calls.length = 0;
      counted.clear();
    },
  };
}
