// A server that does as little as it can, so that its callers are what is measured. It answers 200 to whoever brings a token.

import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';

import { answerParent } from './child.ts';

answerParent(async () => {
  const server = createServer(({ headers }, response) => {
    response.statusCode = headers['x-client-id'] === undefined ? 401 : 200;
    response.end('ok');
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  return async (): Promise<string> => `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
