// The three services against the authority, each as a process of its own: `pnpm demo`. What a cluster would run, without one.

import { generateKeyPair } from 'node:crypto';
import { once } from 'node:events';
import { constants } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';
import { parseArgs, promisify } from 'node:util';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';

import { createReport } from './demo/report.ts';
import { choosePorts, createLauncher, type Launcher, manifestOf, type StartOptions } from './demo/services.ts';
import { parseListenAddr } from './listen.ts';
import { runSteps } from './demo/steps.ts';
import { tellStory } from './demo/story.ts';

const usage = `Runs api, secret-store and data-store against an authority that plays the cluster, and shows what each refuses and why.

Usage: pnpm demo [--stay]

  --stay   leave all running afterwards, and print what to curl, until Ctrl-C
  --help   print this

Exits with 0 if each step came out as it should, else with 1.`;

const cacheTtlMs = 2_000;

const report = createReport(process.stdout);
const interruption = new AbortController();
const { signal } = interruption;
for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, () => interruption.abort(name));
// Whoever read our output went away, as `head` does.
process.stdout.on('error', () => interruption.abort('SIGPIPE'));

process.exitCode = await main();

async function main(): Promise<number> {
  let options: { readonly stay?: boolean | undefined; readonly help?: boolean | undefined };
  try {
    options = parseArgs({ options: { stay: { type: 'boolean' }, help: { type: 'boolean', short: 'h' } } }).values;
  } catch (error) {
    console.error(`${error instanceof Error ? error.message : String(error)}\n\n${usage}`);
    return 2;
  }
  if (options.help === true) {
    report.plain(usage);
    return 0;
  }

  let authority: Authority | undefined;
  let launcher: Launcher | undefined;
  try {
    authority = await createAuthority({ manifests: ['secret-store', 'data-store', 'api'].map(manifestOf) });
    signal.throwIfAborted();
    launcher = createLauncher(authority, signal);
    const isGood = await run(authority, launcher, options.stay === true);
    return isGood ? 0 : 1;
  } catch (error) {
    // The services may have ended by the same Ctrl-C, and be heard of first.
    await delay(100);
    if (signal.aborted) return 128 + constants.signals[signal.reason as NodeJS.Signals];
    report.summary(false, error instanceof Error ? error.message : String(error));
    printOutput(launcher);
    return 1;
  } finally {
    // The services end with it.
    await authority?.close();
    if (signal.aborted) report.interrupted('Stopped. No process and no file is left.');
  }
}

async function run(authority: Authority, launcher: Launcher, stay: boolean): Promise<boolean> {
  const startedMs = performance.now();
  const pods = {
    api: podOf(authority, 'api/api'),
    secretStore: podOf(authority, 'secret-store/secret-store'),
    dataStore: podOf(authority, 'data-store/data-store'),
  };
  const wished = [pods.api, pods.secretStore, pods.dataStore].map(({ env }) => parseListenAddr(env['LISTEN_ADDR'] ?? ':0').port);
  const ports = await choosePorts(wished);
  const [apiPort = 0, secretStorePort = 0, dataStorePort = 0] = ports;
  const SECRET_STORE_CONNSTRING = `http://127.0.0.1:${secretStorePort}`;
  const DATA_STORE_CONNSTRING = `http://127.0.0.1:${dataStorePort}`;

  // Each runs what its manifest says, in its pod; only addresses differ, and one window that is shortened.
  const roles: Readonly<Record<keyof typeof pods, StartOptions>> = {
    secretStore: { name: 'secret-store', pod: pods.secretStore, port: secretStorePort, env: { CACHE_TTL_MS: String(cacheTtlMs) } },
    dataStore: { name: 'data-store', pod: pods.dataStore, port: dataStorePort, env: { SECRET_STORE_CONNSTRING } },
    api: { name: 'api', pod: pods.api, port: apiPort, env: { SECRET_STORE_CONNSTRING, DATA_STORE_CONNSTRING } },
  };
  const [secretStore, dataStore, api, { privateKey: forgersKey }] = await Promise.all([
    launcher.start(roles.secretStore),
    launcher.start(roles.dataStore),
    launcher.start(roles.api),
    promisify(generateKeyPair)('rsa', { modulusLength: 2048 }),
  ]);

  report.title('Three services and an authority in the place of a cluster');
  report.fact('authority', `${authority.url}  plays the API server and the kubelet, from examples/*/k8s.yaml`);
  report.fact('api', `${api.url}  Express, pid ${api.pid}`);
  report.fact('secret-store', `${secretStore.url}  Fastify, pid ${secretStore.pid}`);
  report.fact('data-store', `${dataStore.url}  Koa, pid ${dataStore.pid}`);
  const taken = wished.filter((port, index) => ports[index] !== port);
  if (taken.length > 0) report.note(`${taken.join(', ')} taken on this machine, so other ports are used.`);

  const story = tellStory({ authority, api, secretStore, dataStore, pods, forgersKey, cacheTtlMs, signal });
  const { count, failed } = await runSteps(story, { authority, report, signal });
  const seconds = ((performance.now() - startedMs) / 1000).toFixed(1);
  if (failed.length > 0) {
    printOutput(launcher);
    report.summary(false, `${failed.length} of ${count} steps did not come out as they should (${failed.join('; ')}), in ${seconds} s`);
    return false;
  }
  report.summary(true, `${count} steps, all as they should be, in ${seconds} s`);
  if (!stay) return true;

  await launcher.start(roles.secretStore);
  report.heading('All are running until Ctrl-C');
  report.plain(`
  curl ${api.url}
  curl ${api.url}/data
  curl -i ${dataStore.url}

  api_token=${pods.api.tokenFile('api-token')}
  data_token=${pods.api.tokenFile('data-token')}
  curl -H "X-Client-Id: $(cat $api_token)" ${secretStore.url}/whoami
  curl -i -H "X-Client-Id: $(cat $data_token)" ${secretStore.url}/whoami
  curl -i -H "X-Client-Id: $(cat $data_token)" ${dataStore.url}/secret

  kubectl --kubeconfig ${authority.kubeconfig} get --raw /openid/v1/jwks
`);
  await once(signal, 'abort');
  throw signal.reason;
}

function podOf({ pods }: Authority, serviceAccount: string): Pod {
  const pod = pods.find((one) => one.serviceAccount === serviceAccount);
  if (pod === undefined) throw new Error(`no manifest holds a Deployment of ${serviceAccount}`);
  return pod;
}

function printOutput(launcher: Launcher | undefined): void {
  for (const { name, lines } of launcher?.output() ?? []) {
    report.heading(`What ${name} printed`);
    for (const line of lines) report.plain(`  ${line}`);
  }
}
