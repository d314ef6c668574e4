#include "tests/support/owned_problem.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/support/poison.h"

namespace flashbias::support {
namespace {

void Round(DType from_dtype, const void* from, DType to_dtype, void* to, int64_t elements) {
  for (int64_t n = 0; n < elements; ++n) {
    StoreElement(to_dtype, to, n, LoadElement(from_dtype, from, n));
  }
}

}  // namespace

OwnedProblem::Output::Output(size_t size, int byte_offset)
    : begin_(kGuardBytes + byte_offset), size_(size), bytes_(begin_ + size + kGuardBytes, kGuard) {}

bool OwnedProblem::Output::GuardsIntact() const {
  const char* bytes = bytes_.data();
  return IsGuard(bytes, bytes + begin_) && IsGuard(bytes + begin_ + size_, bytes + bytes_.size());
}

OwnedProblem::OwnedProblem(const AttentionProblem& shape, std::vector<Sequence> sequences,
                           bool want_lse, int byte_offset)
    : problem_(shape), sequences_(std::move(sequences)) {
  const size_t element = SizeOf(problem_.dtype);
  q_ = Input(q_elements() * element, byte_offset);
  k_ = Input(kv_elements() * element, byte_offset);
  v_ = Input(kv_elements() * element, byte_offset);
  o_ = Output(q_elements() * element, byte_offset);
  if (want_lse) lse_ = Output(lse_elements() * sizeof(float), byte_offset / 4 * 4);
  problem_.sequences = absl::MakeConstSpan(sequences_);
  problem_.q = q_.data();
  problem_.k = k_.data();
  problem_.v = v_.data();
  problem_.o = o_.data();
  problem_.lse = want_lse ? reinterpret_cast<float*>(lse_.data()) : nullptr;
  problem_.alibi.slopes = nullptr;
  problem_.low_rank.phi_q = nullptr;
  problem_.low_rank.phi_k = nullptr;
  if (problem_.bias_kind == BiasKind::kAlibi) {
    slopes_.resize(problem_.num_q_heads * (problem_.alibi.per_sequence ? sequences_.size() : 1));
    problem_.alibi.slopes = slopes_.data();
  } else if (problem_.bias_kind == BiasKind::kLowRank) {
    phi_q_ = Input(phi_q_elements() * SizeOf(problem_.low_rank.dtype), byte_offset);
    phi_k_ = Input(phi_k_elements() * SizeOf(problem_.low_rank.dtype), byte_offset);
    problem_.low_rank.phi_q = phi_q_.data();
    problem_.low_rank.phi_k = phi_k_.data();
  }
  PoisonOutputs();
}

int64_t OwnedProblem::q_elements() const {
  return problem_.total_q * problem_.num_q_heads * problem_.head_dim;
}

int64_t OwnedProblem::kv_elements() const {
  return problem_.total_kv * problem_.num_kv_heads * problem_.head_dim;
}

int64_t OwnedProblem::lse_elements() const { return problem_.total_q * problem_.num_q_heads; }

int64_t OwnedProblem::phi_q_elements() const {
  return problem_.total_q * problem_.low_rank.phi_q_heads * problem_.low_rank.rank;
}

int64_t OwnedProblem::phi_k_elements() const {
  return problem_.total_kv * problem_.low_rank.phi_k_heads * problem_.low_rank.rank;
}

OwnedProblem OwnedProblem::RoundedTo(DType dtype) const {
  AttentionProblem shape = problem_;
  shape.dtype = dtype;
  OwnedProblem copy(shape, sequences_, problem_.lse != nullptr, q_.offset());
  Round(problem_.dtype, problem_.q, dtype, copy.q(), q_elements());
  Round(problem_.dtype, problem_.k, dtype, copy.k(), kv_elements());
  Round(problem_.dtype, problem_.v, dtype, copy.v(), kv_elements());
  std::copy(slopes_.begin(), slopes_.end(), copy.slopes_.begin());
  if (problem_.bias_kind == BiasKind::kLowRank) {
    const DType factors = problem_.low_rank.dtype;
    Round(factors, problem_.low_rank.phi_q, factors, copy.phi_q(), phi_q_elements());
    Round(factors, problem_.low_rank.phi_k, factors, copy.phi_k(), phi_k_elements());
  }
  return copy;
}

void OwnedProblem::PoisonOutputs() {
  FillWithPoison(problem_.dtype, o_.data(), o_.size());
  FillWithPoison(DType::kFloat32, lse_.data(), lse_.size());
}

std::string OwnedProblem::CheckOutputs() const {
  if (!o_.GuardsIntact()) return "bytes beside o were written";
  if (!lse_.GuardsIntact()) return "bytes beside lse were written";
  const int64_t lse_left = FindPoison(DType::kFloat32, lse_.data(), lse_.size());
  if (lse_left >= 0) return absl::StrCat("element ", lse_left, " of lse was not written");
  const int64_t o_left = FindPoison(problem_.dtype, o_.data(), o_.size());
  if (o_left >= 0) return absl::StrCat("element ", o_left, " of o was not written");
  return "";
}

std::string OwnedProblem::OutputBytes() const {
  return absl::StrCat(std::string(o_.data(), o_.size()), std::string(lse_.data(), lse_.size()));
}

}  // namespace flashbias::support
