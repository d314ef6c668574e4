#include "server/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

namespace flashbias::server {
namespace {

using testing::HasSubstr;

TEST(OptionsTest, DefaultsAreValid) { EXPECT_TRUE(Validate(ServerOptions()).ok()); }

TEST(OptionsTest, MetricsMayBeOff) {
  ServerOptions options;
  options.metrics_address = "";
  EXPECT_TRUE(Validate(options).ok());
}

TEST(OptionsTest, AddressesMayBeIpv6AndPortZero) {
  ServerOptions options;
  options.listen_address = "[::1]:0";
  EXPECT_TRUE(Validate(options).ok());
}

TEST(OptionsTest, ConnectionsMayLiveForEver) {
  ServerOptions options;
  EXPECT_EQ(options.max_connection_age, absl::InfiniteDuration());
  options.max_connection_age_grace = absl::InfiniteDuration();
  EXPECT_TRUE(Validate(options).ok());
  options.max_connection_age = absl::Seconds(1);
  options.max_connection_age_grace = absl::ZeroDuration();
  EXPECT_TRUE(Validate(options).ok());
}

struct Case {
  std::string want;  // in the message
  std::function<void(ServerOptions*)> change;
};

TEST(OptionsTest, SharedMemoryGoesWithTheUnixSocket) {
  ServerOptions options;
  EXPECT_FALSE(SharedMemoryIsOn(options)) << "no unix socket";
  options.listen_unix = std::string(99, 'x');
  EXPECT_TRUE(SharedMemoryIsOn(options));
  EXPECT_EQ(RegionSocketPath(options), options.listen_unix + ".regions");
  EXPECT_TRUE(Validate(options).ok());
  options.shared_memory = SharedMemory::kOn;
  EXPECT_TRUE(Validate(options).ok());
  options.shared_memory = SharedMemory::kOff;
  EXPECT_FALSE(SharedMemoryIsOn(options));
  options.listen_unix = std::string(107, 'x');
  EXPECT_TRUE(Validate(options).ok()) << "no second path to fit";
}

class OptionsRefusalTest : public testing::TestWithParam<Case> {};

TEST_P(OptionsRefusalTest, NamesTheOptionAndItsValue) {
  ServerOptions options;
  GetParam().change(&options);
  const absl::Status status = Validate(options);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().want));
  EXPECT_THAT(std::string(status.message()), HasSubstr("accepted: "));
}

INSTANTIATE_TEST_SUITE_P(
    Table, OptionsRefusalTest,
    testing::Values(
        Case{"listen_address is 'nowhere'", [](auto* o) { o->listen_address = "nowhere"; }},
        Case{"listen_address is ':80'", [](auto* o) { o->listen_address = ":80"; }},
        Case{"listen_address is 'h:65536'", [](auto* o) { o->listen_address = "h:65536"; }},
        Case{"listen_address is 'h:-1'", [](auto* o) { o->listen_address = "h:-1"; }},
        Case{"metrics_address is 'h:x'", [](auto* o) { o->metrics_address = "h:x"; }},
        Case{"listen_unix is 'xxx", [](auto* o) { o->listen_unix = std::string(108, 'x'); }},
        Case{"listen_unix is 'xxx", [](auto* o) { o->listen_unix = std::string(100, 'x'); }},
        Case{"shared_memory is on and listen_unix is empty",
             [](auto* o) { o->shared_memory = SharedMemory::kOn; }},
        Case{"max_region_bytes is 4095", [](auto* o) { o->max_region_bytes = 4095; }},
        Case{"max_peer_region_bytes is -1", [](auto* o) { o->max_peer_region_bytes = -1; }},
        Case{"max_regions is 0", [](auto* o) { o->max_regions = 0; }},
        Case{"copy_threads is -1", [](auto* o) { o->copy_threads = -1; }},
        Case{"copy_threads is 65", [](auto* o) { o->copy_threads = 65; }},
        Case{"max_queue_requests is 0", [](auto* o) { o->scheduler.max_queue_requests = 0; }},
        Case{"max_queue_bytes is 0", [](auto* o) { o->scheduler.max_queue_bytes = 0; }},
        Case{"max_queue_delay is inf",
             [](auto* o) { o->scheduler.batch.max_queue_delay = absl::InfiniteDuration(); }},
        Case{"max_batch_work is -5", [](auto* o) { o->scheduler.batch.max_work = -5; }},
        Case{"max_batch_bytes is 0", [](auto* o) { o->scheduler.batch.max_bytes = 0; }},
        Case{"worthwhile_batch_bytes is 0",
             [](auto* o) { o->scheduler.batch.worthwhile_bytes = 0; }},
        Case{"max_batch_requests is 0", [](auto* o) { o->scheduler.batch.max_requests = 0; }},
        Case{"max_message_bytes is 2147483648",
             [](auto* o) { o->max_message_bytes = int64_t{1} << 31; }},
        Case{"max_message_bytes is 0", [](auto* o) { o->max_message_bytes = 0; }},
        Case{"max_stream_bytes is 1024", [](auto* o) { o->max_stream_bytes = 1024; }},
        Case{"max_sequences is 65537", [](auto* o) { o->max_sequences = 65537; }},
        Case{"max_sequences is 0", [](auto* o) { o->max_sequences = 0; }},
        Case{"max_concurrent_streams is 0", [](auto* o) { o->max_concurrent_streams = 0; }},
        Case{"keepalive_time is 1ms", [](auto* o) { o->keepalive_time = absl::Milliseconds(1); }},
        Case{"keepalive_timeout is 0",
             [](auto* o) { o->keepalive_timeout = absl::ZeroDuration(); }},
        Case{"min_ping_interval is -1s", [](auto* o) { o->min_ping_interval = -absl::Seconds(1); }},
        Case{"max_connection_age is 999ms; accepted: 1s to 24h, or inf",
             [](auto* o) { o->max_connection_age = absl::Milliseconds(999); }},
        Case{"max_connection_age is 25h", [](auto* o) { o->max_connection_age = absl::Hours(25); }},
        Case{"max_connection_age_grace is -inf",
             [](auto* o) { o->max_connection_age_grace = -absl::InfiniteDuration(); }}));

}  // namespace
}  // namespace flashbias::server
