#include "client/load/report/report_html.h"

#include <limits>
#include <set>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/load/simulated_report.h"
#include "tests/client/load/xml_check.h"

namespace flashbias::client {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

LoadReport WithRun(RunReport run) {
  LoadReport report = SimulatedSetup();
  report.run = std::move(run);
  return report;
}

// What every page keeps.
void ExpectSound(const std::string& html) {
  const XmlCheck check = CheckXml(html);
  ASSERT_EQ(check.error, "");
  std::set<std::string> ids;
  for (const XmlElement& element : check.elements) {
    for (const auto& [name, value] : element.attributes) {
      if (name == "id") {
        EXPECT_TRUE(ids.insert(value).second) << "id twice: " << value;
      } else if (name == "d") {
        EXPECT_EQ(value.find_first_not_of("ML0123456789. -"), std::string::npos) << value;
      } else if (std::set<std::string>{"x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "width",
                                       "height"}
                     .count(name) > 0) {
        double number = 0;
        EXPECT_TRUE(absl::SimpleAtod(value, &number) && number >= 0 && number <= 1000)
            << element.name << " " << name << "=" << value;
      }
    }
    for (const std::string& id : std::vector<std::string>(
             absl::StrSplit(element.Attribute("aria-labelledby"), ' ', absl::SkipEmpty()))) {
      EXPECT_THAT(html, HasSubstr(absl::StrCat("id=\"", id, "\""))) << "nothing is labelled by it";
    }
  }
  // Nothing is fetched, nothing runs.
  for (const char* reference :
       {"http:", "https:", "url(", "@import", "src=", "href=", "<script", "<link", "javascript:"}) {
    EXPECT_THAT(html, Not(HasSubstr(reference)));
  }
}

TEST(ReportHtmlTest, OpenLoop) {
  const std::string html = FormatHtml(SimulatedOpenLoopReport());
  ExpectSound(html);
  for (const char* text :
       {"<title>Open loop at 180 requests/s - flashbias-load</title>", "✓ Valid", "! Not steady",
        "the median latency is 31 % above", "Latency by percentile", "Latency over time",
        "Throughput over time", "Time by stage", "DEADLINE_EXCEEDED", "prefill: 1024 x 1024",
        "10.0.0.6:8471", "0.520 ns/B", "flashbias_tiles_skipped_total", "p99 lag",
        "@media screen and (prefers-color-scheme: dark)"}) {
    EXPECT_THAT(html, HasSubstr(text));
  }
}

TEST(ReportHtmlTest, ClosedLoopIsCalledCapacity) {
  const std::string html = FormatHtml(SimulatedClosedLoopReport());
  ExpectSound(html);
  EXPECT_THAT(html, HasSubstr("<span class=\"badge plain\">Capacity</span>"));
  EXPECT_THAT(html, HasSubstr("✓ 120 answers verified"));
  EXPECT_THAT(html, Not(HasSubstr("✓ Valid")));
  EXPECT_THAT(html, Not(HasSubstr(">offered</li>")));
}

TEST(ReportHtmlTest, ATraceHasNoRate) {
  LoadReport report = SimulatedOpenLoopReport();
  report.run->rate = 0;
  report.arrivals = "trace";
  const std::string html = FormatHtml(report);
  EXPECT_THAT(html, HasSubstr("<h1>Open loop by the times of a trace</h1>"));
  EXPECT_THAT(html, HasSubstr("open loop, trace arrivals, at most"));
  EXPECT_THAT(html, Not(HasSubstr("0 requests/s")));
}

TEST(ReportHtmlTest, OnlyWhatWasComparedHasAnError) {
  LoadReport report = SimulatedClosedLoopReport();
  VerifyReport& verify = report.run->verify.emplace();
  verify = {.answers = 3, .rows = 5, .limit = 3e-4, .gradient_limit = 6e-4};
  std::string html = FormatHtml(report);
  EXPECT_THAT(html, HasSubstr("error of o<"));
  EXPECT_THAT(html, Not(HasSubstr("error of lse<")));
  EXPECT_THAT(html, Not(HasSubstr("error of gradients<")));
  verify.gradient_rows = 5;
  html = FormatHtml(report);
  EXPECT_THAT(html, Not(HasSubstr("error of o<")));
  EXPECT_THAT(html, HasSubstr("error of gradients<"));
}

TEST(ReportHtmlTest, Sweep) {
  const std::string html = FormatHtml(SimulatedSweepReport());
  ExpectSound(html);
  for (const char* text :
       {"✓ Best rate 169/s", "objective 40.0 ms", ">best 169/s</text>", "Goodput in overload",
        "At the best rate, 169 requests/s", "In overload, 338 requests/s"}) {
    EXPECT_THAT(html, HasSubstr(text));
  }
}

TEST(ReportHtmlTest, BadgesOfWhatIsWrong) {
  RunReport run = SimulateOpenLoop({.duration = absl::Seconds(3)});
  run.verdict.generator_kept_up = false;
  run.verify = VerifyReport{.answers = 9, .wrong = 2};
  const std::string html = FormatHtml(WithRun(run));
  EXPECT_THAT(html, HasSubstr("<span class=\"badge bad\">✕ Invalid</span>"));
  EXPECT_THAT(html, HasSubstr("<span class=\"badge bad\">✕ 2 of 9 verified answers wrong</span>"));
  EXPECT_THAT(html, HasSubstr("<span class=\"badge good\">✓ Steady</span>"));
}

TEST(ReportHtmlTest, TextOfOthersIsOnlyText) {
  const std::string hostile = "<script>alert('1')</script>\"><img src=x>\xFF\x01&";
  LoadReport report = SimulatedOpenLoopReport();
  report.version = report.command = report.transport = report.arrivals = hostile;
  report.targets = {hostile, hostile};
  report.servers[0] = {.version = hostile, .backend = hostile, .devices = {hostile}};
  report.entries[0].name = hostile;
  report.run->verdict.reasons = {hostile};
  report.run->result.statuses[absl::StatusCode::kInternal] = {.count = 1, .first_message = hostile};
  report.run->server_growth[hostile] = 1;
  const std::string html = FormatHtml(report);
  const XmlCheck check = CheckXml(html);
  EXPECT_EQ(check.error, "");
  for (const XmlElement& element : check.elements) {
    EXPECT_NE(element.name, "script");
    EXPECT_NE(element.name, "img");
  }
  EXPECT_THAT(html, HasSubstr("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot;&gt;"));
  EXPECT_THAT(html, Not(HasSubstr("<script")));
}

TEST(ReportHtmlTest, NothingWasRun) {
  ExpectSound(FormatHtml(LoadReport()));
  EXPECT_THAT(FormatHtml(LoadReport()), HasSubstr("No load was driven"));
}

TEST(ReportHtmlTest, NoRequestSucceeded) {
  for (const LoopKind loop : {LoopKind::kOpen, LoopKind::kClosed}) {
    RunReport run;
    run.loop = loop;
    run.result.intervals = {{.length = absl::Seconds(1), .offered = 5, .failed = 5},
                            {.start = absl::Seconds(1), .length = absl::Seconds(1)}};
    run.result.failed = 5;
    const std::string html = FormatHtml(WithRun(run));
    ExpectSound(html);
    EXPECT_THAT(html, HasSubstr("No request succeeded."));
  }
  ExpectSound(FormatHtml(WithRun(RunReport())));
}

TEST(ReportHtmlTest, OneInterval) {
  RunReport run = SimulateOpenLoop({.duration = absl::Milliseconds(700)});
  ASSERT_EQ(run.result.intervals.size(), 1u);
  const std::string html = FormatHtml(WithRun(run));
  ExpectSound(html);
  EXPECT_THAT(html, HasSubstr("class=\"dot c1\"")) << "one point has no line, it must be a dot";
}

TEST(ReportHtmlTest, OneRequest) {
  RunReport run;
  run.result.succeeded = 1;
  run.result.latency.Record(absl::Milliseconds(1));
  run.result.intervals = {{.length = absl::Microseconds(1), .offered = 1, .succeeded = 1}};
  ExpectSound(FormatHtml(WithRun(run)));
}

TEST(ReportHtmlTest, IntervalsWithoutSuccessAreGaps) {
  RunReport run = SimulateOpenLoop({.duration = absl::Seconds(9)});
  const std::string whole = FormatHtml(WithRun(run));
  run.result.intervals[4].succeeded = 0;
  const std::string cut = FormatHtml(WithRun(run));
  ExpectSound(cut);
  EXPECT_NE(whole, cut);
}

TEST(ReportHtmlTest, HugeAndInfiniteValues) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (const absl::Duration huge : {absl::Hours(1'000'000'000), absl::InfiniteDuration()}) {
    RunReport run = SimulateOpenLoop({.duration = absl::Seconds(3)});
    run.rate = kInfinity;
    run.client_cpu_seconds = kInfinity;
    run.server_cpu_seconds = std::numeric_limits<double>::quiet_NaN();
    run.result.offered = run.result.failed = kMost / 2;
    run.result.bytes = run.result.tokens = run.result.stages.tiles_computed = kMost / 2;
    run.result.elapsed = absl::Nanoseconds(1);
    run.result.stages.queue = huge;
    run.result.latency.Record(huge);
    for (Interval& interval : run.result.intervals) {
      interval.p50 = interval.p99 = interval.max = huge;
      interval.offered = interval.succeeded = kMost;
    }
    run.result.intervals.back().length = huge;
    run.server_growth["x"] = kInfinity;
    LoadReport report = WithRun(run);
    ExpectSound(FormatHtml(report));
    report.sweep = SweepReport{.slo = huge,
                               .steps = {run, run},
                               .met = {true, false},
                               .best_rate = kInfinity,
                               .overload = run};
    report.run.reset();
    ExpectSound(FormatHtml(report));
  }
}

TEST(ReportHtmlTest, SweepsInWhichNothingSucceeded) {
  LoadReport report = SimulatedSetup();
  report.sweep = SweepReport{.slo = absl::Milliseconds(5)};
  ExpectSound(FormatHtml(report));
  RunReport failed;
  failed.loop = LoopKind::kOpen;
  failed.rate = 100;
  failed.result.offered = failed.result.failed = 100;
  failed.result.elapsed = failed.result.offering = absl::Seconds(1);
  report.sweep->steps = {failed, failed};
  report.sweep->met = {false, false};
  const std::string html = FormatHtml(report);
  ExpectSound(html);
  EXPECT_THAT(html, HasSubstr("✕ No rate met the objective"));
  EXPECT_THAT(html, HasSubstr("No request succeeded at any rate."));
}

TEST(ReportHtmlTest, ThousandsOfIntervalsStayReadable) {
  const RunReport run =
      SimulateOpenLoop({.rate = 20, .duration = absl::Seconds(8000), .interval = absl::Seconds(1)});
  ASSERT_EQ(run.result.intervals.size(), 8000u);
  const std::string html = FormatHtml(WithRun(run));
  ExpectSound(html);
  EXPECT_LT(html.size(), 600'000u);
}

}  // namespace
}  // namespace flashbias::client
