// The public names: being called, calling, how both are seen from outside, and what only the adapters need.

export type { Allow, AllowPredicate, AskedFor, Caller, CallerPattern } from './caller.ts';
export type { IncomingRequest, TokenHeader } from './credential.ts';
export type { ApiServer } from './endpoint.ts';
export type { ConnectionOptions, GuardOptions, RouteGuard } from './options.ts';
export type { Logger } from './logger.ts';
export type { Attribute, Authorize, AuthorizedRequest, NonResourceAttributes, ResourceAttributes } from './subject-access-review.ts';
export { createGuard, type Guard } from './guard.ts';
export { type Decision, decisionChannel } from './decision.ts';
export { type Review, reviewChannel } from './review.ts';
export { type AuthCode, AuthError, ClusterError, TokenFileError, type TokenFileCode } from './errors.ts';

export {
  type ClientOptions,
  createServiceClient,
  type ServiceClient,
  type Target,
  type TargetOptions,
  type TargetStatus,
} from './service-client.ts';
export { type TokenReload, tokenReloadChannel } from './token-file.ts';

export { type GuardStatus, type ProcessStatus, processStatus } from './status.ts';

export { checkScheme, createOptInGuard, type OptInGuard } from './guard.ts';
export { mergeHeader } from './credential.ts';
export { fetchFor } from './service-fetch.ts';
