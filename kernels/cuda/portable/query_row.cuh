// What one query row of one head needs to know: which keys it may see, and its ALiBi bias relative
// to the admitted key with the largest one.
//
// Relative biases are small where softmax mass is, so fp32 scores lose nothing to large positions;
// the reference's own bias enters lse alone, in double.
#ifndef FLASHBIAS_KERNELS_CUDA_PORTABLE_QUERY_ROW_CUH_
#define FLASHBIAS_KERNELS_CUDA_PORTABLE_QUERY_ROW_CUH_

#include <cfloat>
#include <cstdint>

#include "kernels/cuda/attention_params.h"
#include "kernels/cuda/softmax_math.cuh"

namespace flashbias::cuda::portable {

// Key rows first .. last, both included; empty where first > last.
struct KeyRange {
  int first;
  int last;
  __device__ bool empty() const { return first > last; }
  // Whether any of begin .. end - 1 is among them.
  __device__ bool Meets(int begin, int end) const {
    return !empty() && first < end && last >= begin;
  }
};

// The keys that any of the query rows first_row .. last_row may see. Both ends grow with the row.
__device__ inline KeyRange AdmittedKeys(const SequenceParams& sequence, int first_row,
                                        int last_row) {
  int last = sequence.kv_len - 1;
  if (sequence.causal != 0) last = min(last, last_row + sequence.diagonal);
  return {max(0, first_row + sequence.window_diagonal), last};
}

// What a float cannot hold becomes the largest one: infinity times a distance of 0 would be NaN.
__device__ inline float ToFinite(float value) { return fminf(fmaxf(value, -FLT_MAX), FLT_MAX); }

// Of a row that admits keys: the nearest one, or for a negative slope the farthest.
__device__ inline int ReferenceKey(const KeyRange& keys, int position, float slope) {
  if (slope >= 0) return min(max(position, keys.first), keys.last);
  return abs(position - keys.first) >= abs(position - keys.last) ? keys.first : keys.last;
}

// |position - key| less that of the reference key is max(left - key, key - right).
struct Bends {
  int left;
  int right;
};

// Of a row at key row `position` that admits keys.
__device__ inline Bends BendsOf(const KeyRange& keys, int position, float slope) {
  const int64_t distance = llabs(int64_t{position} - ReferenceKey(keys, position, slope));
  // Where an int32 cannot hold these, all keys stand on the other side.
  return {static_cast<int>(max(position - distance, int64_t{kNoWindow})),
          static_cast<int>(min(position + distance, int64_t{INT32_MAX}))};
}

// The bias of the reference key, natural log.
__device__ inline double ReferenceBias(const SequenceParams& sequence, const KeyRange& keys,
                                       int row, float slope) {
  const int reference = ReferenceKey(keys, row + sequence.diagonal, slope);
  const int64_t distance = llabs(row + sequence.exact_diagonal - reference);
  return -static_cast<double>(slope) * static_cast<double>(distance);
}

}  // namespace flashbias::cuda::portable

#endif  // FLASHBIAS_KERNELS_CUDA_PORTABLE_QUERY_ROW_CUH_
