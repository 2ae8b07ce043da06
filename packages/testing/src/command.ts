#!/usr/bin/env node
// The command: an authority as a process of its own, until a signal ends it.
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';

const usage = `Usage: npx @k8s-sa-auth/testing serve [--manifests <path>]... [--port <number>]

Starts an authority on 127.0.0.1, prints the path of an administrator's kubeconfig, and runs until it is interrupted.

  --manifests <path>  a YAML file, a folder of them, or a path with *; may be given several times
  --port <number>     the port; any that is free without it
  --help              prints this
  --version           prints the version
`;

/** A mistake in the command's arguments. */
class UsageError extends Error {}

async function run(args: readonly string[]): Promise<void> {
  const { values, positionals } = parse(args);
  if (values.help === true) {
    process.stdout.write(usage);
    return;
  }
  if (values.version === true) {
    const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as { readonly version: string };
    process.stdout.write(`${version}\n`);
    return;
  }
  const [command, ...more] = positionals;
  if (command === undefined) throw new UsageError('say "serve"');
  if (command !== 'serve' || more.length > 0) throw new UsageError(`there is no "${positionals.join(' ')}", only "serve"`);
  const { manifests = [], port = '0' } = values;
  if (!/^\d+$/.test(port) || Number(port) > 65_535) throw new UsageError(`--port is a number from 0 to 65535, not "${port}"`);
  const { createAuthority, listManifests } = await load();
  try {
    listManifests(manifests);
  } catch (error) {
    throw new UsageError(messageOf(error));
  }
  // Listened for before the start, so that nothing is left behind by a signal that comes during it.
  const ended = new Promise<void>((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => resolve());
  });
  const authority = await createAuthority({ port: Number(port), manifests });
  process.stdout.write(`${authority.kubeconfig}\n`);
  process.stderr.write(`The authority listens on ${authority.url}, until it is interrupted.\n`);
  // During an outage there is no socket that would keep the process.
  const alive = setInterval(() => undefined, 3_600_000);
  await ended;
  clearInterval(alive);
  await authority.close();
}

// Only when it is needed, as an older Node than it needs would not get so far as to say so.
async function load(): Promise<typeof import('./authority.ts') & typeof import('./manifests.ts')> {
  try {
    return { ...(await import('./authority.ts')), ...(await import('./manifests.ts')) };
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    throw new Error(`Node 22.19 or later is needed, and this is ${process.version} (${error.message})`, { cause: error });
  }
}

function parse(args: readonly string[]): ReturnType<typeof read> {
  const parsed = read(args);
  const seen = new Set<string>();
  for (const token of parsed.tokens) {
    if (token.kind !== 'option') continue;
    if (token.value === '') throw new UsageError(`--${token.name} is empty`);
    if (seen.has(token.name) && token.name !== 'manifests') throw new UsageError(`--${token.name} is given twice`);
    seen.add(token.name);
  }
  return parsed;
}

function read(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      allowPositionals: true,
      tokens: true,
      options: {
        manifests: { type: 'string', multiple: true },
        port: { type: 'string' },
        help: { type: 'boolean', short: 'h' },
        version: { type: 'boolean' },
      },
    });
  } catch (error) {
    const message = messageOf(error);
    const [, valueless] = /^Option '(--[\w-]+).*(?:ambiguous|missing)/.exec(message) ?? [];
    if (valueless !== undefined) throw new UsageError(`${valueless} has no value`);
    // The first sentence says it; the others teach how to begin a value with a dash.
    const [sentence = ''] = message.split(/\. |\.?\n/);
    throw new UsageError(sentence);
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

run(process.argv.slice(2)).catch((error: unknown) => {
  const isMistake = error instanceof UsageError;
  // On one line, and without what a terminal would obey.
  const message = messageOf(error).replaceAll(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]+/gu, ' ');
  process.stderr.write(`k8s-sa-auth-testing: ${message}${isMistake ? ' (npx @k8s-sa-auth/testing --help)' : ''}\n`);
  process.exitCode = isMistake ? 2 : 1;
});
