// A bare app of Express in a process that has itself asked another server before: what that adds to the requests that it answers.

import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { Agent as HttpsAgent, get } from 'node:https';
import type { AddressInfo } from 'node:net';
import { connect } from 'node:tls';

import express from 'express';
import { Agent, request } from 'undici';

import { answerParent } from './child.ts';
import type { Usage } from './server.ts';

const times = 20;

/** Each asks the server so many times, one after the other, on one connection. */
const ways = {
  async 'nothing (the same again)'() {},
  async 'lines written to a TLS socket'(url, ca) {
    const socket = connect({ host: url.hostname, port: Number(url.port), ca });
    await once(socket, 'secureConnect');
    for (let time = 0; time < times; time++) {
      socket.write('GET /livez HTTP/1.1\r\nhost: kubernetes\r\n\r\n');
      await once(socket, 'data');
    }
  },
  async 'requests by node:https'(url, ca) {
    const agent = new HttpsAgent({ keepAlive: true, ca });
    for (let time = 0; time < times; time++) {
      await new Promise<void>((resolve, reject) => {
        get(new URL('/livez', url), { agent }, (response) => response.resume().on('end', resolve)).on('error', reject);
      });
    }
  },
  async 'requests by undici'(url, ca) {
    const dispatcher = new Agent({ connect: { ca } });
    for (let time = 0; time < times; time++) {
      const { body } = await request(new URL('/livez', url), { dispatcher });
      await body.dump();
    }
  },
} satisfies Record<string, (url: URL, ca: string) => Promise<void>>;

export type Way = keyof typeof ways;

export interface Asker {
  readonly by: Way;
  readonly url: string;
  readonly caFile: string;
}

const path = '/orders/b7d1';

answerParent(async ({ by, url, caFile }: Asker) => {
  const app = express();
  app.get(path, (_request, response) => void response.json({ id: 'b7d1', state: 'shipped', items: 3 }));
  const server = app.listen(0, '127.0.0.1');
  await once(server, 'listening');
  await ways[by](new URL(url), readFileSync(caFile, 'utf8'));
  const { port } = server.address() as AddressInfo;
  return async (): Promise<Usage> => {
    const { user, system } = process.cpuUsage();
    return { port, path, cpuMicros: user + system };
  };
});
