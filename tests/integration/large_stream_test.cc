// A streamed request of gigabytes against the real server process, whose memory comes back.
//
// FLASHBIAS_LARGE_STREAM_MB in the environment: bytes of q, k and v together, in units of 10^6.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "client/attention_client.h"
#include "gtest/gtest.h"
#include "tests/integration/server_process.h"
#include "tests/support/compare.h"

namespace flashbias::integration {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kHeads = 8;
constexpr int64_t kHeadDim = 128;
constexpr int64_t kRowBytes = kHeads * kHeadDim * 2;

// The CPU's allocator keeps at most so much of what was given back (kernels/heap_allocator.h).
constexpr int64_t kKeptBytes = 512 * kMiB;
// What a process grows by for other reasons: threads, buffers of the transport, and what malloc
// keeps of those in the arenas of gRPC's threads, which depends on which thread read what.
constexpr int64_t kSlackBytes = 256 * kMiB;

int64_t RequestBytes() {
  int64_t megabytes = support::kSlowBuild ? 60 : 768;
  const char* const text = std::getenv("FLASHBIAS_LARGE_STREAM_MB");
  if (text != nullptr && (!absl::SimpleAtoi(text, &megabytes) || megabytes < 1)) {
    ADD_FAILURE() << "FLASHBIAS_LARGE_STREAM_MB is '" << text << "'; accepted: 1 and more";
  }
  return megabytes * 1'000'000;
}

// fp16 values that are finite, not zero and differ from place to place, so that a misplaced chunk
// shows.
std::vector<uint16_t> Values(size_t count) {
  std::vector<uint16_t> values(count);
  uint32_t state = 1;
  for (uint16_t& value : values) {
    state = state * 1664525 + 1013904223;
    value = static_cast<uint16_t>(((state >> 16) & 0xbbff) | 1);
  }
  return values;
}

// fp16 1 to 2 by magnitude, for products that stay small.
std::vector<uint16_t> SmallValues(size_t count) {
  std::vector<uint16_t> values = Values(count);
  for (uint16_t& value : values) value = static_cast<uint16_t>((value & 0x83ff) | 0x3c00);
  return values;
}

class LargeStreamTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto server = ServerProcess::Start(
        {"--max_stream_bytes=17179869184", "--pinned_memory_bytes=8589934592"});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    auto client = client::AttentionClient::Create({.target = server_->tcp_target(),
                                                   .default_timeout = absl::Minutes(10),
                                                   .stream_above_bytes = 0});
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }

  // Of a tensor, where a call moves `tensors` of them in all.
  static int64_t RowsFor(int64_t tensors) {
    return std::max<int64_t>(RequestBytes() / tensors / kRowBytes, 1);
  }

  // Makes the call with one row, then twice with `rows`; its `tensors` tensors of so many rows are
  // in the server while it runs, and gone then.
  void ExpectMemoryComesBack(int64_t rows, int64_t tensors,
                             const std::function<void(int64_t rows)>& call) {
    call(1);  // connections and threads are there
    ASSERT_TRUE(server_->AwaitNothingHeld(absl::Seconds(30)).ok());
    const int64_t before = server_->ResidentBytes();
    const int64_t bytes = tensors * rows * kRowBytes;
    int64_t after_first = 0;
    for (int n = 0; n < 2; ++n) {
      const absl::Time start = absl::Now();
      call(rows);
      const absl::Duration took = absl::Now() - start;
      const absl::Status released = server_->AwaitNothingHeld(absl::Seconds(30));
      EXPECT_TRUE(released.ok()) << released;
      // A GPU's pool of pinned memory gives back what it has not used for a while.
      const int64_t most = before + kKeptBytes + kSlackBytes;
      const absl::Time give_up = absl::Now() + absl::Seconds(60);
      while (TestBackend() == "cuda" && server_->ResidentBytes() > most && absl::Now() < give_up) {
        absl::SleepFor(absl::Milliseconds(100));
      }
      const int64_t after = server_->ResidentBytes();
      if (n == 0) after_first = after;
      std::printf("%.0f MB in and out: %.2f s; resident MB: before %.0f, peak %.0f, after %.0f\n",
                  1e-6 * static_cast<double>(bytes), absl::ToDoubleSeconds(took),
                  1e-6 * static_cast<double>(before),
                  1e-6 * static_cast<double>(server_->PeakResidentBytes()),
                  1e-6 * static_cast<double>(after));
      if (support::kSlowBuild) continue;  // sanitizers keep what is freed
      EXPECT_GE(server_->PeakResidentBytes(), before + bytes) << "it was there";
      EXPECT_LE(after, most);
      EXPECT_LE(after, after_first + kSlackBytes) << "a second call needs no more than the first";
    }
  }

  std::unique_ptr<ServerProcess> server_;
  std::unique_ptr<client::AttentionClient> client_;
};

TEST_F(LargeStreamTest, ItsAnswerIsWholeAndTheServersMemoryComesBack) {
  const int64_t rows = RowsFor(3);
  // One buffer for all three; a query sees its own key only, so o is that buffer again.
  const std::vector<uint16_t> values = Values(static_cast<size_t>(rows * kRowBytes / 2));
  std::vector<char> o(static_cast<size_t>(rows * kRowBytes));
  ExpectMemoryComesBack(rows, 4, [&](int64_t call_rows) {
    const client::TensorView tensor = {
        .dtype = DType::kFloat16, .shape = {call_rows, kHeads, kHeadDim}, .data = values.data()};
    const absl::Span<char> place(o.data(), static_cast<size_t>(call_rows * kRowBytes));
    std::memset(place.data(), 0xff, place.size());
    const auto result = client_->Attend({.q = tensor,
                                         .k = tensor,
                                         .v = tensor,
                                         .mask = client::MaskKind::kCausal,
                                         .left_window = 1},
                                        {.result = {.o = place}});
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(std::memcmp(place.data(), values.data(), place.size()), 0);
  });
}

// A query sees its own key only: P is 1 and o is v, so dv is d_o and nothing else has a gradient.
TEST_F(LargeStreamTest, GradientsAreWholeAndTheirMemoryComesBack) {
  const int64_t rows = RowsFor(5);
  const auto elements = static_cast<size_t>(rows * kRowBytes / 2);
  const std::vector<uint16_t> values = SmallValues(elements);  // of q, k, v, o and d_o
  std::vector<float> lse(static_cast<size_t>(rows * kHeads));
  const float scale = 1 / std::sqrt(static_cast<float>(kHeadDim));
  for (size_t n = 0; n < lse.size(); ++n) {
    double dot = 0;
    for (size_t d = n * kHeadDim; d < (n + 1) * kHeadDim; ++d) {
      const double value =
          static_cast<double>(LoadElement(DType::kFloat16, values.data(), static_cast<int64_t>(d)));
      dot += value * value;
    }
    lse[n] = static_cast<float>(dot * static_cast<double>(scale));
  }
  std::vector<char> dq(static_cast<size_t>(rows * kRowBytes));
  std::vector<char> dk(dq.size());
  std::vector<char> dv(dq.size());
  ExpectMemoryComesBack(rows, 8, [&](int64_t call_rows) {
    client::AttendBackwardRequest request;
    request.o = {
        .dtype = DType::kFloat16, .shape = {call_rows, kHeads, kHeadDim}, .data = values.data()};
    request.d_o = request.forward.q = request.forward.k = request.forward.v = request.o;
    request.forward.mask = client::MaskKind::kCausal;
    request.forward.left_window = 1;
    request.lse = absl::MakeConstSpan(lse).subspan(0, static_cast<size_t>(call_rows * kHeads));
    const auto bytes = static_cast<size_t>(call_rows * kRowBytes);
    client::CallOptions options;
    options.gradients = {.dq = absl::MakeSpan(dq).subspan(0, bytes),
                         .dk = absl::MakeSpan(dk).subspan(0, bytes),
                         .dv = absl::MakeSpan(dv).subspan(0, bytes)};
    std::memset(dv.data(), 0xff, bytes);
    const auto gradients = client_->AttendBackward(request, options);
    ASSERT_TRUE(gradients.ok()) << gradients.status();
    const auto at = [](const std::vector<char>& tensor, size_t n) {
      return LoadElement(DType::kFloat16, tensor.data(), static_cast<int64_t>(n));
    };
    size_t wrong = 0;
    for (size_t n = 0; n < bytes / 2; ++n) {
      const float d_o = LoadElement(DType::kFloat16, values.data(), static_cast<int64_t>(n));
      // Rounding of fp16 and of lse; dS is what rounding leaves of 256 less 256.
      const bool right = std::fabs(at(dv, n) - d_o) <= 2e-3F * std::fabs(d_o) &&
                         std::fabs(at(dq, n)) <= 0.1F && std::fabs(at(dk, n)) <= 0.1F;
      wrong += right ? 0 : 1;
    }
    EXPECT_EQ(wrong, 0u) << "of " << bytes / 2;
  });
}

}  // namespace
}  // namespace flashbias::integration
