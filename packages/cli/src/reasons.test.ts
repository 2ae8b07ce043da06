import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';

import { adviseOn } from './reasons.ts';

describe('adviseOn', () => {
  it('has an answer to each reason that core documents', () => {
    const text = readFileSync(new URL('../../core/README.md', import.meta.url), 'utf8');
    const rows = text.split('\n').filter((line) => /^\| `[a-z]+_/.test(line));
    const reasons = [...rows.join('\n').matchAll(/`([a-z]+(?:_[a-z0-9]+)*)`/g)].flatMap(([, word = '']) => word);
    const others = new Set(['missing_token', 'invalid_token', 'caller_not_allowed', 'review_unavailable', 'detail', 'verification']);
    const missing = reasons.filter((reason) => !others.has(reason) && adviseOn(reason) === undefined);
    assert.ok(reasons.length > 30);
    assert.deepEqual(missing, []);
  });

  it('has none to what it does not know', () => {
    assert.equal(adviseOn('toString'), undefined);
    assert.equal(adviseOn('of_a_later_version'), undefined);
  });
});
