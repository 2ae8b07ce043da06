// How tokens that nobody remembers are reviewed: by a new guard, by the Kubernetes client, and by a bare `https.Agent`; 16 in flight.

import { readFileSync } from 'node:fs';
import { Agent, request } from 'node:https';

import { createGuard } from '@k8s-sa-auth/core';
import { AuthenticationV1Api, KubeConfig } from '@kubernetes/client-node';

import { answerParent, inFlight, type Rate, rateOf } from './child.ts';

export interface Reviewer {
  readonly by: 'guard' | 'sdk' | 'https';
  readonly audience: string;
  readonly apiServer: { readonly url: string; readonly caFile: string; readonly tokenFile: string };
}

/** The first ones, so many as are in flight, make the connections and are not counted. */
export interface Tokens {
  readonly tokens: readonly string[];
}

interface Ways {
  readonly review: (token: string) => Promise<void>;
  readonly close?: () => Promise<void>;
}

const atATime = 16;
const apiVersion = 'authentication.k8s.io/v1';
const kind = 'TokenReview';

const ways: Readonly<Record<Reviewer['by'], (reviewer: Reviewer) => Ways>> = {
  // A guard of its own for each round: what it remembers of the last one would be no review.
  guard({ audience, apiServer }) {
    const guard = createGuard({ audience, allow: 'any', apiServer });
    return {
      async review(token) {
        await guard.check({ method: 'GET', headers: { 'x-client-id': token }, rawHeaders: ['X-Client-Id', token] });
      },
      close: () => guard.close(),
    };
  },
  sdk({ audience, apiServer: { url, caFile, tokenFile } }) {
    const config = new KubeConfig();
    config.loadFromOptions({
      clusters: [{ name: 'cluster', server: url, caFile }],
      users: [{ name: 'user', token: readFileSync(tokenFile, 'utf8') }],
      contexts: [{ name: 'context', cluster: 'cluster', user: 'user' }],
      currentContext: 'context',
    });
    const api = config.makeApiClient(AuthenticationV1Api);
    return {
      async review(token) {
        const { status } = await api.createTokenReview({ body: { apiVersion, kind, spec: { token, audiences: [audience] } } });
        if (status?.authenticated !== true) throw new Error(`The review says no: ${status?.error}`);
      },
    };
  },
  https({ audience, apiServer: { url, caFile, tokenFile } }) {
    const agent = new Agent({ keepAlive: true, maxSockets: atATime, ca: readFileSync(caFile) });
    const authorization = `Bearer ${readFileSync(tokenFile, 'utf8')}`;
    return {
      review: (token) =>
        new Promise((resolve, reject) => {
          const body = JSON.stringify({ apiVersion, kind, spec: { token, audiences: [audience] } });
          const headers = { authorization, accept: 'application/json', 'content-type': 'application/json', 'content-length': body.length };
          const sent = request(`${url}/apis/${apiVersion}/tokenreviews`, { method: 'POST', agent, headers }, (response) => {
            let text = '';
            response.setEncoding('utf8');
            response.on('data', (chunk: string) => (text += chunk));
            response.on('end', () => {
              const { status } = JSON.parse(text) as { readonly status?: { readonly authenticated?: boolean } };
              if (status?.authenticated === true) resolve();
              else reject(new Error(`The review says no: ${text}`));
            });
          });
          sent.on('error', reject);
          sent.end(body);
        }),
      close: async () => agent.destroy(),
    };
  },
};

answerParent(async (reviewer: Reviewer) => async ({ tokens }: Tokens): Promise<Rate> => {
  const { review, close } = ways[reviewer.by](reviewer);
  const reviewAll = (some: readonly string[]) => inFlight(some.length, atATime, (index) => review(some[index] ?? ''));
  await reviewAll(tokens.slice(0, atATime));
  const counted = tokens.slice(atATime);
  const rate = await rateOf(counted.length, () => reviewAll(counted));
  await close?.();
  return rate;
});
