import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { connect } from 'node:http2';
import type { ClientHttp2Session, IncomingHttpHeaders } from 'node:http2';
import { text } from 'node:stream/consumers';
import { after, afterEach, before, describe, it } from 'node:test';
import { connect as connectTls } from 'node:tls';
import { createAuthority } from './authority.ts';
import type { Authority } from './authority.ts';
import type { Pod } from './pods.ts';

const reviews = '/apis/authentication.k8s.io/v1/tokenreviews';

describe('HTTP/2', () => {
  let authority: Authority;
  let store: Pod;
  let token: string;
  const sessions: ClientHttp2Session[] = [];

  before(async () => {
    authority = await createAuthority();
    store = await authority.pod('store/store');
    token = await authority.token('api/api', { audience: 'store', pod: 'api-0' });
  });
  after(() => authority.close());
  afterEach(async () => {
    for (const session of sessions.splice(0)) session.destroy();
    await authority.recover();
  });

  function open(credentials: { readonly cert?: string; readonly key?: string } = {}): ClientHttp2Session {
    const session = connect(authority.url, { ca: readFileSync(authority.caFile), ...credentials });
    session.on('error', () => undefined);
    sessions.push(session);
    return session;
  }

  interface Answer {
    readonly headers: IncomingHttpHeaders & { readonly ':status'?: number };
    readonly body: string;
  }

  async function ask(session: ClientHttp2Session, method: string, path: string, sent?: object, headers: object = own()): Promise<Answer> {
    const stream = session.request({ ':method': method, ':path': path, 'content-type': 'application/json', ...headers });
    stream.end(sent && JSON.stringify(sent));
    const [[answered], body] = await Promise.all([once(stream, 'response'), text(stream)]);
    return { headers: answered as Answer['headers'], body };
  }

  const own = (): object => ({ authorization: `Bearer ${readFileSync(store.apiServer.tokenFile, 'utf8')}` });
  const review = (session: ClientHttp2Session): Promise<Answer> => ask(session, 'POST', reviews, { spec: { token, audiences: ['store'] } });

  it('carries many questions on one connection', async () => {
    const session = open();
    const answers = await Promise.all(Array.from({ length: 50 }, () => review(session)));
    for (const { headers, body } of answers) {
      assert.equal(headers[':status'], 201);
      assert.equal(JSON.parse(body).status.authenticated, true);
      assert.ok(headers['audit-id'] !== undefined && headers['connection'] === undefined && headers['transfer-encoding'] === undefined);
    }
  });

  it('is chosen by whoever offers it, and HTTP/1.1 by all others', async () => {
    const chosen = async (ALPNProtocols: string[] | undefined): Promise<string | false | null> => {
      const socket = connectTls({
        host: '127.0.0.1',
        port: Number(new URL(authority.url).port),
        ca: readFileSync(authority.caFile),
        ALPNProtocols,
      });
      await once(socket, 'secureConnect');
      socket.destroy();
      return socket.alpnProtocol;
    };
    assert.equal(await chosen(['h2', 'http/1.1']), 'h2');
    assert.equal(await chosen(['http/1.1']), 'http/1.1');
    assert.equal(await chosen(undefined), false);
  });

  it('ends the stream alone of a request whose handler fails', async () => {
    const session = open();
    authority.fail('reset', { times: 1 });
    const [struck, other] = await Promise.allSettled([review(session), review(session)]);
    assert.ok(struck.status === 'rejected');
    assert.equal(struck.reason.message, 'Stream closed with error code NGHTTP2_INTERNAL_ERROR');
    assert.ok(other.status === 'fulfilled' && other.value.headers[':status'] === 201);
    assert.equal((await review(session)).headers[':status'], 201);
    assert.equal(session.destroyed, false);
  });

  it('knows who shows a client certificate', async () => {
    const { certificate, key } = await authority.user('jane', { groups: ['ops'] });
    const session = open({ cert: certificate, key });
    const { body } = await ask(session, 'POST', '/apis/authentication.k8s.io/v1/selfsubjectreviews', {}, {});
    assert.partialDeepStrictEqual(JSON.parse(body).status.userInfo, { username: 'jane', groups: ['ops', 'system:authenticated'] });
  });

  it('streams a watch', async () => {
    const session = open();
    const { token: administrator } = JSON.parse(readFileSync(authority.kubeconfig, 'utf8')).users[0].user;
    const authorization = `Bearer ${administrator}`;
    const watch = session.request({ ':path': '/api/v1/namespaces?watch=true&resourceVersion=0', authorization });
    let seen = '';
    watch.setEncoding('utf8').on('data', (chunk: string) => (seen += chunk));
    await once(watch, 'data');
    await ask(session, 'POST', '/api/v1/namespaces', { metadata: { name: 'watched' } }, { authorization });
    while (!seen.includes('"watched"')) await once(watch, 'data');
    watch.close();
  });

  it('is cut off by an outage, and back when that is over', async () => {
    const session = open();
    await review(session);
    const closed = new Promise((resolve) => session.once('close', resolve));
    authority.fail('outage');
    await closed;
    await authority.recover();
    assert.equal((await review(open())).headers[':status'], 201);
  });
});
