// The only place that knows what a request's method and path ask for: a verb on a resource, or on a path that is none.
import type { Attributes } from './rbac.ts';

/** What a request asks for. */
export interface Target {
  readonly attributes: Attributes;
  readonly path: string;
  readonly query: URLSearchParams;
  /** The group's version, of a resource. */
  readonly version: string;
  /** Whether the path goes on below a subresource, where nothing is. */
  readonly isDeeper: boolean;
}

/** Reads what a request asks for, as apiserver's RequestInfo does. */
export function parseTarget(method: string, url: string): Target {
  const [pathname = '/', query = ''] = url.split('?', 2);
  const searchParams = new URLSearchParams(query);
  // Decoded as a whole: a slash that was escaped parts what it stands between.
  const path = decode(pathname);
  const at = { path, query: searchParams };
  const segments = path.split('/').filter((segment) => segment !== '');
  const [root, ...rest] = segments;
  const [group, version, ...parts] = root === 'api' ? ['', ...rest] : root === 'apis' ? rest : [];
  if (group === undefined || version === undefined || parts.length === 0) {
    return { ...at, version: '', isDeeper: false, attributes: { verb: method.toLowerCase(), path } };
  }
  const [first, second, ...inner] = parts;
  // `namespaces/x/status` is the namespace's own, though it looks like a kind within it.
  const inNamespace =
    first === 'namespaces' && second !== undefined && inner.length > 0 && !['status', 'finalize'].includes(inner[0] ?? '');
  const [resource = '', name = '', subresource = '', ...deeper] = inNamespace ? inner : parts;
  const namespace = first === 'namespaces' && second !== undefined ? second : '';
  const verb = verbOf(method, name === '', searchParams);
  // A list of one name is asked for as that name, so that a role with resourceNames may allow it.
  const [, selected = ''] = /(?:^|,)metadata\.name==?([^,]+)/.exec(searchParams.get('fieldSelector') ?? '') ?? [];
  return {
    ...at,
    version,
    isDeeper: deeper.length > 0 || /.\/\//.test(path),
    attributes: {
      verb,
      group,
      resource,
      subresource,
      name: name === '' && ['list', 'watch', 'deletecollection'].includes(verb) ? selected : name,
      namespace,
      ...(searchParams.has('fieldSelector') ? { fieldSelector: searchParams.get('fieldSelector') ?? '' } : {}),
    },
  };
}

function decode(segment: string): string {
  try {
    return decodeURIComponent(segment);
  } catch {
    return segment;
  }
}

function verbOf(method: string, isCollection: boolean, query: URLSearchParams): string {
  if (method === 'POST') return 'create';
  if (method === 'PUT') return 'update';
  if (method === 'PATCH') return 'patch';
  if (method === 'DELETE') return isCollection ? 'deletecollection' : 'delete';
  // Of resources there are no other verbs.
  if (method !== 'GET' && method !== 'HEAD') return '';
  if (!isCollection) return 'get';
  // As Go reads it, what is not false is true.
  return ['0', 'false'].includes((query.get('watch') ?? 'false').toLowerCase()) ? 'list' : 'watch';
}
