#include "tests/support/reference_backend.h"

#include <cmath>
#include <utility>
#include <vector>

#include "kernels/reference/reference_attention.h"
#include "kernels/reference/reference_gradients.h"

namespace flashbias::support {
namespace {

void Compute(const AttentionProblem& problem, ProblemStats* stats) {
  for (size_t n = 0; n < problem.sequences.size(); ++n) {
    const Sequence& s = problem.sequences[n];
    for (int64_t row = 0; row < s.q_len; ++row) {
      for (int head = 0; head < problem.num_q_heads; ++head) {
        const ReferenceRow result =
            ReferenceAttentionRow(problem, static_cast<int64_t>(n), row, head);
        const int64_t at = (s.q_begin + row) * problem.num_q_heads + head;
        for (int d = 0; d < problem.head_dim; ++d) {
          StoreElement(problem.dtype, problem.o, at * problem.head_dim + d,
                       static_cast<float>(result.o[d]));
        }
        if (problem.lse != nullptr) problem.lse[at] = static_cast<float>(result.lse);
        if (std::isfinite(result.lse)) ++stats->tiles_computed;
      }
    }
  }
}

void Store(DType dtype, const std::vector<double>& values, void* data) {
  if (data == nullptr) return;
  for (size_t n = 0; n < values.size(); ++n) {
    StoreElement(dtype, data, static_cast<int64_t>(n), static_cast<float>(values[n]));
  }
}

void ComputeGradients(const AttentionProblem& problem, ProblemStats* stats) {
  const ReferenceGradients result = ComputeReferenceGradients(problem);
  const Gradients& gradients = problem.gradients;
  Store(problem.dtype, result.dq, gradients.dq);
  Store(problem.dtype, result.dk, gradients.dk);
  Store(problem.dtype, result.dv, gradients.dv);
  Store(DType::kFloat32, result.dslopes, gradients.dslopes);
  Store(DType::kFloat32, result.dphi_q, gradients.dphi_q);
  Store(DType::kFloat32, result.dphi_k, gradients.dphi_k);
  for (const Sequence& s : problem.sequences) {
    for (int64_t n = 0; n < s.q_len * problem.num_q_heads; ++n) {
      if (std::isfinite(problem.lse[s.q_begin * problem.num_q_heads + n])) ++stats->tiles_computed;
    }
  }
}

}  // namespace

ReferenceBackend::ReferenceBackend()
    : info_{.name = "reference",
            .devices = {"fp64, one thread"},
            .dtypes = {DType::kFloat16, DType::kBFloat16, DType::kFloat32},
            .fast_head_dims = {}} {}

void ReferenceBackend::Run(absl::Span<const AttentionProblem> problems,
                           absl::Span<ProblemStats> stats, Done done) {
  for (size_t n = 0; n < problems.size(); ++n) {
    stats[n] = ProblemStats{};
    if (problems[n].direction == Direction::kBackward) {
      ComputeGradients(problems[n], &stats[n]);
    } else {
      Compute(problems[n], &stats[n]);
    }
  }
  std::move(done)(absl::OkStatus());
}

}  // namespace flashbias::support
