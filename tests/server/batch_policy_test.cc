#include "server/batch_policy.h"

#include <gtest/gtest.h>

#include <string>

namespace flashbias::server {
namespace {

const absl::Time kT0 = absl::FromUnixSeconds(1000);
constexpr BatchLimits kLimits = {.max_work = 100,
                                 .max_bytes = 1000,
                                 .max_requests = 4,
                                 .worthwhile_bytes = 500,
                                 .max_queue_delay = absl::Milliseconds(5)};

struct Case {
  std::string name;
  GroupSummary group;
  BackendState backend;
  absl::Duration waited;  // since the oldest request came
  BatchDecision want;
};

GroupSummary Group(int64_t requests, int64_t work, int64_t bytes) {
  return {.requests = requests, .work = work, .bytes = bytes, .oldest_enqueue = kT0};
}

BatchDecision Cut(CutReason reason) { return {.cut = true, .reason = reason}; }
BatchDecision Wait(absl::Time until) { return {.cut = false, .wait_until = until}; }

constexpr BackendState kBusy = {.slots = 2, .free_slots = 1};
constexpr BackendState kIdleBackend = {.slots = 2, .free_slots = 2};
constexpr BackendState kNoSlot = {.slots = 2, .free_slots = 0};

class BatchPolicyTest : public testing::TestWithParam<Case> {};

TEST_P(BatchPolicyTest, Decides) {
  const Case& c = GetParam();
  const BatchDecision got = DecideBatch(c.group, c.backend, kLimits, kT0 + c.waited);
  EXPECT_EQ(got.cut, c.want.cut);
  if (c.want.cut) {
    EXPECT_EQ(got.reason, c.want.reason);
  } else {
    EXPECT_EQ(got.wait_until, c.want.wait_until);
  }
}

const absl::Time kDue = kT0 + absl::Milliseconds(5);

INSTANTIATE_TEST_SUITE_P(
    Table, BatchPolicyTest,
    testing::Values(
        Case{"Nothing", {}, kIdleBackend, absl::ZeroDuration(), Wait(absl::InfiniteFuture())},
        Case{"IdleTakesOneAtOnce", Group(1, 1, 1), kIdleBackend, absl::ZeroDuration(),
             Cut(CutReason::kIdle)},
        Case{"BusyWaitsForCompany", Group(1, 1, 1), kBusy, absl::ZeroDuration(), Wait(kDue)},
        Case{"BusyTakesWhatIsWorthwhile", Group(1, 1, 500), kBusy, absl::ZeroDuration(),
             Cut(CutReason::kWorthwhile)},
        Case{"WorthwhileButNoSlot", Group(1, 1, 999), kNoSlot, absl::ZeroDuration(),
             Wait(absl::InfiniteFuture())},
        Case{"BusyWaitsUntilJustBefore", Group(3, 99, 499), kBusy,
             absl::Milliseconds(5) - absl::Nanoseconds(1), Wait(kDue)},
        Case{"Timed", Group(1, 1, 1), kBusy, absl::Milliseconds(5), Cut(CutReason::kTimed)},
        Case{"FullByWork", Group(2, 100, 1), kBusy, absl::ZeroDuration(), Cut(CutReason::kFull)},
        Case{"FullByBytes", Group(2, 1, 1000), kBusy, absl::ZeroDuration(), Cut(CutReason::kFull)},
        Case{"FullByRequests", Group(4, 4, 4), kBusy, absl::ZeroDuration(), Cut(CutReason::kFull)},
        Case{"Oversized", Group(1, 1000, 1), kBusy, absl::ZeroDuration(), Cut(CutReason::kFull)},
        Case{"FullButNoSlot", Group(4, 1000, 1), kNoSlot, absl::Seconds(1),
             Wait(absl::InfiniteFuture())},
        Case{"DueButNoSlot", Group(1, 1, 1), kNoSlot, absl::Seconds(1),
             Wait(absl::InfiniteFuture())}),
    [](const auto& param_info) { return param_info.param.name; });

TEST(BatchPolicyDelayTest, ZeroDelayCutsWheneverASlotIsFree) {
  BatchLimits limits = kLimits;
  limits.max_queue_delay = absl::ZeroDuration();
  EXPECT_TRUE(DecideBatch(Group(1, 1, 1), kBusy, limits, kT0).cut);
  EXPECT_FALSE(DecideBatch(Group(1, 1, 1), kNoSlot, limits, kT0).cut);
}

}  // namespace
}  // namespace flashbias::server
