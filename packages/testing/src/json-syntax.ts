// The only place that knows how Go reads JSON: where and in which words it finds a text broken, and what a parser takes without a word,
// keys that stand twice and numbers that are no whole ones.

import { isRecord } from './json.ts';
import type { JsonRecord } from './json.ts';

/** A text that was parsed. */
export interface ParsedJson {
  readonly value: unknown;
  /** The paths of keys that stand more than once in an object, of which the last counts: `spec.containers[0].name`. */
  readonly duplicates: readonly string[];
  /** How numbers are written that are not plainly whole, by their paths: `600.0`, `1e3`, or more digits than a double has. */
  readonly numbers: ReadonlyMap<string, string>;
}

/** A text that is no JSON; its message is Go's. */
export class JsonSyntaxError extends Error {
  override readonly name: string = 'JsonSyntaxError';
}

interface Frame {
  readonly keys: Set<string> | undefined;
  key: string;
  index: number;
}

/** Parses JSON. Throws a {@link JsonSyntaxError}. */
export function parseJson(text: string): ParsedJson {
  const duplicates: string[] = [];
  const numbers = new Map<string, string>();
  const frames: Frame[] = [];
  let at = 0;

  const pathTo = (last: string): string => {
    const steps = frames.map(({ keys, key, index }) => (keys === undefined ? `[${index}]` : `.${key}`));
    return [...steps.slice(0, -1), last].join('').replace(/^\./, '');
  };
  const fail = (context: string): JsonSyntaxError => {
    if (at >= text.length) return new JsonSyntaxError('unexpected end of JSON input');
    return new JsonSyntaxError(`invalid character ${quote(text.charAt(at))} ${context}`);
  };
  const skipSpace = (): void => {
    while (' \t\r\n'.includes(text.charAt(at)) && at < text.length) at += 1;
  };
  const isDigit = (): boolean => /^\d$/.test(text.charAt(at));
  const skipDigits = (context: string): void => {
    if (!isDigit()) throw fail(context);
    while (isDigit()) at += 1;
  };

  function readString(): string {
    const start = at;
    at += 1;
    for (;;) {
      const character = text.charAt(at);
      if (character === '"') break;
      if (character === '\\') readEscape();
      else if (character < ' ') throw fail('in string literal');
      else at += 1;
    }
    at += 1;
    const value: string = JSON.parse(text.slice(start, at));
    return value.toWellFormed();
  }

  function readEscape(): void {
    at += 1;
    const isUnicode = text.charAt(at) === 'u';
    if (!isUnicode && !(at < text.length && 'bfnrt\\/"'.includes(text.charAt(at)))) throw fail('in string escape code');
    at += 1;
    for (const end = at + 4; isUnicode && at < end; at += 1) {
      if (!/^[\da-f]$/i.test(text.charAt(at))) throw fail('in \\u hexadecimal character escape');
    }
  }

  function readNumber(): number {
    const start = at;
    if (text.charAt(at) === '-') at += 1;
    if (text.charAt(at) === '0') at += 1;
    else skipDigits('in numeric literal');
    const whole = at;
    if (text.charAt(at) === '.') {
      at += 1;
      skipDigits('after decimal point in numeric literal');
    }
    if (/^e$/i.test(text.charAt(at))) {
      at += 1;
      if (/^[+-]$/.test(text.charAt(at))) at += 1;
      skipDigits('in exponent of numeric literal');
    }
    const literal = text.slice(start, at);
    const isPlain = at === whole && Number.isSafeInteger(Number(literal));
    const frame = frames.at(-1);
    if (!isPlain && frame !== undefined) numbers.set(pathTo(frame.keys === undefined ? `[${frame.index}]` : `.${frame.key}`), literal);
    return Number(literal);
  }

  function readLiteral<Value>(literal: string, value: Value): Value {
    at += 1;
    for (const character of literal.slice(1)) {
      if (text.charAt(at) !== character) throw fail(`in literal ${literal} (expecting ${quote(character)})`);
      at += 1;
    }
    return value;
  }

  function readValue(): unknown {
    skipSpace();
    const first = text.charAt(at);
    if (first === '{') return readObject();
    if (first === '[') return readArray();
    if (first === '"') return readString();
    if (first === 't') return readLiteral('true', true);
    if (first === 'f') return readLiteral('false', false);
    if (first === 'n') return readLiteral('null', null);
    if (first === '-' || isDigit()) return readNumber();
    throw fail('looking for beginning of value');
  }

  function readObject(): JsonRecord {
    const entries = new Map<string, unknown>();
    const keys = new Set<string>();
    const frame: Frame = { keys, key: '', index: 0 };
    frames.push(frame);
    at += 1;
    skipSpace();
    if (text.charAt(at) !== '}') {
      for (;;) {
        skipSpace();
        if (text.charAt(at) !== '"') throw fail('looking for beginning of object key string');
        frame.key = readString();
        if (keys.has(frame.key)) duplicates.push(pathTo(`.${frame.key}`));
        keys.add(frame.key);
        skipSpace();
        if (text.charAt(at) !== ':') throw fail('after object key');
        at += 1;
        entries.set(frame.key, combine(entries.get(frame.key), readValue()));
        skipSpace();
        if (text.charAt(at) === '}') break;
        if (text.charAt(at) !== ',') throw fail('after object key:value pair');
        at += 1;
      }
    }
    at += 1;
    frames.pop();
    return Object.fromEntries(entries);
  }

  function readArray(): readonly unknown[] {
    const values: unknown[] = [];
    const frame: Frame = { keys: undefined, key: '', index: 0 };
    frames.push(frame);
    at += 1;
    skipSpace();
    if (text.charAt(at) !== ']') {
      for (;;) {
        values.push(readValue());
        skipSpace();
        if (text.charAt(at) === ']') break;
        if (text.charAt(at) !== ',') throw fail('after array element');
        at += 1;
        frame.index += 1;
      }
    }
    at += 1;
    frames.pop();
    return values;
  }

  const value = readValue();
  skipSpace();
  if (at < text.length) throw fail('after top-level value');
  return { value, duplicates, numbers };
}

// A key that stands twice is read twice into the same place: what it held stays, unless it is said again.
function combine(before: unknown, after: unknown): unknown {
  if (!isRecord(before) || !isRecord(after)) return after;
  const entries = Object.entries(after).map(([key, value]) => [key, combine(before[key], value)]);
  return { ...before, ...Object.fromEntries(entries) };
}

// Go looks at bytes: of a character that has several, it shows the first as if it were one.
function quote(character: string): string {
  const [byte = 0] = Buffer.from(character);
  if (character === "'") return "'\\''";
  if (character === '"') return `'"'`;
  return `'${JSON.stringify(String.fromCharCode(byte)).slice(1, -1)}'`;
}
