// Whether this service may verify tokens, asked of the cluster, and what to mend where it may not.

import { unlessAborted } from './abort.ts';
import { type ApiServerConnection, ApiServerError } from './api-server.ts';
import { ClusterError } from './errors.ts';
import type { Log } from './logger.ts';
import type { SigningKeys } from './signing-keys.ts';
import { mayCreate, permissionHint, refuseApiServerAudience, type ReviewKind } from './token-review.ts';

const askMs = 5_000;

export interface Readiness {
  ready(signal?: AbortSignal): Promise<void>;
  close(): void;
}

/** `audiences` and `kinds` (what has to be created) may grow: those of routes that are declared later are looked at too. */
export function createReadiness(
  verification: 'review' | 'signature',
  apiServer: ApiServerConnection,
  signingKeys: SigningKeys,
  audiences: Iterable<string>,
  kinds: Iterable<ReviewKind>,
  log: Log,
): Readiness {
  let state: 'unknown' | 'warned' | 'ready' | 'closed' = 'unknown';

  async function ask(): Promise<void> {
    await refuseApiServerAudience(apiServer, audiences);
    const hasKeys = await signingKeys.load();
    if (verification === 'signature' && !hasKeys) {
      throw new ApiServerError(
        'no_signing_keys',
        "verification: 'signature' needs the cluster's signing keys, which cannot be loaded from /openid/v1/jwks",
      );
    }
    for (const kind of kinds) {
      if (await mayCreate(apiServer, kind, askMs)) continue;
      throw new ClusterError({}, permissionHint((await apiServer.ownClaims())?.identity, kind));
    }
  }

  return {
    async ready(signal) {
      // Once true it stays true until closed: an outage must not take every replica out of service.
      if (state === 'ready') return;
      try {
        await unlessAborted(ask(), signal);
        if (state === 'warned') log.info({ kind: 'not_ready' }, 'Tokens can be reviewed');
        if (state !== 'closed') state = 'ready';
      } catch (error) {
        const isTheirs = error instanceof ApiServerError;
        const failure = isTheirs ? new ClusterError({}, `Tokens cannot be reviewed (${error.reason}): ${error.message}`) : error;
        // A probe that ran out of time says nothing of the cluster.
        if (state === 'unknown' && failure instanceof Error && signal?.aborted !== true) {
          state = 'warned';
          log.warn('not_ready', {}, failure.message);
        }
        throw failure;
      }
    },
    close() {
      state = 'closed';
    },
  };
}
