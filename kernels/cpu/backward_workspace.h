// Scratch memory of one thread that computes gradients, allocated once and reused by every task.
//
// Both passes multiply a block of rows, in groups of 6 or 12, with tiles of 64 columns: query rows
// with keys, or keys with query rows. Not thread-safe: one workspace a thread.
#ifndef FLASHBIAS_KERNELS_CPU_BACKWARD_WORKSPACE_H_
#define FLASHBIAS_KERNELS_CPU_BACKWARD_WORKSPACE_H_

#include <hwy/aligned_allocator.h>

#include <cstddef>

#include "kernels/attention_problem.h"
#include "kernels/cpu/workspace.h"

namespace flashbias::cpu {

// Rows of a task's block at most: whole groups on any instruction set.
inline constexpr int kBlockRows = 16 * kMaxGroupRows;
inline constexpr int kMaxBlockGroups = kBlockRows / kMinGroupRows;
// Columns of a tile: query rows of one, or keys of the other pass.
inline constexpr int kColumnTile = kKeyTile;

struct BackwardWorkspace {
  using Floats = hwy::AlignedFreeUniquePtr<float[]>;

  BackwardWorkspace()
      : score_rows(hwy::AllocateAligned<float>(kBlockRows * kMaxInnerDim)),
        gradient_rows(hwy::AllocateAligned<float>(kBlockRows * kMaxHeadDim)),
        score_columns(hwy::AllocateAligned<float>(kColumnTile * kMaxHeadDim)),
        gradient_columns(hwy::AllocateAligned<float>(kColumnTile * kMaxHeadDim)),
        factor_columns(hwy::AllocateAligned<float>(kColumnTile * kMaxRank)),
        score_panels(hwy::AllocateAligned<float>(kColumnTile * kMaxHeadDim)),
        gradient_panels(hwy::AllocateAligned<float>(kColumnTile * kMaxHeadDim)),
        factor_panels(hwy::AllocateAligned<float>(kColumnTile * kMaxRank)),
        score_sums(hwy::AllocateAligned<float>(kBlockRows * kMaxHeadDim)),
        gradient_sums(hwy::AllocateAligned<float>(kBlockRows * kMaxHeadDim)),
        factor_sums(hwy::AllocateAligned<float>(kBlockRows * kMaxRank)),
        probable_factors(hwy::AllocateAligned<float>(kBlockRows * kMaxRank)),
        p(hwy::AllocateAligned<float>(kMaxGroupRows * kColumnTile)),
        d_logit(hwy::AllocateAligned<float>(kMaxGroupRows * kColumnTile)),
        row_buffer(hwy::AllocateAligned<float>(4 * kMaxHeadDim)) {}

  // False where there was no memory; then it must not be used.
  bool allocated() const {
    for (const Floats* floats :
         {&score_rows, &gradient_rows, &score_columns, &gradient_columns, &factor_columns,
          &score_panels, &gradient_panels, &factor_panels, &score_sums, &gradient_sums,
          &factor_sums, &probable_factors, &p, &d_logit, &row_buffer}) {
      if (*floats == nullptr) return false;
    }
    return true;
  }

  // The block: [group][inner dim][group rows]. q or k with its factors, d_o or v.
  Floats score_rows;
  Floats gradient_rows;
  // The tile, transposed: [panel][inner dim][panel width]. k or q, v or d_o, phi_k or phi_q.
  Floats score_columns;
  Floats gradient_columns;
  Floats factor_columns;
  // The tile as it is: [panel][kColumnTile][panel width]. k or q, d_o, phi_k or phi_q.
  Floats score_panels;
  Floats gradient_panels;
  Floats factor_panels;
  // Of the block, [row][padded width]. dq or dk, without softmax_scale; dv; dphi_q or dphi_k.
  Floats score_sums;
  Floats gradient_sums;
  Floats factor_sums;
  Floats probable_factors;  // sum_j P phi_k
  // Of one group and the tile, [group rows][kColumnTile].
  Floats p;
  Floats d_logit;
  Floats row_buffer;  // up to four converted rows
};

}  // namespace flashbias::cpu

#endif  // FLASHBIAS_KERNELS_CPU_BACKWARD_WORKSPACE_H_
