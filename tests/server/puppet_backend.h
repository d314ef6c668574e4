// A backend that does what a test says: runs stay in flight until the test ends them.
//
// Thread-safe. Results come from the fp64 reference where a run ends well, so that a whole service
// over a puppet gives true answers. The puppet must outlive its runs.
#ifndef FLASHBIAS_TESTS_SERVER_PUPPET_BACKEND_H_
#define FLASHBIAS_TESTS_SERVER_PUPPET_BACKEND_H_

#include <atomic>
#include <cassert>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kernels/attention_backend.h"
#include "kernels/host_memory.h"
#include "kernels/reference/reference_attention.h"
#include "kernels/reference/reference_gradients.h"
#include "server/mutex.h"

namespace flashbias::server {

class PuppetBackend final : public AttentionBackend {
 public:
  // What every run says of itself.
  static constexpr absl::Duration kUpload = absl::Milliseconds(1);
  static constexpr absl::Duration kKernel = absl::Milliseconds(2);
  static constexpr absl::Duration kDownload = absl::Milliseconds(4);

  explicit PuppetBackend(int slots) {
    info_.name = "puppet";
    info_.devices = {"a puppet"};
    info_.dtypes = {DType::kFloat16, DType::kFloat32};
    info_.fast_head_dims = {32, 64, 128};
    info_.max_concurrent_runs = slots;
  }
  BackendInfo& mutable_info() { return info_; }  // before it is used
  // What health and Admit say from now on.
  void set_health(absl::Status health) {
    MutexLock lock(&mutex_);
    health_ = std::move(health);
  }
  void set_admit(absl::Status admit) {
    MutexLock lock(&mutex_);
    admit_ = std::move(admit);
  }
  void set_usage(BackendUsage usage) {
    MutexLock lock(&mutex_);
    usage_ = std::move(usage);
  }
  // With automatic on, a run ends well within the call to Run.
  void set_automatic(bool automatic) {
    MutexLock lock(&mutex_);
    automatic_ = automatic;
  }

  const BackendInfo& info() const override { return info_; }
  HostAllocator& host_allocator() override { return host_allocator_; }
  absl::Status Admit(const AttentionProblem& /*problem*/) const override {
    MutexLock lock(&mutex_);
    return admit_;
  }
  absl::Status health() const override {
    MutexLock lock(&mutex_);
    return health_;
  }
  BackendUsage usage() const override {
    MutexLock lock(&mutex_);
    return usage_;
  }
  // What StartUpload does from now on; at first nothing.
  using Uploads = std::function<std::unique_ptr<UploadAhead>(const HostBlock&)>;
  void set_uploads(Uploads uploads) {
    MutexLock lock(&mutex_);
    uploads_ = std::move(uploads);
  }
  std::unique_ptr<UploadAhead> StartUpload(const HostBlock& inputs) override {
    MutexLock lock(&mutex_);
    return uploads_ == nullptr ? nullptr : uploads_(inputs);
  }
  // With full on, host memory is refused.
  void set_memory_full(bool full) { host_allocator_.full = full; }
  // Of blocks that somebody holds.
  size_t memory_used() const { return host_allocator_.used; }

  void Run(absl::Span<const AttentionProblem> problems, absl::Span<ProblemStats> stats,
           Done done) override {
    RunInFlight run{.problems = problems, .stats = stats, .done = std::move(done)};
    bool automatic;
    {
      MutexLock lock(&mutex_);
      automatic = automatic_;
      sizes_.push_back(problems.size());
      if (!automatic) runs_.push_back(std::move(run));
      mutex_.NotifyWaiters();
    }
    if (automatic) End(std::move(run), absl::OkStatus());
  }

  // Ends the oldest run in flight. REQUIRES: there is one.
  void EndRun(const absl::Status& status = absl::OkStatus()) {
    RunInFlight run;
    {
      MutexLock lock(&mutex_);
      assert(!runs_.empty());
      run = std::move(runs_.front());
      runs_.pop_front();
    }
    End(std::move(run), status);
  }

  // Number of problems of each run so far, in order.
  std::vector<size_t> run_sizes() const {
    MutexLock lock(&mutex_);
    return sizes_;
  }
  size_t runs_in_flight() const {
    MutexLock lock(&mutex_);
    return runs_.size();
  }
  // Whether that many runs are in flight within ten seconds; for tests with real threads.
  bool WaitForRunsInFlight(size_t count) {
    MutexLock lock(&mutex_);
    return mutex_.Await([&]()
                            ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return runs_.size() >= count; },
                        absl::Now() + absl::Seconds(10));
  }

 private:
  class Memory final : public HostAllocator {
   public:
    absl::StatusOr<HostBlock> Allocate(size_t bytes) override {
      if (full) return absl::ResourceExhaustedError("the puppet's memory is full");
      used += bytes;
      return MakeBlock(::operator new(bytes, std::align_val_t(kAlignment)), bytes);
    }
    std::atomic<bool> full = false;
    std::atomic<size_t> used = 0;

   private:
    void Free(void* data, size_t bytes) override {
      ::operator delete(data, std::align_val_t(kAlignment));
      used -= bytes;
    }
  };
  struct RunInFlight {
    absl::Span<const AttentionProblem> problems;
    absl::Span<ProblemStats> stats;
    Done done;
  };

  static void Compute(const AttentionProblem& problem) {
    for (size_t s = 0; s < problem.sequences.size(); ++s) {
      const Sequence& sequence = problem.sequences[s];
      for (int64_t row = 0; row < sequence.q_len; ++row) {
        for (int head = 0; head < problem.num_q_heads; ++head) {
          const ReferenceRow answer =
              ReferenceAttentionRow(problem, static_cast<int64_t>(s), row, head);
          const int64_t at = (sequence.q_begin + row) * problem.num_q_heads + head;
          for (int d = 0; d < problem.head_dim; ++d) {
            StoreElement(problem.dtype, problem.o, at * problem.head_dim + d,
                         static_cast<float>(answer.o[static_cast<size_t>(d)]));
          }
          if (problem.lse != nullptr) problem.lse[at] = static_cast<float>(answer.lse);
        }
      }
    }
  }

  static void ComputeGradients(const AttentionProblem& problem) {
    const auto store = [](DType dtype, const std::vector<double>& values, void* to) {
      for (size_t n = 0; to != nullptr && n < values.size(); ++n) {
        StoreElement(dtype, to, static_cast<int64_t>(n), static_cast<float>(values[n]));
      }
    };
    const ReferenceGradients answer = ComputeReferenceGradients(problem);
    store(problem.dtype, answer.dq, problem.gradients.dq);
    store(problem.dtype, answer.dk, problem.gradients.dk);
    store(problem.dtype, answer.dv, problem.gradients.dv);
    store(DType::kFloat32, answer.dslopes, problem.gradients.dslopes);
    store(DType::kFloat32, answer.dphi_q, problem.gradients.dphi_q);
    store(DType::kFloat32, answer.dphi_k, problem.gradients.dphi_k);
  }

  static void End(RunInFlight run, const absl::Status& status) {
    for (size_t n = 0; status.ok() && n < run.problems.size(); ++n) {
      // Small requests only; a scheduler test's problems have no tensors at all.
      const AttentionProblem& problem = run.problems[n];
      if (problem.q != nullptr && problem.direction == Direction::kForward) Compute(problem);
      if (problem.q != nullptr && problem.direction == Direction::kBackward) {
        ComputeGradients(problem);
      }
      run.stats[n] = {.tiles_computed = 10,
                      .tiles_skipped = 3,
                      .upload = kUpload,
                      .kernel = kKernel,
                      .download = kDownload};
    }
    std::move(run.done)(status);
  }

  BackendInfo info_;
  Memory host_allocator_;
  mutable Mutex mutex_;
  bool automatic_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status health_ ABSL_GUARDED_BY(mutex_);
  absl::Status admit_ ABSL_GUARDED_BY(mutex_);
  BackendUsage usage_ ABSL_GUARDED_BY(mutex_);
  Uploads uploads_ ABSL_GUARDED_BY(mutex_);
  std::deque<RunInFlight> runs_ ABSL_GUARDED_BY(mutex_);
  std::vector<size_t> sizes_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace flashbias::server

#endif  // FLASHBIAS_TESTS_SERVER_PUPPET_BACKEND_H_
