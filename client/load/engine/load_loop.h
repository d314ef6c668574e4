// Runs a load: an open loop, which sends by a schedule whatever becomes of the answers, or a closed
// loop, in which each of a number of callers sends its next request when the last is answered.
//
// An open loop measures what callers who do not know of each other see; a closed loop measures
// capacity: its callers wait while the server stalls, so its latencies say nothing about them.
//
// Thread-safety: each function is for one thread and returns when every answer is there.
// Ownership: everything that they are given must outlive them.
#ifndef FLASHBIAS_CLIENT_LOAD_ENGINE_LOAD_LOOP_H_
#define FLASHBIAS_CLIENT_LOAD_ENGINE_LOAD_LOOP_H_

#include <atomic>
#include <cstdint>
#include <functional>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "client/load/engine/load_caller.h"
#include "client/load/engine/load_result.h"

namespace flashbias::client {

// Called about once a second on the calling thread; may be null.
using LoadObserver = std::function<void(const LoadProgress&)>;

struct OpenLoopOptions {
  // When requests are sent, from the start of the run; ascending. Request n is arrivals[n].
  absl::Span<const absl::Duration> arrivals = {};
  absl::Duration warmup = {};  // arrivals before this are sent and not measured
  int max_outstanding = 1024;  // at least 1; a request beyond it is not sent and counts as failed
  int send_threads = 2;        // at least 1
  // The last part of a wait in which a sender looks at the clock instead of sleeping: a core a
  // sender for a smaller lag. 0: it only sleeps.
  absl::Duration spin = {};
};

LoadResult RunOpenLoop(LoadCaller& caller, const OpenLoopOptions& options,
                       const std::atomic<bool>& stop, const LoadObserver& observer);

struct ClosedLoopOptions {
  int concurrency = 8;  // at least 1
  // The warm-up ends, and after it the run, at whichever comes first.
  absl::Duration warmup = {};
  int64_t warmup_requests = 0;  // 0: any number
  absl::Duration duration = absl::InfiniteDuration();
  int64_t requests = 0;  // 0: any number
  // A caller whose request failed waits so long, so that a server that is away is not flooded.
  absl::Duration pause_after_error = absl::Milliseconds(10);
};

LoadResult RunClosedLoop(LoadCaller& caller, const ClosedLoopOptions& options,
                         const std::atomic<bool>& stop, const LoadObserver& observer);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_ENGINE_LOAD_LOOP_H_
