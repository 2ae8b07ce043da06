// What a test may say to an authority by name, and what is wrong with it: checked here, once. Faults and calls have theirs beside them.
import { types } from 'node:util';
import { aName, check, flag, nameList, oneOf, required, textRecord, wholeNumber } from './checks.ts';
import type { Checks } from './checks.ts';
import type { SigningAlgorithm } from './signing.ts';

const isNames = (value: unknown): boolean => nameList.accepts(value) && value.length > 0;
const oneOrMore = check<string | readonly string[]>('a name, or a list of at least one', (value) => aName.accepts(value) || isNames(value));

/** Options of {@link createAuthority}. */
export interface AuthorityOptions {
  /** Manifests to apply at the start: paths of YAML files or of folders of them, which may hold `*`. Default: none. */
  readonly manifests?: string | readonly string[];
  /** The port on 127.0.0.1. Default 0: any that is free. */
  readonly port?: number;
  /** Who issues the tokens; of several the first does, and those of all are accepted. Default `https://kubernetes.default.svc.cluster.local`. */
  readonly issuer?: string | readonly string[];
  /** The audiences of the API server itself. Default: the issuers. */
  readonly apiAudiences?: readonly string[];
  /** Whether requests without credentials are let in as `system:anonymous`: everywhere, nowhere, or at these paths alone. Default true. */
  readonly anonymous?: boolean | readonly string[];
  /** The longest life of a token in seconds, an hour at least; one that is asked for longer is shortened. Default: no limit. */
  readonly maxTokenExpirationSeconds?: number;
}

export const authorityOptions: Checks<AuthorityOptions> = {
  manifests: check('a path, or a list of paths', (value) => aName.accepts(value) || nameList.accepts(value)),
  port: wholeNumber(0, 65_535),
  issuer: oneOrMore,
  apiAudiences: check('a list of at least one name', isNames),
  anonymous: check('true, false or a list of paths', (value) => flag.accepts(value) || isNames(value)),
  // An hour, as on a real API server.
  maxTokenExpirationSeconds: wholeNumber(3600, 2 ** 32),
};

/** Options of {@link Authority.token}. */
export interface TokenOptions {
  /** Whom the token is for. */
  readonly audience: string | readonly string[];
  /** Seconds, at least 600, as on a real API server. Default 600. */
  readonly expirationSeconds?: number;
  /** The name of the pod that the token is bound to. Default: bound to none. */
  readonly pod?: string;
}

export const tokenOptions: Checks<TokenOptions> = {
  audience: required(oneOrMore),
  // What is too little is refused in the words of a real API server.
  expirationSeconds: check('a whole number of seconds', Number.isInteger),
  pod: aName,
};

/** Options of {@link Authority.pod}. */
export interface PodOptions {
  /** Projected tokens in `/var/run/secrets/tokens`: the file's name, and the audience. They live for an hour. Default: none. */
  readonly tokens?: Readonly<Record<string, string>>;
  /** Whether a ClusterRoleBinding to `system:auth-delegator` lets it review tokens. Default true. */
  readonly reviews?: boolean;
}

export const podOptions: Checks<PodOptions> = { tokens: textRecord, reviews: flag };

/** Options of {@link Authority.user}. */
export interface UserOptions {
  /** The groups of the user beside `system:authenticated`. Default: none. */
  readonly groups?: readonly string[];
  /** When the certificate ends. Default: in the year 2120. */
  readonly expiresAt?: Date;
}

export const userOptions: Checks<UserOptions> = {
  groups: nameList,
  // One that a mocked Date has made too.
  expiresAt: check('a Date', (value) => types.isDate(value) && !Number.isNaN(value.getTime())),
};

/** Options of {@link Authority.rotateSigningKey}. */
export interface RotationOptions {
  /** Whether the keys so far are forgotten. Default false: they stay published and accepted. */
  readonly retire?: boolean;
  /** What the new key signs with. Default `'RS256'`, with 2048 bits. */
  readonly algorithm?: SigningAlgorithm;
}

export const rotationOptions: Checks<RotationOptions> = { retire: flag, algorithm: oneOf('RS256', 'ES256') };

/** Options of {@link Authority.delete}. */
export interface DeleteOptions {
  /** Seconds that a pod has left to end; it stays as a terminating object after them. Default 0: it is gone at once. Pods only. */
  readonly gracePeriodSeconds?: number;
}

export const deleteOptions: Checks<DeleteOptions> = { gracePeriodSeconds: wholeNumber(0) };
