#include <atomic>
#include <numeric>
#include <thread>
#include <vector>

#include "client/load/engine/load_loop.h"
#include "client/load/engine/pacing.h"
#include "gtest/gtest.h"
#include "tests/client/load/fake_caller.h"

namespace flashbias::client {
namespace {

using Answers = FakeCaller::Answers;

std::vector<absl::Duration> Every(absl::Duration gap, int count) {
  std::vector<absl::Duration> arrivals;
  arrivals.reserve(count);
  for (int n = 0; n < count; ++n) arrivals.push_back(n * gap);
  return arrivals;
}

LoadResult Drive(FakeCaller& caller, const OpenLoopOptions& options,
                 const LoadObserver& observer = nullptr) {
  const std::atomic<bool> stop{false};
  return RunOpenLoop(caller, options, stop, observer);
}

TEST(OpenLoopTest, SendsTheWholeScheduleOnceAndCountsEveryAnswerOnce) {
  FakeCaller caller(Answers::kDelayed, absl::Milliseconds(3), [](int64_t index) {
    return CallOutcome{.entry = static_cast<int>(index % 2),
                       .target = static_cast<int>(index % 3),
                       .bytes = 100,
                       .tokens = 5,
                       .stages = {.compute = absl::Milliseconds(1), .calls = 1},
                       .sample = AnswerSample{.request = {.input = static_cast<int>(index)}}};
  });
  const auto arrivals = Every(absl::Microseconds(500), 600);
  const LoadResult result =
      Drive(caller, {.arrivals = arrivals, .max_outstanding = 600, .send_threads = 3});
  std::vector<int64_t> indices(600);
  std::iota(indices.begin(), indices.end(), 0);
  EXPECT_EQ(caller.indices(), indices);
  EXPECT_EQ(result.offered, 600);
  EXPECT_EQ(result.succeeded, 600);
  EXPECT_EQ(result.failed, 0);
  EXPECT_EQ(result.overflowed, 0);
  EXPECT_EQ(result.latency.count(), 600);
  EXPECT_EQ(result.service.count(), 600);
  EXPECT_EQ(result.lag.count(), 600);
  EXPECT_GE(result.service.min(), absl::Milliseconds(3));
  // latency = service + lag, request by request.
  EXPECT_NEAR(absl::ToDoubleNanoseconds(result.latency.Mean()),
              absl::ToDoubleNanoseconds(result.service.Mean() + result.lag.Mean()), 2);
  EXPECT_GE(result.lag.min(), absl::ZeroDuration());
  ASSERT_EQ(result.statuses.size(), 1u);
  EXPECT_EQ(result.statuses.at(absl::StatusCode::kOk).count, 600);
  ASSERT_EQ(result.entries.size(), 2u);
  EXPECT_EQ(result.entries[1].succeeded, 300);
  EXPECT_EQ(result.entries[1].latency.count(), 300);
  ASSERT_EQ(result.targets.size(), 3u);
  EXPECT_EQ(result.targets[2].succeeded, 200);
  EXPECT_EQ(result.bytes, 60000);
  EXPECT_EQ(result.bytes_with_warmup, 60000);
  EXPECT_EQ(result.tokens, 3000);
  EXPECT_EQ(result.stages.compute, absl::Milliseconds(600));
  EXPECT_EQ(result.stages.calls, 600);
  EXPECT_EQ(result.samples.size(), 600u);
  // The last intended time and one gap more.
  EXPECT_NEAR(absl::ToDoubleMilliseconds(result.offering), 300, 1e-3);
  EXPECT_GE(result.elapsed, arrivals.back() + absl::Milliseconds(3));
  int64_t offered = 0;
  for (const Interval& interval : result.intervals) offered += interval.offered;
  EXPECT_EQ(offered, 600);
}

TEST(OpenLoopTest, SendingWaitsForNoAnswer) {
  FakeCaller caller(Answers::kHeld);
  const auto arrivals = Every(absl::Milliseconds(1), 100);
  int64_t outstanding = 0;
  const LoadResult result = Drive(caller, {.arrivals = arrivals, .max_outstanding = 100},
                                  [&](const LoadProgress& progress) {
                                    outstanding = std::max(outstanding, progress.outstanding);
                                    if (caller.started() == 100) caller.Release();
                                  });
  EXPECT_EQ(outstanding, 100);
  EXPECT_EQ(result.succeeded, 100);
  EXPECT_EQ(caller.most_in_flight(), 100u);
}

TEST(OpenLoopTest, WhatIsBeyondTheBoundIsNotSentAndHasFailed) {
  FakeCaller caller(Answers::kHeld);
  const auto arrivals = Every(absl::Milliseconds(5), 20);
  LoadProgress seen;
  const LoadResult result = Drive(caller, {.arrivals = arrivals, .max_outstanding = 4},
                                  [&](const LoadProgress& progress) {
                                    seen.offered += progress.offered;
                                    seen.failed += progress.failed;
                                    if (seen.offered == 20) caller.Release();
                                  });
  EXPECT_EQ(seen.failed, 16);
  EXPECT_EQ(caller.started(), 4);
  EXPECT_EQ(result.offered, 20);
  EXPECT_EQ(result.overflowed, 16);
  EXPECT_EQ(result.failed, 16);
  EXPECT_EQ(result.succeeded, 4);
  EXPECT_EQ(result.lag.count(), 4);
  EXPECT_EQ(result.statuses.at(absl::StatusCode::kOk).count, 4);
  EXPECT_LE(result.answered_in_time, 4);
}

TEST(OpenLoopTest, NoTwoInFlightShareASlot) {
  FakeCaller caller(Answers::kDelayed, absl::Milliseconds(2));
  const auto arrivals = Every(absl::Microseconds(200), 1500);
  const LoadResult result =
      Drive(caller, {.arrivals = arrivals, .max_outstanding = 16, .send_threads = 4});
  EXPECT_EQ(result.offered, 1500);
  EXPECT_FALSE(caller.shared_slots());
  EXPECT_LT(caller.largest_slot(), 16);
}

TEST(OpenLoopTest, WhatTheCallerDoesWithAnAnswerIsNoLatency) {
  FakeCaller caller(Answers::kAtOnce, {}, [](int64_t) {
    return CallOutcome{.answered = MonotonicNow() + absl::Seconds(5)};
  });
  const auto arrivals = Every(absl::Milliseconds(1), 10);
  EXPECT_GE(Drive(caller, {.arrivals = arrivals}).latency.min(), absl::Milliseconds(4900));
}

TEST(OpenLoopTest, TheWarmUpIsSentAndNotMeasured) {
  FakeCaller caller(Answers::kAtOnce, {}, [](int64_t index) {
    return CallOutcome{.bytes = 10,
                       .sample = AnswerSample{.request = {.input = static_cast<int>(index)}}};
  });
  const auto arrivals = Every(absl::Milliseconds(2), 100);
  const LoadResult result =
      Drive(caller, {.arrivals = arrivals, .warmup = absl::Milliseconds(100)});
  EXPECT_EQ(caller.started(), 100);
  EXPECT_EQ(result.offered, 50);
  EXPECT_EQ(result.latency.count(), 50);
  EXPECT_EQ(result.lag.count(), 50);
  EXPECT_EQ(result.bytes, 500);
  EXPECT_EQ(result.bytes_with_warmup, 1000);
  EXPECT_EQ(result.samples.size(), 100u) << "answers of the warm-up are verified too";
  EXPECT_NEAR(absl::ToDoubleMilliseconds(result.offering), 100, 1e-3);
}

TEST(OpenLoopTest, CountsByStatus) {
  FakeCaller caller(Answers::kDelayed, absl::Milliseconds(1), [](int64_t index) {
    CallOutcome outcome{.bytes = 10};
    if (index % 4 == 1) outcome.status = absl::UnavailableError("gone");
    if (index % 4 == 2) outcome.status = absl::ResourceExhaustedError("full");
    return outcome;
  });
  const auto arrivals = Every(absl::Milliseconds(1), 80);
  const LoadResult result = Drive(caller, {.arrivals = arrivals});
  EXPECT_EQ(result.succeeded, 40);
  EXPECT_EQ(result.failed, 40);
  EXPECT_EQ(result.latency.count(), 40);
  EXPECT_EQ(result.lag.count(), 80);
  EXPECT_EQ(result.bytes, 400);
  ASSERT_EQ(result.statuses.size(), 3u);
  EXPECT_EQ(result.statuses.at(absl::StatusCode::kOk).count, 40);
  EXPECT_EQ(result.statuses.at(absl::StatusCode::kOk).first_message, "");
  EXPECT_EQ(result.statuses.at(absl::StatusCode::kUnavailable).count, 20);
  EXPECT_EQ(result.statuses.at(absl::StatusCode::kUnavailable).first_message, "gone");
  EXPECT_EQ(result.statuses.at(absl::StatusCode::kUnavailable).latency.count(), 20);
  EXPECT_EQ(result.statuses.at(absl::StatusCode::kResourceExhausted).first_message, "full");
  EXPECT_EQ(result.entries[0].succeeded, 40);
  EXPECT_EQ(result.entries[0].failed, 40);
}

// Its first request keeps the only sender busy.
class SlowToStart : public FakeCaller {
 public:
  SlowToStart() : FakeCaller(Answers::kAtOnce) {}
  void Start(int64_t index, int slot, DoneCallback done) override {
    if (index == 0) SleepUntil(MonotonicNow() + absl::Milliseconds(60), absl::ZeroDuration());
    FakeCaller::Start(index, slot, std::move(done));
  }
};

TEST(OpenLoopTest, ASenderThatFallsBehindShowsInLagAndLatency) {
  SlowToStart caller;
  const auto arrivals = Every(absl::Milliseconds(1), 11);
  const LoadResult result = Drive(caller, {.arrivals = arrivals, .send_threads = 1});
  EXPECT_EQ(result.succeeded, 11);
  // All but the first were due in the first 10 ms and sent after 60.
  EXPECT_GE(result.lag.Percentile(10), absl::Milliseconds(50));
  EXPECT_GE(result.latency.Percentile(10), absl::Milliseconds(50));
  EXPECT_NEAR(absl::ToDoubleNanoseconds(result.latency.Mean()),
              absl::ToDoubleNanoseconds(result.service.Mean() + result.lag.Mean()), 2);
}

TEST(OpenLoopTest, NothingIsSentEarly) {
  for (const absl::Duration spin : {absl::ZeroDuration(), absl::Microseconds(300)}) {
    FakeCaller caller(Answers::kAtOnce);
    const auto arrivals = Every(absl::Milliseconds(3), 30);
    const LoadResult result = Drive(caller, {.arrivals = arrivals, .spin = spin});
    EXPECT_EQ(result.succeeded, 30);
    EXPECT_GE(result.lag.min(), absl::ZeroDuration());
    EXPECT_GE(result.elapsed, arrivals.back());
  }
}

TEST(OpenLoopTest, StopEndsTheScheduleAndAwaitsAnswers) {
  FakeCaller caller(Answers::kDelayed, absl::Milliseconds(50));
  const auto arrivals = Every(absl::Milliseconds(2), 500'000);
  std::atomic<bool> stop{false};
  std::thread stopper([&] {
    while (caller.started() < 40) SleepUntil(MonotonicNow() + absl::Milliseconds(1), {});
    stop = true;
  });
  const LoadResult result =
      RunOpenLoop(caller, {.arrivals = arrivals, .max_outstanding = 100'000}, stop, nullptr);
  stopper.join();
  EXPECT_GE(result.offered, 40);
  EXPECT_LT(result.offered, 500'000);
  EXPECT_EQ(result.offered, caller.started());
  EXPECT_EQ(result.succeeded, result.offered);
  EXPECT_EQ(result.failed, 0);
  // Without a gap: exactly the arrivals before that moment.
  EXPECT_EQ(caller.indices().back(), result.offered - 1);
  EXPECT_NEAR(absl::ToDoubleMilliseconds(result.offering), 2.0 * result.offered, 1e-3);
}

TEST(OpenLoopTest, AStopDuringALongWaitIsSeen) {
  FakeCaller caller(Answers::kAtOnce);
  const std::vector<absl::Duration> arrivals = {absl::ZeroDuration(), absl::Hours(1)};
  std::atomic<bool> stop{false};
  std::thread stopper([&] {
    while (caller.started() < 1) SleepUntil(MonotonicNow() + absl::Milliseconds(1), {});
    stop = true;
  });
  const LoadResult result = RunOpenLoop(caller, {.arrivals = arrivals}, stop, nullptr);
  stopper.join();
  EXPECT_EQ(result.offered, 1);
}

TEST(OpenLoopTest, AnEmptyScheduleGivesAnEmptyResult) {
  FakeCaller caller(Answers::kAtOnce);
  const LoadResult result = Drive(caller, {});
  EXPECT_EQ(result.offered, 0);
  EXPECT_EQ(result.elapsed, absl::ZeroDuration());
  EXPECT_TRUE(result.intervals.empty());
}

TEST(OpenLoopTest, ProgressIsAboutEachPeriodAlone) {
  FakeCaller caller(Answers::kDelayed, absl::Milliseconds(1),
                    [](int64_t) { return CallOutcome{.bytes = 7}; });
  const auto arrivals = Every(absl::Milliseconds(10), 250);
  LoadProgress sum;
  int calls = 0;
  bool warming_up = false;
  const LoadResult result =
      Drive(caller, {.arrivals = arrivals, .warmup = absl::Milliseconds(1500)},
            [&](const LoadProgress& progress) {
              if (++calls == 1) warming_up = progress.warming_up;
              sum.offered += progress.offered;
              sum.succeeded += progress.succeeded;
              sum.bytes += progress.bytes;
              EXPECT_GE(progress.period, absl::Seconds(1));
              EXPECT_GE(progress.elapsed, calls * absl::Seconds(1));
              EXPECT_GE(progress.p99, progress.p50);
              EXPECT_GE(progress.p50, absl::Milliseconds(1));
            });
  EXPECT_GE(calls, 2);
  EXPECT_TRUE(warming_up);
  EXPECT_LE(sum.offered, 250);
  EXPECT_GT(sum.succeeded, 0);
  EXPECT_LE(sum.succeeded, sum.offered);
  EXPECT_EQ(sum.bytes, 7 * sum.succeeded);
  EXPECT_EQ(result.offered, 100);
}

}  // namespace
}  // namespace flashbias::client
