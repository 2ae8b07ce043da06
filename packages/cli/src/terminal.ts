// What may be shown to a person, and how: marks, colours where they are wanted, moments, and never a token.

import { styleText } from 'node:util';

import { withoutTokens } from '@k8s-sa-auth/core/diagnosis';

/** Where a command writes. */
export interface Terminal {
  /** One line. Whatever it holds, no token and nothing that a terminal would obey gets out. */
  line(text?: string): void;
  /** One line that begins with a coloured mark. */
  marked(mark: Mark, text: string): void;
  /** Lines as they are, but for what a terminal would obey: help, and YAML of what was named. */
  text(text: string): void;
  json(value: object): void;
}

/** How a check came out. */
export type Mark = 'ok' | 'warning' | 'wrong' | 'skipped';

const marks = {
  ok: ['green', '✓'],
  warning: ['yellow', '!'],
  wrong: ['red', '✗'],
  skipped: ['dim', '–'],
} as const;

/** Writes to a stream; in colour if that is a terminal and `NO_COLOR` is not set. */
export function createTerminal(stream: NodeJS.WriteStream): Terminal {
  return {
    line: (text = '') => void stream.write(`${plain(text)}\n`),
    marked(mark, text) {
      const [colour, sign] = marks[mark];
      stream.write(`${styleText(colour, sign, { stream })} ${plain(text)}\n`);
    },
    text: (text) => void stream.write(text.split('\n').map(withoutUnseen).join('\n')),
    json(value) {
      // In ASCII, so that nothing in it is obeyed by a terminal either.
      const text = JSON.stringify(
        value,
        (_key, inner: unknown) => (typeof inner === 'string' ? withoutTokens(inner) : inner),
        2,
      ).replaceAll(/[\u007F-\uFFFF]/g, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`);
      stream.write(`${text}\n`);
    },
  };
}

/** The text on one line, without tokens, and without what a terminal would obey or a reader would not see. */
export function plain(text: string): string {
  return withoutUnseen(withoutTokens(text));
}

const withoutUnseen = (text: string): string => text.replaceAll(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]+/gu, ' ');

const relative = new Intl.RelativeTimeFormat('en', { numeric: 'always' });
const units = [
  ['day', 86_400_000],
  ['hour', 3_600_000],
  ['minute', 60_000],
  ['second', 1_000],
] as const;

/** `in 7 minutes`, `20 seconds ago`. */
export function fromNow(date: Date, nowMs: number): string {
  const ms = date.getTime() - nowMs;
  if (Math.abs(ms) < 1_000) return 'now';
  const [unit, size] = units.find(([, least]) => Math.abs(ms) >= 2 * least) ?? units[3];
  return relative.format(Math.trunc(ms / size), unit);
}

/** `2026-11-23T07:50:00Z, in 7 minutes`. */
export function moment(date: Date, nowMs: number): string {
  return `${date.toISOString().replace(/\.\d+Z$/, 'Z')}, ${fromNow(date, nowMs)}`;
}
