// A Nest service on Fastify: the plugin is registered on the app, and routes say what they want by @RouteConfig.

import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';

import { type Authority, createAuthority } from '@k8s-sa-auth/testing';
import { Controller, Get, Module, Param, Req } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { FastifyAdapter, type NestFastifyApplication, RouteConfig } from '@nestjs/platform-fastify';
import type { FastifyRequest } from 'fastify';

import { as, ask } from './fixtures/ask.ts';
import { callerOf, k8sSaAuth } from './index.ts';

class SecretsController {
  read(id: string, request: FastifyRequest): object {
    return { id, for: callerOf(request).serviceAccount, token: request.headers['x-client-id'] ?? 'taken off' };
  }
  audit(request: FastifyRequest): readonly string[] {
    return callerOf(request).audiences;
  }
  healthz(): string {
    return 'ok';
  }
}

class AppModule {
  readonly name = 'store';
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
decorate('audit', Get('audit'), RouteConfig({ k8sSaAuth: { audience: 'admin', allow: ['ops/*'] } }));
Req()(SecretsController.prototype, 'audit', 0);
decorate('healthz', Get('healthz'), RouteConfig({ k8sSaAuth: false }));
Controller()(SecretsController);
Module({ controllers: [SecretsController] })(AppModule);

describe('a Nest service on Fastify', () => {
  let authority: Authority;
  let app: NestFastifyApplication;
  let origin: string;

  before(async () => {
    authority = await createAuthority();
    const { apiServer } = await authority.pod('store/store');
    app = await NestFactory.create<NestFastifyApplication>(AppModule, new FastifyAdapter(), { logger: false });
    await app.register(k8sSaAuth, { audience: 'store', allow: ['api/api'], apiServer });
    await app.listen(0, '127.0.0.1');
    origin = await app.getUrl();
  });
  after(async () => {
    await app.close();
    await authority.close();
  });

  it('serves its callers', async () => {
    const api = as(await authority.token('api/api', { audience: 'store', pod: 'api-0' }));
    assert.equal((await ask(origin, '/secrets/db', api)).text, '{"id":"db","for":"api/api","token":"taken off"}');
    assert.equal((await ask(origin, '/nowhere', api)).status, 404);
    assert.equal((await ask(origin, '/audit', api)).status, 403);
  });

  it('lets a route say by @RouteConfig who may call it', async () => {
    const ops = as(await authority.token('ops/alice', { audience: 'admin', pod: 'ops-0' }));
    assert.equal((await ask(origin, '/audit', ops)).text, '["admin"]');
    assert.equal((await ask(origin, '/secrets/db', ops)).status, 403);
    assert.equal((await ask(origin, '/healthz')).text, 'ok');
  });

  it('refuses through Nest’s filter, and keeps the challenge', async () => {
    const { status, text, headers } = await ask(origin, '/secrets/db');
    assert.equal(status, 401);
    assert.equal(text, '{"statusCode":401,"message":"A ServiceAccount token is required"}');
    assert.equal(headers['www-authenticate'], 'ServiceAccount header="X-Client-Id"');
    assert.equal(headers['cache-control'], 'no-store');
    assert.equal((await ask(origin, '/nowhere')).status, 401);
  });
});
