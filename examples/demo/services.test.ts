import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { describe, it } from 'node:test';

import { createAuthority } from '@k8s-sa-auth/testing';

import { choosePorts, createLauncher, manifestOf, readContainer } from './services.ts';

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

describe('readContainer', () => {
  it('reads what the manifest says', () => {
    assert.deepEqual(readContainer('data-store'), {
      command: ['node', 'data-store/server.ts'],
      readyPath: '/readyz',
    });
  });
});

describe('createLauncher', () => {
  it('says what a service printed that does not start', async () => {
    const authority = await createAuthority({ manifests: manifestOf('secret-store') });
    const [pod = assert.fail('no pod')] = authority.pods;
    const launcher = createLauncher(authority, new AbortController().signal);
    try {
      const starting = launcher.start({ name: 'secret-store', pod, port: 1, env: { CACHE_TTL_MS: 'soon' } });
      await assert.rejects(starting, /secret-store ended with code 1 before it was ready/);
    } finally {
      await authority.close();
    }
    const [{ name, lines } = { name: '', lines: [] }] = launcher.output();
    assert.equal(name, 'secret-store');
    assert.match(lines.join('\n'), /"cacheTtlMs" is a number of milliseconds/);
  });
});
