// `manifests`: the least that both sides need, as YAML.

import { foresee, type Identity, parseServiceAccount } from '@k8s-sa-auth/core/diagnosis';
import type { Document } from 'yaml';

import { formatHelp, ofCommandLine, readArguments, UsageError, type Values } from './arguments.ts';
import type { Command } from './command.ts';
import { formatDocuments } from './documents.ts';
import { grant } from './rbac.ts';
import { type Caller, callerPatch } from './token-volume.ts';

const options = {
  callee: { type: 'string', value: 'namespace/name', help: 'the ServiceAccount of the service that is called' },
  audience: { type: 'string', value: 'name', help: 'the name that it answers to: the audience of its guard' },
  caller: {
    type: 'string',
    multiple: true,
    value: 'caller',
    help: 'a ServiceAccount that calls: namespace/name, or namespace/name:deployment/container; repeatable',
  },
  authorize: { type: 'boolean', help: 'the guard also asks what callers may do: grant create subjectaccessreviews too' },
  only: {
    type: 'string',
    choices: ['callee', 'caller'],
    value: 'side',
    help: 'callee: the objects that permit; caller: the patches that mount tokens',
  },
} as const;

const notes = `
Prints the least that both sides need, as YAML: for the callee a ClusterRole that may create
tokenreviews and nothing else, with its binding; for each caller a patch of its Deployment that
mounts a token for this audience. Deployment and container have the ServiceAccount's name unless
they are named.

  k8s-sa-auth manifests --callee shop/shop --only callee | kubectl apply -f -
  k8s-sa-auth manifests --audience shop --caller api/api:app --only caller > patch.yaml
  kubectl patch deployment app -n api --patch-file patch.yaml

A patch is also one of kustomize's. It is not for kubectl apply, which would take it for the whole
Deployment.

Ends with 0, or with 2 on a mistake in the command line.
`;

export const manifests: Command = {
  summary: 'print the RBAC and the volumes that two services need',
  help: formatHelp('manifests --callee <namespace/name> --audience <name> --caller <namespace/name> [options]', notes, options),
  async run(args, terminal) {
    const { values, positionals } = readArguments(args, options);
    if (positionals.length > 0) throw new UsageError(`manifests takes options only, not "${positionals.join(' ')}"`);
    terminal.text(formatDocuments(await writeManifests(values)));
    return 0;
  },
};

async function writeManifests(values: Values<typeof options>): Promise<readonly Document[]> {
  const { callee, audience, caller: callers = [], authorize = false, only } = values;
  if (only === 'caller' && authorize) throw new UsageError('--authorize is of the callee, which --only caller leaves out');
  if (only !== 'caller' && callee === undefined)
    throw new UsageError('--callee is required: the ServiceAccount of the service that is called');
  const identity = callee === undefined ? undefined : (parseServiceAccount(callee) ?? refuse('--callee', callee));
  const read = callers.map(readCaller);
  const twice = read.find((one, at) => read.findIndex((other) => placeOf(other) === placeOf(one)) !== at);
  if (twice !== undefined) throw new UsageError(`${placeOf(twice)} is named twice in --caller`);
  if (audience !== undefined) await ofCommandLine(foresee('', { audience, allow: 'any' }));
  if (only === 'callee') return identity === undefined ? [] : permissions(identity, authorize);
  if (audience === undefined) throw new UsageError('--audience is required: the name that the called service answers to');
  if (read.length === 0) throw new UsageError('--caller is required, once for each ServiceAccount that calls');
  const patches = read.map((caller) => callerPatch(caller, audience));
  return only === 'caller' || identity === undefined ? patches : [...permissions(identity, authorize), ...patches];
}

function permissions(callee: Identity, authorize: boolean): readonly Document[] {
  return [...grant('review-tokens', callee), ...(authorize ? grant('review-access', callee) : [])];
}

// A Deployment is named by a subdomain, a container by a label (RFC 1123).
const subdomain = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/;
const label = /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/;

function readCaller(text: string): Caller {
  const [account = '', place, ...more] = text.split(':');
  const serviceAccount = parseServiceAccount(account);
  if (serviceAccount === undefined || more.length > 0) return refuse('--caller', text);
  const [deployment = '', container = deployment, ...others] = (place ?? serviceAccount.name).split('/');
  if (others.length > 0 || deployment.length > 253 || !subdomain.test(deployment)) return refuse('--caller', text);
  if (!label.test(container))
    throw new UsageError(`--caller: "${container}" is no name for a container: write ${account}:${deployment}/container`);
  return { serviceAccount, deployment, container };
}

function placeOf({ serviceAccount: { namespace }, deployment, container }: Caller): string {
  return `${namespace}/${deployment}/${container}`;
}

function refuse(option: '--callee' | '--caller', text: string): never {
  const shape = option === '--callee' ? 'namespace/name' : 'namespace/name[:deployment[/container]]';
  throw new UsageError(`${option}: "${text}" is not ${shape}, as Kubernetes names them`);
}
