// The only place that knows which objects a list or a watch asks for: label and field selectors.
import { isRecord } from './json.ts';
import type { ClusterObject } from './objects.ts';
import { badRequest } from './status.ts';

/** Reads the selectors of a query into one test. Throws a 400 {@link StatusError}. */
export function parseSelectors(query: URLSearchParams): (object: ClusterObject) => boolean {
  const labels = splitOutside(query.get('labelSelector') ?? '').map(parseLabel);
  const fields = (query.get('fieldSelector') ?? '')
    .split(',')
    .filter((one) => one !== '')
    .map(parseField);
  return (object) => labels.every((one) => one(object.metadata.labels ?? {})) && fields.every((one) => one(object));
}

type Labels = Readonly<Record<string, string>>;

// Commas within brackets part values, not requirements.
function splitOutside(text: string): readonly string[] {
  return text
    .split(/,(?![^(]*\))/)
    .map((one) => one.trim())
    .filter((one) => one !== '');
}

function parseLabel(text: string): (labels: Labels) => boolean {
  const [, setKey = '', operator, list = ''] = /^(\S+)\s+(in|notin)\s*\((.*)\)$/.exec(text) ?? [];
  if (operator !== undefined) {
    const values = new Set(list.split(',').map((one) => one.trim()));
    return (labels) => values.has(labels[setKey] ?? '\0') === (operator === 'in');
  }
  const [, key, comparison, value = ''] = /^([^!=\s]+)\s*(==|=|!=)\s*(\S*)$/.exec(text) ?? [];
  if (key !== undefined) return (labels) => (labels[key] === value) === (comparison !== '!=');
  const [, not, name] = /^(!?)\s*([^!=\s()]+)$/.exec(text) ?? [];
  if (name === undefined) throw badRequest(`unable to parse requirement: ${text}`);
  return (labels) => Object.hasOwn(labels, name) === (not === '');
}

function parseField(text: string): (object: ClusterObject) => boolean {
  const [, path, comparison, value] = /^([^!=]+)(==|=|!=)(.*)$/.exec(text) ?? [];
  if (path === undefined) throw badRequest(`invalid field selector: ${text}`);
  const steps = path.split('.');
  return (object) => {
    const found = steps.reduce<unknown>((at, step) => (isRecord(at) ? at[step] : undefined), object);
    return ((typeof found === 'string' ? found : '') === value) === (comparison !== '!=');
  };
}
