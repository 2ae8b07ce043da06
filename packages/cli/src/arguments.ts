// How a command line is read and how its help is written, both from one table of options. node:util's parser does the reading: it is typed and
// costs no dependency, and what commander and its like add to it (help, subcommands) is this file.

import { parseArgs } from 'node:util';

import { describeToken, withoutTokens } from '@k8s-sa-auth/core/diagnosis';

/** A mistake in the command line: it ends the process with 2. */
export class UsageError extends Error {}

/** One option of a command. */
export interface Option {
  readonly type: 'string' | 'boolean';
  /** May be given several times. */
  readonly multiple?: boolean;
  /** What its value may be; default: any text. */
  readonly choices?: readonly string[];
  /** What stands for its value in the help. */
  readonly value?: string;
  readonly help: string;
}

type Value<O extends Option> = O extends { readonly type: 'boolean' }
  ? boolean
  : O extends { readonly multiple: true }
    ? readonly string[]
    : O extends { readonly choices: readonly (infer Choice)[] }
      ? Choice
      : string;

/** What was given; absent where it was not. */
export type Values<Options extends Readonly<Record<string, Option>>> = { readonly [Name in keyof Options]?: Value<Options[Name]> };

/**
 * Reads what follows a command's name. Throws a UsageError on an option that is unknown, empty, unreadable, none of its choices, or given twice
 * where once is meant, and on a token, wherever it stands.
 */
export function readArguments<const Options extends Readonly<Record<string, Option>>>(
  args: readonly string[],
  options: Options,
): { readonly values: Values<Options>; readonly positionals: readonly string[] } {
  if (args.some((arg) => isToken(arg.slice(arg.indexOf('=') + 1)))) {
    throw new UsageError('a token does not belong on a command line, where every process can read it: name a file, or pipe it in');
  }
  const { values, positionals, tokens } = parse(args, options);
  const seen = new Set<string>();
  for (const token of tokens) {
    if (token.kind !== 'option') continue;
    if (token.value === '') throw new UsageError(`--${token.name} is empty`);
    // A terminal would obey it, or YAML take it for the end of a line.
    if (/[\p{Cc}\p{Cf}\p{Cs}]/u.test(token.value ?? '')) throw new UsageError(`--${token.name} holds a character that cannot be seen`);
    const { multiple = false, choices } = options[token.name] ?? {};
    if (choices !== undefined && !choices.includes(token.value ?? ''))
      throw new UsageError(`--${token.name} is ${choices.join(' or ')}, not "${token.value}"`);
    if (seen.has(token.name) && !multiple) throw new UsageError(`--${token.name} is given twice`);
    seen.add(token.name);
  }
  return { values: values as Values<Options>, positionals };
}

// Whole, or cut short.
function isToken(text: string): boolean {
  return describeToken(text) !== undefined || (withoutTokens(text) === '[token]' && /^.{22,}\..{20,}$/.test(text));
}

function parse(
  args: readonly string[],
  options: Readonly<Record<string, Option>>,
): ReturnType<typeof parseArgs<{ options: Record<string, Option>; allowPositionals: true; tokens: true }>> {
  try {
    return parseArgs({ args: [...args], options: { ...options }, allowPositionals: true, tokens: true });
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    const [, valueless] = /^Option '(?:-\w, )?(--[\w-]+).*(?:ambiguous|missing)/.exec(message) ?? [];
    if (valueless !== undefined) throw new UsageError(`${valueless} has no value`);
    // The first sentence says it; the others teach how to begin a value with a dash.
    const [sentence = ''] = message.split(/\. |\.?\n/);
    throw new UsageError(sentence);
  }
}

/** What core answers of options that stood on the command line: its TypeError becomes a UsageError. */
export async function ofCommandLine<Answer>(asked: Promise<Answer>): Promise<Answer> {
  try {
    return await asked;
  } catch (error) {
    throw error instanceof TypeError ? new UsageError(error.message) : error;
  }
}

/** Writes a command's help. `notes` stands between what it does and its options. */
export function formatHelp(usage: string, notes: string, options: Readonly<Record<string, Option>>): string {
  const rows = Object.entries(options).map(([name, { value, help }]) => [`--${name}${value === undefined ? '' : ` <${value}>`}`, help]);
  return `Usage: k8s-sa-auth ${usage}\n\n${notes.trim()}\n\n${formatTable([...rows, ['--help', 'print this']])}`;
}

const helpWidth = 100;

/** Two columns, indented; what does not fit goes on below itself. */
export function formatTable(rows: readonly (readonly string[])[]): string {
  const width = Math.max(...rows.map(([left = '']) => left.length));
  const indent = ' '.repeat(width + 4);
  return rows
    .map(([left = '', right = '']) => `  ${left.padEnd(width)}  ${wrap(right, helpWidth - indent.length).join(`\n${indent}`)}\n`)
    .join('');
}

function wrap(text: string, width: number): readonly string[] {
  const lines: string[] = [];
  for (const word of text.split(' ')) {
    const longer = `${lines.at(-1) ?? ''} ${word}`;
    if (lines.length > 0 && longer.length <= width) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}
