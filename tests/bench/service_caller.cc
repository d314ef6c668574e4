#include "tests/bench/service_caller.h"

#include <cmath>
#include <cstdint>
#include <utility>

namespace flashbias::bench {

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

absl::Status ServiceCaller::Call(int lane, std::optional<ServerTime>* time) {
  const std::vector<int64_t> shape = {setup_.tokens, kHeads, kHeadDim};
  const client::AttendRequest request = {
      .q = {.dtype = DType::kFloat16, .shape = shape, .data = tensors_},
      .k = {.dtype = DType::kFloat16, .shape = shape, .data = tensors_ + bytes_},
      .v = {.dtype = DType::kFloat16, .shape = shape, .data = tensors_ + 2 * bytes_},
      .mask = client::MaskKind::kCausal,
      .bias = client::AlibiSlopes{.slopes = slopes_}};
  client::CallOptions options;
  options.result.o = {tensors_ + (3 + static_cast<size_t>(lane)) * bytes_, bytes_};
  const auto result = client_->Attend(request, options);
  if (!result.ok()) return result.status();
  const client::Timing& t = result->timing;
  *time = ServerTime{.receive = t.receive,
                     .queue = t.queue,
                     .upload = t.upload,
                     .kernel = t.kernel,
                     .download = t.download,
                     .rest = t.compute - t.upload - t.kernel - t.download,
                     .send = t.send};
  return absl::OkStatus();
}

}  // namespace flashbias::bench
