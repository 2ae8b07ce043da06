// Single parts of what stands before a route, each alone in a hook of Fastify, so that its cost can be told from the rest.

import { hash, randomBytes } from 'node:crypto';
import type { AddressInfo } from 'node:net';

import { fastify, type FastifyRequest } from 'fastify';

import { answerParent } from './child.ts';
import type { Usage } from './server.ts';

const path = '/orders/b7d1';
const prefix = randomBytes(48).toString('base64');
const byRequest = new WeakMap<object, string>();
const bySocket = new WeakMap<object, string>();

const tokenOf = ({ raw }: FastifyRequest): string => String(raw.headers['x-client-id']);

function wait(micros: number): void {
  const until = process.hrtime.bigint() + BigInt(micros * 1_000);
  while (process.hrtime.bigint() < until);
}

const hooks = {
  'nothing, in a hook': () => {},
  'a wait of 3 µs': () => wait(3),
  'a wait of 6 µs': () => wait(6),
  'a wait of 10 µs': () => wait(10),
  'hashing the token': (request) => hash('sha256', prefix + tokenOf(request), 'base64'),
  'comparing it with the connection’s last one': (request) => {
    const token = tokenOf(request);
    if (bySocket.get(request.raw.socket) !== token) bySocket.set(request.raw.socket, token);
  },
  'remembering it for the request in a WeakMap': (request) => byRequest.set(request.raw, tokenOf(request)),
  'reading headersDistinct': ({ raw }) => raw.headersDistinct,
  'deleting the header from headers': ({ raw }) => delete raw.headers['x-client-id'],
} satisfies Record<string, (request: FastifyRequest) => unknown>;

export type Hook = keyof typeof hooks;

answerParent(async ({ hook }: { readonly hook: Hook | undefined }) => {
  const app = fastify();
  if (hook !== undefined) {
    const run: (request: FastifyRequest) => unknown = hooks[hook];
    app.addHook('onRequest', (request, _reply, done) => {
      run(request);
      done();
    });
  }
  app.get(path, () => ({ id: 'b7d1', state: 'shipped', items: 3 }));
  await app.listen({ host: '127.0.0.1', port: 0 });
  const { port } = app.server.address() as AddressInfo;
  return async (): Promise<Usage> => {
    const { user, system } = process.cpuUsage();
    return { port, path, cpuMicros: user + system };
  };
});
