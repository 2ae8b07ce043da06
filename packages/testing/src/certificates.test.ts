import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import { describe, it } from 'node:test';
import { issueCertificates } from './certificates.ts';

const clientAuth = '1.3.6.1.5.5.7.3.2';

describe('issueCertificates', () => {
  const certificates = issueCertificates();
  const ca = new X509Certificate(certificates.ca);

  it('issues a CA, and a server certificate that it has signed, for the names of an API server', () => {
    const server = new X509Certificate(certificates.certificate);
    assert.deepEqual([ca.ca, ca.subject, server.ca, server.subject], [true, 'CN=kubernetes', false, 'CN=kube-apiserver']);
    assert.ok(server.checkIssued(ca) && server.verify(ca.publicKey));
    assert.equal(server.checkHost('kubernetes.default.svc'), 'kubernetes.default.svc');
    assert.equal(server.checkIP('127.0.0.1'), '127.0.0.1');
    assert.equal(new Date(server.validTo).getUTCFullYear(), 2120);
  });

  it('issues a client certificate that names a user and its groups', () => {
    const issued = certificates.issueClient({ commonName: 'system:node:node-1', organizations: ['system:nodes', 'workers'] });
    const client = new X509Certificate(issued.certificate);
    assert.equal(client.subject, 'O=system:nodes\nO=workers\nCN=system:node:node-1');
    assert.deepEqual([client.keyUsage, client.ca, client.subjectAltName], [[clientAuth], false, undefined]);
    assert.ok(client.checkIssued(ca) && client.verify(ca.publicKey));
    assert.match(issued.key, /^-----BEGIN PRIVATE KEY-----/);
  });

  it('issues client certificates that end', () => {
    const { certificate } = certificates.issueClient({ commonName: 'ada' }, new Date('2026-01-02T03:04:05Z'));
    assert.equal(new X509Certificate(certificate).validTo, 'Jan  2 03:04:05 2026 GMT');
  });

  it('makes another CA each time', () => {
    const other = new X509Certificate(issueCertificates().ca);
    assert.ok(!new X509Certificate(certificates.certificate).verify(other.publicKey));
  });
});
