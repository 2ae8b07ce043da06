// The only place that issues X.509 certificates: a cluster's CA, its API server's certificate, and those of its clients.
import { createHash, generateKeyPairSync, randomBytes, sign } from 'node:crypto';
import type { KeyObject } from 'node:crypto';
import * as asn1 from 'asn1js';
import type { BaseBlock } from 'asn1js';

/** A certificate and its private key, in PEM. */
export interface CertificateAndKey {
  readonly certificate: string;
  readonly key: string;
}

/** Whom a certificate names. */
export interface Subject {
  /** The CN: of a client its username, such as `system:node:node-1`. */
  readonly commonName: string;
  /** An O for each: of a client its groups. Default: none. */
  readonly organizations?: readonly string[];
}

/** A CA, in PEM, and the server certificate that it has signed. */
export interface Certificates extends CertificateAndKey {
  readonly ca: string;
  /** Makes a key, and a certificate with which a client says who it is, until `expiresAt`. Default: the year 2120. */
  issueClient(subject: Subject, expiresAt?: Date): CertificateAndKey;
}

const ecdsaWithSha256 = '1.2.840.10045.4.3.2';
const attributes = { commonName: '2.5.4.3', organization: '2.5.4.10' };
const usages = { serverAuth: '1.3.6.1.5.5.7.3.1', clientAuth: '1.3.6.1.5.5.7.3.2' };
const caSubject = { commonName: 'kubernetes' };
const serverNames = ['kubernetes', 'kubernetes.default', 'kubernetes.default.svc', 'kubernetes.default.svc.cluster.local', 'localhost'];

// Fixed dates: TLS compares them with the real clock, which neither a mocked Date nor advance() moves.
const notBefore = new Date('2020-01-01T00:00:00Z');
const notAfter = new Date('2120-01-01T00:00:00Z');

/** Makes a new CA and a certificate for 127.0.0.1, localhost and kubernetes.default.svc that it has signed. */
export function issueCertificates(): Certificates {
  const ca = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const caIdentifier = createHash('sha1').update(encodeKey(ca.publicKey)).digest();

  function issueLeaf(subject: Subject, usage: string, names: readonly BaseBlock[], expiresAt: Date): CertificateAndKey {
    const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    const certificate = issue(subject, publicKey, ca.privateKey, expiresAt, [
      critical('2.5.29.15', bitString(Buffer.from([0x80]), 7)), // keyUsage: digitalSignature
      extension('2.5.29.37', sequence(objectIdentifier(usage))), // extendedKeyUsage
      extension('2.5.29.35', sequence(contextual(0, caIdentifier))), // authorityKeyIdentifier
      ...(names.length === 0 ? [] : [extension('2.5.29.17', sequence(...names))]), // subjectAltName
    ]);
    return { certificate, key: privateKey.export({ type: 'pkcs8', format: 'pem' }).toString() };
  }

  const names = [...serverNames.map((name) => contextual(2, Buffer.from(name))), contextual(7, Buffer.from([127, 0, 0, 1]))];
  return {
    ca: issue(caSubject, ca.publicKey, ca.privateKey, notAfter, [
      critical('2.5.29.19', sequence(new asn1.Boolean({ value: true }))), // basicConstraints: a CA
      critical('2.5.29.15', bitString(Buffer.from([0x86]), 1)), // keyUsage: digitalSignature, keyCertSign, cRLSign
      extension('2.5.29.14', octetString(caIdentifier)), // subjectKeyIdentifier
    ]),
    ...issueLeaf({ commonName: 'kube-apiserver' }, usages.serverAuth, names, notAfter),
    issueClient: (subject, expiresAt = notAfter) => issueLeaf(subject, usages.clientAuth, [], expiresAt),
  };
}

// RFC 5280 section 4.1
function issue(subject: Subject, publicKey: KeyObject, issuerKey: KeyObject, expiresAt: Date, extensions: readonly BaseBlock[]): string {
  const algorithm = sequence(objectIdentifier(ecdsaWithSha256));
  const body = sequence(
    explicit(0, new asn1.Integer({ value: 2 })), // version 3
    new asn1.Integer({ valueHex: Buffer.concat([Buffer.from([0x01]), randomBytes(15)]) }),
    algorithm,
    distinguishedName(caSubject),
    sequence(time(notBefore), time(expiresAt)),
    distinguishedName(subject),
    asn1.fromBER(encodeKey(publicKey)).result,
    explicit(3, sequence(...extensions)),
  );
  const certificate = sequence(body, algorithm, bitString(sign('sha256', encode(body), issuerKey), 0));
  const lines =
    encode(certificate)
      .toString('base64')
      .match(/.{1,64}/g) ?? [];
  return `-----BEGIN CERTIFICATE-----\n${lines.join('\n')}\n-----END CERTIFICATE-----\n`;
}

function distinguishedName({ commonName, organizations = [] }: Subject): BaseBlock {
  const attribute = (type: string, value: string): BaseBlock =>
    new asn1.Set({ value: [sequence(objectIdentifier(type), new asn1.Utf8String({ value }))] });
  return sequence(...organizations.map((name) => attribute(attributes.organization, name)), attribute(attributes.commonName, commonName));
}

// RFC 5280 section 4.1.2.5: dates before 2050 are UTCTime, with a year of two digits.
function time(valueDate: Date): BaseBlock {
  return valueDate.getUTCFullYear() < 2050 ? new asn1.UTCTime({ valueDate }) : new asn1.GeneralizedTime({ valueDate });
}

function extension(identifier: string, value: BaseBlock): BaseBlock {
  return sequence(objectIdentifier(identifier), octetString(encode(value)));
}

function critical(identifier: string, value: BaseBlock): BaseBlock {
  return sequence(objectIdentifier(identifier), new asn1.Boolean({ value: true }), octetString(encode(value)));
}

function sequence(...value: BaseBlock[]): BaseBlock {
  return new asn1.Sequence({ value });
}

function explicit(tagNumber: number, value: BaseBlock): BaseBlock {
  return new asn1.Constructed({ idBlock: { tagClass: 3, tagNumber }, value: [value] });
}

function contextual(tagNumber: number, valueHex: Buffer): BaseBlock {
  return new asn1.Primitive({ idBlock: { tagClass: 3, tagNumber }, valueHex });
}

function objectIdentifier(value: string): BaseBlock {
  return new asn1.ObjectIdentifier({ value });
}

function octetString(valueHex: Buffer): BaseBlock {
  return new asn1.OctetString({ valueHex });
}

function bitString(valueHex: Buffer, unusedBits: number): BaseBlock {
  return new asn1.BitString({ valueHex, unusedBits });
}

function encodeKey(publicKey: KeyObject): Buffer {
  return publicKey.export({ type: 'spki', format: 'der' });
}

function encode(block: BaseBlock): Buffer {
  return Buffer.from(block.toBER());
}
