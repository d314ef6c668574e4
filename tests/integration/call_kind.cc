#include "tests/integration/call_kind.h"

#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/strip.h"

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

KindOfCaller::KindOfCaller(int64_t rows, bool backward)
    : rows_(rows),
      backward_(backward),
      bytes_(static_cast<size_t>(rows * kHeads * kHeadDim * 2)),
      answer_bytes_(backward ? 3 * bytes_ : bytes_) {}

absl::StatusOr<std::unique_ptr<KindOfCaller>> KindOfCaller::Create(const std::string& kind,
                                                                   const std::string& target,
                                                                   int64_t rows) {
  absl::string_view way = kind;
  const bool backward = absl::ConsumePrefix(&way, "backward_");
  std::unique_ptr<KindOfCaller> caller(new KindOfCaller(rows, backward));
  auto client = client::AttentionClient::Create(
      {.target = target,
       .retry = {.max_attempts = 1},
       .stream_above_bytes = way == "stream" ? 0 : std::numeric_limits<int64_t>::max()});
  if (!client.ok()) return client.status();
  caller->client_ = *std::move(client);
  const size_t bytes = caller->bytes_;
  const size_t lse_bytes = static_cast<size_t>(rows * kHeads) * sizeof(float);
  const size_t total = bytes + caller->answer_bytes_ + (backward ? bytes + lse_bytes : 0);
  char* memory = nullptr;
  if (way == "shared") {
    auto region = caller->client_->CreateRegion(total);
    if (!region.ok()) return region.status();
    caller->region_ = *std::move(region);
    memory = caller->region_->data();
  } else {
    caller->memory_.resize(total);
    memory = caller->memory_.data();
  }
  Fill(memory, bytes);
  caller->input_ = memory;
  caller->answer_ = memory + bytes;
  if (!backward) return caller;
  caller->o_ = caller->answer_ + caller->answer_bytes_;
  caller->lse_ = reinterpret_cast<float*>(caller->o_ + bytes);
  if (const absl::Status first = caller->Forward(); !first.ok()) return first;
  return caller;
}

absl::Status KindOfCaller::Forward() {
  const client::TensorView tensor = {
      .dtype = DType::kFloat16, .shape = {rows_, kHeads, kHeadDim}, .data = input_};
  client::ResultBuffers buffers = {.o = {backward_ ? o_ : answer_, bytes_}};
  if (backward_) buffers.lse = {lse_, static_cast<size_t>(rows_ * kHeads)};
  return client_
      ->Attend({.q = tensor,
                .k = tensor,
                .v = tensor,
                .mask = client::MaskKind::kCausal,
                .left_window = kWindow,
                .want_lse = backward_},
               {.result = buffers})
      .status();
}

absl::Status KindOfCaller::Call() {
  if (!backward_) return Forward();
  client::AttendBackwardRequest request;
  client::AttendRequest& forward = request.forward;
  forward.q = {.dtype = DType::kFloat16, .shape = {rows_, kHeads, kHeadDim}, .data = input_};
  forward.k = forward.v = request.o = request.d_o = forward.q;
  forward.mask = client::MaskKind::kCausal;
  forward.left_window = kWindow;
  request.o.data = o_;
  request.lse = {lse_, static_cast<size_t>(rows_ * kHeads)};
  client::CallOptions options;
  options.gradients = {.dq = {answer_, bytes_},
                       .dk = {answer_ + bytes_, bytes_},
                       .dv = {answer_ + 2 * bytes_, bytes_}};
  return client_->AttendBackward(request, options).status();
}

}  // namespace flashbias::integration
