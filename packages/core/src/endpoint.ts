// Where the API server is, and what we come with: a pod's files, files that are named, or a kubeconfig.

import { existsSync } from 'node:fs';
import type { RequestOptions } from 'node:https';
import { createRequire } from 'node:module';
import { homedir } from 'node:os';
import { delimiter, join } from 'node:path';

import type { KubeConfig } from '@kubernetes/client-node';

import { refuseUnknown } from './errors.ts';
import { printable } from './logger.ts';
import { maxTokenLength } from './screening.ts';
import { podPath, readSmallFile, serviceAccountDirectory } from './token-file.ts';

/** How to reach the API server. Default: as the kubelet tells a pod; outside a pod, the current kubeconfig (needs `@kubernetes/client-node`). */
export type ApiServer =
  | { readonly url: string; readonly caFile: string; readonly tokenFile: string }
  | { readonly kubeconfig: string; readonly context?: string };

/** What we come with: TLS material and headers. */
export interface Credentials {
  readonly tls: Pick<RequestOptions, 'ca' | 'cert' | 'key' | 'servername'>;
  readonly headers: Readonly<Record<string, string>>;
}

export interface Endpoint {
  readonly url: URL;
  readonly readCredentials: () => Promise<Credentials>;
}

/** Throws a TypeError if there is no API server to be found, or none that could be trusted. */
export function findEndpoint(options: ApiServer | undefined): Endpoint {
  if (options !== undefined) {
    const isKubeconfig = Object.hasOwn(Object(options) as object, 'kubeconfig');
    refuseUnknown('"apiServer"', options, isKubeconfig ? ['kubeconfig', 'context'] : ['url', 'caFile', 'tokenFile']);
    if ('kubeconfig' in options) return kubeconfigEndpoint(readPath(options, 'kubeconfig'), options.context);
    const url = readHttpsUrl(options.url, '"apiServer.url"');
    return fileEndpoint(url, readPath(options, 'caFile'), readPath(options, 'tokenFile'), 'does not exist');
  }
  const { KUBERNETES_SERVICE_HOST: host, KUBERNETES_SERVICE_PORT: port } = process.env;
  if (!host || !port) return kubeconfigEndpoint(undefined, undefined);
  const url = readHttpsUrl(`https://${host.includes(':') ? `[${host}]` : host}:${port}`, 'KUBERNETES_SERVICE_HOST and _PORT');
  const [caFile, tokenFile] = [podPath(`${serviceAccountDirectory}/ca.crt`), podPath(`${serviceAccountDirectory}/token`)];
  return fileEndpoint(url, caFile, tokenFile, 'does not exist. A guard asks with it: set automountServiceAccountToken: true for this pod');
}

function readPath<K extends string>(options: { readonly [name in K]: unknown }, name: K): string {
  const path = options[name];
  if (typeof path !== 'string' || path === '') throw new TypeError(`"apiServer.${name}" is required: the path of a file`);
  return path;
}

function readHttpsUrl(text: unknown, where: string): URL {
  const url = typeof text === 'string' ? URL.parse(text) : null;
  if (url?.protocol !== 'https:')
    throw new TypeError(`${where}: ${JSON.stringify(text)} is not an https: URL. Tokens are reviewed over verified TLS only`);
  return url;
}

function fileEndpoint(url: URL, caFile: string, tokenFile: string, ifMissing: string): Endpoint {
  return {
    url,
    async readCredentials() {
      const [ca, token] = await Promise.all([
        readSmallFile(caFile, 1_048_576, ifMissing),
        readSmallFile(tokenFile, maxTokenLength, ifMissing),
      ]);
      // RFC 6750 §2.1; anything else could not stand in a header.
      if (!/^[\w.~+/-]+=*$/.test(token)) throw new Error(`${tokenFile} does not hold a token`);
      return { tls: { ca }, headers: { authorization: `Bearer ${token}` } };
    },
  };
}

const alternatives = `run in a pod, set KUBECONFIG, or give apiServer: { url, caFile, tokenFile }`;

function kubeconfigEndpoint(file: string | undefined, context: string | undefined): Endpoint {
  const named = file ?? process.env['KUBECONFIG'];
  const paths = named ? (file === undefined ? named.split(delimiter).filter(Boolean) : [named]) : [join(homedir(), '.kube', 'config')];
  const missing = paths.find((path) => !existsSync(path));
  if (missing !== undefined) {
    const where = named
      ? `the kubeconfig ${missing} does not exist`
      : `this process is not in a pod, and there is no kubeconfig at ${missing}`;
    throw new TypeError(`No API server to review tokens: ${where}. To mend it, ${alternatives}`);
  }
  const config = loadKubeconfig(paths);
  if (context !== undefined) config.setCurrentContext(context);
  const cluster = config.getCurrentCluster();
  const where = `${paths.join(', ')}, context ${JSON.stringify(config.getCurrentContext())}`;
  if (cluster === null) throw new TypeError(`${where}: names no cluster`);
  if (cluster.skipTLSVerify)
    throw new TypeError(
      `${where}: insecure-skip-tls-verify is set. Name the cluster's CA instead: tokens are reviewed over verified TLS only`,
    );
  if (cluster.proxyUrl) throw new TypeError(`${where}: proxy-url is not supported. Give apiServer: { url, caFile, tokenFile }`);
  return {
    url: readHttpsUrl(cluster.server, where),
    async readCredentials() {
      const options: RequestOptions = {};
      await config.applyToHTTPSOptions(options).catch((error: unknown) => {
        // Its message quotes what it could not parse, which may be the credential.
        throw error instanceof SyntaxError ? new Error('The program that the kubeconfig runs for them printed what is not JSON') : error;
      });
      const headers = Object.entries(options.headers ?? {}).map(([name, value]) => [name.toLowerCase(), String(value)] as const);
      const basic = options.auth ? [['authorization', `Basic ${Buffer.from(options.auth).toString('base64')}`] as const] : [];
      if (headers.some(([, value]) => /[^\t\x20-\x7e\x80-\xff]/.test(value)))
        throw new Error('What the kubeconfig gives could not stand in a header');
      const { ca, cert, key, servername } = options;
      const tls = Object.fromEntries(Object.entries({ ca, cert, key, servername }).filter(([, value]) => value !== undefined));
      return { tls, headers: Object.fromEntries([...basic, ...headers]) };
    },
  };
}

// Loaded here only: importing the package costs most of a second and tens of megabytes, and no pod needs it.
function loadKubeconfig(paths: readonly string[]): KubeConfig {
  let client: typeof import('@kubernetes/client-node');
  try {
    client = createRequire(import.meta.url)('@kubernetes/client-node') as typeof client;
  } catch (cause) {
    throw new TypeError(
      `Outside a pod the kubeconfig is read by @kubernetes/client-node, which cannot be loaded: install it, run in a pod, or give apiServer: { url, caFile, tokenFile }`,
      { cause },
    );
  }
  let trouble: string;
  try {
    const config = new client.KubeConfig();
    const [only, ...more] = paths;
    if (only !== undefined && more.length === 0) config.loadFromFile(only);
    else config.loadFromDefault();
    return config;
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    const [, place] = (error instanceof Error && error.name === 'YAMLException' && /\((\d+:\d+)\)/.exec(text)) || [];
    trouble = place === undefined ? printable(text) : `it is no YAML from line and column ${place} on`;
  }
  // Without its cause: a parser's error quotes the lines around the mistake and holds the whole file, credentials and all.
  throw new TypeError(`The kubeconfig ${paths.join(', ')} cannot be read: ${trouble}`);
}
