#include "client/load/engine/arrivals.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <random>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace flashbias::client {
namespace {

constexpr double kMostRate = 10'000'000;

absl::Status CheckOptions(const ArrivalOptions& options) {
  if (!(options.rate > 0 && options.rate <= kMostRate)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--rate is ", options.rate, "; accepted: numbers above 0, up to 10000000"));
  }
  if (options.duration <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(absl::StrCat("--duration is ",
                                                   absl::FormatDuration(options.duration),
                                                   "; accepted: positive durations"));
  }
  if (options.max_requests < 0 || options.max_requests > kMostArrivals) {
    return absl::InvalidArgumentError(absl::StrCat("--requests is ", options.max_requests,
                                                   "; accepted: 0 (no limit) to ", kMostArrivals));
  }
  if (options.duration == absl::InfiniteDuration() && options.max_requests == 0) {
    return absl::InvalidArgumentError("--duration is inf; accepted only with --requests");
  }
  return absl::OkStatus();
}

absl::Status TooMany(const ArrivalOptions& options) {
  return absl::InvalidArgumentError(
      absl::StrCat("--rate and --duration are ", options.rate, " a second and ",
                   absl::FormatDuration(options.duration), ", which makes more than ",
                   kMostArrivals, " requests; accepted: up to so many"));
}

// Of a uniform number in [0, 1) made from the top bits, as std::exponential_distribution differs
// from one standard library to the next.
double ExponentialGap(double rate, std::mt19937_64* random) {
  const double uniform = static_cast<double>((*random)() >> 11) * 0x1p-53;
  return -std::log1p(-uniform) / rate;
}

}  // namespace

std::string Name(ArrivalKind kind) {
  return kind == ArrivalKind::kPoisson ? "poisson" : "constant";
}

absl::StatusOr<std::vector<absl::Duration>> DrawArrivals(const ArrivalOptions& options) {
  if (auto s = CheckOptions(options); !s.ok()) return s;
  const double expected = options.rate * absl::ToDoubleSeconds(options.duration);
  const int64_t most = options.max_requests > 0 ? options.max_requests : kMostArrivals;
  if (options.max_requests == 0 && expected > static_cast<double>(kMostArrivals)) {
    return TooMany(options);
  }

  std::vector<absl::Duration> arrivals;
  arrivals.reserve(static_cast<size_t>(std::min(expected + 1, static_cast<double>(most))));
  std::mt19937_64 random(options.seed);
  double seconds =
      options.kind == ArrivalKind::kPoisson ? ExponentialGap(options.rate, &random) : 0;
  while (absl::Seconds(seconds) < options.duration) {
    const auto count = static_cast<int64_t>(arrivals.size());
    if (count == most) {
      if (options.max_requests == 0) return TooMany(options);
      break;
    }
    arrivals.push_back(absl::Seconds(seconds));
    if (options.kind == ArrivalKind::kPoisson) {
      seconds += ExponentialGap(options.rate, &random);
    } else {
      // Not a sum, whose rounding would grow.
      seconds = static_cast<double>(count + 1) / options.rate;
    }
  }
  return arrivals;
}

}  // namespace flashbias::client
