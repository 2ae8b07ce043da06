import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { describe, it } from 'node:test';

import { choosePorts, createLauncher } from './services.ts';

describe('choosePorts', () => {
  it('takes the wished-for port where it is free, and another one where it is not', async () => {
    const [free = 0] = await choosePorts([0]);
    assert.deepEqual(await choosePorts([free]), [free]);

    const holder = createServer().listen(free, '127.0.0.1');
    await once(holder, 'listening');
    const [other] = await choosePorts([free]);
    holder.close();
    assert.notEqual(other, free);
  });

  it('gives different ports to different services', async () => {
    const ports = await choosePorts([0, 0, 0]);
    assert.equal(new Set(ports).size, 3);
  });
});

describe('createLauncher', () => {
  it('says what a service printed that does not start', async () => {
    const launcher = createLauncher(new AbortController().signal);
    const env = { KUBERNETES_SERVICE_HOST: '127.0.0.1', KUBERNETES_SERVICE_PORT: '1', CACHE_TTL_MS: 'soon' };
    await assert.rejects(launcher.start({ name: 'secret-store', port: 1, env }), /secret-store ended with code 1 before it was ready/);
    const [{ name, lines } = { name: '', lines: [] }] = launcher.output();
    assert.equal(name, 'secret-store');
    assert.match(lines.join('\n'), /"cacheTtlMs" is a number of milliseconds/);
  });
});
