// Compares answers with the double-precision reference, away from the timed path.
//
// While requests are being timed, Sample only copies a few rows of an answer; Verify computes the
// reference for the copied rows afterwards. Thread-safety: Sample is const and thread-safe; Verify
// is for one thread, once all samples are there. Ownership: points into the workload.
#ifndef FLASHBIAS_CLIENT_LOAD_VERIFIER_H_
#define FLASHBIAS_CLIENT_LOAD_VERIFIER_H_

#include <cstdint>
#include <map>
#include <random>
#include <tuple>
#include <vector>

#include "absl/types/span.h"
#include "client/attention_types.h"
#include "client/load/gradient_reference.h"
#include "client/load/workload.h"
#include "kernels/reference/reference_attention.h"

namespace flashbias::client {

// Some rows of one answer.
struct AnswerSample {
  struct Row {
    int64_t row = 0;
    int head = 0;
    std::vector<float> o = {};  // [head_dim]
    float lse = 0;              // 0 when not asked for
  };
  // Of one of the gradients.
  struct GradientRow {
    GradientOf which = GradientOf::kQ;
    int64_t row = 0;
    int head = 0;
    std::vector<float> values = {};  // [head_dim]
  };
  int input = 0;
  std::vector<Row> rows = {};                   // of an AttendResult
  std::vector<GradientRow> gradient_rows = {};  // of AttendGradients
};

struct VerifyReport {
  int64_t answers = 0;       // compared
  int64_t rows = 0;          // compared, over all answers
  int64_t wrong = 0;         // answers beyond the limit
  double max_o_error = 0;    // ||o - ref|| / ||ref|| over an answer's rows; infinity for NaN
  double max_lse_error = 0;  // |lse - ref| / max(1, |ref|); infinity for NaN
  // Of both. Wider for o where rounding the reference to the dtype alone errs by more than 4/5 of
  // it, as it can over few values; an eps above the default adds 2 eps max|v| to each value of o
  // and 2 eps to lse.
  double limit = 0;
  // Of dq, dk and dv: ||x - ref|| over an answer's rows, relative to the larger of ||ref|| and what
  // as many average rows have (a gradient cancels where a query sees few keys); infinity for NaN.
  double max_gradient_error = 0;
  double gradient_limit = 0;
};

// The relative error that an exact kernel keeps: 3e-4 float16, 3e-3 bfloat16, 2e-6 float32.
double ErrorLimit(DType dtype);
// The same of dq, dk and dv: 6e-4, 5e-3, 2e-5.
double GradientErrorLimit(DType dtype);

class Verifier {
 public:
  // Answers are sampled from `pool_rows` random (row, head) pairs of each input, so that the number
  // of references does not grow with the number of answers.
  Verifier(const Workload* workload, int pool_rows, int rows_per_answer, uint64_t seed);

  // Add rows to `sample`. REQUIRES: they answer request sample->input of the workload (the client
  // checked their shapes).
  void Sample(const AttendResult& result, std::mt19937_64* random, AnswerSample* sample) const;
  // Rows of one key/value head of each input, whose gradients Verify computes in whole.
  void Sample(const AttendGradients& gradients, std::mt19937_64* random,
              AnswerSample* sample) const;

  VerifyReport Verify(absl::Span<const AnswerSample> samples);

 private:
  struct Position {
    int64_t row;
    int head;
  };

  // Whether they are right.
  bool VerifyRows(const AnswerSample& sample, VerifyReport* report);
  bool VerifyGradients(const AnswerSample& sample, VerifyReport* report);
  const GradientReference& Gradients(int input);
  const ReferenceRow& Reference(int input, int64_t row, int head);

  const Workload* const workload_;
  const int rows_per_answer_;
  std::vector<std::vector<Position>> pools_;  // one per input; constant after construction
  double o_allowance_ = 0;                    // what eps may add to each value of o, and to lse
  double lse_allowance_ = 0;
  std::map<std::tuple<int, int64_t, int>, ReferenceRow> references_;
  std::vector<int> gradient_heads_;  // of k and v, one per input; constant after construction
  std::map<int, GradientReference> gradients_;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_VERIFIER_H_
