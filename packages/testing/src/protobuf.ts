// The only place that knows protobuf: the reviews and smaller objects that kubectl and Go clients send in it, turned into JSON's fields.
import { readRecord } from './json.ts';
import type { JsonRecord } from './json.ts';
import { badRequest, StatusError, unrecognized } from './status.ts';

/** The media type. */
export const protobufType = 'application/vnd.kubernetes.protobuf';

type Field = readonly [
  name: string,
  type: 'text' | 'texts' | 'integer' | 'boolean' | 'map' | 'bytes' | 'extra' | Message | readonly [Message],
];
interface Message {
  readonly [number: number]: Field;
}

// k8s.io/api, generated.proto of authentication/v1, authorization/v1, core/v1 and rbac/v1.
const metadata: Message = {
  1: ['name', 'text'],
  2: ['generateName', 'text'],
  3: ['namespace', 'text'],
  5: ['uid', 'text'],
  6: ['resourceVersion', 'text'],
  11: ['labels', 'map'],
  12: ['annotations', 'map'],
};
const resource: Message = {
  1: ['namespace', 'text'],
  2: ['verb', 'text'],
  3: ['group', 'text'],
  4: ['version', 'text'],
  5: ['resource', 'text'],
  6: ['subresource', 'text'],
  7: ['name', 'text'],
};
const attributes: Message = {
  1: ['resourceAttributes', resource],
  2: ['nonResourceAttributes', { 1: ['path', 'text'], 2: ['verb', 'text'] }],
};
const reference: Message = { 1: ['kind', 'text'], 2: ['apiVersion', 'text'], 3: ['name', 'text'], 4: ['uid', 'text'] };
const asked: Message = { ...attributes, 3: ['user', 'text'], 4: ['groups', 'texts'], 5: ['extra', 'extra'], 6: ['uid', 'text'] };
const rule: Message = {
  1: ['verbs', 'texts'],
  2: ['apiGroups', 'texts'],
  3: ['resources', 'texts'],
  4: ['resourceNames', 'texts'],
  5: ['nonResourceURLs', 'texts'],
};
const subject: Message = { 1: ['kind', 'text'], 2: ['apiGroup', 'text'], 3: ['name', 'text'], 4: ['namespace', 'text'] };
const roleRef: Message = { 1: ['apiGroup', 'text'], 2: ['kind', 'text'], 3: ['name', 'text'] };
const role: Message = { 1: ['metadata', metadata], 2: ['rules', [rule]] };
const binding: Message = { 1: ['metadata', metadata], 2: ['subjects', [subject]], 3: ['roleRef', roleRef] };
const withSpec = (spec: Message): Message => ({ 1: ['metadata', metadata], 2: ['spec', spec] });
const kinds: Readonly<Record<string, Message>> = {
  TokenRequest: withSpec({ 1: ['audiences', 'texts'], 3: ['boundObjectRef', reference], 4: ['expirationSeconds', 'integer'] }),
  TokenReview: withSpec({ 1: ['token', 'text'], 2: ['audiences', 'texts'] }),
  SelfSubjectReview: { 1: ['metadata', metadata] },
  SubjectAccessReview: withSpec(asked),
  LocalSubjectAccessReview: withSpec(asked),
  SelfSubjectAccessReview: withSpec(attributes),
  SelfSubjectRulesReview: withSpec({ 1: ['namespace', 'text'] }),
  DeleteOptions: { 1: ['gracePeriodSeconds', 'integer'], 2: ['preconditions', { 1: ['uid', 'text'] }] },
  Namespace: { 1: ['metadata', metadata] },
  ServiceAccount: {
    1: ['metadata', metadata],
    3: ['imagePullSecrets', [{ 1: ['name', 'text'] }]],
    4: ['automountServiceAccountToken', 'boolean'],
  },
  ConfigMap: { 1: ['metadata', metadata], 2: ['data', 'map'], 3: ['binaryData', 'bytes'] },
  Secret: { 1: ['metadata', metadata], 2: ['data', 'bytes'], 3: ['type', 'text'], 4: ['stringData', 'map'] },
  ClusterRole: role,
  ClusterRoleBinding: binding,
  Role: role,
  RoleBinding: binding,
};

/** Decodes a request's body: the envelope `k8s\0`, its kind, and the object in it. Throws a {@link StatusError}: 400, or 415 for a kind that it does not know. */
export function decodeProtobuf(body: Buffer, expected: string): JsonRecord {
  if (body.subarray(0, 4).toString('latin1') !== 'k8s\0') {
    throw unrecognized(expected, body, 'provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]');
  }
  const broken = badRequest(`the object provided is unrecognized (must be of type ${expected}): it is no protobuf of a kind that is known`);
  try {
    const envelope = new Map(readFields(body.subarray(4)));
    const type = envelope.get(1);
    const raw = envelope.get(2);
    if (!Buffer.isBuffer(type) || (raw !== undefined && !Buffer.isBuffer(raw))) throw broken;
    const { apiVersion, kind = expected } = decodeMessage(type, { 1: ['apiVersion', 'text'], 2: ['kind', 'text'] });
    const shape = typeof kind === 'string' ? kinds[kind] : undefined;
    if (shape === undefined)
      throw new StatusError(415, 'UnsupportedMediaType', `the authority takes ${String(kind)} as JSON or YAML, not as protobuf`);
    return { apiVersion, kind, ...decodeMessage(raw ?? Buffer.alloc(0), shape) };
  } catch (error) {
    // A length that leads beyond the end.
    throw error instanceof RangeError ? broken : error;
  }
}

function decodeMessage(bytes: Buffer, shape: Message): JsonRecord {
  const decoded: Record<string, unknown> = {};
  for (const [number, value] of readFields(bytes)) {
    const [name, type] = shape[number] ?? [];
    if (name === undefined || type === undefined) continue;
    const before = decoded[name];
    if (typeof value === 'number') {
      if (type === 'integer' || type === 'boolean') decoded[name] = type === 'boolean' ? value !== 0 : value;
    } else if (type === 'text') {
      // Go writes every string, also those that were not set.
      if (value.length > 0) decoded[name] = value.toString();
    } else if (type === 'texts') decoded[name] = [...readList(before), value.toString()];
    else if (type === 'map' || type === 'bytes' || type === 'extra') decoded[name] = { ...readRecord(before), ...decodeEntry(value, type) };
    else if (Array.isArray(type)) decoded[name] = [...readList(before), ...type.map((one: Message) => decodeMessage(value, one))];
    else if (isMessage(type)) decoded[name] = decodeMessage(value, type);
  }
  return decoded;
}

function isMessage(type: Field[1]): type is Message {
  return typeof type === 'object' && !Array.isArray(type);
}

function decodeEntry(entry: Buffer, type: 'map' | 'bytes' | 'extra'): JsonRecord {
  const fields = new Map(readFields(entry));
  const [key, value = Buffer.alloc(0)] = [fields.get(1), fields.get(2)];
  if (!Buffer.isBuffer(key) || !Buffer.isBuffer(value)) return {};
  if (type === 'extra') return { [key.toString()]: decodeMessage(value, { 1: ['items', 'texts'] })['items'] ?? [] };
  return { [key.toString()]: value.toString(type === 'bytes' ? 'base64' : 'utf8') };
}

function readList(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}

// protobuf.dev, encoding: a field's number and wire type, then a varint or as many bytes as a varint says.
function* readFields(bytes: Buffer): Generator<readonly [number: number, value: number | Buffer]> {
  let at = 0;
  const readVarint = (): number => {
    let value = 0n;
    for (let shift = 0n; shift < 64n; shift += 7n) {
      const byte = bytes.readUInt8(at);
      at += 1;
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return Number(BigInt.asIntN(64, value));
    }
    throw new RangeError('a number is too long');
  };
  while (at < bytes.length) {
    const tag = readVarint();
    const wireType = tag & 7;
    if (wireType === 0) yield [tag >>> 3, readVarint()];
    else {
      const length = wireType === 2 ? readVarint() : wireType === 1 ? 8 : 4;
      if (length < 0 || at + length > bytes.length) throw new RangeError('the message ends too early');
      yield [tag >>> 3, bytes.subarray(at, at + length)];
      at += length;
    }
  }
}
