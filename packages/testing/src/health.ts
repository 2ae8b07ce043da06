// The only place that knows the health checks of an API server: their names, and how they are told.
import type { Answer } from './answer.ts';

const hooks = [
  'start-apiserver-admission-initializer',
  'generic-apiserver-start-informers',
  'priority-and-fairness-config-consumer',
  'priority-and-fairness-filter',
  'storage-object-count-tracker-hook',
  'start-apiextensions-informers',
  'start-apiextensions-controllers',
  'crd-informer-synced',
  'start-system-namespaces-controller',
  'peer-endpoint-reconciler-controller',
  'start-cluster-authentication-info-controller',
  'start-kube-apiserver-identity-lease-controller',
  'start-kube-apiserver-identity-lease-garbage-collector',
  'storage-readiness',
  'start-legacy-token-tracking-controller',
  'start-service-ip-repair-controllers',
  'rbac/bootstrap-roles',
  'scheduling/bootstrap-system-priority-classes',
  'priority-and-fairness-config-producer',
  'bootstrap-controller',
  'start-kubernetes-service-cidr-controller',
  'start-kube-aggregator-informers',
  'apiservice-status-local-available-controller',
  'apiservice-status-remote-available-controller',
  'apiservice-registration-controller',
  'apiservice-wait-for-first-sync',
  'apiservice-discovery-controller',
  'kube-apiserver-autoregistration',
].map((hook) => `poststarthook/${hook}`);
const last = ['autoregister-completion', 'poststarthook/apiservice-openapi-controller', 'poststarthook/apiservice-openapiv3-controller'];
const checks: readonly string[] = ['ping', 'log', 'loopback-serving-certificate', 'etcd', ...hooks, ...last];

// A server stays ready in an outage of its storage that began after it was ready.
const readinessOnly: readonly string[] = ['etcd-readiness', 'informer-sync', 'shutdown'];
const etcdTimeoutMs = 2000;

/** Answers `/healthz`, `/livez`, `/readyz` and single checks below them; `undefined` for another path. */
export function answerHealth(path: string, query: URLSearchParams, isStorageFrozen: boolean): Answer | undefined {
  const [, name = '', check] = /^\/(healthz|livez|readyz)(?:\/(.+))?$/.exec(path) ?? [];
  if (name === '') return undefined;
  const known = name === 'readyz' ? [...checks, ...readinessOnly] : checks;
  const excluded = query.getAll('exclude');
  const told = (check === undefined ? known : known.filter((one) => one === check)).filter((one) => !excluded.includes(one));
  if (told.length === 0 && check !== undefined) return undefined;
  const failing: readonly string[] = isStorageFrozen && name !== 'readyz' ? told.filter((one) => one === 'etcd') : [];
  const afterMs = failing.length > 0 ? { afterMs: etcdTimeoutMs } : {};
  if (check !== undefined) {
    return failing.length > 0
      ? { status: 500, ...afterMs, body: 'internal server error: etcd failed: reason withheld\n' }
      : { status: 200, headers: { 'Content-Type': 'text/plain; charset=utf-8' }, body: 'ok' };
  }
  if (failing.length === 0 && !query.has('verbose')) return { status: 200, body: 'ok' };
  const lines = told.map((one) => (failing.includes(one) ? `[-]${one} failed: reason withheld` : `[+]${one} ok`));
  const unknown = excluded.filter((one) => !known.includes(one));
  const warned =
    unknown.length === 0
      ? []
      : [`warn: some health checks cannot be excluded: no matches for ${unknown.map((one) => JSON.stringify(one)).join(',')}`];
  const result = `${name} check ${failing.length > 0 ? 'failed' : 'passed'}`;
  return { status: failing.length > 0 ? 500 : 200, ...afterMs, body: `${[...lines, ...warned, result].join('\n')}\n` };
}
