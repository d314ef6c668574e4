#include "client/retry_policy.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace flashbias::client {

absl::Status ValidateRetryPolicy(const RetryPolicy& policy) {
  if (policy.max_attempts < 1 || policy.max_attempts > 100) {
    return absl::InvalidArgumentError(
        absl::StrCat("retry.max_attempts is ", policy.max_attempts, "; accepted: 1 to 100"));
  }
  if (policy.initial_backoff <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(absl::StrCat("retry.initial_backoff is ",
                                                   absl::FormatDuration(policy.initial_backoff),
                                                   "; accepted: positive durations"));
  }
  if (policy.max_backoff < policy.initial_backoff ||
      policy.max_backoff == absl::InfiniteDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("retry.max_backoff is ", absl::FormatDuration(policy.max_backoff),
                     "; accepted: finite durations from initial_backoff, ",
                     absl::FormatDuration(policy.initial_backoff)));
  }
  if (!(policy.multiplier >= 1.0) || std::isinf(policy.multiplier)) {
    return absl::InvalidArgumentError(absl::StrCat("retry.multiplier is ", policy.multiplier,
                                                   "; accepted: finite numbers from 1"));
  }
  if (!(policy.jitter >= 0.0 && policy.jitter <= 1.0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("retry.jitter is ", policy.jitter, "; accepted: 0 to 1"));
  }
  return absl::OkStatus();
}

Pushback ParsePushback(const std::string& trailer_value) {
  int64_t milliseconds = 0;
  if (!absl::SimpleAtoi(trailer_value, &milliseconds) || milliseconds < 0) {
    return {.refuse = true, .least = absl::ZeroDuration()};
  }
  return {.refuse = false, .least = absl::Milliseconds(milliseconds)};
}

std::optional<absl::Duration> WaitBeforeRetry(const RetryPolicy& policy, int attempt,
                                              const absl::Status& status, const Pushback& pushback,
                                              absl::Time now, absl::Time deadline, double uniform) {
  if (!absl::IsUnavailable(status) || attempt >= policy.max_attempts || pushback.refuse) {
    return std::nullopt;
  }
  const absl::Duration backoff = std::min(
      policy.max_backoff, policy.initial_backoff * std::pow(policy.multiplier, attempt - 1));
  const double factor = 1.0 + policy.jitter * (2.0 * uniform - 1.0);
  const absl::Duration wait = std::max(backoff * factor, pushback.least);
  if (now + wait >= deadline) return std::nullopt;
  return wait;
}

}  // namespace flashbias::client
