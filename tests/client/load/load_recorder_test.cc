#include "client/load/engine/load_recorder.h"

#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

// 100 requests a second for 9 s; `latency` of the one that is intended at a time.
template <typename Latency>
LoadResult RunOf(Latency latency, absl::StatusCode code = absl::StatusCode::kOk) {
  LoadRecorder recorder(1, 1);
  recorder.EndSchedule(absl::Milliseconds(8990));
  for (int n = 0; n < 900; ++n) {
    const absl::Duration intended = n * absl::Milliseconds(10);
    recorder.RecordOffered();
    recorder.RecordAnswer(
        {.intended = intended, .sent = intended, .answered = intended + latency(intended)}, true,
        {.status = absl::Status(code, "")});
  }
  return recorder.Finish();
}

TEST(LoadRecorderTest, ASlowServerThatKeepsUpAnswersInTime) {
  const LoadResult result = RunOf([](absl::Duration) { return absl::Milliseconds(700); });
  EXPECT_EQ(result.offered, 900);
  EXPECT_EQ(result.answered_in_time, 900);
  EXPECT_EQ(absl::ToInt64Milliseconds(result.offering), 9000);
  EXPECT_EQ(absl::ToInt64Milliseconds(result.elapsed), 9690);
}

TEST(LoadRecorderTest, OneLateAnswerIsOneLateAnswer) {
  const LoadResult result = RunOf([](absl::Duration intended) {
    return intended == absl::Milliseconds(8500) ? absl::Seconds(5) : absl::Milliseconds(10);
  });
  EXPECT_EQ(result.answered_in_time, 899);
}

TEST(LoadRecorderTest, AGrowingBacklogIsNotAnsweredInTime) {
  // The server answers 4 of 5: a request waits a quarter of the time since the start.
  const LoadResult result = RunOf([](absl::Duration intended) { return intended / 4; });
  // Intended at t, answered at 1.25 t: by 8.99 s and the first third's 90th percentile (2.7 s / 4).
  EXPECT_NEAR(static_cast<double>(result.answered_in_time), (8.99 + 0.675) / 1.25 * 100, 4);
}

TEST(LoadRecorderTest, ErrorsAreAnswersToo) {
  const LoadResult result = RunOf([](absl::Duration) { return absl::Milliseconds(1); },
                                  absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(result.failed, 900);
  EXPECT_GE(result.answered_in_time, 899);
}

TEST(LoadRecorderTest, AScheduleThatIsStoppedEndsThere) {
  LoadRecorder recorder(1, 1);
  recorder.EndSchedule(absl::Seconds(100));
  recorder.EndSchedule(absl::Seconds(1));
  recorder.EndSchedule(absl::Seconds(50));
  for (int n = 0; n < 10; ++n) {
    const absl::Duration intended = n * absl::Milliseconds(100);
    recorder.RecordAnswer(
        {.intended = intended, .sent = intended, .answered = n < 7 ? intended : absl::Seconds(40)},
        true, {});
  }
  EXPECT_EQ(recorder.Finish().answered_in_time, 7);
}

TEST(LoadRecorderTest, ManyThreadsLoseNothing) {
  LoadRecorder recorder(1, 2);
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 12; ++thread) {
    threads.emplace_back([&recorder, thread] {
      for (int n = 0; n < 1000; ++n) {
        const absl::Duration intended = n * absl::Milliseconds(1);
        recorder.RecordOffered();
        if (n % 10 == 9) {
          recorder.RecordOverflow(intended, true);
        } else {
          recorder.RecordAnswer({.intended = intended,
                                 .sent = intended,
                                 .answered = intended + absl::Microseconds(n + 1)},
                                n % 10 != 0, {.target = thread % 2, .bytes = 1});
        }
      }
    });
  }
  LoadProgress sum;
  const auto add = [&sum](const LoadProgress& progress) {
    sum.offered += progress.offered;
    sum.succeeded += progress.succeeded;
    sum.failed += progress.failed;
    sum.bytes += progress.bytes;
  };
  add(recorder.TakeProgress());
  for (std::thread& thread : threads) thread.join();
  add(recorder.TakeProgress());
  EXPECT_EQ(sum.offered, 12000);
  EXPECT_EQ(sum.succeeded, 10800);
  EXPECT_EQ(sum.failed, 1200);
  EXPECT_EQ(sum.bytes, 10800);
  const LoadResult result = recorder.Finish();
  EXPECT_EQ(result.offered, 10800);
  EXPECT_EQ(result.succeeded, 9600);
  EXPECT_EQ(result.overflowed, 1200);
  EXPECT_EQ(result.bytes, 9600);
  EXPECT_EQ(result.bytes_with_warmup, 10800);
  EXPECT_EQ(result.latency.count(), 9600);
  EXPECT_EQ(result.latency.max(), absl::Microseconds(999));
  EXPECT_EQ(result.targets[0].succeeded, 4800);
}

}  // namespace
}  // namespace flashbias::client
