import { runAdapterCases } from '@k8s-sa-auth/testing/adapter-cases';
import type { AdapterApp, AdapterAppOptions } from '@k8s-sa-auth/testing/adapter-cases';
import Fastify from 'fastify';
import { k8sSaAuth } from './index.ts';

async function start(
  routes: 'all' | 'opt-in',
  { guard, ops, orders, errorHandler, people, handle }: AdapterAppOptions,
): Promise<AdapterApp> {
  const app = Fastify({ forceCloseConnections: true });
  app.addHook('onRequest', async ({ headers }, reply) => {
    reply.header('vary', 'Origin');
    if (headers['x-cache-control'] !== undefined) reply.header('cache-control', headers['x-cache-control']);
  });
  if (errorHandler === 'custom') {
    app.setErrorHandler<Error & { statusCode?: number }>((error, _request, reply) => reply.code(error.statusCode ?? 500).send('failed'));
  }
  await app.register(k8sSaAuth, { ...guard, routes });
  const guarded = routes === 'all' ? {} : { config: { k8sSaAuth: true } };
  const open = routes === 'all' ? { config: { k8sSaAuth: false } } : {};
  app.get('/guarded', guarded, (request) => handle(request.raw, request.caller));
  app.post('/guarded', guarded, (request) => handle(request.raw, request.caller, request.body));
  app.get('/ops', { config: { k8sSaAuth: ops } }, (request) => handle(request.raw, request.caller));
  app.get('/both', { ...guarded, onRequest: app.k8sSaAuth.with(ops) }, (request) => handle(request.raw, request.caller));
  const own = routes === 'all' ? { config: { k8sSaAuth: orders } } : { onRequest: app.k8sSaAuth.with(orders) };
  app.get<{ Params: { order: string } }>('/orders/:order', own, (request) =>
    handle(request.raw, request.caller, { order: request.params.order }),
  );
  app.get('/either', { ...open, onRequest: app.k8sSaAuth.or((request) => people(request.raw)) }, (request) =>
    handle(request.raw, request.caller),
  );
  app.get('/public', open, (request) => handle(request.raw, request.caller));
  const url = await app.listen({ port: 0, host: '127.0.0.1' });
  return { url, close: () => app.close() };
}

runAdapterCases({
  name: 'Fastify, all routes',
  seesPublicRoutes: true,
  offersOr: true,
  guardsUnknownPaths: true,
  start: (options) => start('all', options),
});

runAdapterCases({
  name: 'Fastify, opt-in',
  seesPublicRoutes: true,
  offersOr: true,
  start: (options) => start('opt-in', options),
});
