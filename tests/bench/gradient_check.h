// Compares sampled rows of gradients with their definition, in double precision.
#ifndef FLASHBIAS_TESTS_BENCH_GRADIENT_CHECK_H_
#define FLASHBIAS_TESTS_BENCH_GRADIENT_CHECK_H_

#include "kernels/attention_problem.h"

namespace flashbias::bench {

// The largest of ||x - x'|| / ||x'|| over dq, dk and dv, each over `num_rows` random rows of one
// head, among them the first and the last; NaN when any of them is. x' is what attention_problem.h
// says of the problem's own o and lse: a row costs as much as its partners, whatever the length.
// REQUIRES: host pointers; no bias or ALiBi or factors of every head.
double SampledGradientError(const AttentionProblem& problem, int num_rows);

}  // namespace flashbias::bench

#endif  // FLASHBIAS_TESTS_BENCH_GRADIENT_CHECK_H_
