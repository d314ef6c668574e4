#include "client/load/report/load_report.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

using ::testing::HasSubstr;

RunReport GoodRun() {
  RunReport run;
  run.loop = LoopKind::kOpen;
  run.result.succeeded = 90;
  run.verdict.steady = true;
  return run;
}

LoadReport ReportOf(RunReport run) {
  LoadReport report;
  report.run = std::move(run);
  return report;
}

LoadReport SweepOf(std::vector<RunReport> steps, std::vector<bool> met) {
  SweepReport sweep{.slo = absl::Milliseconds(50), .steps = std::move(steps), .met = met};
  for (size_t n = 0; n < met.size(); ++n) {
    if (met[n]) sweep.best_rate = 100.0;
  }
  LoadReport report;
  report.sweep = std::move(sweep);
  return report;
}

void ExpectError(const LoadReport& report, absl::StatusCode code, const std::string& message,
                 bool allow_errors = false) {
  const absl::Status status = Judge(report, allow_errors);
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(message));
}

TEST(JudgeTest, AGoodRunIsOk) {
  EXPECT_TRUE(Judge(ReportOf(GoodRun()), false).ok());
  RunReport run = GoodRun();
  run.verify = VerifyReport{.answers = 3};
  EXPECT_TRUE(Judge(ReportOf(run), false).ok());
}

TEST(JudgeTest, AnUnsteadyRunIsOk) {
  RunReport run = GoodRun();
  run.verdict.steady = false;
  run.verdict.reasons = {"not steady"};
  EXPECT_TRUE(Judge(ReportOf(run), false).ok());
}

TEST(JudgeTest, AWrongAnswerIsAnErrorBeforeAllOthers) {
  RunReport run = GoodRun();
  run.result.failed = 10;
  run.verdict.server_kept_up = false;
  run.verify = VerifyReport{.answers = 7, .wrong = 2};
  ExpectError(ReportOf(run), absl::StatusCode::kDataLoss, "2 of 7 verified answers are wrong",
              true);
}

TEST(JudgeTest, NoRequestSucceeded) {
  RunReport run = GoodRun();
  run.result.succeeded = 0;
  ExpectError(ReportOf(run), absl::StatusCode::kUnavailable, "no request succeeded", true);
  ExpectError(LoadReport(), absl::StatusCode::kUnavailable, "no request succeeded", true);
}

TEST(JudgeTest, NoAnswerWasVerified) {
  RunReport run = GoodRun();
  run.verify = VerifyReport{};
  ExpectError(ReportOf(run), absl::StatusCode::kFailedPrecondition, "no answer was verified", true);
}

TEST(JudgeTest, FailedRequestsUnlessAllowed) {
  RunReport run = GoodRun();
  run.result.failed = 10;
  ExpectError(ReportOf(run), absl::StatusCode::kAborted, "10 of 100 requests failed");
  EXPECT_TRUE(Judge(ReportOf(run), true).ok());
}

TEST(JudgeTest, AnInvalidRunWithItsReasons) {
  for (const bool generator : {true, false}) {
    RunReport run = GoodRun();
    (generator ? run.verdict.generator_kept_up : run.verdict.server_kept_up) = false;
    run.verdict.reasons = {"too slow", "too late"};
    ExpectError(ReportOf(run), absl::StatusCode::kFailedPrecondition,
                "the run is invalid: too slow; too late", true);
  }
}

TEST(JudgeTest, ASweepThatFoundARateIsOkThoughStepsBeyondItFailed) {
  RunReport beyond = GoodRun();
  beyond.result.failed = 50;
  beyond.verdict.server_kept_up = false;
  LoadReport report = SweepOf({GoodRun(), beyond}, {true, false});
  report.sweep->overload = beyond;
  EXPECT_TRUE(Judge(report, false).ok());
}

TEST(JudgeTest, NoRateMetTheObjective) {
  ExpectError(SweepOf({GoodRun()}, {false}), absl::StatusCode::kFailedPrecondition,
              "no rate met the objective of a p99 latency of at most 50ms", true);
}

TEST(JudgeTest, ASweepWithoutSuccess) {
  RunReport run = GoodRun();
  run.result.succeeded = 0;
  ExpectError(SweepOf({run, run}, {false, false}), absl::StatusCode::kUnavailable,
              "no request succeeded", true);
  ExpectError(SweepOf({}, {}), absl::StatusCode::kUnavailable, "no request succeeded", true);
}

TEST(JudgeTest, FailuresOfAStepThatMetTheObjective) {
  RunReport run = GoodRun();
  run.result.failed = 10;
  ExpectError(SweepOf({run}, {true}), absl::StatusCode::kAborted, "10 of 100 requests failed");
  EXPECT_TRUE(Judge(SweepOf({run}, {true}), true).ok());
}

TEST(JudgeTest, WrongAnswersOfAnyStepAndOfTheOverload) {
  RunReport wrong = GoodRun();
  wrong.verify = VerifyReport{.answers = 4, .wrong = 1};
  ExpectError(SweepOf({GoodRun(), wrong}, {true, false}), absl::StatusCode::kDataLoss,
              "1 of 4 verified answers are wrong", true);
  LoadReport report = SweepOf({GoodRun()}, {true});
  report.sweep->overload = wrong;
  ExpectError(report, absl::StatusCode::kDataLoss, "1 of 4 verified answers are wrong", true);
}

TEST(JudgeTest, AnOverloadThatMeetsTheObjectiveContradictsOnlyAStepThatDidNot) {
  LoadReport report = SweepOf({GoodRun()}, {true});
  report.sweep->overload = GoodRun();
  EXPECT_TRUE(Judge(report, false).ok()) << Judge(report, false);
  report = SweepOf({GoodRun(), GoodRun()}, {true, false});
  report.sweep->overload = GoodRun();
  report.sweep->bound_rate = 200;
  ExpectError(report, absl::StatusCode::kFailedPrecondition, "twice the best rate met", true);
}

TEST(JudgeTest, ASweepThatVerifiedNothing) {
  RunReport run = GoodRun();
  run.verify = VerifyReport{};
  ExpectError(SweepOf({run}, {true}), absl::StatusCode::kFailedPrecondition,
              "no answer was verified", true);
  RunReport verified = GoodRun();
  verified.verify = VerifyReport{.answers = 1};
  EXPECT_TRUE(Judge(SweepOf({run, verified}, {true, true}), false).ok());
}

RunReport OpenRunWith(int64_t succeeded, int64_t slow, int64_t failed) {
  RunReport run{.loop = LoopKind::kOpen};
  run.result.offered = succeeded + failed;
  run.result.succeeded = succeeded;
  run.result.failed = failed;
  for (int64_t n = 0; n < succeeded; ++n) {
    run.result.latency.Record(n < slow ? absl::Seconds(2) : absl::Milliseconds(2));
  }
  return run;
}

TEST(LoadReportTest, FailuresCountAsBeyondTheObjective) {
  const absl::Duration slo = absl::Milliseconds(10);
  EXPECT_TRUE(MeetsObjective(OpenRunWith(1000, 0, 0), slo));
  EXPECT_TRUE(MeetsObjective(OpenRunWith(1000, 10, 0), slo));
  EXPECT_FALSE(MeetsObjective(OpenRunWith(1000, 11, 0), slo));
  EXPECT_TRUE(MeetsObjective(OpenRunWith(990, 0, 10), slo));
  EXPECT_FALSE(MeetsObjective(OpenRunWith(989, 0, 11), slo));
  EXPECT_FALSE(MeetsObjective(OpenRunWith(990, 1, 10), slo));
  EXPECT_FALSE(MeetsObjective(OpenRunWith(0, 0, 10), slo));
  RunReport late = OpenRunWith(1000, 0, 0);
  late.verdict.generator_kept_up = false;
  EXPECT_FALSE(MeetsObjective(late, slo));
}

}  // namespace
}  // namespace flashbias::client
