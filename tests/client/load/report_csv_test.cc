#include "client/load/report/report_csv.h"

#include <map>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/client/load/simulated_report.h"

namespace flashbias::client {
namespace {

using Row = std::map<std::string, std::string>;

// RFC 4180: rows end in CRLF, fields may be quoted, quotes in them are doubled.
std::vector<Row> Parse(const std::string& csv) {
  std::vector<std::vector<std::string>> rows(1, std::vector<std::string>(1));
  bool quoted = false;
  for (size_t n = 0; n < csv.size(); ++n) {
    const char c = csv[n];
    if (quoted) {
      if (c != '"') {
        rows.back().back() += c;
      } else if (n + 1 < csv.size() && csv[n + 1] == '"') {
        rows.back().back() += c;
        ++n;
      } else {
        quoted = false;
      }
    } else if (c == '"') {
      quoted = true;
    } else if (c == ',') {
      rows.back().emplace_back();
    } else if (c == '\r') {
      EXPECT_EQ(csv.at(++n), '\n');
      rows.emplace_back(1);
    } else {
      EXPECT_NE(c, '\n') << "a line end without \\r";
      rows.back().back() += c;
    }
  }
  EXPECT_FALSE(quoted);
  EXPECT_EQ(rows.back(), std::vector<std::string>(1)) << "the last row ends, too";
  rows.pop_back();
  std::vector<Row> named;
  for (size_t r = 1; r < rows.size(); ++r) {
    EXPECT_EQ(rows[r].size(), rows[0].size()) << "row " << r;
    Row& row = named.emplace_back();
    for (size_t n = 0; n < std::min(rows[0].size(), rows[r].size()); ++n) {
      row[rows[0][n]] = rows[r][n];
    }
  }
  return named;
}

TEST(ReportCsvTest, OneRowForEachInterval) {
  LoadReport report;
  report.run.emplace();
  report.run->result.intervals = {
      {.start = absl::ZeroDuration(),
       .length = absl::Seconds(1),
       .offered = 12,
       .succeeded = 10,
       .failed = 2,
       .bytes = 12'345'678'901,
       .p50 = absl::Milliseconds(3),
       .p99 = absl::Microseconds(4567),
       .max = absl::Milliseconds(9)},
      {.start = absl::Seconds(1), .length = absl::Milliseconds(250), .offered = 3, .failed = 3}};
  const std::vector<Row> rows = Parse(FormatCsv(report));
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0], (Row{{"start_seconds", "0"},
                          {"length_seconds", "1"},
                          {"offered", "12"},
                          {"succeeded", "10"},
                          {"failed", "2"},
                          {"bytes", "12345678901"},
                          {"p50_seconds", "0.003"},
                          {"p99_seconds", "0.004567"},
                          {"max_seconds", "0.009"}}));
  // Without an answer there is no latency.
  EXPECT_EQ(rows[1], (Row{{"start_seconds", "1"},
                          {"length_seconds", "0.25"},
                          {"offered", "3"},
                          {"succeeded", "0"},
                          {"failed", "3"},
                          {"bytes", "0"},
                          {"p50_seconds", ""},
                          {"p99_seconds", ""},
                          {"max_seconds", ""}}));
}

TEST(ReportCsvTest, OneRowForEachStepOfASweepAndForItsOverload) {
  const LoadReport report = SimulatedSweepReport();
  const std::vector<Row> rows = Parse(FormatCsv(report));
  ASSERT_EQ(rows.size(), report.sweep->steps.size() + 1);
  for (size_t n = 0; n < report.sweep->steps.size(); ++n) {
    const RunReport& step = report.sweep->steps[n];
    EXPECT_EQ(rows[n].at("kind"), "step");
    EXPECT_DOUBLE_EQ(std::stod(rows[n].at("rate")), step.rate);
    EXPECT_EQ(rows[n].at("met"), report.sweep->met[n] ? "true" : "false");
    EXPECT_EQ(rows[n].at("succeeded"), std::to_string(step.result.succeeded));
    EXPECT_NEAR(std::stod(rows[n].at("p99_seconds")),
                absl::ToDoubleSeconds(step.result.latency.Percentile(99)), 1e-9);
    EXPECT_NEAR(std::stod(rows[n].at("good_per_second")), RatesOf(step.result).good, 1e-6);
    EXPECT_NEAR(std::stod(rows[n].at("client_cpu_ns_per_byte")), 0.31, 1e-6);
  }
  EXPECT_EQ(rows.back().at("kind"), "overload");
  EXPECT_EQ(rows.back().at("met"), "");
  EXPECT_EQ(rows.back().at("valid"), "false");
  EXPECT_EQ(rows.back().at("reasons"), report.sweep->overload->verdict.reasons[0]);
}

TEST(ReportCsvTest, QuotesWhatNeedsIt) {
  LoadReport report;
  RunReport step;
  step.verdict.reasons = {"a, \"b\"", "c\r\nd"};
  report.sweep = SweepReport{.steps = {step}, .met = {false}};
  const std::vector<Row> rows = Parse(FormatCsv(report));
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].at("reasons"), "a, \"b\"; c\r\nd");
  EXPECT_EQ(rows[0].at("p50_seconds"), "");
  EXPECT_EQ(rows[0].at("server_cpu_ns_per_byte"), "");
}

TEST(ReportCsvTest, WithoutARunOnlyNames) { EXPECT_TRUE(Parse(FormatCsv(LoadReport())).empty()); }

}  // namespace
}  // namespace flashbias::client
