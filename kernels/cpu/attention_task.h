// One unit of CPU work: a tile of query rows against all keys that they may see.
//
// Plain values; the arrays they point to belong to the run (cpu_backend.cc).
#ifndef FLASHBIAS_KERNELS_CPU_ATTENTION_TASK_H_
#define FLASHBIAS_KERNELS_CPU_ATTENTION_TASK_H_

#include <cstdint>

#include "kernels/attention_problem.h"
#include "kernels/cpu/packed_sequence.h"
#include "kernels/cpu/workspace.h"
#include "kernels/skip_table.h"

namespace flashbias::cpu {

// Query rows [q_begin, q_begin + q_count) of heads [head_begin, head_begin + head_count), all of
// which read the same key/value head and key factors. Several heads share a task only when a
// sequence has few rows. head_count * q_count <= kQueryTile.
struct AttentionTask {
  int32_t packed = 0;  // index of its PackedSequence in the run
  int32_t head_begin = 0;
  int32_t head_count = 0;
  int64_t q_begin = 0;  // 0-based in the sequence
  int32_t q_count = 0;
  double cost = 0;  // estimated multiply-adds, for longest-first order
};

// Key tiles of a task that the mask admits, and what became of them.
struct TaskStats {
  int64_t tiles_computed = 0;
  int64_t tiles_skipped = 0;
};

// Packs one key tile of all heads of `packed`, and its tile_max. Thread-safe for different
// workspaces and tiles.
void PackTile(const AttentionProblem& problem, const PackedSequence& packed, int64_t tile,
              Workspace& workspace);

// Computes the task into the problem's o and lse. `skip_table` is that of the task's sequence and
// key/value head, or null when no head of the task can skip. Thread-safe for different workspaces
// and tasks.
TaskStats ComputeAttentionTask(const AttentionProblem& problem, const PackedSequence& packed,
                               const AttentionTask& task, const SkipTable* skip_table,
                               Workspace& workspace);

// The instruction set that the two functions above use, the best of this machine: "AVX2".
const char* InstructionSet();

}  // namespace flashbias::cpu

#endif  // FLASHBIAS_KERNELS_CPU_ATTENTION_TASK_H_
