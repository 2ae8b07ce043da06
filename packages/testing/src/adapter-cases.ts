// What every adapter must do, whatever its framework: one suite of cases over real sockets, against the authority.
import assert from 'node:assert/strict';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { Agent } from 'node:http';
import type { IncomingHttpHeaders, IncomingMessage } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, it, mock } from 'node:test';
import { createAuthority } from './authority.ts';
import type { Authority } from './authority.ts';
import { aName, check, flag, readOptions } from './checks.ts';
import type { Checks } from './checks.ts';
import { parseToken } from './signing.ts';
import { converse, formatRequest, send } from './wire.ts';
import type { Answer, HeaderLine, Outgoing } from './wire.ts';

/** Who may call: a list of `'namespace/name'` and `'namespace/*'`, or a predicate. */
export type AdapterAllow =
  | readonly string[]
  | ((caller: { readonly serviceAccount: string }, request: { readonly method: string }) => boolean | Promise<boolean>);

/** What a route asks the cluster about its caller. */
export interface AdapterAuthorize {
  readonly verb: string;
  readonly group: string;
  readonly resource: string;
  readonly namespace: string;
  readonly name: (request: { readonly params: Readonly<Record<string, string | undefined>> }) => string | undefined;
}

/** What the app's guard is made with. Hand it to the adapter as it is. */
export interface AdapterGuardOptions {
  readonly audience: string;
  readonly allow: AdapterAllow;
  readonly header: 'x-client-id' | 'authorization';
  readonly mode?: 'enforce' | 'observe';
  readonly forwardToken?: boolean;
  readonly apiServer: { readonly url: string; readonly caFile: string; readonly tokenFile: string };
  readonly logger: Readonly<Record<'info' | 'warn' | 'error', (details: object, message: string) => void>>;
}

/** What an app of {@link AdapterUnderTest.start} is made of. */
export interface AdapterAppOptions {
  readonly guard: AdapterGuardOptions;
  /** What `/ops` says for itself. */
  readonly ops: { readonly audience: string; readonly allow: AdapterAllow };
  /** What `/orders/:order` says for itself. */
  readonly orders: { readonly allow: 'any'; readonly authorize: AdapterAuthorize };
  /**
   * `'default'`: the framework's own error handler. `'custom'`: one that answers the error's `status` (500 where it has none) with the text
   * `failed`, and looks at nothing else of the error.
   */
  readonly errorHandler: 'default' | 'custom';
  /** The scheme that people come by: rejects with an error whose `status`, `statusCode` and `headers` are to be answered. For `/either`. */
  readonly people: (request: IncomingMessage) => Promise<void>;
  /**
   * What each handler calls, and answers with as JSON: node's own request, the caller as the adapter hands it to handlers, and the body
   * where there is one. It counts, and throws where a case wants the handler to fail: let that error go its way.
   */
  readonly handle: (request: IncomingMessage, caller: object | undefined, body?: unknown) => object;
}

/** An app that listens on 127.0.0.1. */
export interface AdapterApp {
  /** `http://127.0.0.1:<port>`. */
  readonly url: string;
  /** Closes the server and its connections, and the guard. */
  close(): Promise<void>;
}

/** An adapter, and how to start an app behind it. */
export interface AdapterUnderTest {
  /** What the suite is called in the report. */
  readonly name: string;
  /** Whether the adapter sees requests for public routes, and takes the token off them too. Default false: they pass it by. */
  readonly seesPublicRoutes?: boolean;
  /** Whether a path that no route answers is guarded too. Default false: it is the framework's 404 for everybody. */
  readonly guardsUnknownPaths?: boolean;
  /** Whether a guard has `or(other)`, which leaves requests without a token to another scheme. Default false: there is no `/either`. */
  readonly offersOr?: boolean;
  /**
   * Starts an app. Before the guard it says `Vary: Origin` on each answer, and `Cache-Control` as the request's `X-Cache-Control` says,
   * where it has one. Its routes:
   *
   * - `GET /guarded` (and `HEAD`), behind `guard`
   * - `POST /guarded`, behind `guard`, whose JSON body is parsed behind the guard
   * - `GET /ops`, behind `ops` alone, which replaces what `guard` says
   * - `GET /both`, behind `guard` and then `ops`, both on the same token
   * - `GET /orders/:order`, behind `orders` alone; the body that it hands to `handle` is `{ order }`, the parameter as the handler knows it
   * - `GET /either`, behind `or(other)` of `guard`, where `other` is `people` and goes on once that resolves
   * - `GET /public`, behind nothing
   */
  start(options: AdapterAppOptions): Promise<AdapterApp>;
}

const adapterParts: Checks<AdapterUnderTest> = {
  name: aName,
  seesPublicRoutes: flag,
  guardsUnknownPaths: flag,
  offersOr: flag,
  start: check('a function', (value) => typeof value === 'function'),
};

/**
 * Declares the cases that every adapter must pass, as a suite of `node:test`: call it in a test file. It starts an authority of its own,
 * mocks `Date`, and starts one app for each case.
 */
export function runAdapterCases(adapter: AdapterUnderTest): void {
  readOptions('runAdapterCases()', adapter, adapterParts);
  describe(`${adapter.name}, X-Client-Id`, () => {
    const stage = createStage(adapter, xClientId);
    casesOfBothHeaders(stage);
    if (adapter.offersOr === true) casesOfOr(stage);
    casesOfXClientId(stage);
  });
  describe(`${adapter.name}, Authorization`, () => {
    const stage = createStage(adapter, authorization);
    casesOfBothHeaders(stage);
    if (adapter.offersOr === true) casesOfOr(stage);
    casesOfAuthorization(stage);
  });
}

/**
 * Takes from all guards of this process that observe the 250 ms after which they decide no more, so that a case about what they decide does not
 * depend on the machine. Returns what gives it back.
 */
export function holdObserveTimeout(): () => void {
  const original = globalThis.setTimeout;
  const held = mock.method(globalThis, 'setTimeout', (run: () => void, ms?: number, ...args: unknown[]) =>
    ms === 250 ? undefined : Reflect.apply(original, globalThis, [run, ms, ...args]),
  );
  return () => held.mock.restore();
}

interface Refusal {
  readonly code: string;
  readonly status: number;
  readonly challenge: string;
}

interface Mode {
  readonly header: 'x-client-id' | 'authorization';
  readonly name: string;
  readonly otherName: string;
  readonly value: (token: string) => string;
  readonly missing: Refusal;
  readonly invalid: Refusal;
  readonly notAllowed: Refusal;
}

const xClientId: Mode = {
  header: 'x-client-id',
  name: 'X-Client-Id',
  otherName: 'Authorization',
  value: (token) => token,
  missing: { code: 'missing_token', status: 401, challenge: 'ServiceAccount header="X-Client-Id"' },
  invalid: { code: 'invalid_token', status: 403, challenge: 'ServiceAccount header="X-Client-Id", error="invalid_token"' },
  notAllowed: { code: 'caller_not_allowed', status: 403, challenge: 'ServiceAccount header="X-Client-Id", error="caller_not_allowed"' },
};

const authorization: Mode = {
  header: 'authorization',
  name: 'Authorization',
  otherName: 'X-Client-Id',
  value: (token) => `Bearer ${token}`,
  missing: { code: 'missing_token', status: 401, challenge: 'Bearer realm="kubernetes"' },
  invalid: { code: 'invalid_token', status: 401, challenge: 'Bearer realm="kubernetes", error="invalid_token"' },
  notAllowed: { code: 'caller_not_allowed', status: 403, challenge: 'Bearer realm="kubernetes", error="insufficient_scope"' },
};

interface Decision {
  readonly outcome: string;
  readonly enforced: boolean;
  readonly code?: string;
  readonly reason?: string;
  readonly source: string;
  readonly caller?: { readonly serviceAccount: string };
  readonly audiences: readonly string[];
  readonly request: { readonly method: string; readonly route?: string };
}

/** What a handler saw, as it came back over the wire. */
interface Echo {
  readonly caller: Readonly<Record<string, unknown>> | null;
  readonly headers: IncomingHttpHeaders;
  readonly headersDistinct: NodeJS.Dict<readonly string[]>;
  readonly rawHeaders: readonly string[];
  readonly body: unknown;
}

interface App {
  readonly url: string;
  /** Handlers that ran, and decisions that were told, since the last `send`. */
  readonly runs: number;
  readonly decisions: readonly Decision[];
  send(outgoing?: Outgoing): Promise<Answer>;
  /** The token goes in the header of the mode. */
  sendToken(token: string, outgoing?: Outgoing): Promise<Answer>;
  /** Sends these bytes, which are one request after which the server ends the connection. */
  converse(bytes: string): Promise<Answer>;
  assertRefused(answer: Answer, refusal: Refusal, told?: Partial<Decision>): void;
  assertUnavailable(answer: Answer): void;
  assertAllowed(answer: Answer, told?: Partial<Decision>): Echo;
}

interface StartOptions {
  readonly allow?: AdapterAllow;
  readonly mode?: 'observe';
  readonly forwardToken?: true;
  readonly errorHandler?: 'custom' | 'default';
  /** The handler throws. */
  readonly failing?: true;
}

interface TokenOptions {
  readonly serviceAccount?: string;
  readonly audience?: string | readonly string[];
  readonly pod?: string;
}

interface Stage {
  readonly adapter: AdapterUnderTest;
  readonly mode: Mode;
  authority(): Authority;
  /** An app whose guard takes `api/*`, and `ops/both`, with tokens for `store`; `/ops` takes `ops/*` with tokens for `store-admin`. */
  readonly start: (options?: StartOptions) => Promise<App>;
  /** A token of `api/api` for `store`, bound to a pod of its own. */
  readonly token: (options?: TokenOptions) => Promise<string>;
  readonly line: (token: string) => HeaderLine;
  /** Reviews that the authority was asked for in this case, of tokens unless another resource is named. */
  reviews(resource?: 'tokenreviews' | 'subjectaccessreviews'): number;
  nextPod(): string;
  tick(ms: number): void;
}

function createStage(adapter: AdapterUnderTest, mode: Mode): Stage {
  let authority: Authority;
  let apiServer: AdapterGuardOptions['apiServer'];
  let callsBefore = 0;
  let pods = 0;
  let decisions: Decision[] = [];
  const apps: AdapterApp[] = [];
  const tokens: string[] = [];
  const logged: string[] = [];
  // The body of each refusal: no two of one code may differ.
  const bodies = new Map<string, string>();

  const onDecision = (decision: unknown): void => {
    decisions.push(decision as Decision);
    logged.push(JSON.stringify(decision));
  };
  const write = (details: object, message: string): void => {
    logged.push(`${message} ${JSON.stringify(details)}`);
  };

  before(async () => {
    authority = await createAuthority();
    ({ apiServer } = await authority.pod('store/store'));
    await applyRules(authority);
    subscribe('k8s-sa-auth:decision', onDecision);
  });
  after(async () => {
    unsubscribe('k8s-sa-auth:decision', onDecision);
    await authority.close();
  });
  beforeEach(() => {
    mock.timers.enable({ apis: ['Date'], now: Date.now() });
    callsBefore = authority.calls.length;
  });
  afterEach(async () => {
    await Promise.all(apps.splice(0).map((app) => app.close()));
    await authority.recover();
    mock.timers.reset();
    assertHoldsNone(logged.splice(0).join('\n'), tokens.splice(0), 'an event or a log line');
  });

  const stage: Stage = {
    adapter,
    mode,
    authority: () => authority,
    async start({ allow = ['api/*', 'ops/both'], errorHandler = 'default', failing, ...options }: StartOptions = {}): Promise<App> {
      let runs = 0;
      decisions = [];
      const { url, ...app } = await adapter.start({
        guard: { audience: 'store', allow, header: mode.header, apiServer, logger: { info: write, warn: write, error: write }, ...options },
        ops: { audience: 'store-admin', allow: ['ops/*'] },
        orders: { allow: 'any', authorize: readsOrder },
        errorHandler,
        people,
        handle({ headers, headersDistinct, rawHeaders }, caller, body) {
          runs += 1;
          if (failing) throw new Error('the handler failed');
          return { caller: caller ?? null, headers, headersDistinct, rawHeaders, body: body ?? null };
        },
      });
      apps.push({ url, ...app });

      function assertTold(expected: Partial<Decision>): void {
        assert.equal(decisions.length, 1, 'there is one event for each decision');
        const [decision] = decisions;
        // With the cluster's keys at hand a caller that no pattern matches is refused before the review, so that nobody is proven.
        const { caller, source, ...early } = expected;
        const isEarly = decision?.code === 'caller_not_allowed' && decision.source === 'screening';
        assert.partialDeepStrictEqual(decision, isEarly ? early : { ...early, ...(caller && { caller }), ...(source && { source }) });
        const isProven = caller !== undefined && !isEarly;
        assert.equal(Object.hasOwn(decision ?? {}, 'caller'), isProven, 'a caller is told where it was proven');
      }

      // Fixed text: nothing of the reason, no token, no stack frame.
      function assertBody({ body, status }: Answer, code: string): void {
        assert.doesNotMatch(body, /\bat .+:\d+:\d+|file:\/\/|node:internal/, 'there are no stack frames');
        assertHoldsNone(body, tokens, 'the body of a refusal');
        for (const { reason } of decisions) assert.ok(reason !== undefined && !body.includes(reason), `the body tells the reason: ${body}`);
        if (body === '') return;
        const key = `${errorHandler} ${status} ${code}`;
        assert.equal(body, bodies.get(key) ?? body, 'the text of a code is always the same');
        bodies.set(key, body);
      }

      const started: App = {
        url,
        get runs() {
          return runs;
        },
        get decisions() {
          return decisions;
        },
        send(outgoing = {}) {
          runs = 0;
          decisions = [];
          return send(url, outgoing);
        },
        sendToken(token, { headers = [], ...outgoing } = {}) {
          return started.send({ ...outgoing, headers: [...headers, stage.line(token)] });
        },
        async converse(bytes) {
          runs = 0;
          decisions = [];
          const [answer, ...others] = await converse(url, bytes);
          assert.ok(answer !== undefined && others.length === 0, 'there is one answer');
          return answer;
        },
        assertRefused(answer, { code, status, challenge }, told = {}) {
          const { headers } = answer;
          assert.equal(answer.status, status);
          assert.equal(headers['www-authenticate'], challenge);
          assert.equal(headers['cache-control'], 'no-store');
          assert.equal(headers['retry-after'], undefined);
          assert.equal(runs, 0, 'the handler does not run');
          assertBody(answer, code);
          assertTold({ outcome: 'refused', enforced: true, code, audiences: ['store'], ...told });
        },
        assertUnavailable(answer) {
          const { headers } = answer;
          assert.equal(answer.status, 503);
          assert.match(headers['retry-after'] ?? '', /^[1-5]$/);
          assert.equal(headers['cache-control'], 'no-store');
          assert.equal(headers['www-authenticate'], undefined);
          assert.equal(runs, 0, 'the handler does not run');
          assertBody(answer, 'review_unavailable');
          assertTold({ outcome: 'unavailable', enforced: true, code: 'review_unavailable', audiences: ['store'] });
        },
        assertAllowed(answer, told = {}) {
          assert.equal(answer.status, 200, answer.body);
          assert.equal(runs, 1, 'the handler runs once');
          assert.equal(answer.headers['www-authenticate'], undefined);
          const echo: Echo = JSON.parse(answer.body);
          const caller = { serviceAccount: String(echo.caller?.['serviceAccount']) };
          assertTold({ outcome: 'allowed', enforced: true, audiences: ['store'], caller, ...told });
          return echo;
        },
      };
      return started;
    },
    async token({ serviceAccount = 'api/api', audience = 'store', pod = stage.nextPod() } = {}) {
      const token = await authority.token(serviceAccount, { audience, pod });
      tokens.push(token);
      return token;
    },
    line: (token) => [mode.name, mode.value(token)],
    reviews: (asked = 'tokenreviews') => authority.calls.slice(callsBefore).filter(({ resource }) => resource === asked).length,
    nextPod() {
      pods += 1;
      return `pod-${pods}`;
    },
    tick: (ms) => mock.timers.tick(ms),
  };
  return stage;
}

const jane: HeaderLine = ['Authorization', 'Bearer jane'];

async function people({ headers }: IncomingMessage): Promise<void> {
  if (headers.authorization === 'Bearer jane') return;
  const said = { status: 401, statusCode: 401, expose: true, headers: { 'www-authenticate': 'Bearer realm="people"' } };
  throw Object.assign(new Error('Sign in'), said);
}

const readsOrder: AdapterAuthorize = {
  verb: 'get',
  group: 'shop.example',
  resource: 'orders',
  namespace: 'shop',
  name: ({ params }) => params['order'],
};

// What the cluster lets callers do with orders, as its administrator writes it.
const rules = `
apiVersion: v1
kind: Namespace
metadata: { name: shop }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: { name: order-7, namespace: shop }
rules: [{ apiGroups: [shop.example], resources: [orders], verbs: [get], resourceNames: ['7', 'ä b'] }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: { name: api-order-7, namespace: shop }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: order-7 }
subjects: [{ kind: ServiceAccount, name: api, namespace: api }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: { name: order-8, namespace: shop }
rules: [{ apiGroups: [shop.example], resources: [orders], verbs: [get], resourceNames: ['8'] }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: { name: clerk-order-8, namespace: shop }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: order-8 }
subjects: [{ kind: ServiceAccount, name: clerk, namespace: api }]
`;

async function applyRules(authority: Authority): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'k8s-sa-auth-'));
  try {
    const file = join(folder, 'rules.yaml');
    writeFileSync(file, rules);
    await authority.apply(file);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

// The header of a token is the same for all of them; what follows is its own.
function assertHoldsNone(text: string, tokens: readonly string[], where: string): void {
  for (const token of tokens) {
    const [, payload = '', signature = ''] = token.split('.');
    assert.ok(!text.includes(payload) && !text.includes(signature), `${where} holds a token`);
  }
}

/** The same token with a signature that is another's. */
function forge(token: string): string {
  const at = token.lastIndexOf('.') + 1;
  return `${token.slice(0, at)}${token[at] === 'A' ? 'B' : 'A'}${token.slice(at + 1)}`;
}

/** The same token with its spare bits set: the last of 342 characters carries four that no byte needs. */
function respell(token: string): string {
  const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
  return `${token.slice(0, -1)}${alphabet[alphabet.indexOf(token.slice(-1)) + 1]}`;
}

/** A token of more than 8 KiB, as its issuer could have made it. */
function enlarge(token: string): string {
  const [header, , signature] = token.split('.');
  const claims = { ...parseToken(token)?.claims, padding: 'x'.repeat(6_000) };
  return `${header}.${Buffer.from(JSON.stringify(claims)).toString('base64url')}.${signature}`;
}

function assertGone({ headers, headersDistinct, rawHeaders }: Echo, { header }: Mode, token: string): void {
  assert.equal(headers[header], undefined);
  assert.equal(headersDistinct[header], undefined);
  assert.ok(!rawHeaders.some((text) => text.toLowerCase() === header));
  assertHoldsNone(JSON.stringify([headers, headersDistinct, rawHeaders]), [token], 'the request that the handler sees');
}

function assertThere({ headers, headersDistinct, rawHeaders }: Echo, name: string, value: string): void {
  const header = name.toLowerCase();
  assert.equal(headers[header], value);
  assert.deepEqual(headersDistinct[header], [value]);
  assert.equal(rawHeaders[rawHeaders.indexOf(name) + 1], value);
}

function casesOfBothHeaders(stage: Stage): void {
  const { adapter, mode, start, token: issue, line } = stage;

  describe('a request without a token', () => {
    it('is refused where the header is absent', async () => {
      const app = await start();
      app.assertRefused(await app.send(), mode.missing, { source: 'screening' });
      assert.equal(stage.reviews(), 0);
    });

    it('is refused where the header is empty', async () => {
      const app = await start();
      app.assertRefused(await app.send({ headers: [[mode.name, '']] }), mode.missing, { source: 'screening' });
    });

    it('is refused where the header holds white space only', async () => {
      const app = await start();
      app.assertRefused(await app.send({ headers: [[mode.name, ' \t ']] }), mode.missing, { source: 'screening' });
    });

    it('is refused where the token stands in the other header', async () => {
      const app = await start();
      const token = await issue();
      const told = { source: 'screening', reason: 'token_in_other_header' };
      app.assertRefused(await app.send({ headers: [[mode.otherName, mode.value(token)]] }), mode.missing, told);
    });

    it('is refused where the token stands in a trailer', async () => {
      const app = await start();
      const token = await issue();
      const headers: readonly HeaderLine[] = [
        ['Host', 'a'],
        ['Transfer-Encoding', 'chunked'],
        ['Trailer', mode.name],
      ];
      const answer = await app.converse(
        formatRequest('POST /guarded HTTP/1.1', headers, `2\r\n{}\r\n0\r\n${line(token).join(': ')}\r\n\r\n`),
      );
      app.assertRefused(answer, mode.missing, { source: 'screening' });
    });

    it('is refused to HEAD, without a body', async () => {
      const app = await start();
      const answer = await app.send({ method: 'HEAD' });
      app.assertRefused(answer, mode.missing, { source: 'screening', request: { method: 'HEAD' } });
      assert.equal(answer.body, '');
    });

    it('is refused over HTTP/1.0', async () => {
      const app = await start();
      const answer = await app.converse(formatRequest('GET /guarded HTTP/1.0', []));
      app.assertRefused(answer, mode.missing);
    });

    it('is refused before the body that it expects to be asked for', async () => {
      const app = await start();
      const headers: readonly HeaderLine[] = [
        ['Host', 'a'],
        ['Content-Length', '5'],
        ['Expect', '100-continue'],
      ];
      const answers = await converse(app.url, formatRequest('POST /guarded HTTP/1.1', headers));
      assert.equal(answers.at(-1)?.status, mode.missing.status);
      assert.equal(app.runs, 0);
    });

    it('reaches no handler with 64 kB of header', async () => {
      const app = await start();
      const headers: readonly HeaderLine[] = [
        ['Host', 'a'],
        [mode.name, mode.value('x'.repeat(65_536))],
      ];
      // Node refuses it itself, and may reset the connection before the answer has arrived.
      const answers = await converse(app.url, formatRequest('GET /guarded HTTP/1.1', headers));
      assert.ok(answers.every(({ status }) => status === 431));
      assert.equal(app.runs, 0);
    });

    it('reaches no handler by another spelling of the path', async () => {
      const app = await start();
      await app.send({ path: '/guarded/' });
      await send(app.url, { path: '//guarded' });
      await send(app.url, { path: '/GUARDED' });
      await send(app.url, { path: '/%67uarded' });
      await send(app.url, { path: '/public/../guarded' });
      await send(app.url, { path: '/guarded;public' });
      await send(app.url, { path: '/guarded?path=/public' });
      await send(app.url, { path: `${app.url}/guarded` });
      assert.equal(app.runs, 0);
    });
  });

  describe('a token that is not valid here', () => {
    it('is refused where it is garbage', async () => {
      const app = await start();
      app.assertRefused(await app.sendToken('garbage'), mode.invalid, { source: 'screening' });
      assert.equal(stage.reviews(), 0);
    });

    it('is refused where it is longer than 8 KiB', async () => {
      const app = await start();
      const token = enlarge(await issue());
      assert.ok(token.length > 8_192 && token.length < 10_000);
      app.assertRefused(await app.sendToken(token), mode.invalid, { source: 'screening' });
      assert.equal(stage.reviews(), 0);
    });

    it('is refused where its signature is forged', async () => {
      const app = await start();
      app.assertRefused(await app.sendToken(forge(await issue())), mode.invalid);
    });

    it('is refused where it is expired', async () => {
      const app = await start();
      const token = await issue();
      stage.tick(661_000);
      app.assertRefused(await app.sendToken(token), mode.invalid, { source: 'screening' });
      assert.equal(stage.reviews(), 0);
    });

    it('is refused a minute after it expired, though it was reviewed since', async () => {
      const app = await start();
      const token = await issue();
      stage.tick(620_000);
      app.assertAllowed(await app.sendToken(token), { source: 'review' });
      stage.tick(41_000);
      app.assertRefused(await app.sendToken(token), mode.invalid, { source: 'screening' });
    });

    it('is refused where it is for another audience', async () => {
      const app = await start();
      const token = await issue({ audience: 'bank' });
      app.assertRefused(await app.sendToken(token), mode.invalid, { source: 'screening' });
      assert.equal(stage.reviews(), 0);
    });

    it('is refused where it is for the API server', async () => {
      const app = await start();
      const token = await issue({ audience: 'https://kubernetes.default.svc.cluster.local' });
      app.assertRefused(await app.sendToken(token), mode.invalid, { source: 'screening' });
      assert.equal(stage.reviews(), 0);
    });

    it('is refused where the authenticator ignores audiences', async () => {
      const app = await start();
      stage.authority().fail('ignores-audiences');
      app.assertRefused(await app.sendToken(await issue()), mode.invalid, { source: 'review' });
    });

    it('is refused where it is bound to no pod', async () => {
      const app = await start();
      const token = await stage.authority().token('api/api', { audience: 'store' });
      const answer = await app.sendToken(token);
      const caller = { serviceAccount: 'api/api' };
      app.assertRefused(answer, mode.invalid, { source: 'review', caller });
    });

    it('is refused where its pod is deleted', async () => {
      const app = await start();
      const pod = stage.nextPod();
      const token = await issue({ pod });
      await stage.authority().delete('pod', `api/${pod}`);
      app.assertRefused(await app.sendToken(token), mode.invalid, { source: 'review' });
    });

    it('is refused a minute and ten seconds after its pod was deleted, where it was known', async () => {
      const app = await start();
      const pod = stage.nextPod();
      const token = await issue({ pod });
      app.assertAllowed(await app.sendToken(token));
      await stage.authority().delete('pod', `api/${pod}`);
      stage.tick(70_001);
      app.assertRefused(await app.sendToken(token), mode.invalid, { source: 'review' });
    });

    it('is refused where its ServiceAccount is deleted', async () => {
      const app = await start();
      const token = await issue({ serviceAccount: 'api/doomed' });
      await stage.authority().delete('serviceaccount', 'api/doomed');
      app.assertRefused(await app.sendToken(token), mode.invalid, { source: 'review' });
    });

    it('is refused again without a review', async () => {
      const app = await start();
      const pod = stage.nextPod();
      const token = await issue({ pod });
      await stage.authority().delete('pod', `api/${pod}`);
      app.assertRefused(await app.sendToken(token), mode.invalid, { source: 'review' });
      app.assertRefused(await app.sendToken(token), mode.invalid, { source: 'cache' });
      assert.equal(stage.reviews(), 1);
    });

    it('is refused with a good one of the same caller before it', async () => {
      const app = await start();
      const token = await issue();
      app.assertAllowed(await app.sendToken(token));
      app.assertRefused(await app.sendToken(forge(token)), mode.invalid);
    });
  });

  describe('a good token that is not spelt as it was issued', () => {
    it('is refused with a part more', async () => {
      const app = await start();
      app.assertRefused(await app.sendToken(`${await issue()}.e30`), mode.invalid, { source: 'screening' });
      assert.equal(stage.reviews(), 0);
    });

    it('is refused with a character more', async () => {
      const app = await start();
      app.assertRefused(await app.sendToken(`${await issue()}!`), mode.invalid, { source: 'screening' });
    });

    it('is refused with padding', async () => {
      const app = await start();
      app.assertRefused(await app.sendToken(`${await issue()}==`), mode.invalid, { source: 'screening' });
    });

    it('is refused with its spare bits set', async () => {
      const app = await start();
      app.assertRefused(await app.sendToken(respell(await issue())), mode.invalid, { source: 'screening' });
    });

    it('is refused with a space inside', async () => {
      const app = await start();
      const token = await issue();
      app.assertRefused(await app.sendToken(token.replace('.', '. ')), mode.invalid, { source: 'screening' });
    });

    it('is refused with a tab inside', async () => {
      const app = await start();
      const token = await issue();
      app.assertRefused(await app.sendToken(token.replace('.', '.\t')), mode.invalid, { source: 'screening' });
    });

    it('is refused with a word after it', async () => {
      const app = await start();
      app.assertRefused(await app.sendToken(`${await issue()} junk`), mode.invalid, { source: 'screening' });
    });

    it('is refused with a character beyond ASCII', async () => {
      const app = await start();
      app.assertRefused(await app.sendToken(`${await issue()}\u00a0`), mode.invalid, { source: 'screening' });
    });

    it('is refused in quotation marks', async () => {
      const app = await start();
      app.assertRefused(await app.sendToken(`"${await issue()}"`), mode.invalid, { source: 'screening' });
    });
  });

  describe('a header that is not one token', () => {
    it('is refused where it is repeated, the good token first', async () => {
      const app = await start();
      const headers = [line(await issue()), line('garbage')];
      app.assertRefused(await app.send({ headers }), mode.invalid, { source: 'screening' });
      assert.equal(stage.reviews(), 0);
    });

    it('is refused where it is repeated, the good token last', async () => {
      const app = await start();
      const headers = [line('garbage'), line(await issue())];
      app.assertRefused(await app.send({ headers }), mode.invalid, { source: 'screening' });
      assert.equal(stage.reviews(), 0);
    });

    it('is refused where it is repeated with the same token', async () => {
      const app = await start();
      const token = await issue();
      app.assertRefused(await app.send({ headers: [line(token), line(token)] }), mode.invalid, { source: 'screening' });
    });

    it('is refused where it is repeated in another case, far away', async () => {
      const app = await start();
      const token = await issue();
      const headers: readonly HeaderLine[] = [line(token), ['Accept', '*/*'], [mode.name.toUpperCase(), mode.value(token)]];
      app.assertRefused(await app.send({ headers }), mode.invalid, { source: 'screening' });
    });

    it('is refused where the second one is empty', async () => {
      const app = await start();
      const headers: readonly HeaderLine[] = [line(await issue()), [mode.name, '']];
      app.assertRefused(await app.send({ headers }), mode.invalid, { source: 'screening' });
    });

    it('is refused where the first one is empty', async () => {
      const app = await start();
      const headers: readonly HeaderLine[] = [[mode.name, ''], line(await issue())];
      app.assertRefused(await app.send({ headers }), mode.invalid, { source: 'screening' });
    });

    it('is refused where tokens are joined by a comma', async () => {
      const app = await start();
      const token = await issue();
      app.assertRefused(await app.sendToken(`${token},${token}`), mode.invalid, { source: 'screening' });
    });

    it('is refused where whole values are joined by a comma', async () => {
      const app = await start();
      const value = mode.value(await issue());
      app.assertRefused(await app.send({ headers: [[mode.name, `${value}, ${value}`]] }), mode.invalid, { source: 'screening' });
    });

    it('is refused where a comma follows the token', async () => {
      const app = await start();
      app.assertRefused(await app.sendToken(`${await issue()},`), mode.invalid, { source: 'screening' });
    });
  });

  describe('a caller who may not call', () => {
    it('is refused where no pattern of allow names it', async () => {
      const app = await start();
      const token = await issue({ serviceAccount: 'else/stranger' });
      app.assertRefused(await app.sendToken(token), mode.notAllowed, { source: 'review', caller: { serviceAccount: 'else/stranger' } });
    });

    it('is refused where its namespace only begins like one that may', async () => {
      const app = await start();
      const token = await issue({ serviceAccount: 'api-2/api' });
      app.assertRefused(await app.sendToken(token), mode.notAllowed, { source: 'review', caller: { serviceAccount: 'api-2/api' } });
    });

    it('is refused again without a review', async () => {
      const app = await start();
      const caller = { serviceAccount: 'else/stranger' };
      const token = await issue(caller);
      app.assertRefused(await app.sendToken(token), mode.notAllowed, { source: 'review', caller });
      app.assertRefused(await app.sendToken(token), mode.notAllowed, { source: 'cache', caller });
      assert.equal(stage.reviews(), 1);
    });

    it('is refused by a predicate that returns something truthy', async () => {
      const app = await start({ allow: () => 'yes' as unknown as boolean });
      app.assertRefused(await app.sendToken(await issue()), mode.notAllowed, { caller: { serviceAccount: 'api/api' } });
    });

    it('is refused by a predicate that promises false', async () => {
      const app = await start({ allow: () => Promise.resolve(false) });
      app.assertRefused(await app.sendToken(await issue()), mode.notAllowed, { caller: { serviceAccount: 'api/api' } });
    });

    it('is let in by a predicate that promises true of this caller and method', async () => {
      const app = await start({
        allow: ({ serviceAccount }, { method }) => Promise.resolve(serviceAccount === 'api/api' && method === 'GET'),
      });
      app.assertAllowed(await app.sendToken(await issue()));
    });

    it('gets a 500 from a predicate that throws', async () => {
      const app = await start({
        allow: () => {
          throw new Error('the predicate failed');
        },
      });
      const token = await issue();
      const answer = await app.sendToken(token);
      assert.equal(answer.status, 500);
      assert.equal(answer.headers['www-authenticate'], undefined);
      assert.equal(app.runs, 0);
      assertHoldsNone(answer.body, [token], 'the body');
    });

    it('gets a 500 from a predicate that rejects with nothing', async () => {
      const app = await start({ allow: () => Promise.reject() });
      assert.equal((await app.sendToken(await issue())).status, 500);
      assert.equal(app.runs, 0);
    });

    it('gets a 500 from a predicate that rejects with a word that means more to a framework', async () => {
      const app = await start({ allow: () => Promise.reject('route') });
      const answer = await app.sendToken(await issue());
      assert.equal(answer.status, 500);
      assert.doesNotMatch(answer.body, /route/);
      assert.equal(app.runs, 0);
    });

    it('gets a 500 from a predicate that throws an error with a status of its own', async () => {
      const app = await start({
        allow: () => Promise.reject(Object.freeze(Object.assign(new Error('failed'), { status: 200, statusCode: 200 }))),
      });
      assert.equal((await app.sendToken(await issue())).status, 500);
      assert.equal(app.runs, 0);
    });

    it('gets a 500 from a predicate that rejects', async () => {
      const app = await start({ allow: () => Promise.reject(new Error('the predicate failed')) });
      const answer = await app.sendToken(await issue());
      assert.equal(answer.status, 500);
      assert.equal(answer.headers['www-authenticate'], undefined);
      assert.equal(app.runs, 0);
    });
  });

  describe('a good caller', () => {
    it('is known to the handler by all that the review said', async () => {
      const app = await start();
      const pod = stage.nextPod();
      const token = await issue({ pod });
      const { caller } = app.assertAllowed(await app.sendToken(token), { source: 'review' });
      const { claims = {} } = parseToken(token) ?? {};
      const bound: Readonly<Record<string, { readonly name: string; readonly uid: string }>> = Object(claims['kubernetes.io']);
      const { extra, ...fields } = caller ?? {};
      assert.deepEqual(fields, {
        serviceAccount: 'api/api',
        namespace: 'api',
        name: 'api',
        username: 'system:serviceaccount:api:api',
        uid: bound['serviceaccount']?.uid,
        groups: ['system:serviceaccounts', 'system:serviceaccounts:api', 'system:authenticated'],
        audiences: ['store'],
        pod: { name: pod, uid: bound['pod']?.uid },
        node: bound['node'],
        credentialId: `JTI=${String(claims['jti'])}`,
        expiresAt: new Date(Number(claims['exp']) * 1000).toISOString(),
      });
      assert.deepEqual(Object(extra)['authentication.kubernetes.io/pod-name'], [pod]);
    });

    it('has only those audiences that are ours', async () => {
      const app = await start();
      const { caller } = app.assertAllowed(await app.sendToken(await issue({ audience: ['bank', 'store'] })));
      assert.deepEqual(caller?.['audiences'], ['store']);
    });

    it('needs no review for its second request', async () => {
      const app = await start();
      const token = await issue();
      app.assertAllowed(await app.sendToken(token), { source: 'review' });
      app.assertAllowed(await app.sendToken(token), { source: 'cache' });
      assert.equal(stage.reviews(), 1);
    });

    it('needs a review once a minute', async () => {
      const app = await start();
      const token = await issue();
      app.assertAllowed(await app.sendToken(token), { source: 'review' });
      stage.tick(60_000);
      app.assertAllowed(await app.sendToken(token), { source: 'review' });
      assert.equal(stage.reviews(), 2);
    });

    it('needs one review for requests that come at once', async () => {
      const app = await start();
      const outgoing = { headers: [line(await issue())] };
      const answers = await Promise.all(Array.from({ length: 10 }, () => send(app.url, outgoing)));
      assert.deepEqual(
        answers.map(({ status }) => status),
        Array.from({ length: 10 }, () => 200),
      );
      assert.equal(stage.reviews(), 1);
    });

    it('is not taken for another who calls at the same time', async () => {
      const app = await start();
      const names = ['api/a', 'api/b', 'api/c', 'api/a', 'api/b', 'api/c'];
      const tokens = await Promise.all(names.map((serviceAccount) => issue({ serviceAccount })));
      const answers = await Promise.all(tokens.map((token) => send(app.url, { headers: [line(token)] })));
      assert.deepEqual(
        answers.map(({ body }) => (JSON.parse(body) as Echo).caller?.['serviceAccount']),
        names,
      );
    });

    it('is let in by HEAD, without a body', async () => {
      const app = await start();
      const answer = await app.sendToken(await issue(), { method: 'HEAD' });
      assert.equal(answer.status, 200);
      assert.equal(answer.body, '');
      assert.partialDeepStrictEqual(app.decisions, [{ outcome: 'allowed', request: { method: 'HEAD' } }]);
    });

    it('is let in over HTTP/1.0', async () => {
      const app = await start();
      const answer = await app.converse(formatRequest('GET /guarded HTTP/1.0', [line(await issue())]));
      app.assertAllowed(answer);
    });

    it('is let in with white space around the value, which HTTP takes off', async () => {
      const app = await start();
      const value = ` \t${mode.value(await issue())}\t `;
      app.assertAllowed(await app.send({ headers: [[mode.name, value]] }));
    });

    it('gets a 404 where there is no route', async () => {
      const app = await start();
      const answer = await app.sendToken(await issue(), { path: '/nowhere' });
      assert.equal(answer.status, 404);
      assert.equal(app.runs, 0);
    });

    it('meets the handler’s own error, not one of the guard’s', async () => {
      const app = await start({ failing: true });
      const answer = await app.sendToken(await issue());
      assert.equal(answer.status, 500);
      assert.equal(answer.headers['www-authenticate'], undefined);
      assert.equal(app.runs, 1);
      assert.partialDeepStrictEqual(app.decisions, [{ outcome: 'allowed' }]);
    });

    it('has its body parsed behind the guard', async () => {
      const app = await start();
      const headers: readonly HeaderLine[] = [['Content-Type', 'application/json']];
      const answer = await app.sendToken(await issue(), { method: 'POST', headers, body: '{"order":7}' });
      const { body } = app.assertAllowed(answer, { request: { method: 'POST' } });
      assert.deepEqual(body, { order: 7 });
    });

    it('is told without the URL', async () => {
      const app = await start();
      app.assertAllowed(await app.sendToken(await issue(), { path: '/guarded?password=told-to-nobody' }));
      assert.doesNotMatch(JSON.stringify(app.decisions), /told-to-nobody/);
    });
  });

  describe('the token’s header', () => {
    it('is gone when the handler runs', async () => {
      const app = await start();
      const token = await issue();
      assertGone(app.assertAllowed(await app.sendToken(token, { headers: [['X-Before', '1']] })), mode, token);
    });

    it('is gone whatever the case of its name', async () => {
      const app = await start();
      const token = await issue();
      const headers: readonly HeaderLine[] = [[mode.name.toUpperCase(), mode.value(token)]];
      assertGone(app.assertAllowed(await app.send({ headers })), mode, token);
    });

    it('takes no other header with it', async () => {
      const app = await start();
      const headers: readonly HeaderLine[] = [['X-Before', '1'], line(await issue()), ['X-After', '2']];
      const echo = app.assertAllowed(await app.send({ headers }));
      assertThere(echo, 'X-Before', '1');
      assertThere(echo, 'X-After', '2');
    });

    it('is left where the token is to be forwarded', async () => {
      const app = await start({ forwardToken: true });
      const token = await issue();
      assertThere(app.assertAllowed(await app.sendToken(token)), mode.name, mode.value(token));
    });

    it('leaves the other header alone, which is not read', async () => {
      const app = await start();
      const headers: readonly HeaderLine[] = [[mode.otherName, 'Bearer something']];
      const echo = app.assertAllowed(await app.sendToken(await issue(), { headers }));
      assertThere(echo, mode.otherName, 'Bearer something');
    });

    it('is not made good by the other header', async () => {
      const app = await start();
      const headers: readonly HeaderLine[] = [[mode.otherName, mode.value(await issue())]];
      app.assertRefused(await app.sendToken('garbage', { headers }), mode.invalid, { source: 'screening' });
    });
  });

  describe('a public route', () => {
    it('is answered without a token and without a decision', async () => {
      const app = await start();
      const answer = await app.send({ path: '/public' });
      assert.equal(answer.status, 200);
      assert.equal(app.runs, 1);
      assert.deepEqual(app.decisions, []);
      assert.equal(answer.headers['cache-control'], undefined);
    });

    it('knows no caller, even with a good token', async () => {
      const app = await start();
      const answer = await app.sendToken(await issue(), { path: '/public' });
      assert.equal(answer.status, 200);
      const echo: Echo = JSON.parse(answer.body);
      assert.equal(echo.caller, null);
      assert.equal(stage.reviews(), 0);
    });

    it('does not see the token where the adapter sees the request', async () => {
      const app = await start();
      const token = await issue();
      const answer = await app.sendToken(token, { path: '/public' });
      const echo: Echo = JSON.parse(answer.body);
      if (adapter.seesPublicRoutes === true) assertGone(echo, mode, token);
      else assertThere(echo, mode.name, mode.value(token));
    });

    it('is answered while the cluster is away', async () => {
      const app = await start();
      stage.authority().fail('outage');
      assert.equal((await app.sendToken(await issue(), { path: '/public' })).status, 200);
    });
  });

  describe('a path without a route', () => {
    it('reaches no handler, and is a 404 unless it is guarded', async () => {
      const app = await start();
      const answer = await app.send({ path: '/nowhere' });
      assert.equal(app.runs, 0);
      if (adapter.guardsUnknownPaths === true) app.assertRefused(answer, mode.missing);
      else assert.equal(answer.status, 404);
    });
  });

  describe('a route with an audience and callers of its own', () => {
    const ops = { audiences: ['store-admin'] };

    it('lets its own callers in', async () => {
      const app = await start();
      const token = await issue({ serviceAccount: 'ops/ops', audience: 'store-admin' });
      const { caller } = app.assertAllowed(await app.sendToken(token, { path: '/ops' }), ops);
      assert.equal(caller?.['serviceAccount'], 'ops/ops');
      assert.deepEqual(caller?.['audiences'], ['store-admin']);
    });

    it('refuses a token for the guard’s audience', async () => {
      const app = await start();
      const token = await issue({ serviceAccount: 'ops/ops' });
      app.assertRefused(await app.sendToken(token, { path: '/ops' }), mode.invalid, ops);
    });

    it('refuses the guard’s callers', async () => {
      const app = await start();
      const token = await issue({ audience: 'store-admin' });
      const caller = { serviceAccount: 'api/api' };
      app.assertRefused(await app.sendToken(token, { path: '/ops' }), mode.notAllowed, { ...ops, caller });
    });

    it('has a token for it refused elsewhere', async () => {
      const app = await start();
      const token = await issue({ serviceAccount: 'ops/ops', audience: 'store-admin' });
      app.assertAllowed(await app.sendToken(token, { path: '/ops' }), ops);
      app.assertRefused(await app.sendToken(token), mode.invalid);
    });

    it('has its callers refused elsewhere', async () => {
      const app = await start();
      const token = await issue({ serviceAccount: 'ops/ops', audience: ['store', 'store-admin'] });
      const caller = { serviceAccount: 'ops/ops' };
      app.assertAllowed(await app.sendToken(token, { path: '/ops' }), ops);
      app.assertRefused(await app.sendToken(token), mode.notAllowed, { caller });
    });

    it('is refused without a token, and does not see one', async () => {
      const app = await start();
      const token = await issue({ serviceAccount: 'ops/ops', audience: 'store-admin' });
      app.assertRefused(await app.send({ path: '/ops' }), mode.missing, ops);
      assertGone(app.assertAllowed(await app.sendToken(token, { path: '/ops' }), ops), mode, token);
    });
  });

  describe('a route behind two guards', () => {
    it('lets a caller in whom both let in, on the same token', async () => {
      const app = await start();
      const token = await issue({ serviceAccount: 'ops/both', audience: ['store', 'store-admin'] });
      const answer = await app.sendToken(token, { path: '/both' });
      assert.equal(answer.status, 200, answer.body);
      const echo: Echo = JSON.parse(answer.body);
      assert.equal(echo.caller?.['serviceAccount'], 'ops/both');
      assertGone(echo, mode, token);
      assert.deepEqual(
        app.decisions.map(({ outcome, audiences }) => `${outcome} ${audiences.join()}`),
        ['allowed store', 'allowed store-admin'],
      );
    });

    it('refuses a caller whom only the first lets in', async () => {
      const app = await start();
      const answer = await app.sendToken(await issue({ audience: ['store', 'store-admin'] }), { path: '/both' });
      assert.equal(answer.status, 403);
      assert.equal(answer.headers['www-authenticate'], mode.notAllowed.challenge);
      assert.equal(answer.headers['cache-control'], 'no-store');
      assert.equal(app.runs, 0);
    });

    it('refuses a caller whom only the second lets in', async () => {
      const app = await start();
      const caller = { serviceAccount: 'ops/ops' };
      const token = await issue({ ...caller, audience: ['store', 'store-admin'] });
      app.assertRefused(await app.sendToken(token, { path: '/both' }), mode.notAllowed, { caller });
    });
  });

  describe('a route that asks the cluster what its caller may do', () => {
    const asked = 'subjectaccessreviews';
    const seven = { path: '/orders/7' };
    const notAuthorized = { reason: 'not_authorized' };

    it('lets in a caller whom a RoleBinding lets read this object', async () => {
      const app = await start();
      const { body } = app.assertAllowed(await app.sendToken(await issue(), seven), { source: 'review' });
      assert.deepEqual(body, { order: '7' });
      assert.equal(stage.reviews(asked), 1);
    });

    it('refuses it another object', async () => {
      const app = await start();
      const caller = { serviceAccount: 'api/api' };
      app.assertRefused(await app.sendToken(await issue(), { path: '/orders/8' }), mode.notAllowed, { ...notAuthorized, caller });
    });

    it('refuses a caller who may read only another object', async () => {
      const app = await start();
      const caller = { serviceAccount: 'api/clerk' };
      const token = await issue(caller);
      app.assertAllowed(await app.sendToken(token, { path: '/orders/8' }));
      app.assertRefused(await app.sendToken(token, seven), mode.notAllowed, { ...notAuthorized, caller });
    });

    it('refuses a caller who may do nothing', async () => {
      const app = await start();
      const caller = { serviceAccount: 'else/stranger' };
      app.assertRefused(await app.sendToken(await issue(caller), seven), mode.notAllowed, { ...notAuthorized, source: 'review', caller });
    });

    it('asks nothing about a request without a token, or with one that is not valid', async () => {
      const app = await start();
      app.assertRefused(await app.send(seven), mode.missing, { source: 'screening' });
      app.assertRefused(await app.sendToken(forge(await issue()), seven), mode.invalid);
      assert.equal(stage.reviews(asked), 0);
    });

    it('asks about the object by the name that the handler will know', async () => {
      const app = await start();
      const token = await issue();
      assert.deepEqual(app.assertAllowed(await app.sendToken(token, { path: '/orders/%37' })).body, { order: '7' });
      assert.deepEqual(app.assertAllowed(await app.sendToken(token, { path: '/orders/%C3%A4%20b' })).body, { order: 'ä b' });
    });

    it('reaches no handler by another spelling of an object that may be read', async () => {
      const app = await start();
      const headers = [line(await issue())];
      await app.send({ headers, path: '/orders/8?order=7' });
      await send(app.url, { headers, path: '/orders/8%3Forder=7' });
      await send(app.url, { headers, path: '/orders/7%2F8' });
      await send(app.url, { headers, path: '/orders/7%2F..%2F8' });
      await send(app.url, { headers, path: '/orders/7%00' });
      await send(app.url, { headers, path: '/orders/%2537' });
      await send(app.url, { headers, path: '/orders/07' });
      await send(app.url, { headers, path: '/orders/8;order=7' });
      await send(app.url, { headers, path: '/orders/%zz' });
      await send(app.url, { headers, path: '/orders/' });
      assert.equal(app.runs, 0);
    });

    it('remembers a yes for a minute', async () => {
      const app = await start();
      const token = await issue();
      app.assertAllowed(await app.sendToken(token, seven), { source: 'review' });
      stage.tick(59_999);
      app.assertAllowed(await app.sendToken(token, seven), { source: 'cache' });
      assert.equal(stage.reviews(asked), 1);
      stage.tick(1);
      app.assertAllowed(await app.sendToken(token, seven), { source: 'review' });
      assert.equal(stage.reviews(asked), 2);
    });

    it('remembers a no for five seconds', async () => {
      const app = await start();
      const caller = { serviceAccount: 'else/stranger' };
      const token = await issue(caller);
      app.assertRefused(await app.sendToken(token, seven), mode.notAllowed, { source: 'review', caller });
      stage.tick(4_999);
      app.assertRefused(await app.sendToken(token, seven), mode.notAllowed, { source: 'cache', caller });
      assert.equal(stage.reviews(asked), 1);
      stage.tick(1);
      app.assertRefused(await app.sendToken(token, seven), mode.notAllowed, { source: 'review', caller });
      assert.equal(stage.reviews(asked), 2);
    });

    it('is a 503 for a known caller while the cluster cannot be asked', async () => {
      const app = await start();
      const token = await issue();
      app.assertAllowed(await app.sendToken(token));
      stage.authority().fail('outage');
      app.assertUnavailable(await app.sendToken(token, seven));
    });

    it('is a 503 for a caller of whom nothing is known while the cluster cannot be asked', async () => {
      const app = await start();
      stage.authority().fail('outage');
      app.assertUnavailable(await app.sendToken(await issue(), seven));
    });

    it('lets in whom it let in for five minutes while the cluster cannot be asked, for this object only', async () => {
      const app = await start();
      const token = await issue();
      app.assertAllowed(await app.sendToken(token, seven), { source: 'review' });
      stage.authority().fail('outage');
      stage.tick(61_000);
      app.assertAllowed(await app.sendToken(token, seven), { source: 'stale' });
      app.assertUnavailable(await app.sendToken(token, { path: '/orders/8' }));
      stage.tick(239_000);
      app.assertUnavailable(await app.sendToken(token, seven));
    });

    it('only tells what it would have done while it observes', async (t) => {
      t.after(holdObserveTimeout());
      const app = await start({ mode: 'observe' });
      const caller = { serviceAccount: 'else/stranger' };
      const answer = await app.sendToken(await issue(caller), seven);
      assertObserved(app, answer, { enforced: false, outcome: 'refused', code: 'caller_not_allowed', ...notAuthorized, caller });
      const echo = app.assertAllowed(await app.sendToken(await issue(), seven), { enforced: false });
      assert.equal(echo.caller?.['serviceAccount'], 'api/api');
    });
  });

  describe('a cluster that cannot be asked', () => {
    it('is a 503 for a caller who is not known', async () => {
      const app = await start();
      stage.authority().fail('outage');
      app.assertUnavailable(await app.sendToken(await issue()));
    });

    it('is a 503 where it refuses our own credentials', async () => {
      const app = await start();
      stage.authority().fail('unauthorized');
      app.assertUnavailable(await app.sendToken(await issue()));
    });

    it('is a 503 where it does not let us review', async () => {
      const app = await start();
      stage.authority().fail('forbidden');
      app.assertUnavailable(await app.sendToken(await issue()));
    });

    it('is a 503 where its answer is broken', async () => {
      const app = await start();
      stage.authority().fail('broken-body');
      app.assertUnavailable(await app.sendToken(await issue()));
    });

    it('is a 503 where it cuts the connection', async () => {
      const app = await start();
      stage.authority().fail('reset');
      app.assertUnavailable(await app.sendToken(await issue()));
    });

    it('is a 401 still for a request without a token', async () => {
      const app = await start();
      stage.authority().fail('outage');
      app.assertRefused(await app.send(), mode.missing);
    });

    it('keeps no known caller out', async () => {
      const app = await start();
      const token = await issue();
      app.assertAllowed(await app.sendToken(token), { source: 'review' });
      stage.authority().fail('outage');
      app.assertAllowed(await app.sendToken(token), { source: 'cache' });
      stage.tick(61_000);
      app.assertAllowed(await app.sendToken(token), { source: 'stale' });
    });

    it('keeps a known caller out after five minutes', async () => {
      const app = await start();
      const token = await issue();
      app.assertAllowed(await app.sendToken(token), { source: 'review' });
      stage.authority().fail('outage');
      stage.tick(300_000);
      app.assertUnavailable(await app.sendToken(token));
    });

    it('does not let a known stranger in', async () => {
      const app = await start();
      const caller = { serviceAccount: 'else/stranger' };
      const token = await issue(caller);
      app.assertRefused(await app.sendToken(token), mode.notAllowed, { source: 'review', caller });
      stage.authority().fail('outage');
      stage.tick(61_000);
      app.assertRefused(await app.sendToken(token), mode.notAllowed, { source: 'stale', caller });
    });

    it('is forgotten when it answers again', async () => {
      const app = await start();
      const token = await issue();
      stage.authority().fail('outage');
      app.assertUnavailable(await app.sendToken(token));
      await stage.authority().recover();
      app.assertAllowed(await app.sendToken(token), { source: 'review' });
    });
  });

  describe('another Promise in the place of the native one', () => {
    it('lets nobody in whom the native one would not', async () => {
      const app = await start();
      const native = globalThis.Promise;
      globalThis.Promise = new Proxy(function () {} as unknown as PromiseConstructor, {
        construct: (_target, [executor]: [ConstructorParameters<PromiseConstructor>[0]]) => new native(executor),
        // So that no promise is an instance of it.
        get: (target, name) => (name === 'prototype' || name === Symbol.hasInstance ? Reflect.get(target, name) : methodOf(native, name)),
      });
      try {
        app.assertRefused(await app.send(), mode.missing);
        app.assertRefused(await app.sendToken('garbage'), mode.invalid, { source: 'screening' });
      } finally {
        globalThis.Promise = native;
      }
    });
  });

  describe('a custom error handler', () => {
    it('answers no token with the challenge', async () => {
      const app = await start({ errorHandler: 'custom' });
      const answer = await app.send();
      app.assertRefused(answer, mode.missing);
      assert.equal(answer.body, 'failed');
    });

    it('answers a token that is not valid with the challenge', async () => {
      const app = await start({ errorHandler: 'custom' });
      const answer = await app.sendToken('garbage');
      app.assertRefused(answer, mode.invalid);
      assert.equal(answer.body, 'failed');
    });

    it('answers a stranger with the challenge', async () => {
      const app = await start({ errorHandler: 'custom' });
      const caller = { serviceAccount: 'else/stranger' };
      const answer = await app.sendToken(await issue(caller));
      app.assertRefused(answer, mode.notAllowed, { caller });
      assert.equal(answer.body, 'failed');
    });

    it('answers an outage with Retry-After', async () => {
      const app = await start({ errorHandler: 'custom' });
      stage.authority().fail('outage');
      const answer = await app.sendToken(await issue());
      app.assertUnavailable(answer);
      assert.equal(answer.body, 'failed');
    });

    it('ends the connection of an upload', async () => {
      const app = await start({ errorHandler: 'custom' });
      const answer = await app.send({ method: 'POST', body: '{}' });
      app.assertRefused(answer, mode.missing);
      assert.equal(answer.headers.connection, 'close');
    });
  });

  describe('the connection', () => {
    it('is kept where a request without a body is refused', async () => {
      const app = await start();
      const agent = new Agent({ keepAlive: true, maxSockets: 1 });
      try {
        const answer = await app.send({ agent });
        app.assertRefused(answer, mode.missing);
        assert.notEqual(answer.headers.connection, 'close');
        const next = await app.sendToken(await issue(), { agent });
        app.assertAllowed(next);
        assert.equal(next.isReused, true);
      } finally {
        agent.destroy();
      }
    });

    it('is kept where the body is said to be empty', async () => {
      const app = await start();
      const agent = new Agent({ keepAlive: true, maxSockets: 1 });
      try {
        const answer = await app.send({ agent, method: 'POST', body: '' });
        app.assertRefused(answer, mode.missing);
        assert.notEqual(answer.headers.connection, 'close');
      } finally {
        agent.destroy();
      }
    });

    it('is ended where a request with a body is refused', async () => {
      const app = await start();
      const answer = await app.send({ method: 'POST', headers: [['Content-Type', 'application/json']], body: '{}' });
      app.assertRefused(answer, mode.missing);
      assert.equal(answer.headers.connection, 'close');
    });

    it('is ended where a request with a body cannot be decided', async () => {
      const app = await start();
      stage.authority().fail('outage');
      const answer = await app.sendToken(await issue(), { method: 'POST', body: '{}' });
      app.assertUnavailable(answer);
      assert.equal(answer.headers.connection, 'close');
    });

    it('is ended at once, before the upload of a refused request has come', async () => {
      const app = await start();
      const headers: readonly HeaderLine[] = [
        ['Host', 'a'],
        ['Content-Type', 'application/json'],
        ['Content-Length', '1000000'],
      ];
      const answer = await app.converse(formatRequest('POST /guarded HTTP/1.1', headers, '{"order":'));
      app.assertRefused(answer, mode.missing);
      assert.equal(answer.headers.connection, 'close');
    });

    it('is ended at once, before the chunks of a refused request have come', async () => {
      const app = await start();
      const headers: readonly HeaderLine[] = [['Host', 'a'], line('garbage'), ['Transfer-Encoding', 'chunked']];
      const answer = await app.converse(formatRequest('POST /guarded HTTP/1.1', headers, '2\r\n{"\r\n'));
      app.assertRefused(answer, mode.invalid);
      assert.equal(answer.headers.connection, 'close');
    });

    it('carries the answers of pipelined requests in their order, each decided for itself', async () => {
      const app = await start();
      const good = line(await issue());
      const bytes = [
        formatRequest('GET /guarded HTTP/1.1', [['Host', 'a'], good]),
        formatRequest('GET /guarded HTTP/1.1', [['Host', 'a']]),
        formatRequest('GET /guarded HTTP/1.1', [['Host', 'a'], line('garbage')]),
        formatRequest('GET /guarded HTTP/1.1', [['Host', 'a'], ['Connection', 'close'], good]),
      ];
      const answers = await converse(app.url, bytes.join(''));
      assert.deepEqual(
        answers.map(({ status }) => status),
        [200, mode.missing.status, mode.invalid.status, 200],
      );
      assert.equal(app.runs, 2);
    });
  });

  describe('a body', () => {
    it('is not parsed where the request is refused', async () => {
      const app = await start();
      const headers: readonly HeaderLine[] = [['Content-Type', 'application/json']];
      app.assertRefused(await app.send({ method: 'POST', headers, body: '{"broken' }), mode.missing);
    });
  });

  describe('a guard that observes', () => {
    const observed = { enforced: false };

    it('lets a request without a token pass, and tells that it would not', async () => {
      const app = await start({ mode: 'observe' });
      const answer = await app.send();
      assertObserved(app, answer, { ...observed, outcome: 'refused', code: 'missing_token' });
    });

    it('lets a token pass that is not valid, and tells that it would not', async () => {
      const app = await start({ mode: 'observe' });
      const answer = await app.sendToken('garbage');
      assertObserved(app, answer, { ...observed, outcome: 'refused', code: 'invalid_token' });
      assertThere(JSON.parse(answer.body), mode.name, mode.value('garbage'));
    });

    it('lets a stranger pass who is nobody to the handler, and tells that it would not', async (t) => {
      t.after(holdObserveTimeout());
      const app = await start({ mode: 'observe' });
      const caller = { serviceAccount: 'else/stranger' };
      const token = await issue(caller);
      const answer = await app.sendToken(token);
      assertObserved(app, answer, { ...observed, outcome: 'refused', code: 'caller_not_allowed', caller });
    });

    it('lets a caller pass while the cluster is away', async () => {
      const app = await start({ mode: 'observe' });
      stage.authority().fail('outage');
      const answer = await app.sendToken(await issue());
      assertObserved(app, answer, { ...observed, outcome: 'unavailable', code: 'review_unavailable' });
    });

    it('lets a caller pass soon while the cluster is slow', async () => {
      const app = await start({ mode: 'observe' });
      stage.authority().fail('slow');
      const token = await issue();
      const startedMs = performance.now();
      const answer = await app.sendToken(token);
      assert.ok(performance.now() - startedMs < 8_000, 'it does not wait for the cluster, which takes 10 s');
      assertObserved(app, answer, { ...observed, outcome: 'unavailable', code: 'review_unavailable' });
    });

    it('lets a caller pass whose predicate throws', async () => {
      const app = await start({
        mode: 'observe',
        allow: () => {
          throw new Error('the predicate failed');
        },
      });
      assertObserved(app, await app.sendToken(await issue()), { ...observed, outcome: 'unavailable' });
    });

    it('hands a good caller to the handler, its header in place', async (t) => {
      t.after(holdObserveTimeout());
      const app = await start({ mode: 'observe' });
      const token = await issue();
      const echo = app.assertAllowed(await app.sendToken(token), observed);
      assert.equal(echo.caller?.['serviceAccount'], 'api/api');
      assertThere(echo, mode.name, mode.value(token));
    });

    it('lets an upload pass whole', async () => {
      const app = await start({ mode: 'observe' });
      const headers: readonly HeaderLine[] = [['Content-Type', 'application/json']];
      const answer = await app.send({ method: 'POST', headers, body: '{"order":7}' });
      assertObserved(app, answer, { ...observed, outcome: 'refused' });
      const { body }: Echo = JSON.parse(answer.body);
      assert.deepEqual(body, { order: 7 });
    });
  });
}

function assertObserved(app: App, answer: Answer, told: Partial<Decision>): void {
  assert.equal(answer.status, 200, answer.body);
  assert.equal(app.runs, 1);
  const { caller }: Echo = JSON.parse(answer.body);
  assert.equal(caller, null);
  assert.equal(answer.headers['www-authenticate'], undefined);
  assert.equal(answer.headers['retry-after'], undefined);
  assert.notEqual(answer.headers['cache-control'], 'no-store');
  assert.partialDeepStrictEqual(app.decisions, [told]);
}

/** The names in a `Vary` header. */
function namesIn(value: string | undefined): readonly string[] {
  return (value ?? '')
    .split(',')
    .map((name) => name.trim().toLowerCase())
    .toSorted();
}

function casesOfOr({ mode, start, token: issue, ...stage }: Stage): void {
  const path = '/either';
  const isOfItsOwn = mode.header === 'x-client-id';

  function assertPerson(app: App, answer: Answer): Echo {
    assert.equal(answer.status, 200, answer.body);
    assert.equal(app.runs, 1);
    const echo: Echo = JSON.parse(answer.body);
    assert.equal(echo.caller, null);
    return echo;
  }

  function assertSentAway(app: App, { status, headers }: Answer): void {
    assert.deepEqual([status, headers['www-authenticate'], app.runs], [401, 'Bearer realm="people"', 0]);
  }

  describe('a route for services or people', () => {
    it('lets a service in, and a person, about whom nobody is asked', async () => {
      const app = await start();
      app.assertAllowed(await app.sendToken(await issue(), { path }), { source: 'review' });
      assertPerson(app, await app.send({ path, headers: [jane] }));
      assert.deepEqual(app.decisions, []);
      assert.equal(stage.reviews(), 1);
    });

    it('leaves it to the other scheme to refuse whoever shows no token', async () => {
      const app = await start();
      for (const headers of [[], [['Authorization', 'Bearer garbage']], [['Authorization', 'Basic amFuZTo=']]] as const) {
        assertSentAway(app, await app.send({ path, headers }));
        assert.deepEqual(app.decisions, []);
      }
    });

    it('refuses a service, and asks nobody else about it', async () => {
      const app = await start();
      const person = isOfItsOwn ? [jane] : [];
      const told = { caller: { serviceAccount: 'bank/bank' } };
      const stranger = await issue({ serviceAccount: 'bank/bank' });
      app.assertRefused(await app.sendToken(stranger, { path, headers: person }), mode.notAllowed, told);
      app.assertRefused(await app.sendToken(forge(await issue()), { path, headers: person }), mode.invalid);
      app.assertRefused(await app.sendToken(await issue({ audience: 'bank' }), { path, headers: person }), mode.invalid);
      if (isOfItsOwn) app.assertRefused(await app.sendToken('garbage', { path, headers: person }), mode.invalid);
    });

    it('keeps no person out while the cluster cannot be asked', async () => {
      const app = await start();
      const token = await issue();
      stage.authority().fail('outage');
      assertPerson(app, await app.send({ path, headers: [jane] }));
      app.assertUnavailable(await app.sendToken(token, { path }));
    });

    it('lets nobody in by a guard that observes, which tells whom it would', async (t) => {
      t.after(holdObserveTimeout());
      const app = await start({ mode: 'observe' });
      assertSentAway(app, await app.send({ path }));
      assertSentAway(app, await app.sendToken(await issue(), { path }));
      assert.partialDeepStrictEqual(app.decisions, [{ outcome: 'allowed', enforced: false }]);
      assertPerson(app, await app.send({ path, headers: [jane] }));
      if (!isOfItsOwn) return;
      const answer = await app.sendToken(await issue(), { path, headers: [jane] });
      app.assertAllowed(answer, { enforced: false });
    });

    it('keeps shared caches from giving one’s answer to the other', async () => {
      const app = await start();
      const { headers } = await app.send({ path, headers: [jane] });
      assert.deepEqual([headers['cache-control'], headers.vary], isOfItsOwn ? ['private', 'Origin, X-Client-Id'] : [undefined, 'Origin']);
    });

    it('takes the token off, and leaves the other scheme its own', async () => {
      const app = await start();
      const token = await issue();
      const echo = app.assertAllowed(await app.sendToken(token, { path, headers: isOfItsOwn ? [jane] : [] }));
      assertGone(echo, mode, token);
      if (isOfItsOwn) assertThere(echo, ...jane);
      assertThere(assertPerson(app, await app.send({ path, headers: [jane] })), ...jane);
    });
  });
}

function casesOfXClientId({ start, token: issue }: Stage): void {
  describe('X-Client-Id', () => {
    it('makes an answer private, and adds itself to Vary', async () => {
      const app = await start();
      const { headers } = await app.sendToken(await issue());
      assert.equal(headers['cache-control'], 'private');
      assert.deepEqual(namesIn(headers.vary), ['origin', 'x-client-id']);
    });

    it('makes an answer private that was public', async () => {
      const app = await start();
      const { headers } = await app.sendToken(await issue(), { headers: [['X-Cache-Control', 'public, max-age=60']] });
      assert.equal(headers['cache-control'], 'private');
    });

    it('leaves an answer in no cache at all where it is in none', async () => {
      const app = await start();
      const { headers } = await app.sendToken(await issue(), { headers: [['X-Cache-Control', 'no-store, max-age=0']] });
      assert.equal(headers['cache-control'], 'no-store, max-age=0');
    });

    it('makes the answer to a remembered caller private too', async () => {
      const app = await start();
      const token = await issue();
      await app.sendToken(token);
      const { headers } = await app.sendToken(token);
      assert.equal(headers['cache-control'], 'private');
      assert.deepEqual(namesIn(headers.vary), ['origin', 'x-client-id']);
    });

    it('makes the answer of a route with an audience of its own private', async () => {
      const app = await start();
      const { headers } = await app.sendToken(await issue({ serviceAccount: 'ops/ops', audience: 'store-admin' }), { path: '/ops' });
      assert.equal(headers['cache-control'], 'private');
      assert.deepEqual(namesIn(headers.vary), ['origin', 'x-client-id']);
    });

    it('takes no scheme before the token', async () => {
      const app = await start();
      app.assertRefused(await app.sendToken(`Bearer ${await issue()}`), xClientId.invalid, { source: 'screening' });
    });
  });
}

function methodOf(target: object, name: PropertyKey): unknown {
  const value: unknown = Reflect.get(target, name);
  return typeof value === 'function' ? value.bind(target) : value;
}

function casesOfAuthorization({ start, token: issue }: Stage): void {
  describe('Authorization', () => {
    it('leaves caching and Vary as they are', async () => {
      const app = await start();
      const { headers } = await app.sendToken(await issue());
      assert.equal(headers['cache-control'], undefined);
      assert.deepEqual(namesIn(headers.vary), ['origin']);
    });

    it('takes Bearer in small letters', async () => {
      const app = await start();
      app.assertAllowed(await app.send({ headers: [['Authorization', `bearer ${await issue()}`]] }));
    });

    it('takes Bearer in capital letters', async () => {
      const app = await start();
      app.assertAllowed(await app.send({ headers: [['Authorization', `BEARER ${await issue()}`]] }));
    });

    it('holds no token where the scheme stands alone', async () => {
      const app = await start();
      app.assertRefused(await app.send({ headers: [['Authorization', 'Bearer']] }), authorization.missing);
    });

    it('holds no token where the scheme is Basic', async () => {
      const app = await start();
      app.assertRefused(await app.send({ headers: [['Authorization', 'Basic YXBpOmFwaQ==']] }), authorization.missing);
    });

    it('holds no token of ours where the scheme only begins with Bearer', async () => {
      const app = await start();
      app.assertRefused(await app.send({ headers: [['Authorization', `BearerToken ${await issue()}`]] }), authorization.missing);
    });

    it('holds no token of ours where there is no scheme', async () => {
      const app = await start();
      app.assertRefused(await app.send({ headers: [['Authorization', await issue()]] }), authorization.missing);
    });

    it('is refused with two spaces after the scheme', async () => {
      const app = await start();
      app.assertRefused(await app.send({ headers: [['Authorization', `Bearer  ${await issue()}`]] }), authorization.invalid);
    });

    it('is refused with a tab after the scheme', async () => {
      const app = await start();
      app.assertRefused(await app.send({ headers: [['Authorization', `Bearer\t${await issue()}`]] }), authorization.invalid);
    });

    it('is refused with a tab before the token', async () => {
      const app = await start();
      app.assertRefused(await app.send({ headers: [['Authorization', `Bearer \t${await issue()}`]] }), authorization.invalid);
    });

    it('is refused where another scheme and Bearer are repeated', async () => {
      const app = await start();
      const headers: readonly HeaderLine[] = [
        ['Authorization', 'Basic YXBpOmFwaQ=='],
        ['Authorization', `Bearer ${await issue()}`],
      ];
      app.assertRefused(await app.send({ headers }), authorization.invalid);
    });

    it('is refused where Bearer and another scheme are repeated', async () => {
      const app = await start();
      const headers: readonly HeaderLine[] = [
        ['Authorization', `Bearer ${await issue()}`],
        ['Authorization', 'Basic YXBpOmFwaQ=='],
      ];
      app.assertRefused(await app.send({ headers }), authorization.invalid);
    });
  });
}
