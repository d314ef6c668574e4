// The formula of kernels/attention_problem.h in double precision, written to be read.
//
// It shares no code with the kernels: no tiles, no skipping, no online softmax. It is the oracle of
// the tests and of the load generator's --verify. Pure function, thread-safe, single-threaded.
#ifndef FLASHBIAS_KERNELS_REFERENCE_REFERENCE_ATTENTION_H_
#define FLASHBIAS_KERNELS_REFERENCE_REFERENCE_ATTENTION_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/attention_problem.h"

namespace flashbias {

struct ReferenceRow {
  std::vector<double> o;  // [head_dim]
  double lse = 0;         // natural log; -infinity where the mask admits no key
};

// Row `row` (0 .. q_len - 1) of sequence `sequence`, head `head`; reads the problem's inputs, not
// its o and lse. softmax_scale, slopes and factors are taken as the fp32 (or 16-bit) values that
// the problem holds; everything after that is double.
ReferenceRow ReferenceAttentionRow(const AttentionProblem& problem, int64_t sequence, int64_t row,
                                   int head);

}  // namespace flashbias

#endif  // FLASHBIAS_KERNELS_REFERENCE_REFERENCE_ATTENTION_H_
