// The only place that lets another process move the authority: the paths below /authority/v1, which only the administrator may use.
import type { Answer } from './answer.ts';
import type { Authority } from './authority.ts';
import type { CallLog } from './calls.ts';
import { aName, check, delay, milliseconds, readOptions, required } from './checks.ts';
import type { Checks } from './checks.ts';
import { checkFault, faultOptions } from './faults.ts';
import type { Fault, FaultOptions } from './faults.ts';
import { podOptions, rotationOptions, userOptions } from './options.ts';
import type { PodOptions } from './options.ts';
import type { Pod } from './pods.ts';
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

interface FaultBody extends FaultOptions {
  readonly fault: Fault;
  readonly durationMs?: number;
}

const faultBody: Checks<FaultBody> = {
  // Which there are is checked where the library's caller is checked too.
  fault: required(check('a name, or an answer with a status', () => true)),
  ...faultOptions,
  durationMs: delay,
};
const timeBody: Checks<{ readonly advanceMs: number }> = { advanceMs: required(milliseconds) };
const podBody: Checks<PodOptions & { readonly serviceAccount: string }> = { serviceAccount: required(aName), ...podOptions };
// A Date cannot be said in JSON.
const userBody: Checks<{ readonly name: string; readonly groups?: readonly string[] }> = {
  name: required(aName),
  groups: userOptions.groups,
};
const nothing: Checks<object> = {};

type Route = (where: string, body: unknown, rest: readonly string[]) => Answer | Promise<Answer>;

/** What a path takes, and how it answers. */
function route<Body extends object>(
  fields: Checks<Body>,
  answer: (body: Body, rest: readonly string[]) => Answer | Promise<Answer>,
): Route {
  return (where, body, rest) => answer(readOptions(where, body, fields), rest);
}

/** Makes the paths of one authority. */
export function createControl(authority: Controlled, log: CallLog): Control {
  const faults = new Map<string, Disposable>();
  let lastId = 0;

  const routes: Readonly<Record<string, Route>> = {
    'POST faults': route(faultBody, addFault),
    'DELETE faults': route(nothing, async (_, [id]) => {
      if (id === undefined) await authority.recover();
      else {
        if (!faults.has(id)) throw new StatusError(404, 'NotFound', `there is no fault ${id}`);
        faults.get(id)?.[Symbol.dispose]();
        faults.delete(id);
      }
      return ok({});
    }),
    'GET time': route(nothing, () => ok({ now: authority.now().toISOString() })),
    'POST time': route(timeBody, ({ advanceMs }) => {
      authority.advance(advanceMs);
      return ok({ now: authority.now().toISOString() });
    }),
    'GET calls': route(nothing, () => ok({ calls: log.calls, counts: log.counts() })),
    'DELETE calls': route(nothing, () => {
      log.clear();
      return ok({});
    }),
    'GET pods': route(nothing, () => ok({ pods: authority.pods.map(describePod) })),
    'POST pods': route(podBody, async ({ serviceAccount, ...options }) => ({
      status: 201,
      body: describePod(await authority.pod(serviceAccount, options)),
    })),
    'POST users': route(userBody, async ({ name, ...options }) => ({ status: 201, body: await authority.user(name, options) })),
    'POST signing-key': route(rotationOptions, (options) => {
      authority.rotateSigningKey(options);
      return ok({});
    }),
    'POST ca': route(nothing, () => {
      authority.rotateCa();
      return ok({});
    }),
  };

  function addFault({ fault, durationMs, ...options }: FaultBody): Answer {
    lastId += 1;
    const id = String(lastId);
    if (fault !== 'outage') {
      if (durationMs !== undefined) throw badRequest('only an outage takes "durationMs"');
      faults.set(id, authority.fail(fault, options));
      return { status: 201, body: { id } };
    }
    checkFault('POST faults', fault, options);
    // Nobody could end it over a socket that is not there.
    if (durationMs === undefined) throw badRequest('an outage needs "durationMs", a number of milliseconds');
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
    const [what = '', ...rest] = path.slice(controlPath.length).split('/');
    const where = `${method} ${what}`;
    const answer = routes[where];
    if (answer === undefined) throw noSuchResource();
    try {
      return await answer(where, body ?? {}, rest);
    } catch (error) {
      // A field that does not exist, or is wrong.
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
