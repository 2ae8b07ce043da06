// The only place that knows the authority's socket: HTTPS on the loopback address, by HTTP/2 and HTTP/1.1, which can go away at once and come
// back.
import { once } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { constants, createSecureServer, Http2ServerResponse } from 'node:http2';
import type { AddressInfo, Socket } from 'node:net';
import type { Certificates } from './certificates.ts';

/** The authority's socket. */
export interface Listener {
  readonly port: number;
  setCertificates(certificates: Certificates): void;
  /** Stops listening and cuts every connection, before it returns. */
  stop(): void;
  /** Listens again on the same port, unless it was closed. Rejects where another process has taken it. */
  start(): Promise<void>;
  /** Stops for good. */
  close(): void;
}

const host = '127.0.0.1';

/** Ends a request without an answer: its stream in HTTP/2, with the error of a handler that panics, else its connection. */
export function cut(request: IncomingMessage, response: ServerResponse | Http2ServerResponse): void {
  if (response instanceof Http2ServerResponse) response.stream.close(constants.NGHTTP2_INTERNAL_ERROR);
  else request.socket.destroy();
}

/** Listens on 127.0.0.1; port 0 is any that is free. */
export async function createListener(
  port: number,
  certificates: Certificates,
  handler: (request: IncomingMessage, response: ServerResponse) => void,
): Promise<Listener> {
  const connections = new Set<Socket>();
  // A client may show a certificate of any CA that there was. Whom it stands for, and whether that is anybody, is not decided here.
  let clientCas = [certificates.ca];
  const asking = { requestCert: true, rejectUnauthorized: false };
  const { certificate, key } = certificates;
  const server = createSecureServer({ cert: certificate, key, ca: clientCas, ...asking, allowHTTP1: true });
  // What comes by HTTP/2 is shaped alike, as far as it is used.
  server.on('request', handler as (...request: unknown[]) => void);
  // Node 22.19 reckons with both, and gives this kind of server neither.
  Object.assign(server, { keepAliveTimeout: 90_000, keepAliveTimeoutBuffer: 1_000 });
  server.on('connection', (socket: Socket) => {
    connections.add(socket);
    socket.on('close', () => connections.delete(socket));
  });
  // A client that does not trust the CA, or goes away, is no trouble of the authority's.
  server.on('tlsClientError', (_error, socket) => socket.destroy());
  let isListening = false;

  async function listen(on: number): Promise<void> {
    server.listen(on, host);
    isListening = true;
    try {
      await once(server, 'listening');
    } catch (error) {
      isListening = false;
      throw error;
    }
  }

  await listen(port);
  const bound = (server.address() as AddressInfo).port;
  let starting: Promise<void> | undefined;

  let isClosed = false;

  const listener: Listener = {
    port: bound,
    setCertificates(next) {
      clientCas = [...clientCas, next.ca];
      server.setSecureContext({ cert: next.certificate, key: next.key, ca: clientCas });
    },
    stop() {
      if (!isListening) return;
      isListening = false;
      server.close();
      for (const socket of connections) socket.destroy();
    },
    async start() {
      if (!isListening && !isClosed) starting = listen(bound);
      await starting;
    },
    close() {
      isClosed = true;
      listener.stop();
    },
  };
  return listener;
}
