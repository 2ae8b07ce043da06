// The public names: the identity plane of a Kubernetes cluster in one process.
export { createAuthority } from './authority.ts';
export type { Authority, User } from './authority.ts';
export type { Call } from './calls.ts';
export type { Fault, FaultOptions } from './faults.ts';
export type { AuthorityOptions, DeleteOptions, PodOptions, RotationOptions, TokenOptions, UserOptions } from './options.ts';
export type { Pod } from './pods.ts';
export type { RunOptions } from './processes.ts';
export type { SigningAlgorithm } from './signing.ts';
