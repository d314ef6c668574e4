// Compares answers with the double-precision reference, away from the timed path.
//
// While requests are being timed, Sample only copies a few rows of an answer; Verify computes the
// references of the copied rows afterwards, on all cores. Thread-safety: const methods from any
// thread; Verify is for one thread, once all samples are there. Ownership: refers to the mix.
#ifndef FLASHBIAS_CLIENT_LOAD_REQUESTS_VERIFIER_H_
#define FLASHBIAS_CLIENT_LOAD_REQUESTS_VERIFIER_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "client/attention_types.h"
#include "client/load/requests/answer_sample.h"
#include "client/load/requests/gradient_reference.h"
#include "client/load/requests/request_mix.h"
#include "client/load/requests/workload.h"

namespace flashbias::client {

// Where an answer lies. Null: there is none.
struct AnswerView {
  const void* o = nullptr;
  const float* lse = nullptr;
  const void* dq = nullptr;
  const void* dk = nullptr;
  const void* dv = nullptr;
};

// Limits go by the dtype, so errors are those of one entry of the mix: o and lse of the one that
// comes nearest to its limit or farthest beyond it, and so gradients. Counts are of all entries.
struct VerifyReport {
  int64_t answers = 0;        // compared
  int64_t rows = 0;           // compared, over all answers
  int64_t lse_rows = 0;       // of these, with lse
  int64_t gradient_rows = 0;  // of these, of gradients; the others are of o
  int64_t wrong = 0;          // answers beyond the limit
  double max_o_error = 0;     // ||o - ref|| / ||ref|| over an answer's rows; infinity for NaN
  double max_lse_error = 0;   // |lse - ref| / max(1, |ref|); infinity for NaN
  // Of both. Wider for o where rounding the reference to the dtype alone errs by more than 4/5 of
  // it, as it can over few values; an eps above the default adds 2 eps max|v| to each value of o
  // and 2 eps to lse.
  double limit = 0;
  // Of dq, dk and dv: ||x - ref|| over an answer's rows, relative to the larger of ||ref|| and what
  // as many average rows have (a gradient cancels where a query sees few keys); infinity for NaN.
  double max_gradient_error = 0;
  double gradient_limit = 0;
  std::vector<VerifyReport> entries = {};  // [entries of the mix], of each alone; theirs are empty

  // Where these are false the errors are 0 and mean nothing.
  bool compared_o() const { return rows > gradient_rows; }
  bool compared_lse() const { return lse_rows > 0; }
  bool compared_gradients() const { return gradient_rows > 0; }
};

// The relative error that an exact kernel keeps: 3e-4 float16, 3e-3 bfloat16, 2e-6 float32.
double ErrorLimit(DType dtype);
// The same of dq, dk and dv: 6e-4, 5e-3, 2e-5.
double GradientErrorLimit(DType dtype);

// INVALID_ARGUMENT: an entry asks for gradients with an eps above the default; what that may drop
// of a gradient is no simple share of it. The message names its field.
absl::Status CheckVerifiable(const RequestMix& mix);

class Verifier {
 public:
  // Answers are sampled from their last row and `pool_rows` random (row, head) pairs of each input,
  // so that where lengths or positions repeat the number of references does not grow with that of
  // the answers. REQUIRES: pool_rows and rows_per_answer are at least 1.
  Verifier(const RequestMix* mix, int pool_rows, int rows_per_answer, uint64_t seed);

  // Copies rows of what there is of an answer to sample->request, whose tensors have the shapes of
  // that. Which rows is a function of `draw`.
  void Sample(const AnswerView& answer, uint64_t draw, AnswerSample* sample) const;

  VerifyReport Verify(absl::Span<const AnswerSample> samples) const;

 private:
  class References;
  struct Position {
    int64_t row;
    int head;
  };
  // Of one input of an entry.
  struct Pool {
    std::vector<Position> positions;  // ascending rows
    int gradient_head = 0;            // of k and v
  };
  // What eps may add to each value of o, and to lse.
  struct Allowance {
    double o = 0;
    double lse = 0;
  };

  void SampleRows(const AnswerView& answer, uint64_t draw, AnswerSample* sample) const;
  void SampleGradients(const AnswerView& answer, uint64_t draw, AnswerSample* sample) const;
  // Whether they are right.
  bool JudgeRows(const AnswerSample& sample, const References& references,
                 VerifyReport* report) const;
  bool JudgeGradients(const AnswerSample& sample, const References& references,
                      VerifyReport* report) const;

  const RequestMix* const mix_;
  const int rows_per_answer_;
  const uint64_t seed_;
  // Constant after construction.
  std::vector<std::vector<Pool>> pools_;  // [entries][inputs]
  std::vector<Allowance> allowances_;     // [entries]
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REQUESTS_VERIFIER_H_
