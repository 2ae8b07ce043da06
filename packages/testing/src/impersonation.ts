// The only place that knows impersonation: the headers by which a caller acts as another, as `kubectl --as` does, and who may send them.
import type { IncomingHttpHeaders } from 'node:http';
import { authorize } from './nodes.ts';
import type { Objects } from './objects.ts';
import { forbidden } from './rbac.ts';
import type { Attributes, UserInfo } from './rbac.ts';
import { EarlyError } from './status.ts';

/**
 * Returns whom the caller acts as: itself, without such headers. Throws a {@link StatusError}: 403 where RBAC does not let it
 * `impersonate` the user, a group or an extra.
 */
export function impersonate(objects: Objects, caller: UserInfo, headers: IncomingHttpHeaders): UserInfo {
  const username = textOf(headers['impersonate-user']);
  const asked = textsOf(headers['impersonate-group']);
  const uid = textOf(headers['impersonate-uid']);
  const extra = readExtra(headers);
  if (username === '') {
    if (asked.length === 0 && uid === '' && Object.keys(extra).length === 0) return caller;
    const message = `requested ${describeAsked(uid, asked, extra)} without impersonating a user name`;
    throw new EarlyError(400, 'BadRequest', message, undefined, { 'X-Content-Type-Options': 'nosniff' });
  }
  // What could be no ServiceAccount's name is a user's.
  const [, namespace, name] =
    /^system:serviceaccount:([a-z0-9](?:[-a-z0-9]*[a-z0-9])?):([a-z0-9](?:[-.a-z0-9]*[a-z0-9])?)$/.exec(username) ?? [];
  const check = (attributes: Omit<Extract<Attributes, { resource: string }>, 'verb'>): void => {
    const { allowed, reason } = authorize(objects, caller, { ...attributes, verb: 'impersonate' });
    if (allowed) return;
    const { code, reason: word, message, details, headers: own } = forbidden(caller, { ...attributes, verb: 'impersonate' }, reason);
    throw new EarlyError(code, word, message, details, own);
  };
  if (name !== undefined && namespace !== undefined) check({ group: '', resource: 'serviceaccounts', name, namespace });
  else check({ group: '', resource: 'users', name: username });
  for (const group of asked) check({ group: '', resource: 'groups', name: group });
  const inAuthentication = { group: 'authentication.k8s.io' };
  if (uid !== '') check({ ...inAuthentication, resource: 'uids', name: uid });
  for (const [key, values] of Object.entries(extra)) {
    for (const value of values) check({ ...inAuthentication, resource: 'userextras', subresource: key, name: value });
  }
  const own = asked.length === 0 && namespace !== undefined ? ['system:serviceaccounts', `system:serviceaccounts:${namespace}`] : asked;
  const implied = username === 'system:anonymous' ? 'system:unauthenticated' : 'system:authenticated';
  return {
    username,
    ...(uid === '' ? {} : { uid }),
    groups: own.includes(implied) || own.includes('system:unauthenticated') ? own : [...own, implied],
    ...(Object.keys(extra).length === 0 ? {} : { extra }),
  };
}

// Go's %#v.
function describeAsked(uid: string, groups: readonly string[], extra: Readonly<Record<string, readonly string[]>>): string {
  const list = (texts: readonly string[]): string =>
    texts.length === 0 ? '[]string(nil)' : `[]string{${texts.map((one) => JSON.stringify(one)).join(', ')}}`;
  const entries = Object.entries(extra).map(([key, values]) => `${JSON.stringify(key)}:${list(values)}`);
  const map = entries.length === 0 ? 'map[string][]string(nil)' : `map[string][]string{${entries.join(', ')}}`;
  return `&user.DefaultInfo{Name:"", UID:${JSON.stringify(uid)}, Groups:${list(groups)}, Extra:${map}}`;
}

function readExtra(headers: IncomingHttpHeaders): Readonly<Record<string, readonly string[]>> {
  const prefix = 'impersonate-extra-';
  const sent = Object.entries(headers).filter(([header]) => header.startsWith(prefix));
  return Object.fromEntries(sent.map(([header, value]) => [decodeURIComponent(header.slice(prefix.length)), textsOf(value)]));
}

function textOf(value: string | readonly string[] | undefined): string {
  return textsOf(value)[0] ?? '';
}

// Node joins a header that stands twice with a comma.
function textsOf(value: string | readonly string[] | undefined): readonly string[] {
  if (value === undefined) return [];
  return typeof value === 'string' ? value.split(', ') : value;
}
