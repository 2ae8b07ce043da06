// The only place that knows what a request's method and path ask for: a verb on a resource, or on a path that is none.
import type { Attributes } from './rbac.ts';

/** What a request asks for. */
export interface Target {
  readonly attributes: Attributes;
  readonly path: string;
  readonly query: URLSearchParams;
  /** The group's version, of a resource. */
  readonly version: string;
}

/** Reads what a request asks for, as apiserver's RequestInfo does. */
export function parseTarget(method: string, url: string): Target {
  const [pathname = '/', query = ''] = url.split('?', 2);
  const searchParams = new URLSearchParams(query);
  const at = { path: pathname, query: searchParams };
  const segments = pathname.split('/').filter((segment) => segment !== '');
  const [root, ...rest] = segments;
  const [group, version, ...parts] = root === 'api' ? ['', ...rest] : root === 'apis' ? rest : [];
  if (group === undefined || version === undefined || parts.length === 0) {
    return { ...at, version: '', attributes: { verb: method.toLowerCase(), path: pathname } };
  }
  const [first, second, ...inner] = parts;
  const inNamespace = first === 'namespaces' && second !== undefined && inner.length > 0;
  const [resource = '', name = '', subresource = ''] = inNamespace ? inner : parts;
  const namespace = first === 'namespaces' && second !== undefined ? decode(second) : '';
  return {
    ...at,
    version,
    attributes: {
      verb: verbOf(method, name === '', searchParams),
      group,
      resource,
      subresource,
      name: decode(name),
      namespace,
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
  if (method !== 'GET' && method !== 'HEAD') return method.toLowerCase();
  if (['1', 'true'].includes(query.get('watch') ?? '')) return 'watch';
  return isCollection ? 'list' : 'get';
}
