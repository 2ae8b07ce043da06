import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import * as fc from 'fast-check';

import { createCaller, formatUsername, type Identity, packCaller, parseUsername, readAllow, unpackCaller } from './caller.ts';
import { cases } from './fixtures/cases.ts';

// RFC 1123 as Kubernetes applies it, said a second time and letter by letter.
const isAlphanumeric = (letter: string | undefined): boolean =>
  letter !== undefined && letter.length === 1 && 'abcdefghijklmnopqrstuvwxyz0123456789'.includes(letter);
const isLabel = (text: string): boolean =>
  isAlphanumeric(text.at(0)) && isAlphanumeric(text.at(-1)) && text.split('').every((letter) => letter === '-' || isAlphanumeric(letter));
const isNamespace = (text: string): boolean => text.length <= 63 && isLabel(text);
const isName = (text: string): boolean => text.length <= 253 && text.split('.').every(isLabel);

const letter = fc.constantFrom(...'abz019'.split(''));
const inside = fc.oneof(
  { weight: 6, arbitrary: letter },
  { weight: 1, arbitrary: fc.constantFrom('-', '.', '_', 'A', ':', '/', '*', ' ', '\n', '\0', 'ß', 'ſ', '١') },
);
const words = fc.oneof(
  { weight: 6, arbitrary: fc.array(inside, { maxLength: 8 }).map((letters) => letters.join('')) },
  { weight: 1, arbitrary: fc.tuple(letter, fc.integer({ min: 60, max: 66 })).map(([one, times]) => one.repeat(times)) },
  {
    weight: 1,
    arbitrary: fc
      .tuple(fc.constantFrom('a.', 'ab', '.a', 'a-'), fc.integer({ min: 120, max: 130 }))
      .map(([part, times]) => `${part.repeat(times)}a`),
  },
  { weight: 1, arbitrary: fc.string() },
  { weight: 1, arbitrary: fc.constantFrom('', '-', '.', 'a..b', 'constructor', '__proto__', 'kube-system', 'default\n') },
);
const namespaces = words.filter(isNamespace);
const names = words.filter(isName);
const identities = fc.record({ namespace: namespaces, name: names });

describe('parseUsername, whatever the username', () => {
  it('reads back what was formatted', () => {
    fc.assert(
      fc.property(identities, (identity) => {
        assert.deepEqual(parseUsername(formatUsername(identity)), { ...identity });
      }),
      cases(),
    );
  });

  it('takes exactly the names that RFC 1123 allows', () => {
    fc.assert(
      fc.property(words, words, (namespace, name) => {
        const parsed = parseUsername(`system:serviceaccount:${namespace}:${name}`);
        assert.deepEqual(parsed, isNamespace(namespace) && isName(name) ? { namespace, name } : undefined);
      }),
      cases(),
    );
  });

  it('takes nothing that it would not format so', () => {
    const prefixes = fc.constantFrom(
      'system:serviceaccount:',
      'system:serviceaccounts:',
      'System:serviceaccount:',
      'system:node:',
      ' system:serviceaccount:',
      '',
    );
    fc.assert(
      fc.property(prefixes, fc.array(words, { maxLength: 4 }), (prefix, parts) => {
        const username = prefix + parts.join(':');
        const parsed = parseUsername(username);
        if (parsed !== undefined) assert.equal(formatUsername(parsed), username);
      }),
      cases(),
    );
  });
});

type Pattern = string | { readonly namespace: string; readonly name?: string };

function matches(pattern: Pattern, { namespace, name }: Identity): boolean {
  const named = typeof pattern === 'string' ? pattern : `${pattern.namespace}/${pattern.name ?? '*'}`;
  return named === `${namespace}/${name}` || named === `${namespace}/*`;
}

// Few, so that patterns and callers meet.
const fewNamespaces = fc.constantFrom('api', 'ops', 'a', 'a-b', 'constructor');
const fewNames = fc.constantFrom('api', 'boss', 'a.b', 'a', 'constructor', 'b');
const patterns: fc.Arbitrary<Pattern> = fc.oneof(
  fc.tuple(fewNamespaces, fc.oneof(fewNames, fc.constant('*'))).map((parts) => parts.join('/')),
  fc.record({ namespace: fewNamespaces, name: fewNames }, { requiredKeys: ['namespace'] }),
);
const fewIdentities = fc.record({ namespace: fewNamespaces, name: fewNames });

describe('readAllow, whatever the patterns', () => {
  it('passes a caller that one of them names, and no other, before a review and after it', () => {
    fc.assert(
      fc.property(fc.array(patterns, { minLength: 1, maxLength: 5 }), fewIdentities, (allow, identity) => {
        const { isAllowed, mayBeAllowed } = readAllow(allow);
        const caller = createCaller(identity, { uid: 'u', groups: [], extra: {} }, ['secret-store'], Date.now());
        const expected = allow.some((pattern) => matches(pattern, identity));
        assert.equal(isAllowed(caller, { method: 'GET', route: undefined }), expected);
        assert.equal(mayBeAllowed(identity), expected);
      }),
      cases(),
    );
  });

  it('takes as a pattern in text exactly namespace/name and namespace/*', () => {
    const text = fc.oneof(
      fc.tuple(words, fc.oneof(words, fc.constant('*'))).map((parts) => parts.join('/')),
      words,
      fc.tuple(words, words, words).map((parts) => parts.join('/')),
    );
    fc.assert(
      fc.property(text, (pattern) => {
        const slash = pattern.indexOf('/');
        const [namespace, name] = [pattern.slice(0, Math.max(0, slash)), pattern.slice(slash + 1)];
        if (isNamespace(namespace) && (name === '*' || isName(name))) readAllow([pattern]);
        else assert.throws(() => readAllow([pattern]), TypeError);
      }),
      cases(),
    );
  });

  it('throws a TypeError on anything else, and on a list with anything else in it', () => {
    const isPattern = (value: unknown): boolean => {
      if (typeof value !== 'object' || value === null || Array.isArray(value)) return false;
      const { namespace, name, ...rest } = value as Readonly<Record<string, unknown>>;
      const isNamed = !Object.hasOwn(value, 'name') || (typeof name === 'string' && isName(name));
      return Object.keys(rest).length === 0 && typeof namespace === 'string' && isNamespace(namespace) && isNamed;
    };
    const odd = fc.oneof(
      fc.anything(),
      fc.record(
        { namespace: fc.oneof(words, fc.anything()), name: fc.oneof(words, fc.anything()), label: fc.anything() },
        { requiredKeys: [] },
      ),
    );
    fc.assert(
      fc.property(odd, fc.array(patterns, { maxLength: 2 }), (value, others) => {
        fc.pre(typeof value !== 'string' && !isPattern(value));
        assert.throws(() => readAllow([...others, value]), TypeError);
        if (typeof value !== 'function' && !Array.isArray(value)) assert.throws(() => readAllow(value), TypeError);
      }),
      cases(),
    );
  });
});

describe('packCaller', () => {
  const kubernetes = fc.constantFrom('credential-id', 'node-name', 'node-uid', 'pod-name', 'pod-uid', 'other');
  const keys = fc.oneof(
    kubernetes.map((key) => `authentication.kubernetes.io/${key}`),
    fc.constantFrom('__proto__', '', '0'),
    fc.string(),
  );
  const texts = fc.oneof(fc.constantFrom('', '0', 'null'), fc.string(), fc.string({ unit: 'binary' }));
  const extras = fc.dictionary(keys, fc.array(texts, { maxLength: 2 }), { maxKeys: 8 });
  const groups = fc.constantFrom<'usual' | 'more' | 'joined' | 'other'>('usual', 'more', 'joined', 'other');

  it('loses nothing of a caller', () => {
    fc.assert(
      fc.property(
        identities,
        texts,
        groups,
        fc.array(texts),
        extras,
        fc.nat({ max: 8.64e15 }),
        (identity, uid, kind, others, extra, ms) => {
          const usual = ['system:serviceaccounts', `system:serviceaccounts:${identity.namespace}`, 'system:authenticated'];
          const named = { usual, more: [...usual, ...others], joined: [usual.join()], other: others }[kind];
          const caller = createCaller(identity, { uid, groups: named, extra }, others, ms);
          const again = unpackCaller(packCaller(caller));
          assert.deepEqual(again, caller);
          assert.equal(again.expiresAt.getTime(), ms);
          assert.ok(Object.isFrozen(again) && Object.isFrozen(again.extra) && Object.isFrozen(again.groups));
        },
      ),
      cases(),
    );
  });
});
