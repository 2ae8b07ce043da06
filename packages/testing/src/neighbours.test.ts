// Puts to the authority what was put to a kube-apiserver 1.36.2 by an administrator, in that order, and compares status, type, warning and text.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { Agent, request as send } from 'node:https';
import { it } from 'node:test';
import { createAuthority } from './authority.ts';

interface Case {
  readonly method: string;
  readonly path: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: unknown;
  readonly status: number;
  readonly type?: string;
  readonly warning?: string;
  /** Of a Status, or the whole text of what is no object. */
  readonly message?: string;
}

type Answer = { readonly [key in 'type' | 'warning' | 'message']: string | undefined } & Pick<Case, 'status'>;

const cases: readonly Case[] = readFileSync(new URL('fixtures/neighbours.jsonl', import.meta.url), 'utf8')
  .trimEnd()
  .split('\n')
  .map((line) => JSON.parse(line));

it('answers the neighbours of the recorded requests as a real API server', async (t) => {
  const authority = await createAuthority();
  t.after(() => authority.close());
  const { certificate: cert, key } = await authority.user('admin', { groups: ['system:masters'] });
  const ca = readFileSync(authority.caFile);
  const [administrator, nobody] = [new Agent({ keepAlive: true, ca, cert, key }), new Agent({ keepAlive: true, ca })];

  function ask({ method, path, headers = {}, body }: Case): Promise<Answer> {
    const text = body === undefined || typeof body === 'string' ? body : JSON.stringify(body);
    const own = text === undefined ? {} : { 'content-type': 'application/json', 'content-length': String(Buffer.byteLength(text)) };
    const agent = headers['authorization'] === undefined ? administrator : nobody;
    return new Promise((resolve, reject) => {
      const outgoing = send(`${authority.url}${path}`, { method, agent, headers: { ...own, ...headers } }, (response) => {
        let answered = '';
        response.setEncoding('utf8');
        response.on('data', (chunk: string) => {
          answered += chunk;
        });
        response.on('end', () => {
          const { 'content-type': type, warning } = response.headers;
          resolve({ status: response.statusCode ?? 0, type, warning, message: readMessage(answered) });
        });
      });
      outgoing.on('error', reject);
      outgoing.end(text);
    });
  }

  const failures: string[] = [];
  for (const one of cases) {
    const { method, path, body, status, type, warning, message } = one;
    // Where no type is known, no more was recorded than that it was done.
    const expected = type === undefined ? { status } : { status, type, warning, message };
    const answer = await ask(one);
    try {
      assert.deepEqual(type === undefined ? { status: answer.status } : answer, expected);
    } catch (error) {
      failures.push(`${method} ${path} ${JSON.stringify(body)}: ${error instanceof Error ? error.message : String(error)}`);
    }
  }
  administrator.destroy();
  nobody.destroy();
  assert.deepEqual(failures, []);
});

/** Leaves out what each answer makes anew, and lines of the server's source. */
function readMessage(text: string): string | undefined {
  return readStatus(text)
    ?.replaceAll(/[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}/g, '<uid>')
    .replaceAll(/20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ/g, '<time>')
    .replaceAll(/(?<=in scheme ")[^"]+/g, '<scheme>')
    .replaceAll(/127\.0\.0\.1:\d+/g, '<addr>');
}

function readStatus(text: string): string | undefined {
  try {
    const answered: unknown = JSON.parse(text);
    const isStatus = (answered as { readonly kind?: unknown } | null)?.kind === 'Status';
    return isStatus ? (answered as { readonly message?: string }).message : undefined;
  } catch {
    return text.length < 200 ? text : undefined;
  }
}
