// The routes that are soaked: what their guards are told of them, and what the model knows.

export interface Route {
  readonly path: string;
  /** A token for one of them will do. */
  readonly audiences: readonly string[];
  /** What callers of this route must be allowed to read, by the cluster's rules; absent where `allow` alone decides. */
  readonly order?: string;
  /** Whether its `allow` is a predicate, which goes by `ruleOf`. Else it is a list with a pattern for all of the fleet. */
  readonly isRuled: boolean;
  /** Whether its guard refuses nothing and tells what it would have done. */
  readonly isObserved: boolean;
}

/** What a predicate makes of a caller. It says so at once or in a promise, as it comes; `late` is when no observing guard waits any more. */
export type Rule = 'true' | 'true, late' | 'false' | 'something else' | 'throws';

const rules: readonly Rule[] = ['true', 'true', 'false', 'something else', 'throws'];

/** Another for each pod, and for each path: what was said of one of them is wrong for most others. */
export function ruleOf(path: string, pod: string): Rule {
  const sum = Number(/\d+$/.exec(pod)?.[0] ?? 0) + Number(/\d+$/.exec(path)?.[0] ?? 0);
  // Seldom, since nobody sees when an observing guard has done with it.
  return sum % 31 === 0 ? 'true, late' : (rules[sum % rules.length] ?? 'false');
}

const shop = { audiences: ['shop'], isRuled: false, isObserved: false };
export const plain: Route = { ...shop, path: '/' };

const enforcing: readonly Route[] = [
  plain,
  { ...shop, path: '/orders/1', order: '1' },
  { ...shop, path: '/orders/2', order: '2' },
  { ...shop, path: '/rules/1', isRuled: true },
  { ...shop, path: '/rules/2', isRuled: true },
  { ...shop, path: '/vault', audiences: ['vault'] },
  // The same two, so that these share what they remember.
  { ...shop, path: '/either/1', audiences: ['shop', 'vault'] },
  { ...shop, path: '/either/2', audiences: ['vault', 'shop'] },
];

/** Each of them once more, observing. */
export const routes: readonly Route[] = enforcing.flatMap((route) => [
  route,
  { ...route, path: `/observed${route.path}`, isObserved: true },
]);

/** Whether a token for these audiences is for this route. */
export const isFor = (audiences: readonly string[], route: Route): boolean =>
  route.audiences.some((audience) => audiences.includes(audience));
