#include "tests/support/owned_problem.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/reference/reference_gradients.h"
#include "tests/support/in_parallel.h"
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
                           bool want_lse, int byte_offset, bool want_bias_gradient)
    : problem_(shape), sequences_(std::move(sequences)) {
  const size_t element = SizeOf(problem_.dtype);
  q_ = Input(q_elements() * element, byte_offset);
  k_ = Input(kv_elements() * element, byte_offset);
  v_ = Input(kv_elements() * element, byte_offset);
  problem_.sequences = absl::MakeConstSpan(sequences_);
  problem_.q = q_.data();
  problem_.k = k_.data();
  problem_.v = v_.data();
  problem_.lse = nullptr;
  problem_.alibi.slopes = nullptr;
  problem_.low_rank.phi_q = nullptr;
  problem_.low_rank.phi_k = nullptr;
  problem_.gradients = Gradients{};
  if (problem_.bias_kind == BiasKind::kAlibi) {
    slopes_.resize(problem_.num_q_heads * (problem_.alibi.per_sequence ? sequences_.size() : 1));
    problem_.alibi.slopes = slopes_.data();
  } else if (problem_.bias_kind == BiasKind::kLowRank) {
    phi_q_ = Input(phi_q_elements() * SizeOf(problem_.low_rank.dtype), byte_offset);
    phi_k_ = Input(phi_k_elements() * SizeOf(problem_.low_rank.dtype), byte_offset);
    problem_.low_rank.phi_q = phi_q_.data();
    problem_.low_rank.phi_k = phi_k_.data();
  }
  if (backward()) {
    AllocateGradients(byte_offset, want_bias_gradient);
  } else {
    problem_.o = AddOutput("o", problem_.dtype, q_elements(), byte_offset);
    if (want_lse) {
      problem_.lse = reinterpret_cast<float*>(
          AddOutput("lse", DType::kFloat32, lse_elements(), byte_offset / 4 * 4));
    }
  }
  PoisonOutputs();
}

char* OwnedProblem::AddOutput(const char* name, DType dtype, int64_t elements, int byte_offset) {
  outputs_.push_back(
      {.name = name, .dtype = dtype, .output = Output(elements * SizeOf(dtype), byte_offset)});
  return outputs_.back().output.data();
}

void OwnedProblem::AllocateGradients(int byte_offset, bool want_bias_gradient) {
  const DType dtype = problem_.dtype;
  d_o_ = Input(q_elements() * SizeOf(dtype), byte_offset);
  o_input_ = Input(q_elements() * SizeOf(dtype), byte_offset);
  lse_input_ = Input(lse_elements() * sizeof(float), byte_offset / 4 * 4);
  problem_.o = o_input_.data();
  problem_.lse = lse_input();
  Gradients& gradients = problem_.gradients;
  gradients.d_o = d_o_.data();
  gradients.dq = AddOutput("dq", dtype, q_elements(), byte_offset);
  gradients.dk = AddOutput("dk", dtype, kv_elements(), byte_offset);
  gradients.dv = AddOutput("dv", dtype, kv_elements(), byte_offset);
  if (!want_bias_gradient) return;
  const auto add = [&](const char* name, int64_t elements) {
    return reinterpret_cast<float*>(
        AddOutput(name, DType::kFloat32, elements, byte_offset / 4 * 4));
  };
  if (problem_.bias_kind == BiasKind::kAlibi) {
    gradients.dslopes = add("dslopes", num_slopes());
  } else if (problem_.bias_kind == BiasKind::kLowRank) {
    gradients.dphi_q = add("dphi_q", phi_q_elements());
    gradients.dphi_k = add("dphi_k", phi_k_elements());
  }
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

void OwnedProblem::SetForwardResults() {
  std::vector<std::pair<int64_t, int>> heads;
  for (int64_t n = 0; n < static_cast<int64_t>(sequences_.size()); ++n) {
    if (sequences_[n].q_len == 0) continue;
    for (int head = 0; head < problem_.num_q_heads; ++head) heads.emplace_back(n, head);
  }
  InParallel(static_cast<int64_t>(heads.size()), [&](int64_t index) {
    const auto& [sequence, head] = heads[index];
    const ReferenceHead reference(problem_, sequence, head);
    for (int64_t row = 0; row < reference.q_len(); ++row) {
      const ReferenceScores scores = reference.Scores(row);
      const int64_t at = (sequences_[sequence].q_begin + row) * problem_.num_q_heads + head;
      for (int d = 0; d < problem_.head_dim; ++d) {
        StoreElement(problem_.dtype, o_input(), at * problem_.head_dim + d,
                     static_cast<float>(scores.o[d]));
      }
      lse_input()[at] = static_cast<float>(scores.lse);
    }
  });
}

OwnedProblem OwnedProblem::RoundedTo(DType dtype) const {
  AttentionProblem shape = problem_;
  shape.dtype = dtype;
  const Gradients& gradients = problem_.gradients;
  OwnedProblem copy(shape, sequences_, problem_.lse != nullptr, q_.offset(),
                    gradients.dslopes != nullptr || gradients.dphi_q != nullptr);
  Round(problem_.dtype, problem_.q, dtype, copy.q(), q_elements());
  Round(problem_.dtype, problem_.k, dtype, copy.k(), kv_elements());
  Round(problem_.dtype, problem_.v, dtype, copy.v(), kv_elements());
  std::copy(slopes_.begin(), slopes_.end(), copy.slopes_.begin());
  if (problem_.bias_kind == BiasKind::kLowRank) {
    const DType factors = problem_.low_rank.dtype;
    Round(factors, problem_.low_rank.phi_q, factors, copy.phi_q(), phi_q_elements());
    Round(factors, problem_.low_rank.phi_k, factors, copy.phi_k(), phi_k_elements());
  }
  if (backward()) {
    Round(problem_.dtype, gradients.d_o, dtype, copy.d_o(), q_elements());
    copy.SetForwardResults();
  }
  return copy;
}

void OwnedProblem::PoisonOutputs() {
  for (NamedOutput& o : outputs_) FillWithPoison(o.dtype, o.output.data(), o.output.size());
}

std::string OwnedProblem::CheckOutputs() const {
  for (const NamedOutput& o : outputs_) {
    if (!o.output.GuardsIntact()) return absl::StrCat("bytes beside ", o.name, " were written");
  }
  for (const NamedOutput& o : outputs_) {
    const int64_t left = FindPoison(o.dtype, o.output.data(), o.output.size());
    if (left >= 0) return absl::StrCat("element ", left, " of ", o.name, " was not written");
  }
  return "";
}

std::string OwnedProblem::OutputBytes() const {
  std::string bytes;
  for (const NamedOutput& o : outputs_) bytes.append(o.output.data(), o.output.size());
  return bytes;
}

}  // namespace flashbias::support
