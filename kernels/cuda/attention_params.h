// What the CUDA kernels read: plain structs that the host fills and the device uses as they are.
//
// Every pointer is a device pointer. Units: positions and lengths in rows, strides in elements.
// Thread-safety: plain values. Included by host code and by kernels: standard library only.
#ifndef FLASHBIAS_KERNELS_CUDA_ATTENTION_PARAMS_H_
#define FLASHBIAS_KERNELS_CUDA_ATTENTION_PARAMS_H_

#include <cstdint>

namespace flashbias::cuda {

// Keys per entry of the tables of key norms.
inline constexpr int kNormTileKeys = 64;

// "No left window": far below every row, and far from the ends of int32 when rows are added.
inline constexpr int32_t kNoWindow = -(int32_t{1} << 30);

// One sequence of one problem. Row r of its queries stands at key row p = r + diagonal, and may see
// the key rows
//
//   max(0, r + window_diagonal) .. (causal ? min(kv_len - 1, p) : kv_len - 1)
//
// both ends included; an empty range gives o = 0, lse = -infinity. `diagonal` is query_start -
// key_start, clamped to +-2^30 where that changes no mask and no difference of two distances.
struct SequenceParams {
  const void* q;        // [q_len, num_q_heads, head_dim], heads q_head_stride apart
  const void* k;        // [kv_len, num_kv_heads, head_dim], heads kv_head_stride apart
  const void* v;        // as k
  void* o;              // [q_len, num_q_heads, head_dim], contiguous, any alignment
  float* lse;           // [q_len, num_q_heads] fp32, natural log; null: not wanted
  const float* slopes;  // [num_q_heads] fp32, natural log per row of distance; null: no ALiBi
  const void* phi_q;    // [q_len, phi_q_heads, rank], contiguous, any alignment; null: none
  const void* phi_k;    // [kv_len, phi_k_heads, rank], contiguous, any alignment; null: none
  // Running maxima of |k| over tiles of kNormTileKeys key rows, fp32, NaN as infinity:
  // [2, num_kv_heads, norm_tiles], first over tiles 0 .. t, then over tiles t .. last.
  // Null: nothing may be skipped.
  const float* key_norms;
  int64_t exact_diagonal;  // query_start - key_start
  int64_t partial_begin;   // first row of this sequence in AttentionParams::partial_o
  int32_t q_len;
  int32_t kv_len;
  int32_t num_q_heads;
  int32_t num_kv_heads;
  int32_t head_dim;        // of the tensors, at most the kernel's padded head_dim
  int32_t q_head_stride;   // a multiple of 8; rows are num_q_heads * q_head_stride apart
  int32_t kv_head_stride;  // a multiple of 8; rows are num_kv_heads * kv_head_stride apart
  int32_t diagonal;
  int32_t window_diagonal;  // kNoWindow: every key from 0 on
  int32_t causal;           // 0 or 1
  int32_t phi_q_heads;      // 1 or num_q_heads
  int32_t phi_k_heads;      // 1 or num_q_heads
  int32_t rank;
  int32_t phi_dtype;   // 0 fp16, 1 bf16, 2 fp32 (DType's order)
  int32_t norm_tiles;  // ceil(kv_len / kNormTileKeys)
  int32_t problem;     // index into AttentionParams::tile_counts
  // Rows of one tile: row t of a tile is query row q_begin + t / heads_per_tile of head
  // head + t % heads_per_tile. More than 1 only where those heads share a key/value head.
  int32_t heads_per_tile;
  int32_t num_splits;      // parts that the keys are cut into; 1: results go straight to o
  int32_t keys_per_split;  // a multiple of the kernel's key tile; kv_len where num_splits is 1
  float softmax_scale;     // finite
  // ln(eps), or ln(eps / 2) where a row may see keys on both sides; -infinity: skip nothing.
  float log_eps_per_side;
};

// One thread block's unit of work: a tile of query rows of one head against (a part of) their keys.
struct WorkItem {
  int32_t sequence;  // index into AttentionParams::sequences
  int32_t q_begin;   // first query row
  int32_t head;      // query head (the first of heads_per_tile)
  int32_t split;     // 0 .. num_splits - 1
};

// (head, query tile, key tile) triples that the mask admits, as ProblemStats counts them.
struct TileCounts {
  unsigned long long computed;
  unsigned long long skipped;
};

// The argument of every attention kernel.
struct AttentionParams {
  const SequenceParams* sequences;  // [num_sequences]
  const void* tensor_maps;          // [num_sequences] hopper::SequenceTensorMaps; else null
  const WorkItem* items;            // [num_items], longest first
  unsigned* next_item;              // [2], zero before and after every launch
  TileCounts* tile_counts;          // [num_problems], added to
  // Results of a part of the keys, for sequences with num_splits > 1. Partial row
  //   partial_begin + ((row * num_q_heads + head) * num_splits + split)
  float* partial_o;    // [partial rows, padded head_dim] fp32, normalised
  float* partial_lse;  // [partial rows] fp32, log2, relative to the row's reference
  int32_t num_items;
  int32_t num_sequences;
};

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_ATTENTION_PARAMS_H_
