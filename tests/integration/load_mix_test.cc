// Mixes of requests against a real server: every transport, both directions, every answer verified.
#include <unistd.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/attention_client.h"
#include "client/load/requests/mix_caller.h"
#include "client/load/requests/request_mix.h"
#include "client/load/requests/verifier.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend_factory.h"
#include "server/server.h"
#include "tests/client/load/drive_caller.h"
#include "tests/integration/http_get.h"
#include "tests/server/puppet_backend.h"
#include "tests/support/process_usage.h"

namespace flashbias::integration {
namespace {

using client::CallOutcome;
using client::DriveCaller;
using client::LengthDistribution;
using client::LoadDirection;
using client::LoadTransport;
using client::MixCaller;
using client::MixCallerOptions;
using client::RequestMix;
using client::SamplesOf;
using client::Verifier;
using client::VerifyReport;
using client::WorkloadOptions;
using server::PuppetBackend;
using server::Server;
using ::testing::HasSubstr;

constexpr int kSlots = 6;

// All directions, dtypes and kinds of lengths.
std::unique_ptr<RequestMix> EverythingMix() {
  client::MixOptions options{.seed = 5};
  const WorkloadOptions shape = {.heads = 4, .kv_heads = 2, .head_dim = 16, .num_inputs = 2};
  options.entries.push_back({.name = "prefill",
                             .weight = 3,
                             .workload = shape,
                             .seq_len = {.kind = LengthDistribution::Kind::kLogNormal,
                                         .min = 1,
                                         .max = 300,
                                         .median = 60,
                                         .sigma = 1}});
  options.entries.push_back(
      {.name = "decode",
       .weight = 3,
       .workload = shape,
       .seq_len = {.kind = LengthDistribution::Kind::kUniform, .min = 1, .max = 300},
       .q_len = {.kind = LengthDistribution::Kind::kChoice, .values = {1, 4}}});
  options.entries.back().workload.dtype = DType::kBFloat16;
  options.entries.back().workload.want_lse = true;
  options.entries.push_back(
      {.name = "backward",
       .weight = 2,
       .workload = shape,
       .seq_len = {.kind = LengthDistribution::Kind::kUniform, .min = 30, .max = 120}});
  options.entries.back().workload.direction = LoadDirection::kBackward;
  options.entries.back().workload.bias_gradient = true;
  options.entries.push_back({.name = "both",
                             .weight = 2,
                             .workload = shape,
                             .seq_len = {.kind = LengthDistribution::Kind::kFixed, .min = 70}});
  options.entries.back().workload.direction = LoadDirection::kBoth;
  options.entries.back().workload.dtype = DType::kFloat32;
  options.entries.back().workload.causal = false;
  options.entries.back().workload.alibi = "standard";
  auto mix = RequestMix::Create(std::move(options));
  EXPECT_TRUE(mix.ok()) << mix.status();
  return *std::move(mix);
}

class LoadMixTest : public ::testing::Test {
 protected:
  // Serves on a unix socket of this number.
  void Start(int number, std::unique_ptr<AttentionBackend> backend) {
    server::ServerOptions options;
    options.listen_address = "127.0.0.1:0";
    options.metrics_address = "127.0.0.1:0";
    options.listen_unix = absl::StrCat(::testing::TempDir(), "/load_mix.", getpid(), ".", number);
    auto server = Server::Create(options, std::move(backend));
    ASSERT_TRUE(server.ok()) << server.status();
    servers_.push_back(*std::move(server));
    targets_.push_back(absl::StrCat("unix:", options.listen_unix));
  }
  void StartCpu(int count) {
    for (int n = 0; n < count; ++n) {
      auto backend = CreateBackend({.kind = "cpu", .cpu_threads = 1});
      ASSERT_TRUE(backend.ok());
      Start(n, *std::move(backend));
    }
  }
  MixCallerOptions CallerOptions(LoadTransport transport) const {
    MixCallerOptions options{.transport = transport, .slots = kSlots, .verify_share = 1};
    for (const std::string& target : targets_) {
      options.clients.push_back({.target = target, .retry = {.max_attempts = 1}});
    }
    return options;
  }
  // Drives a mix with every answer verified.
  void ExpectRight(const MixCallerOptions& options, const RequestMix& mix, int64_t requests) {
    const Verifier verifier(&mix, /*pool_rows=*/64, /*rows_per_answer=*/16, /*seed=*/1);
    auto caller = MixCaller::Create(options, &mix, &verifier);
    ASSERT_TRUE(caller.ok()) << caller.status();
    EXPECT_EQ((*caller)->servers()[0].backend, "cpu");
    const std::vector<CallOutcome> outcomes = DriveCaller(**caller, requests, kSlots);
    std::vector<int> per_target(targets_.size());
    for (int64_t n = 0; n < requests; ++n) {
      const CallOutcome& outcome = outcomes[n];
      EXPECT_TRUE(outcome.status.ok()) << outcome.status;
      const bool both = mix.workload(outcome.entry).direction() == LoadDirection::kBoth;
      EXPECT_EQ(outcome.stages.calls, both ? 2 : 1);
      EXPECT_GT(outcome.stages.compute, absl::ZeroDuration());
      ++per_target[outcome.target];
    }
    for (const int count : per_target) {
      EXPECT_EQ(count, requests / static_cast<int64_t>(targets_.size()));
    }
    const VerifyReport report = verifier.Verify(SamplesOf(outcomes));
    EXPECT_EQ(report.answers, requests);
    EXPECT_EQ(report.wrong, 0) << report.max_o_error << " " << report.max_gradient_error;
    for (const VerifyReport& entry : report.entries) EXPECT_GT(entry.answers, 0);
  }

  double Metric(int server, const std::string& name) const {
    absl::StatusOr<Samples> samples = Scrape(servers_[server]->metrics_port());
    EXPECT_TRUE(samples.ok()) << samples.status();
    return (*samples)[name];
  }
  // Requests of one server by method.
  double Requests(int server, const std::string& method) const {
    return Metric(server, absl::StrCat("flashbias_requests_total{code=\"OK\",method=\"", method,
                                       "\",transport=\"unix\"}"));
  }

  std::vector<std::unique_ptr<Server>> servers_;
  std::vector<std::string> targets_;
};

TEST_F(LoadMixTest, InlineAnswersAreRight) {
  StartCpu(1);
  ExpectRight(CallerOptions(LoadTransport::kInline), *EverythingMix(), 120);
  EXPECT_GT(Requests(0, "Attend"), 0);
  EXPECT_GT(Requests(0, "AttendBackward"), 0);
  EXPECT_EQ(Requests(0, "AttendStream"), 0);
}

TEST_F(LoadMixTest, StreamedAnswersAreRight) {
  StartCpu(1);
  ExpectRight(CallerOptions(LoadTransport::kStream), *EverythingMix(), 120);
  EXPECT_EQ(Requests(0, "Attend"), 0);
  EXPECT_EQ(Requests(0, "AttendBackward"), 0);
  EXPECT_GT(Requests(0, "AttendStream"), 0);
  EXPECT_GT(Requests(0, "AttendBackwardStream"), 0);
}

TEST_F(LoadMixTest, AnswersInSharedMemoryAreRight) {
  StartCpu(2);
  const auto mix = EverythingMix();
  MixCallerOptions options = CallerOptions(LoadTransport::kSharedMemory);
  // What lies in regions counts towards no limit: inputs or results in messages would be refused.
  for (client::AttentionClient::Options& client : options.clients) {
    client.max_message_bytes = 1023;
  }
  ExpectRight(options, *mix, 240);
  EXPECT_GT(Requests(1, "AttendBackward"), 0);
  // The server unmaps a region a moment after the connection that it belongs to has ended.
  for (int tries = 0; tries < 1000 && support::MappedRegions() > 0; ++tries) {
    absl::SleepFor(absl::Milliseconds(10));
  }
  EXPECT_EQ(support::MappedRegions(), 0) << "regions went with the caller";
}

TEST_F(LoadMixTest, ARegionThatIsTooLargeIsToldWithItsTarget) {
  StartCpu(1);
  const auto mix = EverythingMix();
  MixCallerOptions options = CallerOptions(LoadTransport::kSharedMemory);
  options.slots = 1 << 20;
  const Verifier verifier(mix.get(), 8, 2, 1);
  const auto caller = MixCaller::Create(options, mix.get(), &verifier);
  EXPECT_EQ(caller.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(caller.status().message()), HasSubstr(absl::StrCat(targets_[0], ": ")));
}

// A server that is late writes to the slot of a request which its caller has given up.
TEST_F(LoadMixTest, ASlotThatTheServerMayStillWriteToIsNotUsedAgain) {
  auto backend = std::make_unique<PuppetBackend>(1);
  PuppetBackend* const puppet = backend.get();
  Start(0, std::move(backend));
  client::MixOptions mix_options;
  mix_options.entries.push_back(
      {.workload = {.heads = 2, .head_dim = 8, .seq_len = 32, .num_inputs = 1}});
  const auto mix = RequestMix::Create(mix_options);
  ASSERT_TRUE(mix.ok());
  MixCallerOptions options = CallerOptions(LoadTransport::kSharedMemory);
  options.verify_share = 0;
  options.slots = 1;
  options.timeout = absl::Seconds(3);
  const auto caller = MixCaller::Create(options, mix->get(), nullptr);
  ASSERT_TRUE(caller.ok()) << caller.status();
  const double sent_before = Metric(0, "flashbias_response_bytes_sum");
  EXPECT_EQ(DriveCaller(**caller, 1, 1)[0].status.code(), absl::StatusCode::kDeadlineExceeded);
  ASSERT_TRUE(puppet->WaitForRunsInFlight(1));
  puppet->EndRun();
  puppet->set_automatic(true);
  const std::vector<CallOutcome> outcomes = DriveCaller(**caller, 1, 1);
  EXPECT_TRUE(outcomes[0].status.ok()) << outcomes[0].status;
  // In a message: o is 1024 bytes.
  EXPECT_GE(Metric(0, "flashbias_response_bytes_sum") - sent_before, 1024);
}

}  // namespace
}  // namespace flashbias::integration
