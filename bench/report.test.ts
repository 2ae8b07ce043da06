import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { figureOf, figures, median, meets, quantile } from './figures.ts';
import { fill, formatBar, formatTable, formatValue, readCosts, readPage, readResults, report } from './report.ts';

describe('report', () => {
  const made = report(readResults(), readCosts(), readPage);

  it('is what the README says', () => {
    assert.equal(readPage('README.md'), made['README.md']);
  });

  it('is what the manual says', () => {
    assert.equal(readPage('docs/performance.md'), made['docs/performance.md']);
  });

  it('is what the charts show', () => {
    assert.equal(readPage('docs/performance.svg'), made['docs/performance.svg']);
    assert.equal(readPage('docs/scale.svg'), made['docs/scale.svg']);
  });

  it('leaves no figure out', () => {
    const { figures: measured } = readResults();
    assert.deepEqual(measured.map(({ name }) => name).toSorted(), Object.keys(figures).toSorted());
  });

  it('judges each figure by the bar of today', () => {
    for (const { name, value, bar, isMet } of readResults().figures) {
      assert.deepEqual(bar, figures[name].bar, name);
      assert.equal(isMet, meets(value, bar), name);
    }
  });
});

describe('fill', () => {
  it('replaces what stands between its markers, and nothing else', () => {
    const page = 'a\n<!-- x: made by pnpm bench:report -->\nold\n<!-- /x -->\nb';
    assert.equal(fill(page, { x: 'new' }), 'a\n<!-- x: made by pnpm bench:report -->\n\nnew\n\n<!-- /x -->\nb');
  });

  it('refuses a page without its markers', () => {
    assert.throws(() => fill('a', { x: 'new' }), /no place for it/);
  });
});

describe('figureOf', () => {
  it('takes the median of the rounds, and keeps them all', () => {
    const figure = figureOf('hot.koa', [0.9, 1.1, 0.97]);
    assert.equal(figure.value, 0.97);
    assert.deepEqual(figure.ratios, [0.9, 1.1, 0.97]);
    assert.equal(figure.isMet, true);
  });

  it('is below a bar that it misses by little', () => {
    assert.equal(figureOf('hot.koa', [0.949_99]).isMet, false);
    assert.equal(figureOf('cache.bytes', [600.4]).isMet, false);
  });

  it('calls the rounds of what is no ratio samples', () => {
    assert.deepEqual(figureOf('import.ms', [31, 29, 30]).samples, [31, 29, 30]);
  });
});

describe('quantile', () => {
  it('is the value that so many of the numbers do not exceed', () => {
    assert.equal(median([3, 1, 2]), 2);
    assert.equal(quantile([1, 2, 3, 4], 0.99), 4);
    assert.equal(quantile([], 0.5), Number.NaN);
  });
});

describe('formatTable', () => {
  it('pads each column to its widest cell', () => {
    assert.equal(
      formatTable([
        ['a', 'value'],
        ['long', '1'],
      ]),
      '| a    | value |\n| ---- | ----- |\n| long | 1     |',
    );
  });
});

describe('formatValue', () => {
  it('does not round a ratio up to its bar', () => {
    assert.equal(formatValue({ value: 0.9497, unit: '×' }), '0.949');
    assert.equal(formatValue({ value: 14.99, unit: '×' }), '14.9');
  });

  it('groups thousands, and names the unit', () => {
    assert.equal(formatValue({ value: 2284.4, unit: 'B' }), '2 284 B');
    assert.equal(formatBar({ most: 600 }, 'B'), '≤ 600 B');
    assert.equal(formatBar({ least: 0.95 }, '×'), '≥ 0.95');
  });
});
