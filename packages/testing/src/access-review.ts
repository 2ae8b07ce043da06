// The only place that answers questions about permissions: SubjectAccessReview and SelfSubjectAccessReview.
import { bodyType } from './decoding.ts';
import type { BodyType, Shape } from './decoding.ts';
import { authorize, isNode } from './nodes.ts';
import type { Objects } from './objects.ts';
import { describeMissing, joinErrors, listRules } from './rbac.ts';
import type { Attributes, Permission, UserInfo } from './rbac.ts';
import { isRecord, readList, readText, readTexts } from './json.ts';
import type { JsonRecord } from './json.ts';
import { badRequest, invalid } from './status.ts';
import type { FieldError } from './status.ts';
import { checkLabelValue, checkQualifiedName } from './validation.ts';

const attributes: Readonly<Record<string, Shape>> = {
  resourceAttributes: {
    struct: 'ResourceAttributes',
    pointer: true,
    fields: {
      namespace: 'string',
      verb: 'string',
      group: 'string',
      version: 'string',
      resource: 'string',
      subresource: 'string',
      name: 'string',
      fieldSelector: 'any',
      labelSelector: 'any',
    },
  },
  nonResourceAttributes: { struct: 'NonResourceAttributes', pointer: true, fields: { path: 'string', verb: 'string' } },
};

const status: Shape = {
  struct: 'SubjectAccessReviewStatus',
  fields: { allowed: 'bool', denied: 'bool', reason: 'string', evaluationError: 'string' },
};

const apiVersion = 'authorization.k8s.io/v1';

/** The body of a SubjectAccessReview. */
export const subjectAccessReviewType: BodyType = bodyType('SubjectAccessReview', apiVersion, {
  spec: {
    struct: 'SubjectAccessReviewSpec',
    fields: {
      ...attributes,
      user: 'string',
      groups: { list: 'string' },
      extra: { map: { list: 'string', name: 'v1.ExtraValue' } },
      uid: 'string',
    },
  },
  status,
});

/** The body of a LocalSubjectAccessReview: one that asks about a single namespace. */
export const localSubjectAccessReviewType: BodyType = {
  ...subjectAccessReviewType,
  kind: 'LocalSubjectAccessReview',
};

/** The body of a SelfSubjectAccessReview. */
export const selfSubjectAccessReviewType: BodyType = bodyType('SelfSubjectAccessReview', apiVersion, {
  spec: { struct: 'SelfSubjectAccessReviewSpec', fields: attributes },
  status,
});

/** The body of a SelfSubjectRulesReview. */
export const selfSubjectRulesReviewType: BodyType = bodyType('SelfSubjectRulesReview', apiVersion, {
  spec: { struct: 'SelfSubjectRulesReviewSpec', fields: { namespace: 'string' } },
  status: { struct: 'SubjectRulesReviewStatus', fields: { resourceRules: 'any', nonResourceRules: 'any', incomplete: 'bool' } },
});

/** What is asked, as it was sent. */
export interface AccessReviewSpec {
  readonly resourceAttributes?: {
    readonly verb?: string;
    readonly group?: string;
    readonly resource?: string;
    readonly subresource?: string;
    readonly name?: string;
    readonly namespace?: string;
    readonly fieldSelector?: unknown;
    readonly labelSelector?: unknown;
  };
  readonly nonResourceAttributes?: { readonly path?: string; readonly verb?: string };
  readonly user?: string;
  readonly groups?: readonly string[];
  readonly uid?: string;
  /** Of a SelfSubjectRulesReview. */
  readonly namespace?: string;
}

/** The metadata of a review as the server sees it, which says nothing but the namespace and what was sent. */
export interface SentMetadata {
  readonly namespace?: string;
  readonly managedFields?: readonly object[];
}

/** Answers for the subject that the spec names; `namespace` is that of the path, where there is one. Throws a {@link StatusError}. */
export function reviewAccess(objects: Objects, spec: AccessReviewSpec, metadata: SentMetadata, namespace?: string): Permission {
  const { user = '', groups = [], resourceAttributes, nonResourceAttributes } = spec;
  const errors = checkAttributes(spec);
  if (user === '' && groups.length === 0) {
    errors.push({ field: 'spec.user', message: 'Invalid value: "": at least one of user or group must be specified' });
  }
  errors.push(...checkMetadata(metadata, namespace !== undefined));
  if (namespace === undefined) return answer(objects, { username: user, groups }, spec, errors);
  const asked = resourceAttributes?.namespace ?? '';
  if (resourceAttributes !== undefined && asked !== namespace) {
    const message = `Invalid value: ${JSON.stringify(asked)}: must match metadata.namespace`;
    errors.push({ field: 'spec.resourceAttributes.namespace', message });
  }
  if (nonResourceAttributes !== undefined) {
    const message = `Invalid value: ${formatPath(nonResourceAttributes)}: disallowed on this kind of request`;
    errors.push({ field: 'spec.nonResourceAttributes', message });
  }
  return answer(objects, { username: user, groups }, spec, errors);
}

/** Answers for the caller itself. Throws a 422 {@link StatusError}. */
export function reviewOwnAccess(objects: Objects, user: UserInfo, spec: AccessReviewSpec, metadata: SentMetadata): Permission {
  return answer(objects, user, spec, [...checkAttributes(spec), ...checkMetadata(metadata, false)]);
}

/** Lists what the caller may do in a namespace. Throws a 400 {@link StatusError} without one. */
export function reviewRules(objects: Objects, user: UserInfo, { namespace = '' }: AccessReviewSpec): object {
  if (namespace === '') throw badRequest('no namespace on request');
  const { rules, missing } = listRules(objects, user, namespace);
  const errors = [...(isNode(user) ? ['node authorizer does not support user rule resolution'] : []), ...missing.map(describeMissing)];
  return {
    resourceRules: rules
      .filter(({ resources = [] }) => resources.length > 0)
      .map(({ verbs, apiGroups, resources, resourceNames }) =>
        resourceNames === undefined ? { verbs, apiGroups, resources } : { verbs, apiGroups, resources, resourceNames },
      ),
    nonResourceRules: rules
      .filter(({ nonResourceURLs = [] }) => nonResourceURLs.length > 0)
      .map(({ verbs, nonResourceURLs }) => ({ verbs, nonResourceURLs })),
    incomplete: isNode(user),
    ...(errors.length === 0 ? {} : { evaluationError: joinErrors(errors) }),
  };
}

// The names of Go's fields.
function formatPath({ path = '', verb = '' }: NonNullable<AccessReviewSpec['nonResourceAttributes']>): string {
  return JSON.stringify({ Path: path, Verb: verb });
}

function checkMetadata({ namespace, managedFields, ...others }: SentMetadata, isNamespaced: boolean): readonly FieldError[] {
  if (Object.keys(others).length === 0) return [];
  const shown = JSON.stringify({ ...others, ...(namespace === undefined ? {} : { namespace }), managedFields });
  return [{ field: 'metadata', message: `Invalid value: ${shown}: must be empty${isNamespaced ? ' except for namespace' : ''}` }];
}

function answer(objects: Objects, user: UserInfo, spec: AccessReviewSpec, errors: readonly FieldError[]): Permission {
  // The real server forgets the kind in this message.
  if (errors.length > 0) throw invalid('', 'authorization.k8s.io', '', errors);
  return authorize(objects, user, readAttributes(spec));
}

function checkAttributes({ resourceAttributes, nonResourceAttributes }: AccessReviewSpec): FieldError[] {
  if (resourceAttributes !== undefined && nonResourceAttributes !== undefined) {
    const message = `Invalid value: ${formatPath(nonResourceAttributes)}: cannot be specified in combination with resourceAttributes`;
    return [{ field: 'spec.nonResourceAttributes', message }];
  }
  if (nonResourceAttributes !== undefined) return [];
  if (resourceAttributes !== undefined) return checkSelectors(resourceAttributes);
  const message = 'Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified';
  return [{ field: 'spec.resourceAttributes', message }];
}

function checkSelectors({ fieldSelector, labelSelector }: JsonRecord): FieldError[] {
  return [...checkSelector('fieldSelector', fieldSelector), ...checkSelector('labelSelector', labelSelector)];
}

// An operator that is unknown is one of a newer client.
function checkSelector(name: string, selector: unknown): readonly FieldError[] {
  if (!isRecord(selector)) return [];
  const at = `spec.resourceAttributes.${name}`;
  const raw = readText(selector['rawSelector']);
  const requirements = readList(selector['requirements']);
  if (raw === '' && requirements.length === 0) {
    const message = `Required value: when ${at} is specified, requirements or rawSelector is required`;
    return [{ field: `${at}.requirements`, message }];
  }
  const both = `Invalid value: ${JSON.stringify(raw)}: may not specified at the same time as requirements`;
  return [
    ...(raw !== '' && requirements.length > 0 ? [{ field: `${at}.rawSelector`, message: both }] : []),
    ...requirements.flatMap((one, index) => checkRequirement(one, `${at}.requirements[${index}]`, name === 'labelSelector')),
  ];
}

function checkRequirement(requirement: JsonRecord, at: string, isLabel: boolean): readonly FieldError[] {
  const key = readText(requirement['key']);
  const operator = readText(requirement['operator']);
  const values = readTexts(requirement['values'] ?? []);
  const needsValues = ['In', 'NotIn'].includes(operator) && values.length === 0;
  const needsNone = ['Exists', 'DoesNotExist'].includes(operator) && values.length > 0;
  const ofValues = [
    ...(needsValues ? ["Required value: must be specified when `operator` is 'In' or 'NotIn'"] : []),
    ...(needsNone ? ["Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'"] : []),
  ].map((message) => ({ field: `${at}.values`, message }));
  const invalidValue = (field: string, value: string, why: string): FieldError => ({
    field,
    message: `Invalid value: ${JSON.stringify(value)}: ${why}`,
  });
  if (!isLabel) return [...(key === '' ? [{ field: `${at}.key`, message: 'Required value: must be specified' }] : []), ...ofValues];
  return [
    ...ofValues,
    ...checkQualifiedName(key).map((why) => invalidValue(`${at}.key`, key, why)),
    ...values.flatMap((value, index) => checkLabelValue(value).map((why) => invalidValue(`${at}.values[${index}]`, value, why))),
  ];
}

function readAttributes({ resourceAttributes = {}, nonResourceAttributes }: AccessReviewSpec): Attributes {
  if (nonResourceAttributes !== undefined) {
    return { verb: nonResourceAttributes.verb ?? '', path: nonResourceAttributes.path ?? '' };
  }
  const { verb = '', group = '', resource = '', subresource = '', name = '', namespace = '' } = resourceAttributes;
  return { verb, group, resource, subresource, name, namespace };
}
