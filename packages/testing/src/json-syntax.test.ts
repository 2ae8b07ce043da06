import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { parseJson } from './json-syntax.ts';

describe('parseJson', () => {
  const refusal = (text: string): string => {
    try {
      parseJson(text);
    } catch (error) {
      return error instanceof Error ? error.message : '';
    }
    return 'no error';
  };

  it('finds a text that ends too early', () => {
    assert.deepEqual(
      ['', ' ', '{', '{"a', '{"a"', '{"a":', '{"a":1', '{"a":1,', '[1', '"\\', '"\\u00', 'tru', '-', '1.', '1e'].map(refusal),
      Array.from({ length: 15 }, () => 'unexpected end of JSON input'),
    );
  });

  it('tells in which place a character has none', () => {
    const said = (character: string, where: string): string => `invalid character ${character} ${where}`;
    assert.equal(refusal('hello'), said("'h'", 'looking for beginning of value'));
    assert.equal(refusal('{a:1}'), said("'a'", 'looking for beginning of object key string'));
    assert.equal(refusal('{"a":1,}'), said("'}'", 'looking for beginning of object key string'));
    assert.equal(refusal('{"a" 1}'), said("'1'", 'after object key'));
    assert.equal(refusal('{"a":1 "b":2}'), said("'\"'", 'after object key:value pair'));
    assert.equal(refusal('[1 2]'), said("'2'", 'after array element'));
    assert.equal(refusal('[1,]'), said("']'", 'looking for beginning of value'));
    assert.equal(refusal('{} {}'), said("'{'", 'after top-level value'));
    assert.equal(refusal('"a\nb"'), said("'\\n'", 'in string literal'));
    assert.equal(refusal('"\\x"'), said("'x'", 'in string escape code'));
    assert.equal(refusal('"\\u12g4"'), said("'g'", 'in \\u hexadecimal character escape'));
    assert.equal(refusal('-a'), said("'a'", 'in numeric literal'));
    assert.equal(refusal('1.a'), said("'a'", 'after decimal point in numeric literal'));
    assert.equal(refusal('1ea'), said("'a'", 'in exponent of numeric literal'));
    assert.equal(refusal('01'), said("'1'", 'after top-level value'));
    assert.equal(refusal('trae'), said("'a'", "in literal true (expecting 'u')"));
    assert.equal(refusal("'a'"), said("'\\''", 'looking for beginning of value'));
    assert.equal(refusal('\uFEFF{}'), said("'ï'", 'looking for beginning of value'));
  });

  it('names the keys that stand twice, and numbers that are not plainly whole', () => {
    const { value, duplicates, numbers } = parseJson('{"a":[{"b":1},{"b":1.0,"b":2e0}],"a\\u0020":{"c":98765432109876543210},"a":{"b":3}}');
    assert.deepEqual(value, { 'a ': { c: Number('98765432109876543210') }, a: { b: 3 } });
    assert.deepEqual(duplicates, ['a[1].b', 'a']);
    assert.deepEqual(Object.fromEntries(numbers), { 'a[1].b': '2e0', 'a .c': '98765432109876543210' });
  });
});
