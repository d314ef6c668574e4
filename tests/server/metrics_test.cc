#include "server/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "server/metrics_endpoint.h"
#include "tests/server/http_get.h"

namespace flashbias::server {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(MetricsTest, NamesTypesAndZeroesAreThereFromTheStart) {
  const Metrics metrics("1.2.3", "cpu");
  const std::string text = metrics.Serialize();
  for (const char* type : {
           "flashbias_requests_total counter",
           "flashbias_request_duration_seconds histogram",
           "flashbias_stage_duration_seconds histogram",
           "flashbias_batch_requests histogram",
           "flashbias_batch_work histogram",
           "flashbias_batch_tokens histogram",
           "flashbias_request_bytes histogram",
           "flashbias_response_bytes histogram",
           "flashbias_rejected_total counter",
           "flashbias_cancelled_total counter",
           "flashbias_queue_requests gauge",
           "flashbias_queue_bytes gauge",
           "flashbias_inflight_requests gauge",
           "flashbias_stream_reserved_bytes gauge",
           "flashbias_shm_regions gauge",
           "flashbias_shm_region_bytes gauge",
           "flashbias_tiles_computed_total counter",
           "flashbias_tiles_skipped_total counter",
           "flashbias_received_bytes_total counter",
           "flashbias_sent_bytes_total counter",
           "flashbias_build_info gauge",
       }) {
    EXPECT_THAT(text, HasSubstr(std::string("# TYPE ") + type + "\n"));
  }
  for (const char* line : {
           "flashbias_requests_total{code=\"OK\",method=\"Attend\",transport=\"tcp\"} 0",
           "flashbias_requests_total{code=\"INVALID_ARGUMENT\",method=\"GetServerInfo\","
           "transport=\"tcp\"} 0",
           "flashbias_request_duration_seconds_count{method=\"Attend\",transport=\"tcp\"} 0",
           "flashbias_stage_duration_seconds_count{stage=\"receive\"} 0",
           "flashbias_stage_duration_seconds_count{stage=\"queue\"} 0",
           "flashbias_stage_duration_seconds_count{stage=\"compute\"} 0",
           "flashbias_stage_duration_seconds_count{stage=\"upload\"} 0",
           "flashbias_stage_duration_seconds_count{stage=\"kernel\"} 0",
           "flashbias_stage_duration_seconds_count{stage=\"download\"} 0",
           "flashbias_stage_duration_seconds_count{stage=\"send\"} 0",
           "flashbias_rejected_total{reason=\"queue\"} 0",
           "flashbias_rejected_total{reason=\"deadline\"} 0",
           "flashbias_rejected_total{reason=\"invalid\"} 0",
           "flashbias_rejected_total{reason=\"draining\"} 0",
           "flashbias_rejected_total{reason=\"memory\"} 0",
           "flashbias_cancelled_total{where=\"receiving\"} 0",
           "flashbias_cancelled_total{where=\"queue\"} 0",
           "flashbias_cancelled_total{where=\"running\"} 0",
           "flashbias_cancelled_total{where=\"sending\"} 0",
           "flashbias_requests_total{code=\"OK\",method=\"AttendStream\",transport=\"unix\"} 0",
           "flashbias_requests_total{code=\"OK\",method=\"AttendBackward\",transport=\"tcp\"} 0",
           "flashbias_requests_total{code=\"OK\",method=\"AttendBackwardStream\","
           "transport=\"unix\"} 0",
           "flashbias_queue_requests 0",
           "flashbias_region_limit 0",
           "flashbias_build_info{backend=\"cpu\",version=\"1.2.3\"} 1",
       }) {
    EXPECT_THAT(text, HasSubstr(std::string("\n") + line + "\n"));
  }
}

TEST(MetricsTest, RequestBucketsReachFromHundredMicrosecondsToAMinute) {
  Metrics metrics("1", "cpu");
  metrics.CallFinished(Method::kAttend, Transport::kTcp, absl::StatusCode::kOk,
                       absl::Microseconds(100));
  metrics.CallFinished(Method::kAttend, Transport::kTcp, absl::StatusCode::kOk, absl::Seconds(59));
  metrics.CallFinished(Method::kAttend, Transport::kTcp, absl::StatusCode::kOk, absl::Seconds(61));
  const std::string text = metrics.Serialize();
  const std::string bucket =
      "flashbias_request_duration_seconds_bucket{method=\"Attend\",transport=\"tcp\",le=";
  EXPECT_THAT(text, HasSubstr(bucket + "\"0.0001\"} 1\n"));
  EXPECT_THAT(text, HasSubstr(bucket + "\"60\"} 2\n"));
  EXPECT_THAT(text, HasSubstr(bucket + "\"+Inf\"} 3\n"));
}

TEST(MetricsTest, StageBucketsReachFromAMicrosecondToAMinute) {
  Metrics metrics("1", "cpu");
  metrics.StageFinished(Stage::kCompute, absl::Microseconds(1));
  metrics.StageFinished(Stage::kCompute, absl::Seconds(59));
  metrics.StageFinished(Stage::kCompute, absl::Seconds(61));
  const std::string text = metrics.Serialize();
  const std::string bucket = "flashbias_stage_duration_seconds_bucket{stage=\"compute\",le=";
  EXPECT_THAT(text, HasSubstr(bucket + "\"1e-06\"} 1\n"));
  EXPECT_THAT(text, HasSubstr(bucket + "\"60\"} 2\n"));
  EXPECT_THAT(text, HasSubstr(bucket + "\"+Inf\"} 3\n"));
}

TEST(MetricsTest, EverythingIsCountedWhereItBelongs) {
  Metrics metrics("1", "cpu");
  metrics.CallStarted();
  metrics.CallStarted();
  EXPECT_THAT(metrics.Serialize(), HasSubstr("\nflashbias_inflight_requests 2\n"));
  metrics.CallFinished(Method::kAttend, Transport::kTcp, absl::StatusCode::kOk,
                       absl::Milliseconds(2));
  metrics.CallFinished(Method::kGetServerInfo, Transport::kTcp, absl::StatusCode::kUnavailable,
                       absl::Seconds(1));
  metrics.CallStarted();
  metrics.CallFinished(Method::kAttendBackwardStream, Transport::kUnix, absl::StatusCode::kOk,
                       absl::Milliseconds(4));
  metrics.StageFinished(Stage::kQueue, absl::Milliseconds(500));
  metrics.BatchStarted(3, 4000, 50);
  metrics.Rejected(RejectReason::kMemory);
  metrics.Cancelled(CancelWhere::kRunning);
  metrics.SetQueue(7, 1 << 30);
  metrics.TilesFinished(11, 22);
  metrics.ReceivedMessage(int64_t{3} << 32);
  metrics.SentMessage(5);
  const std::string text = metrics.Serialize();
  for (const char* line : {
           "flashbias_inflight_requests 0",
           "flashbias_requests_total{code=\"OK\",method=\"Attend\",transport=\"tcp\"} 1",
           "flashbias_requests_total{code=\"UNAVAILABLE\",method=\"GetServerInfo\","
           "transport=\"tcp\"} 1",
           "flashbias_requests_total{code=\"OK\",method=\"AttendBackwardStream\","
           "transport=\"unix\"} 1",
           "flashbias_request_duration_seconds_sum{method=\"Attend\",transport=\"tcp\"} 0.002",
           "flashbias_stage_duration_seconds_sum{stage=\"queue\"} 0.5",
           "flashbias_batch_requests_sum 3",
           "flashbias_batch_work_sum 4000",
           "flashbias_batch_tokens_sum 50",
           "flashbias_rejected_total{reason=\"memory\"} 1",
           "flashbias_cancelled_total{where=\"running\"} 1",
           "flashbias_queue_requests 7",
           "flashbias_queue_bytes 1073741824",
           "flashbias_tiles_computed_total 11",
           "flashbias_tiles_skipped_total 22",
           "flashbias_received_bytes_total 12884901888",
           "flashbias_request_bytes_count 1",
           "flashbias_sent_bytes_total 5",
           "flashbias_response_bytes_sum 5",
       }) {
    EXPECT_THAT(text, HasSubstr(std::string("\n") + line + "\n"));
  }
}

// Devices are asked when a scrape comes; whatever they say then is what it shows.
TEST(MetricsTest, DevicesAreReadAtEveryScrape) {
  Metrics metrics("1", "cuda");
  std::vector<DeviceReading> readings = {
      {.label = "0",
       .usage = {.device_memory_used_bytes = 11,
                 .device_memory_size_bytes = 12,
                 .device_memory_limit_bytes = 16,
                 .pinned_used_bytes = 13,
                 .pinned_size_bytes = 14,
                 .pinned_limit_bytes = 17,
                 .registered_bytes = 15}},
      {.label = "1", .usage = {.pinned_used_bytes = 13, .pinned_size_bytes = 14}}};
  metrics.WatchDevices([&] { return readings; });
  std::string text = metrics.Serialize();
  for (const char* line :
       {"flashbias_device_healthy{device=\"0\"} 1", "flashbias_device_healthy{device=\"1\"} 1",
        "flashbias_device_memory_used_bytes{device=\"0\"} 11",
        "flashbias_device_memory_size_bytes{device=\"0\"} 12",
        "flashbias_device_memory_limit_bytes{device=\"0\"} 16",
        "flashbias_pinned_pool_limit_bytes 17", "flashbias_pinned_pool_used_bytes 13",
        "flashbias_pinned_pool_size_bytes 14", "flashbias_registered_bytes 15"}) {
    EXPECT_THAT(text, HasSubstr(std::string("\n") + line + "\n"));
  }
  EXPECT_THAT(text, Not(HasSubstr("cuda_errors_total{")));

  readings[1].healthy = false;
  readings[0].usage.errors = {{"cudaErrorMemoryAllocation", 2}};
  readings[1].usage.errors = {{"cudaErrorIllegalAddress", 1}, {"cudaErrorMemoryAllocation", 1}};
  readings[0].usage.pinned_used_bytes = 0;
  readings[0].usage.registered_bytes = 0;
  for (int scrape = 0; scrape < 2; ++scrape) {
    text = metrics.Serialize();
    for (const char* line :
         {"flashbias_device_healthy{device=\"0\"} 1", "flashbias_device_healthy{device=\"1\"} 0",
          "flashbias_cuda_errors_total{code=\"cudaErrorMemoryAllocation\"} 3",
          "flashbias_cuda_errors_total{code=\"cudaErrorIllegalAddress\"} 1",
          "flashbias_pinned_pool_used_bytes 0", "flashbias_registered_bytes 0"}) {
      EXPECT_THAT(text, HasSubstr(std::string("\n") + line + "\n"));
    }
  }
}

TEST(MetricsTest, LimitsStandBesideWhatTheyLimit) {
  Metrics metrics("1", "cpu");
  metrics.SetLimits({.queue_requests = 1,
                     .queue_bytes = 2,
                     .stream_bytes = 3,
                     .message_bytes = 4,
                     .regions = 5,
                     .region_bytes = 6});
  const std::string text = metrics.Serialize();
  for (const char* line : {
           "flashbias_queue_limit_requests 1",
           "flashbias_queue_limit_bytes 2",
           "flashbias_stream_limit_bytes 3",
           "flashbias_message_limit_bytes 4",
           "flashbias_region_limit 5",
           "flashbias_shm_region_limit_bytes 6",
       }) {
    EXPECT_THAT(text, HasSubstr(std::string("\n") + line + "\n"));
  }
}

TEST(MetricsTest, RegionsAreReadAtEveryScrape) {
  Metrics metrics("1", "cpu");
  EXPECT_THAT(metrics.Serialize(), HasSubstr("\nflashbias_shm_regions 0\n"));
  RegionUsage usage = {
      .regions = 2, .bytes = 8192, .unregistered = 1, .device_regions = 3, .device_bytes = 77};
  metrics.WatchRegions([&] { return usage; });
  std::string text = metrics.Serialize();
  EXPECT_THAT(text, HasSubstr("\nflashbias_shm_regions 2\n"));
  EXPECT_THAT(text, HasSubstr("\nflashbias_shm_region_bytes 8192\n"));
  EXPECT_THAT(text, HasSubstr("\nflashbias_shm_unregistered_regions 1\n"));
  EXPECT_THAT(text, HasSubstr("\nflashbias_device_regions 3\n"));
  EXPECT_THAT(text, HasSubstr("\nflashbias_device_region_bytes 77\n"));
  usage = {};
  text = metrics.Serialize();
  EXPECT_THAT(text, HasSubstr("\nflashbias_shm_regions 0\n"));
  EXPECT_THAT(text, HasSubstr("\nflashbias_shm_region_bytes 0\n"));
}

TEST(MetricsTest, StreamsAreReadAtEveryScrape) {
  Metrics metrics("1", "cpu");
  EXPECT_THAT(metrics.Serialize(), HasSubstr("\nflashbias_stream_reserved_bytes 0\n"));
  int64_t bytes = 12345;
  metrics.WatchStreams([&] { return bytes; });
  EXPECT_THAT(metrics.Serialize(), HasSubstr("\nflashbias_stream_reserved_bytes 12345\n"));
  bytes = 0;
  EXPECT_THAT(metrics.Serialize(), HasSubstr("\nflashbias_stream_reserved_bytes 0\n"));
}

TEST(MetricsEndpointTest, ServesWhatIsCounted) {
  Metrics metrics("1", "cpu");
  const auto endpoint = MetricsEndpoint::Create("127.0.0.1:0", metrics);
  ASSERT_TRUE(endpoint.ok()) << endpoint.status();
  ASSERT_GT((*endpoint)->port(), 0);
  metrics.SetQueue(41, 42);
  const std::string answer = HttpGet((*endpoint)->port(), "/metrics");
  EXPECT_THAT(answer, HasSubstr(" 200 OK"));
  EXPECT_THAT(answer, HasSubstr("\nflashbias_queue_requests 41\n"));
  EXPECT_THAT(answer, HasSubstr("\nprocess_open_fds "));
  EXPECT_THAT(HttpGet((*endpoint)->port(), "/other"), Not(HasSubstr("flashbias_")));
}

TEST(MetricsEndpointTest, ATakenAddressIsNamed) {
  const Metrics metrics("1", "cpu");
  const auto first = MetricsEndpoint::Create("127.0.0.1:0", metrics);
  ASSERT_TRUE(first.ok());
  const std::string address = "127.0.0.1:" + std::to_string((*first)->port());
  const auto second = MetricsEndpoint::Create(address, metrics);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr("metrics_address is '" + address + "'"));
  EXPECT_THAT(std::string(second.status().message()), Not(HasSubstr("Civet")));
}

}  // namespace
}  // namespace flashbias::server
