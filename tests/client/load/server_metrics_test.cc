#include "client/load/engine/server_metrics.h"

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/load/scripted_http_server.h"

namespace flashbias::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::StartsWith;

TEST(ServerMetricsTest, ParsesTheTextFormat) {
  const MetricSamples samples = ParseMetrics(
      "# HELP a_total Things; with a space 7\n"
      "# TYPE a_total counter\n"
      "a_total 3\n"
      "b_total{code=\"OK\",kind=\"x y\"} 4.5\n"
      "c{text=\"brace } quote \\\" backslash \\\\\"} 1e3\n"
      "  d\t-2 1700000000000\r\n"
      "e_bucket{le=\"+Inf\"} 12\n"
      "f +Inf\n"
      "g NaN");
  EXPECT_EQ(samples.size(), 7u);
  EXPECT_EQ(samples.at("a_total"), 3);
  EXPECT_EQ(samples.at("b_total{code=\"OK\",kind=\"x y\"}"), 4.5);
  EXPECT_EQ(samples.at("c{text=\"brace } quote \\\" backslash \\\\\"}"), 1000);
  EXPECT_EQ(samples.at("d"), -2);
  EXPECT_EQ(samples.at("e_bucket{le=\"+Inf\"}"), 12);
  EXPECT_TRUE(std::isinf(samples.at("f")));
  EXPECT_TRUE(std::isnan(samples.at("g")));
}

TEST(ServerMetricsTest, LeavesOutWhatDoesNotParse) {
  EXPECT_THAT(ParseMetrics(""), IsEmpty());
  EXPECT_THAT(ParseMetrics("a\nb{x=\"1\n c{x=\"1\"}\nd one\ne 1 2 3\n 5\nf{ 1\ng 6\n"),
              ElementsAre(Pair("g", 6)));
}

TEST(ServerMetricsTest, GrowthIsOfCountersThatGrew) {
  const MetricSamples before = {{"a_total", 10}, {"reset_total", 50},        {"same_total", 5},
                                {"gauge", 1},    {"h_sum{code=\"x\"}", 1.5}, {"h_count", 2}};
  const MetricSamples after = {{"a_total", 12},           {"reset_total", 7},
                               {"same_total", 5},         {"gauge", 9},
                               {"h_sum{code=\"x\"}", 2},  {"h_count", 6},
                               {"h_bucket{le=\"1\"}", 4}, {"new_total{gauge=\"a_b\"}", 1}};
  EXPECT_THAT(CounterGrowth(before, after),
              ElementsAre(Pair("a_total", 2), Pair("h_bucket{le=\"1\"}", 4), Pair("h_count", 4),
                          Pair("h_sum{code=\"x\"}", 0.5), Pair("new_total{gauge=\"a_b\"}", 1),
                          Pair("reset_total", 7)));
}

TEST(ServerMetricsTest, Scrapes) {
  ScriptedHttpServer server(
      "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\r\na_total 3\n");
  const auto samples = ScrapeMetrics(server.address(), absl::Seconds(60));
  ASSERT_TRUE(samples.ok()) << samples.status();
  EXPECT_THAT(*samples, ElementsAre(Pair("a_total", 3)));
  EXPECT_THAT(server.request(), StartsWith("GET /metrics HTTP/1.1\r\n"));
}

TEST(ServerMetricsTest, ScrapesChunks) {
  ScriptedHttpServer server(
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
      "6\r\na_tota\r\n4\r\nl 3\n\r\n0\r\n\r\n");
  const auto samples = ScrapeMetrics(server.address(), absl::Seconds(60));
  ASSERT_TRUE(samples.ok()) << samples.status();
  EXPECT_THAT(*samples, ElementsAre(Pair("a_total", 3)));
}

void ExpectUnavailable(const std::string& address, absl::Duration timeout, const char* what) {
  const auto samples = ScrapeMetrics(address, timeout);
  EXPECT_EQ(samples.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(samples.status().message()), HasSubstr(address));
  EXPECT_THAT(std::string(samples.status().message()), HasSubstr(what));
}

TEST(ServerMetricsTest, SaysWhatWentWrong) {
  ScriptedHttpServer missing("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
  ExpectUnavailable(missing.address(), absl::Seconds(60), "answered 404");
  ScriptedHttpServer cut("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\na_total 3\n");
  ExpectUnavailable(cut.address(), absl::Seconds(60), "");
  ScriptedHttpServer silent("");
  ExpectUnavailable(silent.address(), absl::Milliseconds(200), "");
  std::string address;
  {
    ScriptedHttpServer gone("");
    address = gone.address();
  }
  ExpectUnavailable(address, absl::Seconds(60), "");
  ExpectUnavailable("no such host", absl::Seconds(60), "");
}

}  // namespace
}  // namespace flashbias::client
