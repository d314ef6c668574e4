// How much work a problem is, estimated from its shapes and slopes alone.
//
// Pure function, thread-safe. Used by the batch policy to fill batches by work, not by count.
#ifndef FLASHBIAS_KERNELS_WORK_ESTIMATE_H_
#define FLASHBIAS_KERNELS_WORK_ESTIMATE_H_

#include <cstdint>

#include "kernels/attention_problem.h"

namespace flashbias {

// Estimated score elements (query row, key) over all heads and sequences that the mask admits and
// skipping is expected to leave, at least 1, saturating at INT64_MAX. Reads shapes, mask, eps and
// slopes, never the tensors.
int64_t EstimateScoreElements(const AttentionProblem& problem);

}  // namespace flashbias

#endif  // FLASHBIAS_KERNELS_WORK_ESTIMATE_H_
