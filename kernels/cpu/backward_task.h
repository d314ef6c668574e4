// Units of work of the backward pass on the CPU, and what they share.
//
// Plain values; the arrays belong to the run (backward_run.cc). The functions are thread-safe for
// different workspaces and tasks.
#ifndef FLASHBIAS_KERNELS_CPU_BACKWARD_TASK_H_
#define FLASHBIAS_KERNELS_CPU_BACKWARD_TASK_H_

#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/attention_problem.h"
#include "kernels/cpu/attention_task.h"
#include "kernels/cpu/backward_workspace.h"
#include "kernels/skip_table.h"

namespace flashbias::cpu {

// What both passes need of one query row of one head. Key rows are 0-based in the sequence.
struct QueryRow {
  KeyRange keys;         // admitted by the mask, less what eps leaves out
  int64_t distance = 0;  // ALiBi: |i - reference|, see RowState
  // Less the reference's bias. Infinity: P is 0.
  double lse_log2 = std::numeric_limits<double>::infinity();
  float delta = 0;  // <d_o, o>
};

// One sequence of one problem.
struct BackwardSequence {
  const AttentionProblem* problem = nullptr;
  int32_t sequence = 0;                // index in the problem
  int64_t query_tiles = 0;             // of kColumnTile rows
  int64_t query_blocks = 0;            // of kBlockRows rows
  int64_t key_tile_begin = 0;          // of skip_tables
  std::vector<SkipTable> skip_tables;  // [num_kv_heads]; empty: nothing may be left out
  std::vector<QueryRow> rows;          // [num_q_heads, q_len]
  std::vector<KeyRange> tile_keys;     // [num_q_heads, query_tiles]: union of their rows' keys
  std::vector<double> slope_sums;      // [num_q_heads, query_blocks]: sum of dS |i - j|
  // Of the whole problem: [total_q, num_q_heads, rank] and [total_kv, heads, rank], the latter of
  // query heads or, where phi_k is shared, of key/value heads. Null: not wanted.
  float* dphi_q = nullptr;
  float* dphi_k = nullptr;

  const Sequence& shape() const { return problem->sequences[sequence]; }
  const QueryRow* RowsOf(int head) const { return rows.data() + head * shape().q_len; }
  const KeyRange* TileKeysOf(int head) const { return tile_keys.data() + head * query_tiles; }
};

enum class BackwardPass : uint8_t {
  kKeys,    // dk, dv and dphi_k of some keys of a key/value head, over the query rows that see them
  kQueries  // dq, dphi_q and a slope sum of some query rows of a head, over their keys
};

struct BackwardTask {
  BackwardPass pass = BackwardPass::kKeys;
  int32_t sequence = 0;  // index in the run
  int32_t head = 0;      // of k and v, or of q
  int64_t begin = 0;     // first key or query row of the block, 0-based in the sequence
  int32_t count = 0;     // 1 .. kBlockRows
  double cost = 0;       // for longest-first order
};

// The skip table of one key/value head.
SkipTable MakeKeySkipTable(const BackwardSequence& sequence, int kv_head,
                           BackwardWorkspace& workspace);

// Fills the rows and tile_keys of query tiles [tile_begin, tile_end) of a head. Returns the tiles
// of kColumnTile rows and kKeyTile keys that the mask admits.
TaskStats PrepareQueryRows(BackwardSequence& sequence, int head, int64_t tile_begin,
                           int64_t tile_end, BackwardWorkspace& workspace);

// Writes the task's gradients; REQUIRES: the rows of all heads that it reads are filled.
void ComputeBackwardTask(BackwardSequence& sequence, const BackwardTask& task,
                         BackwardWorkspace& workspace);

}  // namespace flashbias::cpu

#endif  // FLASHBIAS_KERNELS_CPU_BACKWARD_TASK_H_
