#include "client/bearer_token.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace flashbias::client {
namespace {

bool IsTokenCharacter(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
         absl::string_view("-._~+/").find(c) != absl::string_view::npos;
}

bool IsLoopback4(absl::string_view host) {
  in_addr address;
  return inet_pton(AF_INET, std::string(host).c_str(), &address) == 1 &&
         ntohl(address.s_addr) >> 24 == 127;
}

bool IsLoopback6(absl::string_view host) {
  in6_addr address;
  return inet_pton(AF_INET6, std::string(host).c_str(), &address) == 1 &&
         IN6_IS_ADDR_LOOPBACK(&address);
}

// Takes ":PORT" off the end, where there is one. False: what follows the host is something else.
bool TakePort(absl::string_view* host) {
  const size_t colon = host->find_last_of(":]");
  if (colon == absl::string_view::npos || (*host)[colon] == ']') return true;
  const absl::string_view port = host->substr(colon + 1);
  host->remove_suffix(port.size() + 1);
  return !port.empty() && std::all_of(port.begin(), port.end(),
                                      [](unsigned char c) { return absl::ascii_isdigit(c); });
}

bool IsLoopbackAddress4(absl::string_view address) {
  return TakePort(&address) && IsLoopback4(address);
}

bool IsLoopbackHost(absl::string_view host) {
  if (!TakePort(&host)) return false;
  if (absl::ConsumePrefix(&host, "[")) {
    return absl::ConsumeSuffix(&host, "]") && IsLoopback6(host);
  }
  return absl::EqualsIgnoreCase(host, "localhost") || IsLoopback4(host);
}

}  // namespace

absl::Status ValidateBearerToken(absl::string_view token, absl::string_view name) {
  const size_t end = token.find_last_not_of('=') + 1;
  for (size_t n = 0; n < end; ++n) {
    if (!IsTokenCharacter(token[n])) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": byte ", n + 1, " of ", token.size(),
                       " belongs in no token; accepted: letters, digits, -._~+/ and then ="));
    }
  }
  if (end == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " holds no token; accepted: letters, digits, -._~+/ and then ="));
  }
  return absl::OkStatus();
}

bool IsTargetOnThisHost(absl::string_view target) {
  // An embedded NUL ends the name for some of those who read it.
  if (absl::StrContains(target, '\0')) return false;
  if (absl::StartsWith(target, "unix:") || absl::StartsWith(target, "unix-abstract:")) return true;
  if (absl::ConsumePrefix(&target, "ipv4:")) {
    const std::vector<absl::string_view> addresses = absl::StrSplit(target, ',');
    return std::all_of(addresses.begin(), addresses.end(), IsLoopbackAddress4);
  }
  // Another server than the system's may be asked for names only between the slashes.
  if (!absl::ConsumePrefix(&target, "dns:///")) absl::ConsumePrefix(&target, "dns:");
  return IsLoopbackHost(target);
}

absl::Status CheckTokenStaysPrivate(absl::string_view target, bool has_tls,
                                    absl::string_view token_name, absl::string_view tls_name) {
  if (has_tls || IsTargetOnThisHost(target)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(token_name, " is given without ", tls_name, " for the target '", target,
                   "', which would send it in plain text; accepted: ", tls_name,
                   ", or a target on this host: unix:PATH, localhost, 127.0.0.0/8, [::1]"));
}

}  // namespace flashbias::client
