// What can be known to be wrong with TLS options before a connection is made. gRPC itself drops
// what it cannot read, and its calls fail.
//
// Pure functions; thread-safe. No error shows any of a key.
#ifndef FLASHBIAS_CLIENT_TLS_VALIDATION_H_
#define FLASHBIAS_CLIENT_TLS_VALIDATION_H_

#include <string>

#include "absl/status/status.h"
#include "client/tls_options.h"

namespace flashbias::client {

// What errors call the fields.
struct TlsNames {
  std::string root_certificates = "tls.root_certificates";
  std::string certificate_chain = "tls.certificate_chain";
  std::string private_key = "tls.private_key";
  std::string server_name = "tls.server_name";
};

// INVALID_ARGUMENT: a text without certificate or key, one that cannot be read in whole, a key that
// has a passphrase or is another certificate's, a name that is none. Dates and signatures are the
// handshake's to check.
absl::Status ValidateTlsOptions(const TlsOptions& tls, const TlsNames& names = {});

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_TLS_VALIDATION_H_
