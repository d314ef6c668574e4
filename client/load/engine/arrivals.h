// When the requests of an open loop are sent, drawn before the run.
//
// Pure functions of their arguments: a seed gives the same arrivals on every machine.
#ifndef FLASHBIAS_CLIENT_LOAD_ENGINE_ARRIVALS_H_
#define FLASHBIAS_CLIENT_LOAD_ENGINE_ARRIVALS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace flashbias::client {

// Of one schedule.
inline constexpr int64_t kMostArrivals = 50'000'000;

enum class ArrivalKind {
  kPoisson,   // independent callers: exponential gaps
  kConstant,  // equal gaps
};
std::string Name(ArrivalKind kind);  // "poisson", "constant"

struct ArrivalOptions {
  ArrivalKind kind = ArrivalKind::kPoisson;
  double rate = 0;               // requests a second; above 0, up to 10 million
  absl::Duration duration = {};  // positive; infinite only with max_requests
  int64_t max_requests = 0;      // 0: any number
  uint64_t seed = 1;
};

// Ascending, all below `duration`. The first is at 0 (kConstant) or after the first gap (kPoisson),
// as the start is no arrival. INVALID_ARGUMENT: more than kMostArrivals, or an option is
// out of its range; the message names the flag.
absl::StatusOr<std::vector<absl::Duration>> DrawArrivals(const ArrivalOptions& options);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_ENGINE_ARRIVALS_H_
