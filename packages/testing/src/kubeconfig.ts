// The only place that knows what a kubeconfig looks like.

/** Formats the kubeconfig of a user who has these credentials, such as a `token`. */
export function formatKubeconfig(server: string, caFile: string, user: string, credentials: Readonly<Record<string, string>>): string {
  // JSON is YAML, and its strings need no further quoting.
  return `${JSON.stringify(
    {
      apiVersion: 'v1',
      kind: 'Config',
      'current-context': 'authority',
      clusters: [{ name: 'authority', cluster: { server, 'certificate-authority': caFile } }],
      users: [{ name: user, user: credentials }],
      contexts: [{ name: 'authority', context: { cluster: 'authority', user } }],
    },
    undefined,
    2,
  )}\n`;
}
