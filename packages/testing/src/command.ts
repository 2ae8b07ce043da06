#!/usr/bin/env node
// The command: an authority as a process of its own, until a signal ends it.
import { parseArgs } from 'node:util';

const usage = `Usage: npx @k8s-sa-auth/testing serve [--manifests <path>]... [--port <number>]

Starts an authority on 127.0.0.1, prints the path of an administrator's kubeconfig, and runs until it is interrupted.

  --manifests <path>  a YAML file, a folder of them, or a path with *; may be given several times
  --port <number>     the port; any that is free without it
  --help              prints this
`;

/** A mistake in the command's arguments. */
class UsageError extends Error {}

async function run(args: readonly string[]): Promise<void> {
  const { values, positionals } = parse(args);
  if (values.help === true) {
    process.stdout.write(usage);
    return;
  }
  const [command, ...more] = positionals;
  if (command !== 'serve' || more.length > 0)
    throw new UsageError(command === undefined ? 'say "serve"' : `there is no "${positionals.join(' ')}"`);
  const port = Number(values.port ?? 0);
  if (!Number.isInteger(port) || port < 0 || port > 65_535) throw new UsageError(`"${values.port}" is no port`);
  // Loaded only now, as an older Node than it needs would not get so far as to say so.
  const { createAuthority } = await import('./authority.ts').catch((error: unknown) => {
    throw error instanceof SyntaxError
      ? new Error(`Node 22.19 or later is needed, and this is ${process.version} (${error.message})`)
      : error;
  });
  // Listened for before the start, so that nothing is left behind by a signal that comes during it.
  const ended = new Promise<void>((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => resolve());
  });
  const authority = await createAuthority({ port, ...(values.manifests === undefined ? {} : { manifests: values.manifests }) });
  process.stdout.write(`${authority.kubeconfig}\n`);
  process.stderr.write(`The authority listens on ${authority.url}, until it is interrupted.\n`);
  // During an outage there is no socket that would keep the process.
  const alive = setInterval(() => undefined, 3_600_000);
  await ended;
  clearInterval(alive);
  await authority.close();
}

function parse(args: readonly string[]): {
  readonly values: { readonly manifests?: string[]; readonly port?: string; readonly help?: boolean };
  readonly positionals: readonly string[];
} {
  try {
    return parseArgs({
      args: [...args],
      allowPositionals: true,
      options: { manifests: { type: 'string', multiple: true }, port: { type: 'string' }, help: { type: 'boolean', short: 'h' } },
    });
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
}

run(process.argv.slice(2)).catch((error: unknown) => {
  const message = error instanceof Error ? error.message : String(error);
  process.stderr.write(`${message.replaceAll('\n', ' ')}${error instanceof UsageError ? ' (--help tells how it is called)' : ''}\n`);
  process.exitCode = error instanceof UsageError ? 2 : 1;
});
