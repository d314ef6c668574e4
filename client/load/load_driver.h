// Drives loads and says what came of them: one run, or a sweep of rates.
//
// Thread-safety: none. Ownership: everything that it is given must outlive it.
#ifndef FLASHBIAS_CLIENT_LOAD_LOAD_DRIVER_H_
#define FLASHBIAS_CLIENT_LOAD_LOAD_DRIVER_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/load/engine/arrivals.h"
#include "client/load/engine/load_caller.h"
#include "client/load/engine/load_loop.h"
#include "client/load/engine/rate_search.h"
#include "client/load/engine/verdict.h"
#include "client/load/report/load_report.h"
#include "client/load/requests/request_mix.h"

namespace flashbias::client {

// How requests are sent.
struct LoadShape {
  LoopKind loop = LoopKind::kClosed;
  // Of an open loop.
  bool trace_times = false;  // by the times of the trace, instead of a rate
  double trace_speed = 1;    // above 0; 2: twice as fast as recorded
  ArrivalKind arrivals = ArrivalKind::kPoisson;
  double rate = 0;  // requests a second
  int max_outstanding = 256;
  int send_threads = 2;
  absl::Duration spin = {};
  // Of a closed loop.
  int concurrency = 8;
  int64_t warmup_requests = 0;  // 0: any number

  absl::Duration warmup = {};
  absl::Duration duration = absl::InfiniteDuration();
  int64_t requests = 0;  // after the warm-up; 0: any number
  uint64_t seed = 1;
};

struct SweepOptions {
  absl::Duration slo = {};          // of the p99
  RateSearch::Options search = {};  // first_rate 0: from what one caller gets
};

class LoadDriver {
 public:
  struct Options {
    ValidityLimits limits = {};
    std::vector<std::string> metrics = {};  // of servers, host:port; asked before and after a run
    // Makes what watches a run; "warm-up" and "load" are told apart by the progress. May be null.
    LoadObserver observer = nullptr;
    // Called with a line for people when a step of a sweep begins or has ended. May be null.
    std::function<void(const std::string&)> narrate = nullptr;
  };

  LoadDriver(LoadCaller* caller, const RequestMix* mix, Verifier* verifier, Options options,
             const std::atomic<bool>* stop);

  // INVALID_ARGUMENT: the schedule is too long. UNAVAILABLE: a server's metrics.
  absl::StatusOr<RunReport> Run(const LoadShape& shape);

  // Each step is a Run of `shape` with another rate, driven again up to twice while its sends were
  // late, which is no fault of the server, and no answer was wrong; the last one drives twice the
  // best. Ends early, with what it has, when it is stopped. Errors as Run; UNAVAILABLE also when
  // not one request succeeded before the first step.
  absl::StatusOr<SweepReport> Sweep(const LoadShape& shape, const SweepOptions& options);

 private:
  // `arrivals`: of an open loop.
  LoadResult RunLoop(const LoadShape& shape, const std::vector<absl::Duration>& arrivals) const;
  absl::StatusOr<RunReport> RunStep(const LoadShape& shape);
  absl::StatusOr<double> FirstRate(const LoadShape& shape);
  void Narrate(const std::string& line) const;

  LoadCaller* const caller_;
  const RequestMix* const mix_;
  Verifier* const verifier_;  // may be null
  const Options options_;
  const std::atomic<bool>* const stop_;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_LOAD_DRIVER_H_
