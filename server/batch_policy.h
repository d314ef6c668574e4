// When to cut a batch from the queue: a pure function.
//
// - Nothing starts without a free slot.
// - An idle backend gets whatever waits, at once: holding work back for company only pays while the
//   device is busy anyway.
// - Otherwise a batch is cut when it is full (work, bytes or requests), when it is worthwhile:
// moving
//   so many bytes takes longer than company could save, or when its oldest request has waited
//   max_queue_delay.
#ifndef FLASHBIAS_SERVER_BATCH_POLICY_H_
#define FLASHBIAS_SERVER_BATCH_POLICY_H_

#include <cstdint>
#include <limits>

#include "absl/time/time.h"

namespace flashbias::server {

// A request that exceeds a budget by itself runs alone.
struct BatchLimits {
  int64_t max_work = 0;      // score elements; at least 1
  int64_t max_bytes = 0;     // requests and outputs; at least 1
  int64_t max_requests = 0;  // at least 1
  int64_t worthwhile_bytes = std::numeric_limits<int64_t>::max();  // at least 1
  absl::Duration max_queue_delay = absl::ZeroDuration();           // 0: cut whenever a slot is free
};

// The waiting requests that could share one batch.
struct GroupSummary {
  int64_t requests = 0;
  int64_t work = 0;
  int64_t bytes = 0;
  absl::Time oldest_enqueue = absl::InfiniteFuture();  // used only where requests > 0
};

struct BackendState {
  int slots = 0;
  int free_slots = 0;
};

enum class CutReason { kFull, kWorthwhile, kTimed, kIdle };

struct BatchDecision {
  bool cut = false;
  CutReason reason = CutReason::kIdle;  // where cut
  // Where not cut: when to decide again if nothing changes. InfiniteFuture: only a change (a
  // request arrives, a slot frees up) can lead to a cut.
  absl::Time wait_until = absl::InfiniteFuture();
};

BatchDecision DecideBatch(const GroupSummary& group, const BackendState& backend,
                          const BatchLimits& limits, absl::Time now);

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_BATCH_POLICY_H_
