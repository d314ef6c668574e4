// When a failed attempt is made again, and after how long.
//
// Pure functions over plain values; thread-safe.
#ifndef FLASHBIAS_CLIENT_RETRY_POLICY_H_
#define FLASHBIAS_CLIENT_RETRY_POLICY_H_

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace flashbias::client {

// Only UNAVAILABLE is tried again: nothing was computed, and the same or another server may answer.
// CANCELLED that did not come from the caller counts as that.
struct RetryPolicy {
  int max_attempts = 4;  // the first included; 1: no retries. Accepted: 1 to 100
  absl::Duration initial_backoff = absl::Milliseconds(50);  // before the second attempt; positive
  absl::Duration max_backoff = absl::Seconds(2);            // at least initial_backoff, finite
  double multiplier = 2.0;  // of the backoff from attempt to attempt; at least 1
  // Each wait is drawn evenly from backoff * [1 - jitter, 1 + jitter], so that clients that failed
  // together do not come again together. 0: none. Accepted: 0 to 1.
  double jitter = 0.2;
};

absl::Status ValidateRetryPolicy(const RetryPolicy& policy);

// A server's word on when to come again (trailer grpc-retry-pushback-ms).
struct Pushback {
  bool refuse = false;        // do not come again: the server sent a negative or unreadable value
  absl::Duration least = {};  // wait at least this long
};
Pushback ParsePushback(const std::string& trailer_value);

// How long to wait after attempt number `attempt` (from 1) ended with `status`; nullopt: the status
// is final, because it is not UNAVAILABLE, the attempts are used up, the server refused, or the
// wait would not end before `deadline`. `uniform` is a random number of [0, 1).
std::optional<absl::Duration> WaitBeforeRetry(const RetryPolicy& policy, int attempt,
                                              const absl::Status& status, const Pushback& pushback,
                                              absl::Time now, absl::Time deadline, double uniform);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_RETRY_POLICY_H_
