#include "tests/integration/placed_request.h"

#include "tests/integration/remote_problem.h"

namespace flashbias::integration {
namespace {

size_t BytesOf(const client::TensorView& tensor) {
  size_t bytes = SizeOf(tensor.dtype);
  for (const int64_t extent : tensor.shape) bytes *= static_cast<size_t>(extent);
  return bytes;
}

}  // namespace

PlacedRequest::PlacedRequest(const support::OwnedProblem& owned, void* base, size_t gap,
                             const Copy& copy, bool k_stays)
    : base_(static_cast<char*>(base)), gap_(gap), at_(gap), request_(RequestOf(owned)) {
  const auto move = [&](client::TensorView* tensor) {
    const size_t bytes = BytesOf(*tensor);
    void* const to = Take(bytes);
    if (bytes > 0) copy(to, tensor->data, bytes);
    tensor->data = to;
  };
  move(&request_.q);
  if (!k_stays) move(&request_.k);
  move(&request_.v);
  if (auto* factors = std::get_if<client::LowRankFactors>(&request_.bias)) {
    move(&factors->phi_q);
    move(&factors->phi_k);
  }
  const size_t o_bytes = BytesOf(request_.q);
  result_.o = {static_cast<char*>(Take(o_bytes)), o_bytes};
  if (request_.want_lse) {
    at_ = (at_ + sizeof(float) - 1) / sizeof(float) * sizeof(float);
    const auto count = static_cast<size_t>(owned.lse_elements());
    result_.lse = {static_cast<float*>(Take(count * sizeof(float))), count};
  }
}

void* PlacedRequest::Take(size_t bytes) {
  char* const place = base_ + at_;
  at_ += bytes + gap_;
  return place;
}

std::string PlacedRequest::OutputBytes(const Copy& copy) const {
  const size_t lse_bytes = result_.lse.size() * sizeof(float);
  std::string bytes(result_.o.size() + lse_bytes, '\0');
  if (!result_.o.empty()) copy(bytes.data(), result_.o.data(), result_.o.size());
  if (lse_bytes > 0) copy(bytes.data() + result_.o.size(), result_.lse.data(), lse_bytes);
  return bytes;
}

}  // namespace flashbias::integration
