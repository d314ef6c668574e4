#include <atomic>
#include <thread>
#include <vector>

#include "client/load/engine/load_loop.h"
#include "client/load/engine/pacing.h"
#include "gtest/gtest.h"
#include "tests/client/load/fake_caller.h"

namespace flashbias::client {
namespace {

using Answers = FakeCaller::Answers;

LoadResult Drive(FakeCaller& caller, const ClosedLoopOptions& options,
                 const LoadObserver& observer = nullptr) {
  const std::atomic<bool> stop{false};
  return RunClosedLoop(caller, options, stop, observer);
}

TEST(ClosedLoopTest, EachCallerHasOneRequestInFlight) {
  FakeCaller caller(Answers::kDelayed, absl::Milliseconds(2));
  const LoadResult result = Drive(caller, {.concurrency = 5, .requests = 200});
  EXPECT_EQ(caller.started(), 200);
  EXPECT_EQ(caller.most_in_flight(), 5u);
  EXPECT_FALSE(caller.shared_slots());
  EXPECT_LT(caller.largest_slot(), 5);
  EXPECT_EQ(result.offered, 200);
  EXPECT_EQ(result.succeeded, 200);
  EXPECT_EQ(result.answered_in_time, 200);
  EXPECT_EQ(result.latency.count(), 200);
  EXPECT_GE(result.latency.min(), absl::Milliseconds(2));
  EXPECT_EQ(result.lag.count(), 200);
  EXPECT_EQ(result.lag.max(), absl::ZeroDuration());
  EXPECT_EQ(result.service.Mean(), result.latency.Mean());
  EXPECT_EQ(result.offering, result.elapsed);
  // 40 rounds of 2 ms.
  EXPECT_GE(result.elapsed, absl::Milliseconds(80));
}

TEST(ClosedLoopTest, TakesAnswersThatComeBeforeStartReturns) {
  FakeCaller caller(Answers::kAtOnce);
  const LoadResult result = Drive(caller, {.concurrency = 3, .requests = 5000});
  EXPECT_EQ(result.succeeded, 5000);
}

TEST(ClosedLoopTest, WhatTheCallerDoesWithAnAnswerIsNoLatency) {
  FakeCaller caller(Answers::kAtOnce, {}, [](int64_t) {
    return CallOutcome{.answered = MonotonicNow() + absl::Seconds(5)};
  });
  EXPECT_GE(Drive(caller, {.concurrency = 1, .requests = 3}).latency.min(),
            absl::Milliseconds(4900));
}

TEST(ClosedLoopTest, TheWarmUpEndsAfterItsRequests) {
  FakeCaller caller(Answers::kAtOnce, {}, [](int64_t index) {
    return CallOutcome{.bytes = 1,
                       .sample = AnswerSample{.request = {.input = static_cast<int>(index)}}};
  });
  const LoadResult result = Drive(caller, {.concurrency = 4,
                                           .warmup = absl::InfiniteDuration(),
                                           .warmup_requests = 30,
                                           .requests = 50});
  EXPECT_EQ(result.offered, 50);
  EXPECT_EQ(result.bytes, 50);
  EXPECT_EQ(result.bytes_with_warmup, 80);
  EXPECT_EQ(result.samples.size(), 80u) << "answers of the warm-up are verified too";
}

TEST(ClosedLoopTest, TheWarmUpEndsAfterItsTime) {
  FakeCaller caller(Answers::kDelayed, absl::Milliseconds(5));
  bool warming_up = false;
  const LoadResult result = Drive(
      caller, {.concurrency = 1, .warmup = absl::Milliseconds(1500), .duration = absl::Seconds(1)},
      [&](const LoadProgress& progress) { warming_up = warming_up || progress.warming_up; });
  EXPECT_TRUE(warming_up);
  EXPECT_GT(result.offered, 0);
  EXPECT_LT(result.offered, caller.started());
  // Not more than fit.
  EXPECT_LE(result.offered, 200);
  EXPECT_LE(caller.started() - result.offered, 301);
}

TEST(ClosedLoopTest, EndsAfterItsDurationAndAwaitsAnswers) {
  FakeCaller caller(Answers::kDelayed, absl::Milliseconds(150));
  const LoadResult result = Drive(caller, {.concurrency = 2, .duration = absl::Milliseconds(200)});
  EXPECT_EQ(result.succeeded, caller.started());
  EXPECT_GE(result.offered, 2);
  EXPECT_LE(result.offered, 4);
}

TEST(ClosedLoopTest, ACallerPausesAfterAnError) {
  FakeCaller caller(Answers::kAtOnce, {},
                    [](int64_t) { return CallOutcome{.status = absl::UnavailableError("away")}; });
  const LoadResult result = Drive(caller, {.concurrency = 1,
                                           .duration = absl::Milliseconds(200),
                                           .pause_after_error = absl::Milliseconds(20)});
  EXPECT_GE(result.failed, 1);
  EXPECT_LE(result.failed, 11);
  EXPECT_EQ(result.succeeded, 0);
  EXPECT_EQ(result.statuses.at(absl::StatusCode::kUnavailable).first_message, "away");
}

TEST(ClosedLoopTest, StopEndsItAndAwaitsAnswers) {
  FakeCaller caller(Answers::kDelayed, absl::Milliseconds(20));
  std::atomic<bool> stop{false};
  std::thread stopper([&] {
    while (caller.started() < 10) SleepUntil(MonotonicNow() + absl::Milliseconds(1), {});
    stop = true;
  });
  const LoadResult result = RunClosedLoop(caller, {.concurrency = 3}, stop, nullptr);
  stopper.join();
  EXPECT_GE(result.offered, 10);
  EXPECT_EQ(result.offered, caller.started());
  EXPECT_EQ(result.succeeded, result.offered);
}

}  // namespace
}  // namespace flashbias::client
