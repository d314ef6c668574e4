#include "tests/support/owned_problem.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace flashbias::support {
namespace {

constexpr size_t kGuardBytes = 64;
constexpr char kGuard = '\x5a';

// NaNs with the quiet bit clear: arithmetic and conversions yield quiet ones only.
constexpr uint16_t kPoisonFloat16 = 0x7da5;
constexpr uint16_t kPoisonBFloat16 = 0x7fa5;
constexpr uint32_t kPoisonFloat32 = 0x7fa5a5a5;

template <typename T>
void Fill(char* data, size_t bytes, T pattern) {
  for (size_t at = 0; at + sizeof(T) <= bytes; at += sizeof(T)) {
    std::memcpy(data + at, &pattern, sizeof(T));
  }
}

// Index of the first element that still holds the pattern, -1 when none does.
template <typename T>
int64_t Find(const char* data, size_t bytes, T pattern) {
  for (size_t at = 0; at + sizeof(T) <= bytes; at += sizeof(T)) {
    if (std::memcmp(data + at, &pattern, sizeof(T)) == 0) {
      return static_cast<int64_t>(at / sizeof(T));
    }
  }
  return -1;
}

}  // namespace

OwnedProblem::Output::Output(size_t size, int byte_offset)
    : begin_(kGuardBytes + byte_offset), size_(size), bytes_(begin_ + size + kGuardBytes, kGuard) {}

bool OwnedProblem::Output::GuardsIntact() const {
  const auto intact = [](char c) { return c == kGuard; };
  return std::all_of(bytes_.begin(), bytes_.begin() + static_cast<std::ptrdiff_t>(begin_),
                     intact) &&
         std::all_of(bytes_.begin() + static_cast<std::ptrdiff_t>(begin_ + size_), bytes_.end(),
                     intact);
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

void OwnedProblem::PoisonOutputs() {
  switch (problem_.dtype) {
    case DType::kFloat16:
      Fill(o_.data(), o_.size(), kPoisonFloat16);
      break;
    case DType::kBFloat16:
      Fill(o_.data(), o_.size(), kPoisonBFloat16);
      break;
    case DType::kFloat32:
      Fill(o_.data(), o_.size(), kPoisonFloat32);
      break;
  }
  Fill(lse_.data(), lse_.size(), kPoisonFloat32);
}

std::string OwnedProblem::CheckOutputs() const {
  if (!o_.GuardsIntact()) return "bytes beside o were written";
  if (!lse_.GuardsIntact()) return "bytes beside lse were written";
  const int64_t lse_left = Find(lse_.data(), lse_.size(), kPoisonFloat32);
  if (lse_left >= 0) return absl::StrCat("element ", lse_left, " of lse was not written");
  int64_t o_left = -1;
  switch (problem_.dtype) {
    case DType::kFloat16:
      o_left = Find(o_.data(), o_.size(), kPoisonFloat16);
      break;
    case DType::kBFloat16:
      o_left = Find(o_.data(), o_.size(), kPoisonBFloat16);
      break;
    case DType::kFloat32:
      o_left = Find(o_.data(), o_.size(), kPoisonFloat32);
      break;
  }
  if (o_left >= 0) return absl::StrCat("element ", o_left, " of o was not written");
  return "";
}

std::string OwnedProblem::OutputBytes() const {
  return absl::StrCat(std::string(o_.data(), o_.size()), std::string(lse_.data(), lse_.size()));
}

}  // namespace flashbias::support
