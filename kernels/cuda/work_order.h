// How much work a thread block's items are expected to be, and their order: longest first.
//
// Pure functions, thread-safe.
#ifndef FLASHBIAS_KERNELS_CUDA_WORK_ORDER_H_
#define FLASHBIAS_KERNELS_CUDA_WORK_ORDER_H_

#include <cstdint>
#include <vector>

#include "kernels/cuda/attention_params.h"

namespace flashbias::cuda {

// Keys, on each side of it, that a query row of a head with this slope is expected to compute at
// most; infinite where the sequence skips nothing.
double ReachOfHead(const SequenceParams& sequence, float slope);

// Keys that query rows q_begin .. q_end - 1 together are expected to compute, and query rows for
// which the keys k_begin .. k_end - 1 are.
double ExpectedKeysOfRows(const SequenceParams& sequence, int64_t q_begin, int64_t q_end,
                          double reach);
double ExpectedRowsOfKeys(const SequenceParams& sequence, int64_t k_begin, int64_t k_end,
                          double reach);

// The items by falling cost, in their order where costs are alike. `costs`: one each, tiles.
std::vector<WorkItem> LongestFirst(const std::vector<WorkItem>& items,
                                   const std::vector<int32_t>& costs);

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_WORK_ORDER_H_
