#include "tests/support/compare_gradients.h"

#include <algorithm>
#include <cmath>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "kernels/reference/reference_gradients.h"
#include "tests/support/in_parallel.h"

namespace flashbias::support {
namespace {

constexpr int64_t kChunkRows = 128;

// Sums over terms of the gradients, before they cancel.
struct Terms {
  // Squares of what an error of one part in one in o, v and the softmax weights may change.
  double dq = 0;
  double dk = 0;
  double dv = 0;
  double dslope = 0;
  double dphi_q = 0;
  double dphi_k = 0;
  // What dropping keys of all of a row's mass may change: squares, but of dslope.
  double dropped_dq = 0;
  double dropped_dk = 0;
  double dropped_dv = 0;
  double dropped_dslope = 0;
  double largest_lse = 0;

  void Add(const Terms& other) {
    dq += other.dq;
    dk += other.dk;
    dv += other.dv;
    dslope += other.dslope;
    dphi_q += other.dphi_q;
    dphi_k += other.dphi_k;
    dropped_dq += other.dropped_dq;
    dropped_dk += other.dropped_dk;
    dropped_dv += other.dropped_dv;
    dropped_dslope += other.dropped_dslope;
    largest_lse = std::max(largest_lse, other.largest_lse);
  }
};

double Square(double x) { return x * x; }

double SquaredNorm(const double* row, int size) {
  double sum = 0;
  for (int d = 0; d < size; ++d) sum += row[d] * row[d];
  return sum;
}

std::vector<double> SquaredNorms(const double* rows, int64_t count, int size) {
  std::vector<double> norms(count);
  for (int64_t n = 0; n < count; ++n) norms[n] = SquaredNorm(rows + n * size, size);
  return norms;
}

// |sum_j p_j rows_j|^2
double SquaredNormOfMean(const ReferenceScores& scores, const double* rows, int size) {
  std::vector<double> mean(size);
  for (size_t n = 0; n < scores.p.size(); ++n) {
    if (scores.p[n] == 0) continue;
    const double* row = rows + (scores.first_key + static_cast<int64_t>(n)) * size;
    for (int d = 0; d < size; ++d) mean[d] += scores.p[n] * row[d];
  }
  return SquaredNorm(mean.data(), size);
}

// The terms of some rows of a head.
class TermCounter {
 public:
  explicit TermCounter(const ReferenceHead& head)
      : head_(head),
        k_(SquaredNorms(head.kv_len() > 0 ? head.k(0) : nullptr, head.kv_len(), head.head_dim())),
        v_(SquaredNorms(head.kv_len() > 0 ? head.v(0) : nullptr, head.kv_len(), head.head_dim())) {
    if (head.rank() > 0 && head.kv_len() > 0) {
      phi_k_ = SquaredNorms(head.phi_k(0), head.kv_len(), head.rank());
    }
    for (const double k : k_) largest_k_ = std::max(largest_k_, k);
  }

  void Add(int64_t row, const ReferenceScores& scores, Terms* terms) const {
    if (scores.p.empty()) return;
    const int dim = head_.head_dim();
    const double scale = Square(head_.softmax_scale());
    const double d_o = SquaredNorm(head_.d_o(row), dim);
    const double q = SquaredNorm(head_.q(row), dim);
    const double phi_q = head_.rank() > 0 ? SquaredNorm(head_.phi_q(row), head_.rank()) : 0;
    // Errors of a dot product are independent in its elements.
    const double delta = d_o * SquaredNorm(scores.o.data(), dim) / dim;
    double mean_distance = 0;
    double steepest = 0;
    double farthest = 0;
    for (size_t n = 0; n < scores.p.size(); ++n) {
      const double p = scores.p[n];
      if (p == 0) continue;
      const int64_t key = scores.first_key + static_cast<int64_t>(n);
      const double product = p * p * d_o * v_[key] / dim;
      const double d_logit = product + p * p * delta;
      terms->dq += scale * product * k_[key];
      terms->dk += scale * d_logit * q;
      terms->dv += p * p * d_o;
      terms->dslope += product * Square(scores.distance[n]);
      if (head_.rank() > 0) {
        terms->dphi_q += product * phi_k_[key];
        terms->dphi_k += d_logit * phi_q;
      }
      mean_distance += p * scores.distance[n];
      steepest = std::max(steepest, std::fabs(scores.d_logit[n] / p));
      farthest = std::max(farthest, scores.distance[n]);
    }
    // delta's error is one for all keys of the row.
    terms->dq += scale * delta * SquaredNormOfMean(scores, head_.k(0), dim);
    terms->dslope += delta * Square(mean_distance);
    if (head_.rank() > 0) {
      terms->dphi_q += delta * SquaredNormOfMean(scores, head_.phi_k(0), head_.rank());
    }
    terms->dropped_dq += scale * Square(steepest) * largest_k_;
    terms->dropped_dk += scale * Square(steepest) * q;
    terms->dropped_dv += d_o;
    terms->dropped_dslope += steepest * farthest;
    terms->largest_lse = std::max(terms->largest_lse, std::fabs(scores.lse));
  }

 private:
  const ReferenceHead& head_;
  std::vector<double> k_, v_, phi_k_;
  double largest_k_ = 0;
};

// What rounding makes of one term, in norm: the forward pass's limits.
double Unit(DType dtype) { return RelativeErrorLimit(dtype); }

// How far below the smallest normal number results are apart.
double SubnormalStep(DType dtype) { return dtype == DType::kFloat16 ? 0x1p-24 : 0; }

struct Reference {
  ReferenceGradients gradients;
  std::vector<Terms> terms;        // [num_q_heads], over all sequences
  std::vector<Terms> slope_terms;  // as dslopes
};

// The first `kv_heads` key/value heads with the query heads that use them.
Reference ComputeReference(const AttentionProblem& problem, int kv_heads) {
  Reference reference{.gradients = ZeroGradients(problem),
                      .terms = std::vector<Terms>(problem.num_q_heads),
                      .slope_terms = {}};
  reference.slope_terms.resize(reference.gradients.dslopes.size());
  struct Job {
    int64_t sequence;
    int head;
    int64_t row_begin;
  };
  std::vector<Job> jobs;
  const int heads = kv_heads * (problem.num_q_heads / problem.num_kv_heads);
  for (int64_t n = 0; n < static_cast<int64_t>(problem.sequences.size()); ++n) {
    for (int head = 0; head < heads; ++head) {
      for (int64_t row = 0; row < problem.sequences[n].q_len; row += kChunkRows) {
        jobs.push_back({n, head, row});
      }
    }
  }
  std::mutex mutex;
  InParallel(static_cast<int64_t>(jobs.size()), [&](int64_t index) {
    const Job& job = jobs[index];
    const ReferenceHead head(problem, job.sequence, job.head);
    const TermCounter counter(head);
    HeadGradients gradients = head.Zero();
    Terms terms;
    const int64_t row_end = std::min(job.row_begin + kChunkRows, head.q_len());
    for (int64_t row = job.row_begin; row < row_end; ++row) {
      const ReferenceScores scores = head.Scores(row);
      head.Add(row, scores, &gradients);
      counter.Add(row, scores, &terms);
    }
    const std::lock_guard<std::mutex> lock(mutex);
    AddHead(problem, job.sequence, job.head, gradients, &reference.gradients);
    reference.terms[job.head].Add(terms);
    if (problem.bias_kind == BiasKind::kAlibi) {
      const int64_t of_sequence =
          problem.alibi.per_sequence ? job.sequence * problem.num_q_heads : 0;
      reference.slope_terms[of_sequence + job.head].Add(terms);
    }
  });
  return reference;
}

// Where a gradient's elements are: [rows, heads, width] of `dtype`.
struct Tensor {
  const char* name;
  DType dtype;
  const void* data;
  int heads;
  int width;
  const std::vector<double>& expected;
};

// The first `heads` heads of the tensor; no limit yet.
GradientError ErrorOf(const Tensor& tensor, int heads, int64_t* elements) {
  GradientError result{.name = tensor.name};
  double difference = 0;
  double norm = 0;
  for (size_t n = 0; n < tensor.expected.size(); ++n) {
    const auto at = static_cast<int64_t>(n);
    if (at / tensor.width % tensor.heads >= heads) continue;
    ++*elements;
    difference += Square(static_cast<double>(LoadElement(tensor.dtype, tensor.data, at)) -
                         tensor.expected[n]);
    norm += Square(tensor.expected[n]);
  }
  result.error = std::sqrt(difference);
  result.norm = std::sqrt(norm);
  return result;
}

}  // namespace

double GradientLimit(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return 6e-4;
    case DType::kBFloat16:
      return 5e-3;
    case DType::kFloat32:
      return 2e-5;
  }
  return 0;
}

double BiasGradientLimit(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return 1e-3;
    case DType::kBFloat16:
      return 8e-3;
    case DType::kFloat32:
      return 1e-4;
  }
  return 0;
}

std::vector<GradientError> CompareGradients(const AttentionProblem& problem, int64_t budget,
                                            double slack) {
  const int group = problem.num_q_heads / problem.num_kv_heads;
  const LowRankBias& bias = problem.low_rank;
  const bool low_rank = problem.bias_kind == BiasKind::kLowRank;
  int64_t pairs = 1;
  for (const Sequence& s : problem.sequences) pairs += s.q_len * s.kv_len;
  const int64_t cost = pairs * group * (6 * problem.head_dim + (low_rank ? 4 * bias.rank : 0) + 20);
  const auto kv_heads =
      static_cast<int>(std::clamp<int64_t>(budget / cost, 1, problem.num_kv_heads));
  const Reference reference = ComputeReference(problem, kv_heads);
  const ReferenceGradients& expected = reference.gradients;
  Terms terms;
  for (const Terms& of_head : reference.terms) terms.Add(of_head);

  const double unit = Unit(problem.dtype);
  const double eps = problem.eps > kDefaultEps ? static_cast<double>(problem.eps) : 0;
  // exp(logit - lse) is off by what rounding takes from lse.
  const double lse_error = 0x1p-24 * terms.largest_lse;
  const auto limit = [&](double norm, double squared_terms, double relative, double factor,
                         double dropped) {
    const double of_terms = std::sqrt(squared_terms);
    return std::max(relative * norm, factor * unit * of_terms) + slack * std::max(norm, of_terms) +
           lse_error * (norm + of_terms) + 2 * eps * dropped;
  };
  std::vector<GradientError> errors;
  const auto add = [&](const Tensor& tensor, int heads, double squared_terms, double relative,
                       double squared_dropped) {
    int64_t elements = 0;
    GradientError error = ErrorOf(tensor, heads, &elements);
    error.limit = limit(error.norm, squared_terms, relative, 2, std::sqrt(squared_dropped)) +
                  0.35 * SubnormalStep(tensor.dtype) * std::sqrt(static_cast<double>(elements));
    errors.push_back(error);
  };
  const Gradients& g = problem.gradients;
  const DType dtype = problem.dtype;
  const double relative = GradientLimit(dtype);
  add({"dq", dtype, g.dq, problem.num_q_heads, problem.head_dim, expected.dq}, kv_heads * group,
      terms.dq, relative, terms.dropped_dq);
  add({"dk", dtype, g.dk, problem.num_kv_heads, problem.head_dim, expected.dk}, kv_heads, terms.dk,
      relative, terms.dropped_dk);
  add({"dv", dtype, g.dv, problem.num_kv_heads, problem.head_dim, expected.dv}, kv_heads, terms.dv,
      relative, terms.dropped_dv);
  const double of_bias = BiasGradientLimit(dtype);
  if (g.dslopes != nullptr) {
    for (size_t n = 0; n < expected.dslopes.size(); ++n) {
      const auto head = static_cast<int>(n % problem.num_q_heads);
      if (head >= kv_heads * group) continue;
      GradientError error{.name = absl::StrCat("dslopes[", n, "]")};
      error.error = std::fabs(static_cast<double>(g.dslopes[n]) - expected.dslopes[n]);
      error.norm = std::fabs(expected.dslopes[n]);
      // One value, over which nothing averages out.
      error.limit = limit(error.norm, reference.slope_terms[n].dslope, of_bias, 4,
                          reference.slope_terms[n].dropped_dslope);
      errors.push_back(error);
    }
  }
  const bool all = kv_heads == problem.num_kv_heads;
  if (g.dphi_q != nullptr && (all || bias.phi_q_heads > 1)) {
    add({"dphi_q", DType::kFloat32, g.dphi_q, bias.phi_q_heads, bias.rank, expected.dphi_q},
        kv_heads * group, terms.dphi_q, of_bias, 0);
  }
  if (g.dphi_k != nullptr && (all || bias.phi_k_heads > 1)) {
    add({"dphi_k", DType::kFloat32, g.dphi_k, bias.phi_k_heads, bias.rank, expected.dphi_k},
        kv_heads * group, terms.dphi_k, of_bias, 0);
  }
  return errors;
}

::testing::AssertionResult MatchesReferenceGradients(const OwnedProblem& owned, double slack,
                                                     int64_t budget) {
  const std::string damage = owned.CheckOutputs();
  if (!damage.empty()) return ::testing::AssertionFailure() << damage;
  for (const GradientError& error : CompareGradients(owned.problem(), budget, slack)) {
    // Written so that NaN fails.
    if (error.error <= error.limit) continue;
    return ::testing::AssertionFailure()
           << error.name << ": error " << error.error << ", limit " << error.limit
           << "; relative error " << error.error / error.norm;
  }
  return ::testing::AssertionSuccess();
}

}  // namespace flashbias::support
