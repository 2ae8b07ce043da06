// The only place that knows whom a client's X.509 certificate stands for: the common name is the user, each organization a group.
import type { Socket } from 'node:net';
import { TLSSocket } from 'node:tls';
import type { PeerCertificate } from 'node:tls';
import type { UserInfo } from './rbac.ts';

/** A certificate that a client has shown, and whom it stands for: nobody where it does not verify. */
export interface Certified {
  readonly user: UserInfo | undefined;
}

const read = new WeakMap<Socket, PeerCertificate | undefined>();

/** Reads the certificate that a client has shown; `undefined` where it has shown none, or one without a name. */
export function readClientCertificate(socket: Socket, now: number): Certified | undefined {
  if (!(socket instanceof TLSSocket)) return undefined;
  // A connection carries many requests, and Node copies the certificate each time.
  if (!read.has(socket)) read.set(socket, shownBy(socket));
  const certificate = read.get(socket);
  if (certificate === undefined) return undefined;
  // TLS compares with the clock of the machine, which is not the authority's.
  const isInTime = Date.parse(certificate.valid_from) <= now && now <= Date.parse(certificate.valid_to);
  if (!socket.authorized || !isInTime) return { user: undefined };
  const user = describeUser(certificate);
  return user === undefined ? undefined : { user };
}

function shownBy(socket: TLSSocket): PeerCertificate | undefined {
  // A socket that was destroyed meanwhile has none at all.
  const certificate: PeerCertificate | null = socket.getPeerCertificate();
  return certificate === null || Object.keys(certificate).length === 0 ? undefined : certificate;
}

function describeUser({ subject, fingerprint256 }: PeerCertificate): UserInfo | undefined {
  const username = [subject.CN].flat().at(-1) ?? '';
  if (username === '') return undefined;
  const groups = [subject.O ?? []].flat();
  const digest = fingerprint256.replaceAll(':', '').toLowerCase();
  return {
    username,
    groups: groups.includes('system:authenticated') ? groups : [...groups, 'system:authenticated'],
    extra: { 'authentication.kubernetes.io/credential-id': [`X509SHA256=${digest}`] },
  };
}
