// Where a service listens and how it ends: what the three services share.

/** Reads an address as Go writes it: `:8080` is every interface, `127.0.0.1:8080` and `[::1]:8080` are one. Throws a TypeError. */
export function parseListenAddr(text: string): { readonly host: string; readonly port: number } {
  const [, ipv6, name, digits] = /^(?:\[([\da-f:.]+)\]|([^:[\]]*)):(\d{1,5})$/i.exec(text) ?? [];
  const port = Number(digits);
  if (digits === undefined || port > 65_535) {
    throw new TypeError(`LISTEN_ADDR is written ':8080' or '127.0.0.1:8080', not ${JSON.stringify(text)}`);
  }
  return { host: ipv6 ?? name ?? '', port };
}

/** Calls `close` once, on SIGTERM (the kubelet ends the pod) or SIGINT (Ctrl-C). */
export function onShutdown(close: () => void): void {
  let isClosing = false;
  const end = (): void => {
    if (isClosing) return;
    isClosing = true;
    close();
  };
  process.on('SIGTERM', end).on('SIGINT', end);
}
