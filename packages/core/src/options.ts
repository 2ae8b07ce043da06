// What a guard may be told, its defaults, and what is wrong with it: applied and checked here, once.

import type { ApiServer } from './endpoint.ts';
import { type Admission, type Allow, readAllow } from './caller.ts';
import type { TokenHeader } from './credential.ts';
import type { Logger } from './logger.ts';
import { type Authorize, readAuthorize, type Requirement } from './subject-access-review.ts';

/** What a route may decide for itself. It replaces the guard's settings name by name; what is not named is inherited, `allow` excepted. */
export interface RouteGuard {
  /**
   * Who may call: a list of `'namespace/name'`, `'namespace/*'` or `{ namespace, name? }`, a predicate, or `'any'`.
   * Required: an audience says whom a token is for, not who may call, and anyone who can create a pod can ask for any audience.
   */
  readonly allow: Allow;
  /**
   * What a caller that `allow` lets pass must also be allowed to do, by the cluster's own rules (RBAC): a SubjectAccessReview asks. With
   * `allow: 'any'` RBAC alone decides. A yes is remembered for `cacheTtlMs`, a no for `refusalTtlMs`. `false`: nothing, where it would be
   * inherited. Default: the guard's, and nothing there.
   */
  readonly authorize?: Authorize | false;
  /** The names that this service answers to; a token for one of them will do. Default: the guard's. */
  readonly audience?: string | readonly string[];
  /** `'observe'` never refuses: it reports what it would have done. Default `'enforce'`. */
  readonly mode?: 'enforce' | 'observe';
  /** Refuse tokens that are not bound to a pod, as every projected one is. Default true. */
  readonly requirePod?: boolean;
}

/** What the routes of one service share. */
export interface ConnectionOptions {
  /**
   * The header that carries the token. The other one stays on the request and lets nobody in; where this one is absent, the event's reason says
   * whether a ServiceAccount token stood in the other (`token_in_other_header`). Default `'x-client-id'`.
   */
  readonly header?: TokenHeader;
  /** Leave the token on the request for the handler. Default false. */
  readonly forwardToken?: boolean;
  /**
   * `'review'` asks the cluster about each token. `'signature'` is for fleets that outgrow the API server: the cluster's published keys alone
   * decide. Its price: nobody notices that a pod or a ServiceAccount was deleted, so its token is good until it expires, and 60 s more; and
   * tokens that live longer than 24 hours are refused. Default `'review'`.
   */
  readonly verification?: 'review' | 'signature';
  /** How long a caller is remembered, in milliseconds; never past the token's expiry. Zero or less: not at all. Default 60 000. */
  readonly cacheTtlMs?: number;
  /** How long a refusal is remembered, in milliseconds. Zero or less: not at all. Default 5 000. */
  readonly refusalTtlMs?: number;
  /**
   * How long after its last review a caller stays accepted while the cluster cannot be asked, in milliseconds. Zero or less: not at all. With
   * `verification: 'signature'` it is about the reviews of `authorize` alone. Default 300 000.
   */
  readonly staleIfErrorMs?: number;
  /** How to reach the API server. Default: as the kubelet tells a pod; outside a pod, the current kubeconfig. */
  readonly apiServer?: ApiServer;
  /**
   * Gets refusals (info; of one kind at most one line in 10 s, with a count) and changes of state (warn, and info when they are over).
   * Default: silent, but for `process.emitWarning` once for each kind of trouble.
   */
  readonly logger?: Logger;
}

export interface GuardOptions extends RouteGuard, ConnectionOptions {
  /** The names that this service answers to; a token for one of them will do. No default: a token for another service is not for this one. */
  readonly audience: string | readonly string[];
}

export interface Settings {
  readonly mode: 'enforce' | 'observe';
  readonly requirePod: boolean;
  readonly requirement: Requirement | undefined;
}

export interface Route extends Admission, Settings {
  readonly audiences: readonly string[];
}

export interface Connection {
  readonly header: TokenHeader;
  readonly forwardToken: boolean;
  readonly verification: 'review' | 'signature';
  readonly cacheTtlMs: number;
  readonly refusalTtlMs: number;
  readonly staleIfErrorMs: number;
  readonly apiServer: ApiServer | undefined;
  readonly logger: Logger | undefined;
}

export const routeOptions = ['allow', 'audience', 'authorize', 'mode', 'requirePod'] as const;
/** What routes inherit where the guard itself names neither audience nor callers. */
export const optInOptions = ['authorize', 'mode', 'requirePod'] as const;
export const connectionOptions = [
  'header',
  'forwardToken',
  'verification',
  'cacheTtlMs',
  'refusalTtlMs',
  'staleIfErrorMs',
  'apiServer',
  'logger',
] as const;

/** Reads what one route says over what it inherits. Throws a TypeError that says what to write. */
export function readRoute(route: RouteGuard, inherited: Route | undefined): Route {
  const settings = readSettings(route, inherited);
  return { ...settings, audiences: readAudiences(route.audience, inherited), ...readAllow(route.allow) };
}

/** The part of it that a guard may say for its routes without having an audience itself. */
export function readSettings(route: Partial<RouteGuard>, inherited: Settings | undefined): Settings {
  const undefinedKey = Object.keys(route).find((key) => (route as Readonly<Record<string, unknown>>)[key] === undefined);
  if (undefinedKey !== undefined) throw new TypeError(`"${undefinedKey}" is undefined. Leave it out, or give it a value`);
  const { authorize, mode = inherited?.mode ?? 'enforce', requirePod = inherited?.requirePod ?? true } = route;
  if (mode !== 'enforce' && mode !== 'observe') throw new TypeError(`"mode" is 'enforce' or 'observe', not ${JSON.stringify(mode)}`);
  if (typeof requirePod !== 'boolean') throw new TypeError(`"requirePod" is true or false, not ${JSON.stringify(requirePod)}`);
  const own = authorize === undefined || authorize === false ? undefined : readAuthorize(authorize);
  return { mode, requirePod, requirement: authorize === undefined ? inherited?.requirement : own };
}

function readAudiences(audience: unknown, inherited: Route | undefined): readonly string[] {
  if (audience === undefined && inherited !== undefined && inherited.audiences.length > 0) return inherited.audiences;
  if (audience === undefined)
    throw new TypeError(`"audience" is required: the name that this service answers to, such as audience: 'secret-store'`);
  const audiences: readonly unknown[] = Array.isArray(audience) ? [...(audience as readonly unknown[])] : [audience];
  const isName = (name: unknown): name is string => typeof name === 'string' && /^[^\s,]+$/.test(name);
  if (audiences.length === 0 || !audiences.every(isName)) {
    throw new TypeError(`"audience" is one name or several, each without commas or white space, not ${JSON.stringify(audience)}`);
  }
  // In one order: the API server remembers its answers by the audiences as they are listed, and guards that name the same ones share our memory.
  return Object.freeze([...new Set(audiences)].toSorted());
}

export function readConnection(options: ConnectionOptions): Connection {
  const {
    header = 'x-client-id',
    forwardToken = false,
    verification = 'review',
    cacheTtlMs = 60_000,
    refusalTtlMs = 5_000,
    staleIfErrorMs = 300_000,
  } = options;
  if (header !== 'x-client-id' && header !== 'authorization') {
    throw new TypeError(`"header" is 'x-client-id' or 'authorization', not ${JSON.stringify(header)}`);
  }
  if (typeof forwardToken !== 'boolean') throw new TypeError(`"forwardToken" is true or false, not ${JSON.stringify(forwardToken)}`);
  if (verification !== 'review' && verification !== 'signature') {
    throw new TypeError(`"verification" is 'review' or 'signature', not ${JSON.stringify(verification)}`);
  }
  for (const [name, value] of Object.entries({ cacheTtlMs, refusalTtlMs, staleIfErrorMs })) {
    if (typeof value !== 'number' || Number.isNaN(value))
      throw new TypeError(`"${name}" is a number of milliseconds, not ${typeof value === 'number' ? value : JSON.stringify(value)}`);
  }
  const { apiServer, logger } = options;
  return { header, forwardToken, verification, cacheTtlMs, refusalTtlMs, staleIfErrorMs, apiServer, logger };
}
