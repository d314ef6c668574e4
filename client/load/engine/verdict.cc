#include "client/load/engine/verdict.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_format.h"

namespace flashbias::client {
namespace {

// Without digits beyond a microsecond.
std::string Microseconds(absl::Duration duration) {
  return absl::FormatDuration(absl::Trunc(duration, absl::Microseconds(1)));
}

// How a window differs from the others; empty: within the limit.
std::string Unsteadiness(const char* what, const std::vector<double>& windows, double limit) {
  double mean = 0;
  for (const double window : windows) mean += window / static_cast<double>(windows.size());
  double worst = 0;
  size_t where = 0;
  for (size_t n = 0; n < windows.size(); ++n) {
    const double difference = mean > 0 ? std::abs(windows[n] - mean) / mean : 0;
    if (difference > worst) {
      worst = difference;
      where = n;
    }
  }
  if (worst <= limit) return "";
  return absl::StrFormat(
      "The %s of the run's third %d of 3 is %.0f %% from the mean; limit %.0f %%", what, where + 1,
      100 * worst, 100 * limit);
}

enum class Loop { kOpen, kClosed };

void JudgeSteadiness(const LoadResult& result, const ValidityLimits& limits, Loop loop,
                     Verdict* verdict) {
  std::string reason;
  if (result.succeeded == 0) {
    reason = "Whether the run was steady is unknown: no request succeeded";
  } else if (result.thirds.empty()) {
    reason = "Whether the run was steady is unknown: it was too short";
  } else {
    std::vector<double> rates, medians;
    for (const Third& third : result.thirds) {
      const double of = loop == Loop::kOpen ? static_cast<double>(third.offered)
                                            : absl::ToDoubleSeconds(third.length);
      rates.push_back(of > 0 ? static_cast<double>(third.succeeded) / of : 0);
      medians.push_back(absl::ToDoubleSeconds(third.p50));
    }
    reason = Unsteadiness(loop == Loop::kOpen ? "share of requests that succeeded" : "rate", rates,
                          limits.max_window_difference);
    if (reason.empty()) {
      reason = Unsteadiness("median latency", medians, limits.max_window_difference);
    }
  }
  verdict->steady = reason.empty();
  if (!reason.empty()) verdict->reasons.push_back(std::move(reason));
}

void JudgeLag(const LoadResult& result, const ValidityLimits& limits, Verdict* verdict) {
  const absl::Duration lag = result.lag.Percentile(99);
  const absl::Duration median = result.latency.Percentile(50);
  std::string limit;
  if (lag > limits.max_lag) {
    limit = Microseconds(limits.max_lag);
  } else if (result.succeeded > 0 && lag > limits.max_lag_share * median) {
    limit = absl::StrFormat("%g %% of the median latency, %s", 100 * limits.max_lag_share,
                            Microseconds(median));
  }
  if (limit.empty()) return;
  verdict->generator_kept_up = false;
  verdict->reasons.push_back(
      absl::StrFormat("The generator did not keep up: 1 %% of the requests were sent %s or more "
                      "after they were due; limit %s",
                      Microseconds(lag), limit));
}

void JudgeAchieved(const LoadResult& result, const ValidityLimits& limits, Verdict* verdict) {
  const Rates rates = RatesOf(result);
  std::string reason;
  if (result.offered == 0) {
    reason = "No request was measured";
  } else if (result.succeeded == 0) {
    reason = "No request succeeded";
  } else if (rates.achieved < limits.min_achieved_share * rates.offered) {
    reason = absl::StrFormat(
        "The server did not keep up: %.1f requests a second were answered of %.1f offered, "
        "%.1f %%; limit %g %%",
        rates.achieved, rates.offered, 100 * rates.achieved / rates.offered,
        100 * limits.min_achieved_share);
  }
  verdict->server_kept_up = reason.empty();
  if (!reason.empty()) verdict->reasons.push_back(std::move(reason));
}

}  // namespace

Rates RatesOf(const LoadResult& result) {
  const double seconds = absl::ToDoubleSeconds(result.offering);
  const int64_t answered = result.offered - result.overflowed;
  if (seconds <= 0 || answered == 0) return {.offered = seconds > 0 ? result.offered / seconds : 0};
  Rates rates;
  rates.offered = static_cast<double>(result.offered) / seconds;
  rates.achieved = static_cast<double>(result.answered_in_time) / seconds;
  rates.good =
      rates.achieved * static_cast<double>(result.succeeded) / static_cast<double>(answered);
  return rates;
}

Verdict JudgeOpenLoop(const LoadResult& result, const ValidityLimits& limits) {
  Verdict verdict;
  JudgeLag(result, limits, &verdict);
  JudgeAchieved(result, limits, &verdict);
  JudgeSteadiness(result, limits, Loop::kOpen, &verdict);
  return verdict;
}

Verdict JudgeClosedLoop(const LoadResult& result, const ValidityLimits& limits) {
  Verdict verdict;
  JudgeSteadiness(result, limits, Loop::kClosed, &verdict);
  return verdict;
}

}  // namespace flashbias::client
