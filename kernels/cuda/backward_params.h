// What the CUDA kernels of the backward pass read: plain structs that the host fills and the device
// uses as they are. As attention_params.h, whose structs they extend.
//
// The pass is two passes over the scores, so that every gradient is written once, by one thread
// block, in one order: no atomics, bitwise the same every time.
//
//   rows      (backward_rows.h) of each query row what both passes need, from o, d_o and lse
//   kv items  dk, dv of some keys of one key/value head, over the query rows that see them
//   q items   dq of some query rows of one head, over the keys that they see
//
// Every pointer is a device pointer. Units: positions and lengths in rows, strides in elements.
// Thread-safety: plain values. Included by host code and by kernels: standard library only.
#ifndef FLASHBIAS_KERNELS_CUDA_BACKWARD_PARAMS_H_
#define FLASHBIAS_KERNELS_CUDA_BACKWARD_PARAMS_H_

#include <cstdint>

#include "kernels/cuda/attention_params.h"

namespace flashbias::cuda {

// Query rows that share a KeyLimits.
inline constexpr int kLimitRows = 64;

// Rows from one head to the next in BackwardSequence::rows: whole tiles.
constexpr int64_t BackwardRowStride(int64_t q_len) {
  return (q_len + kLimitRows - 1) / kLimitRows * kLimitRows;
}

// Of one query row of one head. With c = softmax_scale log2(e), s = slope log2(e) and the row's
// reference key (its admitted key with the largest bias: the nearest, or for a negative slope the
// farthest),
//
//   P[i, j] = 2^(c <q_i, k_j> - s (|i - j| - |i - reference|) - lse)
struct RowStats {
  float lse;    // log2, less the reference's bias; +infinity: P is 0 (no keys, or no such row)
  float delta;  // <d_o_i, o_i>
};

// Key rows of which no row of a tile needs those at or before `left`, nor those at or after
// `right`: what the mask excludes is not in here, only what eps leaves out.
struct KeyLimits {
  int32_t left;
  int32_t right;
};

// One sequence of one problem.
struct BackwardSequence {
  // As the forward pass has it: q, k and v 16-byte aligned, packed where they were not. lse is
  // read, o is not used.
  SequenceParams forward;

  const void* o;    // [q_len, num_q_heads, head_dim], contiguous, any alignment
  const void* d_o;  // as forward.q: heads q_head_stride apart, 16-byte aligned
  void* dq;         // [q_len, num_q_heads, head_dim], contiguous, any alignment
  void* dk;         // [kv_len, num_kv_heads, head_dim], contiguous, any alignment
  void* dv;         // as dk

  RowStats* rows;     // [num_q_heads, row_stride]; written for every row below row_stride
  KeyLimits* limits;  // [num_q_heads, row_stride / kLimitRows]; null: nothing may be left out
  // The farthest that a tile's limits lie from its rows, in keys: a query row q matters for no key
  // at or before q + diagonal - reach[0], nor at or after q + diagonal + reach[1]. [num_q_heads,
  // 2], non-negative; null where limits is. Zero before the rows pass.
  int32_t* reach;
  // The largest |d_o| over the query heads of each key/value head, and the largest |v| or |o|: bits
  // of non-negative floats, which order as integers. [num_kv_heads, 2]; zero before the rows pass,
  // NaN as infinity. fp16 only; null for bf16.
  uint32_t* magnitudes;
  // Of each q item, n-th of its head: sum_ij dS[i, j] |i - j| over its rows, to be added up in
  // order. [num_q_heads, items], heads dslope_stride apart; null: not wanted.
  float* dslope_partials;
  // For each query head; summed over the heads afterwards where they share a factor, else these
  // are the tensors themselves. Null: not wanted.
  float* dphi_q;  // [q_len, num_q_heads, rank]
  float* dphi_k;  // [kv_len, num_q_heads, rank]

  int32_t row_stride;  // BackwardRowStride(q_len)
  int64_t dslope_stride;
};

// The argument of every kernel of the backward pass. Of an item, q_begin is its first query row or
// its first key, head a query head or a key/value head, and split is 0.
struct BackwardParams {
  const BackwardSequence* sequences;  // [num_sequences]
  const void* tensor_maps;            // [num_sequences] hopper::BackwardTensorMaps; else null
  const WorkItem* kv_items;           // [num_kv_items], longest first
  const WorkItem* q_items;            // [num_q_items], longest first
  unsigned* next_item;  // [4], zero before and after every launch: two a pass, as the family likes
  TileCounts* tile_counts;  // [num_problems], added to by the rows pass
  int32_t num_kv_items;
  int32_t num_q_items;
  int32_t num_sequences;
};

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_BACKWARD_PARAMS_H_
