// The only place that knows what an answer looks like on the wire: media types, pretty printing, compression and headers.
import { randomUUID } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { gzipSync } from 'node:zlib';
import { Document, parse as parseYaml, visit } from 'yaml';
import { EarlyError, formatStatus, notAcceptable } from './status.ts';
import type { StatusError } from './status.ts';

/** An answer before it is encoded: an object, or text as it is. */
export interface Answer {
  readonly status: number;
  /** A list is a header that stands as often. */
  readonly headers?: Readonly<Record<string, string | readonly string[]>>;
  readonly body: object | string;
  /** Sends events one by one instead of a body, until it is disposed of; one that has none to come ends the answer. */
  readonly stream?: (write: (event: object) => void) => Disposable | undefined;
  /** After how many seconds a stream ends. Default 0: when the client goes. */
  readonly seconds?: number;
  /** Whether priority and fairness has had no part in it. Default: no, but in a 401. */
  readonly isEarly?: boolean;
  /** Milliseconds that it takes until there is an answer. Default 0. */
  readonly afterMs?: number;
  /** Called when the answer has been sent. */
  readonly sent?: () => void;
}

/** What a request says of the answer that it wants. */
export interface Wanted {
  readonly mediaType: 'application/json' | 'application/yaml';
  /**
   * What an object may be shown as, by preference: `Table`, `PartialObjectMetadata`, `PartialObjectMetadataList`, or as itself, which is
   * the empty text.
   */
  readonly as: readonly string[];
  readonly pretty: boolean;
  readonly gzip: boolean;
}

const flowSchema = randomUUID();
const priorityLevel = randomUUID();
const compressedFrom = 128 * 1024;
const chunkedFrom = 2048;

/** The headers of an answer that priority and fairness has let through; a 401 comes before that. */
export const flowHeaders: Readonly<Record<string, string>> = {
  'X-Kubernetes-Pf-Flowschema-Uid': flowSchema,
  'X-Kubernetes-Pf-Prioritylevel-Uid': priorityLevel,
};

/** The media types in which objects are answered, as a refusal lists them. */
export const objectTypes: readonly string[] = ['application/json', 'application/yaml', 'application/vnd.kubernetes.protobuf'];

/**
 * Throws a 406 {@link StatusError} where none of these media types is taken. As go-restful, which finds the route, it knows no
 * `application/*`.
 */
export function checkAcceptable({ headers }: IncomingMessage, available: readonly string[] = objectTypes): void {
  const clauses = (headers.accept ?? '').split(',').map((one) => (one.split(';')[0] ?? '').trim());
  if (headers.accept === undefined || headers.accept === '' || clauses.some((one) => one === '*/*' || available.includes(one))) return;
  throw notAcceptable(available);
}

/** Reads what answer is wanted. A type that nobody has is JSON here: the refusal itself has to be readable. */
export function readWanted({ headers }: IncomingMessage, query: URLSearchParams): Wanted {
  const agent = headers['user-agent'] ?? '';
  const pretty = query.get('pretty') ?? '';
  const clauses = parseAccept(headers.accept ?? '');
  return {
    mediaType: clauses[0]?.mediaType ?? 'application/json',
    as: clauses.length === 0 ? [''] : clauses.map(({ as }) => as),
    // strconv.ParseBool
    pretty: pretty === '' ? /^(curl|Wget|Mozilla\/5\.0)/.test(agent) : /^(1|t|T|TRUE|true|True)$/.test(pretty),
    gzip: /\bgzip\b/.test(headers['accept-encoding'] ?? ''),
  };
}

interface Clause {
  readonly mediaType: Wanted['mediaType'];
  readonly as: string;
  readonly quality: number;
}

// Of what is taken, by preference: the quality that is said, then the order. Protobuf is not answered.
function parseAccept(accept: string): readonly Clause[] {
  return accept
    .split(',')
    .flatMap((clause): readonly Clause[] => {
      const [type = '', ...rest] = clause.split(';').map((one) => one.trim());
      const parameters = new Map(rest.map((one) => [one.slice(0, one.indexOf('=')), one.slice(one.indexOf('=') + 1)]));
      const isJson = ['application/json', 'application/*', '*/*', ''].includes(type);
      if (!isJson && type !== 'application/yaml') return [];
      const mediaType = isJson ? 'application/json' : 'application/yaml';
      const as = parameters.get('g') === 'apidiscovery.k8s.io' ? '' : (parameters.get('as') ?? '');
      return [{ mediaType, as, quality: Number(parameters.get('q') ?? 1) }];
    })
    .toSorted((one, other) => other.quality - one.quality);
}

/** The answer to a refusal. */
export function refusal(error: StatusError): Answer {
  return { status: error.code, headers: error.headers, body: formatStatus(error), isEarly: error instanceof EarlyError };
}

/** Sends an answer. */
export function send(response: ServerResponse, answer: Answer, wanted: Wanted): void {
  const { status, headers = {}, body, stream, sent, isEarly = status === 401 } = answer;
  if (sent !== undefined) response.on('finish', sent);
  if (stream !== undefined) {
    sendStream(response, stream, answer);
    return;
  }
  const isText = typeof body === 'string';
  const text = isText ? body : encode(body, wanted);
  const isCompressed = wanted.gzip && text.length > compressedFrom;
  const content = isCompressed ? gzipSync(text) : Buffer.from(text);
  // A real API server says neither Connection nor Keep-Alive.
  response.removeHeader('Connection');
  response.writeHead(status, {
    'Audit-Id': randomUUID(),
    'Cache-Control': 'no-cache, private',
    'Content-Type': isText ? 'text/plain; charset=utf-8' : wanted.mediaType,
    // What says itself of which type it is does not come from Go's http.Error.
    ...(isText && headers['Content-Type'] === undefined ? { 'X-Content-Type-Options': 'nosniff' } : {}),
    ...(isEarly ? {} : flowHeaders),
    ...(isCompressed ? { 'Content-Encoding': 'gzip', Vary: 'Accept-Encoding' } : {}),
    ...headers,
    ...(content.length < chunkedFrom ? { 'Content-Length': content.length } : chunked(response)),
  });
  response.end(content);
}

// HTTP/2 has frames instead, and no such header.
const chunked = ({ req }: ServerResponse): Readonly<Record<string, string>> =>
  req.httpVersionMajor === 1 ? { 'Transfer-Encoding': 'chunked' } : {};

function sendStream(response: ServerResponse, stream: NonNullable<Answer['stream']>, { status, headers = {}, seconds = 0 }: Answer): void {
  response.removeHeader('Connection');
  response.writeHead(status, {
    'Audit-Id': randomUUID(),
    'Cache-Control': 'no-cache, private',
    'Content-Type': 'application/json',
    ...flowHeaders,
    ...headers,
    ...chunked(response),
  });
  response.flushHeaders();
  const events = stream((event) => response.write(`${JSON.stringify(event)}\n`));
  if (events === undefined) {
    response.end();
    return;
  }
  const timer = seconds > 0 ? setTimeout(() => response.end(), seconds * 1000).unref() : undefined;
  response.on('close', () => {
    clearTimeout(timer);
    events[Symbol.dispose]();
  });
}

function encode(body: object, { mediaType, pretty }: Wanted): string {
  // Go's encoder ends a line; what is indented does not come from it.
  if (mediaType === 'application/json') return pretty ? JSON.stringify(body, undefined, 2) : `${JSON.stringify(body)}\n`;
  // As Go's encoder writes it: YAML 1.1, and in double quotes what would be no string without them.
  const document = new Document(body, { version: '1.1', sortMapEntries: true });
  visit(document, {
    Scalar(_, node) {
      if (typeof node.value === 'string' && isTaken(node.value)) node.type = 'QUOTE_DOUBLE';
    },
  });
  return document.toString({ indentSeq: false, lineWidth: 0, singleQuote: true });
}

/** Whether YAML takes a text for a number, a time, a boolean or nothing. */
function isTaken(text: string): boolean {
  if (/^0o[0-7]+$/.test(text)) return true;
  const isSimple = /^[-+.~\w:]*(?: [\d:+-]+)?$/.test(text) && !/^-$|:$/.test(text);
  return isSimple && typeof parseYaml(text, { version: '1.1' }) !== 'string';
}
