// The only place that knows how a request is put on a socket header by header, or byte by byte, and how an answer is read off it.
import { Agent, request as openRequest } from 'node:http';
import type { IncomingHttpHeaders } from 'node:http';
import { connect } from 'node:net';

/** Name and value, as they are to stand on the wire. */
export type HeaderLine = readonly [name: string, value: string];

/** A request, `GET /guarded` unless it says otherwise. */
export interface Outgoing {
  readonly method?: string;
  readonly path?: string;
  /** In this order, repeated names included; `host`, and `content-length` where there is a body, are added. */
  readonly headers?: readonly HeaderLine[];
  readonly body?: string;
  /** Default: a connection of its own. */
  readonly agent?: Agent;
}

/** An answer, read to its end. */
export interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
  /** Whether the request went over a connection that had carried another. */
  readonly isReused: boolean;
}

/** Sends one request. Rejects where there is no answer. */
export function send(url: string, { method = 'GET', path = '/guarded', headers = [], body, agent }: Outgoing): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const lines: HeaderLine[] = [['host', new URL(url).host], ...headers];
    if (body !== undefined) lines.push(['content-length', String(Buffer.byteLength(body))]);
    // A flat list is sent as it is.
    const options = { method, path, headers: lines.flat(), agent: agent ?? new Agent({ keepAlive: false }) };
    const outgoing = openRequest(url, options, (response) => {
      let text = '';
      response.setEncoding('utf8');
      response.on('data', (chunk: string) => {
        text += chunk;
      });
      response.on('end', () =>
        resolve({ status: response.statusCode ?? 0, headers: response.headers, body: text, isReused: outgoing.reusedSocket }),
      );
      response.on('error', reject);
    });
    outgoing.on('error', reject);
    outgoing.end(body);
  });
}

/** A request in its own bytes: its line, its headers, and what follows them. */
export function formatRequest(line: string, headers: readonly HeaderLine[], rest = ''): string {
  return `${line}\r\n${headers.map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n${rest}`;
}

/**
 * Writes bytes to a server, which is to end the connection, and returns its answers.
 * Rejects if it has not ended it after 5 seconds.
 */
export function converse(url: string, bytes: string): Promise<readonly Answer[]> {
  return new Promise((resolve, reject) => {
    const { hostname, port } = new URL(url);
    let received = '';
    const socket = connect(Number(port), hostname, () => socket.write(bytes, 'latin1'));
    const timer = setTimeout(() => {
      socket.destroy();
      reject(new Error(`the server did not end the connection; it had answered ${JSON.stringify(received)}`));
    }, 5_000);
    socket.setEncoding('latin1');
    socket.on('data', (text: string) => {
      received += text;
    });
    // A server that ends a connection while it is written to resets it.
    socket.on('error', () => undefined);
    socket.on('close', () => {
      clearTimeout(timer);
      try {
        resolve(parseAnswers(received));
      } catch (error) {
        reject(error instanceof Error ? error : new Error(String(error)));
      }
    });
  });
}

function parseAnswers(text: string): readonly Answer[] {
  const answers: Answer[] = [];
  let rest = text;
  while (rest !== '') {
    const end = rest.indexOf('\r\n\r\n');
    const [line = '', ...lines] = rest.slice(0, end).split('\r\n');
    const [, status] = /^HTTP\/1\.[01] (\d{3})(?: |$)/.exec(line) ?? [];
    if (end === -1 || status === undefined) throw new Error(`this is no answer: ${JSON.stringify(rest)}`);
    const headers: IncomingHttpHeaders = Object.fromEntries(lines.map(parseLine));
    // An interim answer has no body (RFC 9110 §15.2).
    const [body, after] = Number(status) < 200 ? ['', rest.slice(end + 4)] : splitBody(rest.slice(end + 4), headers);
    answers.push({ status: Number(status), headers, body, isReused: answers.length > 0 });
    rest = after;
  }
  return answers;
}

function parseLine(line: string): HeaderLine {
  const colon = line.indexOf(':');
  return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()];
}

// RFC 9112 §6.3: chunked, of a length that is said, or up to the end of the connection.
function splitBody(text: string, headers: IncomingHttpHeaders): readonly [body: string, after: string] {
  if (headers['transfer-encoding'] === undefined) {
    const length = Number(headers['content-length'] ?? text.length);
    return [text.slice(0, length), text.slice(length)];
  }
  let body = '';
  let rest = text;
  for (;;) {
    const end = rest.indexOf('\r\n');
    const size = Number.parseInt(rest.slice(0, end), 16);
    if (end === -1 || Number.isNaN(size)) throw new Error(`this is no chunk: ${JSON.stringify(rest)}`);
    if (size === 0) return [body, rest.slice(end + 4)];
    body += rest.slice(end + 2, end + 2 + size);
    rest = rest.slice(end + 4 + size);
  }
}
