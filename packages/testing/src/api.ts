// The only place that knows the authority's paths: what each request goes through, and which part answers it.
import type { IncomingMessage, ServerResponse } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import { reviewAccess, reviewOwnAccess, selfSubjectAccessReviewType, subjectAccessReviewType } from './access-review.ts';
import type { AccessReviewSpec } from './access-review.ts';
import { accepts, checkAcceptable, flowHeaders, readWanted, refusal, send } from './answer.ts';
import type { Answer } from './answer.ts';
import { createAuthenticator } from './authentication.ts';
import type { Cluster } from './cluster.ts';
import { decodeBody, formatManagedFields } from './decoding.ts';
import type { BodyType, DecodedBody } from './decoding.ts';
import type { Faults, Strike } from './faults.ts';
import { formatTime } from './objects.ts';
import { authorize, forbidden } from './rbac.ts';
import type { Attributes, UserInfo } from './rbac.ts';
import { badRequest, methodNotAllowed, noSuchResource, notAcceptable, StatusError, unauthorized } from './status.ts';
import { parseTarget } from './target.ts';
import type { Target } from './target.ts';
import { formatTokenRequest, issueToken, tokenRequestType } from './token-request.ts';
import type { BoundObjectReference } from './token-request.ts';
import { formatSelfSubjectReview, reviewToken, reviewTokenForAnyAudience, selfSubjectReviewType, tokenReviewType } from './token-review.ts';
import type { TokenReview } from './token-review.ts';

/** A request that was answered; a token is never part of it. */
export interface Call {
  readonly verb: string;
  /** A resource, `serviceaccounts/token` with its subresource, or a path that is no resource. */
  readonly resource: string;
  /** Who asked, as `namespace/name`, where a ServiceAccount did. */
  readonly serviceAccount?: string;
  /** The HTTP status; 0 where the connection was cut instead. */
  readonly status: number;
}

/** What the API needs beside the cluster. */
export interface ApiOptions {
  readonly cluster: Cluster;
  readonly faults: Faults;
  readonly calls: Call[];
  /** The address under which the key set is published. */
  readonly url: () => string;
  /** Ends waits when the authority closes. */
  readonly signal: AbortSignal;
}

interface Exchange {
  readonly request: IncomingMessage;
  readonly target: Target;
  readonly body: string | undefined;
  user: UserInfo | undefined;
  warnings: string[];
}

const sizeLimit = 3 * 1024 * 1024;
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

/** Makes the handler of every request. */
export function createApi({
  cluster,
  faults,
  calls,
  url,
  signal,
}: ApiOptions): (request: IncomingMessage, response: ServerResponse) => void {
  const authenticator = createAuthenticator(cluster);
  const { objects } = cluster;

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const target = parseTarget(request.method ?? 'GET', request.url ?? '/');
    const wanted = readWanted(request, target.query);
    const exchange: Exchange = { request, target, body: await readBody(request), user: undefined, warnings: [] };
    const strike = faults.strike(isTokenReview(target));
    if (strike !== undefined && strike.delayMs > 0) await delay(strike.delayMs, undefined, { ref: false, signal });
    if (strike?.fault === 'reset') {
      record(exchange, 0);
      request.socket.destroy();
      return;
    }
    const answered = decide(exchange, strike);
    record(exchange, answered.status);
    const { warnings } = exchange;
    const headers = warnings.length === 0 ? {} : { Warning: warnings.map((one) => `299 - ${JSON.stringify(one)}`).join(', ') };
    if (strike?.fault === 'broken-body') {
      send(
        response,
        { ...answered, headers: { ...answered.headers, 'Content-Type': 'application/json' }, body: cut(answered.body) },
        wanted,
      );
    } else send(response, { ...answered, headers: { ...answered.headers, ...headers } }, wanted);
  }

  function record({ target: { attributes }, user }: Exchange, status: number): void {
    const [, serviceAccount] = /^system:serviceaccount:(.*)$/.exec(user?.username ?? '') ?? [];
    const resource =
      'path' in attributes ? attributes.path : [attributes.resource, attributes.subresource].filter((part) => part !== '').join('/');
    const who = serviceAccount === undefined ? {} : { serviceAccount: serviceAccount.replace(':', '/') };
    if (calls.length >= 10_000) calls.splice(0, 1000);
    calls.push({ verb: attributes.verb, resource, ...who, status });
  }

  function decide(exchange: Exchange, strike: Strike | undefined): Answer {
    const fault = strike?.fault;
    try {
      if (typeof fault === 'object') return { status: fault.status, headers: fault.headers ?? {}, body: fault.body };
      if (fault === 'unauthorized') throw unauthorized();
      const user = authenticateCaller(exchange);
      exchange.user = user;
      if (fault === 'too-many-requests') return tooManyRequests();
      const { attributes } = exchange.target;
      if (fault === 'forbidden') throw forbidden(user, attributes);
      const { allowed, reason } = authorize(objects, user, attributes);
      if (!allowed) throw forbidden(user, attributes, reason);
      return 'path' in attributes ? answerPath(exchange, attributes.path) : answerResource(exchange, attributes, user, strike);
    } catch (error) {
      if (error instanceof StatusError) return refusal(error);
      throw error;
    }
  }

  function authenticateCaller({ request, warnings }: Exchange): UserInfo {
    const [, credentials] = /^bearer(?:$| (.*)$)/i.exec(request.headers.authorization ?? '') ?? [];
    const result = authenticator.authenticate(credentials ?? '');
    if ('error' in result) throw unauthorized();
    if (result.warning !== undefined) warnings.push(result.warning);
    return result.user;
  }

  function answerPath({ request }: Exchange, path: string): Answer {
    const isRead = request.method === 'GET' || request.method === 'HEAD';
    const published = { 'Cache-Control': 'public, max-age=3600' };
    if (isRead && ['/healthz', '/livez', '/readyz'].includes(path)) return { status: 200, body: 'ok' };
    if (isRead && path.replace(/\/$/, '') === '/version') return { status: 200, body: version };
    if (isRead && path === '/.well-known/openid-configuration') {
      if (!accepts(request, ['application/json'])) throw notAcceptable(['application/json']);
      return { status: 200, headers: published, body: describeIssuer() };
    }
    if (isRead && path === '/openid/v1/jwks') {
      // Here plain application/json is refused.
      const mediaType = 'application/jwk-set+json';
      if (!accepts(request, [mediaType])) throw notAcceptable([mediaType]);
      return { status: 200, headers: { ...published, 'Content-Type': mediaType }, body: cluster.keys.keySet() };
    }
    return { status: 404, body: '404 page not found\n' };
  }

  function describeIssuer(): object {
    return {
      issuer: cluster.issuer,
      jwks_uri: `${url()}/openid/v1/jwks`,
      response_types_supported: ['id_token'],
      subject_types_supported: ['public'],
      id_token_signing_alg_values_supported: cluster.keys.algorithms(),
    };
  }

  function answerResource(
    exchange: Exchange,
    { group, resource, subresource, name, namespace }: Extract<Attributes, { resource: string }>,
    user: UserInfo,
    strike: Strike | undefined,
  ): Answer {
    const at = `${group}/${exchange.target.version}/${[resource, subresource].filter((part) => part !== '').join('/')}`;
    const create = {
      'authentication.k8s.io/v1/tokenreviews': () => createTokenReview(exchange, strike),
      'authentication.k8s.io/v1/selfsubjectreviews': () => {
        decode(exchange, selfSubjectReviewType);
        return created(formatSelfSubjectReview(user, formatTime(cluster.now())));
      },
      'authorization.k8s.io/v1/subjectaccessreviews': () =>
        createAccessReview(exchange, subjectAccessReviewType, (spec) => reviewAccess(objects, spec)),
      'authorization.k8s.io/v1/selfsubjectaccessreviews': () =>
        createAccessReview(exchange, selfSubjectAccessReviewType, (spec) => reviewOwnAccess(objects, user, spec)),
      '/v1/serviceaccounts/token': () => createToken(exchange, namespace ?? '', name ?? ''),
    }[at];
    const isInNamespace = namespace !== undefined && namespace !== '';
    if (create === undefined || isInNamespace !== (subresource === 'token')) throw noSuchResource();
    if (exchange.request.method !== 'POST') throw methodNotAllowed();
    return create();
  }

  function createTokenReview(exchange: Exchange, strike: Strike | undefined): Answer {
    const decoded = decode(exchange, tokenReviewType);
    const review: TokenReview = decoded.object;
    const status = (strike?.fault === 'ignores-audiences' ? reviewTokenForAnyAudience : reviewToken)(authenticator, review);
    return created(formatReview(exchange, tokenReviewType, decoded, status));
  }

  function createAccessReview(exchange: Exchange, type: BodyType, review: (spec: AccessReviewSpec) => object): Answer {
    const decoded = decode(exchange, type);
    const { spec = {} }: { readonly spec?: AccessReviewSpec } = decoded.object;
    return created(formatReview(exchange, type, decoded, review(spec)));
  }

  function createToken(exchange: Exchange, namespace: string, serviceAccount: string): Answer {
    const { object } = decode(exchange, tokenRequestType);
    const { metadata = {}, spec = {} }: TokenRequestBody = object;
    const issued = issueToken(cluster, { ...spec, ...metadata, namespace, serviceAccount });
    const time = formatTime(cluster.now());
    const sent = { ...object, spec: { ...spec, expirationSeconds: issued.expirationSeconds } };
    const fields = { manager: managerOf(exchange.request), time, subresource: 'token' };
    const managedFields = formatManagedFields(tokenRequestType, sent, fields);
    return created(formatTokenRequest(issued, spec.boundObjectRef, { creationTimestamp: time, managedFields }));
  }

  function formatReview({ request }: Exchange, type: BodyType, { object }: DecodedBody, status: object): object {
    const { metadata, spec = {} }: { readonly metadata?: object; readonly spec?: object } = object;
    const managedFields = formatManagedFields(type, object, { manager: managerOf(request), time: formatTime(cluster.now()) });
    return { kind: type.kind, apiVersion: type.apiVersion, metadata: { ...metadata, managedFields }, spec, status };
  }

  return (request, response) => {
    answer(request, response).catch((error: unknown) => {
      request.socket.destroy();
      // A client that went away, or our own end, is no fault of ours; anything else is a bug here, and has to be seen.
      if (!signal.aborted && !request.errored) process.emitWarning(error instanceof Error ? error : String(error));
    });
  };
}

interface TokenRequestBody {
  readonly metadata?: { readonly name?: string; readonly uid?: string };
  readonly spec?: {
    readonly audiences?: readonly string[];
    readonly expirationSeconds?: number;
    readonly boundObjectRef?: BoundObjectReference;
  };
}

function isTokenReview({ attributes }: Target): boolean {
  return 'resource' in attributes && attributes.resource === 'tokenreviews';
}

function created(body: object): Answer {
  return { status: 201, body };
}

function tooManyRequests(): Answer {
  return { status: 429, headers: { 'Retry-After': '1', ...flowHeaders }, body: 'Too many requests, please try again later.\n' };
}

function cut(body: object | string): string {
  const text = typeof body === 'string' ? body : JSON.stringify(body);
  return text.slice(0, Math.floor(text.length / 2));
}

function decode({ request, body, target, warnings }: Exchange, type: BodyType): DecodedBody {
  checkAcceptable(request);
  const mediaType = (request.headers['content-type'] ?? 'application/json').split(';')[0]?.trim() ?? '';
  if (mediaType !== 'application/json' && mediaType !== 'application/yaml') {
    const accepted = 'application/json, application/yaml, application/vnd.kubernetes.protobuf';
    const message = `the body of the request was in an unknown format - accepted media types include: ${accepted}`;
    throw new StatusError(415, 'UnsupportedMediaType', message);
  }
  if (body === undefined) throw new StatusError(413, 'RequestEntityTooLarge', `Request entity too large: limit is ${sizeLimit}`);
  const validation = target.query.get('fieldValidation') ?? 'Warn';
  if (!['Ignore', 'Strict', 'Warn'].includes(validation)) throw badRequest(`invalid fieldValidation "${validation}"`);
  const decoded = decodeBody(type, body, { yaml: mediaType === 'application/yaml', strict: validation === 'Strict' });
  if (validation === 'Warn') warnings.push(...decoded.warnings);
  return decoded;
}

function managerOf(request: IncomingMessage): string {
  return (request.headers['user-agent'] ?? 'unknown').split('/')[0] ?? 'unknown';
}

async function readBody(request: IncomingMessage): Promise<string | undefined> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request) {
    if (!Buffer.isBuffer(chunk)) continue;
    size += chunk.length;
    if (size <= sizeLimit) chunks.push(chunk);
  }
  return size <= sizeLimit ? Buffer.concat(chunks).toString() : undefined;
}
