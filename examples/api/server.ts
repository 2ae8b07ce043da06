// api, in Express: what the outside talks to. It calls two services, each with the token that the kubelet keeps for that one.

import { createServer } from 'node:http';

import { k8sSaAuthClient, TokenFileError } from '@k8s-sa-auth/express';
import express, { type RequestHandler } from 'express';

import { onShutdown, parseListenAddr } from '../listen.ts';

const {
  LISTEN_ADDR = ':8080',
  SECRET_STORE_CONNSTRING = 'http://app.secret-store.svc.cluster.local',
  DATA_STORE_CONNSTRING = 'http://app.data-store.svc.cluster.local',
} = process.env;

// One target, one token file, one audience. A token goes to the origin that is named for it and nowhere else, redirects included.
const client = k8sSaAuthClient({
  targets: [
    { origin: SECRET_STORE_CONNSTRING, tokenFile: '/var/run/secrets/tokens/api-token' },
    { origin: DATA_STORE_CONNSTRING, tokenFile: '/var/run/secrets/tokens/data-token' },
  ],
});

const app = express();

// For the kubelet. It is ready once there is a live token for each target. Why it is not is told by the log alone: anyone may ask here.
app.get('/healthz', (_req, res) => void res.send('ok'));
app.get('/readyz', async (_req, res) => {
  const status = await client.ready().then(
    () => 204,
    () => 503,
  );
  res.status(status).end();
});

// Gives each request a `serviceFetch`: fetch, with the right token, cancelled when whoever asked hangs up.
app.use(client);
app.get('/', passOn('secret-store', SECRET_STORE_CONNSTRING));
app.get('/data', passOn('data-store', DATA_STORE_CONNSTRING));

const server = createServer(app).listen(parseListenAddr(LISTEN_ADDR));
onShutdown(() => server.close(() => void client.close()));

// Passes on what the service at `origin` answers to `GET /`, a refusal included. No answer is a 502.
function passOn(name: string, origin: string): RequestHandler {
  return async (req, res) => {
    try {
      const answer = await req.serviceFetch(new URL('/', origin), { signal: AbortSignal.timeout(10_000) });
      const body = await answer.text();
      const retryAfter = answer.headers.get('retry-after');
      if (retryAfter !== null) res.set('retry-after', retryAfter);
      res.type(answer.headers.get('content-type') ?? 'text/plain');
      res.status(answer.status).send(body);
    } catch (error) {
      // Without a token nothing was sent: that is this pod's own trouble, a 500.
      const status = error instanceof TokenFileError ? 500 : 502;
      console.error(`${name} gave no answer:`, error);
      res.status(status).type('text/plain').send(`${name} gave no answer`);
    }
  };
}
