#include "kernels/cpu/cpu_backend.h"

#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/task_arena.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "kernels/cpu/attention_task.h"
#include "kernels/cpu/task_list.h"
#include "kernels/cpu/workspace.h"

namespace flashbias {
namespace {

using cpu::AttentionTask;
using cpu::KeyNormTask;
using cpu::TaskStats;
using cpu::Workspace;

constexpr int kMaxThreads = 1024;
// Key tiles that one key-norm task reads: long enough to hide its start, short enough to balance.
constexpr int64_t kNormTilesPerTask = 64;

// The skip tables of one problem: [sequence][kv head]; empty when nothing of it can be skipped.
using ProblemTables = std::vector<std::vector<SkipTable>>;

bool MaySkip(const AttentionProblem& problem) {
  return problem.bias_kind == BiasKind::kAlibi && problem.eps > 0;
}

class CpuBackend final : public AttentionBackend {
 public:
  explicit CpuBackend(int num_threads)
      : workspaces_(num_threads), arena_(num_threads), runner_([this] { RunLoop(); }) {
    info_.name = "cpu";
    info_.devices = {absl::StrCat(cpu::InstructionSet(), ", ", num_threads, " threads")};
    info_.dtypes = {DType::kFloat16, DType::kBFloat16, DType::kFloat32};
    info_.fast_head_dims = {32, 64, 128};
    info_.max_concurrent_runs = 2;  // one computes, one waits ready behind it
  }

  ~CpuBackend() override {
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    runner_.join();
  }

  const BackendInfo& info() const override { return info_; }

  void Run(absl::Span<const AttentionProblem> problems, absl::Span<ProblemStats> stats,
           Done done) override {
    absl::MutexLock lock(&mutex_);
    pending_.push_back({.problems = problems, .stats = stats, .done = std::move(done)});
  }

 private:
  struct PendingRun {
    absl::Span<const AttentionProblem> problems;
    absl::Span<ProblemStats> stats;
    Done done;
  };

  // Computes runs one after the other, each with all threads, until stopped and empty.
  void RunLoop() {
    for (;;) {
      PendingRun run;
      {
        absl::MutexLock lock(&mutex_);
        mutex_.Await(absl::Condition(this, &CpuBackend::HasWorkOrStops));
        if (pending_.empty()) return;
        run = std::move(pending_.front());
        pending_.pop_front();
      }
      arena_.execute([&] { Compute(run.problems, run.stats); });
      std::move(run.done)(absl::OkStatus());
    }
  }

  bool HasWorkOrStops() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || !pending_.empty();
  }

  // Calls work(item, worker) for every item, handing items out in order; no two calls with the same
  // worker overlap.
  template <typename Work>
  void ForEachInOrder(size_t count, const Work& work) {
    const size_t workers = std::min(count, workspaces_.size());
    // TBB orders the start and the end of the tasks. ThreadSanitizer cannot look into it, so `next`
    // carries the same order: released here, taken and released by every worker, acquired below.
    std::atomic<size_t> next;
    next.store(0, std::memory_order_release);
    tbb::parallel_for(
        tbb::blocked_range<size_t>(0, workers, 1),
        [&](const tbb::blocked_range<size_t>& range) {
          for (size_t worker = range.begin(); worker != range.end(); ++worker) {
            for (size_t n = next++; n < count; n = next++) work(n, worker);
          }
        },
        tbb::simple_partitioner());
    static_cast<void>(next.load(std::memory_order_acquire));
  }

  void Compute(absl::Span<const AttentionProblem> problems, absl::Span<ProblemStats> stats) {
    const std::vector<ProblemTables> tables = MakeSkipTables(problems);
    const std::vector<AttentionTask> tasks = cpu::MakeTaskList(problems);
    std::vector<TaskStats> task_stats(tasks.size());
    ForEachInOrder(tasks.size(), [&](size_t n, size_t worker) {
      const AttentionTask& task = tasks[n];
      const AttentionProblem& problem = problems[task.problem];
      const ProblemTables& problem_tables = tables[task.problem];
      const int kv_head = task.head_begin / (problem.num_q_heads / problem.num_kv_heads);
      const SkipTable* table =
          problem_tables.empty() ? nullptr : &problem_tables[task.sequence][kv_head];
      task_stats[n] = cpu::ComputeAttentionTask(problem, task, table, workspaces_[worker]);
    });
    std::fill(stats.begin(), stats.end(), ProblemStats{});
    for (size_t n = 0; n < tasks.size(); ++n) {
      stats[tasks[n].problem].tiles_computed += task_stats[n].tiles_computed;
      stats[tasks[n].problem].tiles_skipped += task_stats[n].tiles_skipped;
    }
  }

  std::vector<ProblemTables> MakeSkipTables(absl::Span<const AttentionProblem> problems) {
    std::vector<std::vector<std::vector<std::vector<float>>>> norms(problems.size());
    std::vector<KeyNormTask> tasks;
    for (size_t p = 0; p < problems.size(); ++p) {
      const AttentionProblem& problem = problems[p];
      if (!MaySkip(problem)) continue;
      norms[p].resize(problem.sequences.size());
      for (size_t s = 0; s < problem.sequences.size(); ++s) {
        const int64_t tiles = (problem.sequences[s].kv_len + cpu::kKeyTile - 1) / cpu::kKeyTile;
        norms[p][s].assign(problem.num_kv_heads, std::vector<float>(tiles));
        for (int head = 0; head < problem.num_kv_heads; ++head) {
          for (int64_t begin = 0; begin < tiles; begin += kNormTilesPerTask) {
            tasks.push_back({.problem = static_cast<int32_t>(p),
                             .sequence = static_cast<int32_t>(s),
                             .kv_head = head,
                             .tile_begin = begin,
                             .tile_end = std::min(begin + kNormTilesPerTask, tiles)});
          }
        }
      }
    }
    ForEachInOrder(tasks.size(), [&](size_t n, size_t) {
      const KeyNormTask& task = tasks[n];
      cpu::ComputeKeyNorms(problems[task.problem], task,
                           norms[task.problem][task.sequence][task.kv_head].data());
    });
    std::vector<ProblemTables> tables(problems.size());
    for (size_t p = 0; p < problems.size(); ++p) {
      tables[p].resize(norms[p].size());
      for (size_t s = 0; s < norms[p].size(); ++s) {
        for (const std::vector<float>& tile_max : norms[p][s]) {
          tables[p][s].push_back(MakeSkipTable(tile_max));
        }
      }
    }
    return tables;
  }

  BackendInfo info_;                   // constant after construction
  std::vector<Workspace> workspaces_;  // one per worker; touched only while a run computes
  tbb::task_arena arena_;

  absl::Mutex mutex_;
  std::deque<PendingRun> pending_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;

  std::thread runner_;  // last: starts when everything else stands
};

}  // namespace

absl::StatusOr<std::unique_ptr<AttentionBackend>> CreateCpuBackend(
    const CpuBackendOptions& options) {
  int num_threads = options.num_threads;
  if (num_threads < 0 || num_threads > kMaxThreads) {
    return absl::InvalidArgumentError(absl::StrCat("cpu threads is ", num_threads,
                                                   "; accepted are 0 (one per hardware thread) to ",
                                                   kMaxThreads));
  }
  if (num_threads == 0) num_threads = std::max(1u, std::thread::hardware_concurrency());
  return std::make_unique<CpuBackend>(num_threads);
}

}  // namespace flashbias
