// The apps that are compared, each alone in a process: one route behind a guard, a peer or nothing; and the CPU time that it took so far.

import { once } from 'node:events';
import type { Server } from 'node:http';
import { Session } from 'node:inspector/promises';
import type { AddressInfo } from 'node:net';

import fastifyJwt from '@fastify/jwt';
import { k8sSaAuth as expressGuard } from '@k8s-sa-auth/express';
import { k8sSaAuth as fastifyGuard } from '@k8s-sa-auth/fastify';
import { k8sSaAuth as koaGuard } from '@k8s-sa-auth/koa';
import express from 'express';
import { auth } from 'express-oauth2-jwt-bearer';
import { fastify } from 'fastify';
import Koa from 'koa';
import koaJwt from 'koa-jwt';

import { answerParent } from './child.ts';

/** What stands before the route: nothing (the answer's headers set by the handler, or none), our guard, or a peer. */
export type Guarded =
  | 'bare'
  | 'bare without headers'
  | 'guard'
  | '@fastify/jwt'
  | '@fastify/jwt with its cache'
  | 'koa-jwt'
  | 'express-oauth2-jwt-bearer';

/** How an app is made: the same route, and what is needed by whatever stands before it. */
export interface App {
  readonly framework: 'fastify' | 'express' | 'koa';
  readonly guarded: Guarded;
  readonly audience: string;
  readonly apiServer: { readonly url: string; readonly caFile: string; readonly tokenFile: string };
  /** The cluster's key in PEM, and where a peer that loads keys itself finds them. */
  readonly publicKey: string;
  readonly jwksUri: string;
  readonly issuer: string;
  /** Of our guard. Default: the guard's. */
  readonly cacheTtlMs?: number;
}

/** A profile can be taken; else the question is how much was used. */
export interface Asked {
  readonly profile?: 'start' | 'stop';
}

/** What it answers. */
export interface Usage {
  readonly port: number;
  readonly path: string;
  readonly cpuMicros: number;
  /** Where a profile found it: microseconds by function, those of its callees not included. */
  readonly self?: Readonly<Record<string, number>>;
}

const order = { id: 'b7d1', state: 'shipped', items: 3 };
const path = '/orders/b7d1';
// As the guard sets them.
const answerHeaders = { 'cache-control': 'private', vary: 'X-Client-Id' };
const allow = ['api/api'];

const starts: Readonly<Record<App['framework'], (app: App) => Promise<Server>>> = {
  async fastify({ guarded, audience, apiServer, publicKey, cacheTtlMs }) {
    const app = fastify();
    if (guarded === 'guard')
      await app.register(fastifyGuard, { audience, allow, apiServer, ...(cacheTtlMs !== undefined && { cacheTtlMs }) });
    // As its README has it, with a public key instead of a shared secret.
    if (guarded === '@fastify/jwt') await app.register(fastifyJwt, { secret: { public: publicKey } });
    if (guarded === '@fastify/jwt with its cache')
      await app.register(fastifyJwt, { secret: { public: publicKey }, verify: { cache: true } });
    if (guarded.startsWith('@fastify/jwt')) {
      app.addHook('onRequest', async (request, reply) => {
        try {
          await request.jwtVerify();
        } catch (error) {
          await reply.send(error);
        }
      });
    }
    if (guarded === 'bare') app.get(path, (_request, reply) => reply.headers(answerHeaders).send(order));
    else app.get(path, () => order);
    await app.listen({ host: '127.0.0.1', port: 0 });
    return app.server;
  },
  async express({ guarded, audience, apiServer, jwksUri, issuer }) {
    const app = express();
    if (guarded === 'guard') app.use(expressGuard({ audience, allow, apiServer }));
    if (guarded === 'express-oauth2-jwt-bearer') app.use(auth({ jwksUri, issuer, audience }));
    app.get(path, (_request, response) => {
      if (guarded === 'bare') response.set(answerHeaders);
      response.json(order);
    });
    return await listening(app.listen(0, '127.0.0.1'));
  },
  async koa({ guarded, audience, apiServer, publicKey }) {
    const app = new Koa();
    if (guarded === 'guard') app.use(koaGuard({ audience, allow, apiServer }));
    if (guarded === 'koa-jwt') app.use(koaJwt({ secret: publicKey }));
    app.use((ctx) => {
      if (ctx.path !== path) return;
      if (guarded === 'bare') ctx.set(answerHeaders);
      ctx.body = order;
    });
    return await listening(app.listen(0, '127.0.0.1'));
  },
};

async function listening(server: Server): Promise<Server> {
  await once(server, 'listening');
  return server;
}

async function startProfile(): Promise<() => Promise<Readonly<Record<string, number>>>> {
  const session = new Session();
  session.connect();
  await session.post('Profiler.enable');
  await session.post('Profiler.setSamplingInterval', { interval: 200 });
  await session.post('Profiler.start');
  return async () => {
    const { profile } = await session.post('Profiler.stop');
    session.disconnect();
    const names = new Map(
      profile.nodes.map(({ id, callFrame: { functionName, url } }) => [id, `${functionName || '(anonymous)'} ${shorten(url)}`.trim()]),
    );
    const self: Record<string, number> = {};
    for (const [at, node] of (profile.samples ?? []).entries()) {
      const name = names.get(node) ?? '';
      self[name] = (self[name] ?? 0) + (profile.timeDeltas?.[at] ?? 0);
    }
    return self;
  };
}

const shorten = (url: string): string =>
  url
    .replace(/^file:\/\//, '')
    .replace(/^.*\/node_modules\//, '')
    .replace(/^.*\/packages\//, 'packages/');

answerParent(async (app: App) => {
  const { port } = (await starts[app.framework](app)).address() as AddressInfo;
  let stopProfile: Awaited<ReturnType<typeof startProfile>> | undefined;
  return async ({ profile }: Asked): Promise<Usage> => {
    if (profile === 'start') stopProfile = await startProfile();
    const { user, system } = process.cpuUsage();
    const self = profile === 'stop' ? await stopProfile?.() : undefined;
    return { port, path, cpuMicros: user + system, ...(self && { self }) };
  };
});
