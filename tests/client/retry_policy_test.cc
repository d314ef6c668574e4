#include "client/retry_policy.h"

#include <limits>

#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

const absl::Time kNow = absl::UnixEpoch() + absl::Hours(1);
const RetryPolicy kPolicy = {.max_attempts = 5,
                             .initial_backoff = absl::Milliseconds(100),
                             .max_backoff = absl::Milliseconds(300),
                             .multiplier = 2,
                             .jitter = 0.5};

std::optional<absl::Duration> Wait(int attempt, const absl::Status& status,
                                   const Pushback& pushback = {},
                                   absl::Duration left = absl::Hours(1), double uniform = 0.5) {
  return WaitBeforeRetry(kPolicy, attempt, status, pushback, kNow, kNow + left, uniform);
}

TEST(RetryPolicyTest, OnlyUnavailableIsTriedAgain) {
  EXPECT_TRUE(Wait(1, absl::UnavailableError("")).has_value());
  for (const absl::Status& status :
       {absl::ResourceExhaustedError(""), absl::InternalError(""), absl::DeadlineExceededError(""),
        absl::CancelledError(""), absl::AbortedError(""), absl::UnknownError("")}) {
    EXPECT_FALSE(Wait(1, status).has_value()) << status;
  }
}

TEST(RetryPolicyTest, BackoffGrowsToItsMaximumAndAttemptsEnd) {
  const absl::Status status = absl::UnavailableError("");
  EXPECT_EQ(Wait(1, status), absl::Milliseconds(100));
  EXPECT_EQ(Wait(2, status), absl::Milliseconds(200));
  EXPECT_EQ(Wait(3, status), absl::Milliseconds(300));
  EXPECT_EQ(Wait(4, status), absl::Milliseconds(300));
  EXPECT_EQ(Wait(5, status), std::nullopt);
}

TEST(RetryPolicyTest, JitterSpreadsTheWaits) {
  const absl::Status status = absl::UnavailableError("");
  EXPECT_EQ(Wait(1, status, {}, absl::Hours(1), 0.0), absl::Milliseconds(50));
  EXPECT_EQ(Wait(1, status, {}, absl::Hours(1), 0.75), absl::Milliseconds(125));
}

TEST(RetryPolicyTest, PushbackIsALowerBoundOrARefusal) {
  const absl::Status status = absl::UnavailableError("");
  EXPECT_EQ(Wait(1, status, ParsePushback("700")), absl::Milliseconds(700));
  EXPECT_EQ(Wait(1, status, ParsePushback("10")), absl::Milliseconds(100));
  EXPECT_EQ(Wait(1, status, ParsePushback("-1")), std::nullopt);
  EXPECT_EQ(Wait(1, status, ParsePushback("soon")), std::nullopt);
}

TEST(RetryPolicyTest, NeverWaitsBeyondTheDeadline) {
  const absl::Status status = absl::UnavailableError("");
  EXPECT_EQ(Wait(1, status, {}, absl::Milliseconds(100)), std::nullopt);
  EXPECT_EQ(Wait(1, status, {}, absl::Milliseconds(101)), absl::Milliseconds(100));
  EXPECT_EQ(Wait(1, status, ParsePushback("9000"), absl::Seconds(5)), std::nullopt);
  EXPECT_EQ(WaitBeforeRetry(kPolicy, 1, status, {}, kNow, absl::InfiniteFuture(), 0.5),
            absl::Milliseconds(100));
}

TEST(RetryPolicyTest, ValidatesItsFields) {
  EXPECT_TRUE(ValidateRetryPolicy({}).ok());
  EXPECT_FALSE(ValidateRetryPolicy({.max_attempts = 0}).ok());
  EXPECT_FALSE(ValidateRetryPolicy({.max_attempts = 101}).ok());
  EXPECT_FALSE(ValidateRetryPolicy({.initial_backoff = absl::ZeroDuration()}).ok());
  EXPECT_FALSE(ValidateRetryPolicy({.max_backoff = absl::Milliseconds(1)}).ok());
  EXPECT_FALSE(ValidateRetryPolicy({.max_backoff = absl::InfiniteDuration()}).ok());
  EXPECT_FALSE(ValidateRetryPolicy({.multiplier = 0.5}).ok());
  EXPECT_FALSE(ValidateRetryPolicy({.multiplier = std::numeric_limits<double>::quiet_NaN()}).ok());
  EXPECT_FALSE(ValidateRetryPolicy({.jitter = 1.5}).ok());
}

}  // namespace
}  // namespace flashbias::client
