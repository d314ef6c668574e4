// Compares sampled rows of an output with the double-precision reference.
#ifndef FLASHBIAS_TESTS_BENCH_SPOT_CHECK_H_
#define FLASHBIAS_TESTS_BENCH_SPOT_CHECK_H_

#include <vector>

#include "kernels/attention_problem.h"

namespace flashbias::bench {

// ||o - reference|| / ||reference|| over `num_rows` random rows, among them the first and the last;
// NaN when any of them is. `inputs` holds host pointers, `o` the output as attention_problem.h
// lays it out, in the inputs' dtype.
double SampledRelativeError(const AttentionProblem& inputs, const std::vector<char>& o,
                            int num_rows);

}  // namespace flashbias::bench

#endif  // FLASHBIAS_TESTS_BENCH_SPOT_CHECK_H_
