// What is said of the figures: the tables of the README and the manual, and the charts, all made from bench/results/latest.json.

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import { type Bar, type Figure, type FigureName, figures } from './figures.ts';
import { cluster } from './scale.ts';

/** One whole run: bench/results/latest.json. */
export interface Results {
  readonly date: string;
  readonly isQuick: boolean;
  readonly machine: {
    readonly cpu: string;
    readonly cores: number;
    readonly memoryGiB: number;
    readonly os: string;
    readonly node: string;
    /** Of the operating system, over the minute before: what else it did. */
    readonly loadAtStart: number;
  };
  readonly versions: Readonly<Record<string, string>>;
  readonly figures: readonly Figure[];
}

const root = join(import.meta.dirname, '..');
export const resultsFile: string = join(root, 'bench', 'results', 'latest.json');

/** What a part of `pnpm bench:cost` said when it was last run. */
export interface Cost {
  readonly circumstances: string;
  readonly lines: readonly string[];
}

export const costsFile: string = join(root, 'bench', 'results', 'cost.json');

const decimals = (value: number): number => (value >= 100 || Number.isInteger(value) ? 0 : value >= 10 ? 1 : 2);
const formatNumber = (value: number): string => value.toLocaleString('en', { maximumFractionDigits: decimals(value) }).replaceAll(',', ' ');

/** A value with its unit. Ratios are cut, not rounded: none reads as if it reached a bar that it did not. */
export function formatValue({ value, unit }: Pick<Figure, 'value' | 'unit'>): string {
  if (unit === '×') {
    const digits = value >= 10 ? 1 : value >= 2 ? 2 : 3;
    return (Math.floor(value * 10 ** digits) / 10 ** digits).toFixed(digits);
  }
  return `${formatNumber(value)}${unit === '' ? '' : ` ${unit}`}`;
}

export function formatBar(bar: Bar, unit: string): string {
  const [sign, value] = 'least' in bar ? (['≥', bar.least] as const) : (['≤', bar.most] as const);
  return `${sign} ${value}${unit === '×' || unit === '' ? '' : ` ${unit}`}`;
}

/** A Markdown table in the form that the formatter leaves alone: columns as wide as their widest cell. */
export function formatTable(rows: readonly (readonly string[])[]): string {
  const [head = []] = rows;
  const widths = head.map((_cell, column) => Math.max(3, ...rows.map((row) => row[column]?.length ?? 0)));
  const line = (cells: readonly string[]): string => `| ${cells.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join(' | ')} |`;
  return [line(head), line(widths.map((width) => '-'.repeat(width))), ...rows.slice(1).map(line)].join('\n');
}

const find = ({ figures: measured }: Results, name: FigureName): Figure => {
  const figure = measured.find((one) => one.name === name);
  if (figure === undefined) throw new Error(`latest.json has no ${name}: run pnpm bench --json`);
  return figure;
};

/** The table of the README. */
export function summary(results: Results): string {
  const rows = (Object.keys(figures) as FigureName[]).map((name) => {
    const figure = find(results, name);
    const value = figure.isMet ? formatValue(figure) : `**${formatValue(figure)}**`;
    return [`\`${name}\``, figures[name].what, value, formatBar(figure.bar, figure.unit)];
  });
  const missed = results.figures.filter(({ isMet }) => !isMet).length;
  const below = missed === 0 ? '' : ` ${missed === 1 ? 'One figure is' : `${missed} figures are`} below the bar, in bold.`;
  return `${formatTable([['figure', 'what is compared', 'measured', 'bar'], ...rows])}\n\n${circumstances(results)}${below}`;
}

function circumstances({ date, isQuick, machine, versions }: Results): string {
  const names = Object.entries(versions).map(([name, version]) => `${name} ${version}`);
  // A machine that does nothing else has less than half a process that wants to run.
  const busy =
    machine.loadAtStart < 0.5 ? '' : ` Other work had a share of the machine (load ${machine.loadAtStart}), which makes ratios uncertain.`;
  const kind = isQuick ? 'A quick run' : 'One run';
  return `${kind} of \`pnpm bench\` on ${date.slice(0, 10)}: ${machine.cpu}, ${machine.cores} cores, ${machine.os}, Node ${machine.node.slice(1)}; ${names.join(', ')}.${busy}`;
}

/** What a request costs in each app: requests per second, and CPU time of the server's process. */
export function requestTable(results: Results): string {
  const names = [
    'hot.fastify',
    'hot.express',
    'hot.koa',
    'peer.fastify-jwt-cache',
    'peer.fastify-jwt',
    'peer.koa-jwt',
    'peer.express-oauth2-jwt-bearer',
  ];
  const rows = (names as FigureName[]).map((name) => {
    const { value, details, ratios = [] } = find(results, name);
    const other = 'bare.per_second' in details ? 'bare' : 'peer';
    const of = (who: string, what: string): number => details[`${who}.${what}`] ?? Number.NaN;
    const quarters = ratios.toSorted((a, b) => a - b);
    const at = (share: number): string => (quarters[Math.floor(quarters.length * share)] ?? Number.NaN).toFixed(2);
    return [
      `\`${name}\``,
      formatNumber(Math.round(of(other, 'per_second'))),
      formatNumber(Math.round(of('guard', 'per_second'))),
      formatValue({ value, unit: '×' }),
      `${at(0.25)} to ${at(0.75)}`,
      `${of(other, 'cpu_us').toFixed(1)} µs`,
      `${of('guard', 'cpu_us').toFixed(1)} µs`,
    ];
  });
  return formatTable([
    ['', 'without, or peer', 'with the guard', 'ratio', 'half of the rounds', 'CPU without, or peer', 'CPU with the guard'],
    ...rows,
  ]);
}

/** The details of every figure, for those who want to know more than the value. */
export function detailTable(results: Results): string {
  const rows = results.figures
    .map(({ name, details }) => ({ name, seen: Object.entries(details).filter(([key]) => !isShownElsewhere(name, key)) }))
    .filter(({ seen }) => seen.length > 0)
    .map(({ name, seen }) => [
      `\`${name}\``,
      seen.map(([key, value]) => `${key.replaceAll(/[._]/g, ' ')}: ${formatNumber(value)}`).join('; '),
    ]);
  return formatTable([['figure', 'what else was seen'], ...rows]);
}

// In the table of requests, and in the one of the simulated cluster.
const isShownElsewhere = (name: FigureName, key: string): boolean =>
  name === 'scale' || (/^(?:hot|peer)\./.test(name) && (key === 'cpu_ratio' || /\.(?:per_second|cpu_us)$/.test(key)));

interface Scaled {
  readonly name: string;
  readonly simulated: number;
  readonly formula: number;
}

function scaled(results: Results): readonly Scaled[] {
  const { details } = find(results, 'scale');
  return Object.keys(details)
    .filter((key) => key.endsWith('.simulated'))
    .map((key) => {
      const name = key.slice(0, -'.simulated'.length);
      return { name, simulated: details[key] ?? Number.NaN, formula: details[`${name}.formula`] ?? Number.NaN };
    });
}

export function scaleTable(results: Results): string {
  const rows = scaled(results).map(({ name, simulated, formula }) => [
    name,
    formatNumber(simulated),
    formatNumber(formula),
    (simulated / formula).toFixed(2),
  ]);
  return formatTable([['`verification`, `cacheTtlMs`', 'simulated, per second', 'formula, per second', 'ratio'], ...rows]);
}

interface Drawn {
  readonly label: string;
  readonly value: number;
  readonly text: string;
  readonly isOurs: boolean;
}

interface Group {
  readonly title: string;
  readonly bars: readonly Drawn[];
}

// Plain shapes and one style sheet, which follows the reader's light or dark.
function drawBars(title: string, note: string, groups: readonly Group[]): string {
  const [width, left, right, barHeight, gap] = [760, 230, 110, 20, 6];
  const longest = Math.max(...groups.flatMap(({ bars }) => bars.map(({ value }) => value)));
  const parts: string[] = [];
  let y = 64;
  for (const group of groups) {
    if (group.title !== '') {
      parts.push(`<text class="group" x="16" y="${y + 12}">${escape(group.title)}</text>`);
      y += 22;
    }
    for (const { label, value, text, isOurs } of group.bars) {
      const length = Math.max(1, (value / longest) * (width - left - right));
      parts.push(
        `<text x="${left - 8}" y="${y + 15}" text-anchor="end">${escape(label)}</text>`,
        `<rect class="${isOurs ? 'ours' : 'other'}" x="${left}" y="${y}" width="${length.toFixed(1)}" height="${barHeight}" rx="2"/>`,
        `<text x="${(left + length + 6).toFixed(1)}" y="${y + 15}">${escape(text)}</text>`,
      );
      y += barHeight + gap;
    }
    y += 10;
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${y + 8}" viewBox="0 0 ${width} ${y + 8}" role="img" aria-label="${escape(title)}">
<style>
  text { font: 13px system-ui, sans-serif; fill: #24292f }
  .title { font-size: 16px; font-weight: 600 }
  .group { font-weight: 600 }
  .note { fill: #57606a }
  .ours { fill: #1f6feb }
  .other { fill: #afb8c1 }
  .ground { fill: #ffffff }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .note { fill: #9198a1 }
    .ours { fill: #4493f8 }
    .other { fill: #484f58 }
    .ground { fill: #0d1117 }
  }
</style>
<rect class="ground" width="100%" height="100%" rx="6"/>
<text class="title" x="16" y="28">${escape(title)}</text>
<text class="note" x="16" y="48">${escape(note)}</text>
${parts.join('\n')}
</svg>
`;
}

const escape = (text: string): string => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('"', '&quot;');

/** The chart of requests: each app without a guard, with ours, and with its peers. Ratios, since only those were taken in one run each. */
export function requestChart(results: Results): string {
  const ratio = (name: FigureName): number => find(results, name).value;
  const bar = (label: string, value: number, isOurs = false): Drawn => ({ label, value, text: `${Math.round(value * 100)} %`, isOurs });
  const group = (title: string, hot: FigureName, peers: Readonly<Record<string, FigureName>>): Group => ({
    title,
    bars: [
      bar('no guard', 1),
      bar('k8s-sa-auth', ratio(hot), true),
      ...Object.entries(peers).map(([label, peer]) => bar(label, ratio(hot) / ratio(peer))),
    ],
  });
  return drawBars(
    'Requests per second, of those without a guard',
    'The server and its clients in processes of their own; a token that was seen before.',
    [
      group('Fastify', 'hot.fastify', { '@fastify/jwt, with its cache': 'peer.fastify-jwt-cache', '@fastify/jwt': 'peer.fastify-jwt' }),
      group('Koa', 'hot.koa', { 'koa-jwt': 'peer.koa-jwt' }),
      group('Express', 'hot.express', { 'express-oauth2-jwt-bearer': 'peer.express-oauth2-jwt-bearer' }),
    ],
  );
}

/** The chart of the simulated cluster. */
export function scaleChart(results: Results): string {
  const { callers, replicas, hours } = cluster;
  const groups = scaled(results).map(({ name, simulated, formula }) => ({
    title: name,
    bars: [
      { label: 'simulated', value: simulated, text: `${formatNumber(simulated)}/s`, isOurs: true },
      { label: 'by the formula', value: formula, text: `${formatNumber(formula)}/s`, isOurs: false },
    ],
  }));
  const title = 'What the API server is asked';
  return drawBars(title, `${callers.toLocaleString('en').replace(',', ' ')} callers × ${replicas} replicas × ${hours} h`, groups);
}

const costBlocks = (costs: Readonly<Record<string, Cost>>): string =>
  Object.values(costs)
    .map((cost) => ['```text', ...cost.lines, '', cost.circumstances, '```'].join('\n'))
    .join('\n\n');

/** Puts each text between its markers. Throws where they are missing. */
export function fill(page: string, blocks: Readonly<Record<string, string>>): string {
  return Object.entries(blocks).reduce((text, [name, block]) => {
    const [begin, end] = [`<!-- ${name}: made by pnpm bench:report -->`, `<!-- /${name} -->`];
    const [before, rest] = [text.indexOf(begin), text.indexOf(end)];
    if (before < 0 || rest < before) throw new Error(`There is no place for it between ${begin} and ${end}`);
    return `${text.slice(0, before + begin.length)}\n\n${block}\n\n${text.slice(rest)}`;
  }, page);
}

/** Every file that is made, by its path in the repository. */
export function report(
  results: Results,
  costs: Readonly<Record<string, Cost>>,
  read: (path: string) => string,
): Readonly<Record<string, string>> {
  return {
    'README.md': fill(read('README.md'), { benchmarks: summary(results) }),
    'docs/performance.md': fill(read('docs/performance.md'), {
      requests: requestTable(results),
      details: detailTable(results),
      scale: scaleTable(results),
      costs: costBlocks(costs),
    }),
    'docs/performance.svg': requestChart(results),
    'docs/scale.svg': scaleChart(results),
  };
}

export const readPage = (path: string): string => readFileSync(join(root, path), 'utf8');
export const readResults = (): Results => JSON.parse(readFileSync(resultsFile, 'utf8')) as Results;
export const readCosts = (): Record<string, Cost> => JSON.parse(readFileSync(costsFile, 'utf8')) as Record<string, Cost>;

if (import.meta.main) {
  for (const [path, text] of Object.entries(report(readResults(), readCosts(), readPage))) writeFileSync(join(root, path), text);
}
