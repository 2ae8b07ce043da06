// secret-store, in Fastify: it answers only to those whose token was made out to it, and of those only to api.

import { callerOf, k8sSaAuth } from '@k8s-sa-auth/fastify';
import { fastify } from 'fastify';

import { onShutdown, parseListenAddr } from '../listen.ts';

// CACHE_TTL_MS: for how long a caller is remembered without asking the API server again. 60 s is the library's default.
const { LISTEN_ADDR = ':8081', CACHE_TTL_MS = '60000' } = process.env;

const app = fastify({ logger: true });

// Every route is guarded, and every 404, unless a route says otherwise. The audience says whom a token must be for, `allow` who may
// call. Both are needed: anyone who can create a pod can ask for a token for any audience.
await app.register(k8sSaAuth, { audience: 'secret-store', allow: ['api/api'], cacheTtlMs: Number(CACHE_TTL_MS) });

app.get('/', () => 'Hello from secret store. You have been authenticated');

// What a handler knows of its caller: what the cluster said of the token, never what the caller says of itself.
app.get('/whoami', (request) => {
  const { serviceAccount, pod, node, audiences, expiresAt } = callerOf(request);
  return { serviceAccount, pod: pod?.name, node: node?.name, audiences, expiresAt };
});

// An audience of its own: a token for `secret-store` is of no use here.
app.get('/admin', { config: { k8sSaAuth: { audience: 'secret-store-admin', allow: ['ops/*'] } } }, (request) => {
  return `Hello ${callerOf(request).serviceAccount}. This is the admin route`;
});

// Public, for the kubelet. It is ready once the cluster has said that we may review tokens, and stays so through an outage. Why it is not is
// told by the log alone: anyone may ask here.
app.get('/healthz', { config: { k8sSaAuth: false } }, () => 'ok');
app.get('/readyz', { config: { k8sSaAuth: false } }, async (_request, reply) => {
  const status = await app.k8sSaAuth.ready().then(
    () => 204,
    () => 503,
  );
  return reply.code(status).send();
});

await app.listen(parseListenAddr(LISTEN_ADDR));
onShutdown(() => void app.close());
