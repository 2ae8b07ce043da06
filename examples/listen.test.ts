import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { parseListenAddr } from './listen.ts';

describe('parseListenAddr', () => {
  it('reads a port alone as every interface', () => {
    assert.deepEqual(parseListenAddr(':8080'), { host: '', port: 8080 });
  });

  it('reads one interface', () => {
    assert.deepEqual(parseListenAddr('127.0.0.1:8080'), { host: '127.0.0.1', port: 8080 });
    assert.deepEqual(parseListenAddr('localhost:0'), { host: 'localhost', port: 0 });
    assert.deepEqual(parseListenAddr('[::1]:8080'), { host: '::1', port: 8080 });
  });

  it('refuses what has no port, or none that exists', () => {
    assert.throws(() => parseListenAddr('8080'), { name: 'TypeError', message: /LISTEN_ADDR is written ':8080'/ });
    assert.throws(() => parseListenAddr('127.0.0.1'), { name: 'TypeError' });
    assert.throws(() => parseListenAddr(':65536'), { name: 'TypeError' });
    assert.throws(() => parseListenAddr('::1:8080'), { name: 'TypeError' });
  });
});
