import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { json } from 'node:stream/consumers';
import { Router } from '@koa/router';
import { runAdapterCases } from '@k8s-sa-auth/testing/adapter-cases';
import type { AdapterApp, AdapterAppOptions } from '@k8s-sa-auth/testing/adapter-cases';
import Koa from 'koa';
import type { Middleware } from 'koa';
import { k8sSaAuth } from './index.ts';
import type { CallerState, KoaGuard } from './index.ts';

const fail: Middleware = async (ctx, next) => {
  try {
    await next();
  } catch (error) {
    ctx.status = (error as { readonly status?: number }).status ?? 500;
    ctx.body = 'failed';
  }
};

async function listen(app: Koa, guard: KoaGuard): Promise<AdapterApp> {
  const server = app.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    async close() {
      server.closeAllConnections();
      server.close();
      await guard.close();
    },
  };
}

function createApp({ errorHandler }: AdapterAppOptions): Koa {
  const app = new Koa();
  // Koa prints the errors of its handlers; some cases make one fail.
  app.silent = true;
  app.use((ctx, next) => {
    ctx.vary('Origin');
    const cacheControl = ctx.get('x-cache-control');
    if (cacheControl !== '') ctx.set('cache-control', cacheControl);
    return next();
  });
  if (errorHandler === 'custom') app.use(fail);
  return app;
}

runAdapterCases({
  name: 'Koa, around a router',
  offersOr: true,
  async start(options) {
    const { ops, orders, people, handle } = options;
    const guard = k8sSaAuth(options.guard);
    const open = new Router();
    open.get('/public', (ctx) => {
      ctx.body = handle(ctx.req, ctx.state['caller']);
    });
    const router = new Router<CallerState>();
    router.get('/guarded', (ctx) => {
      ctx.body = handle(ctx.req, ctx.state.caller);
    });
    router.post('/guarded', async (ctx) => {
      ctx.body = handle(ctx.req, ctx.state.caller, await json(ctx.req));
    });
    router.get('/ops', guard.with(ops), (ctx) => {
      ctx.body = handle(ctx.req, ctx.state.caller);
    });
    router.get('/orders/:order', guard.with(orders), (ctx) => {
      ctx.body = handle(ctx.req, ctx.state.caller, { order: ctx.params.order });
    });
    router.get('/both', guard, guard.with(ops), (ctx) => {
      ctx.body = handle(ctx.req, ctx.state.caller);
    });
    router.get(
      '/either',
      guard.or((ctx, next) => people(ctx.req).then(next)),
      (ctx) => {
        ctx.body = handle(ctx.req, ctx.state.caller);
      },
    );
    const app = createApp(options);
    app.use(guard.wrap(router)).use(open.routes());
    return listen(app, guard);
  },
});

runAdapterCases({
  name: 'Koa, as middleware',
  guardsUnknownPaths: true,
  offersOr: true,
  async start(options) {
    const { ops, orders, people, handle } = options;
    const guard = k8sSaAuth(options.guard);
    const before = new Router<CallerState>();
    before.get('/public', (ctx) => {
      ctx.body = handle(ctx.req, ctx.state.caller);
    });
    before.get('/ops', guard.with(ops), (ctx) => {
      ctx.body = handle(ctx.req, ctx.state.caller);
    });
    before.get('/orders/:order', guard.with(orders), (ctx) => {
      ctx.body = handle(ctx.req, ctx.state.caller, { order: ctx.params.order });
    });
    before.get(
      '/either',
      guard.or((ctx, next) => people(ctx.req).then(next)),
      (ctx) => {
        ctx.body = handle(ctx.req, ctx.state.caller);
      },
    );
    const behind = new Router<CallerState>();
    behind.get('/guarded', (ctx) => {
      ctx.body = handle(ctx.req, ctx.state.caller);
    });
    behind.post('/guarded', async (ctx) => {
      ctx.body = handle(ctx.req, ctx.state.caller, await json(ctx.req));
    });
    behind.get('/both', guard.with(ops), (ctx) => {
      ctx.body = handle(ctx.req, ctx.state.caller);
    });
    const app = createApp(options);
    app.use(before.routes()).use(guard).use(behind.routes());
    return listen(app, guard);
  },
});
