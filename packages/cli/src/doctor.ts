// `doctor`: whether all is there that a guard and a client need, and what mends it where it is not.

import { ApiServerError, type Cluster, findCluster, foresee, formatUsername } from '@k8s-sa-auth/core/diagnosis';

import { formatHelp, ofCommandLine, readArguments, UsageError, type Values } from './arguments.ts';
import type { Command } from './command.ts';
import { formatDocuments } from './documents.ts';
import { grant, type Right, type Subject } from './rbac.ts';
import { fromNow, type Mark, type Terminal } from './terminal.ts';
import { checkTokenFiles, readNamedFile } from './token-files.ts';
import { clusterOptions, type Deadline, inFlags, readApiServer, readDeadline } from './which-cluster.ts';

/** YAML that mends what is wrong: objects for `kubectl apply -f -`, or a part of a pod's spec. */
export interface Mend {
  readonly for: 'cluster' | 'pod';
  readonly yaml: string;
}

/** One check, as `--json` prints it. */
export interface Finding {
  readonly check: 'api-server' | 'connection' | 'certificate' | 'credential' | 'permission' | 'signing-keys' | 'audience' | 'token-file';
  /** Which of several: an audience, a right, a file. */
  readonly subject?: string;
  readonly status: Mark;
  readonly message: string;
  readonly mend?: Mend;
}

const options = {
  audience: {
    type: 'string',
    multiple: true,
    value: 'name',
    help: "an audience of this service's guard, which must not be the API server's; repeatable",
  },
  authorize: { type: 'boolean', help: 'the guard also asks what callers may do: check for create subjectaccessreviews too' },
  verification: {
    type: 'string',
    choices: ['review', 'signature'],
    value: 'how',
    help: "the guard's: review, or signature, which needs the signing keys and no permission; default review",
  },
  'token-file': {
    type: 'string',
    multiple: true,
    value: 'path[=audience]',
    help: 'a token that this service sends; repeatable. Default: those below /var/run/secrets',
  },
  only: {
    type: 'string',
    choices: ['callee', 'caller'],
    value: 'side',
    help: 'callee: only what a guard needs; caller: only token files, without any network',
  },
  ...clusterOptions,
  json: { type: 'boolean', help: 'print one JSON object: { ok, checks }' },
} as const;

const notes = `
Looks at what a guard and a client need, from where they are: in a pod by the pod's own files,
elsewhere by the kubeconfig. Prints a line for each check (✓ good, ! a warning, ✗ wrong, – not looked
at), and then the YAML that mends what is wrong. A pod that only calls others needs no permission,
and often has no token for the API server: there, --only caller.

Ends with 0 where nothing is wrong, warnings aside, with 1 where something is, with 2 on a mistake
in the command line.
`;

type DoctorValues = Values<typeof options>;

export const doctor: Command = {
  summary: 'find out what a service lacks, and the YAML that mends it',
  help: formatHelp('doctor [options]', notes, options),
  async run(args, terminal) {
    const { values, positionals } = readArguments(args, options);
    if (positionals.length > 0) throw new UsageError(`doctor takes options only, not "${positionals.join(' ')}"`);
    const checks = await readChecks(values);
    const findings: Finding[] = [];
    for await (const finding of checks) {
      findings.push(finding);
      if (values.json !== true) terminal.marked(finding.status, `${finding.check.padEnd(12)}  ${finding.message}`);
    }
    const ok = findings.every(({ status }) => status !== 'wrong');
    if (values.json === true) terminal.json({ ok, checks: findings });
    else tellMends(findings, terminal);
    return ok ? 0 : 1;
  },
};

async function readChecks(values: DoctorValues): Promise<AsyncGenerator<Finding>> {
  const { audience: audiences = [], authorize = false, verification = 'review', only } = values;
  const files = (values['token-file'] ?? []).map(readNamedFile);
  if (only === 'callee' && files.length > 0) throw new UsageError('--token-file is of the caller, which --only callee leaves out');
  const ofCallee = Object.keys(values).find((name) =>
    ['audience', 'authorize', 'verification', ...Object.keys(clusterOptions)].includes(name),
  );
  if (only === 'caller' && ofCallee !== undefined) throw new UsageError(`--${ofCallee} is of the callee, which --only caller leaves out`);
  // By the guard's own rules.
  if (audiences.length > 0) await ofCommandLine(foresee('', { audience: audiences, allow: 'any' }));
  const asked = { audiences, authorize, verification, apiServer: readApiServer(values), deadline: readDeadline(values) } as const;

  return (async function* () {
    if (only !== 'caller') yield* checkCallee(asked);
    if (only !== 'callee') yield* checkTokenFiles(files, only === 'caller');
  })();
}

interface Asked {
  readonly audiences: readonly string[];
  readonly authorize: boolean;
  readonly verification: 'review' | 'signature';
  readonly apiServer: ReturnType<typeof readApiServer>;
  readonly deadline: Deadline;
}

async function* checkCallee(asked: Asked): AsyncGenerator<Finding> {
  const { apiServer, deadline } = asked;
  let cluster: Cluster;
  try {
    cluster = findCluster(apiServer);
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    yield { check: 'api-server', status: 'wrong', message: inFlags(error.message) };
    return;
  }
  try {
    const isPod = apiServer === undefined && Boolean(process.env['KUBERNETES_SERVICE_HOST'] && process.env['KUBERNETES_SERVICE_PORT']);
    yield { check: 'api-server', status: 'ok', message: `${cluster.url}, by ${isPod ? "this pod's environment" : 'the kubeconfig'}` };
    const first = await askFirst(cluster, deadline);
    if ('failure' in first) {
      yield* tellFailure(first.failure, first.isUnsent);
      const checks = ['permission', 'signing-keys', ...asked.audiences.map(() => 'audience' as const)] as const;
      for (const check of checks) yield { check, status: 'skipped', message: 'not looked at' };
      return;
    }
    const who = await whoWeAre(cluster, first.token, deadline);
    for (const check of inTurn) yield { check, status: 'ok', message: check === 'credential' ? who.told : good[check] };
    yield* checkPermissions(asked, cluster, who, first.mayReview);
    yield await checkSigningKeys(asked, cluster, who);
    for (const audience of asked.audiences) yield await checkAudience(cluster, audience);
  } finally {
    cluster.close();
  }
}

type OwnToken = Awaited<ReturnType<Cluster['ownToken']>>;
type First = { readonly token: OwnToken; readonly mayReview: boolean } | { readonly failure: ApiServerError; readonly isUnsent: boolean };

async function askFirst(cluster: Cluster, deadline: Deadline): Promise<First> {
  // Our credential is read without asking anybody; a kubeconfig may run a program for it.
  let isUnsent = true;
  try {
    const token = await deadline.within(cluster.ownToken());
    isUnsent = false;
    return { token, mayReview: await deadline.within(cluster.mayCreate('TokenReviews', deadline.leftMs())) };
  } catch (failure) {
    if (failure instanceof ApiServerError) return { failure, isUnsent };
    throw failure;
  }
}

/** Whom the cluster takes us for. */
interface Who {
  readonly name: string;
  /** What a role can be bound to; absent where nobody has said. */
  readonly subject?: Subject;
  readonly told: string;
}

async function whoWeAre(cluster: Cluster, token: OwnToken, deadline: Deadline): Promise<Who> {
  const expiry = token?.expiresAt === undefined ? '' : `, expires ${fromNow(token.expiresAt, Date.now())}`;
  const identify = (name: string, subject?: Subject): Who => ({ name, told: `${name}${expiry}`, ...(subject && { subject }) });
  if (token?.serviceAccount) return identify(formatUsername(token.serviceAccount), token.serviceAccount);
  const username = await failing(deadline.within(cluster.username(deadline.leftMs())));
  return typeof username === 'string' ? identify(username, { username }) : identify('the identity in the kubeconfig');
}

async function failing<Answer>(answer: Promise<Answer>): Promise<Answer | ApiServerError> {
  try {
    return await answer;
  } catch (error) {
    if (error instanceof ApiServerError) return error;
    throw error;
  }
}

// One question tells of three things: whichever failed, those before it were good.
const inTurn = ['connection', 'certificate', 'credential'] as const;
const good = { connection: 'answers', certificate: 'signed by the CA that we trust' };
const culprits: Readonly<Record<string, (typeof inTurn)[number]>> = {
  certificate_not_trusted: 'certificate',
  own_credentials_refused: 'credential',
  // Whoever is known may ask what it may do.
  own_permission_missing: 'credential',
};

function* tellFailure({ reason, message }: ApiServerError, isUnsent: boolean): Generator<Finding> {
  const culprit = isUnsent ? 'credential' : (culprits[reason] ?? 'connection');
  for (const check of inTurn) {
    if (check === culprit) yield { check, status: 'wrong', message: `${message}${adviceFor(reason)}` };
    else if (isUnsent || check === 'credential' || culprit === 'connection') yield { check, status: 'skipped', message: 'not looked at' };
    else yield { check, status: 'ok', message: good[check] };
  }
}

function adviceFor(reason: string | undefined): string {
  if (reason === 'own_credentials_unreadable') return '. A pod that only calls others needs none: --only caller';
  if (reason === 'own_credentials_refused' || reason === 'own_permission_missing')
    return '. The credential has ended, or is not for this cluster';
  return '';
}

async function* checkPermissions(
  { authorize, verification, deadline }: Asked,
  cluster: Cluster,
  who: Who,
  mayReview: boolean,
): AsyncGenerator<Finding> {
  if (verification === 'signature')
    yield {
      check: 'permission',
      subject: 'tokenreviews',
      status: 'skipped',
      message: 'create tokenreviews is not needed to verify signatures',
    };
  else yield permission('tokenreviews', mayReview, who);
  if (!authorize) return;
  const mayAsk = await failing(deadline.within(cluster.mayCreate('SubjectAccessReviews', deadline.leftMs())));
  if (mayAsk instanceof ApiServerError)
    yield { check: 'permission', subject: 'subjectaccessreviews', status: 'wrong', message: mayAsk.message };
  else yield permission('subjectaccessreviews', mayAsk, who);
}

function permission(resource: 'tokenreviews' | 'subjectaccessreviews', isGranted: boolean, who: Who): Finding {
  const about = { check: 'permission', subject: resource } as const;
  const isService = who.subject !== undefined && 'namespace' in who.subject;
  const whose = isService ? '' : `: ${who.name} may. What a service may, this tells in its pod`;
  if (isGranted) return { ...about, status: 'ok', message: `may create ${resource}${whose}` };
  const right = resource === 'tokenreviews' ? 'review-tokens' : 'review-access';
  return { ...about, status: 'wrong', message: `${who.name} may not create ${resource}`, ...granting(right, who) };
}

function granting(right: Right, { subject }: Who): Pick<Finding, 'mend'> {
  return subject === undefined ? {} : { mend: { for: 'cluster', yaml: formatDocuments(grant(right, subject)) } };
}

async function checkSigningKeys({ verification, deadline }: Asked, cluster: Cluster, who: Who): Promise<Finding> {
  const answer = await failing(deadline.within(cluster.signingKeys()));
  const trouble = answer instanceof ApiServerError ? answer.message : answer;
  if (trouble === undefined) return { check: 'signing-keys', status: 'ok', message: 'readable at /openid/v1/jwks' };
  const isForbidden = trouble.includes('answers 403');
  return {
    check: 'signing-keys',
    status: verification === 'signature' ? 'wrong' : 'warning',
    message: trouble,
    ...(isForbidden && granting('read-signing-keys', who)),
  };
}

async function checkAudience(cluster: Cluster, audience: string): Promise<Finding> {
  const about = { check: 'audience', subject: audience } as const;
  if ((await cluster.ownToken()) === undefined)
    return { ...about, status: 'skipped', message: `only a pod's own token tells whether "${audience}" is the API server's` };
  try {
    await cluster.refuseAudiences([audience]);
    return { ...about, status: 'ok', message: `"${audience}" is not the API server's` };
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    return { ...about, status: 'wrong', message: error.message };
  }
}

const introductions = {
  cluster: 'To mend it, apply this with kubectl apply -f - (what only calls others needs none of it: --only caller)',
  pod: 'To mend it, put this into the pod template',
} as const;

// The same YAML once, however many it mends.
function tellMends(findings: readonly Finding[], terminal: Terminal): void {
  for (const target of ['cluster', 'pod'] as const) {
    const documents = new Set(findings.flatMap(({ mend }) => (mend?.for === target ? [mend.yaml] : [])));
    if (documents.size === 0) continue;
    terminal.line();
    terminal.line(introductions[target]);
    for (const yaml of documents) terminal.text(`---\n${yaml}`);
  }
}
