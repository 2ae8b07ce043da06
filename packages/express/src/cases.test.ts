import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { runAdapterCases } from '@k8s-sa-auth/testing/adapter-cases';
import express from 'express';
import type { ErrorRequestHandler } from 'express';
import { k8sSaAuth } from './index.ts';

const fail: ErrorRequestHandler = (error: { readonly status?: number }, _req, res, _next) => {
  res.status(error.status ?? 500).send('failed');
};

runAdapterCases({
  name: 'Express',
  offersOr: true,
  async start({ guard: options, ops, orders, errorHandler, people, handle }) {
    const app = express();
    // Not production, where Express sends the stack of an error; and not development, where it prints it too.
    app.set('env', 'test');
    app.use((req, res, next) => {
      res.vary('Origin');
      const cacheControl = req.get('x-cache-control');
      if (cacheControl !== undefined) res.set('cache-control', cacheControl);
      next();
    });
    const guard = k8sSaAuth(options);
    app.get('/public', (req, res) => void res.json(handle(req, req.caller)));
    app.get('/ops', guard.with(ops), (req, res) => void res.json(handle(req, req.caller)));
    app.get('/orders/:order', guard.with(orders), (req, res) => void res.json(handle(req, req.caller, { order: req.params.order })));
    app.use('/guarded', guard, express.json());
    app.get('/guarded', (req, res) => void res.json(handle(req, req.caller)));
    app.post('/guarded', (req, res) => void res.json(handle(req, req.caller, req.body)));
    app.get('/both', guard, guard.with(ops), (req, res) => void res.json(handle(req, req.caller)));
    const either = guard.or((req, _res, next) => people(req).then(() => next()));
    app.get('/either', either, (req, res) => void res.json(handle(req, req.caller)));
    if (errorHandler === 'custom') app.use(fail);
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
  },
});
