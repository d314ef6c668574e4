#include "client/load/report/report_table.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/load/simulated_report.h"

namespace flashbias::client {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(ReportTableTest, OpenLoop) {
  LoadReport report = SimulatedOpenLoopReport();
  report.run->result.overflowed = 12;
  const std::string table = FormatTable(report);
  for (const char* text : {
           "server        10.0.0.5:8471, cuda 0.1.0 (NVIDIA H200, sm_90)\n",
           "open loop: 180.00 requests/s, poisson arrivals, at most 1024 outstanding",
           "verdict       valid, not steady\n              in the second third of the run",
           "of these 12 not sent because too many were outstanding\n",
           "DEADLINE_EXCEEDED: ",
           "\nrates         offered ",
           "\nlatency       mean ",
           "\nservice       mean ",
           "\nlag           mean ",
           "\nof requests   prefill: 1024 x 1024",
           "\nof server     10.0.0.6:8471: ",
           "\nserver stages receive 0.310 ms",
           "\nCPU           client 0.310 ns/byte, servers 0.520 ns/byte\n",
           "% skipped (",
       }) {
    EXPECT_THAT(table, HasSubstr(text));
  }
}

TEST(ReportTableTest, ClosedLoopIsLabelledCapacity) {
  const std::string table = FormatTable(SimulatedClosedLoopReport());
  EXPECT_THAT(table, HasSubstr("load          capacity (closed loop): 8 callers"));
  EXPECT_THAT(table, HasSubstr("verdict       capacity, steady\n"));
  EXPECT_THAT(table, HasSubstr("verified      120 answers (480 rows), 0 wrong"));
  EXPECT_THAT(table, Not(HasSubstr("\nlag ")));
  EXPECT_THAT(table, Not(HasSubstr("offered")));
}

TEST(ReportTableTest, ATraceHasNoRate) {
  LoadReport report = SimulatedOpenLoopReport();
  report.run->rate = 0;
  report.arrivals = "trace";
  EXPECT_THAT(FormatTable(report), HasSubstr("load          open loop: trace arrivals, at most"));
}

TEST(ReportTableTest, TheWarmupIsWhatEndsIt) {
  LoadReport report = SimulatedClosedLoopReport();
  report.warmup = absl::Seconds(2);
  EXPECT_THAT(FormatTable(report), HasSubstr(", after a warm-up of 2s\n"));
  report.warmup_requests = 100;
  EXPECT_THAT(FormatTable(report), HasSubstr(", after a warm-up of 2s or 100 requests\n"));
  report.warmup = absl::InfiniteDuration();
  EXPECT_THAT(FormatTable(report), HasSubstr(", after a warm-up of 100 requests\n"));
  report.warmup = absl::ZeroDuration();
  EXPECT_THAT(FormatTable(report), Not(HasSubstr("warm-up")));
}

TEST(ReportTableTest, OnlyWhatWasComparedHasAnError) {
  LoadReport report = SimulatedClosedLoopReport();
  VerifyReport& verify = report.run->verify.emplace();
  verify = {.answers = 3, .rows = 5, .limit = 3e-4, .gradient_limit = 6e-4};
  EXPECT_THAT(FormatTable(report),
              HasSubstr("0 wrong; largest relative error of o 0.00e+00, limit 3e-04\n"));
  verify.lse_rows = 5;
  EXPECT_THAT(FormatTable(report), HasSubstr("of o 0.00e+00, of lse 0.00e+00, limit 3e-04\n"));
  verify.lse_rows = 0;
  verify.gradient_rows = 5;
  EXPECT_THAT(
      FormatTable(report),
      HasSubstr("0 wrong; largest relative error of dq, dk and dv 0.00e+00, limit 6e-04\n"));
  verify.rows = verify.gradient_rows = 0;
  EXPECT_THAT(FormatTable(report), HasSubstr("verified      3 answers (0 rows), 0 wrong\n"));
}

TEST(ReportTableTest, AnInvalidRun) {
  LoadReport report = SimulatedOpenLoopReport();
  report.run->verdict.server_kept_up = false;
  report.run->server_cpu_seconds.reset();
  const std::string table = FormatTable(report);
  EXPECT_THAT(table, HasSubstr("verdict       INVALID, not steady\n"));
  EXPECT_THAT(table, HasSubstr("servers not measured\n"));
}

TEST(ReportTableTest, Sweep) {
  const LoadReport report = SimulatedSweepReport();
  const std::string table = FormatTable(report);
  EXPECT_THAT(table, HasSubstr("objective: p99 latency at most 40.000 ms\n"));
  size_t lines = 0;
  for (size_t at = table.find("  met\n"); at != std::string::npos;
       at = table.find("  met\n", at + 1)) {
    ++lines;
  }
  EXPECT_EQ(lines, 4u);
  EXPECT_THAT(table, HasSubstr("\nbest rate     168.75 requests/s\n"));
  EXPECT_THAT(table, HasSubstr("\nbound         210.94 requests/s did not meet it\n"));
  EXPECT_THAT(table, HasSubstr("\noverload      at 337.50 requests/s "));
  EXPECT_THAT(table, HasSubstr("\nat the best rate\n"));
}

TEST(ReportTableTest, StepsSayWhyTheyAreInvalidAndOnlyThatTheyAreNotSteady) {
  LoadReport report = SimulatedSweepReport();
  report.sweep->steps.resize(3);
  report.sweep->met = {true, false, false};
  report.sweep->steps[0].verdict = {.steady = true};
  report.sweep->steps[1].verdict = {.steady = false, .reasons = {"thirds differ"}};
  report.sweep->steps[2].verdict = {
      .generator_kept_up = false, .steady = false, .reasons = {"sent late", "thirds differ"}};
  const std::string table = FormatTable(report);
  EXPECT_THAT(table, HasSubstr("  met\n"));
  EXPECT_THAT(table, HasSubstr("  not met, not steady\n"));
  EXPECT_THAT(table, HasSubstr("  not met: sent late\n"));
}

TEST(ReportTableTest, ASweepThatFoundNothing) {
  LoadReport report;
  report.sweep = SweepReport{.slo = absl::Milliseconds(1), .steps = {RunReport()}, .met = {false}};
  const std::string table = FormatTable(report);
  EXPECT_THAT(table, HasSubstr("best rate     none: no rate met the objective\n"));
  EXPECT_THAT(table, Not(HasSubstr("at the best rate")));
  EXPECT_THAT(table, Not(HasSubstr("nan")));
}

TEST(ReportTableTest, TextOfServersCannotSteerTheTerminal) {
  LoadReport report = SimulatedOpenLoopReport();
  report.servers[0].version = "\x1B]0;title\x07";
  report.run->result.statuses[absl::StatusCode::kInternal] = {.count = 1,
                                                              .first_message = "\x1B[2J\nx"};
  const std::string table = FormatTable(report);
  EXPECT_THAT(table, Not(HasSubstr("\x1B")));
  EXPECT_THAT(table, Not(HasSubstr("\x07")));
}

TEST(ReportTableTest, NothingWasRun) {
  LoadReport report;
  report.run.emplace();
  EXPECT_THAT(FormatTable(report), HasSubstr("latency       -\n"));
}

TEST(FormatProgressTest, OneLine) {
  EXPECT_EQ(FormatProgress({.elapsed = absl::Milliseconds(12'340),
                            .period = absl::Seconds(2),
                            .offered = 200,
                            .succeeded = 190,
                            .failed = 6,
                            .outstanding = 4,
                            .bytes = 3'000'000'000,
                            .p50 = absl::Microseconds(4500),
                            .p99 = absl::Milliseconds(20)}),
            "run 12.3 s: offered 100.0/s, achieved 98.0/s, good 95.0/s, p50 4.500 ms, p99 20.000 "
            "ms, 6 errors, 1.500 GB/s, 4 outstanding");
}

TEST(FormatProgressTest, NothingHappenedYet) {
  EXPECT_EQ(FormatProgress({.warming_up = true}),
            "warm-up 0.0 s: offered 0.0/s, achieved 0.0/s, good 0.0/s, p50 -, p99 -, 0 errors, "
            "0.000 GB/s, 0 outstanding");
}

}  // namespace
}  // namespace flashbias::client
