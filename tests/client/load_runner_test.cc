#include "client/load/load_runner.h"

#include <atomic>
#include <memory>
#include <optional>
#include <string>

#include "client/load/report.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/client/fake_server.h"

namespace flashbias::client {
namespace {

using ::testing::HasSubstr;

// One run of 30 requests with every answer verified.
LoadReport RunAgainst(const FakeServer& server) {
  LoadReport report{.target = server.target(),
                    .concurrency = 3,
                    .workload = {.heads = 2,
                                 .head_dim = 8,
                                 .seq_len = 16,
                                 .dtype = DType::kFloat32,
                                 .want_lse = true,
                                 .num_inputs = 2}};
  const auto workload = Workload::Create(report.workload);
  EXPECT_TRUE(workload.ok()) << workload.status();
  report.request = (*workload)->summary();
  const auto client =
      AttentionClient::Create({.target = server.target(), .retry = {.max_attempts = 1}});
  EXPECT_TRUE(client.ok());
  Verifier verifier(workload->get(), 32, 8, 1);
  const std::atomic<bool> stop{false};
  report.result =
      RunLoad(client->get(), **workload, &verifier,
              {.concurrency = 3, .limit = {.requests = 30}, .verify_share = 1}, stop, nullptr);
  report.verify = verifier.Verify(report.result.samples);
  return report;
}

TEST(LoadRunnerTest, CountsWhatWasAnsweredAndVerifiesIt) {
  FakeServer server([](int, grpc::ServerContext*, const v1::AttendRequest& request,
                       v1::AttendResponse* response) { return TrueAnswer(request, response); });
  const LoadReport report = RunAgainst(server);
  EXPECT_EQ(server.calls(), 30);
  EXPECT_EQ(report.result.succeeded, 30);
  EXPECT_EQ(report.result.failed, 0);
  EXPECT_EQ(report.result.latency.count(), 30);
  EXPECT_GT(report.result.elapsed, absl::ZeroDuration());
  EXPECT_EQ(report.result.stages.compute, 30 * absl::Milliseconds(250));
  EXPECT_EQ(report.result.stages.tiles_computed, 30 * 7);
  EXPECT_EQ(report.verify->answers, 30);
  EXPECT_EQ(report.verify->wrong, 0) << report.verify->max_o_error;
  EXPECT_TRUE(Judge(report, false).ok()) << Judge(report, false);

  const nlohmann::json json = nlohmann::json::parse(FormatJson(report));
  EXPECT_EQ(json["requests_succeeded"], 30);
  EXPECT_EQ(json["server_stage_seconds"]["compute"], 0.25);
  EXPECT_EQ(json["server_stage_seconds"]["upload"], 0.0625);
  EXPECT_EQ(json["server_stage_seconds"]["kernel"], 0.125);
  EXPECT_EQ(json["server_stage_seconds"]["download"], 0.03125);
  EXPECT_EQ(json["batch_requests"], 3.0);
  EXPECT_EQ(json["tiles"]["skipped_share"], 0.125);
  EXPECT_EQ(json["verify"]["wrong"], 0);
  EXPECT_GT(json["latency_seconds"]["p50"], 0.0);
  EXPECT_EQ(json["request_bytes"], 4 * 3 * 16 * 2 * 8 + 2 * 4);
  EXPECT_EQ(json["response_bytes"], 4 * 16 * 2 * 8 + 4 * 16 * 2);
  EXPECT_THAT(FormatTable(report), HasSubstr("30 answers (240 rows), 0 wrong"));
}

TEST(LoadRunnerTest, OneCorruptedAnswerIsFoundAndFailsTheRun) {
  FakeServer server([](int call, grpc::ServerContext*, const v1::AttendRequest& request,
                       v1::AttendResponse* response) {
    const grpc::Status status = TrueAnswer(request, response);
    if (call == 17) {
      std::string* o = response->mutable_o()->mutable_data();
      for (int64_t n = 0; n < static_cast<int64_t>(o->size() / 4); ++n) {
        StoreElement(DType::kFloat32, o->data(), n,
                     LoadElement(DType::kFloat32, o->data(), n) * 1.0001f);
      }
    }
    return status;
  });
  const LoadReport report = RunAgainst(server);
  EXPECT_EQ(report.verify->answers, 30);
  EXPECT_EQ(report.verify->wrong, 1);
  EXPECT_EQ(Judge(report, true).code(), absl::StatusCode::kDataLoss);
}

TEST(LoadRunnerTest, ErrorsAreCountedByCode) {
  FakeServer server([](int call, grpc::ServerContext*, const v1::AttendRequest& request,
                       v1::AttendResponse* response) {
    if (call % 3 == 0) return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full");
    if (call % 3 == 1) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "drain\xff");
    return TrueAnswer(request, response);
  });
  const LoadReport report = RunAgainst(server);
  EXPECT_EQ(server.calls(), 30);
  EXPECT_EQ(report.result.succeeded, 10);
  EXPECT_EQ(report.result.failed, 20);
  EXPECT_EQ(report.result.latency.count(), 10);
  EXPECT_EQ(report.result.errors.at(absl::StatusCode::kResourceExhausted).count, 10);
  EXPECT_EQ(report.result.errors.at(absl::StatusCode::kResourceExhausted).first_message, "full");
  EXPECT_EQ(Judge(report, false).code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(Judge(report, true).ok());
  const nlohmann::json json = nlohmann::json::parse(FormatJson(report));
  EXPECT_EQ(json["errors"]["UNAVAILABLE"]["count"], 10);
}

TEST(LoadRunnerTest, NoSuccessFailsEvenWhenErrorsAreAllowed) {
  FakeServer server([](int, grpc::ServerContext*, const v1::AttendRequest&, v1::AttendResponse*) {
    return grpc::Status(grpc::StatusCode::INTERNAL, "broken");
  });
  EXPECT_FALSE(Judge(RunAgainst(server), true).ok());
}

TEST(LoadRunnerTest, RequestsAloneAreNotLimitedByTheDefaultDuration) {
  const absl::Duration ten = absl::Seconds(10);
  EXPECT_EQ(LimitFrom(std::nullopt, 0, ten).duration, ten);
  EXPECT_EQ(LimitFrom(std::nullopt, 5, ten).duration, absl::InfiniteDuration());
  EXPECT_EQ(LimitFrom(absl::Seconds(3), 5, ten).duration, absl::Seconds(3));
  EXPECT_EQ(LimitFrom(absl::Seconds(3), 5, ten).requests, 5);
}

TEST(LoadRunnerTest, WorkloadErrorsNameTheFlag) {
  const auto message = [](const WorkloadOptions& options) {
    const auto workload = Workload::Create(options);
    EXPECT_EQ(workload.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(workload.status().message());
  };
  EXPECT_EQ(message({.heads = 0}), "--heads is 0; accepted: 1 to 65536");
  EXPECT_EQ(message({.heads = 65537}), "--heads is 65537; accepted: 1 to 65536");
  EXPECT_EQ(message({.heads = 4, .kv_heads = 3}),
            "--kv_heads is 3; accepted: divisors of --heads, 4");
  EXPECT_EQ(message({.alibi = "standart"}),
            "--alibi is 'standart'; accepted: standard, seed, none");
  EXPECT_EQ(message({.eps = 1}), "--eps is 1; accepted: 0 to 2^-8");
  EXPECT_THAT(message({.heads = 65536, .head_dim = 128, .seq_len = 1 << 20}),
              HasSubstr("--seq_len"));
}

TEST(LoadRunnerTest, StopEndsARunWithoutLimits) {
  std::atomic<bool> stop{false};
  FakeServer server([&](int call, grpc::ServerContext*, const v1::AttendRequest& request,
                        v1::AttendResponse* response) {
    if (call == 5) stop = true;
    return Echo(request, response);
  });
  const auto workload = Workload::Create({.heads = 1, .head_dim = 8, .seq_len = 4});
  ASSERT_TRUE(workload.ok());
  const auto client = AttentionClient::Create({.target = server.target()});
  ASSERT_TRUE(client.ok());
  const LoadResult result =
      RunLoad(client->get(), **workload, nullptr, {.concurrency = 2}, stop, nullptr);
  EXPECT_GE(result.succeeded, 6);
}

}  // namespace
}  // namespace flashbias::client
