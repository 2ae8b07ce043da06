// A caller alone in a process: undici's `request` with the interceptor, or with the same header put on by hand.

import { createServiceClient } from '@k8s-sa-auth/core';
import { createInterceptor } from '@k8s-sa-auth/core/undici';
import { Agent, request } from 'undici';

import { answerParent, inFlight, type Rate, rateOf } from './child.ts';

export interface Calls {
  readonly origin: string;
  readonly tokenFile: string;
}

export interface Requests {
  readonly by: 'interceptor' | 'hand';
  readonly requests: number;
}

const atATime = 16;

answerParent(async ({ origin, tokenFile }: Calls) => {
  const client = createServiceClient({ targets: [{ origin, tokenFile }] });
  const accept = { accept: 'application/json' };
  const ways = {
    hand: { dispatcher: new Agent({ connections: atATime }), headers: { ...accept, ...(await client.target(origin).headers()) } },
    interceptor: { dispatcher: new Agent({ connections: atATime }).compose(createInterceptor(client)), headers: accept },
  };
  return ({ by, requests }: Requests): Promise<Rate> =>
    rateOf(requests, () =>
      inFlight(requests, atATime, async () => {
        const { body, statusCode } = await request(`${origin}/orders`, ways[by]);
        await body.text();
        if (statusCode !== 200) throw new Error(`A request was answered ${statusCode}`);
      }),
    );
});
