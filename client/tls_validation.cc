#include "client/tls_validation.h"

#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace flashbias::client {
namespace {

constexpr size_t kMaxPemBytes = size_t{16} << 20;

template <auto Free>
struct FreedBy {
  template <typename T>
  void operator()(T* pointer) const {
    Free(pointer);
  }
};
using BioPtr = std::unique_ptr<BIO, FreedBy<BIO_free>>;
using CertificatePtr = std::unique_ptr<X509, FreedBy<X509_free>>;
using KeyPtr = std::unique_ptr<EVP_PKEY, FreedBy<EVP_PKEY_free>>;

// The thread's queue of OpenSSL errors is left as it was.
class ErrorsKept {
 public:
  ErrorsKept() { ERR_set_mark(); }
  ~ErrorsKept() { ERR_pop_to_mark(); }
  ErrorsKept(const ErrorsKept&) = delete;
  ErrorsKept& operator=(const ErrorsKept&) = delete;
};

std::string LastError() {
  const char* const reason = ERR_reason_error_string(ERR_peek_last_error());
  return reason == nullptr ? "unknown error" : reason;
}

absl::StatusOr<BioPtr> Open(const std::string& pem, const std::string& name) {
  if (pem.size() > kMaxPemBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " has ", pem.size(), " bytes; accepted: at most ", kMaxPemBytes));
  }
  BioPtr bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  if (bio == nullptr) return absl::ResourceExhaustedError(absl::StrCat(name, ": ", LastError()));
  return bio;
}

// Reads all certificates; gives the first.
absl::StatusOr<CertificatePtr> ReadCertificates(const std::string& pem, const std::string& name) {
  const ErrorsKept kept;
  const absl::StatusOr<BioPtr> bio = Open(pem, name);
  if (!bio.ok()) return bio.status();
  CertificatePtr first;
  for (int number = 1;; ++number) {
    CertificatePtr certificate(PEM_read_bio_X509(bio->get(), nullptr, nullptr, nullptr));
    if (certificate == nullptr) {
      const unsigned long error = ERR_peek_last_error();
      const bool at_end =
          ERR_GET_LIB(error) == ERR_LIB_PEM && ERR_GET_REASON(error) == PEM_R_NO_START_LINE;
      if (at_end && first != nullptr) return first;
      if (at_end) {
        return absl::InvalidArgumentError(absl::StrCat(
            name, " holds no certificate; accepted: PEM, -----BEGIN CERTIFICATE-----"));
      }
      return absl::InvalidArgumentError(absl::StrCat(
          name, ": certificate ", number, " cannot be read (", LastError(), "); accepted: PEM"));
    }
    if (first == nullptr) first = std::move(certificate);
  }
}

// OpenSSL's own callback would ask at the terminal.
int NoPassphrase(char* /*buffer*/, int /*size*/, int /*writes*/, void* asked) {
  *static_cast<bool*>(asked) = true;
  return -1;
}

absl::StatusOr<KeyPtr> ReadPrivateKey(const std::string& pem, const std::string& name) {
  const ErrorsKept kept;
  const absl::StatusOr<BioPtr> bio = Open(pem, name);
  if (!bio.ok()) return bio.status();
  bool passphrase_asked = false;
  KeyPtr key(PEM_read_bio_PrivateKey(bio->get(), nullptr, NoPassphrase, &passphrase_asked));
  if (key != nullptr) return key;
  if (passphrase_asked) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " has a passphrase; accepted: PEM of a private key without one"));
  }
  return absl::InvalidArgumentError(absl::StrCat(name, " holds no private key that can be read (",
                                                 LastError(),
                                                 "); accepted: PEM, -----BEGIN PRIVATE KEY-----"));
}

absl::Status CheckIdentity(const TlsOptions& tls, const TlsNames& names) {
  if (tls.certificate_chain.empty() && tls.private_key.empty()) return absl::OkStatus();
  if (tls.certificate_chain.empty() || tls.private_key.empty()) {
    const bool has_key = !tls.private_key.empty();
    return absl::InvalidArgumentError(absl::StrCat(
        has_key ? names.private_key : names.certificate_chain, " is given without ",
        has_key ? names.certificate_chain : names.private_key, "; accepted: both or neither"));
  }
  const absl::StatusOr<CertificatePtr> certificate =
      ReadCertificates(tls.certificate_chain, names.certificate_chain);
  if (!certificate.ok()) return certificate.status();
  const absl::StatusOr<KeyPtr> key = ReadPrivateKey(tls.private_key, names.private_key);
  if (!key.ok()) return key.status();
  const ErrorsKept kept;
  if (X509_check_private_key(certificate->get(), key->get()) != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(names.private_key, " is not the key of the first certificate of ",
                     names.certificate_chain, "; accepted: the key that belongs to it"));
  }
  return absl::OkStatus();
}

bool IsIpAddress(const std::string& text) {
  in6_addr address;
  return inet_pton(AF_INET, text.c_str(), &address) == 1 ||
         inet_pton(AF_INET6, text.c_str(), &address) == 1;
}

bool IsHostName(absl::string_view text) {
  constexpr size_t kMaxNameBytes = 253;
  constexpr size_t kMaxLabelBytes = 63;
  if (text.size() > kMaxNameBytes) return false;
  for (const absl::string_view label : absl::StrSplit(text, '.')) {
    if (label.empty() || label.size() > kMaxLabelBytes) return false;
    if (!std::all_of(label.begin(), label.end(), [](unsigned char c) {
          return absl::ascii_isalnum(c) || c == '-' || c == '_';
        })) {
      return false;
    }
  }
  return true;
}

}  // namespace

absl::Status ValidateTlsOptions(const TlsOptions& tls, const TlsNames& names) {
  if (!tls.root_certificates.empty()) {
    const auto roots = ReadCertificates(tls.root_certificates, names.root_certificates);
    if (!roots.ok()) return roots.status();
  }
  if (absl::Status status = CheckIdentity(tls, names); !status.ok()) return status;
  // A name with a NUL would be cut there.
  if (!tls.server_name.empty() && !IsHostName(tls.server_name) &&
      (absl::StrContains(tls.server_name, '\0') || !IsIpAddress(tls.server_name))) {
    return absl::InvalidArgumentError(
        absl::StrCat(names.server_name, " is '", absl::CEscape(tls.server_name),
                     "'; accepted: a host name or an IP address, without port"));
  }
  return absl::OkStatus();
}

}  // namespace flashbias::client
