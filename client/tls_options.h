// How a client encrypts its connections and what it checks and shows meanwhile.
//
// Plain value, as thread-safe as an int. Certificates and keys are PEM texts, not names of files.
#ifndef FLASHBIAS_CLIENT_TLS_OPTIONS_H_
#define FLASHBIAS_CLIENT_TLS_OPTIONS_H_

#include <string>

namespace flashbias::client {

struct TlsOptions {
  // Certificates of whoever may sign the server's. Empty: those that the system trusts.
  std::string root_certificates = {};
  // For servers that ask who calls (mTLS): the client's certificate, then those that lead to a
  // root, and the private key of the first, without passphrase. Both or neither.
  std::string certificate_chain = {};
  std::string private_key = {};
  // Host name or IP address that the server's certificate must carry. Empty: the target's
  // host, localhost for "unix:PATH"; not to be empty where the target lists several addresses.
  std::string server_name = {};
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_TLS_OPTIONS_H_
