import assert from 'node:assert/strict';
import { once } from 'node:events';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';

import { type Authority, createAuthority, type Pod } from '@k8s-sa-auth/testing';
import { Router, type RouterMiddleware } from '@koa/router';
import Koa from 'koa';

import { as, ask } from './fixtures/ask.ts';
import { type CallerState, callerOf, k8sSaAuth, type KoaGuard } from './index.ts';

describe('guard.wrap', () => {
  let authority: Authority;
  let pod: Pod;
  let app: Koa;
  let guard: KoaGuard;
  let server: Server | undefined;
  let api: string;
  let ops: string;

  before(async () => {
    authority = await createAuthority();
    pod = await authority.pod('store/store');
    api = await authority.token('api/api', { audience: 'store', pod: 'api-0' });
    ops = await authority.token('ops/admin', { audience: ['store', 'admin'], pod: 'ops-0' });
  });
  after(() => authority.close());
  beforeEach(() => {
    app = new Koa();
    app.silent = true;
    guard = k8sSaAuth({ audience: 'store', allow: ['api/api'], apiServer: pod.apiServer });
  });
  afterEach(async () => {
    server?.close().closeAllConnections();
    await guard.close();
  });

  async function listen(): Promise<string> {
    server = app.listen(0, '127.0.0.1');
    await once(server, 'listening');
    // The server listens on a port.
    return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  }

  const admin = () => guard.with({ audience: 'admin', allow: ['ops/*'] });
  const answer = (text: string): RouterMiddleware => {
    return (ctx) => {
      ctx.body = `${text} for ${ctx.state['caller']?.serviceAccount ?? 'nobody'}`;
    };
  };

  it('guards the routes of a router, and lets all else pass by', async () => {
    const router = new Router<CallerState>({ prefix: '/v1' });
    router.get('/items/:id', (ctx) => {
      ctx.body = [ctx.params.id, ctx.state.caller.serviceAccount, callerOf(ctx).namespace, ctx.get('x-client-id')];
    });
    const open = new Router();
    open.get('/healthz', answer('healthz')).get('/v1/open', answer('open'));
    app.use(guard.wrap(router)).use(router.allowedMethods()).use(open.routes());
    const origin = await listen();
    assert.equal((await ask(origin, '/v1/items/7')).status, 401);
    assert.equal((await ask(origin, '/v1/items/7', { method: 'HEAD' })).status, 401);
    assert.equal((await ask(origin, '/v1/items/7', as(ops))).status, 403);
    assert.equal((await ask(origin, '/v1/items/7', as(api))).text, '["7","api/api","api",""]');
    assert.equal((await ask(origin, '/v1/items/7', { ...as(api), method: 'HEAD' })).status, 200);
    assert.equal((await ask(origin, '/v1/items/7', { method: 'OPTIONS' })).headers.allow, 'HEAD, GET');
    assert.equal((await ask(origin, '/v1/items/7', { method: 'DELETE' })).status, 405);
    assert.equal((await ask(origin, '/healthz')).text, 'healthz for nobody');
    assert.equal((await ask(origin, '/v1/open')).text, 'open for nobody');
    assert.equal((await ask(origin, '/nowhere')).status, 404);
  });

  it('guards nested routers, whatever their prefixes', async () => {
    const inner = new Router();
    inner.get('/x', answer('x')).post('/x', answer('posted'));
    const middle = new Router({ prefix: '/middle' });
    middle.use('/inner/:id', inner.routes());
    const outer = new Router();
    outer.use('/outer', middle.routes()).get('/x', answer('outer x'));
    outer.prefix('/v1');
    app.use(guard.wrap(outer));
    const origin = await listen();
    assert.equal((await ask(origin, '/v1/outer/middle/inner/7/x')).status, 401);
    assert.equal((await ask(origin, '/v1/x')).status, 401);
    assert.equal((await ask(origin, '/v1/outer/middle/inner/7/x', as(api))).text, 'x for api/api');
    assert.equal((await ask(origin, '/v1/outer/middle/inner/7/x', { ...as(api), method: 'POST' })).text, 'posted for api/api');
    assert.equal((await ask(origin, '/x')).status, 404);
  });

  it('guards router.use and router.param with the route that they serve', async () => {
    const steps: string[] = [];
    const router = new Router();
    router.use(async (_ctx, next) => {
      steps.push('use');
      await next();
    });
    router.param('id', async (id, _ctx, next) => {
      steps.push(`param ${id}`);
      await next();
    });
    router.get('/items/:id', answer('item'));
    router.get('/admin/:id', admin(), answer('admin'));
    app.use(guard.wrap(router));
    const origin = await listen();
    assert.equal((await ask(origin, '/items/7')).status, 401);
    assert.equal((await ask(origin, '/admin/7')).status, 401);
    assert.equal((await ask(origin, '/admin/7', as(api))).status, 403);
    assert.equal((await ask(origin, '/nowhere')).status, 404);
    assert.deepEqual(steps, []);
    assert.equal((await ask(origin, '/items/7', as(api))).text, 'item for api/api');
    assert.equal((await ask(origin, '/admin/8', as(ops))).text, 'admin for ops/admin');
    assert.deepEqual(steps, ['use', 'param 7', 'use', 'param 8']);
  });

  it('guards a router.use that answers', async () => {
    const router = new Router();
    router.use('/files', answer('file'));
    router.get('/files/:name', admin(), answer('admin'));
    app.use(guard.wrap(router));
    const origin = await listen();
    assert.equal((await ask(origin, '/files/x')).status, 401);
    assert.equal((await ask(origin, '/files/x', as(api))).status, 403);
    assert.equal((await ask(origin, '/files/x', as(ops))).text, 'file for ops/admin');
    assert.equal((await ask(origin, '/files')).status, 404);
  });

  it('lets the guards of routes decide in its place, each for its own', async () => {
    const router = new Router();
    const own = admin();
    router.get('/admin', own, answer('admin')).get('/items', answer('items')).get('/either', own, answer('either'));
    app.use(guard.wrap(router));
    const origin = await listen();
    assert.equal((await ask(origin, '/admin')).status, 401);
    assert.equal((await ask(origin, '/admin', as(api))).status, 403);
    assert.equal((await ask(origin, '/admin', as(ops))).text, 'admin for ops/admin');
    assert.equal((await ask(origin, '/either', as(ops))).text, 'either for ops/admin');
    assert.equal((await ask(origin, '/items', as(ops))).status, 403);
    assert.equal((await ask(origin, '/items', as(api))).text, 'items for api/api');
  });

  it('asks both where the guard of a route does not stand first', async () => {
    const steps: string[] = [];
    const router = new Router();
    const count: RouterMiddleware = (_ctx, next) => {
      steps.push('before the guard');
      return next();
    };
    router.get('/admin', count, guard.with({ allow: ['ops/*'] }), answer('admin'));
    app.use(guard.wrap(router));
    const origin = await listen();
    assert.equal((await ask(origin, '/admin')).status, 401);
    assert.equal((await ask(origin, '/admin', as(ops))).status, 403);
    assert.deepEqual(steps, []);
    assert.equal((await ask(origin, '/admin', as(api))).status, 403);
  });

  it('asks both where two routes match and one has a guard of its own', async () => {
    const router = new Router();
    router.get('/items/all', guard.with({ allow: ['api/*', 'ops/*'] }), answer('all'));
    router.get('/items/:id', answer('item'));
    app.use(guard.wrap(router));
    const origin = await listen();
    assert.equal((await ask(origin, '/items/all')).status, 401);
    assert.equal((await ask(origin, '/items/all', as(ops))).status, 403);
    assert.equal((await ask(origin, '/items/all', as(api))).text, 'all for api/api');
  });

  it('asks each where two routes match that have guards of their own', async () => {
    const router = new Router();
    router.use((_ctx, next) => next());
    router.get('/items/all', guard.with({ allow: ['ops/*'] }), (_ctx, next) => next());
    router.get('/items/:id', admin(), answer('item'));
    app.use(guard.wrap(router));
    const origin = await listen();
    const other = await authority.token('ops/other', { audience: 'store', pod: 'other-0' });
    assert.equal((await ask(origin, '/items/all', as(other))).status, 403);
    assert.equal((await ask(origin, '/items/all', as(api))).status, 403);
    assert.equal((await ask(origin, '/items/all', as(ops))).text, 'item for ops/admin');
  });

  it('guards the one layer that an exclusive router runs', async () => {
    const router = new Router({ exclusive: true });
    router.get('/items/:id', answer('item'));
    router.get('/items/admin', admin(), answer('admin'));
    app.use(guard.wrap(router));
    const origin = await listen();
    assert.equal((await ask(origin, '/items/7')).status, 401);
    assert.equal((await ask(origin, '/items/7', as(api))).text, 'item for api/api');
    assert.equal((await ask(origin, '/items/admin')).status, 401);
    assert.equal((await ask(origin, '/items/admin', as(api))).status, 403);
    assert.equal((await ask(origin, '/items/admin', as(ops))).text, 'admin for ops/admin');
  });

  it('guards a router.use that an exclusive router runs in the place of a route', async () => {
    const last = new Router({ exclusive: true });
    last.get('/last', admin(), answer('admin')).use(answer('use'));
    const specific = new Router({ exclusive: 'specificity' });
    specific.use(answer('use')).get('/specific/:id', admin(), answer('admin'));
    app.use(guard.wrap(last)).use(guard.wrap(specific));
    const origin = await listen();
    assert.equal((await ask(origin, '/last')).status, 401);
    assert.equal((await ask(origin, '/last', as(api))).status, 403);
    assert.equal((await ask(origin, '/last', as(ops))).text, 'use for ops/admin');
    assert.equal((await ask(origin, '/specific/7')).status, 401);
    assert.equal((await ask(origin, '/specific/7', as(ops))).text, 'use for ops/admin');
  });

  it('follows routerPath and newRouterPath', async () => {
    const fixed = new Router({ routerPath: '/fixed' });
    fixed.get('/fixed', (ctx, next) => (ctx.path === '/by-option' ? answer('fixed')(ctx, next) : next()));
    const router = new Router();
    router.get('/secret', answer('secret'));
    const rewrite: Koa.Middleware = (ctx, next) => {
      if (ctx.path === '/alias') Object.assign(ctx, { newRouterPath: '/secret' });
      return next();
    };
    app.use(rewrite).use(guard.wrap(router));
    app.use((ctx, next) => (ctx.path === '/by-option' ? guard.wrap(fixed)(ctx, next) : next()));
    const origin = await listen();
    assert.equal((await ask(origin, '/alias')).status, 401);
    assert.equal((await ask(origin, '/alias', as(api))).text, 'secret for api/api');
    assert.equal((await ask(origin, '/by-option')).status, 401);
    assert.equal((await ask(origin, '/by-option', as(api))).text, 'fixed for api/api');
  });

  it('follows the host option', async () => {
    const named = new Router({ host: 'admin.shop' });
    named.get('/x', answer('admin'));
    const stateful = new Router({ host: /^ops\.shop$/g });
    stateful.get('/x', answer('ops'));
    const open = new Router();
    open.get('/x', answer('open'));
    app.use(guard.wrap(named)).use(guard.wrap(stateful)).use(open.routes());
    const origin = await listen();
    const at = (host: string, token = '') => ({ headers: { host, 'x-client-id': token } });
    assert.equal((await ask(origin, '/x', at('admin.shop'))).status, 401);
    assert.equal((await ask(origin, '/x', at('ops.shop'))).status, 401);
    assert.notEqual((await ask(origin, '/x', at('ops.shop'))).text, 'ops for nobody');
    assert.equal((await ask(origin, '/x', at('admin.shop', api))).text, 'admin for api/api');
    assert.equal((await ask(origin, '/x', at('shop'))).text, 'open for nobody');
  });

  it('guards routes of regular expressions, those that remember where they were included', async () => {
    const router = new Router();
    router.get(/^\/files\/(.+)$/, answer('file')).get(/^\/stateful$/g, answer('stateful'));
    app.use(guard.wrap(router));
    const origin = await listen();
    assert.equal((await ask(origin, '/files/x')).status, 401);
    assert.equal((await ask(origin, '/files/x', as(api))).text, 'file for api/api');
    assert.equal((await ask(origin, '/stateful')).status, 401);
    assert.equal((await ask(origin, '/stateful')).status, 401);
    assert.equal((await ask(origin, '/stateful', as(api))).text, 'stateful for api/api');
    assert.equal((await ask(origin, '/stateful')).status, 401);
  });

  it('guards every method of router.all, and several paths of one route', async () => {
    const router = new Router();
    router.all('/all', answer('all')).get(['/one', '/two'], answer('several'));
    router.redirect('/old', '/all');
    app.use(guard.wrap(router)).use(router.allowedMethods());
    const origin = await listen();
    assert.equal((await ask(origin, '/all', { method: 'PATCH' })).status, 401);
    assert.equal((await ask(origin, '/all', { method: 'OPTIONS' })).status, 401);
    assert.equal((await ask(origin, '/two')).status, 401);
    assert.equal((await ask(origin, '/old')).status, 401);
    assert.equal((await ask(origin, '/all', { ...as(api), method: 'PATCH' })).text, 'all for api/api');
    assert.equal((await ask(origin, '/old', as(api))).headers.location, '/all');
  });

  it('opens no door, however a path is spelt', async () => {
    const router = new Router();
    router.get('/admin', admin(), answer('admin')).get('/:section', answer('section'));
    app.use(guard.wrap(router));
    const origin = await listen();
    assert.equal((await ask(origin, '/ADMIN')).status, 401);
    assert.equal((await ask(origin, '/admin/')).status, 401);
    assert.equal((await ask(origin, '/%61dmin')).status, 401);
    assert.equal((await ask(origin, '/admin%2f')).status, 401);
    assert.equal((await ask(origin, 'http://elsewhere/admin')).status, 401);
    assert.equal((await ask(origin, '//admin')).status, 404);
    assert.equal((await ask(origin, '/%61dmin', as(api))).text, 'section for api/api');
  });

  it('guards routes that are added after it', async () => {
    const router = new Router();
    app.use(guard.wrap(router));
    router.get('/late', answer('late')).prefix('/v1');
    const origin = await listen();
    router.get('/later', answer('later'));
    assert.equal((await ask(origin, '/v1/late')).status, 401);
    assert.equal((await ask(origin, '/v1/later')).status, 401);
    assert.equal((await ask(origin, '/v1/later', as(api))).text, 'later for api/api');
  });

  it('leaves the router as it was, and wraps it again', async () => {
    const router = new Router();
    router.get('/x', (_ctx, next) => next()).get('/y', answer('y'));
    app.use(guard.wrap(router)).use(guard.with({ allow: ['ops/*'] }).wrap(router));
    const bare = new Koa();
    bare.use(router.routes());
    const origin = await listen();
    assert.equal((await ask(origin, '/x', as(api))).status, 403);
    assert.equal((await ask(origin, '/y', as(api))).text, 'y for api/api');
    const open = bare.listen(0, '127.0.0.1');
    await once(open, 'listening');
    // The server listens on a port.
    assert.equal((await ask(`http://127.0.0.1:${(open.address() as AddressInfo).port}`, '/y')).text, 'y for nobody');
    open.close();
  });

  it('guards as part of another router', async () => {
    const inner = new Router({ prefix: '/inner' });
    inner.get('/x', answer('x'));
    const outer = new Router();
    outer.use(guard.wrap(inner));
    outer.get('/inner/x', answer('outer'));
    app.use(outer.routes());
    const origin = await listen();
    assert.equal((await ask(origin, '/inner/x')).status, 401);
    assert.equal((await ask(origin, '/inner/x', as(api))).text, 'x for api/api');
  });

  it('asks a predicate about the route that will answer, and about none where several may', async () => {
    const asked: (string | undefined)[] = [];
    const asking = guard.with({
      allow: (_caller, { route }) => {
        asked.push(route);
        return true;
      },
    });
    const router = new Router();
    router.use((_ctx, next) => next());
    router.get('/one/:id', answer('one')).get('/two/all', answer('two')).get('/two/:id', answer('two'));
    router.get('/own/:id', asking.with({ allow: (_caller, { route }) => asked.push(`own ${route}`) > 0 }), answer('own'));
    const exclusive = new Router({ exclusive: true });
    exclusive.get('/three/:id', answer('three')).get('/three/all', answer('three'));
    app.use(asking.wrap(router)).use(asking.wrap(exclusive));
    const origin = await listen();
    await ask(origin, '/one/7', as(api));
    await ask(origin, '/two/all', as(api));
    await ask(origin, '/own/7', as(api));
    await ask(origin, '/three/all', as(api));
    assert.deepEqual(asked, ['/one/:id', undefined, 'own /own/:id', '/three/all']);
  });

  it('throws a TypeError on what is not a router', () => {
    class Composed extends Router {
      override routes(): ReturnType<Router['routes']> {
        return super.routes().bind(undefined);
      }
    }
    const refusal = { name: 'TypeError', message: /takes a router of @koa\/router, not its routes\(\)/ };
    const wrap = (router: unknown) => () => guard.wrap(router as Router);
    assert.throws(wrap(new Router().routes()), refusal);
    assert.throws(wrap(new Composed()), refusal);
    assert.throws(wrap(guard.wrap(new Router())), refusal);
    assert.throws(wrap(Object.assign(new Router(), { routes: () => new Router().routes() })), refusal);
    assert.throws(wrap({}), refusal);
    assert.throws(wrap(undefined), refusal);
  });
});
