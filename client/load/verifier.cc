#include "client/load/verifier.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <utility>

namespace flashbias::client {
namespace {

// NaN must not pass a comparison with a limit, nor hide in a maximum.
double NanToInfinity(double error) {
  return std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
}

double Rounded(DType dtype, double value) {
  char element[sizeof(float)];
  StoreElement(dtype, element, 0, static_cast<float>(value));
  return static_cast<double>(LoadElement(dtype, element, 0));
}

double LseError(double lse, double reference) {
  if (lse == reference) return 0;  // both -infinity
  return NanToInfinity(std::abs(lse - reference) / std::max(1.0, std::abs(reference)));
}

double MaxAbsV(const Workload& workload) {
  float max = 0;
  const RequestSummary& shape = workload.summary();
  for (int input = 0; input < workload.num_inputs(); ++input) {
    const int64_t count = shape.total_kv * shape.num_kv_heads * shape.head_dim;
    for (int64_t n = 0; n < count; ++n) {
      max = std::max(max, std::abs(LoadElement(shape.dtype, workload.request(input).v.data, n)));
    }
  }
  return static_cast<double>(max);
}

}  // namespace

double ErrorLimit(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return 3e-4;
    case DType::kBFloat16:
      return 3e-3;
    case DType::kFloat32:
      return 2e-6;
  }
  return 0;
}

double GradientErrorLimit(DType dtype) {
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

Verifier::Verifier(const Workload* workload, int pool_rows, int rows_per_answer, uint64_t seed)
    : workload_(workload), rows_per_answer_(rows_per_answer) {
  const RequestSummary& shape = workload->summary();
  std::mt19937_64 random(seed);
  std::uniform_int_distribution<int64_t> row(0, shape.total_q - 1);
  std::uniform_int_distribution<int> head(0, static_cast<int>(shape.num_q_heads) - 1);
  const double eps = static_cast<double>(workload->problem(0).eps);
  if (eps > static_cast<double>(kDefaultEps)) {
    o_allowance_ = 2 * eps * MaxAbsV(*workload);
    lse_allowance_ = 2 * eps;
  }
  std::uniform_int_distribution<int> kv_head(0, static_cast<int>(shape.num_kv_heads) - 1);
  for (int input = 0; input < workload->num_inputs(); ++input) {
    gradient_heads_.push_back(workload->direction() == LoadDirection::kForward ? 0
                                                                               : kv_head(random));
  }
  pools_.resize(workload->num_inputs());
  for (std::vector<Position>& pool : pools_) {
    // The last row sees the most keys, so it is in every pool.
    pool.push_back({.row = shape.total_q - 1, .head = head(random)});
    while (static_cast<int>(pool.size()) < pool_rows) {
      pool.push_back({.row = row(random), .head = head(random)});
    }
  }
}

void Verifier::Sample(const AttendResult& result, std::mt19937_64* random,
                      AnswerSample* sample) const {
  const RequestSummary& shape = workload_->summary();
  const std::vector<Position>& pool = pools_[sample->input];
  std::uniform_int_distribution<size_t> pick(0, pool.size() - 1);
  for (int n = 0; n < rows_per_answer_; ++n) {
    const Position& position = pool[pick(*random)];
    AnswerSample::Row row{.row = position.row, .head = position.head};
    const int64_t index = position.row * shape.num_q_heads + position.head;
    row.o.resize(shape.head_dim);
    for (int64_t d = 0; d < shape.head_dim; ++d) {
      row.o[d] = LoadElement(result.dtype, result.o.data(), index * shape.head_dim + d);
    }
    if (shape.want_lse) row.lse = result.lse[index];
    sample->rows.push_back(std::move(row));
  }
}

void Verifier::Sample(const AttendGradients& gradients, std::mt19937_64* random,
                      AnswerSample* sample) const {
  const RequestSummary& shape = workload_->summary();
  const int kv_head = gradient_heads_[sample->input];
  const auto group = static_cast<int>(shape.num_q_heads / shape.num_kv_heads);
  std::uniform_int_distribution<int64_t> query(0, shape.total_q - 1);
  std::uniform_int_distribution<int64_t> key(0, shape.total_kv - 1);
  std::uniform_int_distribution<int> head(kv_head * group, kv_head * group + group - 1);
  const auto add = [&](GradientOf which, const std::string& tensor, int64_t row, int row_head,
                       int64_t heads) {
    AnswerSample::GradientRow taken{.which = which, .row = row, .head = row_head};
    taken.values.resize(shape.head_dim);
    for (int64_t d = 0; d < shape.head_dim; ++d) {
      taken.values[d] = LoadElement(gradients.dtype, tensor.data(),
                                    (row * heads + row_head) * shape.head_dim + d);
    }
    sample->gradient_rows.push_back(std::move(taken));
  };
  for (int n = 0; n < rows_per_answer_; ++n) {
    add(GradientOf::kQ, gradients.dq, query(*random), head(*random), shape.num_q_heads);
    add(GradientOf::kK, gradients.dk, key(*random), kv_head, shape.num_kv_heads);
    add(GradientOf::kV, gradients.dv, key(*random), kv_head, shape.num_kv_heads);
  }
}

VerifyReport Verifier::Verify(absl::Span<const AnswerSample> samples) {
  VerifyReport report{.limit = ErrorLimit(workload_->summary().dtype),
                      .gradient_limit = GradientErrorLimit(workload_->summary().dtype)};
  for (const AnswerSample& sample : samples) {
    ++report.answers;
    const bool rows_are_right = VerifyRows(sample, &report);
    const bool gradients_are_right = VerifyGradients(sample, &report);
    if (!rows_are_right || !gradients_are_right) ++report.wrong;
  }
  return report;
}

bool Verifier::VerifyRows(const AnswerSample& sample, VerifyReport* report) {
  double difference = 0;
  double rounding = 0;
  double norm = 0;
  double lse_error = 0;
  int64_t values = 0;
  for (const AnswerSample::Row& row : sample.rows) {
    values += static_cast<int64_t>(row.o.size());
    const ReferenceRow& reference = Reference(sample.input, row.row, row.head);
    for (size_t d = 0; d < row.o.size(); ++d) {
      const double delta = static_cast<double>(row.o[d]) - reference.o[d];
      difference += delta * delta;
      const double rounded = Rounded(workload_->summary().dtype, reference.o[d]) - reference.o[d];
      rounding += rounded * rounded;
      norm += reference.o[d] * reference.o[d];
    }
    if (workload_->summary().want_lse) {
      lse_error = std::max(lse_error, LseError(static_cast<double>(row.lse), reference.lse));
    }
  }
  const double o_error =
      difference == 0 ? 0 : NanToInfinity(std::sqrt(difference) / std::sqrt(norm));
  report->rows += static_cast<int64_t>(sample.rows.size());
  // In units of ||ref||, like o_error.
  const double o_limit = std::max(report->limit, 1.25 * std::sqrt(rounding) / std::sqrt(norm)) +
                         o_allowance_ * std::sqrt(static_cast<double>(values)) / std::sqrt(norm);
  // Rows that see no key have norm 0, and o must be exactly 0.
  const bool o_is_right = norm > 0 ? o_error <= o_limit : difference == 0;
  report->max_o_error = std::max(report->max_o_error, o_error);
  report->max_lse_error = std::max(report->max_lse_error, lse_error);
  return o_is_right && lse_error <= report->limit + lse_allowance_;
}

bool Verifier::VerifyGradients(const AnswerSample& sample, VerifyReport* report) {
  if (sample.gradient_rows.empty()) return true;
  const GradientReference& reference = Gradients(sample.input);
  report->rows += static_cast<int64_t>(sample.gradient_rows.size());
  double largest = 0;
  for (const GradientOf which : {GradientOf::kQ, GradientOf::kK, GradientOf::kV}) {
    double difference = 0;
    double norm = 0;
    int64_t values = 0;
    for (const AnswerSample::GradientRow& row : sample.gradient_rows) {
      if (row.which != which) continue;
      const double* const expected = reference.Row(which, row.row, row.head);
      for (size_t d = 0; d < row.values.size(); ++d) {
        const double delta = static_cast<double>(row.values[d]) - expected[d];
        difference += delta * delta;
        norm += expected[d] * expected[d];
        ++values;
      }
    }
    const double average = reference.Magnitude(which) * std::sqrt(static_cast<double>(values));
    const double error =
        difference == 0 ? 0
                        : NanToInfinity(std::sqrt(difference) / std::max(std::sqrt(norm), average));
    largest = std::max(largest, error);
  }
  report->max_gradient_error = std::max(report->max_gradient_error, largest);
  return largest <= report->gradient_limit;
}

const GradientReference& Verifier::Gradients(int input) {
  auto it = gradients_.find(input);
  if (it == gradients_.end()) {
    it = gradients_
             .emplace(input, GradientReference(workload_->problem(input), gradient_heads_[input]))
             .first;
  }
  return it->second;
}

const ReferenceRow& Verifier::Reference(int input, int64_t row, int head) {
  const auto key = std::tuple(input, row, head);
  auto it = references_.find(key);
  if (it == references_.end()) {
    it = references_
             .emplace(key,
                      ReferenceAttentionRow(workload_->problem(input), /*sequence=*/0, row, head))
             .first;
  }
  return it->second;
}

}  // namespace flashbias::client
