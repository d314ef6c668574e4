#include "tests/bench/service_caller.h"

#include <cmath>
#include <cstdint>
#include <utility>

namespace flashbias::bench {

namespace {

void AddTiming(const client::Timing& t, ServerTime* time) {
  time->receive += t.receive;
  time->queue += t.queue;
  time->upload += t.upload;
  time->kernel += t.kernel;
  time->download += t.download;
  time->rest += t.compute - t.upload - t.kernel - t.download;
  time->send += t.send;
}

}  // namespace

ServiceCaller::ServiceCaller(const TransportSetup& setup)
    : setup_(setup), bytes_(static_cast<size_t>(setup.tokens * kTensorBytesPerToken)) {
  slopes_.resize(kHeads);
  for (int n = 0; n < kHeads; ++n) {
    slopes_[static_cast<size_t>(n)] = std::exp2(-8.0F * static_cast<float>(n + 1) / kHeads);
  }
}

absl::Status ServiceCaller::Connect(const std::string& target) {
  client::AttentionClient::Options options;
  options.target = target;
  options.num_connections = setup_.connections;
  if (setup_.stream_above_bytes > 0) options.stream_above_bytes = setup_.stream_above_bytes;
  auto client = client::AttentionClient::Create(options);
  if (!client.ok()) return client.status();
  client_ = *std::move(client);
  return absl::OkStatus();
}

absl::Status ServiceCaller::SetTensors(char* tensors) {
  tensors_ = tensors;
  absl::Status status;
  for (int lane = 0; setup_.calls == Calls::kBackward && lane < setup_.lanes; ++lane) {
    ServerTime time;
    status.Update(Forward(lane, &time));
  }
  return status;
}

int64_t ServiceCaller::BytesMoved(Calls calls, int64_t tokens) {
  const int64_t tensor = tokens * kTensorBytesPerToken;
  const int64_t lse = tokens * kHeads * static_cast<int64_t>(sizeof(float));
  // q, k, v and o; q, k, v, o, d_o and lse, dq, dk and dv.
  const int64_t forward = 4 * tensor;
  const int64_t backward = 8 * tensor + lse;
  switch (calls) {
    case Calls::kForward:
      return forward;
    case Calls::kBackward:
      return backward;
    case Calls::kBoth:
      return forward + lse + backward;
  }
  return 0;
}

absl::Status ServiceCaller::Call(int lane, std::optional<ServerTime>* time) {
  ServerTime sum;
  absl::Status status;
  if (setup_.calls != Calls::kBackward) status = Forward(lane, &sum);
  if (status.ok() && setup_.calls != Calls::kForward) status = Backward(lane, &sum);
  if (status.ok()) *time = sum;
  return status;
}

client::AttendRequest ServiceCaller::ForwardRequest() const {
  const std::vector<int64_t> shape = {setup_.tokens, kHeads, kHeadDim};
  return {.q = {.dtype = DType::kFloat16, .shape = shape, .data = tensors_},
          .k = {.dtype = DType::kFloat16, .shape = shape, .data = tensors_ + bytes_},
          .v = {.dtype = DType::kFloat16, .shape = shape, .data = tensors_ + 2 * bytes_},
          .mask = client::MaskKind::kCausal,
          .want_lse = setup_.calls != Calls::kForward,
          .bias = client::AlibiSlopes{.slopes = slopes_}};
}

absl::Status ServiceCaller::Forward(int lane, ServerTime* time) {
  char* const results = tensors_ + num_inputs() * bytes_ + static_cast<size_t>(lane) * lane_bytes();
  client::CallOptions options;
  options.result.o = {results, bytes_};
  if (setup_.calls != Calls::kForward) {
    options.result.lse = {reinterpret_cast<float*>(results + 4 * bytes_),
                          lse_bytes() / sizeof(float)};
  }
  const auto result = client_->Attend(ForwardRequest(), options);
  if (!result.ok()) return result.status();
  AddTiming(result->timing, time);
  return absl::OkStatus();
}

absl::Status ServiceCaller::Backward(int lane, ServerTime* time) {
  char* const results = tensors_ + num_inputs() * bytes_ + static_cast<size_t>(lane) * lane_bytes();
  client::AttendBackwardRequest request;
  request.forward = ForwardRequest();
  request.o = request.forward.q;
  request.o.data = results;
  request.lse = {reinterpret_cast<const float*>(results + 4 * bytes_), lse_bytes() / sizeof(float)};
  request.d_o = request.forward.q;
  request.d_o.data = tensors_ + 3 * bytes_;
  client::CallOptions options;
  options.gradients = {.dq = {results + bytes_, bytes_},
                       .dk = {results + 2 * bytes_, bytes_},
                       .dv = {results + 3 * bytes_, bytes_}};
  const auto gradients = client_->AttendBackward(request, options);
  if (!gradients.ok()) return gradients.status();
  AddTiming(gradients->timing, time);
  return absl::OkStatus();
}

}  // namespace flashbias::bench
