#include "server/batch_policy.h"

namespace flashbias::server {

BatchDecision DecideBatch(const GroupSummary& group, const BackendState& backend,
                          const BatchLimits& limits, absl::Time now) {
  if (group.requests == 0 || backend.free_slots <= 0) return {};
  if (group.work >= limits.max_work || group.bytes >= limits.max_bytes ||
      group.requests >= limits.max_requests) {
    return {.cut = true, .reason = CutReason::kFull};
  }
  if (group.bytes >= limits.worthwhile_bytes)
    return {.cut = true, .reason = CutReason::kWorthwhile};
  const absl::Time due = group.oldest_enqueue + limits.max_queue_delay;
  if (now >= due) return {.cut = true, .reason = CutReason::kTimed};
  if (backend.free_slots >= backend.slots) return {.cut = true, .reason = CutReason::kIdle};
  return {.cut = false, .wait_until = due};
}

}  // namespace flashbias::server
