#!/usr/bin/env node
// The command: which of them runs, how it ends, and what a mistake looks like.

import { readFileSync } from 'node:fs';

import { formatTable, UsageError } from './arguments.ts';
import { doctor } from './doctor.ts';
import { inspect } from './inspect.ts';
import { manifests } from './manifests.ts';
import { createTerminal, plain, type Terminal } from './terminal.ts';
import { inFlags } from './which-cluster.ts';

/** One command. */
export interface Command {
  /** What it does, in half a line. */
  readonly summary: string;
  readonly help: string;
  /** Resolves to the exit code. Rejects with a UsageError where the command line is wrong; any other error is what it met. */
  run(args: readonly string[], terminal: Terminal): Promise<number>;
}

const commands: ReadonlyMap<string, Command> = new Map(Object.entries({ doctor, inspect, manifests }));

const usage = `Usage: k8s-sa-auth <command> [options]

Finds out why services that identify themselves by ServiceAccount tokens cannot call each other.

${formatTable([...commands].map(([name, { summary }]) => [name, summary]))}
  k8s-sa-auth <command> --help   tells more
  k8s-sa-auth --version

Ends with 0 where all is good, with 1 where something is wrong, with 2 on a mistake in the command
line.
`;

async function run([name, ...args]: readonly string[], terminal: Terminal): Promise<number> {
  if (name === '--help' || name === '-h' || name === 'help') {
    const [about] = args;
    terminal.text(about === undefined ? usage : find(about).help);
    return 0;
  }
  if (name === '--version') {
    const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as { readonly version: string };
    terminal.line(version);
    return 0;
  }
  const command = find(name);
  if (args.includes('--help') || args.includes('-h')) {
    terminal.text(command.help);
    return 0;
  }
  return command.run(args, terminal);
}

function find(name: string | undefined): Command {
  const command = name === undefined ? undefined : commands.get(name);
  if (command !== undefined) return command;
  const known = [...commands.keys()].join(', ');
  throw new UsageError(name === undefined ? `say which: ${known}` : `there is no ${JSON.stringify(name)}, only ${known}`);
}

// A reader that has seen enough ends us as it ends others: 128 + SIGPIPE.
for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 141 : 1));
}

const args = process.argv.slice(2);
const code = await run(args, createTerminal(process.stdout)).catch((error: unknown) => {
  const isMistake = error instanceof UsageError;
  const message = error instanceof Error ? error.message : String(error);
  const [name = ''] = args;
  const hint = isMistake ? ` (k8s-sa-auth ${commands.has(name) ? `${name} ` : ''}--help)` : '';
  process.stderr.write(`k8s-sa-auth: ${plain(inFlags(message))}${hint}\n`);
  return isMistake ? 2 : 1;
});
// Whatever is still under way when time was up, such as a program that a kubeconfig runs, must not hold us. All that was written goes out first.
process.stdout.write('', () => process.exit(code));
