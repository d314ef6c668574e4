// One unit of CPU work: a tile of query rows against all keys that they may see.
//
// Plain values; the arrays they point to belong to the run (cpu_backend.cc).
#ifndef FLASHBIAS_KERNELS_CPU_ATTENTION_TASK_H_
#define FLASHBIAS_KERNELS_CPU_ATTENTION_TASK_H_

#include <cstdint>

#include "kernels/attention_problem.h"
#include "kernels/cpu/workspace.h"
#include "kernels/skip_table.h"

namespace flashbias::cpu {

// Query rows [q_begin, q_begin + q_count) of heads [head_begin, head_begin + head_count), all of
// which read the same key/value head. Several heads share a task only when a sequence has few rows,
// so that its keys are packed once. head_count * q_count <= kQueryTile.
struct AttentionTask {
  int32_t problem = 0;   // index in the run
  int32_t sequence = 0;  // index in the problem
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

// One key/value head's share of the key-norm pass: tiles [tile_begin, tile_end) of a sequence.
struct KeyNormTask {
  int32_t problem = 0;
  int32_t sequence = 0;
  int32_t kv_head = 0;
  int64_t tile_begin = 0;
  int64_t tile_end = 0;
};

// Computes the task into the problem's o and lse. `skip_table` is that of the task's sequence and
// key/value head, or null when no head of the task can skip. Runs on the best instruction set of
// this machine. Thread-safe for different workspaces and tasks.
TaskStats ComputeAttentionTask(const AttentionProblem& problem, const AttentionTask& task,
                               const SkipTable* skip_table, Workspace& workspace);

// Writes the largest |k| of each of the task's tiles to tile_max[tile_begin .. tile_end).
void ComputeKeyNorms(const AttentionProblem& problem, const KeyNormTask& task, float* tile_max);

// The instruction set that the two functions above use, for people: "AVX2".
const char* InstructionSet();

}  // namespace flashbias::cpu

#endif  // FLASHBIAS_KERNELS_CPU_ATTENTION_TASK_H_
