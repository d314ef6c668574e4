#include "kernels/problem_tensors.h"

namespace flashbias {

ProblemTensors TensorsOf(const AttentionProblem& p) {
  ProblemTensors tensors;
  const auto add = [&](TensorSet tensor, bool is_input, const char* name, const void* data,
                       DType dtype, int64_t elements) {
    tensors.push_back({.tensor = tensor,
                       .is_input = is_input,
                       .name = name,
                       .dtype = dtype,
                       .bytes = static_cast<size_t>(elements) * SizeOf(dtype),
                       .data = const_cast<void*>(data)});
  };
  const bool backward = p.direction == Direction::kBackward;
  const int64_t q_rows = p.total_q * p.num_q_heads;
  const int64_t q_elements = q_rows * p.head_dim;
  const int64_t kv_elements = p.total_kv * p.num_kv_heads * p.head_dim;
  const LowRankBias& bias = p.low_rank;
  const int64_t phi_q_elements = p.total_q * bias.phi_q_heads * bias.rank;
  const int64_t phi_k_elements = p.total_kv * bias.phi_k_heads * bias.rank;
  const bool low_rank = p.bias_kind == BiasKind::kLowRank;

  add(kTensorQ, true, "q", p.q, p.dtype, q_elements);
  add(kTensorK, true, "k", p.k, p.dtype, kv_elements);
  add(kTensorV, true, "v", p.v, p.dtype, kv_elements);
  if (low_rank) {
    add(kTensorPhiQ, true, "phi_q", bias.phi_q, bias.dtype, phi_q_elements);
    add(kTensorPhiK, true, "phi_k", bias.phi_k, bias.dtype, phi_k_elements);
  }
  if (!backward) {
    add(kTensorO, false, "o", p.o, p.dtype, q_elements);
    if (p.lse != nullptr) add(kTensorLse, false, "lse", p.lse, DType::kFloat32, q_rows);
    return tensors;
  }
  const Gradients& g = p.gradients;
  add(kTensorLse, true, "lse", p.lse, DType::kFloat32, q_rows);
  add(kTensorO, true, "o", p.o, p.dtype, q_elements);
  add(kTensorDO, true, "d_o", g.d_o, p.dtype, q_elements);
  if (p.bias_kind == BiasKind::kAlibi && g.dslopes != nullptr) {
    const int64_t sets = p.alibi.per_sequence ? static_cast<int64_t>(p.sequences.size()) : 1;
    add(kTensorDSlopes, false, "dslopes", g.dslopes, DType::kFloat32, sets * p.num_q_heads);
  }
  if (low_rank && g.dphi_q != nullptr) {
    add(kTensorDPhiQ, false, "dphi_q", g.dphi_q, DType::kFloat32, phi_q_elements);
  }
  if (low_rank && g.dphi_k != nullptr) {
    add(kTensorDPhiK, false, "dphi_k", g.dphi_k, DType::kFloat32, phi_k_elements);
  }
  add(kTensorDQ, false, "dq", g.dq, p.dtype, q_elements);
  add(kTensorDK, false, "dk", g.dk, p.dtype, kv_elements);
  add(kTensorDV, false, "dv", g.dv, p.dtype, kv_elements);
  return tensors;
}

void PointAt(TensorSet tensor, void* data, AttentionProblem* problem) {
  Gradients& gradients = problem->gradients;
  switch (tensor) {
    case kTensorQ:
      problem->q = data;
      return;
    case kTensorK:
      problem->k = data;
      return;
    case kTensorV:
      problem->v = data;
      return;
    case kTensorPhiQ:
      problem->low_rank.phi_q = data;
      return;
    case kTensorPhiK:
      problem->low_rank.phi_k = data;
      return;
    case kTensorO:
      problem->o = data;
      return;
    case kTensorLse:
      problem->lse = static_cast<float*>(data);
      return;
    case kTensorDO:
      gradients.d_o = data;
      return;
    case kTensorDQ:
      gradients.dq = data;
      return;
    case kTensorDK:
      gradients.dk = data;
      return;
    case kTensorDV:
      gradients.dv = data;
      return;
    case kTensorDSlopes:
      gradients.dslopes = static_cast<float*>(data);
      return;
    case kTensorDPhiQ:
      gradients.dphi_q = static_cast<float*>(data);
      return;
    case kTensorDPhiK:
      gradients.dphi_k = static_cast<float*>(data);
      return;
    default:
      return;
  }
}

void* OutputOf(const AttentionProblem& problem, TensorSet tensor) {
  const Gradients& gradients = problem.gradients;
  switch (tensor) {
    case kTensorO:
      return problem.o;
    case kTensorLse:
      return problem.lse;
    case kTensorDQ:
      return gradients.dq;
    case kTensorDK:
      return gradients.dk;
    case kTensorDV:
      return gradients.dv;
    case kTensorDSlopes:
      return gradients.dslopes;
    case kTensorDPhiQ:
      return gradients.dphi_q;
    case kTensorDPhiK:
      return gradients.dphi_k;
    default:
      return nullptr;
  }
}

}  // namespace flashbias
