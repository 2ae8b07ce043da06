// The public names: the identity plane of a Kubernetes cluster in one process.
export { createAuthority } from './authority.ts';
export type {
  Authority,
  AuthorityOptions,
  DeleteOptions,
  PodOptions,
  RotationOptions,
  TokenOptions,
  User,
  UserOptions,
} from './authority.ts';
export type { Call } from './calls.ts';
export type { Fault, FaultOptions } from './faults.ts';
export type { Pod } from './pods.ts';
export type { RunOptions } from './processes.ts';
export type { SigningAlgorithm } from './signing.ts';
