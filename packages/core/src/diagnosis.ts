// What a tool may ask of the parts behind a guard and a client, so that it cannot disagree with them. An entry of its own: no service needs it.

import { realpath, stat } from 'node:fs/promises';
import { sep } from 'node:path';

import { type ApiServerConnection, ApiServerError, connectApiServer } from './api-server.ts';
import { formatUsername, type Identity, parseUsername } from './caller.ts';
import { formatCredential, type IncomingRequest, refusalError, takeCredential, type TokenHeader } from './credential.ts';
import type { ApiServer } from './endpoint.ts';
import { type AuthCode, TokenFileError } from './errors.ts';
import { printable, withoutTokens } from './logger.ts';
import { type GuardOptions, readConnection, readRoute } from './options.ts';
import { asObject, type Claims, maxTokenLength, parseJwt, parseObject, screen } from './screening.ts';
import { createSigningKeys, type SigningKeys } from './signing-keys.ts';
import { loadSendableToken, podPath, readSmallFile, serviceAccountDirectory } from './token-file.ts';
import { mayCreate, refuseApiServerAudience, type ReviewKind } from './token-review.ts';
import { createVerification } from './verification.ts';

export { ApiServerError, formatUsername, type Identity, podPath, serviceAccountDirectory, withoutTokens };

/** What a token says of itself, printable and unverified; of its signature nothing. What it does not say is absent. */
export interface TokenDescription {
  readonly serviceAccount?: Identity;
  readonly pod?: string;
  readonly node?: string;
  readonly audiences: readonly string[];
  readonly issuer?: string;
  readonly keyId?: string;
  readonly algorithm?: string;
  /** `JTI=…`: names this one token in the cluster's audit log. */
  readonly credentialId?: string;
  readonly issuedAt?: Date;
  readonly notBefore?: Date;
  readonly expiresAt?: Date;
}

/** Describes one compact JWT, as strictly spelled as a guard wants it; undefined for anything else. */
export function describeToken(token: string): TokenDescription | undefined {
  const jwt = parseJwt(token);
  if (jwt === undefined) return undefined;
  const { header, payload } = jwt;
  const kubernetes = asObject(payload['kubernetes.io']);
  const { namespace } = kubernetes ?? {};
  const nameOf = (kind: string): string | undefined => readText(asObject(kubernetes?.[kind])?.['name']);
  const serviceAccount = parseServiceAccount(`${String(namespace)}/${nameOf('serviceaccount') ?? ''}`);
  const audiences = [payload['aud']].flat().flatMap((audience) => readText(audience) ?? []);
  const described = {
    serviceAccount,
    pod: nameOf('pod'),
    node: nameOf('node'),
    audiences,
    issuer: readText(payload['iss']),
    keyId: readText(header['kid']),
    algorithm: readText(header['alg']),
    credentialId: typeof payload['jti'] === 'string' ? printable(`JTI=${payload['jti']}`) : undefined,
    issuedAt: readDate(payload['iat']),
    notBefore: readDate(payload['nbf']),
    expiresAt: readDate(payload['exp']),
  };
  return Object.fromEntries(Object.entries(described).filter(([, value]) => value !== undefined)) as unknown as TokenDescription;
}

/** Reads `namespace/name`, by the rules that Kubernetes has for both; undefined if it is not that. */
export function parseServiceAccount(text: string): Identity | undefined {
  const [namespace = '', name = '', ...rest] = text.split('/');
  return rest.length === 0 ? parseUsername(formatUsername({ namespace, name })) : undefined;
}

/** A request that carries a token and nothing else, for `guard.check`. */
export function requestWith(token: string, header: TokenHeader): IncomingRequest {
  return { method: 'GET', headers: {}, rawHeaders: token === '' ? [] : [header, formatCredential(token, header)] };
}

/** How a guard would answer as far as this can be told without the cluster; it never says that a token is accepted, since only a review does. */
export type Foreseen =
  | { readonly outcome: 'refused'; readonly status: number; readonly code: AuthCode; readonly reason: string; readonly detail?: string }
  | { readonly outcome: 'undecided' };

/**
 * Tells which rule of a guard refuses a token, without asking anyone: its shape, its claims, and, as if the cluster had confirmed these, the
 * guard's own rules. `allow` as a predicate is not called. Throws a TypeError on options that `createGuard` would not take.
 */
export async function foresee(
  token: string,
  options: Pick<GuardOptions, 'audience' | 'allow' | 'header' | 'requirePod' | 'verification'>,
): Promise<Foreseen> {
  const { audience, allow, requirePod = true } = options;
  const { header, verification } = readConnection(options);
  const route = readRoute({ audience, allow, requirePod }, undefined);
  const request = requestWith(token, header);
  const refuse = (code: AuthCode, reason: string, detail?: string): Foreseen => {
    const { status } = refusalError(code, request, header);
    return { outcome: 'refused', status, code, reason, ...(detail && { detail }) };
  };
  const credential = takeCredential(request, header, true);
  if ('code' in credential) return refuse(credential.code, credential.reason);
  const claims = screen(token, route.audiences);
  if ('code' in claims) return refuse(claims.code, claims.reason, claims.detail);
  if (verification === 'signature') {
    const verdict = await createVerification(agreeing(claims), trustingKeys)(token, claims, route.audiences);
    if (verdict.outcome === 'refused') return refuse('invalid_token', verdict.reason, verdict.detail);
  }
  const pod = asObject(asObject(parseJwt(token)?.payload['kubernetes.io'])?.['pod']);
  if (route.requirePod && (!pod?.['name'] || !pod['uid'])) return refuse('invalid_token', 'not_bound_to_a_pod');
  if (!route.mayBeAllowed(claims.identity)) return refuse('caller_not_allowed', 'not_in_allow');
  return { outcome: 'undecided' };
}

// A cluster that has issued this token, for all that the token says.
function agreeing(claims: Claims): Pick<ApiServerConnection, 'ask' | 'ownClaims'> {
  return {
    ask: () => Promise.reject(new ApiServerError('closed', 'Nobody is asked')),
    ownClaims: () => Promise.resolve({ ...claims, issuer: claims.issuer ?? '', audiences: [] }),
  };
}

const trustingKeys: Pick<SigningKeys, 'verify'> = { verify: () => Promise.resolve('verified') };

/** A token file as the client would read it. */
export interface TokenFileReport {
  /** The path as this process sees it. */
  readonly path: string;
  /** Why the client would not send what is in it; absent where it would. */
  readonly error?: TokenFileError;
  /** What is in it, where that is a JWT. */
  readonly token?: TokenDescription;
  /** Whether the path leads through a volume's `..data`, which the kubelet swaps. Not so for a `subPath` mount or a copy: these never change. */
  readonly isRotated: boolean;
  /** When the file was written. */
  readonly writtenAt?: Date;
}

/** Looks at a token file, as the pod names it. Never rejects over what is in it, and never tells it. */
export async function inspectTokenFile(file: string): Promise<TokenFileReport> {
  const path = podPath(file);
  const error = await loadSendableToken(path).then(
    () => undefined,
    (cause: unknown) => {
      if (cause instanceof TokenFileError) return cause;
      throw cause;
    },
  );
  const token = await readToken(path).then(describeToken, () => undefined);
  const real = await realpath(path).catch(() => '');
  const stats = await stat(path).catch(() => undefined);
  return {
    path,
    ...(error && { error }),
    ...(token && { token }),
    isRotated: real.split(sep).some((part) => part.startsWith('..')),
    ...(stats && { writtenAt: stats.mtime }),
  };
}

/** Reads what should be a token from a file, as the pod names it, trimmed. Throws a TokenFileError without a small regular file that is not empty. */
export function readToken(file: string): Promise<string> {
  return readSmallFile(podPath(file), maxTokenLength);
}

/** The cluster, as a guard of this process would ask it. */
export interface Cluster {
  /** Where its API server is. */
  readonly url: string;
  /** Whom we come as, by the claims of our own token; undefined where the credential is of another kind. Rejects with an ApiServerError. */
  ownToken(): Promise<Pick<TokenDescription, 'serviceAccount' | 'expiresAt'> | undefined>;
  /** Our username, as the API server says it; undefined where it does not (before Kubernetes 1.28). Rejects with an ApiServerError. */
  username(timeoutMs: number): Promise<string | undefined>;
  /** Whether we may create these. Rejects with an ApiServerError. */
  mayCreate(kind: ReviewKind, timeoutMs: number): Promise<boolean>;
  /** Loads the keys by which forged tokens are refused. Resolves to what is wrong with that, or to undefined. */
  signingKeys(): Promise<string | undefined>;
  /** Throws a TypeError if one of these is an audience of our own token, hence the API server's. Rejects with an ApiServerError. */
  refuseAudiences(audiences: readonly string[]): Promise<void>;
  close(): void;
}

/** Throws a TypeError if there is no API server to be found, or none that could be trusted. Touches no network. */
export function findCluster(options?: ApiServer): Cluster {
  let trouble: string | undefined;
  const log = { info: () => {}, warn: (_kind: string, _details: object, message: string) => void (trouble = message) };
  const apiServer = connectApiServer(options, log);
  const signingKeys = createSigningKeys(apiServer, log);
  return {
    url: apiServer.url.href.replace(/\/$/, ''),
    async ownToken() {
      const claims = await apiServer.ownClaims();
      return claims && { ...(claims.identity && { serviceAccount: claims.identity }), expiresAt: new Date(claims.expiresAtMs) };
    },
    async username(timeoutMs) {
      const answer = await apiServer.ask(
        {
          method: 'POST',
          path: '/apis/authentication.k8s.io/v1/selfsubjectreviews',
          body: { apiVersion: 'authentication.k8s.io/v1', kind: 'SelfSubjectReview' },
          maxAnswerBytes: 16_384,
        },
        timeoutMs,
      );
      const status = answer.status === 201 ? asObject(parseObject(answer.body)?.['status']) : undefined;
      return readText(asObject(status?.['userInfo'])?.['username']);
    },
    mayCreate: (kind, timeoutMs) => mayCreate(apiServer, kind, timeoutMs),
    async signingKeys() {
      if (await signingKeys.load()) return undefined;
      return trouble ?? 'The API server publishes no key that a ServiceAccount token could be signed with';
    },
    refuseAudiences: (audiences) => refuseApiServerAudience(apiServer, audiences),
    close: () => apiServer.close(),
  };
}

function readText(value: unknown): string | undefined {
  return typeof value === 'string' ? printable(value) : undefined;
}

function readDate(seconds: unknown): Date | undefined {
  // 8.64e12 is the last second that a Date can hold.
  return typeof seconds === 'number' && Math.abs(seconds) <= 8.64e12 ? new Date(seconds * 1000) : undefined;
}
