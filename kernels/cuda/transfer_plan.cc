#include "kernels/cuda/transfer_plan.h"

#include <cstdint>

namespace flashbias::cuda {
namespace {

// Of the tensors of a problem; 0 where there is none, or it is on the device already.
struct Sizes {
  explicit Sizes(const AttentionProblem& p) {
    const auto rows = static_cast<size_t>(p.total_q) * p.num_q_heads;
    q = o = rows * p.head_dim * SizeOf(p.dtype);
    k = v = static_cast<size_t>(p.total_kv) * p.num_kv_heads * p.head_dim * SizeOf(p.dtype);
    if (p.lse != nullptr) lse = rows * sizeof(float);
    if (p.bias_kind == BiasKind::kLowRank) {
      const size_t factor = SizeOf(p.low_rank.dtype) * p.low_rank.rank;
      phi_q = static_cast<size_t>(p.total_q) * p.low_rank.phi_q_heads * factor;
      phi_k = static_cast<size_t>(p.total_kv) * p.low_rank.phi_k_heads * factor;
    }
    if (p.on_device & kTensorQ) q = 0;
    if (p.on_device & kTensorK) k = 0;
    if (p.on_device & kTensorV) v = 0;
    if (p.on_device & kTensorPhiQ) phi_q = 0;
    if (p.on_device & kTensorPhiK) phi_k = 0;
    if (p.on_device & kTensorO) o = 0;
    if (p.on_device & kTensorLse) lse = 0;
  }
  size_t q = 0, k = 0, v = 0, phi_q = 0, phi_k = 0, o = 0, lse = 0;
};

}  // namespace

size_t TensorBytes(const AttentionProblem& problem) {
  const Sizes sizes(problem);
  return AlignTensor(sizes.q) + AlignTensor(sizes.k) + AlignTensor(sizes.v) +
         AlignTensor(sizes.phi_q) + AlignTensor(sizes.phi_k) + AlignTensor(sizes.o) +
         AlignTensor(sizes.lse);
}

TransferPlan::TransferPlan(absl::Span<const AttentionProblem* const> problems,
                           const PinnedPool& pool, size_t direct_bytes, OnDeviceAlready already)
    : problems_(problems.begin(), problems.end()), places_(problems.size()) {
  enum class Pass : uint8_t { kGatheredInputs, kDirectInputs, kGatheredOutputs, kDirectOutputs };
  const auto place = [&](Pass pass, std::vector<Transfer>& transfers) {
    const bool direct = pass == Pass::kDirectInputs || pass == Pass::kDirectOutputs;
    const bool inputs = pass == Pass::kGatheredInputs || pass == Pass::kDirectInputs;
    const auto add = [&](const void* host, size_t bytes, Place* at) {
      if (bytes == 0) return;
      if (inputs && (at->elsewhere = already(host, bytes)) != nullptr) return;
      if (direct != (bytes >= direct_bytes && pool.Contains(host, bytes))) return;
      at->offset = device_bytes_;
      if (direct && !transfers.empty()) {
        // Tensors that follow each other in memory as they do on the device are one copy. What
        // lies between two outputs is not ours to write.
        Transfer& last = transfers.back();
        const size_t gap = AlignTensor(last.bytes) - last.bytes;
        if (last.host + last.bytes + gap == host && (gap == 0 || inputs) &&
            pool.Contains(last.host, last.bytes + gap + bytes)) {
          last.bytes += gap + bytes;
          device_bytes_ += AlignTensor(bytes);
          return;
        }
      }
      transfers.push_back({.host = static_cast<char*>(const_cast<void*>(host)),
                           .bytes = bytes,
                           .offset = device_bytes_});
      device_bytes_ += AlignTensor(bytes);
    };
    const size_t begin = device_bytes_;
    for (size_t n = 0; n < problems_.size(); ++n) {
      const AttentionProblem& p = *problems_[n];
      const Sizes sizes(p);
      Places& at = places_[n];
      if (inputs) {
        add(p.q, sizes.q, &at.q);
        add(p.k, sizes.k, &at.k);
        add(p.v, sizes.v, &at.v);
        add(p.low_rank.phi_q, sizes.phi_q, &at.phi_q);
        add(p.low_rank.phi_k, sizes.phi_k, &at.phi_k);
      } else {
        add(p.o, sizes.o, &at.o);
        add(p.lse, sizes.lse, &at.lse);
      }
    }
    return begin;
  };
  place(Pass::kGatheredInputs, gathered_inputs_);
  gathered_input_bytes_ = device_bytes_;
  place(Pass::kDirectInputs, direct_inputs_);
  gathered_outputs_begin_ = place(Pass::kGatheredOutputs, gathered_outputs_);
  gathered_output_bytes_ = device_bytes_ - gathered_outputs_begin_;
  place(Pass::kDirectOutputs, direct_outputs_);
}

AttentionProblem TransferPlan::OnDevice(size_t n, char* device) const {
  AttentionProblem problem = *problems_[n];
  const Places& at = places_[n];
  const auto comes = [&problem](TensorSet tensor) { return (problem.on_device & tensor) == 0; };
  if (comes(kTensorQ)) problem.q = at.q.In(device);
  if (comes(kTensorK)) problem.k = at.k.In(device);
  if (comes(kTensorV)) problem.v = at.v.In(device);
  if (comes(kTensorO)) problem.o = at.o.In(device);
  if (problem.lse != nullptr && comes(kTensorLse)) {
    problem.lse = reinterpret_cast<float*>(at.lse.In(device));
  }
  if (problem.bias_kind == BiasKind::kLowRank) {
    if (comes(kTensorPhiQ)) problem.low_rank.phi_q = at.phi_q.In(device);
    if (comes(kTensorPhiK)) problem.low_rank.phi_k = at.phi_k.In(device);
  }
  return problem;
}

}  // namespace flashbias::cuda
