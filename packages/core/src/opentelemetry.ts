// What OpenTelemetry is told: metrics, a span for each review, and on the server's span who called and what was decided. An entry of its own.

import { subscribe, unsubscribe } from 'node:diagnostics_channel';

import {
  type Attributes,
  type BatchObservableCallback,
  diag,
  type Histogram,
  type Meter,
  type MeterProvider,
  metrics,
  type Observable,
  type ObservableResult,
  type Span,
  SpanKind,
  SpanStatusCode,
  trace,
  type Tracer,
  type TracerProvider,
} from '@opentelemetry/api';

import { type Decision, decisionChannel } from './decision.ts';
import { type Review, reviewChannel } from './review.ts';
import { type GuardStatus, processStatus } from './status.ts';
import { type TokenReload, tokenReloadChannel } from './token-file.ts';

export interface InstrumentOptions {
  /** Default: the global one at the time of the call. */
  readonly meterProvider?: MeterProvider;
  /** Default: the global one. */
  readonly tracerProvider?: TracerProvider;
}

const scope = '@k8s-sa-auth/core';

/**
 * Tells OpenTelemetry of all guards and clients of this process, whenever they are made, until the returned function is called. Call it once,
 * after the SDK has started. No label and no attribute ever holds a token, a request's URL or the name of a caller that was not proven; metrics
 * name no caller at all. Whatever fails in here is told to OpenTelemetry's `diag`, and decides no request.
 */
export function instrument(options: InstrumentOptions = {}): () => void {
  const meter = (options.meterProvider ?? metrics.getMeterProvider()).getMeter(scope);
  const tracer = (options.tracerProvider ?? trace.getTracerProvider()).getTracer(scope);
  const stops = [followDecisions(meter), followReviews(meter, tracer), followTokens(meter), observeStatus(meter)];
  return () => {
    for (const stop of stops) stop();
  };
}

function followDecisions(meter: Meter): () => void {
  const decisions = meter.createObservableCounter('k8s_sa_auth.decisions', {
    description: 'Requests that were decided; enforced="false" tells what an observing guard would have done',
    unit: '{decision}',
  });
  const duration = meter.createHistogram('k8s_sa_auth.decision.duration', {
    description: 'How long requests waited for their decision',
    unit: 's',
    // From memory a decision takes microseconds; one that needs a review waits at most 5 s, and 5 s more with `authorize`.
    advice: { explicitBucketBoundaries: [0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5] },
  });
  // Counted here, and told when a reader collects: a counter of the SDK sorts and writes out all labels of every decision.
  const counts = new Map<string, { readonly labels: Attributes; count: number }>();
  const stopCounting = listen(decisionChannel, (decision: Decision) => {
    const { outcome, enforced, code, reason, source, audiences, durationMs } = decision;
    const audience = audiences.join();
    const key = `${outcome} ${enforced} ${source} ${code} ${reason} ${audience}`;
    const known = counts.get(key);
    if (known !== undefined) known.count += 1;
    else counts.set(key, { labels: { outcome, enforced, source, audience, ...(code && { code }), ...(reason && { reason }) }, count: 1 });
    duration.record(durationMs / 1000, { outcome, source });
    const span = trace.getActiveSpan();
    if (span?.isRecording() === true) span.setAttributes(attributesOf(decision));
  });
  const tell = (result: ObservableResult): void => {
    for (const { labels, count } of counts.values()) result.observe(count, labels);
  };
  decisions.addCallback(tell);
  return () => {
    stopCounting();
    decisions.removeCallback(tell);
  };
}

// Kubernetes calls whoever a token names a user. `k8s.*` is left alone: on a span it would be read as this pod's.
function attributesOf({ outcome, enforced, code, reason, source, audiences, caller }: Decision): Attributes {
  return {
    'k8s_sa_auth.outcome': outcome,
    'k8s_sa_auth.enforced': enforced,
    'k8s_sa_auth.source': source,
    'k8s_sa_auth.audiences': [...audiences],
    ...(code && { 'k8s_sa_auth.code': code }),
    ...(reason && { 'k8s_sa_auth.reason': reason }),
    ...(caller && { 'user.name': caller.username, 'user.id': caller.uid, 'k8s_sa_auth.caller.service_account': caller.serviceAccount }),
    ...(caller?.pod && { 'k8s_sa_auth.caller.pod': caller.pod.name }),
  };
}

// https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-client-span
function followReviews(meter: Meter, tracer: Tracer): () => void {
  const duration = meter.createHistogram('k8s_sa_auth.review.duration', {
    description: 'How long the API server took to answer about a caller, a second attempt included',
    unit: 's',
    advice: { explicitBucketBoundaries: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5] },
  });
  const begun = new WeakMap<Review, { readonly span: Span; readonly startedMs: number }>();
  // Published in the context of the request that asked, whose span is the parent.
  const stopStarts = listen(`tracing:${reviewChannel}:start`, (review: Review) => {
    const { protocol, hostname, port, pathname } = new URL(review.url);
    const attributes = {
      'http.request.method': review.method,
      'server.address': hostname.replace(/^\[(.*)\]$/, '$1'),
      'server.port': Number(port || 443),
      'url.full': review.url,
      'url.scheme': protocol.slice(0, -1),
      'url.template': pathname,
    };
    const span = tracer.startSpan(`${review.method} ${pathname}`, { kind: SpanKind.CLIENT, attributes });
    begun.set(review, { span, startedMs: performance.now() });
  });
  const stopEnds = listen(`tracing:${reviewChannel}:asyncEnd`, (review: Review) => {
    const its = begun.get(review);
    if (its !== undefined) endReview(review, its.span, (performance.now() - its.startedMs) / 1000, duration);
  });
  return () => {
    stopStarts();
    stopEnds();
  };
}

function endReview({ resource, status, result, error }: Review, span: Span, seconds: number, duration: Histogram): void {
  if (status !== undefined) span.setAttribute('http.response.status_code', status);
  if (result === undefined) {
    span.setAttribute('error.type', error instanceof Error ? error.name : '_OTHER');
    span.setStatus({ code: SpanStatusCode.ERROR });
  } else {
    // A refusal is a good answer.
    const failure = result.outcome === 'unavailable' ? { 'error.type': result.reason } : {};
    if (result.outcome === 'unavailable') span.setStatus({ code: SpanStatusCode.ERROR, message: result.detail ?? result.reason });
    span.setAttributes({ 'k8s_sa_auth.outcome': result.outcome, ...failure });
    duration.record(seconds, { resource, outcome: result.outcome, ...failure });
  }
  span.end();
}

function followTokens(meter: Meter): () => void {
  const reloads = meter.createCounter('k8s_sa_auth.token.reloads', {
    description: 'Reloads of token files; those that failed have a code',
    unit: '{reload}',
  });
  return listen(tokenReloadChannel, ({ tokenFile, code }: TokenReload) => reloads.add(1, { token_file: tokenFile, ...(code && { code }) }));
}

type Count = Exclude<keyof GuardStatus, 'audiences' | 'verification' | 'breaker' | 'keysLoadedAt'>;

// Asked of the guards and clients themselves whenever a reader collects.
function observeStatus(meter: Meter): () => void {
  const inFlight = meter.createObservableUpDownCounter('k8s_sa_auth.reviews.in_flight', {
    description: 'Reviews under way, at most 32 for each guard',
    unit: '{review}',
  });
  const waiting = meter.createObservableUpDownCounter('k8s_sa_auth.requests.waiting', {
    description: 'Requests that wait for a review, at most 1 000 for each guard',
    unit: '{request}',
  });
  const entries = meter.createObservableUpDownCounter('k8s_sa_auth.memory.entries', {
    description: 'Remembered callers (at most 10 000 for each guard), refusals (1 000) and answers to "authorize" (11 000)',
    unit: '{entry}',
  });
  const open = meter.createObservableUpDownCounter('k8s_sa_auth.breaker.open', {
    description: 'Guards that review no token, since the API server does not answer',
    unit: '{guard}',
  });
  const keyAge = meter.createObservableGauge('k8s_sa_auth.signing_keys.age', {
    description: "Time since the signing keys were loaded, where they alone decide: verification 'signature' uses none older than 1 h",
    unit: 's',
  });
  const tokenAge = meter.createObservableGauge('k8s_sa_auth.token.age', {
    description: 'Time since the token of a target was minted; the kubelet renews it at 80 % of its life',
    unit: 's',
  });
  const timeToExpiry = meter.createObservableGauge('k8s_sa_auth.token.time_to_expiry', {
    description: 'Time until the token of a target expires; below zero nothing is sent',
    unit: 's',
  });

  const callback = safely((result: Parameters<BatchObservableCallback>[0]): void => {
    const { guards, targets } = processStatus();
    const secondsSince = (date: Date): number => (Date.now() - date.getTime()) / 1000;
    if (guards.length > 0) {
      const total = (count: Count): number => guards.reduce((sum, guard) => sum + guard[count], 0);
      result.observe(inFlight, total('reviewsInFlight'));
      result.observe(waiting, total('requestsWaiting'));
      result.observe(entries, total('callersRemembered'), { kind: 'caller' });
      result.observe(entries, total('refusalsRemembered'), { kind: 'refusal' });
      result.observe(entries, total('accessesRemembered'), { kind: 'access' });
      result.observe(open, guards.filter(({ breaker }) => breaker === 'open').length);
    }
    const ages = guards.flatMap(({ verification, keysLoadedAt }) =>
      verification === 'signature' && keysLoadedAt !== undefined ? [secondsSince(keysLoadedAt)] : [],
    );
    if (ages.length > 0) result.observe(keyAge, Math.max(...ages));
    for (const { tokenFile, audience, issuedAt, expiresAt } of targets) {
      const labels = { token_file: tokenFile, ...(audience !== undefined && { audience }) };
      if (issuedAt !== undefined) result.observe(tokenAge, secondsSince(issuedAt), labels);
      if (expiresAt !== undefined) result.observe(timeToExpiry, -secondsSince(expiresAt), labels);
    }
  });
  const observed: Observable[] = [inFlight, waiting, entries, open, keyAge, tokenAge, timeToExpiry];
  meter.addBatchObservableCallback(callback, observed);
  return () => meter.removeBatchObservableCallback(callback, observed);
}

function listen(channel: string, tell: (message: never) => void): () => void {
  const listener = safely(tell as (message: unknown) => void);
  subscribe(channel, listener);
  return () => void unsubscribe(channel, listener);
}

// A subscriber that throws ends the process, and a callback that does fails the collection of all other metrics.
function safely<Message>(tell: (message: Message) => void): (message: Message) => void {
  return (message) => {
    try {
      tell(message);
    } catch (error) {
      diag.error(`${scope}: a metric or a span is missing`, error);
    }
  };
}
