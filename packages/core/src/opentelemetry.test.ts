import assert from 'node:assert/strict';
import { channel, subscribe, tracingChannel, unsubscribe } from 'node:diagnostics_channel';
import { rm } from 'node:fs/promises';
import { after, afterEach, before, beforeEach, describe, it, mock } from 'node:test';
import { inspect } from 'node:util';

import { type Attributes, context, diag, DiagLogLevel, metrics, type Span, SpanKind, SpanStatusCode, trace } from '@opentelemetry/api';
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks';
import { type Histogram, MeterProvider, MetricReader } from '@opentelemetry/sdk-metrics';
import { InMemorySpanExporter, type ReadableSpan, SimpleSpanProcessor, TracerProvider } from '@opentelemetry/sdk-trace';
import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import { holdObserveTimeout } from '@k8s-sa-auth/testing/adapter-cases';

import { decisionChannel } from './decision.ts';
import { createGuard, type Guard } from './guard.ts';
import { instrument } from './opentelemetry.ts';
import type { GuardOptions } from './options.ts';
import { reviewChannel } from './review.ts';
import { createServiceClient } from './service-client.ts';
import { processStatus } from './status.ts';
import { tokenReloadChannel } from './token-file.ts';

holdObserveTimeout();

class Reader extends MetricReader {
  protected override onForceFlush(): Promise<void> {
    return Promise.resolve();
  }

  protected override onShutdown(): Promise<void> {
    return Promise.resolve();
  }
}

let authority: Authority;
let store: Pod;
let reader: Reader;
let spans: InMemorySpanExporter;
let tracerProvider: TracerProvider;
let stop: () => void;
let ends: (() => Promise<void>)[];

const quiet = { info: () => {}, warn: () => {}, error: () => {} };
const mint = (serviceAccount = 'api/api', pod = 'api-0'): Promise<string> =>
  authority.token(serviceAccount, { audience: 'secret-store', pod });

function guardWith(options: Partial<GuardOptions> = {}): Guard {
  const guard = createGuard({ audience: 'secret-store', allow: ['api/api'], apiServer: store.apiServer, logger: quiet, ...options });
  ends.push(() => guard.close());
  return guard;
}

/** How a request is answered: with 200, or with the status of the guard's error. */
async function send(guard: Guard, token?: string): Promise<number> {
  const headers = token === undefined ? {} : { 'x-client-id': token };
  const rawHeaders = Object.entries(headers).flat();
  return guard.check({ method: 'GET', headers, rawHeaders }, '/secrets/:id').then(
    () => 200,
    (error: { status: number }) => error.status,
  );
}

/** The same, in the context of a server's span. */
async function serve(guard: Guard, token?: string): Promise<ReadableSpan> {
  const span = tracerProvider.getTracer('server').startSpan('GET /secrets/:id', { kind: SpanKind.SERVER });
  await context.with(trace.setSpan(context.active(), span), () => send(guard, token));
  span.end();
  return spans.getFinishedSpans().at(-1) ?? assert.fail();
}

interface Point {
  readonly attributes: Attributes;
  readonly value: unknown;
}

async function collect(): Promise<ReadonlyMap<string, readonly Point[]>> {
  const { resourceMetrics, errors } = await reader.collect();
  assert.deepEqual(errors, []);
  const all = resourceMetrics.scopeMetrics.flatMap(({ metrics: ours }) => ours);
  return new Map(all.map(({ descriptor, dataPoints }) => [descriptor.name, dataPoints]));
}
const pointsOf = async (name: string): Promise<readonly Point[]> => (await collect()).get(name) ?? [];
const valueOf = async (name: string, labels: Attributes = {}): Promise<unknown> =>
  (await pointsOf(name)).find(({ attributes }) => Object.entries(labels).every(([key, value]) => attributes[key] === value))?.value;
const reviewSpans = (): ReadableSpan[] => spans.getFinishedSpans().filter(({ kind }) => kind === SpanKind.CLIENT);

before(async () => {
  authority = await createAuthority();
  store = await authority.pod('secret-store/secret-store');
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
});
after(async () => {
  context.disable();
  await authority.close();
});
beforeEach(() => {
  ends = [];
  reader = new Reader();
  spans = new InMemorySpanExporter();
  tracerProvider = new TracerProvider({ spanProcessors: [new SimpleSpanProcessor({ exporter: spans })] });
  stop = instrument({ meterProvider: new MeterProvider({ readers: [reader] }), tracerProvider });
});
afterEach(async () => {
  stop();
  mock.timers.reset();
  await authority.recover();
  await Promise.all(ends.map((end) => end()));
});

describe('instrument, its metrics', () => {
  it('count decisions by outcome, code, reason, audience, source, and whether they are enforced', async () => {
    const guard = guardWith();
    const token = await mint();
    await send(guard, token);
    await send(guard, token);
    await send(guard, token);
    await send(guard);
    await send(guard.with({ allow: ['ops/*'], audience: ['secret-store', 'admin'], mode: 'observe' }), token);
    assert.deepEqual(
      (await pointsOf('k8s_sa_auth.decisions')).map(({ attributes, value }) => [value, attributes]),
      [
        [1, { outcome: 'allowed', enforced: true, source: 'review', audience: 'secret-store' }],
        [2, { outcome: 'allowed', enforced: true, source: 'cache', audience: 'secret-store' }],
        [
          1,
          { outcome: 'refused', enforced: true, source: 'screening', audience: 'secret-store', code: 'missing_token', reason: 'no_token' },
        ],
        [
          1,
          {
            outcome: 'refused',
            enforced: false,
            source: 'screening',
            audience: 'admin,secret-store',
            code: 'caller_not_allowed',
            reason: 'not_in_allow',
          },
        ],
      ],
    );
  });

  it('measure decisions and reviews in seconds', async () => {
    const guard = guardWith();
    const token = await mint();
    await send(guard, token);
    await send(guard, token);
    const decided = (await valueOf('k8s_sa_auth.decision.duration', { source: 'review' })) as Histogram;
    const reviewed = (await valueOf('k8s_sa_auth.review.duration', { outcome: 'accepted' })) as Histogram;
    assert.deepEqual([decided.count, reviewed.count], [1, 1]);
    assert.ok((reviewed.sum ?? 0) > 0 && (reviewed.sum ?? 0) < (decided.sum ?? 0));
    assert.ok((decided.sum ?? 0) < 5);
    assert.deepEqual([decided.buckets.boundaries[0], decided.buckets.boundaries.at(-1)], [0.0001, 5]);
  });

  it('tell why a review failed', async () => {
    authority.fail('forbidden');
    assert.equal(await send(guardWith(), await mint()), 503);
    const [point] = await pointsOf('k8s_sa_auth.review.duration');
    assert.deepEqual(point?.attributes, { resource: 'tokenreviews', outcome: 'unavailable', 'error.type': 'own_permission_missing' });
  });

  it('tell tokens from what their callers may do', async () => {
    const guard = guardWith({ authorize: { verb: 'get', resource: 'secrets' } });
    assert.equal(await send(guard, await mint()), 403);
    const points = await pointsOf('k8s_sa_auth.review.duration');
    assert.deepEqual(
      points.map(({ attributes }) => attributes),
      [
        { resource: 'tokenreviews', outcome: 'accepted' },
        { resource: 'subjectaccessreviews', outcome: 'refused' },
      ],
    );
    assert.equal(await valueOf('k8s_sa_auth.decisions', { code: 'caller_not_allowed', reason: 'not_authorized' }), 1);
    assert.equal(await valueOf('k8s_sa_auth.memory.entries', { kind: 'access' }), 1);
    assert.deepEqual(
      reviewSpans().map(({ attributes }) => attributes['url.template']),
      ['/apis/authentication.k8s.io/v1/tokenreviews', '/apis/authorization.k8s.io/v1/subjectaccessreviews'],
    );
  });

  it('show reviews under way, who waits for them, and what is remembered', async () => {
    const guard = guardWith();
    const token = await mint();
    const during: (readonly unknown[])[] = [];
    const look = (): void => {
      const [state] = processStatus().guards;
      during.push([state?.reviewsInFlight, state?.requestsWaiting]);
    };
    subscribe(`tracing:${reviewChannel}:asyncEnd`, look);
    await Promise.all([send(guard, token), send(guard, token), send(guard, token)]);
    unsubscribe(`tracing:${reviewChannel}:asyncEnd`, look);
    assert.deepEqual(during, [[1, 2]]);
    const gone = await mint('api/api', 'gone');
    await authority.delete('pod', 'api/gone');
    assert.equal(await send(guard, gone), 403);
    assert.equal(await valueOf('k8s_sa_auth.reviews.in_flight'), 0);
    assert.equal(await valueOf('k8s_sa_auth.requests.waiting'), 0);
    assert.equal(await valueOf('k8s_sa_auth.memory.entries', { kind: 'caller' }), 1);
    assert.equal(await valueOf('k8s_sa_auth.memory.entries', { kind: 'refusal' }), 1);
  });

  it('show that a guard has stopped asking', async () => {
    const guard = guardWith();
    await send(guard, await mint());
    assert.equal(await valueOf('k8s_sa_auth.breaker.open'), 0);
    authority.fail('outage');
    for (let index = 0; (await valueOf('k8s_sa_auth.breaker.open')) === 0; index++) {
      assert.ok(index < 50);
      await send(guard, await mint('api/api', `unknown-${index}`));
    }
    assert.equal(await valueOf('k8s_sa_auth.breaker.open'), 1);
    assert.ok(await valueOf('k8s_sa_auth.decisions', { outcome: 'unavailable', code: 'review_unavailable', reason: 'connection_failed' }));
  });

  it('show the age of the signing keys only where these alone decide', async () => {
    await guardWith().ready();
    assert.equal(await valueOf('k8s_sa_auth.signing_keys.age'), undefined);
    await guardWith({ verification: 'signature' }).ready();
    const now = Date.now();
    mock.timers.enable({ apis: ['Date'], now: now + 600_000 });
    const age = Number(await valueOf('k8s_sa_auth.signing_keys.age'));
    assert.ok(age >= 600 && age < 660, String(age));
  });

  it('follow the token of each target: its age, the time that is left, and each reload', async () => {
    const api = await authority.pod('api/api', { tokens: { store: 'secret-store' } });
    const tokenFile = api.tokenFile('store');
    const client = createServiceClient({ targets: [{ origin: 'http://store', tokenFile }], logger: quiet });
    ends.push(() => client.close());
    await client.ready();
    const labels = { token_file: tokenFile, audience: 'secret-store' };
    assert.ok(Number(await valueOf('k8s_sa_auth.token.age', labels)) < 60);
    const left = Number(await valueOf('k8s_sa_auth.token.time_to_expiry', labels));
    assert.ok(left > 3_500 && left <= 3_600, String(left));
    assert.equal(await valueOf('k8s_sa_auth.token.reloads', { token_file: tokenFile }), 1);

    const failed = new Promise<void>((resolve) => {
      const listen = (message: unknown): void => {
        if ((message as { code?: string }).code === undefined) return;
        unsubscribe(tokenReloadChannel, listen);
        resolve();
      };
      subscribe(tokenReloadChannel, listen);
    });
    await rm(tokenFile);
    mock.timers.enable({ apis: ['Date'], now: Date.now() + 4_000_000 });
    await assert.rejects(client.ready(), { name: 'TokenFileError' });
    await failed;
    assert.ok(await valueOf('k8s_sa_auth.token.reloads', { token_file: tokenFile, code: 'token_file_unreadable' }));
    assert.ok(Number(await valueOf('k8s_sa_auth.token.time_to_expiry', labels)) < 0);
  });

  it('hold no token, no caller and no route', async () => {
    const guard = guardWith();
    const tokens = [await mint(), await mint('stranger/stranger')];
    for (const token of [...tokens, `${tokens[0]}x`]) await send(guard, token);
    const text = inspect(await collect(), { depth: 20 });
    assert.match(text, /caller_not_allowed/);
    for (const word of ['stranger', 'api/api', '/secrets', 'api-0', ...tokens.map((token) => token.split('.')[2] ?? '')]) {
      assert.ok(!text.includes(word), word);
    }
  });

  it('come from the global providers where none are named', async () => {
    stop();
    metrics.setGlobalMeterProvider(new MeterProvider({ readers: [(reader = new Reader())] }));
    trace.setGlobalTracerProvider(tracerProvider);
    stop = instrument();
    await send(guardWith(), await mint());
    assert.equal(await valueOf('k8s_sa_auth.decisions'), 1);
    assert.equal(reviewSpans().length, 1);
    metrics.disable();
    trace.disable();
  });
});

describe('instrument, its spans', () => {
  it('are one for a review, below the span of the request that asked', async () => {
    const guard = guardWith();
    const token = await mint();
    const server = await serve(guard, token);
    await serve(guard, token);
    const [review, ...others] = reviewSpans();
    assert.equal(others.length, 0);
    assert.equal(review?.name, 'POST /apis/authentication.k8s.io/v1/tokenreviews');
    assert.equal(review.parentSpanContext?.spanId, server.spanContext().spanId);
    const { hostname, port } = new URL(store.apiServer.url);
    assert.deepEqual(review.attributes, {
      'http.request.method': 'POST',
      'http.response.status_code': 201,
      'server.address': hostname,
      'server.port': Number(port),
      'url.full': `${store.apiServer.url}/apis/authentication.k8s.io/v1/tokenreviews`,
      'url.scheme': 'https',
      'url.template': '/apis/authentication.k8s.io/v1/tokenreviews',
      'k8s_sa_auth.outcome': 'accepted',
    });
    assert.equal(review.status.code, SpanStatusCode.UNSET);
  });

  it('are one for many requests that wait for one review', async () => {
    const guard = guardWith();
    const token = await mint();
    await Promise.all([serve(guard, token), serve(guard, token), serve(guard, token)]);
    assert.equal(reviewSpans().length, 1);
  });

  it('fail where the cluster gives no answer, and not where it says no', async () => {
    const guard = guardWith();
    const token = await mint('api/api', 'short');
    await authority.delete('pod', 'api/short');
    assert.equal(await send(guard, token), 403);
    authority.fail('forbidden');
    assert.equal(await send(guard, await mint()), 503);
    await authority.recover();
    authority.fail('outage');
    assert.equal(await send(guard, await mint()), 503);
    assert.deepEqual(
      reviewSpans().map(({ status, attributes }) => [status.code, attributes['error.type'], attributes['http.response.status_code']]),
      [
        [SpanStatusCode.UNSET, undefined, 201],
        [SpanStatusCode.ERROR, 'own_permission_missing', 403],
        [SpanStatusCode.ERROR, 'connection_failed', undefined],
      ],
    );
  });

  it('end where our own options are wrong', async () => {
    const guard = guardWith({ audience: ['secret-store', 'https://kubernetes.default.svc.cluster.local'] });
    await send(guard, await mint());
    const [review] = reviewSpans();
    assert.deepEqual([review?.status.code, review?.attributes['error.type']], [SpanStatusCode.ERROR, 'TypeError']);
  });

  it('of the server say what was decided, and who called where that was proven', async () => {
    const guard = guardWith();
    const allowed = await serve(guard, await mint());
    assert.deepEqual(allowed.attributes, {
      'k8s_sa_auth.outcome': 'allowed',
      'k8s_sa_auth.enforced': true,
      'k8s_sa_auth.source': 'review',
      'k8s_sa_auth.audiences': ['secret-store'],
      'user.name': 'system:serviceaccount:api:api',
      'user.id': allowed.attributes['user.id'],
      'k8s_sa_auth.caller.service_account': 'api/api',
      'k8s_sa_auth.caller.pod': 'api-0',
    });
    assert.match(String(allowed.attributes['user.id']), /^[\da-f-]{36}$/);
    assert.deepEqual((await serve(guard)).attributes, {
      'k8s_sa_auth.outcome': 'refused',
      'k8s_sa_auth.enforced': true,
      'k8s_sa_auth.source': 'screening',
      'k8s_sa_auth.audiences': ['secret-store'],
      'k8s_sa_auth.code': 'missing_token',
      'k8s_sa_auth.reason': 'no_token',
    });
  });

  it('hold no token', async () => {
    const guard = guardWith();
    const token = await mint();
    await serve(guard, token);
    authority.fail({ status: 500, body: JSON.stringify({ message: `cannot review ${token}` }) });
    await serve(guard, await mint('api/api', 'other'));
    const text = inspect(
      spans.getFinishedSpans().map(({ name, attributes, events, status }) => [name, attributes, events, status]),
      { depth: 20 },
    );
    assert.match(text, /cannot review \[token\]/);
    assert.ok(!text.includes(token.split('.')[2] ?? assert.fail()));
  });
});

describe('instrument', () => {
  it('stops', async () => {
    const channels = [decisionChannel, tokenReloadChannel].map((name) => channel(name));
    const isHeard = (): boolean => channels.some((one) => one.hasSubscribers) || tracingChannel(reviewChannel).hasSubscribers;
    assert.equal(isHeard(), true);
    stop();
    assert.equal(isHeard(), false);
    const guard = guardWith();
    await send(guard, await mint());
    assert.deepEqual([...(await collect()).keys()], []);
  });

  it('decides nothing where a meter or a tracer fails', async () => {
    stop();
    const told: unknown[] = [];
    const log = (...line: unknown[]): void => void told.push(line);
    diag.setLogger({ error: log, warn: log, info: log, debug: log, verbose: log }, DiagLogLevel.ERROR);
    const fail = (): never => {
      throw new Error('exporter gone');
    };
    const meterProvider = new MeterProvider({ readers: [(reader = new Reader())] });
    const meter = meterProvider.getMeter('broken');
    mock.method(meter, 'createCounter', () => ({ add: fail }));
    mock.method(meter, 'createHistogram', () => ({ record: fail }));
    const tracer = { startSpan: (): Span => fail(), startActiveSpan: fail };
    stop = instrument({ meterProvider: { getMeter: () => meter }, tracerProvider: { getTracer: () => tracer } });
    assert.equal(await send(guardWith(), await mint()), 200);
    diag.disable();
    assert.equal(told.length, 2);
    assert.match(inspect(told), /a metric or a span is missing.*exporter gone/s);
  });
});
