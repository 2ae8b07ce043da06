// The only place that lets another process move the authority: the paths below /authority/v1, which only the administrator may use.
import type { Answer } from './answer.ts';
import type { Authority } from './authority.ts';
import { isRecord, readRecord, readText, readTexts } from './json.ts';
import type { CallLog } from './calls.ts';
import type { Fault, FaultOptions } from './faults.ts';
import type { Pod } from './pods.ts';
import type { SigningAlgorithm } from './signing.ts';
import { badRequest, noSuchResource, StatusError } from './status.ts';

/** Where the paths begin. */
export const controlPath = '/authority/v1/';

/** What the paths reach. */
export type Controlled = Pick<
  Authority,
  'fail' | 'recover' | 'advance' | 'now' | 'pod' | 'pods' | 'user' | 'rotateSigningKey' | 'rotateCa'
>;

/** Answers a request below {@link controlPath}. */
export type Control = (method: string, path: string, body: unknown) => Promise<Answer>;

// What a body may have, by the path.
const fields: Readonly<Record<string, readonly string[]>> = {
  faults: ['fault', 'times', 'delayMs', 'resource', 'durationMs'],
  time: ['advanceMs'],
  pods: ['serviceAccount', 'tokens', 'reviews'],
  users: ['name', 'groups'],
  'signing-key': ['retire', 'algorithm'],
};

/** Makes the paths of one authority. */
export function createControl(authority: Controlled, log: CallLog): Control {
  const faults = new Map<string, Disposable>();
  let lastId = 0;

  const routes: Readonly<Record<string, (body: Readonly<Record<string, unknown>>, rest: readonly string[]) => Answer | Promise<Answer>>> = {
    'POST faults': ({ fault, times, delayMs, resource, durationMs }) => {
      const where = resource === undefined ? {} : { resource: readText(resource) };
      return addFault(parseFault(fault), { ...parseNumbers({ times, delayMs }), ...where }, durationMs);
    },
    async 'DELETE faults'(_, [id]) {
      if (id === undefined) await authority.recover();
      else {
        if (!faults.has(id)) throw new StatusError(404, 'NotFound', `there is no fault ${id}`);
        faults.get(id)?.[Symbol.dispose]();
        faults.delete(id);
      }
      return ok({});
    },
    'GET time': () => ok({ now: authority.now().toISOString() }),
    'POST time': ({ advanceMs }) => {
      if (typeof advanceMs !== 'number' || !Number.isFinite(advanceMs)) throw badRequest('"advanceMs" must be a number of milliseconds');
      authority.advance(advanceMs);
      return ok({ now: authority.now().toISOString() });
    },
    'GET calls': () => ok({ calls: log.calls, counts: log.counts() }),
    'DELETE calls': () => {
      log.clear();
      return ok({});
    },
    'GET pods': () => ok({ pods: authority.pods.map(describePod) }),
    'POST pods': async ({ serviceAccount, tokens, reviews }) => {
      const asked = Object.entries(readRecord(tokens)).map(([file, audience]) => [file, readText(audience)] as const);
      if (typeof serviceAccount !== 'string') throw badRequest('"serviceAccount" must be written namespace/name');
      const pod = await authority.pod(serviceAccount, { tokens: Object.fromEntries(asked), reviews: reviews !== false });
      return { status: 201, body: describePod(pod) };
    },
    'POST users': async ({ name, groups }) => ({ status: 201, body: await authority.user(readText(name), { groups: readTexts(groups) }) }),
    'POST signing-key': ({ retire, algorithm }) => {
      // Which algorithms there are is checked where the library's caller is checked too.
      const asked = algorithm === undefined ? {} : { algorithm: algorithm as SigningAlgorithm };
      authority.rotateSigningKey({ retire: retire === true, ...asked });
      return ok({});
    },
    'POST ca': () => {
      authority.rotateCa();
      return ok({});
    },
  };

  function addFault(fault: Fault, options: FaultOptions, durationMs: unknown): Answer {
    lastId += 1;
    const id = String(lastId);
    if (fault !== 'outage') {
      faults.set(id, authority.fail(fault, options));
      return { status: 201, body: { id } };
    }
    // Nobody could end it over a socket that is not there.
    if (typeof durationMs !== 'number' || !(durationMs > 0)) throw badRequest('an outage needs "durationMs", a number of milliseconds');
    return {
      status: 201,
      body: { id },
      sent() {
        const outage = authority.fail('outage');
        setTimeout(() => outage[Symbol.dispose](), durationMs).unref();
      },
    };
  }

  return async (method, path, body) => {
    const [name = '', ...rest] = path.slice(controlPath.length).split('/');
    const route = routes[`${method} ${name}`];
    if (route === undefined) throw noSuchResource();
    const sent = readRecord(body);
    const unknown = Object.keys(sent).find((field) => !(fields[name] ?? []).includes(field));
    if (unknown !== undefined) throw badRequest(`"${unknown}" is not known here, only ${(fields[name] ?? []).join(', ') || 'nothing'}`);
    try {
      return await route(sent, rest);
    } catch (error) {
      // An option that does not exist.
      throw error instanceof TypeError ? badRequest(error.message) : error;
    }
  };
}

function ok(body: object): Answer {
  return { status: 200, body };
}

function describePod({ name, namespace, serviceAccount, uid, apiServer, env }: Pod): object {
  return { name, namespace, serviceAccount, uid, apiServer, env };
}

// The names are checked where the library's caller is checked too.
function parseFault(fault: unknown): Fault {
  if (typeof fault === 'string') return fault as Fault;
  if (!isRecord(fault) || typeof fault['status'] !== 'number') throw badRequest('"fault" must be a name, or an answer with a "status"');
  const headers = Object.entries(readRecord(fault['headers'])).map(([name, value]) => [name, String(value)] as const);
  return { status: fault['status'], headers: Object.fromEntries(headers), body: readText(fault['body']) };
}

function parseNumbers(options: Readonly<Record<string, unknown>>): FaultOptions {
  const numbers = Object.entries(options).filter(([, value]) => value !== undefined);
  for (const [name, value] of numbers) if (typeof value !== 'number') throw badRequest(`"${name}" must be a number`);
  return Object.fromEntries(numbers);
}
