// How YAML is written so that kubectl reads what was meant.

import { Document, isNode, isSeq, visit } from 'yaml';

/** A document with a comment above it, a line each, and comments beside some of its values. */
export function writeDocument(
  value: object,
  above: readonly string[],
  beside: readonly (readonly [path: readonly (string | number)[], comment: string])[] = [],
): Document {
  // kubectl reads YAML 1.1, where a namespace called `no` or `1e3` is a name only in quotes.
  const document = new Document(value, { compat: 'yaml-1.1' });
  if (document.contents !== null) document.contents.commentBefore = above.map((line) => ` ${line}`).join('\n');
  for (const [path, comment] of beside) {
    const node = document.getIn(path, true);
    if (isNode(node)) node.comment = ` ${comment}`;
  }
  // Lists of words on one line.
  visit(document, {
    Seq(_key, seq) {
      seq.flow = seq.items.every((item) => isNode(item) && !isSeq(item) && 'value' in item);
    },
  });
  return document;
}

/** Several documents as one file. */
export function formatDocuments(documents: readonly Document[]): string {
  return documents.map((document) => document.toString({ lineWidth: 0, flowCollectionPadding: false })).join('---\n');
}
