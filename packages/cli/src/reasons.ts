// What an operator does about each reason that a guard's decision can have.

const advice: Readonly<Record<string, string>> = {
  no_token:
    'No token came. Call through createServiceClient with a target for this origin; if the caller does, a proxy on the way takes the header off',
  token_in_other_header:
    'The caller sends its token in the header that this guard does not read. Give its target and the guard the same "header"',
  other_scheme: 'The Authorization header holds something else than a Bearer token. Let the client write it, with header: "authorization"',
  header_repeated: 'The header arrives more than once. Look for a proxy, or for code of the caller, that adds it to what the client wrote',
  not_a_jwt: 'What is sent is no ServiceAccount token, or has something before or after it. Send what is in the token file, trimmed',
  algorithm: "No API server signs so. The token is somebody else's: look at where the caller gets it",
  claims_missing: 'It has no expiry or no audience. A token from a Secret is like that: mount a projected serviceAccountToken instead',
  not_a_service_account: "It is no ServiceAccount's. Mount a projected serviceAccountToken, and send that",
  other_audience:
    "It is for another service. Set this guard's audience in the caller's volume (k8s-sa-auth manifests prints it), or name the right token file",
  expired:
    "It has ended. k8s-sa-auth doctor, in the caller's pod, tells why its file is not rotated; or the caller keeps a token that it read once",
  forged: "The cluster's key did not sign these bytes. The token was altered, cut, or made by another cluster that names the same key",
  unknown_key:
    'No key of this cluster has its key id. Is the token of another cluster, or older than the last rotation of the signing key?',
  other_issuer: 'Another cluster issued it. Caller and callee must be in one cluster',
  not_valid_yet: 'It begins in the future, or does not say when. Set the clock of this node',
  long_lived: `It lives longer than a day, too long for verification: "signature". Set expirationSeconds: 600 in the caller's volume`,
  review_refused:
    'The API server does not accept it: the pod or the ServiceAccount may be gone, or the token is of another cluster. Its own words tell which',
  review_for_other_audiences: "The API server accepts it for others than this guard. Set this guard's audience in the caller's volume",
  not_bound_to_a_pod:
    'It was made without a pod, as kubectl create token does. Send a projected token, or set requirePod: false if such callers are meant',
  not_in_allow: 'Its owner is not in allow. Add the ServiceAccount there if it may call',
  not_authorized:
    'No role grants it what authorize asks for. Bind one to the ServiceAccount if it may; the detail has the words of the cluster, where it gave any',
  nothing_to_authorize: 'A function in authorize gave no text for this request. Look at the route and at what was asked for',
  connection_failed: "The API server cannot be reached. k8s-sa-auth doctor, in the callee's pod, tells more; is there a NetworkPolicy?",
  connection_reset: 'The API server, or something before it, ended the connection. Try again; if it stays so, look at what stands between',
  timeout: 'The API server is too slow, or something between drops what is sent. Look at its load, and at NetworkPolicies',
  certificate_not_trusted:
    'The CA file is not that of this API server. In a pod: look at the ConfigMap kube-root-ca.crt; else at the kubeconfig',
  answer_truncated: 'The answer was cut off on its way. Look for a proxy between the callee and the API server',
  answer_too_large: 'What answers is no API server, or one with a broken webhook. Look at what stands at its address',
  not_a_token_review: 'What answers is no API server. Look at what stands at its address',
  not_a_subject_access_review: 'What answers is no API server. Look at what stands at its address',
  review_of_another_token: 'Something between the callee and the API server mixes up answers. Look for a proxy or a cache',
  review_of_another_service_account: 'The API server knows the token by another name than it says: an authentication webhook may rename it',
  review_timed_out_inside: 'The API server could not look the pod up in time. Look at etcd and at its load',
  own_credentials_unreadable:
    "The callee's own token or CA cannot be read. Is automountServiceAccountToken off? k8s-sa-auth doctor tells more",
  own_credentials_refused:
    "The API server refuses the callee's own credential. It has ended, or is of another cluster: k8s-sa-auth doctor tells more",
  own_permission_missing:
    'The callee may not create the review. k8s-sa-auth doctor (with --authorize, if its guard has authorize), in its pod, prints the YAML that permits it',
  too_many_requests: 'The API server limits requests. Look at its priority levels, or raise cacheTtlMs',
  api_server_error: 'The API server fails by itself. Look at its log, and at its webhooks',
  unexpected_status: 'What answers may be no API server. Look at what stands at its address',
  breaker_open:
    'The guard has stopped asking after five failures in a row, and tries again by itself. What failed stands in the detail and in the log; k8s-sa-auth doctor tells more',
  no_signing_keys:
    'The signing keys cannot be read, and verification: "signature" needs them. k8s-sa-auth doctor --verification signature tells more',
  issuer_unknown:
    'The API server does not say its issuer at /.well-known/openid-configuration. Bind system:service-account-issuer-discovery',
  unknown_keys:
    'It names a key that the guard does not know, and the guard may not ask about more of these yet. If it lasts, somebody sends made-up tokens; or the key set cannot be read after a rotation',
  queue_full: 'More callers wait than the guard lets. The API server is too slow for them: look at its load',
  queue_of_caller_full:
    'This one ServiceAccount has 100 requests waiting for reviews, or 500 with tokens that were accepted lately. Look at what it does: a new token each time?',
  queue_timeout: 'There was no turn within 5 s. The API server is too slow for so many callers: look at its load',
  closed: 'The guard was closed. The process is ending',
  observe_timeout: 'No decision within 250 ms, so the observing guard went on. Look at the load of the API server',
  guard_failed: 'A predicate in allow threw, or the options are wrong. The detail has its words',
};

/** What to do, in one or two sentences; undefined for a reason of a later version. */
export function adviseOn(reason: string): string | undefined {
  return Object.hasOwn(advice, reason) ? advice[reason] : undefined;
}
