// Scratch memory of one computing thread, allocated once and reused by every task it runs.
//
// Not thread-safe: one workspace a thread.
#ifndef FLASHBIAS_KERNELS_CPU_WORKSPACE_H_
#define FLASHBIAS_KERNELS_CPU_WORKSPACE_H_

#include <hwy/aligned_allocator.h>

#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/attention_problem.h"
#include "kernels/skip_table.h"

namespace flashbias::cpu {

// Rows that one pass of the micro-kernel computes: 6 on the narrower instruction sets, 12 on
// AVX-512 (vector-inl.h).
inline constexpr int kMinGroupRows = 6;
inline constexpr int kMaxGroupRows = 12;
// Query rows of a task at most; short sequences are cut finer, to have tasks for all threads.
inline constexpr int kQueryTile = 32 * kMaxGroupRows;
inline constexpr int kShortQueryTile = kQueryTile / 2;
inline constexpr int64_t kLongSequence = 2 * kQueryTile;
inline constexpr int kMaxGroups = kQueryTile / kMinGroupRows;
// Keys of a packed tile.
inline constexpr int kKeyTile = 64;
inline constexpr int kMaxInnerDim = kMaxHeadDim + kMaxRank;
// Vectors have at most this many floats on any instruction set.
inline constexpr int kMaxLanes = 16;

// Per query row of the task. Key rows are 0-based in the sequence; the logits of a row are kept in
// the log2 domain and relative to its reference bias, which keeps far-away positions exact.
struct RowState {
  int64_t out_row = 0;  // row * num_q_heads + head in o and lse
  KeyRange keys;        // admitted by the mask
  // ALiBi: |i - j| - |i - reference| = max(left - c, c - right) for key row c.
  int64_t left = 0;
  int64_t right = 0;
  float neg_slope_log2 = 0;   // -slope * log2(e)
  double reference_bias = 0;  // natural log; added back to lse
  double q_norm = 0;          // |softmax_scale| |q|
  SkipBound bound;
};

struct Workspace {
  Workspace()
      : q(hwy::AllocateAligned<float>(kQueryTile * kMaxInnerDim)),
        o(hwy::AllocateAligned<float>(kQueryTile * kMaxHeadDim)),
        scores(hwy::AllocateAligned<float>(kMaxGroupRows * kKeyTile)),
        row_buffer(hwy::AllocateAligned<float>(4 * kMaxHeadDim)),
        phi_mid(hwy::AllocateAligned<float>(kMaxRank)) {}

  hwy::AlignedFreeUniquePtr<float[]> q;           // [group][inner dim][group rows]
  hwy::AlignedFreeUniquePtr<float[]> o;           // [row][padded head_dim]
  hwy::AlignedFreeUniquePtr<float[]> scores;      // [group rows][kKeyTile]
  hwy::AlignedFreeUniquePtr<float[]> row_buffer;  // up to four converted rows
  hwy::AlignedFreeUniquePtr<float[]> phi_mid;     // phi_k of the tile's middle key

  std::array<RowState, kQueryTile> rows;
  std::array<float, kQueryTile> max_log2;                     // running row maximum
  std::array<double, kQueryTile> sum;                         // running row sum of 2^(logit - max)
  std::array<std::array<float, kMaxRank>, kQueryTile> phi_q;  // times log2(e)
};

}  // namespace flashbias::cpu

#endif  // FLASHBIAS_KERNELS_CPU_WORKSPACE_H_
