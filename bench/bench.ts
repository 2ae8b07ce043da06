// The command: `pnpm bench [names…] [--quick] [--json] [--check]`. A name can be the beginning of one, such as `hot`.

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { cpus, loadavg, release, totalmem, type } from 'node:os';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';

import { endChildren } from './child.ts';
import { comparisons, openStage } from './comparisons.ts';
import { type Figure, figures } from './figures.ts';
import { formatBar, formatValue, type Results, resultsFile } from './report.ts';

const usage = `pnpm bench [names…] [--quick] [--json] [--check]

  names     only these: ${Object.keys(figures).join(', ')}; or the beginning of some, such as hot
  --quick   fewer rounds: all in under two minutes, and less to be trusted
  --json    all of them, written to bench/results/latest.json, of which pnpm bench:report makes tables and charts
  --check   end with 1 if a figure is below its bar`;

const compared = ['fastify', 'express', 'koa', 'undici', '@fastify/jwt', 'koa-jwt', 'express-oauth2-jwt-bearer', '@kubernetes/client-node'];

const { values: options, positionals: names } = parseArgs({
  allowPositionals: true,
  options: {
    quick: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
    check: { type: 'boolean', default: false },
    help: { type: 'boolean', short: 'h', default: false },
  },
});

const isNamed = (name: string): boolean => names.length === 0 || names.some((one) => name === one || name.startsWith(`${one}.`));
const chosen = comparisons.filter((comparison) => comparison.names.some(isNamed));
const unknown = names.find((one) => !Object.keys(figures).some((name) => name === one || name.startsWith(`${one}.`)));

if (options.help) console.log(usage);
else if (unknown !== undefined) fail(`There is no figure "${unknown}".\n\n${usage}`);
else if (options.json && names.length > 0) fail('--json writes all figures, of one run: leave the names out');
else await measure();

function fail(message: string): void {
  console.error(message);
  process.exitCode = 2;
}

async function measure(): Promise<void> {
  const startedAt = new Date();
  const loadAtStart = loadavg()[0] ?? 0;
  let current = '';
  let isInterrupted = false;
  const opening = openStage(options.quick, tell);
  const interrupt = (): void => {
    isInterrupted = true;
    endChildren();
    void opening
      .then(({ authority }) => authority.close())
      .finally(() => {
        clearLine();
        process.exit(130);
      });
  };
  process.once('SIGINT', interrupt);
  process.once('SIGTERM', interrupt);
  const stage = await opening;

  const measured: Figure[] = [];
  function tell(progress: string): void {
    if (!process.stdout.isTTY || isInterrupted) return;
    clearLine();
    process.stdout.write(`${current}  ${progress}`.slice(0, (process.stdout.columns || 80) - 1));
  }
  try {
    for (const comparison of chosen) {
      current = comparison.names.join(', ');
      tell('');
      const result = await comparison.run(stage);
      clearLine();
      for (const figure of result.filter(({ name }) => isNamed(name))) console.log(formatLine(figure));
      measured.push(...result);
    }
  } catch (error) {
    // Its processes were ended in the midst of something.
    if (isInterrupted) return await new Promise(() => {});
    throw error;
  } finally {
    if (!isInterrupted) {
      endChildren();
      await stage.authority.close();
    }
  }
  const missed = measured.filter(({ isMet, name }) => !isMet && isNamed(name));
  console.log(missed.length === 0 ? 'Every bar is reached.' : `Below the bar: ${missed.map(({ name }) => name).join(', ')}.`);
  if (options.json) {
    mkdirSync(dirname(resultsFile), { recursive: true });
    const results: Results = {
      date: startedAt.toISOString(),
      isQuick: options.quick,
      machine: machine(loadAtStart),
      versions: versions(),
      figures: measured,
    };
    writeFileSync(resultsFile, `${JSON.stringify(results, undefined, 2)}\n`);
    console.log('Written to bench/results/latest.json. pnpm bench:report makes tables and charts of it.');
  }
  if (options.check && missed.length > 0) process.exitCode = 1;
}

function clearLine(): void {
  if (process.stdout.isTTY) process.stdout.write('\r\u001B[K');
}

function formatLine(figure: Figure): string {
  const { name, bar, isMet, details } = figure;
  const state = isMet ? 'ok' : 'BELOW';
  const line = `${name.padEnd(32)}${formatValue(figure).padStart(10)}  bar ${formatBar(bar, figure.unit).padEnd(10)} ${state}`;
  const rest = Object.entries(details).map(([key, value]) => `${key} ${value.toLocaleString('en', { maximumSignificantDigits: 4 })}`);
  return rest.length === 0 ? line : `${line}\n    ${rest.join(', ')}`;
}

function machine(load: number): Results['machine'] {
  const [cpu] = cpus();
  return {
    cpu: cpu?.model.trim() ?? 'unknown',
    cores: cpus().length,
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    os: `${type()} ${release()}`,
    node: process.version,
    loadAtStart: Number(load.toFixed(2)),
  };
}

// From the folder, since not every package lets its package.json be imported.
function versions(): Readonly<Record<string, string>> {
  const { version } = JSON.parse(readFileSync(join(import.meta.dirname, '..', 'packages', 'core', 'package.json'), 'utf8')) as {
    version: string;
  };
  const versionOf = (name: string): string => {
    const folder = createRequire(import.meta.url).resolve.paths(name)?.[0] ?? '';
    return (JSON.parse(readFileSync(join(folder, name, 'package.json'), 'utf8')) as { readonly version: string }).version;
  };
  return { 'k8s-sa-auth': version, ...Object.fromEntries(compared.map((name) => [name, versionOf(name)])) };
}
