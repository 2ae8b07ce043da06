// The story: who sends what to whom, and what has to come of it.

import { type KeyObject, sign } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';

import type { Authority, Pod } from '@k8s-sa-auth/testing';

import type { Service } from './services.ts';
import { type Answer, type Chapter, countReviews, send } from './steps.ts';

export interface Cast {
  readonly authority: Authority;
  readonly api: Service;
  readonly secretStore: Service;
  readonly dataStore: Service;
  /** The pods that the services play. */
  readonly pods: { readonly api: Pod; readonly secretStore: Pod; readonly dataStore: Pod };
  /** A key that is not the cluster's, to forge with. */
  readonly forgersKey: KeyObject;
  /** For how long secret-store remembers a caller, in milliseconds. */
  readonly cacheTtlMs: number;
  /** Ends all waits. */
  readonly signal: AbortSignal;
}

const rotations = 3;
const requestsPerRotation = 50;
/** How long an API server remembers a token that it accepted. */
const apiServerMemoryMs = 10_000;
const patienceMs = 10_000;

export function tellStory({ authority, api, secretStore, dataStore, pods, forgersKey, cacheTtlMs, signal }: Cast): readonly Chapter[] {
  const get = (url: string, token?: string): Promise<Answer> => send(url, token === undefined ? { signal } : { token, signal });
  const tokenOf = (pod: Pod, name: string): Promise<string> => readFile(pod.tokenFile(name), 'utf8');

  // A pod that runs no process: the demo sends its token.
  const token = async (serviceAccount: string, audience: string): Promise<string> => {
    const pod = await authority.pod(serviceAccount, { tokens: { 'demo-token': audience }, reviews: false });
    return tokenOf(pod, 'demo-token');
  };

  // Waits for what is bound to happen, a moment at a time.
  async function until(isSo: () => boolean | Promise<boolean>): Promise<boolean> {
    const deadlineMs = performance.now() + patienceMs;
    while (!(await isSo())) {
      if (performance.now() > deadlineMs) return false;
      await delay(20, undefined, { signal });
    }
    return true;
  }

  // Sends the same until the status is this one. The last answer is what counts.
  async function getUntil(status: number, url: string, sent: string): Promise<Answer> {
    let last: Answer = { status: 0, body: '' };
    await until(async () => {
      last = await get(url, sent);
      return last.status === status;
    });
    return last;
  }

  // Requests through api, one after the other, to both services, while every pod's tokens are replaced again and again.
  async function rotateUnderTraffic(): Promise<Answer> {
    const traffic = new AbortController();
    let answered = 0;
    let refused: Answer | undefined;
    const keepSending = async (path: string): Promise<void> => {
      while (!traffic.signal.aborted && refused === undefined) {
        const answer = await get(`${api.url}${path}`);
        answered += 1;
        if (answer.status !== 200) refused = answer;
      }
    };
    const senders = Promise.all(['/', '/', '/data', '/data'].map(keepSending));
    const rotate = async (): Promise<void> => {
      for (let round = 0; round < rotations; round += 1) {
        const [seen, sent] = [countReviews(authority), answered];
        for (const pod of Object.values(pods)) await pod.rotate();
        // api has picked up both of its new tokens once both services had to ask about them.
        const isSeen = (): boolean => countReviews(authority) >= seen + 2 && answered >= sent + requestsPerRotation;
        if (!(await until(() => refused !== undefined || isSeen()))) throw new Error('api goes on with its old tokens');
      }
    };
    await Promise.all([rotate().finally(() => traffic.abort()), senders]);
    return refused ?? { status: 200, body: `${answered} requests` };
  }

  let second: { readonly pod: Pod; readonly token: string } | undefined;
  let unknown = '';

  return [
    {
      heading: `secret-store wants tokens made out to "secret-store", and lets in api/api`,
      steps: [
        {
          sent: 'no token',
          expected: { status: 401, code: 'missing_token', reviews: 0 },
          why: 'there is no X-Client-Id header',
          act: () => get(secretStore.url),
        },
        {
          sent: 'garbage',
          expected: { status: 403, code: 'invalid_token', reviews: 0 },
          why: 'not a JWT, so nobody needs to be asked',
          act: () => get(secretStore.url, 'garbage'),
        },
        {
          sent: 'a forged token of api/api',
          expected: { status: 403, code: 'invalid_token' },
          why: 'the right claims, signed with another key',
          act: async () => get(secretStore.url, forge(await tokenOf(pods.api, 'api-token'), forgersKey)),
        },
        {
          sent: 'data-store’s API server token',
          expected: { status: 403, code: 'invalid_token', reviews: 0 },
          why: 'another audience; every pod has such a token',
          act: async () => get(secretStore.url, await readFile(pods.dataStore.apiServer.tokenFile, 'utf8')),
        },
        {
          sent: 'stranger/app, audience secret-store',
          expected: { status: 403, code: 'caller_not_allowed' },
          why: 'a good token, but not in allow',
          act: async () => get(secretStore.url, await token('stranger/app', 'secret-store')),
        },
        {
          sent: 'api → secret-store',
          expected: { status: 200, reviews: 1, body: 'Hello from secret store. You have been authenticated' },
          why: ({ body }) => body,
          act: () => get(api.url),
        },
        {
          sent: 'the same token again, GET /whoami',
          expected: { status: 200, reviews: 0, body: '"api/api"' },
          why: `the handler sees api/api, pod ${pods.api.name}`,
          act: async () => get(`${secretStore.url}/whoami`, await tokenOf(pods.api, 'api-token')),
        },
      ],
    },
    {
      heading: 'Two services, two audiences, two tokens',
      steps: [
        {
          sent: 'api → data-store',
          expected: { status: 200, reviews: 1, body: 'Hello from data store. You have been authenticated' },
          why: ({ body }) => body,
          act: () => get(`${api.url}/data`),
        },
        {
          sent: 'api’s data-token, to secret-store',
          expected: { status: 403, code: 'invalid_token', reviews: 0 },
          why: 'made out to data-store',
          act: async () => get(secretStore.url, await tokenOf(pods.api, 'data-token')),
        },
        {
          sent: 'api’s api-token, to data-store',
          expected: { status: 403, code: 'invalid_token', reviews: 0 },
          why: 'made out to secret-store',
          act: async () => get(dataStore.url, await tokenOf(pods.api, 'api-token')),
        },
        {
          sent: 'data-store → secret-store',
          expected: { status: 403, code: 'caller_not_allowed' },
          why: 'the right audience, but not in allow',
          act: async () => get(`${dataStore.url}/secret`, await tokenOf(pods.api, 'data-token')),
        },
      ],
    },
    {
      heading: 'A route with an audience of its own, and a public one',
      steps: [
        {
          sent: 'ops/console, GET /admin',
          expected: { status: 200, reviews: 1, body: 'ops/console' },
          why: ({ body }) => body,
          act: async () => get(`${secretStore.url}/admin`, await token('ops/console', 'secret-store-admin')),
        },
        {
          sent: 'api’s api-token, GET /admin',
          expected: { status: 403, code: 'invalid_token', reviews: 0 },
          why: '/admin wants the audience secret-store-admin',
          act: async () => get(`${secretStore.url}/admin`, await tokenOf(pods.api, 'api-token')),
        },
        {
          sent: 'api, audience secret-store-admin',
          expected: { status: 403, code: 'caller_not_allowed' },
          why: 'any pod can ask for any audience; allow: ops/*',
          act: async () => get(`${secretStore.url}/admin`, await token('api/api', 'secret-store-admin')),
        },
        {
          sent: 'no token, GET /healthz',
          expected: { status: 200, reviews: 0, body: 'ok' },
          why: 'public',
          act: () => get(`${secretStore.url}/healthz`),
        },
      ],
    },
    {
      heading: 'The kubelet rotates tokens',
      steps: [
        {
          sent: `traffic, all tokens rotated ${rotations} times`,
          expected: { status: 200, reviews: { atLeast: rotations * 2 } },
          why: ({ body }) => `${body}, none refused`,
          act: rotateUnderTraffic,
        },
      ],
    },
    {
      heading: 'A pod is deleted',
      notes: [
        'Deleted with --force, its token is good for at most 70 s more: the API server remembers it for 10 s, the guard for 60 s.',
        `The demo shortens both: it moves the API server’s clock by 10 s, and secret-store runs with CACHE_TTL_MS=${cacheTtlMs}.`,
      ],
      steps: [
        {
          sent: 'a second pod of api/api',
          expected: { status: 200, reviews: 1 },
          why: 'the pod lives',
          act: async () => {
            const pod = await authority.pod('api/api', { tokens: { 'demo-token': 'secret-store' }, reviews: false });
            second = { pod, token: await tokenOf(pod, 'demo-token') };
            return get(secretStore.url, second.token);
          },
        },
        {
          sent: 'its token, the pod deleted',
          expected: { status: 403, code: 'invalid_token', reviews: { atLeast: 1 } },
          why: ({ body }) => body,
          act: async () => {
            if (second === undefined) throw new Error('there is no second pod');
            await authority.delete('pod', `${second.pod.namespace}/${second.pod.name}`);
            authority.advance(apiServerMemoryMs);
            const sinceMs = performance.now();
            const answer = await getUntil(403, secretStore.url, second.token);
            return { ...answer, body: `its pod is gone; refused after ${((performance.now() - sinceMs) / 1000).toFixed(1)} s` };
          },
        },
      ],
    },
    {
      heading: 'The API server goes away',
      steps: [
        {
          sent: 'api → secret-store',
          expected: { status: 200, reviews: 0, body: 'Hello from secret store. You have been authenticated' },
          why: 'its last review still counts, for 5 minutes',
          act: () => {
            authority.fail('outage');
            return get(api.url);
          },
        },
        {
          sent: 'a pod of api/api never seen before',
          expected: { status: 503, code: 'review_unavailable', reviews: 0, retryAfter: /^[1-5]$/ },
          why: ({ retryAfter }) => `nobody knows, hence no “no”: Retry-After ${retryAfter}`,
          act: async () => {
            unknown = await token('api/api', 'secret-store');
            return get(secretStore.url, unknown);
          },
        },
        {
          sent: 'the same pod, the API server back',
          expected: { status: 200, reviews: { atLeast: 1 } },
          why: 'asked again, and accepted',
          act: async () => {
            await authority.recover();
            return getUntil(200, secretStore.url, unknown);
          },
        },
      ],
    },
    {
      heading: 'secret-store goes away',
      steps: [
        {
          sent: 'api → secret-store',
          expected: { status: 502, reviews: 0, body: 'secret-store gave no answer' },
          why: 'not a refusal: nobody answers',
          act: async () => {
            const code = await secretStore.stop();
            if (code !== 0) throw new Error(`secret-store did not end cleanly on SIGTERM: code ${code}`);
            return get(api.url);
          },
        },
      ],
    },
  ];
}

/** The same header and claims under another signature. */
function forge(token: string, key: KeyObject): string {
  const signed = token.slice(0, token.lastIndexOf('.'));
  return `${signed}.${sign('RSA-SHA256', Buffer.from(signed), key).toString('base64url')}`;
}
