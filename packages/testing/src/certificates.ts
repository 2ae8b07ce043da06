// The only place that issues X.509 certificates: the authority's CA and its server certificate, in hand-written DER, since Node
// reads certificates but cannot make them.
import { createHash, generateKeyPairSync, randomBytes, sign } from 'node:crypto';
import type { KeyObject } from 'node:crypto';

/** A CA and the server certificate that it has signed, in PEM. */
export interface Certificates {
  readonly ca: string;
  readonly certificate: string;
  readonly key: string;
}

const ecdsaWithSha256 = '1.2.840.10045.4.3.2';
const commonName = '2.5.4.3';
const serverAuthentication = '1.3.6.1.5.5.7.3.1';

// Fixed dates: TLS compares them with the real clock, which neither a mocked Date nor advance() moves.
const validity = sequence(generalizedTime('20200101000000Z'), generalizedTime('21200101000000Z'));

/** Makes a new CA and a certificate for 127.0.0.1, localhost and kubernetes.default.svc that it has signed. */
export function issueCertificates(): Certificates {
  const ca = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const server = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const caIdentifier = keyIdentifier(ca.publicKey);
  const names = ['kubernetes', 'kubernetes.default', 'kubernetes.default.svc', 'kubernetes.default.svc.cluster.local', 'localhost'];
  const caCertificate = issue('kubernetes', ca.publicKey, ca.privateKey, [
    extension('2.5.29.19', true, sequence(boolean(true))), // basicConstraints: a CA
    extension('2.5.29.15', true, bitString(Buffer.from([0x86]), 1)), // keyUsage: digitalSignature, keyCertSign, cRLSign
    extension('2.5.29.14', false, der(0x04, caIdentifier)), // subjectKeyIdentifier
  ]);
  const serverCertificate = issue('kube-apiserver', server.publicKey, ca.privateKey, [
    extension('2.5.29.15', true, bitString(Buffer.from([0x80]), 7)), // keyUsage: digitalSignature
    extension('2.5.29.37', false, sequence(objectIdentifier(serverAuthentication))), // extendedKeyUsage
    extension('2.5.29.35', false, sequence(der(0x80, caIdentifier))), // authorityKeyIdentifier
    extension(
      '2.5.29.17', // subjectAltName
      false,
      sequence(...names.map((name) => der(0x82, Buffer.from(name))), der(0x87, Buffer.from([127, 0, 0, 1]))),
    ),
  ]);
  return {
    ca: pem('CERTIFICATE', caCertificate),
    certificate: pem('CERTIFICATE', serverCertificate),
    key: server.privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
  };
}

function issue(subject: string, publicKey: KeyObject, issuerKey: KeyObject, extensions: readonly Buffer[]): Buffer {
  const algorithm = sequence(objectIdentifier(ecdsaWithSha256));
  const body = sequence(
    der(0xa0, integer(Buffer.from([2]))), // version 3
    integer(Buffer.concat([Buffer.from([0x01]), randomBytes(15)])),
    algorithm,
    distinguishedName('kubernetes'),
    validity,
    distinguishedName(subject),
    publicKey.export({ type: 'spki', format: 'der' }),
    der(0xa3, sequence(...extensions)),
  );
  return sequence(body, algorithm, bitString(sign('sha256', body, issuerKey), 0));
}

function keyIdentifier(publicKey: KeyObject): Buffer {
  return createHash('sha1')
    .update(publicKey.export({ type: 'spki', format: 'der' }))
    .digest();
}

function distinguishedName(name: string): Buffer {
  return sequence(der(0x31, sequence(objectIdentifier(commonName), der(0x0c, Buffer.from(name)))));
}

function extension(identifier: string, critical: boolean, value: Buffer): Buffer {
  return sequence(objectIdentifier(identifier), ...(critical ? [boolean(true)] : []), der(0x04, value));
}

function sequence(...parts: readonly Buffer[]): Buffer {
  return der(0x30, Buffer.concat(parts));
}

function integer(value: Buffer): Buffer {
  return der(0x02, value);
}

function boolean(value: boolean): Buffer {
  return der(0x01, Buffer.from([value ? 0xff : 0]));
}

function bitString(value: Buffer, unusedBits: number): Buffer {
  return der(0x03, Buffer.concat([Buffer.from([unusedBits]), value]));
}

function generalizedTime(value: string): Buffer {
  // RFC 5280 section 4.1.2.5: dates before 2050 are UTCTime, with a year of two digits.
  return value < '2050' ? der(0x17, Buffer.from(value.slice(2))) : der(0x18, Buffer.from(value));
}

function objectIdentifier(dotted: string): Buffer {
  const [first = 0, second = 0, ...rest] = dotted.split('.').map(Number);
  const bytes = [first * 40 + second];
  for (const arc of rest) {
    const digits = [arc & 0x7f];
    for (let left = arc >>> 7; left > 0; left >>>= 7) digits.unshift((left & 0x7f) | 0x80);
    bytes.push(...digits);
  }
  return der(0x06, Buffer.from(bytes));
}

function der(tag: number, content: Buffer): Buffer {
  const length = [];
  if (content.length < 0x80) length.push(content.length);
  else {
    for (let left = content.length; left > 0; left >>>= 8) length.unshift(left & 0xff);
    length.unshift(0x80 | length.length);
  }
  return Buffer.concat([Buffer.from([tag, ...length]), content]);
}

function pem(label: string, content: Buffer): string {
  const lines = content.toString('base64').match(/.{1,64}/g) ?? [];
  return `-----BEGIN ${label}-----\n${lines.join('\n')}\n-----END ${label}-----\n`;
}
