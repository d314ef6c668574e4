#include "server/health_check.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <fstream>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "wire/message_reader.h"

namespace flashbias::server {
namespace {

// HealthCheckResponse.ServingStatus of grpc.health.v1.
constexpr int kServing = 1;

std::string NameOfHealth(int health) {
  switch (health) {
    case 0:
      return "UNKNOWN";
    case 2:
      return "NOT_SERVING";
    case 3:
      return "SERVICE_UNKNOWN";
    default:
      return absl::StrCat("status ", health);
  }
}

absl::StatusOr<int> ReadPort(const std::string& path) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    absl::string_view text = line;
    int port = 0;
    if (absl::ConsumePrefix(&text, "grpc_port=") && absl::SimpleAtoi(text, &port) && port > 0 &&
        port <= 65535) {
      return port;
    }
  }
  return absl::UnavailableError(absl::StrCat("port_file '", path, "' has no line grpc_port=N"));
}

// -1: malformed.
int HealthIn(const grpc::ByteBuffer& message) {
  std::vector<grpc::Slice> slices;
  if (message.Length() > 0 && !message.Dump(&slices).ok()) return -1;
  int health = 0;  // what an absent field means
  wire::MessageReader reader(slices);
  while (reader.Next()) {
    if (reader.field() == 1) {
      reader.ReadEnum(&health);
    } else {
      reader.Skip();
    }
  }
  return reader.ok() ? health : -1;
}

std::string OneLine(const std::string& text) {
  return absl::StrReplaceAll(text, {{"\n", " "}, {"\r", " "}});
}

}  // namespace

absl::StatusOr<std::string> HealthTarget(const ProgramOptions& options) {
  const std::string& address = options.server.listen_address;
  const size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon);
  int port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port)) {
    return absl::FailedPreconditionError(
        absl::StrCat("listen_address is '", address, "', which names no port"));
  }
  if (!options.port_file.empty()) {
    const absl::StatusOr<int> chosen = ReadPort(options.port_file);
    if (!chosen.ok()) return chosen.status();
    port = *chosen;
  }
  if (port == 0) {
    if (!options.server.listen_unix.empty()) {
      return absl::StrCat("unix:", options.server.listen_unix);
    }
    return absl::FailedPreconditionError(
        absl::StrCat("listen_address is '", address,
                     "'; which port the server took is known with --port_file only"));
  }
  // gRPC listens on IPv4 too where it is given the wildcard of IPv6.
  if (host == "0.0.0.0" || host == "[::]" || host == "::") host = "127.0.0.1";
  return absl::StrCat(host, ":", port);
}

absl::Status CheckHealth(const std::string& target, absl::Duration timeout) {
  grpc::ChannelArguments arguments;
  // http_proxy in the environment is not for a server on this host.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  grpc::GenericStub stub(
      grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  // An empty HealthCheckRequest: service "", the whole server.
  const grpc::Slice nothing;
  const grpc::ByteBuffer request(&nothing, 1);
  grpc::ByteBuffer response;
  grpc::Status status;
  absl::Notification done;
  stub.UnaryCall(&context, "/grpc.health.v1.Health/Check", grpc::StubOptions(), &request, &response,
                 [&status, &done](grpc::Status result) {
                   status = std::move(result);
                   done.Notify();
                 });
  done.WaitForNotification();
  if (!status.ok()) {
    const auto code = static_cast<absl::StatusCode>(status.error_code());
    return absl::UnavailableError(absl::StrCat(target, ": ", absl::StatusCodeToString(code), ": ",
                                               OneLine(status.error_message())));
  }
  const int health = HealthIn(response);
  if (health == kServing) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat(target, ": ", health < 0 ? "a malformed answer" : NameOfHealth(health)));
}

}  // namespace flashbias::server
