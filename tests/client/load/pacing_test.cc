#include "client/load/engine/pacing.h"

#include "client/load/engine/process_cpu.h"
#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

TEST(PacingTest, NeverReturnsEarly) {
  AskForExactWakeups();
  for (const absl::Duration spin : {absl::ZeroDuration(), absl::Milliseconds(1), absl::Hours(1)}) {
    for (int n = 0; n < 20; ++n) {
      const absl::Duration moment = MonotonicNow() + absl::Microseconds(150 * n);
      SleepUntil(moment, spin);
      EXPECT_GE(MonotonicNow(), moment);
    }
  }
}

TEST(PacingTest, AMomentThatHasPassedIsNotWaitedFor) {
  SleepUntil(MonotonicNow() - absl::Hours(1), absl::ZeroDuration());
  SleepUntil(-absl::Hours(1), absl::Hours(1));
}

TEST(ProcessCpuTest, SpinningComputesAndSleepingDoesNot) {
  const absl::Duration before = ProcessCpuTime();
  SleepUntil(MonotonicNow() + absl::Milliseconds(300), absl::ZeroDuration());
  const absl::Duration slept = ProcessCpuTime();
  EXPECT_LT(slept - before, absl::Milliseconds(100));
  while (ProcessCpuTime() - slept < absl::Milliseconds(20)) {
  }
}

}  // namespace
}  // namespace flashbias::client
