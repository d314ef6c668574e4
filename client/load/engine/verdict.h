// Whether a run's figures may be believed.
//
// Pure functions; thread-safe.
#ifndef FLASHBIAS_CLIENT_LOAD_ENGINE_VERDICT_H_
#define FLASHBIAS_CLIENT_LOAD_ENGINE_VERDICT_H_

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "client/load/engine/load_result.h"

namespace flashbias::client {

struct ValidityLimits {
  // The 99th percentile of the lag may exceed neither of these.
  absl::Duration max_lag = absl::Milliseconds(1);
  double max_lag_share = 0.05;         // of the latency's p50
  double min_achieved_share = 0.98;    // of the offered rate
  double max_window_difference = 0.1;  // of a window from the mean of the three
};

// Requests a second, all over the time in which requests were offered (LoadResult::offering), so
// that the drain after an open loop's schedule neither thins nor adds to them.
struct Rates {
  double offered = 0;
  double achieved = 0;  // answered in time (LoadResult::answered_in_time), whatever the status
  double good = 0;      // the share of those that all answers with OK are of all answers
};
Rates RatesOf(const LoadResult& result);

struct Verdict {
  bool generator_kept_up = true;  // the lag; always in a closed loop
  // The achieved rate, and that a request succeeded; always in a closed loop.
  bool server_kept_up = true;
  // In thirds of the run, rate and median latency of what succeeded were within the limit. The rate
  // of an open loop is taken as the share of what was offered in that third: how many arrivals
  // chance put there is not the server's doing. False where it cannot be told.
  bool steady = false;
  std::vector<std::string> reasons = {};  // one sentence for each of the above that is false

  bool valid() const { return generator_kept_up && server_kept_up; }
};

Verdict JudgeOpenLoop(const LoadResult& result, const ValidityLimits& limits);
Verdict JudgeClosedLoop(const LoadResult& result, const ValidityLimits& limits);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_ENGINE_VERDICT_H_
