#include "server/flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/flags/commandlineflag.h"
#include "absl/flags/reflection.h"

namespace flashbias::server {
namespace {

using testing::HasSubstr;

class FlagsTest : public testing::Test {
 protected:
  static void Set(const char* name, const char* value) {
    absl::CommandLineFlag* const flag = absl::FindCommandLineFlag(name);
    ASSERT_NE(flag, nullptr) << name;
    std::string error;
    ASSERT_TRUE(flag->ParseFrom(value, &error)) << error;
  }

 private:
  const absl::FlagSaver saver_;
};

TEST_F(FlagsTest, DefaultsAreThoseOfTheOptions) {
  const auto options = OptionsFromFlags();
  ASSERT_TRUE(options.ok()) << options.status();
  const ServerOptions defaults;
  EXPECT_EQ(options->server.listen_address, defaults.listen_address);
  EXPECT_EQ(options->server.metrics_address, defaults.metrics_address);
  EXPECT_EQ(options->server.max_message_bytes, defaults.max_message_bytes);
  EXPECT_EQ(options->server.scheduler.batch.max_work, defaults.scheduler.batch.max_work);
  EXPECT_EQ(options->backend.kind, "auto");
  EXPECT_EQ(options->drain_timeout, absl::Seconds(30));
}

TEST_F(FlagsTest, EveryFlagReachesItsOption) {
  Set("listen_address", "127.0.0.1:1");
  Set("listen_unix", "/tmp/socket");
  Set("metrics_address", "127.0.0.1:2");
  Set("shared_memory", "off");
  Set("max_region_bytes", "5000");
  Set("max_peer_region_bytes", "6000");
  Set("max_regions", "7");
  Set("port_file", "/tmp/ports");
  Set("reflection", "false");
  Set("backend", "cpu");
  Set("cpu_threads", "3");
  Set("cuda_devices", "1,3");
  Set("cuda_slots", "5");
  Set("device_memory_bytes", "17");
  Set("pinned_memory_bytes", "18000000");
  Set("max_queue_requests", "4");
  Set("max_queue_bytes", "5");
  Set("max_queue_delay", "6ms");
  Set("max_batch_work", "7");
  Set("max_batch_bytes", "8");
  Set("max_batch_requests", "9");
  Set("worthwhile_batch_bytes", "10");
  Set("max_message_bytes", "1025");
  Set("max_stream_bytes", "11000000");
  Set("max_sequences", "11");
  Set("copy_threads", "17");
  Set("max_concurrent_streams", "12");
  Set("keepalive_time", "13s");
  Set("keepalive_timeout", "14s");
  Set("min_ping_interval", "15s");
  Set("max_connection_age", "18m");
  Set("max_connection_age_grace", "inf");
  Set("drain_timeout", "16s");
  Set("log_level", "debug");
  Set("log_format", "json");
  const auto options = OptionsFromFlags();
  ASSERT_TRUE(options.ok()) << options.status();
  const ServerOptions& server = options->server;
  EXPECT_EQ(server.listen_address, "127.0.0.1:1");
  EXPECT_EQ(server.listen_unix, "/tmp/socket");
  EXPECT_EQ(server.metrics_address, "127.0.0.1:2");
  EXPECT_EQ(server.shared_memory, SharedMemory::kOff);
  EXPECT_EQ(server.max_region_bytes, 5000);
  EXPECT_EQ(server.max_peer_region_bytes, 6000);
  EXPECT_EQ(server.max_regions, 7);
  EXPECT_EQ(options->port_file, "/tmp/ports");
  EXPECT_FALSE(server.reflection);
  EXPECT_EQ(options->backend.kind, "cpu");
  EXPECT_EQ(options->backend.cpu_threads, 3);
  EXPECT_EQ(options->backend.cuda_devices, "1,3");
  EXPECT_EQ(options->backend.cuda_slots, 5);
  EXPECT_EQ(options->backend.device_memory_bytes, 17);
  EXPECT_EQ(options->backend.pinned_memory_bytes, 18000000);
  EXPECT_EQ(server.scheduler.max_queue_requests, 4);
  EXPECT_EQ(server.scheduler.max_queue_bytes, 5);
  EXPECT_EQ(server.scheduler.batch.max_queue_delay, absl::Milliseconds(6));
  EXPECT_EQ(server.scheduler.batch.max_work, 7);
  EXPECT_EQ(server.scheduler.batch.max_bytes, 8);
  EXPECT_EQ(server.scheduler.batch.max_requests, 9);
  EXPECT_EQ(server.scheduler.batch.worthwhile_bytes, 10);
  EXPECT_EQ(server.max_message_bytes, 1025);
  EXPECT_EQ(server.max_stream_bytes, 11000000);
  EXPECT_EQ(server.max_sequences, 11);
  EXPECT_EQ(server.copy_threads, 17);
  EXPECT_EQ(server.max_concurrent_streams, 12);
  EXPECT_EQ(server.keepalive_time, absl::Seconds(13));
  EXPECT_EQ(server.keepalive_timeout, absl::Seconds(14));
  EXPECT_EQ(server.min_ping_interval, absl::Seconds(15));
  EXPECT_EQ(server.max_connection_age, absl::Minutes(18));
  EXPECT_EQ(server.max_connection_age_grace, absl::InfiniteDuration());
  EXPECT_EQ(options->drain_timeout, absl::Seconds(16));
  EXPECT_EQ(options->log_level, LogLevel::kDebug);
  EXPECT_EQ(options->log_format, LogFormat::kJson);
}

TEST_F(FlagsTest, HelpTextHasEveryFlagAndNoOther) {
  const std::string text = HelpText();
  EXPECT_THAT(text, HasSubstr("--max_queue_bytes (default: 2147483648)\n"));
  EXPECT_THAT(text, HasSubstr("--listen_address (default: 0.0.0.0:8471)\n"));
  EXPECT_THAT(text, HasSubstr("--log_format"));
  EXPECT_THAT(text, testing::Not(HasSubstr("--undefok")));
}

TEST_F(FlagsTest, TheActionIsServingUnlessAFlagSaysOtherwise) {
  EXPECT_EQ(OptionsFromFlags()->action, Action::kServe);
  Set("health_check", "true");
  EXPECT_EQ(OptionsFromFlags()->action, Action::kHealthCheck);
  Set("print_config", "true");
  EXPECT_THAT(std::string(OptionsFromFlags().status().message()),
              HasSubstr("health_check and print_config are both true"));
  Set("health_check", "false");
  EXPECT_EQ(OptionsFromFlags()->action, Action::kPrintConfig);
}

TEST_F(FlagsTest, ConfigTextHasTheValuesAndNoAction) {
  Set("max_queue_requests", "77");
  Set("print_config", "true");
  const std::string text = ConfigText();
  EXPECT_THAT(text, HasSubstr("\n--max_queue_requests=77\n"));
  EXPECT_THAT(text, HasSubstr("\n--listen_unix=\n"));
  EXPECT_THAT(text, HasSubstr("\n--max_queue_delay=2ms\n"));
  EXPECT_THAT(text, testing::Not(HasSubstr("print_config")));
  EXPECT_THAT(text, testing::Not(HasSubstr("health_check")));
}

TEST_F(FlagsTest, BadValuesAreNamed) {
  const auto error_with = [](const char* name, const char* value) {
    const absl::FlagSaver saver;
    Set(name, value);
    return std::string(OptionsFromFlags().status().message());
  };
  EXPECT_THAT(error_with("log_level", "loud"), HasSubstr("log_level is 'loud'; accepted: debug"));
  EXPECT_THAT(error_with("log_format", "xml"), HasSubstr("log_format is 'xml'; accepted: text"));
  EXPECT_THAT(error_with("shared_memory", "yes"),
              HasSubstr("shared_memory is 'yes'; accepted: on, off, auto"));
  EXPECT_THAT(error_with("drain_timeout", "-1s"), HasSubstr("drain_timeout is -1s"));
  EXPECT_THAT(error_with("backend", "abacus"), HasSubstr("backend is 'abacus'"));
  EXPECT_THAT(error_with("pinned_memory_bytes", "18"), HasSubstr("pinned_memory_bytes is 18"));
  EXPECT_THAT(error_with("max_batch_work", "0"), HasSubstr("max_batch_work is 0"));
}

}  // namespace
}  // namespace flashbias::server
