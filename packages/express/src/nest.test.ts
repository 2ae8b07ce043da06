// A Nest service on Express: guards are middleware of a module, each for its routes.

import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';

import { type Authority, createAuthority } from '@k8s-sa-auth/testing';
import { Controller, Get, type INestApplication, type MiddlewareConsumer, Module, type NestModule, Param, Req } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { ExpressAdapter } from '@nestjs/platform-express';
import type { Request } from 'express';

import { as, ask } from './fixtures/ask.ts';
import { callerOf, type ExpressGuard, k8sSaAuth } from './index.ts';

class SecretsController {
  read(id: string, request: Request): object {
    return { id, for: callerOf(request).serviceAccount, token: request.headers['x-client-id'] ?? 'taken off' };
  }
  audit(request: Request): readonly string[] {
    return callerOf(request).audiences;
  }
  healthz(): string {
    return 'ok';
  }
}

// Node strips types and runs no decorators, so they are called: @Controller(), @Get('secrets/:id'), …
function decorate(method: keyof SecretsController, ...decorators: readonly MethodDecorator[]): void {
  const { prototype } = SecretsController;
  const descriptor = { value: prototype[method] };
  for (const decorator of decorators) decorator(prototype, method, descriptor);
}
decorate('read', Get('secrets/:id'));
Param('id')(SecretsController.prototype, 'read', 0);
Req()(SecretsController.prototype, 'read', 1);
decorate('audit', Get('audit'));
Req()(SecretsController.prototype, 'audit', 0);
decorate('healthz', Get('healthz'));
Controller()(SecretsController);

describe('a Nest service on Express', () => {
  let authority: Authority;
  let guard: ExpressGuard;
  let app: INestApplication;
  let origin: string;

  before(async () => {
    authority = await createAuthority();
    const { apiServer } = await authority.pod('store/store');
    guard = k8sSaAuth({ audience: 'store', allow: ['api/api'], apiServer });
    const admin = guard.with({ audience: 'admin', allow: ['ops/*'] });
    class AppModule implements NestModule {
      configure(consumer: MiddlewareConsumer): void {
        consumer.apply(admin).forRoutes('audit');
        consumer.apply(guard).exclude('audit', 'healthz').forRoutes('*all');
      }
    }
    Module({ controllers: [SecretsController] })(AppModule);
    app = await NestFactory.create(AppModule, new ExpressAdapter(), { logger: false });
    await app.listen(0, '127.0.0.1');
    origin = await app.getUrl();
  });
  after(async () => {
    await app.close();
    await guard.close();
    await authority.close();
  });

  it('serves its callers', async () => {
    const api = as(await authority.token('api/api', { audience: 'store', pod: 'api-0' }));
    assert.equal((await ask(origin, '/secrets/db', api)).text, '{"id":"db","for":"api/api","token":"taken off"}');
    assert.equal((await ask(origin, '/nowhere', api)).status, 404);
    assert.equal((await ask(origin, '/audit', api)).status, 403);
  });

  it('lets a route have a guard of its own', async () => {
    const ops = as(await authority.token('ops/alice', { audience: 'admin', pod: 'ops-0' }));
    assert.equal((await ask(origin, '/audit', ops)).text, '["admin"]');
    assert.equal((await ask(origin, '/secrets/db', ops)).status, 403);
    assert.equal((await ask(origin, '/healthz')).text, 'ok');
  });

  it('opens no door, however a path is spelt', async () => {
    assert.equal((await ask(origin, '/AUDIT')).status, 401);
    assert.equal((await ask(origin, '/audit/')).status, 401);
    assert.equal((await ask(origin, '/%61udit')).status, 401);
    assert.equal((await ask(origin, '//audit')).status, 401);
    assert.equal((await ask(origin, '/healthz/../secrets/db')).status, 401);
    assert.equal((await ask(origin, '/secrets%2fdb')).status, 401);
  });

  it('refuses through Nest’s filter, and keeps the challenge', async () => {
    const { status, text, headers } = await ask(origin, '/secrets/db');
    assert.equal(status, 401);
    assert.equal(text, '{"statusCode":401,"message":"A ServiceAccount token is required"}');
    assert.equal(headers['www-authenticate'], 'ServiceAccount header="X-Client-Id"');
    assert.equal(headers['cache-control'], 'no-store');
  });
});
