// Streamed calls through the whole service: client, server and CPU backend over loopback.
#include <gtest/gtest.h>
#include <malloc.h>

#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/attention_client.h"
#include "kernels/backend_factory.h"
#include "server/server.h"
#include "tests/integration/http_get.h"
#include "tests/integration/remote_problem.h"
#include "tests/support/attention_case.h"
#include "tests/support/compare.h"

namespace flashbias::integration {
namespace {

using client::AttendResult;
using client::AttentionClient;
using server::Server;
using server::ServerOptions;

// Of this process, without what malloc keeps of freed memory: gRPC's threads free messages into the
// arenas of one another, which hold over a hundred megabytes after one call and few after another.
int64_t ResidentBytes() {
  malloc_trim(0);
  std::ifstream status("/proc/self/status");
  std::string word;
  int64_t kib = 0;
  while (status >> word) {
    if (word == "VmRSS:") status >> kib;
  }
  return kib << 10;
}

class StreamTest : public ::testing::Test {
 protected:
  void Start(ServerOptions options = {}) {
    options.listen_address = "127.0.0.1:0";
    options.metrics_address = "127.0.0.1:0";
    auto backend = CreateBackend({.kind = "cpu", .cpu_threads = 2});
    ASSERT_TRUE(backend.ok()) << backend.status();
    auto server = Server::Create(options, *std::move(backend));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  std::unique_ptr<AttentionClient> NewClient(AttentionClient::Options options = {}) const {
    options.target = absl::StrCat("127.0.0.1:", server_->port());
    auto client = AttentionClient::Create(std::move(options));
    EXPECT_TRUE(client.ok()) << client.status();
    return *std::move(client);
  }
  double Metric(const std::string& name) const {
    absl::StatusOr<Samples> samples = Scrape(server_->metrics_port());
    EXPECT_TRUE(samples.ok()) << samples.status();
    return samples.ok() ? (*samples)[name] : -1;
  }
  // The last chunk of an answer may leave after its caller has it.
  void WaitUntilNothingIsReserved() const {
    const absl::Time end = absl::Now() + absl::Seconds(30);
    while (Metric("flashbias_stream_reserved_bytes") > 0) {
      ASSERT_LT(absl::Now(), end) << "memory of streams is still reserved";
      absl::SleepFor(absl::Milliseconds(5));
    }
  }

  std::unique_ptr<Server> server_;
};

TEST_F(StreamTest, EveryBitIsThatOfAttend) {
  Start();
  const auto whole = NewClient();
  const auto streamed = NewClient({.stream_above_bytes = 0});
  const auto small_chunks = NewClient({.max_message_bytes = 4096, .stream_above_bytes = 0});
  for (int seed = 0; seed < (support::kSlowBuild ? 10 : 40); ++seed) {
    support::AttentionCase c = support::RandomCase(static_cast<uint64_t>(seed));
    const support::OwnedProblem owned = support::Materialise(c);
    const client::AttendRequest request = RequestOf(owned);
    const absl::StatusOr<AttendResult> want = whole->Attend(request);
    ASSERT_TRUE(want.ok()) << want.status();
    for (const auto& client : {streamed.get(), small_chunks.get()}) {
      const absl::StatusOr<AttendResult> got = client->Attend(request);
      ASSERT_TRUE(got.ok()) << got.status() << " " << support::Describe(c);
      EXPECT_EQ(got->o, want->o) << support::Describe(c);
      ASSERT_EQ(got->lse.size(), want->lse.size());
      EXPECT_TRUE(want->lse.empty() || std::memcmp(got->lse.data(), want->lse.data(),
                                                   want->lse.size() * sizeof(float)) == 0);
      EXPECT_EQ(got->timing.tiles_computed, want->timing.tiles_computed);
    }
  }
}

// Each query sees one key, so its answer is that key's value, to the bit.
void CallWithOneKey(AttentionClient& client, int64_t rows) {
  const std::vector<float> q(static_cast<size_t>(rows) * 128, 0.25f);
  std::vector<float> v(128);
  for (size_t n = 0; n < v.size(); ++n) v[n] = static_cast<float>(n) - 63.5f;
  std::vector<char> o(q.size() * sizeof(float));
  const client::AttendRequest request = {.q = {.shape = {rows, 1, 128}, .data = q.data()},
                                         .k = {.shape = {1, 1, 128}, .data = v.data()},
                                         .v = {.shape = {1, 1, 128}, .data = v.data()},
                                         .mask = client::MaskKind::kFull};
  const absl::StatusOr<AttendResult> result =
      client.Attend(request, {.result = {.o = absl::MakeSpan(o)}});
  ASSERT_TRUE(result.ok()) << result.status();
  for (int64_t row = 0; row < rows; ++row) {
    ASSERT_EQ(std::memcmp(o.data() + row * 512, v.data(), 512), 0) << row;
  }
}

TEST_F(StreamTest, WhatFitsNoMessageIsAnsweredAndItsMemoryComesBack) {
  constexpr int64_t kRows = support::kSlowBuild ? 40'000 : 400'000;
  constexpr int64_t kTensorBytes = kRows * 512;  // each way
  constexpr int kMoreCalls = 4;
  Start({.max_message_bytes = 4 << 20});
  const auto client = NewClient({.max_message_bytes = 4 << 20});
  CallWithOneKey(*client, kRows);
  WaitUntilNothingIsReserved();
  const int64_t after_first = ResidentBytes();
  for (int n = 0; n < kMoreCalls; ++n) CallWithOneKey(*client, kRows);
  WaitUntilNothingIsReserved();
  const int64_t grown = ResidentBytes() - after_first;
  // A leak of one tensor a call would be kMoreCalls of them. Messages that gRPC has yet to let go
  // of are a few tens of megabytes.
  if (!support::kSlowBuild) {
    EXPECT_LT(grown, kTensorBytes / 2);
  }
  EXPECT_EQ(Metric("flashbias_requests_total{code=\"OK\",method=\"AttendStream\","
                   "transport=\"tcp\"}"),
            1 + kMoreCalls);
  EXPECT_GT(Metric("flashbias_received_bytes_total"), (1.0 + kMoreCalls) * kTensorBytes);
}

// Two tensors beyond 2^31 bytes, an answer of a few. Needs 8 GB of memory.
TEST_F(StreamTest, DISABLED_TensorsBeyondTwoGigabytes) {
  Start();
  const auto client = NewClient({.default_timeout = absl::Minutes(5)});
  const int64_t before = ResidentBytes();
  {
    constexpr int64_t kKeys = 9'000'000;  // 2.3 GB of k, and of v
    constexpr uint16_t kOne = 0x3c00;
    const std::vector<uint16_t> ones(static_cast<size_t>(kKeys) * 128, kOne);
    const client::AttendRequest request = {
        .q = {.dtype = DType::kFloat16, .shape = {1, 1, 128}, .data = ones.data()},
        .k = {.dtype = DType::kFloat16, .shape = {kKeys, 1, 128}, .data = ones.data()},
        .v = {.dtype = DType::kFloat16, .shape = {kKeys, 1, 128}, .data = ones.data()},
        .mask = client::MaskKind::kFull};
    const absl::Time start = absl::Now();
    const absl::StatusOr<AttendResult> result = client->Attend(request);
    ASSERT_TRUE(result.ok()) << result.status();
    RecordProperty("seconds", absl::StrCat(absl::ToDoubleSeconds(absl::Now() - start)));
    for (size_t n = 0; n < 128; ++n) {
      uint16_t value = 0;
      std::memcpy(&value, result->o.data() + 2 * n, 2);
      EXPECT_NEAR(value, kOne, 2) << n;
    }
  }
  EXPECT_LT(ResidentBytes() - before, int64_t{640} << 20) << "but for what the allocator keeps";
}

}  // namespace
}  // namespace flashbias::integration
