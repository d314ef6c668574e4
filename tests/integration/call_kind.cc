#include "tests/integration/call_kind.h"

#include <cstring>
#include <limits>
#include <utility>

namespace flashbias::integration {
namespace {

constexpr int64_t kHeads = 8;
constexpr int64_t kHeadDim = 64;
// Few enough keys that sending, computing and receiving all take a good part of a call.
constexpr int64_t kWindow = 16;

void Fill(char* data, size_t bytes) {
  uint32_t state = 1;
  for (size_t at = 0; at + 2 <= bytes; at += 2) {
    state = state * 1664525 + 1013904223;
    // A finite fp16.
    const auto value = static_cast<uint16_t>((state >> 16) & 0xbbff);
    std::memcpy(data + at, &value, 2);
  }
}

}  // namespace

KindOfCaller::KindOfCaller(int64_t rows)
    : rows_(rows), bytes_(static_cast<size_t>(rows * kHeads * kHeadDim * 2)) {}

absl::StatusOr<std::unique_ptr<KindOfCaller>> KindOfCaller::Create(const std::string& kind,
                                                                   const std::string& target,
                                                                   int64_t rows) {
  std::unique_ptr<KindOfCaller> caller(new KindOfCaller(rows));
  auto client = client::AttentionClient::Create(
      {.target = target,
       .retry = {.max_attempts = 1},
       .stream_above_bytes = kind == "stream" ? 0 : std::numeric_limits<int64_t>::max()});
  if (!client.ok()) return client.status();
  caller->client_ = *std::move(client);
  char* memory = nullptr;
  if (kind == "shared") {
    auto region = caller->client_->CreateRegion(2 * caller->bytes_);
    if (!region.ok()) return region.status();
    caller->region_ = *std::move(region);
    memory = caller->region_->data();
  } else {
    caller->memory_.resize(2 * caller->bytes_);
    memory = caller->memory_.data();
  }
  Fill(memory, caller->bytes_);
  caller->input_ = memory;
  caller->o_ = memory + caller->bytes_;
  return caller;
}

absl::Status KindOfCaller::Call() {
  const client::TensorView tensor = {
      .dtype = DType::kFloat16, .shape = {rows_, kHeads, kHeadDim}, .data = input_};
  return client_
      ->Attend({.q = tensor,
                .k = tensor,
                .v = tensor,
                .mask = client::MaskKind::kCausal,
                .left_window = kWindow},
               {.result = {.o = {o_, bytes_}}})
      .status();
}

}  // namespace flashbias::integration
