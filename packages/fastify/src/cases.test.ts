import { runAdapterCases } from '@k8s-sa-auth/testing/adapter-cases';
import Fastify from 'fastify';
import { k8sSaAuth } from './index.ts';

runAdapterCases({
  name: 'Fastify',
  seesPublicRoutes: true,
  guardsUnknownPaths: true,
  async start({ guard, ops, errorHandler, handle }) {
    const app = Fastify({ forceCloseConnections: true });
    app.addHook('onRequest', async (_request, reply) => void reply.header('vary', 'Origin'));
    if (errorHandler === 'custom') {
      app.setErrorHandler<Error & { statusCode?: number }>((error, _request, reply) => reply.code(error.statusCode ?? 500).send('failed'));
    }
    await app.register(k8sSaAuth, guard);
    app.get('/guarded', (request) => handle(request.raw, request.caller));
    app.post('/guarded', (request) => handle(request.raw, request.caller, request.body));
    app.get('/ops', { config: { k8sSaAuth: ops } }, (request) => handle(request.raw, request.caller));
    app.get('/both', { onRequest: app.k8sSaAuth.with(ops) }, (request) => handle(request.raw, request.caller));
    app.get('/public', { config: { k8sSaAuth: false } }, (request) => handle(request.raw, request.caller));
    const url = await app.listen({ port: 0, host: '127.0.0.1' });
    return { url, close: () => app.close() };
  },
});
