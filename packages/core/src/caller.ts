// What a ServiceAccount identity is: its username, what a review says of it, and the patterns that match it.

/** The ServiceAccount (and pod) that sent a request, as the cluster reported it. Deeply frozen: one object serves every request of a remembered token. */
export interface Caller {
  /** `namespace/name`, exactly as written in `allow`. */
  readonly serviceAccount: string;
  readonly namespace: string;
  readonly name: string;
  /** `system:serviceaccount:<namespace>:<name>`. */
  readonly username: string;
  /** The ServiceAccount's uid: it tells a recreated ServiceAccount of the same name from the old one. */
  readonly uid: string;
  readonly groups: readonly string[];
  /** Those of the route's audiences that the token was minted for. */
  readonly audiences: readonly string[];
  /** The pod that the token is bound to. Absent only with `requirePod: false`. */
  readonly pod?: { readonly name: string; readonly uid: string };
  /** The node of that pod, where the cluster reports it (Kubernetes 1.30 and later). */
  readonly node?: { readonly name: string; readonly uid?: string };
  /** `JTI=…`: names this one token in the cluster's audit log. */
  readonly credentialId?: string;
  /** All of the review's `extra`. */
  readonly extra: Readonly<Record<string, readonly string[]>>;
  /** When the token expires. A fresh `Date` each time it is read, since a `Date` cannot be frozen. */
  readonly expiresAt: Date;
}

/** What is asked for: the method, and the framework's route pattern where it is known before the handler. Never a URL. */
export interface AskedFor {
  readonly method: string;
  readonly route: string | undefined;
}

/** Matches the ServiceAccounts of a namespace, or the one with this name. */
export interface CallerPattern {
  readonly namespace: string;
  readonly name?: string;
}

/** Passes a caller only by returning (a promise of) exactly `true`. If it throws, the request ends as a 500. */
export type AllowPredicate = (caller: Caller, request: AskedFor) => boolean | Promise<boolean>;

/** Who may call: `'namespace/name'`, `'namespace/*'` or pattern objects in a list, a predicate, or the word `'any'`. */
export type Allow = 'any' | readonly (string | CallerPattern)[] | AllowPredicate;

// RFC 1123, as Kubernetes applies it: a namespace is a label of at most 63 characters, a ServiceAccount's name a subdomain of at most 253.
const label = /^[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?$/;
const subdomainLabel = /^[a-z0-9](?:[-a-z0-9]*[a-z0-9])?$/;

const isNamespace = (value: string): boolean => label.test(value);
const isName = (value: string): boolean => value.length <= 253 && value.split('.').every((part) => subdomainLabel.test(part));

export interface Identity {
  readonly namespace: string;
  readonly name: string;
}

/** The ServiceAccount that a username names, or undefined if it names none. */
export function parseUsername(username: string): Identity | undefined {
  const [system, kind, namespace = '', name = '', ...rest] = username.split(':');
  if (system !== 'system' || kind !== 'serviceaccount' || rest.length > 0) return undefined;
  return isNamespace(namespace) && isName(name) ? { namespace, name } : undefined;
}

export const formatUsername = ({ namespace, name }: Identity): string => `system:serviceaccount:${namespace}:${name}`;

/** As `allow` and `Caller.serviceAccount` have it. */
export const formatAccount = ({ namespace, name }: Identity): string => `${namespace}/${name}`;

/** The parts of a review's `status.user` that make a caller. */
export interface ReviewedUser {
  readonly uid: string;
  readonly groups: readonly string[];
  readonly extra: Readonly<Record<string, readonly string[]>>;
}

/** Makes the caller that handlers see. Only from an accepted review. */
export function createCaller(identity: Identity, user: ReviewedUser, audiences: readonly string[], expiresAtMs: number): Caller {
  const extra = Object.fromEntries(Object.entries(user.extra).map(([key, values]) => [key, Object.freeze([...values])]));
  const one = (key: string): string | undefined => extra[`authentication.kubernetes.io/${key}`]?.[0];
  const [podName, podUid] = [one('pod-name'), one('pod-uid')];
  const [nodeName, nodeUid] = [one('node-name'), one('node-uid')];
  const credentialId = one('credential-id');
  return Object.freeze({
    serviceAccount: formatAccount(identity),
    namespace: identity.namespace,
    name: identity.name,
    username: formatUsername(identity),
    uid: user.uid,
    groups: Object.freeze([...user.groups]),
    audiences: Object.freeze([...audiences]),
    ...(podName && podUid && { pod: Object.freeze({ name: podName, uid: podUid }) }),
    ...(nodeName && { node: Object.freeze({ name: nodeName, ...(nodeUid && { uid: nodeUid }) }) }),
    ...(credentialId && { credentialId }),
    extra: Object.freeze(extra),
    get expiresAt() {
      return new Date(expiresAtMs);
    },
  });
}

/** The groups that API servers give every ServiceAccount of a namespace. */
export const groupsOf = (namespace: string): readonly string[] => [
  'system:serviceaccounts',
  `system:serviceaccounts:${namespace}`,
  'system:authenticated',
];

// What nearly every caller has, in the order of API servers.
const usualExtras = ['credential-id', 'node-name', 'node-uid', 'pod-name', 'pod-uid'].map((key) => `authentication.kubernetes.io/${key}`);

/** A caller as one string, in a sixth of the memory. */
export function packCaller({ namespace, name, uid, groups, audiences, extra, expiresAt }: Caller): string {
  const usual = usualExtras.map((key) => (extra[key]?.length === 1 ? extra[key][0] : undefined));
  const others = Object.entries(extra).filter(([key, values]) => values.length !== 1 || !usualExtras.includes(key));
  const areUsual = groups.length === 3 && groupsOf(namespace).every((group, at) => group === groups[at]);
  return JSON.stringify([namespace, name, uid, areUsual ? 0 : groups, audiences, expiresAt.getTime(), usual, ...others]);
}

/** The caller that was packed. */
export function unpackCaller(packed: string): Caller {
  const [namespace, name, uid, groups, audiences, expiresAtMs, usual, ...others] = JSON.parse(packed) as [
    string,
    string,
    string,
    readonly string[] | 0,
    readonly string[],
    number,
    readonly (string | null)[],
    ...(readonly [string, readonly string[]])[],
  ];
  const extras = usualExtras.flatMap((key, at) => (typeof usual[at] === 'string' ? [[key, [usual[at]]] as const] : []));
  const user = { uid, groups: groups === 0 ? groupsOf(namespace) : groups, extra: Object.fromEntries([...extras, ...others]) };
  return createCaller({ namespace, name }, user, audiences, expiresAtMs);
}

/** An `allow` option as two questions: of a proven caller, and of an identity before it is reviewed, where patterns alone can tell. */
export interface Admission {
  readonly isAllowed: AllowPredicate;
  readonly mayBeAllowed: (identity: Identity) => boolean;
}

/** Throws a TypeError on anything that is not understood. */
export function readAllow(allow: unknown): Admission {
  if (allow === 'any') return { isAllowed: () => true, mayBeAllowed: () => true };
  if (typeof allow === 'function') return { isAllowed: askSafely(allow as AllowPredicate), mayBeAllowed: () => true };
  if (!Array.isArray(allow) || allow.length === 0) {
    throw new TypeError(
      `${Array.isArray(allow) ? '"allow" is an empty list. It' : '"allow"'} says who may call: a list such as ['api/api', 'ops/*'], a function, or the word 'any' for every ServiceAccount of the cluster`,
    );
  }
  const serviceAccounts = new Set<string>();
  const namespaces = new Set<string>();
  for (const pattern of allow as readonly unknown[]) {
    const { namespace, name } = readPattern(pattern);
    if (name === undefined) namespaces.add(namespace);
    else serviceAccounts.add(`${namespace}/${name}`);
  }
  const matches = (serviceAccount: string, namespace: string): boolean => serviceAccounts.has(serviceAccount) || namespaces.has(namespace);
  return {
    isAllowed: (caller) => matches(caller.serviceAccount, caller.namespace),
    mayBeAllowed: ({ namespace, name }) => matches(`${namespace}/${name}`, namespace),
  };
}

// What a predicate throws can be anything: nothing at all, a word that a framework obeys, an error with a status of its own.
function askSafely(predicate: AllowPredicate): AllowPredicate {
  return async (caller, request) => {
    try {
      return await predicate(caller, request);
    } catch (cause) {
      throw new Error('"allow" failed', { cause });
    }
  };
}

function readPattern(pattern: unknown): CallerPattern {
  if (typeof pattern === 'string') {
    const [namespace = '', name = '', ...rest] = pattern.split('/');
    if (rest.length === 0 && isNamespace(namespace) && (name === '*' || isName(name))) {
      return name === '*' ? { namespace } : { namespace, name };
    }
  } else if (
    typeof pattern === 'object' &&
    pattern !== null &&
    Object.keys(pattern).every((key) => key === 'namespace' || key === 'name')
  ) {
    const { namespace, name } = pattern as Readonly<Record<string, unknown>>;
    if (typeof namespace === 'string' && isNamespace(namespace)) {
      // An inherited name too: to pass it over would admit the whole namespace.
      if (!('name' in pattern)) return { namespace };
      if (typeof name === 'string' && isName(name)) return { namespace, name };
    }
  }
  throw new TypeError(
    `"allow" holds ${JSON.stringify(pattern) ?? String(pattern)}, which is not a caller pattern: write 'namespace/name', 'namespace/*' or { namespace, name }, with names as Kubernetes has them (lower-case letters, digits, "-")`,
  );
}
