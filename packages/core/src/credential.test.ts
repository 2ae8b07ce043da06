import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import { describe, it } from 'node:test';
import { inspect } from 'node:util';

import {
  formatCredential,
  type IncomingRequest,
  refusalError,
  refusesToken,
  mergeHeader,
  responseHeadersFor,
  takeCredential,
  type TokenHeader,
  unavailableError,
} from './credential.ts';
import type { AuthCode } from './errors.ts';

function requestWith(...rawHeaders: string[]): IncomingRequest {
  const headers: Record<string, string> = {};
  for (let at = 0; at < rawHeaders.length; at += 2) headers[rawHeaders[at]?.toLowerCase() ?? ''] ??= rawHeaders[at + 1] ?? '';
  return { method: 'GET', headers, rawHeaders };
}

describe('takeCredential', () => {
  it('reads X-Client-Id as the token itself', () => {
    assert.deepEqual(takeCredential(requestWith('X-Client-Id', 'a.b.c'), 'x-client-id', false), { token: 'a.b.c' });
  });

  it('reads the Bearer scheme in any case', () => {
    assert.deepEqual(takeCredential(requestWith('authorization', 'bEARER a.b.c'), 'authorization', false), { token: 'a.b.c' });
  });

  it('misses a token where there is no header', () => {
    assert.deepEqual(takeCredential(requestWith('Host', 'x'), 'x-client-id', false), { code: 'missing_token', reason: 'no_token' });
  });

  it('misses a token in an empty header', () => {
    assert.deepEqual(takeCredential(requestWith('X-Client-Id', ''), 'x-client-id', false), { code: 'missing_token', reason: 'no_token' });
  });

  it('misses a token after Bearer alone', () => {
    assert.deepEqual(takeCredential(requestWith('Authorization', 'Bearer'), 'authorization', false), {
      code: 'missing_token',
      reason: 'no_token',
    });
  });

  it('misses a token under another scheme', () => {
    assert.deepEqual(takeCredential(requestWith('Authorization', 'Basic YTpi'), 'authorization', false), {
      code: 'missing_token',
      reason: 'other_scheme',
    });
  });

  it('refuses a repeated header, whatever is in it', () => {
    const repeated = { code: 'invalid_token', reason: 'header_repeated' };
    assert.deepEqual(takeCredential(requestWith('X-Client-Id', 'a.b.c', 'x-client-id', ''), 'x-client-id', false), repeated);
    assert.deepEqual(
      takeCredential(requestWith('Authorization', 'Basic x', 'Authorization', 'Bearer y'), 'authorization', false),
      repeated,
    );
  });

  it('keeps what follows one space after Bearer, for screening to refuse', () => {
    assert.deepEqual(takeCredential(requestWith('Authorization', 'Bearer  a.b.c'), 'authorization', false), { token: ' a.b.c' });
  });

  it('refuses a tab after Bearer', () => {
    assert.deepEqual(takeCredential(requestWith('Authorization', 'Bearer\ta.b.c'), 'authorization', false), {
      code: 'invalid_token',
      reason: 'not_a_jwt',
    });
  });

  it('takes the header off the request and leaves the others', () => {
    const request = requestWith('Host', 'x', 'X-CLIENT-ID', 'a.b.c', 'Accept', '*/*');
    takeCredential(request, 'x-client-id', false);
    assert.deepEqual(request.rawHeaders, ['Host', 'x', 'Accept', '*/*']);
    assert.deepEqual(request.headers, { host: 'x', accept: '*/*' });
  });

  it('takes a repeated header off as well', () => {
    const request = requestWith('X-Client-Id', 'a', 'Accept', '*/*', 'X-Client-Id', 'b');
    takeCredential(request, 'x-client-id', false);
    assert.deepEqual(request.rawHeaders, ['Accept', '*/*']);
  });

  it('still knows the token when a later guard asks', () => {
    const request = requestWith('X-Client-Id', 'a.b.c');
    takeCredential(request, 'x-client-id', false);
    assert.deepEqual(takeCredential(request, 'x-client-id', false), { token: 'a.b.c' });
  });

  it('leaves the header until a guard that does not leave it', () => {
    const request = requestWith('X-Client-Id', 'a.b.c');
    takeCredential(request, 'x-client-id', true);
    assert.equal(request.headers['x-client-id'], 'a.b.c');
    takeCredential(request, 'x-client-id', false);
    assert.deepEqual(request.rawHeaders, []);
  });

  async function receive(headers: Readonly<Record<string, string>>): Promise<IncomingMessage> {
    const server = createServer((_request, response) => void response.end()).listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    const [[request]] = (await Promise.all([once(server, 'request'), fetch(`http://127.0.0.1:${port}`, { headers })])) as [
      [IncomingMessage],
      Response,
    ];
    server.close().closeAllConnections();
    return request;
  }

  it('takes it off what somebody made of the headers before', async () => {
    const request = await receive({ 'x-client-id': 'a.b.c' });
    const { headers, headersDistinct } = request;
    assert.deepEqual(headersDistinct['x-client-id'], ['a.b.c']);
    takeCredential(request, 'x-client-id', false);
    assert.equal(headers['x-client-id'], undefined);
    assert.equal(headersDistinct['x-client-id'], undefined);
    assert.equal(request.headersDistinct, headersDistinct);
    assert.doesNotMatch(inspect(request, { depth: Infinity, showHidden: true }), /a\.b\.c/);
  });

  it('leaves the others for whoever asks later', async () => {
    const request = await receive({ accept: 'text/plain', 'x-client-id': 'a.b.c', 'x-last': '1' });
    const before = { ...request.headers };
    takeCredential(request, 'x-client-id', false);
    delete before['x-client-id'];
    assert.deepEqual({ ...request.headers }, before);
    assert.deepEqual(request.headersDistinct['x-last'], ['1']);
    assert.deepEqual(Object.keys(request.headersDistinct), Object.keys(before));
    assert.equal(request.rawHeaders.length, 2 * Object.keys(before).length);
  });

  it('neither reads nor removes the other header', () => {
    const request = requestWith('Authorization', 'Bearer a.b.c');
    assert.deepEqual(takeCredential(request, 'x-client-id', false), { code: 'missing_token', reason: 'no_token' });
    assert.deepEqual(request.rawHeaders, ['Authorization', 'Bearer a.b.c']);
  });
});

describe('takeCredential, of something like a request', () => {
  it('writes nothing where there is nothing to take off', () => {
    const frozen = { headers: Object.freeze({}), rawHeaders: Object.freeze(['Host', 'x', 'Accept', '*/*']) as string[] };
    assert.deepEqual(takeCredential(frozen, 'x-client-id', false), { code: 'missing_token', reason: 'no_token' });
  });
});

describe('refusalError', () => {
  const get = requestWith('Host', 'x');

  it('answers 401 to a missing token, without an error code', () => {
    const error = refusalError('missing_token', get, 'authorization');
    assert.equal(error.status, 401);
    assert.deepEqual(error.headers, { 'www-authenticate': 'Bearer realm="kubernetes"', 'cache-control': 'no-store' });
    assert.equal(error.message, 'A ServiceAccount token is required');
  });

  it('takes down no stack, and lets others do so', () => {
    const before = Error.stackTraceLimit;
    assert.equal(refusalError('invalid_token', get, 'x-client-id').stack, 'AuthError: The ServiceAccount token was not accepted');
    assert.equal(Error.stackTraceLimit, before);
    assert.match(new Error('x').stack ?? '', /\n {4}at /);
  });

  it('has none either where nobody may limit them', () => {
    const before = Object.getOwnPropertyDescriptor(Error, 'stackTraceLimit') ?? {};
    Object.defineProperty(Error, 'stackTraceLimit', { writable: false });
    try {
      assert.equal(refusalError('invalid_token', get, 'x-client-id').stack, 'AuthError: The ServiceAccount token was not accepted');
    } finally {
      Object.defineProperty(Error, 'stackTraceLimit', before);
    }
  });

  it('has fields that frameworks may write and nothing prints', () => {
    const error = refusalError('invalid_token', get, 'x-client-id');
    const other = refusalError('missing_token', get, 'x-client-id');
    Object.assign(error, { status: 418, code: 'other', expose: false });
    assert.deepEqual([error.status, error.statusCode, error.code, error.expose], [418, 403, 'other', false]);
    assert.deepEqual([other.status, other.statusCode, other.code, other.expose], [401, 401, 'missing_token', true]);
    assert.deepEqual([(Object.create(other) as typeof other).status, new Proxy(other, {}).code], [401, 'missing_token']);
    assert.throws(() => Object.assign(Object.freeze(other), { status: 418 }), TypeError);
    assert.equal(inspect(error), '[AuthError: The ServiceAccount token was not accepted]');
    assert.deepEqual([Object.keys(error), JSON.stringify(error)], [[], '{}']);
  });

  it('answers 403 to an invalid token in X-Client-Id', () => {
    const error = refusalError('invalid_token', get, 'x-client-id');
    assert.equal(error.status, 403);
    assert.equal(error.headers['www-authenticate'], 'ServiceAccount header="X-Client-Id", error="invalid_token"');
    assert.equal(error.message, 'The ServiceAccount token was not accepted');
  });

  it('answers 401 to an invalid bearer token (RFC 6750 §3.1)', () => {
    const error = refusalError('invalid_token', get, 'authorization');
    assert.equal(error.status, 401);
    assert.equal(error.headers['www-authenticate'], 'Bearer realm="kubernetes", error="invalid_token"');
  });

  it('answers 403 insufficient_scope to a bearer that may not call', () => {
    const error = refusalError('caller_not_allowed', get, 'authorization');
    assert.equal(error.status, 403);
    assert.equal(error.headers['www-authenticate'], 'Bearer realm="kubernetes", error="insufficient_scope"');
    assert.equal(error.message, 'This caller may not call this route');
  });

  it('ends an HTTP/1 connection on which a body is under way', () => {
    assert.equal(refusalError('missing_token', requestWith('Content-Length', '5'), 'x-client-id').headers['connection'], 'close');
    assert.equal(refusalError('missing_token', requestWith('Transfer-Encoding', 'chunked'), 'x-client-id').headers['connection'], 'close');
    assert.equal(refusalError('missing_token', requestWith('Content-Length', '0'), 'x-client-id').headers['connection'], undefined);
    assert.equal(
      refusalError('missing_token', requestWith(':method', 'POST', 'content-length', '5'), 'x-client-id').headers['connection'],
      undefined,
    );
  });

  it('prints as one line, without frames', () => {
    assert.equal(inspect(refusalError('missing_token', get, 'x-client-id')), '[AuthError: A ServiceAccount token is required]');
  });

  it('has writable fields that are not enumerable', () => {
    const error = refusalError('missing_token', get, 'x-client-id');
    assert.deepEqual(Object.keys(error), []);
    Object.assign(error, { status: 418 });
    assert.equal(error.status, 418);
  });
});

describe('unavailableError', () => {
  it('answers 503 with a wait of 1 to 5 whole seconds', () => {
    const error = unavailableError(requestWith('Host', 'x'));
    assert.equal(error.status, 503);
    assert.equal(error.code, 'review_unavailable');
    assert.match(error.headers['retry-after'] ?? '', /^[1-5]$/);
    assert.equal(error.headers['www-authenticate'], undefined);
    assert.equal(error.message, 'The ServiceAccount token cannot be checked at the moment');
  });
});

describe('mergeHeader', () => {
  it('replaces what is not there, or is another header', () => {
    assert.equal(mergeHeader('vary', undefined, 'X-Client-Id'), 'X-Client-Id');
    assert.equal(mergeHeader('cache-control', 'private', 'no-store'), 'no-store');
    assert.equal(mergeHeader('retry-after', 7, '1'), '1');
  });

  it('makes Vary longer, once', () => {
    assert.equal(mergeHeader('vary', ['Origin', 'Accept'], 'X-Client-Id'), 'Origin, Accept, X-Client-Id');
    assert.equal(mergeHeader('vary', 'Origin,x-client-id', 'X-Client-Id'), 'Origin,x-client-id');
    assert.equal(mergeHeader('vary', '*', 'X-Client-Id'), '*');
  });

  it('keeps a Cache-Control that lets no shared cache keep the answer', () => {
    assert.equal(mergeHeader('cache-control', ' No-Store ,max-age=0', 'private'), ' No-Store ,max-age=0');
    assert.equal(mergeHeader('cache-control', ['max-age=0', 'private'], 'private'), 'max-age=0, private');
  });

  it('replaces one that only seems to', () => {
    for (const before of ['public, max-age=60', 'private="set-cookie"', 'no-cache="x, private, y"', 'no-storage', '']) {
      assert.equal(mergeHeader('cache-control', before, 'private'), 'private', before);
    }
  });
});

describe('responseHeadersFor', () => {
  it('keeps guarded answers out of shared caches where HTTP itself does not', () => {
    assert.deepEqual(responseHeadersFor('x-client-id'), { 'cache-control': 'private', vary: 'X-Client-Id' });
    assert.deepEqual(responseHeadersFor('authorization'), {});
    assert.ok(Object.isFrozen(responseHeadersFor('x-client-id')), 'one object serves every answer');
  });
});

describe('formatCredential', () => {
  it('writes what takeCredential reads', () => {
    const request = requestWith('Authorization', formatCredential('a.b.c', 'authorization'));
    assert.deepEqual(takeCredential(request, 'authorization', false), { token: 'a.b.c' });
  });
});

describe('refusesToken', () => {
  it('reads the challenges that refusalError writes', () => {
    const isRefused = (code: AuthCode, header: TokenHeader): boolean => {
      const { status, headers } = refusalError(code, requestWith(), header);
      return refusesToken(status, headers['www-authenticate']);
    };
    assert.deepEqual([isRefused('missing_token', 'x-client-id'), isRefused('missing_token', 'authorization')], [true, true]);
    assert.deepEqual([isRefused('invalid_token', 'x-client-id'), isRefused('invalid_token', 'authorization')], [true, true]);
    assert.deepEqual([isRefused('caller_not_allowed', 'x-client-id'), isRefused('caller_not_allowed', 'authorization')], [false, false]);
  });

  it('takes a 401 without a challenge for one, and a 403 not', () => {
    assert.equal(refusesToken(401, undefined), true);
    assert.equal(refusesToken(403, null), false);
    assert.equal(refusesToken(403, 'Bearer no_error="invalid_token"'), false);
  });

  it('takes no 401 that says who may not call', () => {
    assert.equal(refusesToken(401, 'Bearer error="insufficient_scope"'), false);
    assert.equal(refusesToken(401, 'ServiceAccount error="caller_not_allowed"'), false);
  });

  it('reads a challenge that was sent in several lines', () => {
    assert.equal(refusesToken(403, ['Basic realm="x"', 'Bearer error="invalid_token"']), true);
  });

  it('takes no other status', () => {
    assert.equal(refusesToken(200, 'Bearer error="invalid_token"'), false);
    assert.equal(refusesToken(503, 'Bearer error="invalid_token"'), false);
  });
});
