// The SubjectAccessReview API: what a route asks the cluster about its caller, and what the answer means.
// https://kubernetes.io/docs/reference/kubernetes-api/authorization-resources/subject-access-review-v1/

import type { IncomingHttpHeaders } from 'node:http';

import type { Answer, ApiServerConnection } from './api-server.ts';
import type { AskedFor, Caller } from './caller.ts';
import type { IncomingRequest } from './credential.ts';
import { printable } from './logger.ts';
import { traceReview } from './review.ts';
import { asObject, parseObject } from './screening.ts';
import { isOutage, reviewKinds, unusable, type Verdict } from './token-review.ts';

/** What the functions of `authorize` may look at. */
export interface AuthorizedRequest extends AskedFor {
  /** The route's parameters as the framework read them from the URL, where it knows them before the handler. */
  readonly params: Readonly<Record<string, string | undefined>>;
  readonly headers: IncomingHttpHeaders;
  /**
   * The path as it was sent, without its query. `undefined`, so that the request is refused, where what stands behind could read it as another
   * one: with dot segments, empty segments, backslashes, or one of these percent-encoded.
   */
  readonly path: string | undefined;
}

/** The path of a request, where there are no two ways to read it. */
export function plainPath({ originalUrl, url = '' }: Pick<IncomingRequest, 'originalUrl' | 'url'>): string | undefined {
  const [path = ''] = (originalUrl ?? url).split(/[?#]/, 1);
  return path.startsWith('/') && !/\/\/|\/\.{1,2}(?:\/|$)|\\|%(?:2[ef5]|5c)/i.test(path) ? path : undefined;
}

/** Text, or a function of the request. What a function gives must be text of 1 to 1 024 characters; `undefined` and `''` refuse the request. */
export type Attribute = string | ((request: AuthorizedRequest) => string | undefined);

/** A resource, as a Role's rules have them. It need not exist in the cluster: RBAC compares names. */
export interface ResourceAttributes {
  /** Such as `get`, or `({ method }) => method.toLowerCase()`. */
  readonly verb: Attribute;
  /** Such as `secrets`. */
  readonly resource: Attribute;
  /** The API group, such as `shop.example`. Default: the core group, `''`. */
  readonly group?: Attribute;
  readonly subresource?: Attribute;
  /** Default: the cluster's scope, for which a Role does not suffice, only a ClusterRole. */
  readonly namespace?: Attribute;
  /** The object's name, for `resourceNames`. Default: all of them. */
  readonly name?: Attribute;
  readonly path?: never;
}

/** A path, as a ClusterRole's `nonResourceURLs` have them. */
export interface NonResourceAttributes {
  readonly verb: Attribute;
  /** Begins with `/`, such as `/reports/daily`, or `({ path }) => path`. */
  readonly path: Attribute;
  readonly resource?: never;
}

/** What a caller must be allowed to do, by the cluster's own rules (RBAC). */
export type Authorize = ResourceAttributes | NonResourceAttributes;

type Spec =
  | { readonly resourceAttributes: Readonly<Record<string, string>> }
  | { readonly nonResourceAttributes: Readonly<Record<string, string>> };

/** What a request needs, in the words of the API; undefined where one of the functions had nothing to say. */
export type Requirement = (request: AuthorizedRequest) => Spec | undefined;

const resourceNames = ['verb', 'group', 'resource', 'subresource', 'namespace', 'name'] as const;
const hint = `Write { verb, resource, group?, subresource?, namespace?, name? } or { verb, path }, each text or a function of the request`;
const maxLength = 1_024;

/** Throws a TypeError on anything that is not understood. */
export function readAuthorize(authorize: unknown): Requirement {
  if (typeof authorize !== 'object' || authorize === null || Array.isArray(authorize)) {
    throw new TypeError(`"authorize" is ${String(authorize)}. ${hint}`);
  }
  const isPath = 'path' in authorize;
  const known: readonly string[] = isPath ? ['verb', 'path'] : resourceNames;
  // Inherited names too: to pass one over would ask about less than was written.
  const attributes = new Map<string, Attribute>();
  for (const name in authorize) {
    if (!known.includes(name)) throw new TypeError(`"authorize" does not know ${JSON.stringify(name)} here. ${hint}`);
    const value: unknown = (authorize as Readonly<Record<string, unknown>>)[name];
    const isCoreGroup = name === 'group' && value === '';
    if (typeof value !== 'function' && !isText(value) && !isCoreGroup) {
      throw new TypeError(`"authorize.${name}" is text or a function of the request, not ${JSON.stringify(value) ?? 'undefined'}`);
    }
    if (isPath && name === 'path' && typeof value === 'string' && !isPlain(value)) {
      throw new TypeError(`"authorize.path" is a path such as '/reports', without dot segments, not ${JSON.stringify(value)}`);
    }
    attributes.set(name, value as Attribute);
  }
  const missing = ['verb', isPath ? 'path' : 'resource'].find((name) => !attributes.has(name));
  if (missing !== undefined) throw new TypeError(`"authorize" lacks ${missing}. ${hint}`);

  return (request) => {
    const values: Record<string, string> = {};
    for (const [name, attribute] of attributes) {
      const value = typeof attribute === 'function' ? askFunction(name, attribute, request) : attribute;
      if (value === undefined) return undefined;
      values[name] = value;
    }
    if (!isPath) return { resourceAttributes: values };
    return isPlain(values['path']) ? { nonResourceAttributes: values } : undefined;
  };
}

const isPlain = (path: string | undefined): boolean => path !== undefined && plainPath({ url: path }) === path;
const isText = (value: unknown): value is string => typeof value === 'string' && value !== '' && value.length <= maxLength;

// To the API server an empty attribute means "all of them", which no caller should be able to ask about by leaving something out.
function askFunction(name: string, attribute: Exclude<Attribute, string>, request: AuthorizedRequest): string | undefined {
  let value: unknown;
  try {
    value = attribute(request);
  } catch (cause) {
    throw new Error(`"authorize.${name}" failed`, { cause });
  }
  // Nobody waits for it, so that its rejection would end the process.
  if (value instanceof Promise) value.catch(() => undefined);
  if (value !== undefined && typeof value !== 'string') throw new Error(`"authorize.${name}" gave ${typeof value}, not text`);
  return isText(value) ? value : undefined;
}

/** Asks the cluster whether a caller may do this. Never rejects over what the API server does. */
export function reviewAccess(apiServer: ApiServerConnection, caller: Caller, spec: Spec, budgetMs: number): Promise<Verdict> {
  const { username, uid, groups, extra } = caller;
  const body = {
    apiVersion: 'authorization.k8s.io/v1',
    kind: 'SubjectAccessReview',
    spec: { user: username, uid, groups, extra, ...spec },
  };
  // The answer repeats the question, each character as up to six.
  const maxAnswerBytes = 6 * JSON.stringify(body).length + 16_384;
  return traceReview(apiServer, reviewKinds.SubjectAccessReviews, budgetMs, async (ask) =>
    readAccess(await ask({ body, maxAnswerBytes }), caller),
  );
}

/** What an answer means: yes is only `allowed: true` that nothing contradicts. */
export function readAccess(answer: Answer, caller: Caller): Verdict {
  if (answer.status < 200 || answer.status > 299) return unusable(answer);
  const review = parseObject(answer.body);
  const { allowed, denied = false, reason = '', evaluationError = '' } = asObject(review?.['status']) ?? {};
  const isReview = review?.['kind'] === 'SubjectAccessReview' && review['apiVersion'] === 'authorization.k8s.io/v1';
  if (!isReview || typeof allowed !== 'boolean' || typeof denied !== 'boolean') {
    return { outcome: 'unavailable', reason: 'not_a_subject_access_review' };
  }
  const asked = asObject(review['spec'])?.['user'];
  if (asked !== undefined && asked !== caller.username) return { outcome: 'unavailable', reason: 'review_of_another_service_account' };
  if (allowed && !denied) return { outcome: 'accepted', caller };
  const detail = printable([reason, evaluationError].filter((text) => typeof text === 'string' && text !== '').join('; '));
  // An authorizer that could not be reached has not said no.
  const isUnanswered = typeof evaluationError === 'string' && (isOutage(evaluationError) || evaluationError.includes('Post "https://'));
  if (isUnanswered && !denied) return { outcome: 'unavailable', reason: 'review_timed_out_inside', detail };
  return { outcome: 'refused', reason: 'not_authorized', ...(detail && { detail }) };
}
