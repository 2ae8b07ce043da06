// `inspect`: whose a token is, and what a guard would say of it, without showing it.

import { subscribe, unsubscribe } from 'node:diagnostics_channel';

import { AuthError, ClusterError, createGuard, type Decision, decisionChannel, type GuardOptions } from '@k8s-sa-auth/core';
import { ApiServerError, describeToken, foresee, readToken, requestWith, type TokenDescription } from '@k8s-sa-auth/core/diagnosis';

import { formatHelp, ofCommandLine, readArguments, UsageError, type Values } from './arguments.ts';
import type { Command } from './command.ts';
import { adviseOn } from './reasons.ts';
import { moment, type Terminal } from './terminal.ts';
import { clusterOptions, type Deadline, readApiServer, readDeadline } from './which-cluster.ts';

const options = {
  audience: { type: 'string', multiple: true, value: 'name', help: "the guard's audience, or several; without it no guard is tried" },
  allow: {
    type: 'string',
    multiple: true,
    value: 'callers',
    help: 'whom it allows: namespace/name or namespace/*, with commas or several times; default any',
  },
  header: {
    type: 'string',
    choices: ['x-client-id', 'authorization'],
    value: 'name',
    help: 'the header that it reads: x-client-id (the default) or authorization',
  },
  'no-require-pod': { type: 'boolean', help: 'it takes tokens that are bound to no pod' },
  verification: { type: 'string', choices: ['review', 'signature'], value: 'how', help: 'review (the default) or signature' },
  review: { type: 'boolean', help: 'let the guard ask the cluster, as a request would' },
  ...clusterOptions,
  json: { type: 'boolean', help: 'print one JSON object: { token, guard }' },
} as const;

const notes = `
Tells whose a token is, for whom and until when, by what it says of itself, and never prints it. It
is read from the file, as the pod names it, or from standard input; never from the command line,
where every process could read it.

With --audience it tells which rule of such a guard refuses the token. What only the cluster knows
is told with --review, by the guard itself: in a pod with the pod's credential, elsewhere with the
kubeconfig's.

Ends with 0 where nothing refuses the token, with 1 where something does, or it cannot be read, with
2 on a mistake in the command line.
`;

type InspectValues = Values<typeof options>;

export const inspect: Command = {
  summary: 'tell whose a token is, and what a guard would say of it',
  help: formatHelp('inspect [file] [options]', notes, options),
  async run(args, terminal) {
    const { values, positionals } = readArguments(args, options);
    const guard = readGuard(values);
    const deadline = readDeadline(values);
    const token = await takeToken(positionals);
    const described = describeToken(token);
    const ruling = guard && (await rule(token, guard, values, deadline));
    if (values.json === true)
      terminal.json({ token: described ? { ...described, serviceAccount: accountOf(described) } : null, ...(ruling && { guard: ruling }) });
    else tell(described, ruling, terminal);
    if (ruling !== undefined) return ruling.outcome === 'refused' || ruling.outcome === 'unavailable' ? 1 : 0;
    return described === undefined ? 1 : 0;
  },
};

type GuardSettings = Pick<GuardOptions, 'audience' | 'allow'> & Partial<Pick<GuardOptions, 'header' | 'requirePod' | 'verification'>>;

// Checked by the guard's own rules, when it is tried.
function readGuard(values: InspectValues): GuardSettings | undefined {
  const { audience, allow, header, verification } = values;
  if (audience === undefined) {
    const needing = ['allow', 'header', 'no-require-pod', 'verification', 'review'] as const;
    const named =
      needing.find((name) => values[name] !== undefined) ??
      (['kubeconfig', 'context', 'timeout'] as const).find((name) => values[name] !== undefined);
    if (named !== undefined) throw new UsageError(`--${named} is about a guard, which needs an --audience`);
    return undefined;
  }
  const patterns = allow?.flatMap((list) => list.split(','));
  return {
    audience: audience.flatMap((list) => list.split(',')),
    allow: patterns === undefined || patterns.join() === 'any' ? 'any' : patterns,
    ...(header && { header }),
    ...(verification && { verification }),
    ...(values['no-require-pod'] === true && { requirePod: false }),
  };
}

async function takeToken([file, ...others]: readonly string[]): Promise<string> {
  if (others.length > 0) throw new UsageError('inspect takes one file');
  if (file !== undefined && file !== '-') return readToken(file);
  if (process.stdin.isTTY)
    throw new UsageError('inspect reads a token from a file or a pipe, not from a terminal: k8s-sa-auth inspect < file');
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of process.stdin as AsyncIterable<Buffer>) {
    chunks.push(chunk);
    bytes += chunk.length;
    // Eight times what a token may have.
    if (bytes > 65_536) throw new Error('There is more on standard input than a token could be');
  }
  const text = Buffer.concat(chunks).toString().trim();
  if (text === '') throw new Error('There is no token on standard input');
  return text;
}

/** What a guard says: by itself with --review, else as far as it can be told without the cluster. */
interface Ruling {
  readonly outcome: 'allowed' | 'refused' | 'unavailable' | 'undecided';
  readonly status?: number;
  readonly code?: string;
  readonly reason?: string;
  readonly detail?: string;
  readonly source?: string;
  readonly caller?: string;
  readonly advice?: string;
}

async function rule(token: string, guard: GuardSettings, values: InspectValues, deadline: Deadline): Promise<Ruling> {
  const foreseen = await ofCommandLine(foresee(token, guard));
  const ruling: Ruling = values.review === true ? await review(token, guard, readApiServer(values), deadline) : foreseen;
  const advice = ruling.reason === undefined ? undefined : adviseOn(ruling.reason);
  return { ...ruling, ...(advice && { advice }) };
}

const silent = { info: () => {}, warn: () => {}, error: () => {} };

async function review(
  token: string,
  settings: GuardSettings,
  apiServer: ReturnType<typeof readApiServer>,
  deadline: Deadline,
): Promise<Ruling> {
  let decision: Decision | undefined;
  const listen = (message: unknown): void => void (decision = message as Decision);
  subscribe(decisionChannel, listen);
  const guard = createGuard({ ...settings, ...(apiServer && { apiServer }), logger: silent });
  const failure = async (asked: Promise<unknown>): Promise<AuthError | ClusterError | ApiServerError | undefined> => {
    try {
      await deadline.within(asked);
      return undefined;
    } catch (error) {
      if (error instanceof AuthError || error instanceof ClusterError || error instanceof ApiServerError) return error;
      throw error;
    }
  };
  try {
    // As a service does at its start: from then on it has the keys that forged tokens are refused by.
    await failure(guard.ready());
    const error = await failure(guard.check(requestWith(token, settings.header ?? 'x-client-id')));
    if (error instanceof ApiServerError)
      return { outcome: 'unavailable', status: 503, code: 'review_unavailable', reason: error.reason, detail: error.message };
    const { outcome = 'unavailable', reason, detail, source, caller } = decision ?? {};
    return {
      outcome,
      ...(error && { status: error.status, code: error.code }),
      ...(reason && { reason }),
      ...(detail && { detail }),
      ...(source && { source }),
      ...(caller && { caller: caller.serviceAccount }),
    };
  } finally {
    unsubscribe(decisionChannel, listen);
    await guard.close();
  }
}

function tell(described: TokenDescription | undefined, ruling: Ruling | undefined, terminal: Terminal): void {
  if (described === undefined) terminal.marked('wrong', 'This is not one compact JWT, hence no ServiceAccount token');
  else tellToken(described, terminal);
  if (ruling === undefined) return;
  if (described !== undefined) terminal.line();
  tellRuling(ruling, terminal);
}

// As a `Caller` has it.
const accountOf = ({ serviceAccount }: TokenDescription): string | undefined =>
  serviceAccount && `${serviceAccount.namespace}/${serviceAccount.name}`;

function tellToken(described: TokenDescription, terminal: Terminal): void {
  const { pod, node, audiences, issuer, keyId, algorithm, credentialId, issuedAt, notBefore, expiresAt } = described;
  const nowMs = Date.now();
  const rows = [
    ['ServiceAccount', accountOf(described) ?? 'none'],
    ['pod', pod ?? 'none'],
    ['node', node],
    ['audiences', audiences.join(', ') || 'none'],
    ['issuer', issuer ?? 'none'],
    ['key id', keyId ?? 'none'],
    ['algorithm', algorithm ?? 'none'],
    ['credential id', credentialId],
    ['issued', issuedAt && moment(issuedAt, nowMs)],
    ['valid from', notBefore && notBefore.getTime() !== issuedAt?.getTime() ? moment(notBefore, nowMs) : undefined],
    ['expires', expiresAt ? moment(expiresAt, nowMs) : 'never'],
  ] as const;
  for (const [label, value] of rows) if (value !== undefined) terminal.line(`${label.padEnd(14)}  ${value}`);
}

const meanings: Readonly<Record<string, string>> = {
  missing_token: 'there is no token',
  invalid_token: 'the token is not valid here',
  caller_not_allowed: 'this caller may not call',
  review_unavailable: 'the cluster cannot be asked, so nobody knows',
};

function tellRuling({ outcome, status, code = '', reason = '', detail, source, caller, advice }: Ruling, terminal: Terminal): void {
  if (outcome === 'undecided') {
    terminal.marked(
      'skipped',
      'Nothing here refuses it. Whether it is genuine and its pod is there, only the API server knows: --review asks it',
    );
    return;
  }
  if (outcome === 'allowed') {
    terminal.marked('ok', `The guard lets it pass: the handler is called, with ${caller} as the caller (by ${source})`);
    return;
  }
  terminal.marked('wrong', `The guard answers ${status} ${code}: ${meanings[code]}`);
  terminal.line(`  reason         ${reason}${source === undefined ? '' : ` (by ${source})`}`);
  if (detail !== undefined) terminal.line(`  detail         ${detail}`);
  if (advice !== undefined) terminal.line(`  what to do     ${advice}`);
}
