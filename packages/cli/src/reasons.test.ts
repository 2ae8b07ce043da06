import assert from 'node:assert/strict';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { describe, it } from 'node:test';

import { adviseOn } from './reasons.ts';

// What core's README lists: the code of each reason. What stands in brackets is about the one before.
const readme = readFileSync(new URL('../../core/README.md', import.meta.url), 'utf8');
const documented = [...readme.matchAll(/^\| `([a-z]+_[a-z_]+)` +\| (.*) \|$/gm)].flatMap(([, code = '', listed = '']) => {
  const reasons = listed.replaceAll(/\([^)]*\)/g, '').matchAll(/`([a-z_]+)`/g);
  return [...reasons].map(([, reason = '']) => ({ code, reason }));
});

const core = new URL('../../core/src/', import.meta.url);
const source = readdirSync(core)
  .filter((name) => /(?<!\.test)\.ts$/.test(name))
  .map((name) => readFileSync(new URL(name, core), 'utf8'))
  .join('\n');
const wordsBy = (pattern: RegExp): string[] => [...source.matchAll(pattern)].flatMap((match) => match.slice(1).filter((word) => word));

/** Every reason that stands in core's source: what is named as one, and whatever else is written like one and is nothing else. */
function reasonsInSource(): readonly string[] {
  const named = [
    ...wordsBy(/\breason: (?:[^,}\n]*\? )?'([a-z_]+)'(?: : '([a-z_]+)')?/g),
    ...wordsBy(/\bApiServerError\(\s*'([a-z_]+)'/g),
    ...wordsBy(/^ {2}\d{3}: '([a-z_]+)'/gm),
  ];
  const others = new Set([
    ...documented.map(({ code }) => code),
    ...wordsBy(/\blog\.warn\(\s*'([a-z_]+)'/g),
    ...wordsBy(/\bwarnOnce\('([a-z_]+)'/g),
    ...wordsBy(/^export type TokenFileCode = '(\w+)' \| '(\w+)' \| '(\w+)'/gm),
    // RFC 6750 §3.1
    'insufficient_scope',
  ]);
  const likeOne = wordsBy(/'([a-z]+(?:_[a-z]+)+)'/g).filter((word) => !others.has(word));
  return [...new Set([...named, ...likeOne])].toSorted();
}

describe('core’s README', () => {
  it('lists every reason that core can give, and no other', () => {
    const listed = [...new Set(documented.map(({ reason }) => reason))].filter(
      (reason) => reason !== 'detail' && reason !== 'verification',
    );
    assert.ok(listed.length > 40);
    assert.deepEqual(listed.toSorted(), reasonsInSource());
  });
});

describe('adviseOn', () => {
  it('has an answer to each reason that core documents', () => {
    const missing = documented.filter(({ reason }) => adviseOn(reason) === undefined);
    assert.deepEqual(missing, []);
  });

  it('has none to what it does not know', () => {
    assert.equal(adviseOn('toString'), undefined);
    assert.equal(adviseOn('of_a_later_version'), undefined);
  });
});

describe('docs/observing.md', () => {
  it('says of each reason what adviseOn says', () => {
    const rows = documented.map(({ code, reason }) => [`\`${reason}\``, `\`${code}\``, adviseOn(reason) ?? assert.fail(reason)]);
    const file = new URL('../../../docs/observing.md', import.meta.url);
    const text = readFileSync(file, 'utf8');
    const table = formatTable([['`reason`', '`code`', 'what it is, and what to do'], ...rows]);
    const written = text.replace(/(?<=^<!-- reasons: .*\n\n)[^]*?(?=^<!-- \/reasons -->$)/m, () => `${table}\n`);
    assert.ok(written.includes(table), 'observing.md has no place for the table');
    if (process.env['UPDATE_DOCS'] === '1') writeFileSync(file, written);
    else assert.equal(text, written, 'the table of reasons is another one now: look at it, then run this with UPDATE_DOCS=1');
  });
});

// As oxfmt writes a table.
function formatTable([head = [], ...body]: readonly (readonly string[])[]): string {
  const widths = head.map((cell, column) => Math.max(cell.length, ...body.map((line) => line[column]?.length ?? 0)));
  const format = (line: readonly string[]): string => `| ${line.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join(' | ')} |\n`;
  return [format(head), format(widths.map((width) => '-'.repeat(width))), ...body.map(format)].join('');
}
