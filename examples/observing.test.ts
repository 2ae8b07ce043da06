// docs/observing.md, the dashboard and the alerts, held against what real exporters print about a guard in all its states.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { promisify } from 'node:util';

import { createGuard, createServiceClient, type Guard, processStatus, type TokenReload, tokenReloadChannel } from '@k8s-sa-auth/core';
import { type Authority, createAuthority } from '@k8s-sa-auth/testing';
import { holdObserveTimeout } from '@k8s-sa-auth/testing/adapter-cases';
import { parser } from '@prometheus-io/lezer-promql';
import { parse as parseYaml } from 'yaml';

holdObserveTimeout();

const run = promisify(execFile);
const docs = join(import.meta.dirname, '..', 'docs');
const read = (name: string): string => readFileSync(join(docs, name), 'utf8');
const manual = read('observing.md');
// Below examples, so that the imports resolve as a user's do.
const directory = mkdtempSync(join(import.meta.dirname, '.observing-'));

interface Series {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
}

// https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
function parseSeries(text: string): readonly Series[] {
  const lines = text.split('\n').filter((line) => line !== '' && !line.startsWith('#'));
  return lines.map((line) => {
    const [, name = '', labels = ''] = /^(\w+)(?:\{(.*)\})? \S+$/.exec(line) ?? assert.fail(line);
    const pairs = [...labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, key = '', value = '']) => [key, value] as const);
    return { name, labels: Object.fromEntries(pairs.filter(([, value]) => value !== '')) };
  });
}

interface Selector {
  readonly text: string;
  readonly matchers: readonly { readonly label: string; readonly operator: string; readonly value: string }[];
}

/** What an expression selects, and by which labels it groups. Fails if it is no PromQL. */
function parseExpression(expression: string): { readonly selectors: readonly Selector[]; readonly groups: readonly string[] } {
  const selectors: Selector[] = [];
  const groups: string[] = [];
  parser.parse(expression).iterate({
    enter({ type, node, from, to }) {
      const textOf = (child: { readonly from: number; readonly to: number }): string => expression.slice(child.from, child.to);
      if (type.isError) assert.fail(`not PromQL at ${from}: ${expression}`);
      if (type.name === 'GroupingLabels') groups.push(...node.getChildren('LabelName').map(textOf));
      if (type.name !== 'VectorSelector') return;
      const name = node.getChild('Identifier');
      const matchers = (node.getChild('LabelMatchers')?.getChildren('UnquotedLabelMatcher') ?? []).map((matcher) => {
        const [label, operator, value] = [matcher.getChild('LabelName'), matcher.getChild('MatchOp'), matcher.getChild('StringLiteral')];
        if (!label || !operator || !value) assert.fail(textOf(matcher));
        return { label: textOf(label), operator: textOf(operator), value: JSON.parse(textOf(value)) as string };
      });
      const named = name ? [{ label: '__name__', operator: '=', value: textOf(name) }] : [];
      selectors.push({ text: expression.slice(from, to), matchers: [...named, ...matchers] });
    },
  });
  return { selectors, groups };
}

// What a scrape adds by itself.
const target = { job: 'store', instance: 'store-0' };

function isSelected({ name, labels }: Series, { matchers }: Selector): boolean {
  const all: Readonly<Record<string, string>> = { ...labels, ...target, __name__: name };
  return matchers.every(({ label, operator, value }) => {
    const isMatch = operator.includes('~') ? new RegExp(`^(?:${value})$`).test(all[label] ?? '') : (all[label] ?? '') === value;
    return isMatch !== operator.startsWith('!');
  });
}

// What Prometheus itself writes of an alert.
const firing = (alert: string): Series => ({ name: 'ALERTS', labels: { alertname: alert, alertstate: 'firing' } });

function proveExpression(expression: string, scrape: readonly Series[]): void {
  const { selectors, groups } = parseExpression(expression);
  const selected = selectors.map((selector) => ({ selector, found: scrape.filter((series) => isSelected(series, selector)) }));
  for (const { selector, found } of selected) assert.ok(found.length > 0, `nothing is selected by ${selector.text}`);
  const known = new Set([...Object.keys(target), ...selected.flatMap(({ found }) => found.flatMap(({ labels }) => Object.keys(labels)))]);
  for (const label of groups) assert.ok(known.has(label), `no label ${label} in ${expression}`);
}

const rules = (parseYaml(read('prometheus-rules.yaml')) as { groups: { rules: { alert: string; expr: string }[] }[] }).groups.flatMap(
  (group) => group.rules,
);

interface Panel {
  readonly id: number;
  readonly title: string;
  readonly type: string;
  readonly gridPos: { readonly x: number; readonly y: number; readonly w: number; readonly h: number };
  readonly targets?: readonly { readonly expr: string; readonly legendFormat: string }[];
}
const dashboard = JSON.parse(read('grafana-dashboard.json')) as {
  readonly panels: readonly Panel[];
  readonly templating: { readonly list: readonly { readonly name: string }[] };
};

// As Grafana fills its variables in, with all of them chosen.
const fill = (text: string): string =>
  text.replaceAll(/\$(__rate_interval|__range)\b/g, '5m').replaceAll(/\$(job|audience)\b/g, () => '.*');

function blockOf(language: string, firstWords: string): string {
  const blocks = [...manual.matchAll(/^```(\w+)\n([^]*?)^```$/gm)];
  return (
    blocks.find(([, marked, block = '']) => marked === language && block.startsWith(firstWords))?.[2] ??
    assert.fail(`observing.md has no ${firstWords}`)
  );
}

/** The rows of the table below a heading, each as its cells. */
function tableBelow(heading: string): string[][] {
  const [, section = ''] = manual.split(`\n${heading}\n`);
  const lines = section.slice(section.indexOf('\n|')).trim().split('\n');
  const end = lines.findIndex((line) => !line.startsWith('|'));
  return lines.slice(2, end < 0 ? undefined : end).map((line) =>
    line
      .slice(1, -1)
      .split('|')
      .map((cell) => cell.trim()),
  );
}
const codeOf = (cell = ''): string => /`([^`]+)`/.exec(cell)?.[1] ?? '';

const documented = tableBelow('### Metrics').map(([name, , labels = '']) => ({
  name: codeOf(name).replaceAll('.', '_'),
  // Values stand in brackets.
  labels: [...labels.replaceAll(/\([^)]*\)/g, '').matchAll(/`([^`]+)`/g)].map(([, label = '']) => label.replaceAll('.', '_')),
}));
/** Without what Prometheus' formats add to a name. */
const plainName = (name: string): string => name.replace(/_(total|bucket|sum|count)$/, '').replace(/_seconds$/, '');

async function send(guard: Guard, token?: string): Promise<void> {
  const headers = token === undefined ? {} : { 'x-client-id': token };
  await guard.check({ method: 'GET', headers, rawHeaders: Object.entries(headers).flat() }, '/secrets/:id').catch(() => {});
}

let authority: Authority;
const scrapes: Record<'opentelemetry' | 'prom-client', readonly Series[]> = { opentelemetry: [], 'prom-client': [] };

before(async () => {
  // The two recipes, as they stand there; only the port differs.
  const telemetry = blockOf('ts', '// telemetry.ts');
  assert.ok(telemetry.includes('9464'));
  writeFileSync(join(directory, 'telemetry.ts'), telemetry.replace('9464', '0'));
  writeFileSync(join(directory, 'metrics.ts'), blockOf('ts', '// metrics.ts'));
  const listening = Promise.withResolvers<Server>();
  const listen = (message: unknown): void => listening.resolve((message as { server: Server }).server);
  subscribe('tracing:net.server.listen:asyncEnd', listen);
  await import(join(directory, 'telemetry.ts'));
  const server = await listening.promise;
  unsubscribe('tracing:net.server.listen:asyncEnd', listen);
  await import(join(directory, 'metrics.ts'));
  const { register } = await import('prom-client');

  authority = await createAuthority();
  const { apiServer } = await authority.pod('store/store');
  const mint = (serviceAccount: string, pod: string): Promise<string> => authority.token(serviceAccount, { audience: 'store', pod });
  const logger = { info() {}, warn() {}, error() {} };
  const guard = createGuard({ audience: 'store', allow: ['api/*'], apiServer, logger });
  const forgetful = createGuard({ audience: 'store', allow: ['api/*'], apiServer, logger, cacheTtlMs: 0 });
  const bySignature = createGuard({ audience: 'store', allow: 'any', apiServer, logger, verification: 'signature' });
  const pod = await authority.pod('api/api', { tokens: { store: 'store' } });
  const failed = Promise.withResolvers<void>();
  const hear = (message: unknown): void => {
    if ((message as TokenReload).code !== undefined) failed.resolve();
  };
  subscribe(tokenReloadChannel, hear);
  const targets = [
    { origin: 'http://store', tokenFile: pod.tokenFile('store') },
    { origin: 'http://absent', tokenFile: join(directory, 'absent') },
  ];
  const client = createServiceClient({ targets, logger });
  await Promise.all([client.target('http://store').headers(), failed.promise, bySignature.ready(), guard.ready()]);
  unsubscribe(tokenReloadChannel, hear);
  const token = await mint('api/api', 'api-0');
  const removed = await mint('api/api', 'removed');
  await authority.delete('pod', 'api/removed');
  for (const sent of [token, token, undefined, removed, await mint('shop/cart', 'cart')]) await send(guard, sent);
  await send(guard.with({ allow: ['ops/*'], mode: 'observe' }), token);
  await send(guard.with({ allow: 'any', mode: 'observe' }), token);
  await send(bySignature, token);
  await send(guard.with({ allow: 'any', authorize: { verb: 'get', resource: 'secrets' } }), token);
  await send(forgetful, token);
  authority.fail('forbidden');
  await send(guard, await mint('api/api', 'unknown'));
  await authority.recover();
  authority.fail('outage');
  const isOpen = (): boolean => processStatus().guards.some(({ breaker }) => breaker === 'open');
  for (let index = 0; !isOpen(); index++) {
    assert.ok(index < 50);
    await send(forgetful, await mint('api/api', `unknown-${index}`));
  }
  await send(forgetful, token);
  // Under a key that came after the keys were loaded.
  authority.rotateSigningKey();
  await send(bySignature, await mint('api/api', 'rotated'));

  const answer = await fetch(`http://127.0.0.1:${(server.address() as AddressInfo).port}/metrics`);
  scrapes.opentelemetry = parseSeries(await answer.text());
  scrapes['prom-client'] = parseSeries(await register.metrics());
  server.close();
  server.closeAllConnections();
  await Promise.all([guard.close(), forgetful.close(), bySignature.close(), client.close()]);
});
after(async () => {
  await authority.close();
  rmSync(directory, { recursive: true });
});

describe('docs/observing.md', () => {
  it('has recipes that type-check', async () => {
    writeFileSync(join(directory, 'tsconfig.json'), JSON.stringify({ extends: '../../tsconfig.json', include: ['*.ts'] }));
    await run('tsc', ['--project', directory]).catch((error: { stdout: string }) => assert.fail(error.stdout));
  });

  const labelsOf = (scrape: readonly Series[]): Record<string, string[]> => {
    const found: Record<string, Set<string>> = {};
    for (const { name, labels } of scrape) {
      if (!name.startsWith('k8s_sa_auth_')) continue;
      const plain = plainName(name);
      const known = (found[plain] ??= new Set());
      for (const label of Object.keys(labels)) if (!['le', 'otel_scope_name'].includes(label)) known.add(label);
    }
    return Object.fromEntries(Object.entries(found).map(([name, labels]) => [name, [...labels].toSorted()]));
  };
  const expected = Object.fromEntries(documented.map(({ name, labels }) => [name, labels.toSorted()]));

  it('names every metric and label that OpenTelemetry’s exporter prints, and no other', () => {
    assert.ok(documented.length > 10);
    assert.deepEqual(labelsOf(scrapes.opentelemetry), expected);
  });

  it('has a recipe for prom-client with the same metrics and labels', () => {
    assert.deepEqual(labelsOf(scrapes['prom-client']), expected);
  });

  it('asks Prometheus for what is there', () => {
    const queries = [...manual.matchAll(/^```promql\n([^]*?)^```$/gm)].map(([, query = '']) => query);
    assert.equal(queries.length, 2);
    for (const query of queries) for (const scrape of Object.values(scrapes)) proveExpression(query, scrape);
  });

  it('explains every alert', () => {
    assert.deepEqual(
      tableBelow('## Dashboard and alerts').map(([alert]) => codeOf(alert)),
      rules.map(({ alert }) => alert),
    );
  });

  it('names every kind of trouble that is logged', () => {
    const source = join(import.meta.dirname, '..', 'packages', 'core', 'src');
    const code = readdirSync(source)
      .filter((name) => /(?<!\.test)\.ts$/.test(name))
      .map((name) => readFileSync(join(source, name), 'utf8'));
    const kinds = code.flatMap((text) => [...text.matchAll(/log\.warn\(\s*'(\w+)'/g)].map(([, kind = '']) => kind));
    const listed = tableBelow('## Logs')
      .map(([, kind]) => codeOf(kind))
      .filter(Boolean);
    assert.deepEqual(listed.toSorted(), [...new Set(kinds)].toSorted());
  });
});

describe('docs/prometheus-rules.yaml', () => {
  const written = rules.map(({ alert }) => firing(alert));

  it('asks for what OpenTelemetry’s exporter prints', () => {
    for (const { expr } of rules) proveExpression(expr, [...scrapes.opentelemetry, ...written]);
  });

  it('asks for what prom-client prints', () => {
    for (const { expr } of rules) proveExpression(expr, [...scrapes['prom-client'], ...written]);
  });

  // Found on the PATH, or not: Debian has it in its package prometheus.
  const hasPromtool = (process.env['PATH'] ?? '').split(':').some((path) => path !== '' && readable(path, 'promtool'));
  it('passes its own tests', { skip: hasPromtool ? false : 'promtool is not installed' }, async () => {
    await run('promtool', ['check', 'rules', join(docs, 'prometheus-rules.yaml')]);
    const { stdout } = await run('promtool', ['test', 'rules', join(docs, 'prometheus-rules.test.yaml')]).catch(
      (error: { stdout: string; stderr: string }) => assert.fail(error.stdout + error.stderr),
    );
    assert.match(stdout, /SUCCESS/);
  });

  it('tests every alert, when it fires and when it does not', () => {
    const { tests } = parseYaml(read('prometheus-rules.test.yaml')) as {
      tests: { alert_rule_test: { alertname: string; exp_alerts?: unknown[] }[] }[];
    };
    const cases = tests.flatMap((one) => one.alert_rule_test);
    for (const { alert } of rules) {
      const own = cases.filter(({ alertname }) => alertname === alert);
      assert.ok(
        own.some(({ exp_alerts = [] }) => exp_alerts.length > 0) && own.some(({ exp_alerts = [] }) => exp_alerts.length === 0),
        alert,
      );
    }
  });
});

describe('docs/grafana-dashboard.json', () => {
  const expressions = dashboard.panels.flatMap(({ targets = [] }) => targets.map(({ expr }) => expr));

  it('asks for what OpenTelemetry’s exporter prints', () => {
    assert.ok(expressions.length > 15);
    for (const expression of expressions) proveExpression(fill(expression), scrapes.opentelemetry);
  });

  it('asks for what prom-client prints', () => {
    for (const expression of expressions) proveExpression(fill(expression), scrapes['prom-client']);
  });

  it('shows every metric, but for the age of a token, which its expiry says better', () => {
    const selectors = expressions.flatMap((expression) => parseExpression(fill(expression)).selectors);
    const shown = scrapes.opentelemetry.filter((series) => selectors.some((selector) => isSelected(series, selector)));
    const names = new Set(shown.map(({ name }) => plainName(name)));
    assert.deepEqual(
      documented.map(({ name }) => name).filter((name) => !names.has(name)),
      ['k8s_sa_auth_token_age'],
    );
  });

  it('uses only variables that it declares', () => {
    const declared = new Set(['__all', '__rate_interval', '__range', ...dashboard.templating.list.map(({ name }) => name)]);
    const used = [...JSON.stringify(dashboard).matchAll(/\$\{?(\w+)/g)].map(([, name = '']) => name);
    assert.deepEqual(
      used.filter((name) => !declared.has(name)),
      [],
    );
  });

  it('lays its panels out side by side, each with an id of its own', () => {
    const { panels } = dashboard;
    assert.equal(new Set(panels.map(({ id }) => id)).size, panels.length);
    for (const [index, { gridPos: a, title }] of panels.entries()) {
      assert.ok(a.x + a.w <= 24, title);
      for (const { gridPos: b } of panels.slice(index + 1)) {
        assert.ok(a.x + a.w <= b.x || b.x + b.w <= a.x || a.y + a.h <= b.y || b.y + b.h <= a.y, title);
      }
    }
  });

  it('names in a legend only labels that its expression keeps', () => {
    for (const { expr, legendFormat } of dashboard.panels.flatMap(({ targets = [] }) => targets)) {
      const { groups } = parseExpression(fill(expr));
      for (const [, label = ''] of legendFormat.matchAll(/\{\{(\w+)\}\}/g)) assert.ok(groups.includes(label), `${label} in ${expr}`);
    }
  });
});

function readable(path: string, name: string): boolean {
  try {
    return readdirSync(path).includes(name);
  } catch {
    return false;
  }
}
