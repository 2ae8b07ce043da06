// The only place that knows which values a real API server refuses in an object, and in which words (k8s.io/apimachinery, validation).
import { isDeepStrictEqual } from 'node:util';
import { isRecord, readList, readRecord, readText, readTexts } from './json.ts';
import type { JsonRecord } from './json.ts';
import type { FieldError } from './status.ts';

const rbac = 'rbac.authorization.k8s.io';
const alphanumeric = "and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc'";
const namePart = `must consist of alphanumeric characters, '-', '_' or '.', ${alphanumeric}, regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')`;
const labelValue =
  "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const subdomainRule =
  "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const labelRule =
  "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const configKeyRule =
  "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const subdomain = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/;
const label = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/;
const qualified = /^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$/;

/** Finds what is wrong with an object that is complete, defaults included. */
export function validateObject(kind: string, group: string, object: JsonRecord): readonly FieldError[] {
  const metadata = readRecord(object['metadata']);
  return [...validateMetadata(kind, group, metadata), ...(validators[kind]?.(object) ?? [])];
}

/** Finds what cannot be changed of an object, and is. */
export function validateChange(kind: string, before: JsonRecord, after: JsonRecord): readonly FieldError[] {
  const isSame = (field: string): boolean => isDeepStrictEqual(before[field] ?? {}, after[field] ?? {});
  if (kind === 'ClusterRoleBinding' || kind === 'RoleBinding') {
    const { apiGroup = '', kind: role = '', name = '' } = readRecord(after['roleRef']);
    // The names of Go's fields.
    return isSame('roleRef') ? [] : invalidValue('roleRef', { APIGroup: apiGroup, Kind: role, Name: name }, ['cannot change roleRef']);
  }
  if (kind !== 'ConfigMap' && kind !== 'Secret') return [];
  const message = 'Forbidden: field is immutable when `immutable` is set';
  const fixed =
    before['immutable'] !== true
      ? []
      : after['immutable'] === true
        ? ['data', 'binaryData'].filter((field) => !isSame(field))
        : ['immutable'];
  return [
    ...(kind === 'Secret' && !isSame('type') ? invalidValue('type', after['type'], ['field is immutable']) : []),
    ...fixed.map((field) => ({ field, message })),
  ];
}

/** What is wrong with the key of a label or an annotation. */
export function checkQualifiedName(key: string): readonly string[] {
  const [name = '', prefix, ...more] = key.split('/').toReversed();
  if (more.length > 0) return [`a valid label key ${namePart} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')`];
  const ofPrefix =
    prefix === undefined
      ? []
      : prefix === ''
        ? ['prefix part must be non-empty']
        : checkSubdomain(prefix).map((rule) => `prefix part ${rule}`);
  const empty = name === '' ? ['name part must be non-empty'] : [];
  const long = name.length > 63 ? ['name part must be no more than 63 bytes'] : [];
  return [...ofPrefix, ...empty, ...long, ...(qualified.test(name) ? [] : [`name part ${namePart}`])];
}

/** What is wrong with the value of a label. */
export function checkLabelValue(value: string): readonly string[] {
  return [...(value.length > 63 ? ['must be no more than 63 bytes'] : []), ...(value === '' || qualified.test(value) ? [] : [labelValue])];
}

function checkSubdomain(name: string): readonly string[] {
  return [...(name.length > 253 ? ['must be no more than 253 characters'] : []), ...(subdomain.test(name) ? [] : [subdomainRule])];
}

function checkLabel(name: string): readonly string[] {
  const rule = subdomain.test(name) ? 'must not contain dots' : labelRule;
  return [...(name.length > 63 ? ['must be no more than 63 characters'] : []), ...(label.test(name) ? [] : [rule])];
}

// What a name may be that stands in a path, and nowhere else.
function checkPathSegment(name: string): readonly string[] {
  if (name === '.' || name === '..') return [`may not be '${name}'`];
  return ['/', '%'].filter((one) => name.includes(one)).map((one) => `may not contain '${one}'`);
}

function invalidValue(field: string, value: unknown, rules: readonly string[]): readonly FieldError[] {
  return rules.map((rule) => ({ field, message: `Invalid value: ${JSON.stringify(value)}: ${rule}` }));
}

function required(field: string, detail = ''): FieldError {
  return { field, message: `Required value${detail === '' ? '' : `: ${detail}`}` };
}

function unsupported(field: string, value: string, supported: readonly string[]): readonly FieldError[] {
  if (supported.includes(value)) return [];
  const listed = supported.map((one) => JSON.stringify(one)).join(', ');
  return [{ field, message: `Unsupported value: ${JSON.stringify(value)}: supported values: ${listed}` }];
}

function validateMetadata(kind: string, group: string, metadata: JsonRecord): readonly FieldError[] {
  const check = group === rbac ? checkPathSegment : kind === 'Namespace' || kind === 'Service' ? checkLabel : checkSubdomain;
  const [name, prefix] = [readText(metadata['name']), readText(metadata['generateName'])];
  const labels = Object.entries(readRecord(metadata['labels'])).toSorted(([one], [other]) => (one < other ? -1 : 1));
  return [
    // A dash at its end is followed by what is generated.
    ...(prefix === '' ? [] : invalidValue('metadata.generateName', prefix, check(prefix.replace(/-$/, 'a')))),
    ...(name === '' ? [required('metadata.name', 'name or generateName is required')] : invalidValue('metadata.name', name, check(name))),
    ...labels.flatMap(([key, value]) => validateLabel('metadata.labels', key, value)),
    ...Object.keys(readRecord(metadata['annotations']))
      .toSorted()
      .flatMap((key) => invalidValue('metadata.annotations', key, checkQualifiedName(key.toLowerCase()))),
    ...readList(metadata['ownerReferences']).flatMap(validateOwner),
    ...readTexts(metadata['finalizers'] ?? []).flatMap(validateFinalizer),
  ];
}

function validateLabel(field: string, key: string, value: unknown): readonly FieldError[] {
  return [...invalidValue(field, key, checkQualifiedName(key)), ...invalidValue(field, value, checkLabelValue(readText(value)))];
}

function validateOwner({ apiVersion, kind, name, uid }: JsonRecord): readonly FieldError[] {
  const at = 'metadata.ownerReferences';
  return [
    ...(readText(apiVersion) === '' ? invalidValue(`${at}.apiVersion`, '', ['version must not be empty']) : []),
    ...Object.entries({ kind, name, uid }).flatMap(([field, value]) =>
      readText(value) === '' ? invalidValue(`${at}.${field}`, '', ['must not be empty']) : [],
    ),
  ];
}

function validateFinalizer(name: string, index: number): readonly FieldError[] {
  const field = `metadata.finalizers[${index}]`;
  const rules = checkQualifiedName(name);
  if (rules.length > 0) return invalidValue(field, name, rules);
  const isStandard = ['kubernetes', 'orphan', 'foregroundDeletion'].includes(name) || name.includes('/');
  return isStandard ? [] : invalidValue(field, name, ['name is neither a standard finalizer name nor is it fully qualified']);
}

const validators: Readonly<Record<string, (object: JsonRecord) => readonly FieldError[]>> = {
  ClusterRole: ({ rules, aggregationRule }) => [
    ...readList(rules).flatMap((rule, index) => validateRule(rule, `rules[${index}]`, false)),
    ...(isRecord(aggregationRule) && readList(aggregationRule['clusterRoleSelectors']).length === 0
      ? [required('aggregationRule.clusterRoleSelectors', 'at least one clusterRoleSelector required if aggregationRule is non-nil')]
      : []),
  ],
  Role: ({ rules }) => readList(rules).flatMap((rule, index) => validateRule(rule, `rules[${index}]`, true)),
  ClusterRoleBinding: (binding) => validateBinding(binding, ['ClusterRole']),
  RoleBinding: (binding) => validateBinding(binding, ['Role', 'ClusterRole']),
  ConfigMap: validateConfigMap,
  Secret: validateSecret,
  Pod: (pod) => validatePodSpec(readRecord(pod['spec']), 'spec'),
  Deployment: validateDeployment,
  Service: validateService,
};

function validateRule(rule: JsonRecord, at: string, isNamespaced: boolean): readonly FieldError[] {
  const count = (field: string): number => readTexts(rule[field] ?? []).length;
  const verbs = count('verbs') === 0 ? [required(`${at}.verbs`, 'verbs must contain at least one value')] : [];
  if (count('nonResourceURLs') > 0) {
    const refuse = (why: string): readonly FieldError[] => invalidValue(`${at}.nonResourceURLs`, rule['nonResourceURLs'], [why]);
    const isMixed = ['apiGroups', 'resources', 'resourceNames'].some((field) => count(field) > 0);
    return [
      ...verbs,
      ...(isNamespaced ? refuse('namespaced rules cannot apply to non-resource URLs') : []),
      ...(isMixed ? refuse('rules cannot apply to both regular resources and non-resource URLs') : []),
    ];
  }
  return [
    ...verbs,
    ...(count('apiGroups') === 0 ? [required(`${at}.apiGroups`, 'resource rules must supply at least one api group')] : []),
    ...(count('resources') === 0 ? [required(`${at}.resources`, 'resource rules must supply at least one resource')] : []),
  ];
}

function validateBinding({ roleRef, subjects, kind }: JsonRecord, roles: readonly string[]): readonly FieldError[] {
  const role = readRecord(roleRef);
  const name = readText(role['name']);
  return [
    ...unsupported('roleRef.apiGroup', readText(role['apiGroup']), [rbac]),
    ...unsupported('roleRef.kind', readText(role['kind']), roles),
    ...(name === '' ? [required('roleRef.name')] : invalidValue('roleRef.name', name, checkPathSegment(name))),
    ...readList(subjects).flatMap((subject, index) => validateSubject(subject, `subjects[${index}]`, kind === 'RoleBinding')),
  ];
}

function validateSubject(subject: JsonRecord, at: string, isNamespaced: boolean): readonly FieldError[] {
  const [kind, name, apiGroup] = [readText(subject['kind']), readText(subject['name']), readText(subject['apiGroup'])];
  const missing = name === '' ? [required(`${at}.name`)] : [];
  if (kind === 'ServiceAccount') {
    return [
      ...missing,
      ...(name === '' ? [] : invalidValue(`${at}.name`, name, checkSubdomain(name))),
      ...unsupported(`${at}.apiGroup`, apiGroup, ['']),
      ...(isNamespaced || readText(subject['namespace']) !== '' ? [] : [required(`${at}.namespace`)]),
    ];
  }
  if (kind === 'User' || kind === 'Group') return [...missing, ...unsupported(`${at}.apiGroup`, apiGroup, [rbac])];
  return [...missing, ...unsupported(`${at}.kind`, kind, ['ServiceAccount', 'User', 'Group'])];
}

function validateKey(key: string, at: string): readonly FieldError[] {
  const refuse = (rules: readonly string[]): readonly FieldError[] => invalidValue(`${at}[${key}]`, key, rules);
  return [
    ...(key.length > 253 ? refuse(['must be no more than 253 characters']) : []),
    ...(/^[-._a-zA-Z0-9]+$/.test(key) ? [] : refuse([configKeyRule])),
    ...(key === '.' || key === '..' ? refuse([`must not be '${key}'`]) : key.startsWith('..') ? refuse(["must not start with '..'"]) : []),
  ];
}

function validateConfigMap({ data, binaryData }: JsonRecord): readonly FieldError[] {
  const errors: FieldError[] = [];
  for (const key of Object.keys(readRecord(data)).toSorted()) {
    errors.push(...validateKey(key, 'data'));
    if (!Object.hasOwn(readRecord(binaryData), key)) continue;
    errors.push(...invalidValue(`data[${key}]`, key, ['duplicate of key present in binaryData']));
  }
  for (const key of Object.keys(readRecord(binaryData)).toSorted()) errors.push(...validateKey(key, 'binaryData'));
  return errors;
}

const secretKeys: Readonly<Record<string, readonly string[]>> = {
  'kubernetes.io/tls': ['tls.crt', 'tls.key'],
  'kubernetes.io/ssh-auth': ['ssh-privatekey'],
  'kubernetes.io/dockerconfigjson': ['.dockerconfigjson'],
  'kubernetes.io/dockercfg': ['.dockercfg'],
};

function validateSecret({ data, type, metadata }: JsonRecord): readonly FieldError[] {
  const kept = readRecord(data);
  const missing = (keys: readonly string[]): readonly FieldError[] =>
    keys.filter((key) => kept[key] === undefined).map((key) => required(`data[${key}]`));
  const account = 'kubernetes.io/service-account.name';
  const kind = readText(type);
  // Either of the two will do.
  const basic = missing(['username', 'password']);
  return [
    ...Object.keys(kept)
      .toSorted()
      .flatMap((key) => validateKey(key, 'data')),
    ...missing(secretKeys[kind] ?? []),
    ...(kind === 'kubernetes.io/basic-auth' && basic.length === 2 ? basic : []),
    ...(kind === 'kubernetes.io/service-account-token' && readText(readRecord(readRecord(metadata)['annotations'])[account]) === ''
      ? [required(`metadata.annotations[${account}]`)]
      : []),
  ];
}

function validateService({ spec }: JsonRecord): readonly FieldError[] {
  const { type, clusterIP, ports } = readRecord(spec);
  const list = readList(ports);
  const needsPorts = clusterIP !== 'None' && type !== 'ExternalName';
  const range = ['must be between 1 and 65535, inclusive'];
  const isPort = (value: unknown): boolean => typeof value !== 'number' || (value > 0 && value < 65_536);
  return [
    ...(list.length === 0 && needsPorts ? [required('spec.ports')] : []),
    ...list.flatMap((port, index) => {
      const at = `spec.ports[${index}]`;
      const unnamed = list.length > 1 && readText(port['name']) === '' ? [required(`${at}.name`)] : [];
      const wrong = ['port', 'targetPort'].filter((field) => !isPort(port[field]));
      return unnamed.concat(wrong.flatMap((field) => invalidValue(`${at}.${field}`, port[field], range)));
    }),
    ...unsupported('spec.type', readText(type), ['ClusterIP', 'ExternalName', 'LoadBalancer', 'NodePort']),
  ];
}

function validateDeployment({ spec }: JsonRecord): readonly FieldError[] {
  const { selector, template, replicas } = readRecord(spec);
  const { matchLabels, matchExpressions } = readRecord(selector);
  const wanted = Object.entries(readRecord(matchLabels));
  const own = readRecord(readRecord(template)['metadata'])['labels'];
  const isFitting = isRecord(selector) && wanted.every(([key, value]) => readRecord(own)[key] === value);
  const podSpec = readRecord(readRecord(template)['spec']);
  const isEmpty = wanted.length === 0 && readList(matchExpressions).length === 0;
  const negative = ['must be greater than or equal to 0'];
  return [
    ...(typeof replicas === 'number' && replicas < 0 ? invalidValue('spec.replicas', replicas, negative) : []),
    ...(isRecord(selector)
      ? isEmpty
        ? invalidValue('spec.selector', selector, ['empty selector is invalid for deployment'])
        : []
      : [required('spec.selector')]),
    ...(isFitting ? [] : invalidValue('spec.template.metadata.labels', own ?? null, ['`selector` does not match template `labels`'])),
    ...validatePodSpec(podSpec, 'spec.template.spec'),
    ...unsupported('spec.template.spec.restartPolicy', readText(podSpec['restartPolicy']) || 'Always', ['Always']),
  ];
}

function validatePodSpec(spec: JsonRecord, at: string): readonly FieldError[] {
  const volumes = readList(spec['volumes']);
  const containers = readList(spec['containers']);
  const inits = readList(spec['initContainers']);
  const names = containers.map(({ name }) => readText(name));
  const selected = Object.entries(readRecord(spec['nodeSelector']));
  const nodeName = readText(spec['nodeName']);
  const repeated = (list: readonly string[], name: string, index: number, field: string): readonly FieldError[] =>
    name !== '' && list.indexOf(name) < index ? [duplicate(field, name)] : [];
  const volumeErrors: FieldError[] = [];
  // One that is refused counts for a mount as one that is not there.
  const volumeNames: string[] = [];
  for (const [index, volume] of volumes.entries()) {
    const where = `${at}.volumes[${index}]`;
    const name = readText(volume['name']);
    const errors = [...(volumeNames.includes(name) ? [duplicate(`${where}.name`, name)] : []), ...validateVolume(volume, where)];
    volumeErrors.push(...errors);
    if (errors.length === 0) volumeNames.push(name);
  }
  return [
    ...volumeErrors,
    ...(containers.length === 0 ? [required(`${at}.containers`)] : []),
    ...containers.flatMap((container, index) => {
      const where = `${at}.containers[${index}]`;
      const own = validateContainer(container, where, volumeNames);
      return own.concat(repeated(names, readText(container['name']), index, `${where}.name`));
    }),
    ...inits.flatMap((container, index) => {
      const where = `${at}.initContainers[${index}]`;
      const name = readText(container['name']);
      return validateContainer(container, where, volumeNames).concat(names.includes(name) ? [duplicate(`${where}.name`, name)] : []);
    }),
    ...unsupported(`${at}.restartPolicy`, readText(spec['restartPolicy']) || 'Always', ['Always', 'OnFailure', 'Never']),
    ...unsupported(`${at}.dnsPolicy`, readText(spec['dnsPolicy']) || 'Default', [
      'ClusterFirstWithHostNet',
      'ClusterFirst',
      'Default',
      'None',
    ]),
    ...selected.flatMap(([key, value]) => validateLabel(`${at}.nodeSelector`, key, value)),
    ...(nodeName === '' ? [] : invalidValue(`${at}.nodeName`, nodeName, checkSubdomain(nodeName))),
  ];
}

function duplicate(field: string, value: unknown): FieldError {
  return { field, message: `Duplicate value: ${JSON.stringify(value)}` };
}

function validateContainer(container: JsonRecord, at: string, volumes: readonly string[]): readonly FieldError[] {
  const [name, image] = [readText(container['name']), readText(container['image'])];
  const printable = ["a valid environment variable name must consist only of printable ASCII characters other than '='"];
  return [
    ...(name === '' ? [required(`${at}.name`)] : invalidValue(`${at}.name`, name, checkLabel(name))),
    ...(image === '' ? [required(`${at}.image`)] : []),
    ...(image.trim() === image ? [] : invalidValue(`${at}.image`, image, ['must not have leading or trailing whitespace'])),
    ...unsupported(`${at}.imagePullPolicy`, readText(container['imagePullPolicy']) || 'Always', ['Always', 'IfNotPresent', 'Never']),
    ...readList(container['ports']).flatMap((port, index) => validatePort(port, `${at}.ports[${index}]`)),
    ...readList(container['env']).flatMap((variable, index) => {
      const key = readText(variable['name']);
      if (key === '') return [required(`${at}.env[${index}].name`)];
      return /^[ -<>-~]+$/.test(key) ? [] : invalidValue(`${at}.env[${index}].name`, key, printable);
    }),
    ...readList(container['volumeMounts']).flatMap((mount, index) => validateMount(mount, `${at}.volumeMounts[${index}]`, volumes)),
  ];
}

function validateMount(mount: JsonRecord, at: string, volumes: readonly string[]): readonly FieldError[] {
  const [name, path] = [readText(mount['name']), readText(mount['mountPath'])];
  return [
    ...(name === '' ? [required(`${at}.name`)] : []),
    ...(volumes.includes(name) ? [] : [{ field: `${at}.name`, message: `Not found: ${JSON.stringify(name)}` }]),
    ...(path === '' ? [required(`${at}.mountPath`)] : []),
  ];
}

function validatePort({ containerPort, protocol }: JsonRecord, at: string): readonly FieldError[] {
  const port = typeof containerPort === 'number' ? containerPort : 0;
  const range = ['must be between 1 and 65535, inclusive'];
  return [
    ...(port === 0 ? [required(`${at}.containerPort`)] : []),
    ...(port < 0 || port > 65_535 ? invalidValue(`${at}.containerPort`, port, range) : []),
    ...unsupported(`${at}.protocol`, readText(protocol) || 'TCP', ['SCTP', 'TCP', 'UDP']),
  ];
}

function validateVolume({ name, ...sources }: JsonRecord, at: string): readonly FieldError[] {
  const own = readText(name);
  const kinds = Object.keys(sources);
  const projected = readList(readRecord(sources['projected'])['sources']);
  const missing = (kind: string, field: string): readonly FieldError[] =>
    isRecord(sources[kind]) && readText(sources[kind][field]) === '' ? [required(`${at}.${kind}.${field}`)] : [];
  return [
    ...(own === '' ? [required(`${at}.name`)] : invalidValue(`${at}.name`, own, checkLabel(own))),
    ...kinds.slice(1).map((kind) => ({ field: `${at}.${kind}`, message: 'Forbidden: may not specify more than 1 volume type' })),
    ...(kinds.length > 1 ? [] : [...missing('secret', 'secretName'), ...missing('configMap', 'name')]),
    ...projected.flatMap(({ serviceAccountToken }, index) =>
      isRecord(serviceAccountToken) ? validateProjectedToken(serviceAccountToken, `${at}.projected`, index) : [],
    ),
  ];
}

function validateProjectedToken({ path, expirationSeconds }: JsonRecord, at: string, index: number): readonly FieldError[] {
  const seconds = typeof expirationSeconds === 'number' ? expirationSeconds : 3600;
  const field = `${at}.sources[${index}].serviceAccountToken.expirationSeconds`;
  const file = readText(path);
  const isAbove = file.split('/').includes('..');
  return [
    ...(seconds < 600 ? invalidValue(field, seconds, ['may not specify a duration less than 10 minutes']) : []),
    ...(seconds > 2 ** 32 ? invalidValue(field, seconds, ['may not specify a duration larger than 2^32 seconds']) : []),
    ...(file === '' ? [required(`${at}.path`)] : []),
    ...(file.startsWith('/') ? invalidValue(`${at}.path`, file, ['must be a relative path']) : []),
    ...(isAbove ? invalidValue(`${at}.path`, file, ["must not contain '..'"]) : []),
  ];
}
