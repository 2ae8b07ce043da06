// Which cluster a command asks, and for how long it waits for it.

import { homedir } from 'node:os';
import { delimiter, join } from 'node:path';

import type { ApiServer } from '@k8s-sa-auth/core';
import { ApiServerError } from '@k8s-sa-auth/core/diagnosis';

import { UsageError } from './arguments.ts';

/** The options of every command that asks a cluster. */
export const clusterOptions = {
  kubeconfig: {
    type: 'string',
    value: 'path',
    help: "ask the cluster of this kubeconfig; in a pod the default is the pod's own, elsewhere yours",
  },
  context: { type: 'string', value: 'name', help: 'the context in it; default: its current one' },
  timeout: { type: 'string', value: 'seconds', help: 'how long all questions to the cluster may take; default 10' },
} as const;

interface ClusterValues {
  readonly kubeconfig?: string;
  readonly context?: string;
  readonly timeout?: string;
}

/** The cluster that the options name; undefined: the pod's own, or the current kubeconfig. Throws a UsageError. */
export function readApiServer({ kubeconfig, context }: ClusterValues): ApiServer | undefined {
  if (context === undefined) return kubeconfig === undefined ? undefined : { kubeconfig };
  const [path = '', ...others] =
    kubeconfig === undefined ? (process.env['KUBECONFIG'] ?? '').split(delimiter).filter(Boolean) : [kubeconfig];
  if (others.length > 0) throw new UsageError('KUBECONFIG names several files: say which one has the context, with --kubeconfig');
  return { kubeconfig: path || join(homedir(), '.kube', 'config'), context };
}

/** What core says of a cluster that it cannot find, in the words of a command line. */
export const inFlags = (message: string): string =>
  message
    .replace(/(set KUBECONFIG, or give) apiServer: \{.*?\}/, '$1 --kubeconfig')
    // Where --kubeconfig would not do either: no flag says it.
    .replace(/(?:, or give|\. Give) apiServer: \{.*?\}/, '');

/** The one limit for all that a command asks of the cluster. */
export interface Deadline {
  leftMs(): number;
  /** The answer, or an ApiServerError with the reason `timeout` when time is up: a kubeconfig may run a program that never ends. */
  within<Answer>(answer: Promise<Answer>): Promise<Answer>;
}

/** Throws a UsageError on what is not a number of seconds. */
export function readDeadline({ timeout = '10' }: ClusterValues): Deadline {
  const seconds = Number(timeout);
  if (!/^\d+(\.\d+)?$/.test(timeout) || seconds <= 0 || seconds > 3_600)
    throw new UsageError(`--timeout takes seconds, more than 0 and at most 3600, not "${timeout}"`);
  const endMs = performance.now() + seconds * 1000;
  const leftMs = (): number => Math.max(0, endMs - performance.now());
  return {
    leftMs,
    async within(answer) {
      let timer: NodeJS.Timeout | undefined;
      const late = new Promise<never>((_resolve, reject) => {
        timer = setTimeout(() => reject(new ApiServerError('timeout', `There was no answer within ${seconds} s (--timeout)`)), leftMs());
      });
      return Promise.race([answer, late]).finally(() => clearTimeout(timer));
    },
  };
}
