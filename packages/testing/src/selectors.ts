// The only place that knows which objects a list or a watch asks for: label and field selectors, and what is wrong with one.
import { isRecord } from './json.ts';
import type { ClusterObject } from './objects.ts';
import { badRequest } from './status.ts';
import { checkLabelValue, checkQualifiedName } from './validation.ts';

type Labels = Readonly<Record<string, string>>;
type Requirement = (labels: Labels) => boolean;

/** Reads the selectors of a query for objects of this kind into one test. Throws a 400 {@link StatusError}. */
export function parseSelectors(kind: string, query: URLSearchParams): (object: ClusterObject) => boolean {
  const labels = parseLabels(query.get('labelSelector') ?? '');
  const fields = (query.get('fieldSelector') ?? '')
    .split(/(?<!\\),/)
    .filter((one) => one !== '')
    .map((one) => parseField(kind, one));
  return (object) => labels.every((one) => one(object.metadata.labels ?? {})) && fields.every((one) => one(object));
}

const operators = new Set(['=', '==', '!=', '>', '<', 'in', 'notin']);

// k8s.io/apimachinery, labels.Parse: its words, token by token.
function parseLabels(text: string): readonly Requirement[] {
  const tokens = [...text.matchAll(/\s*(==|!=|[=!(),<>]|[^\s=!(),<>]+)/g)].map(([, token = '']) => token);
  const isIdentifier = (token: string): boolean => token !== '' && !/^(==|!=|[=!(),<>])$/.test(token);
  let at = 0;
  const look = (): string => tokens[at] ?? '';
  const take = (): string => {
    at += 1;
    return tokens[at - 1] ?? '';
  };
  const refuse = (what: string): Error => badRequest(`unable to parse requirement: ${what}`);

  function parseRequirement(): Requirement {
    const isNegated = look() === '!';
    if (isNegated) take();
    const key = take();
    if (!isIdentifier(key)) throw refuse(`found '${key}', expected: identifier`);
    const [wrong] = checkQualifiedName(key);
    if (wrong !== undefined) throw refuse(`<nil>: Invalid value: ${JSON.stringify(key)}: ${wrong}`);
    if (look() === '' || look() === ',' || isNegated) return (labels) => Object.hasOwn(labels, key) !== isNegated;
    const operator = take();
    if (!operators.has(operator)) throw refuse(`found '${operator}', expected: in, notin, =, ==, !=, gt, lt`);
    const values = operator === 'in' || operator === 'notin' ? parseValues() : [parseValue()];
    if (operator === '>' || operator === '<') return parseComparison(key, operator, values[0] ?? '');
    for (const [index, value] of values.entries()) {
      const [bad] = checkLabelValue(value);
      if (bad !== undefined) throw refuse(`values[${index}][${key}]: Invalid value: ${JSON.stringify(value)}: ${bad}`);
    }
    const isWanted = operator !== '!=' && operator !== 'notin';
    return (labels) => (Object.hasOwn(labels, key) && values.includes(labels[key] ?? '')) === isWanted;
  }

  function parseComparison(key: string, operator: string, value: string): Requirement {
    const whole = /^[+-]?\d+$/;
    if (!whole.test(value)) {
      throw refuse(`values[0]: Invalid value: ${JSON.stringify(value)}: for 'Gt', 'Lt' operators, the value must be an integer`);
    }
    const sign = operator === '>' ? 1 : -1;
    return (labels) => whole.test(labels[key] ?? '') && (Number(labels[key]) - Number(value)) * sign > 0;
  }

  function parseValue(): string {
    if (look() === '' || look() === ',') return '';
    const value = take();
    if (!isIdentifier(value)) throw refuse(`found '${value}', expected: identifier`);
    return value;
  }

  function parseValues(): readonly string[] {
    const open = take();
    if (open !== '(') throw refuse(`found '${open}' expected: '('`);
    const values: string[] = [];
    while (look() !== ')') {
      values.push(look() === ',' ? '' : parseValue());
      if (look() === ',') take();
      else if (look() !== ')') throw refuse(`found '${look()}', expected: ',' or ')'`);
    }
    take();
    return values;
  }

  const requirements: Requirement[] = [];
  while (look() !== '') {
    if (!isIdentifier(look()) && look() !== '!') throw badRequest(`found '${look()}', expected: !, identifier, or 'end of string'`);
    requirements.push(parseRequirement());
    const next = take();
    if (next === '') break;
    if (next !== ',') throw badRequest(`found '${next}', expected: ',' or 'end of string'`);
    if (!isIdentifier(look()) && look() !== '!') throw badRequest(`found '${look()}', expected: identifier after ','`);
  }
  return requirements;
}

const named = ['metadata.name', 'metadata.namespace'];
const involved = ['apiVersion', 'fieldPath', 'kind', 'name', 'namespace', 'resourceVersion', 'uid'].map(
  (field) => `involvedObject.${field}`,
);
const ofPodSpec = ['hostNetwork', 'nodeName', 'restartPolicy', 'schedulerName', 'serviceAccountName'].map((field) => `spec.${field}`);
const ofPodStatus = ['nominatedNodeName', 'phase', 'podIP', 'podIPs'].map((field) => `status.${field}`);
// Other kinds are known by their names only.
const fieldsOf: Readonly<Record<string, readonly string[]>> = {
  Event: [...named, ...involved, 'reason', 'reportingComponent', 'source', 'type'],
  Namespace: ['metadata.name', 'status.phase'],
  Node: ['metadata.name', 'spec.unschedulable'],
  Pod: [...named, ...ofPodSpec, ...ofPodStatus],
  Secret: [...named, 'type'],
  Service: [...named, 'spec.clusterIP', 'spec.type'],
};

function parseField(kind: string, text: string): (object: ClusterObject) => boolean {
  const [, path = '', comparison, value] = /^([^!=]*)(==|=|!=)(.*)$/.exec(text) ?? [];
  if (comparison === undefined) throw badRequest(`invalid selector: '${text}'; can't understand '${text}'`);
  const known = fieldsOf[kind];
  if (known === undefined && !named.includes(path)) {
    throw badRequest(`"${path}" is not a known field selector: only "metadata.name", "metadata.namespace"`);
  }
  if (known !== undefined && !known.includes(path)) throw badRequest(`field label not supported: ${path}`);
  const steps = path.split('.');
  const wanted = value?.replaceAll(/\\(.)/g, '$1');
  return (object) => {
    const found = steps.reduce<unknown>((at, step) => (isRecord(at) ? at[step] : undefined), object);
    return (textOf(found) === wanted) === (comparison !== '!=');
  };
}

function textOf(found: unknown): string {
  if (typeof found === 'boolean') return String(found);
  return typeof found === 'string' ? found : '';
}
