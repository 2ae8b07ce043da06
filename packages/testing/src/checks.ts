// The only place that says what is wrong with what a test was written with: an option that is misspelt, or of another type, would count for
// nothing.
import { inspect } from 'node:util';
import { isRecord } from './json.ts';

/** What a value has to be. */
export interface Check<Value> {
  /** In words, to stand behind "must be". */
  readonly words: string;
  readonly accepts: (value: unknown) => value is Value;
  /** Whether an option may not be left out. Default false. */
  readonly isRequired?: boolean;
}

/** What each of some options has to be. */
export type Checks<Options> = { readonly [Name in keyof Options]-?: Check<Exclude<Options[Name], undefined>> };

/** Makes a check of a value that the type alone does not describe. */
export function check<Value>(words: string, accepts: (value: unknown) => boolean): Check<Value> {
  return { words, accepts: accepts as (value: unknown) => value is Value };
}

/** The same, of an option that may not be left out. */
export function required<Value>(one: Check<Value>): Check<Value> {
  return { ...one, isRequired: true };
}

const isText = (value: unknown): value is string => typeof value === 'string';
const isName = (value: unknown): value is string => isText(value) && value !== '';

export const aText: Check<string> = check('a string', isText);
export const aName: Check<string> = check('a name', isName);
export const nameList: Check<readonly string[]> = check('a list of names', (value) => Array.isArray(value) && value.every(isName));
export const flag: Check<boolean> = check('true or false', (value) => typeof value === 'boolean');
export const textRecord: Check<Readonly<Record<string, string>>> = check(
  'an object whose values are strings',
  (value) => isRecord(value) && Object.values(value).every(isText),
);
export const milliseconds: Check<number> = check('a number of milliseconds', Number.isFinite);

/** What a timer can wait. */
export const delay: Check<number> = check(
  'a number of milliseconds from 0 to 2 ** 31 - 1',
  (value) => typeof value === 'number' && value >= 0 && value < 2 ** 31,
);

/** A whole number between two. */
export function wholeNumber(least: number, most: number = Number.MAX_SAFE_INTEGER): Check<number> {
  const limits = most === Number.MAX_SAFE_INTEGER ? `not below ${least}` : `from ${least} to ${most}`;
  return check(`a whole number ${limits}`, (value) => Number.isInteger(value) && Number(value) >= least && Number(value) <= most);
}

/** One of these words. */
export function oneOf<Word extends string>(...words: readonly Word[]): Check<Word> {
  return check(`one of ${words.join(', ')}`, (value) => words.some((word) => word === value));
}

/** Throws a TypeError on a value that is not what it has to be. */
export function checkValue(what: string, value: unknown, { words, accepts }: Check<unknown>): void {
  if (!accepts(value)) throw new TypeError(`"${what}" must be ${words}, not ${show(value)}`);
}

/** Reads options. Throws a TypeError on one that is not known, is of a wrong type, or is missing; `where` says who was called. */
export function readOptions<Options extends object>(where: string, options: unknown, checks: Checks<Options>): Options {
  const known = Object.keys(checks).join(', ') || 'nothing';
  if (!isRecord(options)) throw new TypeError(`${where} takes an object with ${known}, not ${show(options)}`);
  const unknown = Object.keys(options).find((one) => !Object.hasOwn(checks, one));
  if (unknown !== undefined) throw new TypeError(`${where} does not know ${JSON.stringify(unknown)}. It knows ${known}`);
  for (const [one, its] of Object.entries<Check<unknown>>(checks)) {
    const value = options[one];
    if (value !== undefined) checkValue(one, value, its);
    else if (its.isRequired === true) throw new TypeError(`${where} needs "${one}": ${its.words}`);
  }
  return options as Options;
}

function show(value: unknown): string {
  return inspect(value, { depth: 1, breakLength: Number.POSITIVE_INFINITY });
}
