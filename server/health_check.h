// Asks a running server whether it serves, as container runtimes and init systems do.
//
// Thread-safety: free functions, any thread.
#ifndef FLASHBIAS_SERVER_HEALTH_CHECK_H_
#define FLASHBIAS_SERVER_HEALTH_CHECK_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/flags.h"

namespace flashbias::server {

// Where a server that was started with these options is reached from its own host, as a gRPC
// target: its TCP address, a wildcard host being loopback, with the port of port_file where one is
// named. Where the port is 0 and there is no port_file: the unix socket. FAILED_PRECONDITION where
// the options do not say; UNAVAILABLE where the port file is not there or names no port.
absl::StatusOr<std::string> HealthTarget(const ProgramOptions& options);

// OK where grpc.health.v1 says SERVING of the whole server there. UNAVAILABLE, in one line, with
// what came instead: another health, the code and message of the call.
absl::Status CheckHealth(const std::string& target, absl::Duration timeout);

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_HEALTH_CHECK_H_
