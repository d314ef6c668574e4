#include "client/load/requests/verifier.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/load/requests/counter_random.h"
#include "kernels/reference/reference_attention.h"

namespace flashbias::client {
namespace {

enum RandomStream : uint64_t { kRow, kHead, kLastRowHead, kPick, kGradientPick };

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
  const WorkloadOptions& shape = workload.options();
  float max = 0;
  for (int input = 0; input < workload.num_inputs(); ++input) {
    const std::string& v = workload.input(input).v;
    const auto count = static_cast<int64_t>(v.size() / SizeOf(shape.dtype));
    for (int64_t n = 0; n < count; ++n) {
      max = std::max(max, std::abs(LoadElement(shape.dtype, v.data(), n)));
    }
  }
  return static_cast<double>(max);
}

std::vector<float> CopyRow(DType dtype, const void* tensor, int64_t row, int64_t head_dim) {
  std::vector<float> values(head_dim);
  for (int64_t d = 0; d < head_dim; ++d) values[d] = LoadElement(dtype, tensor, row * head_dim + d);
  return values;
}

// Calls run(0) to run(count - 1), each once, on as many threads as there are cores.
void ForEach(int64_t count, const std::function<void(int64_t)>& run) {
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t n = next++; n < count; n = next++) run(n);
  };
  std::vector<std::thread> threads;
  const int64_t cores = std::max(1u, std::thread::hardware_concurrency());
  for (int64_t n = 1; n < std::min(cores, count); ++n) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
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

absl::Status CheckVerifiable(const RequestMix& mix) {
  for (int entry = 0; entry < mix.num_entries(); ++entry) {
    const WorkloadOptions& options = mix.workload(entry).options();
    if (options.direction == LoadDirection::kForward || options.eps.value_or(0) <= kDefaultEps) {
      continue;
    }
    return absl::InvalidArgumentError(
        absl::StrCat(mix.options().entries[entry].field_prefix, "eps is ", *options.eps,
                     "; accepted where gradients are verified: up to 2^-24"));
  }
  return absl::OkStatus();
}

// Of everything that was sampled.
class Verifier::References {
 public:
  References(const RequestMix& mix, const std::vector<std::vector<Pool>>& pools,
             absl::Span<const AnswerSample> samples)
      : mix_(mix) {
    for (const AnswerSample& sample : samples) {
      for (const AnswerSample::Row& row : sample.rows) {
        rows_.try_emplace(KeyOf(sample.request, row.row, row.head));
      }
      if (!sample.gradient_rows.empty()) gradients_.try_emplace(KeyOf(sample.request));
    }
    // The longest first. Maps do not move what they hold.
    std::vector<std::function<void()>> tasks;
    for (auto& [key, gradients] : gradients_) {
      tasks.emplace_back([this, &pools, &key = key, &gradients = gradients] {
        const auto [entry, input, q_len, kv_len] = key;
        const Sequence sequence = Workload::sequence(q_len, kv_len);
        gradients = std::make_unique<GradientReference>(
            mix_.workload(entry).problem(input, sequence), pools[entry][input].gradient_head);
      });
    }
    for (auto& [key, reference] : rows_) {
      tasks.emplace_back([this, &key = key, &reference = reference] {
        const auto [entry, input, query_start, kv_len, row, head] = key;
        const Sequence sequence = Workload::sequence(kv_len - query_start, kv_len);
        reference =
            ReferenceAttentionRow(mix_.workload(entry).problem(input, sequence), 0, row, head);
      });
    }
    ForEach(static_cast<int64_t>(tasks.size()), [&](int64_t n) { tasks[n](); });
  }

  const ReferenceRow& Row(const PlannedRequest& request, const AnswerSample::Row& row) const {
    return rows_.at(KeyOf(request, row.row, row.head));
  }
  const GradientReference& Gradients(const PlannedRequest& request) const {
    return *gradients_.at(KeyOf(request));
  }

 private:
  using RowKey = std::tuple<int, int, int64_t, int64_t, int64_t, int>;
  using GradientKey = std::tuple<int, int, int64_t, int64_t>;

  RowKey KeyOf(const PlannedRequest& request, int64_t row, int head) const {
    const int64_t query_start = request.kv_len - request.q_len;
    // A causal query sees nothing of the keys after it, so requests of many lengths have it in
    // common.
    const int64_t kv_len = mix_.workload(request.entry).options().causal
                               ? std::max(query_start + row + 1, int64_t{0})
                               : request.kv_len;
    return {request.entry, request.input, query_start, kv_len, row, head};
  }
  static GradientKey KeyOf(const PlannedRequest& request) {
    return {request.entry, request.input, request.q_len, request.kv_len};
  }

  const RequestMix& mix_;
  std::map<RowKey, ReferenceRow> rows_;
  std::map<GradientKey, std::unique_ptr<GradientReference>> gradients_;
};

Verifier::Verifier(const RequestMix* mix, int pool_rows, int rows_per_answer, uint64_t seed)
    : mix_(mix), rows_per_answer_(rows_per_answer), seed_(seed) {
  uint64_t drawn = 0;
  for (int entry = 0; entry < mix->num_entries(); ++entry) {
    const Workload& workload = mix->workload(entry);
    const WorkloadOptions& shape = workload.options();
    std::vector<Pool> pools(workload.num_inputs());
    for (Pool& pool : pools) {
      pool.gradient_head =
          static_cast<int>(RandomBelow(shape.kv_heads, seed, RandomStream::kHead, drawn++));
      for (int n = 0; n < pool_rows; ++n, ++drawn) {
        // Rows as likely as requests have them.
        const auto request = static_cast<int64_t>(RandomBits(seed, RandomStream::kRow, drawn) >> 1);
        pool.positions.push_back(
            {.row = RandomBelow(mix->RequestOf(entry, request).q_len, seed, RandomStream::kRow,
                                ~drawn),
             .head = static_cast<int>(RandomBelow(shape.heads, seed, RandomStream::kHead, drawn))});
      }
      std::sort(pool.positions.begin(), pool.positions.end(),
                [](const Position& a, const Position& b) { return a.row < b.row; });
    }
    pools_.push_back(std::move(pools));
    const float eps = shape.eps.value_or(kDefaultEps);
    Allowance allowance;
    if (eps > kDefaultEps) {
      allowance.lse = 2 * static_cast<double>(eps);
      allowance.o = allowance.lse * MaxAbsV(workload);
    }
    allowances_.push_back(allowance);
  }
}

void Verifier::Sample(const AnswerView& answer, uint64_t draw, AnswerSample* sample) const {
  if (answer.o != nullptr) SampleRows(answer, draw, sample);
  if (answer.dq != nullptr) SampleGradients(answer, draw, sample);
}

void Verifier::SampleRows(const AnswerView& answer, uint64_t draw, AnswerSample* sample) const {
  const PlannedRequest& request = sample->request;
  const WorkloadOptions& shape = mix_->workload(request.entry).options();
  const std::vector<Position>& pool = pools_[request.entry][request.input].positions;
  const int64_t usable =
      std::lower_bound(pool.begin(), pool.end(), request.q_len,
                       [](const Position& a, int64_t q_len) { return a.row < q_len; }) -
      pool.begin();
  for (int n = 0; n < rows_per_answer_; ++n) {
    // The last row sees the most keys, so it is in every sample.
    Position position = {.row = request.q_len - 1, .head = 0};
    if (n > 0 && usable > 0) {
      position = pool[RandomBelow(usable, draw, RandomStream::kPick, n)];
    } else {
      position.head = static_cast<int>(
          RandomBelow(shape.heads, seed_, RandomStream::kLastRowHead, request.q_len + n));
    }
    const int64_t index = position.row * shape.heads + position.head;
    AnswerSample::Row row{.row = position.row, .head = position.head};
    row.o = CopyRow(shape.dtype, answer.o, index, shape.head_dim);
    if (shape.want_lse && answer.lse != nullptr) row.lse = answer.lse[index];
    sample->rows.push_back(std::move(row));
  }
}

void Verifier::SampleGradients(const AnswerView& answer, uint64_t draw,
                               AnswerSample* sample) const {
  const PlannedRequest& request = sample->request;
  const WorkloadOptions& shape = mix_->workload(request.entry).options();
  const int kv_head = pools_[request.entry][request.input].gradient_head;
  const int64_t group = shape.heads / shape.kv_heads;
  uint64_t picked = 0;
  const auto below = [&](int64_t count) {
    return RandomBelow(count, draw, RandomStream::kGradientPick, picked++);
  };
  const auto add = [&](GradientOf which, const void* tensor, int64_t row, int head, int64_t heads) {
    AnswerSample::GradientRow taken{.which = which, .row = row, .head = head};
    taken.values = CopyRow(shape.dtype, tensor, row * heads + head, shape.head_dim);
    sample->gradient_rows.push_back(std::move(taken));
  };
  for (int n = 0; n < rows_per_answer_; ++n) {
    const int q_head = static_cast<int>(kv_head * group + below(group));
    add(GradientOf::kQ, answer.dq, below(request.q_len), q_head, shape.heads);
    add(GradientOf::kK, answer.dk, below(request.kv_len), kv_head, shape.kv_heads);
    add(GradientOf::kV, answer.dv, below(request.kv_len), kv_head, shape.kv_heads);
  }
}

VerifyReport Verifier::Verify(absl::Span<const AnswerSample> samples) const {
  VerifyReport report;
  report.entries.resize(mix_->num_entries());
  for (int entry = 0; entry < mix_->num_entries(); ++entry) {
    const DType dtype = mix_->workload(entry).options().dtype;
    report.entries[entry].limit = ErrorLimit(dtype);
    report.entries[entry].gradient_limit = GradientErrorLimit(dtype);
  }
  const References references(*mix_, pools_, samples);
  for (const AnswerSample& sample : samples) {
    VerifyReport& of = report.entries[sample.request.entry];
    ++of.answers;
    const bool rows_are_right = JudgeRows(sample, references, &of);
    const bool gradients_are_right = JudgeGradients(sample, references, &of);
    if (!rows_are_right || !gradients_are_right) ++of.wrong;
  }
  // Below any, so that there is an entry even where all errors are 0.
  double nearest = -1;
  double nearest_gradient = -1;
  for (const VerifyReport& of : report.entries) {
    report.answers += of.answers;
    report.rows += of.rows;
    report.lse_rows += of.lse_rows;
    report.gradient_rows += of.gradient_rows;
    report.wrong += of.wrong;
    const double share = std::max(of.max_o_error, of.max_lse_error) / of.limit;
    if (share > nearest) {
      nearest = share;
      report.max_o_error = of.max_o_error;
      report.max_lse_error = of.max_lse_error;
      report.limit = of.limit;
    }
    if (const double gradient_share = of.max_gradient_error / of.gradient_limit;
        gradient_share > nearest_gradient) {
      nearest_gradient = gradient_share;
      report.max_gradient_error = of.max_gradient_error;
      report.gradient_limit = of.gradient_limit;
    }
  }
  return report;
}

bool Verifier::JudgeRows(const AnswerSample& sample, const References& references,
                         VerifyReport* report) const {
  if (sample.rows.empty()) return true;
  const WorkloadOptions& shape = mix_->workload(sample.request.entry).options();
  const Allowance& allowance = allowances_[sample.request.entry];
  double difference = 0;
  double rounding = 0;
  double norm = 0;
  double lse_error = 0;
  int64_t values = 0;
  for (const AnswerSample::Row& row : sample.rows) {
    values += static_cast<int64_t>(row.o.size());
    const ReferenceRow& reference = references.Row(sample.request, row);
    for (size_t d = 0; d < row.o.size(); ++d) {
      const double delta = static_cast<double>(row.o[d]) - reference.o[d];
      difference += delta * delta;
      const double rounded = Rounded(shape.dtype, reference.o[d]) - reference.o[d];
      rounding += rounded * rounded;
      norm += reference.o[d] * reference.o[d];
    }
    if (shape.want_lse) {
      ++report->lse_rows;
      lse_error = std::max(lse_error, LseError(static_cast<double>(row.lse), reference.lse));
    }
  }
  const double o_error =
      difference == 0 ? 0 : NanToInfinity(std::sqrt(difference) / std::sqrt(norm));
  report->rows += static_cast<int64_t>(sample.rows.size());
  // In units of ||ref||, like o_error.
  const double o_limit = std::max(report->limit, 1.25 * std::sqrt(rounding) / std::sqrt(norm)) +
                         allowance.o * std::sqrt(static_cast<double>(values)) / std::sqrt(norm);
  // Rows that see no key have norm 0, and o must be exactly 0.
  const bool o_is_right = norm > 0 ? o_error <= o_limit : difference == 0;
  report->max_o_error = std::max(report->max_o_error, o_error);
  report->max_lse_error = std::max(report->max_lse_error, lse_error);
  return o_is_right && lse_error <= report->limit + allowance.lse;
}

bool Verifier::JudgeGradients(const AnswerSample& sample, const References& references,
                              VerifyReport* report) const {
  if (sample.gradient_rows.empty()) return true;
  const GradientReference& reference = references.Gradients(sample.request);
  report->rows += static_cast<int64_t>(sample.gradient_rows.size());
  report->gradient_rows += static_cast<int64_t>(sample.gradient_rows.size());
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

}  // namespace flashbias::client
