import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import * as fc from 'fast-check';

import { type IncomingRequest, takeCredential, type TokenHeader } from './credential.ts';
import { cases } from './fixtures/cases.ts';

type Line = readonly [name: string, value: string];

const anyCase = (name: string): fc.Arbitrary<string> =>
  fc.array(fc.boolean(), { minLength: name.length, maxLength: name.length }).map((upper) =>
    name
      .split('')
      .map((letter, at) => (upper[at] ? letter.toUpperCase() : letter))
      .join(''),
  );

const tokenHeaders = fc.constantFrom<TokenHeader>('x-client-id', 'authorization');
const names = fc.oneof(
  { weight: 3, arbitrary: anyCase('x-client-id') },
  { weight: 3, arbitrary: anyCase('authorization') },
  fc.constantFrom('Host', 'Cookie', 'X-Client-Id ', 'X_Client_Id', 'x-client-ıd', 'Proxy-Authorization', 'X-Client-Id2', '__proto__', ''),
  fc.string(),
);
const values = fc.oneof(
  fc.constantFrom(
    '',
    'a.b.c',
    'Bearer a.b.c',
    'bEARER a.b.c',
    'Bearer',
    'Bearer ',
    'Bearer\ta.b.c',
    'Bearer  a',
    'Basic YTpi',
    ' ',
    'a, b',
  ),
  fc.string(),
  fc.string({ unit: 'binary' }),
);
const lines: fc.Arbitrary<Line[]> = fc.array(fc.tuple(names, values), { maxLength: 12 });

const isNamed =
  (header: TokenHeader) =>
  ([name]: Line): boolean =>
    name.toLowerCase() === header;

// As Node reads them: the first Authorization counts, others are joined.
function requestWith(
  sent: readonly Line[],
): Required<Omit<IncomingRequest, 'httpVersionMajor' | 'socket' | 'stream' | 'url' | 'originalUrl'>> {
  const headers: Record<string, string> = {};
  const headersDistinct: Record<string, string[]> = {};
  for (const [name, value] of sent) {
    const key = name.toLowerCase();
    const before = Object.hasOwn(headers, key) ? headers[key] : undefined;
    const joined = before === undefined ? value : key === 'authorization' ? before : `${before}, ${value}`;
    Object.defineProperty(headers, key, { value: joined, enumerable: true, configurable: true, writable: true });
    const all = [...((Object.hasOwn(headersDistinct, key) ? headersDistinct[key] : undefined) ?? []), value];
    Object.defineProperty(headersDistinct, key, { value: all, enumerable: true, configurable: true, writable: true });
  }
  return { method: 'GET', headers, rawHeaders: sent.flat(), headersDistinct };
}

describe('takeCredential, whatever the headers', () => {
  it('returns a token only where its header stands once, and then the whole of it', () => {
    fc.assert(
      fc.property(lines, tokenHeaders, (sent, header) => {
        const credential = takeCredential(requestWith(sent), header, false);
        const [first, ...more] = sent.filter(isNamed(header));
        const value = first?.[1] ?? '';
        if ('token' in credential) {
          assert.equal(more.length, 0);
          assert.notEqual(credential.token, '');
          assert.ok(header === 'x-client-id' ? credential.token === value : /^bearer $/i.test(value.slice(0, 7)));
          assert.ok(value.endsWith(credential.token));
          return;
        }
        const isWithout = value === '' || (header === 'authorization' && !/^bearer[ \t]./is.test(value));
        assert.equal(credential.code, more.length === 0 && isWithout ? 'missing_token' : 'invalid_token');
        if (header === 'x-client-id' && value !== '') assert.ok(more.length > 0);
      }),
      cases(),
    );
  });

  it('takes its header off everywhere, and leaves all others as they were and in order', () => {
    fc.assert(
      fc.property(lines, tokenHeaders, (sent, header) => {
        const request = requestWith(sent);
        const others = sent.filter((line) => !isNamed(header)(line));
        const expected = requestWith(others);
        takeCredential(request, header, false);
        assert.deepEqual(request.rawHeaders, expected.rawHeaders);
        assert.deepEqual(request.headers, expected.headers);
        assert.deepEqual(request.headersDistinct, expected.headersDistinct);
      }),
      cases(),
    );
  });

  it('leaves everything where it is told to', () => {
    fc.assert(
      fc.property(lines, tokenHeaders, (sent, header) => {
        const request = requestWith(sent);
        takeCredential(request, header, true);
        assert.deepEqual(request, requestWith(sent));
      }),
      cases(),
    );
  });

  it('says the same again, whether or not the header is still there, and for each header on its own', () => {
    fc.assert(
      fc.property(lines, fc.array(fc.tuple(tokenHeaders, fc.boolean()), { minLength: 1, maxLength: 5 }), (sent, takes) => {
        const request = requestWith(sent);
        for (const [header, leave] of takes) {
          assert.deepEqual(takeCredential(request, header, leave), takeCredential(requestWith(sent), header, true));
        }
      }),
      cases(),
    );
  });
});
