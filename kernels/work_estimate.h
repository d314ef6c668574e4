// How much work a problem is, estimated from its shapes and slopes alone.
//
// Pure functions, thread-safe. Used to fill batches by work instead of by count, and to run the
// longest tasks first. They read shapes, mask, eps and slopes, never the tensors.
#ifndef FLASHBIAS_KERNELS_WORK_ESTIMATE_H_
#define FLASHBIAS_KERNELS_WORK_ESTIMATE_H_

#include <cstdint>

#include "kernels/attention_problem.h"

namespace flashbias {

// Farthest key, in keys, that is expected to hold mass for a row on one side of the diagonal: the
// row's logits are taken to have unit variance and so to stay within 12 nats. `log_eps` is the
// natural log of the share of mass that this side may lose. Infinite for slopes that are not
// positive.
double ExpectedReach(double slope, double log_eps);

// Estimated keys that row `q_row` of one sequence and head computes: those that the mask admits and
// that skipping is expected to leave.
double ExpectedKeys(const AttentionProblem& problem, int64_t sequence, int head, int64_t q_row);

// Estimated score elements (query row, key) over all heads and sequences, at least 1, saturating at
// INT64_MAX. One of a backward problem counts kBackwardWork times: its two passes make seven
// products of the size of a head where the forward pass makes two.
inline constexpr double kBackwardWork = 3.5;
int64_t EstimateScoreElements(const AttentionProblem& problem);

}  // namespace flashbias

#endif  // FLASHBIAS_KERNELS_WORK_ESTIMATE_H_
