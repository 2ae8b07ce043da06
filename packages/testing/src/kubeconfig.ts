// The only place that knows what a kubeconfig looks like.

/** Formats the kubeconfig of an administrator who has a token. */
export function formatKubeconfig(server: string, caFile: string, token: string): string {
  // JSON is YAML, and its strings need no further quoting.
  return `${JSON.stringify(
    {
      apiVersion: 'v1',
      kind: 'Config',
      'current-context': 'authority',
      clusters: [{ name: 'authority', cluster: { server, 'certificate-authority': caFile } }],
      users: [{ name: 'kubernetes-admin', user: { token } }],
      contexts: [{ name: 'authority', context: { cluster: 'authority', user: 'kubernetes-admin' } }],
    },
    undefined,
    2,
  )}\n`;
}
