#include "client/flags/connection_flags.h"

#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "client/bearer_token.h"
#include "client/flags/command_line.h"
#include "client/flags/input_file.h"
#include "client/tls_validation.h"

ABSL_FLAG(bool, tls, false, "encrypt the connection and check the server's certificate");
ABSL_FLAG(std::string, tls_ca_file, "",
          "PEM file of the certificates that may sign the server's; empty: the system's");
ABSL_FLAG(
    std::string, tls_cert_file, "",
    "PEM file of the client's certificate and those that lead to a root, for servers that ask "
    "for it; empty: none");
ABSL_FLAG(std::string, tls_key_file, "", "PEM file of that certificate's private key");
ABSL_FLAG(std::string, tls_server_name, "",
          "host name or IP address that the server's certificate must carry; empty: the target's");
ABSL_FLAG(
    std::string, token_file, "",
    "file of a token that is sent with each call as 'authorization: Bearer'; needs --tls, or a "
    "target on this host; empty: none");
ABSL_FLAG(std::string, load_balancing, "pick_first",
          "over the addresses of the target: pick_first, or round_robin (calls in turn to each)");

namespace flashbias::client {
namespace {

// Leaves `text` as it is where `path` is empty.
absl::Status Read(const char* flag, const std::string& path, std::string* text) {
  if (path.empty()) return absl::OkStatus();
  absl::StatusOr<std::string> read = ReadSmallFile(path);
  if (!read.ok()) {
    return absl::Status(read.status().code(),
                        absl::StrCat(flag, ": ", absl::string_view(read.status().message())));
  }
  *text = *std::move(read);
  return absl::OkStatus();
}

absl::Status ReadTls(std::optional<TlsOptions>* tls) {
  const std::string ca_file = absl::GetFlag(FLAGS_tls_ca_file);
  const std::string cert_file = absl::GetFlag(FLAGS_tls_cert_file);
  const std::string key_file = absl::GetFlag(FLAGS_tls_key_file);
  const std::string server_name = absl::GetFlag(FLAGS_tls_server_name);
  if (!absl::GetFlag(FLAGS_tls)) {
    for (const auto& [flag, value] :
         {std::pair{"--tls_ca_file", &ca_file}, std::pair{"--tls_cert_file", &cert_file},
          std::pair{"--tls_key_file", &key_file}, std::pair{"--tls_server_name", &server_name}}) {
      if (!value->empty()) {
        return absl::InvalidArgumentError(absl::StrCat(flag, " is given without --tls"));
      }
    }
    tls->reset();
    return absl::OkStatus();
  }
  TlsOptions options{.server_name = server_name};
  if (cert_file.empty() != key_file.empty()) {
    return absl::InvalidArgumentError(
        "--tls_cert_file and --tls_key_file are given together or not at all");
  }
  for (const auto& [flag, path, text] :
       {std::tuple{"--tls_ca_file", &ca_file, &options.root_certificates},
        std::tuple{"--tls_cert_file", &cert_file, &options.certificate_chain},
        std::tuple{"--tls_key_file", &key_file, &options.private_key}}) {
    if (absl::Status status = Read(flag, *path, text); !status.ok()) return status;
  }
  absl::Status valid = ValidateTlsOptions(
      options, {.root_certificates = absl::StrCat("--tls_ca_file: ", ca_file),
                .certificate_chain = absl::StrCat("--tls_cert_file: ", cert_file),
                .private_key = absl::StrCat("--tls_key_file: ", key_file),
                .server_name = "--tls_server_name"});
  if (valid.ok()) *tls = std::move(options);
  return valid;
}

absl::Status ReadToken(const AttentionClient::Options& options, std::string* token) {
  token->clear();
  const std::string path = absl::GetFlag(FLAGS_token_file);
  if (path.empty()) return absl::OkStatus();
  // Before the file is read: the flag alone is wrong then.
  absl::Status may_go =
      CheckTokenStaysPrivate(options.target, options.tls.has_value(), "--token_file", "--tls");
  if (!may_go.ok()) return may_go;
  if (absl::Status status = Read("--token_file", path, token); !status.ok()) return status;
  absl::StripTrailingAsciiWhitespace(token);
  return ValidateBearerToken(*token, absl::StrCat("--token_file: ", path));
}

}  // namespace

absl::Status ConnectionOptionsFromFlags(AttentionClient::Options* options) {
  AttentionClient::Options changed = *options;
  const std::string load_balancing = absl::GetFlag(FLAGS_load_balancing);
  if (load_balancing == "pick_first") {
    changed.load_balancing = LoadBalancing::kPickFirst;
  } else if (load_balancing == "round_robin") {
    changed.load_balancing = LoadBalancing::kRoundRobin;
  } else {
    return absl::InvalidArgumentError(absl::StrCat("--load_balancing is '", load_balancing,
                                                   "'; accepted: pick_first, round_robin"));
  }
  if (absl::Status status = ReadTls(&changed.tls); !status.ok()) return status;
  if (absl::Status status = ReadToken(changed, &changed.bearer_token); !status.ok()) return status;
  *options = std::move(changed);
  return absl::OkStatus();
}

std::string ConnectionFlagsHelp() {
  return HelpText("\nThe connection:\n", "client/flags/connection_flags");
}

}  // namespace flashbias::client
