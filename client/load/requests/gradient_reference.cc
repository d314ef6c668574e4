#include "client/load/requests/gradient_reference.h"

#include <cmath>
#include <utility>

namespace flashbias::client {

GradientReference::GradientReference(const AttentionProblem& problem, int kv_head)
    : head_dim_(problem.head_dim),
      first_head_(kv_head * (problem.num_q_heads / problem.num_kv_heads)) {
  const int group = problem.num_q_heads / problem.num_kv_heads;
  for (int n = 0; n < group; ++n) {
    const ReferenceHead head(problem, /*sequence=*/0, first_head_ + n);
    HeadGradients gradients = head.Zero();
    for (int64_t row = 0; row < head.q_len(); ++row) head.Add(row, head.Scores(row), &gradients);
    dk_.resize(gradients.dk.size());
    dv_.resize(gradients.dv.size());
    for (size_t e = 0; e < dk_.size(); ++e) {
      dk_[e] += gradients.dk[e];
      dv_[e] += gradients.dv[e];
    }
    q_heads_.push_back(std::move(gradients));
  }
}

const double* GradientReference::Row(GradientOf which, int64_t row, int head) const {
  switch (which) {
    case GradientOf::kQ:
      return &q_heads_[static_cast<size_t>(head - first_head_)].dq[row * head_dim_];
    case GradientOf::kK:
      return &dk_[row * head_dim_];
    case GradientOf::kV:
      return &dv_[row * head_dim_];
  }
  return nullptr;
}

double GradientReference::Magnitude(GradientOf which) const {
  double sum = 0;
  size_t count = 0;
  const auto add = [&](const std::vector<double>& values) {
    for (const double value : values) sum += value * value;
    count += values.size();
  };
  switch (which) {
    case GradientOf::kQ:
      for (const HeadGradients& head : q_heads_) add(head.dq);
      break;
    case GradientOf::kK:
      add(dk_);
      break;
    case GradientOf::kV:
      add(dv_);
      break;
  }
  return count == 0 ? 0 : std::sqrt(sum / static_cast<double>(count));
}

}  // namespace flashbias::client
