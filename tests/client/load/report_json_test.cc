#include "client/load/report/report_json.h"

#include <limits>
#include <string>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/client/load/simulated_report.h"

namespace flashbias::client {
namespace {

using nlohmann::json;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A report with a value of its own in each field.
LoadReport FullReport() {
  LoadReport report = SimulatedSetup();
  RunReport run;
  run.loop = LoopKind::kOpen;
  run.rate = 20;
  run.concurrency = 64;
  LoadResult& result = run.result;
  result.elapsed = absl::Seconds(2);
  result.offering = absl::Milliseconds(1500);
  result.offered = 10;
  result.succeeded = 4;
  result.failed = 6;
  result.overflowed = 3;
  result.answered_in_time = 7;
  for (const int ms : {1, 2, 3, 4}) {
    result.latency.Record(absl::Milliseconds(ms));
    result.service.Record(absl::Milliseconds(ms) - absl::Microseconds(100));
  }
  result.lag.Record(absl::Microseconds(100));
  result.statuses[absl::StatusCode::kOk].count = 4;
  result.statuses[absl::StatusCode::kResourceExhausted] = {.count = 3, .first_message = "full"};
  result.entries.resize(2);
  result.entries[1] = {.succeeded = 4, .failed = 3};
  result.targets.resize(2);
  result.targets[0] = {.succeeded = 1, .failed = 2};
  result.intervals = {
      {.start = absl::Seconds(0),
       .length = absl::Seconds(1),
       .offered = 8,
       .succeeded = 4,
       .failed = 4,
       .bytes = 400,
       .p50 = absl::Milliseconds(2),
       .p99 = absl::Milliseconds(4),
       .max = absl::Milliseconds(4)},
      {.start = absl::Seconds(1), .length = absl::Milliseconds(500), .offered = 2, .failed = 2}};
  result.stages = {.receive = absl::Milliseconds(4),
                   .queue = absl::Milliseconds(1),
                   .compute = absl::Milliseconds(2),
                   .send = absl::Microseconds(400),
                   .upload = absl::Microseconds(800),
                   .kernel = absl::Microseconds(600),
                   .download = absl::Microseconds(200),
                   .calls = 8,
                   .batch_requests = 20,
                   .tiles_computed = 30,
                   .tiles_skipped = 10};
  result.bytes = 400;
  result.tokens = 4096;
  run.verdict = {.generator_kept_up = true,
                 .server_kept_up = false,
                 .steady = false,
                 .reasons = {"slow", "unsteady"}};
  run.verify = VerifyReport{.answers = 3,
                            .rows = 12,
                            .lse_rows = 4,
                            .gradient_rows = 8,
                            .wrong = 1,
                            .max_o_error = kInfinity,
                            .max_lse_error = 1e-6,
                            .limit = 3e-4,
                            .max_gradient_error = 2e-4,
                            .gradient_limit = 6e-4};
  run.client_cpu_seconds = 2;
  run.server_cpu_seconds = 3;
  run.cpu_bytes = 1'000'000'000;
  run.server_growth = {{"a_total", 5}, {"b_total", kInfinity}};
  report.run = std::move(run);
  return report;
}

TEST(ReportJsonTest, EveryField) {
  const std::string text = FormatJson(FullReport());
  EXPECT_EQ(text.back(), '\n');
  const json report = json::parse(text);
  EXPECT_EQ(report["version"], "0.1.0");
  EXPECT_EQ(report["started"], "2026-09-21T14:13:20+00:00");
  EXPECT_EQ(report["seed"], 7);
  EXPECT_EQ(report["servers"].size(), 2u);
  EXPECT_EQ(report["servers"][1],
            json({{"version", "0.1.0"}, {"backend", "cuda"}, {"devices", {"NVIDIA H200, sm_90"}}}));
  const json& config = report["config"];
  EXPECT_EQ(config["command"], SimulatedSetup().command);
  EXPECT_EQ(config["targets"], json({"10.0.0.5:8471", "10.0.0.6:8471"}));
  EXPECT_EQ(config["transport"], "inline");
  EXPECT_EQ(config["connections"], 8);
  EXPECT_EQ(config["arrivals"], "poisson");
  EXPECT_EQ(config["rate"], 20);
  EXPECT_EQ(config["concurrency"], 64);
  EXPECT_EQ(config["warmup_seconds"], 2);
  EXPECT_EQ(config["client_cores"], 16);
  EXPECT_EQ(config["entries"][0]["share"], 0.75);
  EXPECT_EQ(config["entries"][0]["request_bytes"], 9'830'400);
  EXPECT_EQ(config["entries"][0]["response_bytes"], 3'276'800);

  EXPECT_EQ(report["loop"], "open");
  EXPECT_EQ(report["rate"], 20);
  EXPECT_EQ(report["concurrency"], 64);
  EXPECT_EQ(report["verdict"], json({{"valid", false},
                                     {"generator_kept_up", true},
                                     {"server_kept_up", false},
                                     {"steady", false},
                                     {"reasons", {"slow", "unsteady"}}}));
  EXPECT_EQ(report["duration_seconds"], 2);
  EXPECT_EQ(report["offering_seconds"], 1.5);
  EXPECT_EQ(report["requests_offered"], 10);
  EXPECT_EQ(report["requests_succeeded"], 4);
  EXPECT_EQ(report["requests_failed"], 6);
  EXPECT_EQ(report["requests_overflowed"], 3);
  const Rates rates = RatesOf(FullReport().run->result);
  EXPECT_GT(rates.good, 0);
  EXPECT_DOUBLE_EQ(report["requests_per_second"], rates.good);
  EXPECT_DOUBLE_EQ(report["offered_per_second"], rates.offered);
  EXPECT_DOUBLE_EQ(report["achieved_per_second"], rates.achieved);
  EXPECT_EQ(report["tokens_per_second"], 2048);
  EXPECT_EQ(report["bytes_per_second"], 200);

  EXPECT_EQ(report["latency_seconds"]["count"], 4);
  EXPECT_EQ(report["latency_seconds"]["mean"], 0.0025);
  EXPECT_NEAR(report["latency_seconds"]["standard_deviation"], 0.001118034, 1e-8);
  EXPECT_EQ(report["latency_seconds"]["min"], 0.001);
  EXPECT_NEAR(report["latency_seconds"]["p50"], 0.002, 2e-6);
  EXPECT_NEAR(report["latency_seconds"]["p75"], 0.003, 3e-6);
  for (const char* high : {"p90", "p95", "p99", "p99.9", "p99.99", "p99.999", "max"}) {
    EXPECT_EQ(report["latency_seconds"][high], 0.004) << high;
  }
  EXPECT_EQ(report["service_seconds"]["max"], 0.0039);
  EXPECT_EQ(report["lag_seconds"]["count"], 1);
  EXPECT_EQ(report["lag_seconds"]["p50"], 0.0001);

  EXPECT_EQ(report["statuses"].size(), 2u);
  EXPECT_EQ(report["statuses"]["OK"]["count"], 4);
  EXPECT_EQ(report["statuses"]["RESOURCE_EXHAUSTED"]["count"], 3);
  EXPECT_EQ(report["statuses"]["RESOURCE_EXHAUSTED"]["first"], "full");
  EXPECT_EQ(report["entries"][1]["name"], SimulatedSetup().entries[1].name);
  EXPECT_EQ(report["entries"][1]["requests_succeeded"], 4);
  EXPECT_EQ(report["entries"][1]["requests_failed"], 3);
  EXPECT_EQ(report["entries"][1]["latency_seconds"]["p50"], nullptr);
  EXPECT_EQ(report["targets"][0]["name"], "10.0.0.5:8471");
  EXPECT_EQ(report["targets"][0]["requests_failed"], 2);
  EXPECT_EQ(report["intervals"][0], json({{"start_seconds", 0.0},
                                          {"length_seconds", 1.0},
                                          {"offered", 8},
                                          {"succeeded", 4},
                                          {"failed", 4},
                                          {"bytes", 400},
                                          {"p50_seconds", 0.002},
                                          {"p99_seconds", 0.004},
                                          {"max_seconds", 0.004}}));
  EXPECT_EQ(report["intervals"][1]["p50_seconds"], nullptr);

  EXPECT_EQ(report["server_stage_seconds"],
            json({{"receive", 0.001},
                  {"queue", 0.00025},
                  {"compute", 0.0005},
                  {"upload", 0.0002},
                  {"kernel", 0.00015},
                  {"download", 0.00005},
                  {"send", 0.0001},
                  {"outside", report["server_stage_seconds"]["outside"]}}));
  EXPECT_NEAR(report["server_stage_seconds"]["outside"], 0.0024 - 0.00185, 1e-9);
  EXPECT_EQ(report["batch_requests"], 2.5);
  EXPECT_EQ(report["tiles"], json({{"computed", 30}, {"skipped", 10}, {"skipped_share", 0.25}}));
  EXPECT_EQ(report["verify"], json({{"answers", 3},
                                    {"rows", 12},
                                    {"wrong", 1},
                                    {"max_o_error", nullptr},
                                    {"max_lse_error", 1e-6},
                                    {"limit", 3e-4},
                                    {"max_gradient_error", 2e-4},
                                    {"gradient_limit", 6e-4}}));
  EXPECT_EQ(report["cpu"], json({{"client_seconds", 2.0},
                                 {"server_seconds", 3.0},
                                 {"bytes", 1'000'000'000},
                                 {"client_ns_per_byte", 2.0},
                                 {"server_ns_per_byte", 3.0}}));
  EXPECT_EQ(report["server_metrics_growth"], json({{"a_total", 5.0}, {"b_total", nullptr}}));
  EXPECT_FALSE(report.contains("sweep"));
}

TEST(ReportJsonTest, AClosedLoopHasNoRateAndNoArrivals) {
  const json report = json::parse(FormatJson(SimulatedClosedLoopReport()));
  EXPECT_EQ(report["loop"], "closed");
  EXPECT_EQ(report["rate"], nullptr);
  EXPECT_EQ(report["config"]["rate"], nullptr);
  EXPECT_EQ(report["config"]["arrivals"], nullptr);
  EXPECT_EQ(report["config"]["concurrency"], 8);
}

TEST(ReportJsonTest, ATraceHasNoRateAndAWarmupMayHaveNoTime) {
  LoadReport report = SimulatedOpenLoopReport();
  report.run->rate = 0;
  report.warmup = absl::InfiniteDuration();
  report.warmup_requests = 100;
  const json parsed = json::parse(FormatJson(report));
  EXPECT_EQ(parsed["rate"], nullptr);
  EXPECT_EQ(parsed["config"]["rate"], nullptr);
  EXPECT_EQ(parsed["config"]["warmup_seconds"], nullptr);
  EXPECT_EQ(parsed["config"]["warmup_requests"], 100);
}

// The report of a run of which so much was compared.
LoadReport ComparedReport(int64_t rows, int64_t gradient_rows) {
  LoadReport report;
  VerifyReport& verify = report.run.emplace().verify.emplace();
  verify.answers = 1;
  verify.rows = rows;
  verify.gradient_rows = gradient_rows;
  verify.limit = 3e-4;
  verify.gradient_limit = 6e-4;
  return report;
}

TEST(ReportJsonTest, WhatWasNotComparedHasNoErrorAndNoLimit) {
  json verify = json::parse(FormatJson(ComparedReport(2, 0)))["verify"];
  EXPECT_EQ(verify["max_o_error"], 0);
  EXPECT_EQ(verify["limit"], 3e-4);
  for (const char* key : {"max_lse_error", "max_gradient_error", "gradient_limit"}) {
    EXPECT_EQ(verify[key], nullptr) << key;
  }
  verify = json::parse(FormatJson(ComparedReport(2, 2)))["verify"];
  EXPECT_EQ(verify["max_gradient_error"], 0);
  EXPECT_EQ(verify["gradient_limit"], 6e-4);
  for (const char* key : {"max_o_error", "max_lse_error", "limit"}) {
    EXPECT_EQ(verify[key], nullptr) << key;
  }
}

TEST(ReportJsonTest, AnEmptyRunHasNullsWhereNothingWasMeasured) {
  LoadReport empty;
  empty.run.emplace();
  const json report = json::parse(FormatJson(empty));
  EXPECT_EQ(report["requests_succeeded"], 0);
  EXPECT_EQ(report["requests_per_second"], 0);
  EXPECT_EQ(report["latency_seconds"]["p99"], nullptr);
  EXPECT_EQ(report["latency_seconds"]["mean"], nullptr);
  EXPECT_EQ(report["cpu"]["client_ns_per_byte"], nullptr);
  EXPECT_EQ(report["cpu"]["server_seconds"], nullptr);
  EXPECT_EQ(report["verify"], nullptr);
  EXPECT_EQ(report["intervals"], json::array());
  EXPECT_EQ(report["server_metrics_growth"], json::object());
}

TEST(ReportJsonTest, ASweep) {
  const LoadReport simulated = SimulatedSweepReport();
  const json report = json::parse(FormatJson(simulated));
  EXPECT_FALSE(report.contains("requests_succeeded"));
  const json& sweep = report["sweep"];
  EXPECT_EQ(sweep["slo_p99_seconds"], 0.04);
  EXPECT_EQ(sweep["best_rate"], *simulated.sweep->best_rate);
  EXPECT_EQ(sweep["bound_rate"], *simulated.sweep->bound_rate);
  ASSERT_EQ(sweep["steps"].size(), simulated.sweep->steps.size());
  EXPECT_EQ(sweep["steps"][0]["met"], true);
  EXPECT_EQ(sweep["steps"][4]["met"], false);
  EXPECT_EQ(sweep["steps"][4]["rate"], 253.125);
  EXPECT_EQ(sweep["steps"][4]["requests_succeeded"], simulated.sweep->steps[4].result.succeeded);
  EXPECT_EQ(sweep["overload"]["requests_failed"], simulated.sweep->overload->result.failed);
}

TEST(ReportJsonTest, ASweepInWhichNoRateMetTheObjective) {
  LoadReport none;
  none.sweep = SweepReport{.slo = absl::Milliseconds(1), .steps = {RunReport()}, .met = {false}};
  const json report = json::parse(FormatJson(none));
  EXPECT_EQ(report["sweep"]["best_rate"], nullptr);
  EXPECT_EQ(report["sweep"]["bound_rate"], nullptr);
  EXPECT_EQ(report["sweep"]["overload"], nullptr);
  EXPECT_EQ(report["sweep"]["steps"][0]["met"], false);
}

TEST(ReportJsonTest, TextOfServersNeedNotBeUtf8) {
  LoadReport report = FullReport();
  report.servers[0].version = "1\xFF\"\n";
  report.run->result.statuses[absl::StatusCode::kInternal] = {.count = 1,
                                                              .first_message = "\xC3 <script>"};
  report.run->server_growth["x\xFF"] = 1;
  const json parsed = json::parse(FormatJson(report));
  EXPECT_EQ(parsed["servers"][0]["version"], "1\xEF\xBF\xBD\"\n");
  EXPECT_EQ(parsed["statuses"]["INTERNAL"]["first"], "\xEF\xBF\xBD <script>");
  EXPECT_EQ(parsed["server_metrics_growth"]["x\xEF\xBF\xBD"], 1);
}

}  // namespace
}  // namespace flashbias::client
