// What the authority takes: how long until it answers, how many TokenReviews it answers in a second to a client in another process,
// and whether 10 000 ServiceAccounts and 100 000 tokens that live make that fewer. Signing 100 000 tokens takes a minute or two:
// `node bench/authority.ts 10000` does with fewer.

import { fork } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { Agent, request } from 'node:https';

import { createAuthority } from '@k8s-sa-auth/testing';

const serviceAccounts = 10_000;
const reviewsPerRound = 6_000;
const rounds = 5;
const inFlight = 16;

interface Load {
  readonly url: string;
  readonly caFile: string;
  readonly tokenFile: string;
  readonly tokens: readonly string[];
}

interface Measured {
  readonly perSecond: number;
  readonly refused: number;
}

async function review(load: Load): Promise<Measured> {
  const { url, caFile, tokenFile, tokens } = load;
  const agent = new Agent({ keepAlive: true, maxSockets: inFlight, ca: readFileSync(caFile) });
  const headers = { authorization: `Bearer ${readFileSync(tokenFile, 'utf8')}`, 'content-type': 'application/json' };
  let [left, refused] = [reviewsPerRound, 0];
  const send = (token: string): Promise<void> =>
    new Promise((resolve, reject) => {
      const options = { method: 'POST', agent, headers };
      const sent = request(`${url}/apis/authentication.k8s.io/v1/tokenreviews`, options, (response) => {
        let body = '';
        response.on('data', (chunk) => (body += String(chunk)));
        response.on('end', () => {
          if (!body.includes('"authenticated":true')) refused += 1;
          resolve();
        });
      });
      sent.on('error', reject);
      sent.end(JSON.stringify({ spec: { token, audiences: ['store'] } }));
    });
  const worker = async (): Promise<void> => {
    while (left-- > 0) await send(tokens[left % tokens.length] ?? '');
  };
  const startedAt = performance.now();
  await Promise.all(Array.from({ length: inFlight }, worker));
  const perSecond = (reviewsPerRound / (performance.now() - startedAt)) * 1_000;
  agent.destroy();
  return { perSecond, refused };
}

const median = (numbers: readonly number[]): number => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)] ?? Number.NaN;

async function startUp(): Promise<number> {
  const times: number[] = [];
  for (let round = 0; round < 20; round += 1) {
    const startedAt = performance.now();
    const authority = await createAuthority();
    times.push(performance.now() - startedAt);
    await authority.close();
  }
  return median(times);
}

async function measure(lived: number): Promise<void> {
  console.log(`start-up: ${(await startUp()).toFixed(0)} ms (median of 20)`);
  const authority = await createAuthority();
  const { apiServer } = await authority.pod('store/store');
  const client = fork(import.meta.filename, ['client']);
  const reviewed = async (tokens: readonly string[]): Promise<number> => {
    const perSecond: number[] = [];
    for (let round = 0; round < rounds; round += 1) {
      client.send({ ...apiServer, tokens } satisfies Load);
      const [measured] = (await once(client, 'message')) as [Measured];
      if (measured.refused > 0) throw new Error(`${measured.refused} reviews said no`);
      perSecond.push(measured.perSecond);
    }
    return median(perSecond);
  };
  const issue = (n: number): Promise<string> =>
    authority.token(`team-${n % 100}/service-${n % serviceAccounts}`, { audience: 'store', expirationSeconds: 86_400 });

  const few = [await issue(0)];
  while (few.length < reviewsPerRound) few.push(await issue(few.length % 100));
  const before = await reviewed(few);
  console.log(
    `TokenReviews, each of another token, of 100 ServiceAccounts: ${before.toFixed(0)} per second (median of ${rounds} rounds of ${reviewsPerRound})`,
  );

  const startedAt = performance.now();
  const tokens: string[] = [];
  while (tokens.length < lived) tokens.push(await issue(tokens.length));
  const perToken = (performance.now() - startedAt) / lived;
  console.log(`${lived} tokens of ${Math.min(lived, serviceAccounts)} ServiceAccounts: ${(1_000 / perToken).toFixed(0)} issued per second`);

  const step = Math.max(Math.floor(lived / reviewsPerRound), 1);
  const some = tokens.filter((_, index) => index % step === 0).slice(0, reviewsPerRound);
  const after = await reviewed(some);
  console.log(`TokenReviews among them: ${after.toFixed(0)} per second, ${(after / before).toFixed(2)} of what it was`);
  client.kill();
  await authority.close();
}

if (process.argv[2] === 'client') {
  process.on('message', (load) => void review(load as Load).then((measured) => process.send?.(measured)));
  process.once('disconnect', () => process.exit());
} else await measure(Number(process.argv[2] ?? 100_000));
