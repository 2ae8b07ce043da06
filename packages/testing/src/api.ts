// The only place that knows the authority's paths: what each request goes through, and which part answers it.
import type { IncomingMessage, ServerResponse } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import { checkAcceptable, flowHeaders, objectTypes, readWanted, refusal, send } from './answer.ts';
import type { Answer, Wanted } from './answer.ts';
import { createAuthenticator, Panic } from './authentication.ts';
import type { Authentication } from './authentication.ts';
import type { CallLog } from './calls.ts';
import type { Cluster } from './cluster.ts';
import { readClientCertificate } from './client-certificates.ts';
import { controlPath } from './control.ts';
import type { Control } from './control.ts';
import { answerDiscovery, hasGroup } from './discovery.ts';
import { mediaTypeOf, readAny, readBody, readDeletion, readObject, readPatch, readPatched } from './exchange.ts';
import type { Exchange } from './exchange.ts';
import type { Faults, Strike } from './faults.ts';
import { answerHealth } from './health.ts';
import { readRecord } from './json.ts';
import { impersonate } from './impersonation.ts';
import { cut } from './listener.ts';
import { authorize } from './nodes.ts';
import { forbidden } from './rbac.ts';
import type { Attributes, UserInfo } from './rbac.ts';
import { createRegistry } from './registry.ts';
import type { Controllers } from './registry.ts';
import { formatGroupVersion, resourceKinds } from './resources.ts';
import { createReviews } from './reviews.ts';
import { EarlyError, methodNotAllowed, noSuchResource, notNegotiable, StatusError, timedOut, unauthorized } from './status.ts';
import { parseTarget } from './target.ts';
import type { Target } from './target.ts';

/** What the API needs beside the cluster. */
export interface ApiOptions {
  readonly cluster: Cluster;
  readonly faults: Faults;
  readonly log: CallLog;
  /** The address under which the key set is published. */
  readonly url: () => string;
  /** Ends waits when the authority closes. */
  readonly signal: AbortSignal;
  /** What follows a change of objects. Default: nothing, as on an API server that stands alone. */
  readonly controllers?: Controllers;
  /** Answers the paths by which the authority itself is moved. Default: there are none. */
  readonly control?: Control;
}

const version = {
  major: '1',
  minor: '36',
  emulationMajor: '1',
  emulationMinor: '36',
  minCompatibilityMajor: '1',
  minCompatibilityMinor: '35',
  gitVersion: 'v1.36.2',
  gitCommit: '98b35193b2ac7a23a673325f5e9b830ecd5ba406',
  gitTreeState: 'clean',
  buildDate: '2026-11-23T00:00:00Z',
  goVersion: 'go1.26.10',
  compiler: 'gc',
  platform: 'linux/amd64',
};

const json = 'application/json';
const keySet = 'application/jwk-set+json';

/** Makes the handler of every request. */
export function createApi({
  cluster,
  faults,
  log,
  url,
  signal,
  controllers,
  control,
}: ApiOptions): (request: IncomingMessage, response: ServerResponse) => void {
  const authenticator = createAuthenticator(cluster, url);
  const { objects } = cluster;
  const review = createReviews(cluster, authenticator);
  const registry = createRegistry(cluster, controllers);

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const target = parseTarget(request.method ?? 'GET', request.url ?? '/');
    const wanted = readWanted(request, target.query);
    const exchange: Exchange = { request, target, body: await readBody(request), user: undefined, warnings: [], wanted };
    if (control !== undefined && target.path.startsWith(controlPath)) {
      send(response, await answerControl(exchange, control), wanted);
      return;
    }
    const strike = faults.strike(resourceOf(target));
    if (strike !== undefined && strike.fault !== 'etcd-outage') await wait(strike.delayMs ?? (strike.fault === 'slow' ? 10_000 : 0));
    const answered = strike?.fault === 'reset' ? undefined : decide(exchange, strike);
    record(exchange, answered?.status ?? 0);
    if (answered === undefined) {
      cut(request, response);
      return;
    }
    await wait(answered.afterMs ?? 0);
    const { warnings } = exchange;
    const headers = warnings.length === 0 ? {} : { Warning: warnings.map((one) => `299 - ${JSON.stringify(one)}`) };
    if (strike?.fault === 'broken-body') {
      send(
        response,
        { ...answered, headers: { ...answered.headers, 'Content-Type': 'application/json' }, body: halve(answered.body) },
        wanted,
      );
    } else send(response, { ...answered, headers: { ...answered.headers, ...headers } }, wanted);
  }

  async function wait(ms: number): Promise<void> {
    if (ms > 0) await delay(ms, undefined, { ref: false, signal });
  }

  // No fault strikes here, and nothing is counted: what a test does to the authority is not what it tests.
  async function answerControl(exchange: Exchange, answerTo: Control): Promise<Answer> {
    try {
      const user = authenticateCaller(exchange, false);
      const { path, attributes } = exchange.target;
      if (!user.groups.includes('system:masters')) throw forbidden(user, attributes);
      return await answerTo(exchange.request.method ?? 'GET', path, readAny(exchange));
    } catch (error) {
      if (error instanceof StatusError) return refusal(error);
      throw error;
    }
  }

  function record({ target, user }: Exchange, status: number): void {
    const [, serviceAccount] = /^system:serviceaccount:(.*)$/.exec(user?.username ?? '') ?? [];
    const who = serviceAccount === undefined ? {} : { serviceAccount: serviceAccount.replace(':', '/') };
    log.record({ verb: target.attributes.verb, resource: resourceOf(target), ...who, status });
  }

  /** `undefined` where there is no answer: the connection is to be cut. */
  function decide(exchange: Exchange, strike: Strike | undefined): Answer | undefined {
    const fault = strike?.fault;
    try {
      if (typeof fault === 'object') return { status: fault.status, headers: fault.headers ?? {}, body: fault.body ?? '' };
      if (fault === 'unauthorized') throw unauthorized();
      if (exchange.target.attributes.verb !== 'watch') checkTimeout(exchange.target.query.get('timeout') ?? '');
      const user = authenticateCaller(exchange, fault === 'etcd-outage');
      exchange.user = user;
      if (fault === 'too-many-requests') return tooManyRequests();
      const { attributes } = exchange.target;
      if (fault === 'forbidden') throw forbidden(user, attributes);
      const { allowed, reason } = authorize(objects, user, attributes);
      if (!allowed) throw forbidden(user, attributes, reason);
      return 'path' in attributes
        ? answerPath(exchange, attributes.path, fault === 'etcd-outage' ? (strike ?? {}) : undefined)
        : answerResource(exchange, attributes, user, strike);
    } catch (error) {
      if (error instanceof Panic) return undefined;
      if (error instanceof StatusError) return refusal(error);
      throw error;
    }
  }

  // In the order of a real API server: a certificate counts before a token, and one that does not verify is no reason to look no further.
  function authenticateCaller({ request, target, warnings }: Exchange, isStorageFrozen: boolean): UserInfo {
    const certified = readClientCertificate(request.socket, cluster.now());
    const [, credentials = ''] = /^bearer(?:$| (.*)$)/i.exec(request.headers.authorization ?? '') ?? [];
    const result: Authentication =
      certified?.user === undefined
        ? authenticator.authenticate(credentials, { path: target.path, isStorageFrozen })
        : { user: certified.user, audiences: cluster.apiAudiences };
    if (result.warning !== undefined) warnings.push(result.warning);
    if ('error' in result) throw unauthorized();
    if (certified !== undefined && result.user.username === 'system:anonymous') throw unauthorized();
    return impersonate(objects, result.user, request.headers);
  }

  function answerPath({ request, target }: Exchange, path: string, outage: { readonly delayMs?: number | undefined } | undefined): Answer {
    const health = answerHealth(path, target.query, outage !== undefined);
    if (health !== undefined) return { ...health, ...(outage?.delayMs === undefined ? {} : { afterMs: outage.delayMs }) };
    const published = { 'Cache-Control': 'public, max-age=3600' };
    const routes: Readonly<Record<string, { readonly mediaType: string; readonly answer: () => Answer }>> = {
      '/version': { mediaType: json, answer: () => answerJson(json, JSON.stringify(version, undefined, 2)) },
      '/.well-known/openid-configuration': { mediaType: json, answer: () => answerJson(json, JSON.stringify(describeIssuer()), published) },
      // Here plain application/json is refused.
      '/openid/v1/jwks': { mediaType: keySet, answer: () => answerJson(keySet, JSON.stringify(cluster.keys.keySet()), published) },
    };
    const route = routes[path.replace(/\/$/, '')];
    if (route === undefined) {
      return answerDiscovery(request, path, new URL(url()).host) ?? { status: 404, body: '404 page not found\n' };
    }
    if (request.method !== 'GET') throw methodNotAllowed();
    checkAcceptable(request, [route.mediaType]);
    return route.answer();
  }

  function describeIssuer(): object {
    return {
      issuer: cluster.issuers[0],
      jwks_uri: `${url()}/openid/v1/jwks`,
      response_types_supported: ['id_token'],
      subject_types_supported: ['public'],
      id_token_signing_alg_values_supported: cluster.keys.algorithms(),
    };
  }

  function answerResource(
    exchange: Exchange,
    attributes: Extract<Attributes, { resource: string }>,
    user: UserInfo,
    strike?: Strike,
  ): Answer {
    const { target, request } = exchange;
    const { group, resource, subresource = '', name = '', namespace = '', verb } = attributes;
    if (!hasGroup(group)) return { status: 404, body: '404 page not found\n' };
    if (target.isDeeper) throw noSuchResource();
    const kind = resourceKinds.find((one) => one.resource === resource && one.group === group);
    const isKept = kind !== undefined && target.version === 'v1' && subresource !== 'token';
    if (strike?.fault === 'etcd-outage' && verb !== 'watch' && (isKept || subresource === 'token')) return timeOut(verb, strike);
    if (!isKept) return present(review({ exchange, user, strike }), exchange.wanted);
    // Node has no answer to a HEAD of its own, and a real API server has none at all.
    if (request.method === 'HEAD') throw methodNotAllowed();
    const type = { kind: kind.kind, apiVersion: formatGroupVersion(kind.group) };
    return registry({
      verb,
      kind,
      namespace: kind.kind === 'Namespace' ? '' : namespace,
      name,
      subresource,
      user,
      query: target.query,
      as: exchange.wanted.as[0] ?? '',
      mediaType: mediaTypeOf(request),
      route: () => checkAcceptable(request),
      body: () => readObject(exchange, type),
      patch: () => readPatch(exchange),
      deletion: () => readDeletion(exchange),
      patched: (object, shown) => readPatched(exchange, type, object, shown),
    });
  }

  return (request, response) => {
    answer(request, response).catch((error: unknown) => {
      cut(request, response);
      // A client that went away, or our own end, is no fault of ours; anything else is a bug here, and has to be seen.
      if (!signal.aborted && !request.errored) process.emitWarning(error instanceof Error ? error : String(error));
    });
  };
}

// What is JSON whatever form was asked for.
function answerJson(mediaType: string, body: string, headers: Readonly<Record<string, string>> = {}): Answer {
  return { status: 200, headers: { ...headers, 'Content-Type': mediaType }, body };
}

// A review can be shown as its metadata, and in no columns.
function present(answer: Answer, { as }: Wanted): Answer {
  const chosen = as.find((one) => one === '' || one === 'PartialObjectMetadata');
  if (chosen === undefined) throw notNegotiable(objectTypes);
  const { metadata } = readRecord(answer.body);
  return chosen === '' ? answer : { ...answer, body: { kind: chosen, apiVersion: 'meta.k8s.io/v1', metadata } };
}

// What is not read from memory ends with the time that a request has: 34 s for a change, 60 s for all else.
function timeOut(verb: string, { delayMs }: Strike): Answer {
  const isRead = ['get', 'list'].includes(verb);
  const reason = isRead ? 'request did not complete within the allotted timeout' : 'request did not complete within requested timeout';
  const error = timedOut(isRead ? reason : `${reason} - context deadline exceeded`);
  return { ...refusal(error), afterMs: delayMs ?? (isRead ? 60_000 : 34_000) };
}

// Go's words for a text that is no duration.
function checkTimeout(timeout: string): void {
  const shown = JSON.stringify(timeout);
  if (timeout === '' || /^[+-]?(?:0|(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+)$/.test(timeout)) return;
  const [, unit] = /^[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))*(?:\d+\.?\d*|\.\d+)([^\d.]*)/.exec(timeout) ?? [];
  const why = unit === undefined ? 'invalid' : unit === '' ? 'missing unit in' : `unknown unit ${JSON.stringify(unit)} in`;
  throw new EarlyError(400, 'BadRequest', `invalid timeout specified in the request URL - time: ${why} duration ${shown}`);
}

function resourceOf({ attributes }: Target): string {
  return 'path' in attributes ? attributes.path : [attributes.resource, attributes.subresource].filter((part) => part !== '').join('/');
}

function tooManyRequests(): Answer {
  return { status: 429, headers: { 'Retry-After': '1', ...flowHeaders }, body: 'Too many requests, please try again later.\n' };
}

function halve(body: object | string): string {
  const text = typeof body === 'string' ? body : JSON.stringify(body);
  return text.slice(0, Math.floor(text.length / 2));
}
