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
  int input = 0;
  std::vector<Row> rows = {};
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
};

// The relative error that an exact kernel keeps: 3e-4 float16, 3e-3 bfloat16, 2e-6 float32.
double ErrorLimit(DType dtype);

class Verifier {
 public:
  // Answers are sampled from `pool_rows` random (row, head) pairs of each input, so that the number
  // of references does not grow with the number of answers.
  Verifier(const Workload* workload, int pool_rows, int rows_per_answer, uint64_t seed);

  // REQUIRES: `result` answers request `input` of the workload (the client checked its shape).
  AnswerSample Sample(int input, const AttendResult& result, std::mt19937_64* random) const;

  VerifyReport Verify(absl::Span<const AnswerSample> samples);

 private:
  struct Position {
    int64_t row;
    int head;
  };

  const ReferenceRow& Reference(int input, int64_t row, int head);

  const Workload* const workload_;
  const int rows_per_answer_;
  std::vector<std::vector<Position>> pools_;  // one per input; constant after construction
  double o_allowance_ = 0;                    // what eps may add to each value of o, and to lse
  double lse_allowance_ = 0;
  std::map<std::tuple<int, int64_t, int>, ReferenceRow> references_;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_VERIFIER_H_
