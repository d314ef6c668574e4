// The token that calls carry, and where it may go unencrypted.
//
// Pure functions; thread-safe. No error shows any of the token.
#ifndef FLASHBIAS_CLIENT_BEARER_TOKEN_H_
#define FLASHBIAS_CLIENT_BEARER_TOKEN_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace flashbias::client {

// INVALID_ARGUMENT: it is not what RFC 6750 calls a b64token. `name` is what the error calls it.
absl::Status ValidateBearerToken(absl::string_view token, absl::string_view name);

// Whether what is sent to `target` stays on this host, whatever a resolver says of other names: a
// unix socket, localhost, 127.0.0.0/8, [::1]. False where in doubt.
bool IsTargetOnThisHost(absl::string_view target);

// INVALID_ARGUMENT: a token would leave the host in plain text. `token_name` and `tls_name` are
// what the error calls the token and what would encrypt it.
absl::Status CheckTokenStaysPrivate(absl::string_view target, bool has_tls,
                                    absl::string_view token_name, absl::string_view tls_name);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_BEARER_TOKEN_H_
