// The cluster that the soak's callers live in: it mints tokens, deletes what they are bound to, grants, rotates, fails; and tells the model of it.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import type { Authority, Fault, Pod } from '@k8s-sa-auth/testing';

import type { Key, Kind, Model, Token, Windows } from './soak-model.ts';
import { slowestMs } from './soak-model.ts';
import { readPart } from './soak-tokens.ts';

export type Random = () => number;

/** Numbers from 0 to 1 that are the same for the same seed (mulberry32). */
export function createRandom(seed: number): Random {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export interface Minted {
  readonly kind: Kind;
  readonly serviceAccount: string;
  readonly pod?: string;
  readonly audiences: readonly string[];
  /** Seconds that are left of its 600; below zero it has expired, and is taken for a minute more. */
  readonly secondsLeft?: number;
}

export interface Cluster extends Disposable {
  mint(minted: Minted): Promise<Token>;
  /** What is bound to it is refused from now on, or once the API server has forgotten it. */
  deletePod(serviceAccount: string, pod: string): Promise<void>;
  /** As if it had been deleted with 30 s of grace so long ago that its tokens end in `secondsLeft`, to the next second. */
  terminatePod(serviceAccount: string, pod: string, secondsLeft: number): Promise<void>;
  deleteServiceAccount(serviceAccount: string): Promise<void>;
  /** Lets a ServiceAccount read an order, or no longer. */
  toggleGrant(serviceAccount: string, order: string): Promise<void>;
  rotateSigningKey(retire: boolean): Promise<void>;
  rotateCa(): void;
  /** The guard's own token. */
  rotateOwnToken(): Promise<void>;
  /** One of the API server's troubles begins: an outage, or one that is chosen at random. */
  fail(isOutage: boolean, random: Random): { readonly what: string; readonly end: () => Promise<void> };
  /** One answer to one review of a token is lost in a way that asking again mends (C6): nobody may notice. */
  blip(random: Random): void;
}

const rbac = 'rbac.authorization.k8s.io/v1';
const json = { 'content-type': 'application/json' };
const review = (status: object, spec?: object): Fault => {
  const body = JSON.stringify({ kind: 'TokenReview', apiVersion: 'authentication.k8s.io/v1', metadata: {}, ...(spec && { spec }), status });
  return { status: 201, headers: json, body };
};
// All that a route may ask for: it is the rest that is wrong.
const audiencesOfAll = ['shop', 'vault'];
const user = { username: 'system:serviceaccount:fleet:another', uid: 'another', groups: [] };
const faultsOfTokens: readonly (readonly [string, Fault])[] = [
  ['forbidden', 'forbidden'],
  ['broken-body', 'broken-body'],
  ['500 to reviews', { status: 500, headers: json, body: '{"kind":"Status"}' }],
  ['503 to reviews', { status: 503, body: 'apiserver is shutting down' }],
  ['302 to reviews', { status: 302, headers: { location: '/elsewhere' }, body: '' }],
  ['200 and HTML to reviews', { status: 200, headers: { 'content-type': 'text/html' }, body: '<h1>Welcome</h1>' }],
  ['huge answers to reviews', { status: 201, headers: json, body: `{"kind":"TokenReview","padding":"${'x'.repeat(100_000)}"}` }],
  [
    'reviews that time out inside',
    review({ user: {}, error: '[invalid bearer token, Get "https://10.0.0.1": context deadline exceeded]' }),
  ],
  ['authenticated: "true"', review({ authenticated: 'true', user, audiences: audiencesOfAll })],
  ['reviews of another ServiceAccount', review({ authenticated: true, user, audiences: audiencesOfAll })],
  ['reviews of another token', review({ authenticated: true, user, audiences: audiencesOfAll }, { token: 'another' })],
  ['a refusal of another token', review({ user: {}, error: 'invalid bearer token' }, { token: 'another' })],
];
const faultsOfAll = ['reset', 'too-many-requests', 'unauthorized'] as const;
const retriedStatuses: readonly number[] = [500, 502, 503, 504];

export function createCluster(authority: Authority, own: Pod, model: Model, verification: Windows['verification']): Cluster {
  const keys = new Map<string, Key>();
  const nextFault = createFaults(verification);
  const directory = mkdtempSync(join(tmpdir(), 'k8s-soak-'));
  const granted = new Set<string>();
  let alive: Token[] = [];
  // When pods end that are terminating. They can be given tokens still, which end with them.
  const ending = new Map<string, number>();

  function bury(why: string, isMeant: (token: Token) => boolean, fromMs: number, byMs: number): void {
    const nowMs = Date.now();
    // Nobody uses it any more once it is refused by its claims.
    alive = alive.filter(({ expiresMs, gone }) => expiresMs + 60_000 > nowMs && (gone === undefined || gone.fromMs > nowMs));
    for (const token of alive) if (isMeant(token)) model.bury(token, why, fromMs, byMs);
  }

  // The authority does all at once: before a call returns its promise, it is done. So its clock can stand elsewhere for one call.
  function at<T>(offsetMs: number, call: () => T): T {
    authority.advance(offsetMs);
    try {
      return call();
    } finally {
      authority.advance(-offsetMs);
    }
  }

  return {
    async mint({ kind, serviceAccount, pod, audiences, secondsLeft = 600 }) {
      const mintedMs = Date.now();
      const options = { audience: audiences, ...(pod !== undefined && { pod }) };
      const text = await at((secondsLeft - 600) * 1000, () => authority.token(serviceAccount, options));
      const [header, claims] = text.split('.').map((part, index) => (index < 2 ? readPart(part) : {}));
      const id = String(header?.['kid']);
      const never = Number.POSITIVE_INFINITY;
      // The first key is loaded before the first request; of others the answers tell.
      const key = keys.get(id) ?? { madeMs: Date.now(), knownFromMs: keys.size === 0 ? 0 : never, retiredMs: never, next: undefined };
      keys.set(id, key);
      for (const other of keys.values()) if (other.retiredMs < never) other.next ??= key;
      const expiresMs = Number(claims?.['exp']) * 1000;
      const token = model.token({ kind, text, serviceAccount, pod: pod ?? '', audiences, key, mintedMs, expiresMs });
      alive.push(token);
      const endsMs = ending.get(`${serviceAccount} ${pod}`);
      if (endsMs !== undefined) model.bury(token, 'its pod was deleted with grace', endsMs, endsMs + 1);
      return token;
    },
    async deletePod(serviceAccount, pod) {
      const fromMs = Date.now();
      const [namespace] = serviceAccount.split('/');
      ending.delete(`${serviceAccount} ${pod}`);
      await authority.delete('pod', `${namespace}/${pod}`);
      bury('its pod was deleted', (token) => token.serviceAccount === serviceAccount && token.pod === pod, fromMs, Date.now() + 1);
    },
    async terminatePod(serviceAccount, pod, secondsLeft) {
      if (ending.has(`${serviceAccount} ${pod}`)) return;
      const [namespace] = serviceAccount.split('/');
      const graceMs = 30_000;
      const endsMs = Math.floor((Date.now() + secondsLeft * 1000) / 1000) * 1000;
      const deletedMs = endsMs - 60_000 - graceMs;
      await at(deletedMs - Date.now() + 500, () => authority.delete('pod', `${namespace}/${pod}`, { gracePeriodSeconds: graceMs / 1000 }));
      ending.set(`${serviceAccount} ${pod}`, endsMs);
      bury('its pod was deleted with grace', (token) => token.serviceAccount === serviceAccount && token.pod === pod, endsMs, endsMs + 1);
    },
    async deleteServiceAccount(serviceAccount) {
      const fromMs = Date.now();
      await authority.delete('serviceaccount', serviceAccount);
      bury('its ServiceAccount was deleted', (token) => token.serviceAccount === serviceAccount, fromMs, Date.now() + 1);
    },
    async toggleGrant(serviceAccount, order) {
      const [namespace, name] = serviceAccount.split('/');
      const grant = `${name}-reads-${order}`;
      const isGranted = !granted.has(grant);
      if (isGranted) granted.add(grant);
      else granted.delete(grant);
      const file = join(directory, 'grant.yaml');
      const role = { name: `reader-of-${order}`, namespace: 'shop' };
      const rules = [{ apiGroups: ['shop.example'], resources: ['orders'], verbs: ['get'], resourceNames: [order] }];
      const subjects = isGranted ? [{ kind: 'ServiceAccount', namespace, name }] : [];
      const roleRef = { apiGroup: 'rbac.authorization.k8s.io', kind: 'Role', name: role.name };
      const objects = [
        { kind: 'Namespace', apiVersion: 'v1', metadata: { name: 'shop' } },
        { kind: 'Role', apiVersion: rbac, metadata: role, rules },
        { kind: 'RoleBinding', apiVersion: rbac, metadata: { name: grant, namespace: 'shop' }, roleRef, subjects },
      ];
      writeFileSync(file, objects.map((object) => JSON.stringify(object)).join('\n---\n'));
      const fromMs = Date.now();
      await authority.apply(file);
      model.grant(serviceAccount, order, isGranted, fromMs, Date.now() + 1);
    },
    async rotateSigningKey(retire) {
      const fromMs = Date.now();
      authority.rotateSigningKey({ retire });
      if (retire) for (const key of keys.values()) key.retiredMs = Math.min(key.retiredMs, fromMs);
      // Its own token is as good as any other that the key signed.
      if (retire) await own.rotate();
      if (retire) bury('its signing key was retired', () => true, fromMs, Date.now() + 1);
    },
    rotateCa: () => authority.rotateCa(),
    rotateOwnToken: () => own.rotate(),
    fail(isOutage, random) {
      const { what, isHard = true, strikes = 'cluster', fault, delayMs } = isOutage ? outage : nextFault(random);
      const fromMs = Date.now();
      authority.fail(fault, delayMs === undefined ? {} : { delayMs });
      const trouble = model.trouble({ what, isHard, strikes, fromMs, sureFromMs: Date.now() + 1 });
      return {
        what,
        async end() {
          const sureUntilMs = Date.now() - 1;
          await authority.recover();
          model.over(trouble, sureUntilMs, Date.now() + 1);
        },
      };
    },
    blip: (random) =>
      void authority.fail({ status: retriedStatuses[Math.floor(random() * retriedStatuses.length)] ?? 500, body: 'once' }, { times: 1 }),
    [Symbol.dispose]: () => rmSync(directory, { recursive: true }),
  };
}

interface ChosenFault {
  readonly what: string;
  /** Default: nothing gets through. */
  readonly isHard?: boolean;
  /** Default: whatever is asked. */
  readonly strikes?: 'tokens';
  readonly fault: Fault;
  readonly delayMs?: number;
}

const outage: ChosenFault = { what: 'outage', fault: 'outage' };

// Each once before one comes again. By signature nobody asks for a review of a token.
function createFaults(verification: Windows['verification']): (random: Random) => ChosenFault {
  let left: ChosenFault[] = [];
  return (random) => {
    if (left.length === 0) {
      left = [
        { what: 'slow', isHard: false, fault: 'slow', delayMs: 50 + random() * 1_500 },
        { what: 'slower than a review may take', isHard: false, fault: 'slow', delayMs: 3_200 + random() * (slowestMs - 3_200) },
        ...faultsOfAll.map((fault) => ({ what: fault, fault })),
        ...(verification === 'signature' ? [] : faultsOfTokens.map(([what, fault]) => ({ what, fault, strikes: 'tokens' as const }))),
      ];
    }
    return left.splice(Math.floor(random() * left.length), 1)[0] ?? outage;
  };
}
