#include "tests/integration/placed_backward.h"

#include <variant>

#include "tests/integration/remote_problem.h"

namespace flashbias::integration {
namespace {

size_t BytesOf(const client::TensorView& tensor) {
  size_t bytes = SizeOf(tensor.dtype);
  for (const int64_t extent : tensor.shape) bytes *= static_cast<size_t>(extent);
  return bytes;
}

}  // namespace

PlacedBackward::PlacedBackward(const support::OwnedProblem& owned, void* base, size_t gap,
                               const Copy& copy)
    : base_(static_cast<char*>(base)),
      gap_(gap),
      at_(gap),
      request_(BackwardRequestOf(owned)),
      gradients_(GradientBuffersOf(owned)) {
  const auto move = [&](client::TensorView* tensor) {
    const size_t bytes = BytesOf(*tensor);
    void* const to = Take(bytes);
    if (bytes > 0) copy(to, tensor->data, bytes);
    tensor->data = to;
  };
  client::AttendRequest& forward = request_.forward;
  for (client::TensorView* tensor :
       {&forward.q, &forward.k, &forward.v, &request_.o, &request_.d_o}) {
    move(tensor);
  }
  if (auto* factors = std::get_if<client::LowRankFactors>(&forward.bias)) {
    move(&factors->phi_q);
    move(&factors->phi_k);
  }
  float* const lse = TakeFloats(request_.lse.size());
  if (!request_.lse.empty()) copy(lse, request_.lse.data(), request_.lse.size() * sizeof(float));
  request_.lse = {lse, request_.lse.size()};
  for (absl::Span<char>* buffer : {&gradients_.dq, &gradients_.dk, &gradients_.dv}) {
    *buffer = {static_cast<char*>(Take(buffer->size())), buffer->size()};
  }
  for (absl::Span<float>* buffer : {&gradients_.dphi_q, &gradients_.dphi_k}) {
    if (!buffer->empty()) *buffer = {TakeFloats(buffer->size()), buffer->size()};
  }
  dslopes_.resize(gradients_.dslopes.size());
  gradients_.dslopes = absl::MakeSpan(dslopes_);
}

void* PlacedBackward::Take(size_t bytes) {
  char* const place = base_ + at_;
  at_ += bytes + gap_;
  return place;
}

float* PlacedBackward::TakeFloats(size_t count) {
  at_ = (at_ + sizeof(float) - 1) / sizeof(float) * sizeof(float);
  return static_cast<float*>(Take(count * sizeof(float)));
}

std::string PlacedBackward::OutputBytes(const Copy& copy) const {
  std::string bytes;
  const auto append = [&](const void* data, size_t size) {
    if (size == 0) return;
    std::string part(size, '\0');
    copy(part.data(), data, size);
    bytes += part;
  };
  for (const absl::Span<char> buffer : {gradients_.dq, gradients_.dk, gradients_.dv}) {
    append(buffer.data(), buffer.size());
  }
  bytes.append(reinterpret_cast<const char*>(dslopes_.data()), dslopes_.size() * sizeof(float));
  for (const absl::Span<float> buffer : {gradients_.dphi_q, gradients_.dphi_k}) {
    append(buffer.data(), buffer.size() * sizeof(float));
  }
  return bytes;
}

}  // namespace flashbias::integration
