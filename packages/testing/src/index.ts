// The public names: the identity plane of a Kubernetes cluster in one process.
export { createAuthority } from './authority.ts';
export type { Authority, AuthorityOptions, DeleteOptions, PodOptions, TokenOptions } from './authority.ts';
export type { Call } from './api.ts';
export type { Fault, FaultOptions } from './faults.ts';
export type { Pod } from './pods.ts';
