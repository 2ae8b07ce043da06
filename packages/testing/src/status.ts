// The only place that knows how an API server words a refusal: the Status object (k8s.io/apimachinery, api/errors).

/** One field that was found wrong, as in a Status's `details.causes`. */
export interface FieldError {
  readonly field: string;
  readonly message: string;
}

/** A refusal as an API server words it; its message is the Status's. */
export class StatusError extends Error {
  override readonly name: string = 'StatusError';
  readonly code: number;
  readonly reason: string;
  readonly details: object | undefined;
  readonly headers: Readonly<Record<string, string>>;

  constructor(code: number, reason: string, message: string, details?: object, headers: Readonly<Record<string, string>> = {}) {
    super(message);
    this.code = code;
    this.reason = reason;
    this.details = details;
    this.headers = headers;
  }
}

/** A refusal before priority and fairness has looked at the request. */
export class EarlyError extends StatusError {}

/** Formats a refusal as the Status object that is the body of its answer. */
export function formatStatus(error: StatusError): object {
  return {
    kind: 'Status',
    apiVersion: 'v1',
    metadata: {},
    status: 'Failure',
    message: error.message,
    ...(error.reason === '' ? {} : { reason: error.reason }),
    ...(error.details === undefined ? {} : { details: error.details }),
    code: error.code,
  };
}

/** 400 for a body that is no object of a kind that is known. */
export function unrecognized(kind: string, body: Buffer | string, why: string): StatusError {
  return badRequest(`the object provided is unrecognized (must be of type ${kind}): ${why} (${summarize(Buffer.from(body))})`);
}

// apimachinery, runtime/serializer/recognizer: thirty bytes of what it could not read, in hex unless it looks like an object.
function summarize(bytes: Buffer): string {
  if (bytes.length === 0) return '<empty>';
  const start = bytes.subarray(0, 30);
  return `${start.toString(bytes[0] === 0x7b ? 'utf8' : 'hex')}${bytes.length > 30 ? ' ...' : ''}`;
}

/** 400. */
export function badRequest(message: string): StatusError {
  return new StatusError(400, 'BadRequest', message);
}

/** 401; a real API server says no more than that. */
export function unauthorized(): StatusError {
  return new EarlyError(401, 'Unauthorized', 'Unauthorized');
}

/** 403 of an admission plugin: the caller may do it, but not so. */
export function admissionRefusal(resource: string, group: string, name: string, reason: string, causes?: readonly object[]): StatusError {
  const shown = name === '' ? 'Unknown' : name;
  return new StatusError(403, 'Forbidden', `${qualified(resource, group)} "${shown}" is forbidden: ${reason}`, {
    name: shown,
    ...(group === '' ? {} : { group }),
    kind: resource,
    ...(causes === undefined ? {} : { causes }),
  });
}

/** 404 for an object. */
export function notFound(resource: string, name: string, group = ''): StatusError {
  return new StatusError(404, 'NotFound', `${qualified(resource, group)} "${name}" not found`, {
    name,
    ...(group === '' ? {} : { group }),
    kind: resource,
  });
}

/** 404 for a path that an API group does not have. */
export function noSuchResource(): StatusError {
  return new StatusError(404, 'NotFound', 'the server could not find the requested resource', {});
}

/** 405. */
export function methodNotAllowed(): StatusError {
  return new StatusError(405, 'MethodNotAllowed', 'the server does not allow this method on the requested resource', {});
}

/** 406. */
export function notAcceptable(available: readonly string[]): StatusError {
  return new StatusError(406, 'NotAcceptable', `406: Not Acceptable\n\nAvailable representations: ${available.join(', ')}`, {});
}

/** 406 where a media type is taken, but not what an object is to be shown as. */
export function notNegotiable(available: readonly string[]): StatusError {
  return new StatusError(406, 'NotAcceptable', `only the following media types are accepted: ${available.join(', ')}`);
}

/** 409. */
export function conflict(kind: string, name: string, message: string, group = ''): StatusError {
  return new StatusError(409, 'Conflict', `Operation cannot be fulfilled on ${qualified(kind, group)} "${name}": ${message}`, {
    name,
    ...(group === '' ? {} : { group }),
    kind,
  });
}

/** 504. */
export function timedOut(reason: string): StatusError {
  return new StatusError(504, 'Timeout', `Timeout: ${reason}`, {});
}

/** 415 of a patch, as the router words it. */
export function unknownPatchType(): StatusError {
  return new StatusError(415, 'UnsupportedMediaType', '415: Unsupported Media Type', {});
}

/** 422; a kind that is empty is left out of the details, as in the answers to access reviews. */
export function invalid(kind: string, group: string, name: string, errors: readonly FieldError[]): StatusError {
  const lines = [...new Set(errors.map(({ field, message }) => `${field}: ${message}`))];
  const listed = lines.length === 1 ? lines[0] : `[${lines.join(', ')}]`;
  return new StatusError(422, 'Invalid', `${kind}${group === '' ? '' : `.${group}`} "${name}" is invalid: ${listed}`, {
    ...(name === '' ? {} : { name }),
    ...(group === '' ? {} : { group }),
    ...(kind === '' ? {} : { kind }),
    causes: errors.map(({ field, message }) => ({ reason: causeOf(message), message, field })),
  });
}

function causeOf(message: string): string {
  const [, said = ''] = /^(Required|Unsupported|Duplicate|Forbidden|Not found|Too long|Too many)/.exec(message) ?? [];
  const reasons: Readonly<Record<string, string>> = {
    Required: 'Required',
    Unsupported: 'NotSupported',
    Duplicate: 'Duplicate',
    Forbidden: 'Forbidden',
    'Not found': 'NotFound',
    'Too long': 'TooLong',
    'Too many': 'TooMany',
  };
  return `FieldValue${reasons[said] ?? 'Invalid'}`;
}

function qualified(resource: string, group: string): string {
  return group === '' ? resource : `${resource}.${group}`;
}
