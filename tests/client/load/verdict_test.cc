#include "client/load/engine/verdict.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// 10 s at 100 a second, with nothing to complain of.
LoadResult GoodRun() {
  LoadResult result{.elapsed = absl::Seconds(10.02),
                    .offering = absl::Seconds(10),
                    .offered = 1000,
                    .succeeded = 1000,
                    .answered_in_time = 1000};
  for (int n = 0; n < 1000; ++n) {
    result.latency.Record(absl::Milliseconds(20));
    result.lag.Record(absl::Microseconds(60));
  }
  for (int n = 0; n < 3; ++n) {
    result.thirds.push_back({.length = absl::Seconds(3.25),
                             .offered = 325,
                             .succeeded = 325,
                             .p50 = absl::Milliseconds(20)});
  }
  return result;
}

TEST(VerdictTest, AGoodRunIsValidAndSteady) {
  for (const Verdict& verdict : {JudgeOpenLoop(GoodRun(), {}), JudgeClosedLoop(GoodRun(), {})}) {
    EXPECT_TRUE(verdict.generator_kept_up);
    EXPECT_TRUE(verdict.server_kept_up);
    EXPECT_TRUE(verdict.steady);
    EXPECT_TRUE(verdict.valid());
    EXPECT_THAT(verdict.reasons, IsEmpty());
  }
}

TEST(VerdictTest, RatesAreOverTheTimeOfTheSchedule) {
  LoadResult result = GoodRun();
  result.overflowed = 100;
  result.failed = 200;
  result.succeeded = 800;
  result.answered_in_time = 450;
  const Rates rates = RatesOf(result);
  EXPECT_DOUBLE_EQ(rates.offered, 100);
  EXPECT_DOUBLE_EQ(rates.achieved, 45);
  EXPECT_DOUBLE_EQ(rates.good, 40);  // 800 of 900 answers
  EXPECT_EQ(RatesOf({}).offered, 0);
  EXPECT_EQ(RatesOf({}).achieved, 0);
}

TEST(VerdictTest, ALagBeyondItsLimitIsInvalid) {
  LoadResult result = GoodRun();
  // Just above 1 %.
  for (int n = 0; n < 11; ++n) result.lag.Record(absl::Milliseconds(3));
  // The share of p50 would be kept.
  const Verdict verdict = JudgeOpenLoop(result, {.max_lag_share = 1});
  EXPECT_FALSE(verdict.generator_kept_up);
  EXPECT_TRUE(verdict.server_kept_up);
  EXPECT_FALSE(verdict.valid());
  EXPECT_THAT(verdict.reasons, ElementsAre(HasSubstr("generator did not keep up")));
  EXPECT_TRUE(
      JudgeOpenLoop(result, {.max_lag = absl::Milliseconds(3.5), .max_lag_share = 1}).valid());
  EXPECT_TRUE(JudgeClosedLoop(result, {}).valid());
}

TEST(VerdictTest, ALagBeyondItsShareOfTheMedianIsInvalid) {
  LoadResult result = GoodRun();
  // 0.9 ms is below the limit of 1 ms, and 4.5 % of 20 ms.
  for (int n = 0; n < 100; ++n) result.lag.Record(absl::Microseconds(900));
  EXPECT_TRUE(JudgeOpenLoop(result, {}).valid());
  const Verdict verdict = JudgeOpenLoop(result, {.max_lag_share = 0.04});
  EXPECT_FALSE(verdict.generator_kept_up);
  EXPECT_THAT(verdict.reasons, ElementsAre(HasSubstr("4 % of the median latency")));
}

TEST(VerdictTest, AnswersThatDoNotComeInTimeAreInvalid) {
  LoadResult result = GoodRun();
  result.answered_in_time = 980;
  EXPECT_TRUE(JudgeOpenLoop(result, {}).valid());
  result.answered_in_time = 979;
  const Verdict verdict = JudgeOpenLoop(result, {});
  EXPECT_TRUE(verdict.generator_kept_up);
  EXPECT_FALSE(verdict.server_kept_up);
  EXPECT_THAT(verdict.reasons,
              ElementsAre(HasSubstr("97.9 requests a second were answered of 100.0 offered")));
  EXPECT_TRUE(JudgeClosedLoop(result, {}).valid());
}

TEST(VerdictTest, ARunWithoutSuccessSaysSo) {
  LoadResult result = GoodRun();
  result.failed = result.succeeded;
  result.succeeded = 0;
  result.latency = {};
  const Verdict open = JudgeOpenLoop(result, {});
  EXPECT_FALSE(open.valid());
  EXPECT_FALSE(open.steady);
  EXPECT_THAT(open.reasons, ElementsAre("No request succeeded", HasSubstr("no request succeeded")));
  EXPECT_THAT(JudgeClosedLoop(result, {}).reasons, ElementsAre(HasSubstr("no request succeeded")));
  EXPECT_THAT(JudgeOpenLoop({}, {}).reasons,
              ElementsAre("No request was measured", HasSubstr("no request succeeded")));
}

TEST(VerdictTest, AMedianThatWandersIsUnsteady) {
  LoadResult result = GoodRun();
  result.thirds[2].p50 = absl::Milliseconds(23);  // 9.5 % above the mean
  EXPECT_TRUE(JudgeOpenLoop(result, {}).steady);
  result.thirds[2].p50 = absl::Milliseconds(24);  // 12.5 %
  const Verdict verdict = JudgeOpenLoop(result, {});
  EXPECT_FALSE(verdict.steady);
  EXPECT_TRUE(verdict.valid());
  EXPECT_THAT(verdict.reasons, ElementsAre(HasSubstr("median latency of the run's third 3 of 3")));
  EXPECT_FALSE(JudgeClosedLoop(result, {}).steady);
}

TEST(VerdictTest, ARateThatWandersIsUnsteady) {
  LoadResult result = GoodRun();
  result.thirds[0].succeeded = 270;
  for (const Verdict& verdict : {JudgeOpenLoop(result, {}), JudgeClosedLoop(result, {})}) {
    EXPECT_FALSE(verdict.steady);
    EXPECT_THAT(verdict.reasons, ElementsAre(HasSubstr("third 1 of 3")));
  }
  // Fewer arrivals are no fault of an open loop.
  result.thirds[0].offered = 270;
  EXPECT_TRUE(JudgeOpenLoop(result, {}).steady);
  EXPECT_FALSE(JudgeClosedLoop(result, {}).steady);
}

TEST(VerdictTest, OfAShortRunSteadinessIsUnknown) {
  LoadResult result = GoodRun();
  result.thirds.clear();
  const Verdict verdict = JudgeClosedLoop(result, {});
  EXPECT_FALSE(verdict.steady);
  EXPECT_TRUE(verdict.valid());
  EXPECT_THAT(verdict.reasons, ElementsAre(HasSubstr("too short")));
}

}  // namespace
}  // namespace flashbias::client
