// A streamed request of gigabytes against the real server process, whose memory comes back.
//
// FLASHBIAS_LARGE_STREAM_MB in the environment: bytes of q, k and v together, in units of 10^6.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
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
// What a process grows by for other reasons: threads, arenas, buffers of the transport.
constexpr int64_t kSlackBytes = 128 * kMiB;

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

TEST(LargeStreamTest, ItsAnswerIsWholeAndTheServersMemoryComesBack) {
  const int64_t rows = std::max<int64_t>(RequestBytes() / 3 / kRowBytes, 1);
  const int64_t tensor_bytes = rows * kRowBytes;
  auto server =
      ServerProcess::Start({"--max_stream_bytes=17179869184", "--pinned_memory_bytes=8589934592"});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto client = client::AttentionClient::Create({.target = (*server)->tcp_target(),
                                                       .default_timeout = absl::Minutes(10),
                                                       .stream_above_bytes = 0});
  ASSERT_TRUE(client.ok()) << client.status();

  // One buffer for all three; a query sees its own key only, so o is that buffer again.
  const std::vector<uint16_t> values = Values(static_cast<size_t>(tensor_bytes / 2));
  std::vector<char> o(static_cast<size_t>(tensor_bytes));
  const auto call = [&](int64_t call_rows) {
    const client::TensorView tensor = {
        .dtype = DType::kFloat16, .shape = {call_rows, kHeads, kHeadDim}, .data = values.data()};
    const absl::Span<char> place(o.data(), static_cast<size_t>(call_rows * kRowBytes));
    std::memset(place.data(), 0xff, place.size());
    const auto result = (*client)->Attend({.q = tensor,
                                           .k = tensor,
                                           .v = tensor,
                                           .mask = client::MaskKind::kCausal,
                                           .left_window = 1},
                                          {.result = {.o = place}});
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(std::memcmp(place.data(), values.data(), place.size()), 0);
  };
  call(1);  // connections and threads are there
  ASSERT_TRUE((*server)->AwaitNothingHeld(absl::Seconds(30)).ok());
  const int64_t before = (*server)->ResidentBytes();
  int64_t after_first = 0;
  for (int n = 0; n < 2; ++n) {
    const absl::Time start = absl::Now();
    call(rows);
    const absl::Duration took = absl::Now() - start;
    const absl::Status released = (*server)->AwaitNothingHeld(absl::Seconds(30));
    EXPECT_TRUE(released.ok()) << released;
    // A GPU's pool of pinned memory gives back what it has not used for a while.
    const int64_t most = before + kKeptBytes + kSlackBytes;
    const absl::Time give_up = absl::Now() + absl::Seconds(60);
    while (TestBackend() == "cuda" && (*server)->ResidentBytes() > most && absl::Now() < give_up) {
      absl::SleepFor(absl::Milliseconds(100));
    }
    const int64_t after = (*server)->ResidentBytes();
    if (n == 0) after_first = after;
    std::printf("q, k and v of %.0f MB: %.2f s; resident MB: before %.0f, peak %.0f, after %.0f\n",
                3e-6 * static_cast<double>(tensor_bytes), absl::ToDoubleSeconds(took),
                1e-6 * static_cast<double>(before),
                1e-6 * static_cast<double>((*server)->PeakResidentBytes()),
                1e-6 * static_cast<double>(after));
    if (support::kSlowBuild) continue;  // sanitizers keep what is freed
    EXPECT_GE((*server)->PeakResidentBytes(), before + 4 * tensor_bytes) << "it was there";
    EXPECT_LE(after, most);
    EXPECT_LE(after, after_first + kSlackBytes) << "a second call needs no more than the first";
  }
}

}  // namespace
}  // namespace flashbias::integration
