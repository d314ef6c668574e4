#include "kernels/cpu/cpu_backend.h"

#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/task_arena.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kernels/cpu/attention_task.h"
#include "kernels/cpu/backward_run.h"
#include "kernels/cpu/backward_workspace.h"
#include "kernels/cpu/packed_buffer.h"
#include "kernels/cpu/packed_sequence.h"
#include "kernels/cpu/task_list.h"
#include "kernels/cpu/workspace.h"
#include "kernels/heap_allocator.h"

namespace flashbias {
namespace {

using cpu::AttentionTask;
using cpu::BackwardScratchBytes;
using cpu::BackwardWorkspace;
using cpu::PackedSequence;
using cpu::TaskStats;
using cpu::Workspace;

constexpr int kMaxThreads = 1024;
// Packed memory that is filled and computed at a time, unless one head alone needs more: large
// enough for all threads to have work, small enough to stay near the cores. 64 MiB.
constexpr int64_t kPackedFloats = int64_t{16} << 20;

constexpr double kGiB = 1 << 30;
// Of one backward problem.
constexpr double kMaxScratchBytes = 4 * kGiB;

bool MaySkip(const AttentionProblem& problem) {
  return problem.bias_kind == BiasKind::kAlibi && problem.eps > 0;
}

// In floats.
int64_t RoundUpToLine(int64_t n) {
  return (n + cpu::kMaxLanes - 1) / cpu::kMaxLanes * cpu::kMaxLanes;
}

// Sets the arrays of `packed` to consecutive parts of `memory`.
float* AssignMemory(float* memory, PackedSequence& packed) {
  float* const end = memory + RoundUpToLine(packed.TotalFloats());
  const auto take = [&memory](int64_t floats) { return std::exchange(memory, memory + floats); };
  packed.keys = take(packed.kv_head_count * packed.num_tiles * packed.key_tile_floats);
  packed.values = take(packed.kv_head_count * packed.num_tiles * packed.value_tile_floats);
  packed.factors = take(packed.factor_head_count * packed.num_tiles * packed.factor_tile_floats);
  packed.tile_max = take(packed.kv_head_count * packed.num_tiles);
  return end;
}

BackendInfo DescribeBackend(int num_threads) {
  BackendInfo info;
  info.name = "cpu";
  info.devices = {absl::StrCat(cpu::InstructionSet(), ", ", num_threads, " threads")};
  info.dtypes = {DType::kFloat16, DType::kBFloat16, DType::kFloat32};
  info.fast_head_dims = {32, 64, 128};
  // A second run would only wait behind the first, where nothing can join it or drop out.
  info.max_concurrent_runs = 1;
  return info;
}

class CpuBackend final : public AttentionBackend {
 public:
  CpuBackend(std::vector<Workspace> workspaces, std::vector<BackwardWorkspace> backward_workspaces)
      : info_(DescribeBackend(static_cast<int>(workspaces.size()))),
        workspaces_(std::move(workspaces)),
        backward_workspaces_(std::move(backward_workspaces)),
        arena_(static_cast<int>(workspaces_.size())),
        runner_([this] { RunLoop(); }) {}

  ~CpuBackend() override {
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    runner_.join();
  }

  const BackendInfo& info() const override { return info_; }
  HostAllocator& host_allocator() override { return *host_allocator_; }

  absl::Status Admit(const AttentionProblem& problem) const override {
    if (problem.direction != Direction::kBackward) return absl::OkStatus();
    const double scratch = BackwardScratchBytes(problem);
    if (scratch <= kMaxScratchBytes) return absl::OkStatus();
    return absl::ResourceExhaustedError(absl::StrFormat(
        "gradients of %d rows of queries, %d of keys and %d heads take %.1f GiB of scratch memory; "
        "accepted: up to %.0f GiB (factors that heads share take the most)",
        problem.total_q, problem.total_kv, problem.num_q_heads, scratch / kGiB,
        kMaxScratchBytes / kGiB));
  }

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
      absl::Status status;
      const absl::Time start = absl::Now();
      try {
        arena_.execute([&] { status = Compute(run.problems, run.stats); });
      } catch (const std::bad_alloc&) {
        status = absl::ResourceExhaustedError("no memory for the task lists of the run");
      }
      const absl::Duration kernel = absl::Now() - start;
      for (ProblemStats& stats : run.stats) stats.kernel = kernel;
      // One oversized head must not keep its memory for ever.
      packed_buffer_.ReleaseAbove(kPackedFloats);
      std::move(run.done)(std::move(status));
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

  absl::Status Compute(absl::Span<const AttentionProblem> problems,
                       absl::Span<ProblemStats> stats) {
    std::fill(stats.begin(), stats.end(), ProblemStats{});
    std::vector<PackedSequence> packed = cpu::MakePackedSequences(problems, kPackedFloats);
    for (size_t begin = 0; begin < packed.size();) {
      // One wave: as many as fit into the packed memory.
      int64_t floats = 0;
      size_t end = begin;
      while (end < packed.size()) {
        const int64_t more = RoundUpToLine(packed[end].TotalFloats());
        if (end > begin && floats + more > kPackedFloats) break;
        floats += more;
        ++end;
      }
      float* memory = packed_buffer_.Reserve(static_cast<size_t>(floats));
      if (memory == nullptr) {
        return absl::ResourceExhaustedError(
            absl::StrCat("no memory for ", floats * sizeof(float), " bytes of packed keys"));
      }
      for (size_t n = begin; n < end; ++n) memory = AssignMemory(memory, packed[n]);
      ComputeWave(problems, packed, begin, end, stats);
      begin = end;
    }
    cpu::RunBackward(problems, stats, absl::MakeSpan(backward_workspaces_),
                     [this](size_t count, absl::FunctionRef<void(size_t, size_t)> work) {
                       ForEachInOrder(count, work);
                     });
    return absl::OkStatus();
  }

  // Packs and computes packed[begin] .. packed[end - 1].
  void ComputeWave(absl::Span<const AttentionProblem> problems,
                   absl::Span<const PackedSequence> packed, size_t begin, size_t end,
                   absl::Span<ProblemStats> stats) {
    struct PackTask {
      size_t packed;
      int64_t tile;
    };
    std::vector<PackTask> pack_tasks;
    for (size_t n = begin; n < end; ++n) {
      for (int64_t t = 0; t < packed[n].num_tiles; ++t) {
        pack_tasks.push_back({n, packed[n].tile_begin + t});
      }
    }
    ForEachInOrder(pack_tasks.size(), [&](size_t n, size_t worker) {
      const PackedSequence& sequence = packed[pack_tasks[n].packed];
      cpu::PackTile(problems[sequence.problem], sequence, pack_tasks[n].tile, workspaces_[worker]);
    });

    // [packed - begin][key/value head]; empty where nothing may be skipped.
    std::vector<std::vector<SkipTable>> tables(end - begin);
    for (size_t n = begin; n < end; ++n) {
      if (!MaySkip(problems[packed[n].problem])) continue;
      for (int head = 0; head < packed[n].kv_head_count; ++head) {
        tables[n - begin].push_back(MakeSkipTable(absl::MakeConstSpan(
            packed[n].TileMax(packed[n].kv_head_begin + head), packed[n].num_tiles)));
      }
    }

    const std::vector<AttentionTask> tasks = cpu::MakeTaskList(problems, packed, begin, end);
    std::vector<TaskStats> task_stats(tasks.size());
    ForEachInOrder(tasks.size(), [&](size_t n, size_t worker) {
      const AttentionTask& task = tasks[n];
      const PackedSequence& sequence = packed[task.packed];
      const AttentionProblem& problem = problems[sequence.problem];
      const std::vector<SkipTable>& heads = tables[task.packed - begin];
      const int kv_head = task.head_begin / (problem.num_q_heads / problem.num_kv_heads);
      const SkipTable* table = heads.empty() ? nullptr : &heads[kv_head - sequence.kv_head_begin];
      task_stats[n] =
          cpu::ComputeAttentionTask(problem, sequence, task, table, workspaces_[worker]);
    });
    for (size_t n = 0; n < tasks.size(); ++n) {
      ProblemStats& problem_stats = stats[packed[tasks[n].packed].problem];
      problem_stats.tiles_computed += task_stats[n].tiles_computed;
      problem_stats.tiles_skipped += task_stats[n].tiles_skipped;
    }
  }

  const BackendInfo info_;
  const std::shared_ptr<HeapAllocator> host_allocator_ = std::make_shared<HeapAllocator>();
  // Touched only while a run computes, that is by one run at a time.
  std::vector<Workspace> workspaces_;                   // one per worker
  std::vector<BackwardWorkspace> backward_workspaces_;  // the same
  cpu::PackedBuffer packed_buffer_;
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
    return absl::InvalidArgumentError(absl::StrCat("cpu_threads is ", num_threads,
                                                   "; accepted: 0 (one per hardware thread) to ",
                                                   kMaxThreads));
  }
  if (num_threads == 0) {
    const unsigned hardware = std::max(1u, std::thread::hardware_concurrency());
    num_threads = static_cast<int>(std::min<unsigned>(hardware, kMaxThreads));
  }
  std::vector<Workspace> workspaces(num_threads);
  std::vector<BackwardWorkspace> backward_workspaces(num_threads);
  for (int n = 0; n < num_threads; ++n) {
    if (!workspaces[n].allocated() || !backward_workspaces[n].allocated()) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no memory for the workspaces of ", num_threads, " threads"));
    }
  }
  return std::make_unique<CpuBackend>(std::move(workspaces), std::move(backward_workspaces));
}

}  // namespace flashbias
