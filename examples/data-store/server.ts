// data-store, in Koa: guarded like secret-store, under an audience of its own. It also holds a token for secret-store, which does not
// let it in: a token says who is calling, and secret-store has the last word on who may.

import { createServer } from 'node:http';

import { type CallerState, callerOf, k8sSaAuth, k8sSaAuthClient, TokenFileError } from '@k8s-sa-auth/koa';
import { Router } from '@koa/router';
import Koa from 'koa';

import { onShutdown, parseListenAddr } from '../listen.ts';

const { LISTEN_ADDR = ':8082', SECRET_STORE_CONNSTRING = 'http://app.secret-store.svc.cluster.local' } = process.env;

const guard = k8sSaAuth({ audience: 'data-store', allow: ['api/api'] });
const client = k8sSaAuthClient({
  targets: [{ origin: SECRET_STORE_CONNSTRING, tokenFile: '/var/run/secrets/tokens/secret-token' }],
});

// Public, for the kubelet. It is ready once it may review tokens and has one of its own. Why it is not is told by the log alone: anyone may
// ask here.
const probes = new Router();
probes.get('/healthz', (ctx) => {
  ctx.body = 'ok';
});
probes.get('/readyz', async (ctx) => {
  ctx.status = await Promise.all([guard.ready(), client.ready()]).then(
    () => 204,
    () => 503,
  );
});

const router = new Router<CallerState, { serviceFetch: typeof fetch }>();
router.get('/', (ctx) => {
  ctx.body = 'Hello from data store. You have been authenticated';
});
router.get('/whoami', (ctx) => {
  const { serviceAccount, pod, node, audiences, expiresAt } = callerOf(ctx);
  ctx.body = { serviceAccount, pod: pod?.name, node: node?.name, audiences, expiresAt };
});

// Passes on what secret-store says, which is a 403 as long as its `allow` does not name data-store. No answer is a 502.
router.get('/secret', async (ctx) => {
  try {
    const answer = await ctx.serviceFetch(new URL('/', SECRET_STORE_CONNSTRING), { signal: AbortSignal.timeout(10_000) });
    ctx.body = await answer.text();
    ctx.status = answer.status;
    ctx.type = answer.headers.get('content-type') ?? 'text/plain';
  } catch (error) {
    // Without a token nothing was sent: that is this pod's own trouble, a 500.
    ctx.throw(error instanceof TokenFileError ? 500 : 502, { cause: error });
  }
});

const app = new Koa();
app.use(probes.routes());
app.use(client);
app.use(guard.wrap(router));

const server = createServer(app.callback()).listen(parseListenAddr(LISTEN_ADDR));
onShutdown(() => server.close(() => void Promise.all([guard.close(), client.close()])));
