// A synchronous backend over the CUDA plans and launches, for tests only.
//
// It is made to catch kernels that stray. Every tensor is a device allocation of its own that ends
// where the tensor ends, so that compute-sanitizer sees the first byte read beyond it; a tensor's
// address has the host tensor's alignment modulo 16. Outputs hold poison between guard bytes, the
// workspace holds 0xff bytes. Damaged guards and launches that differ are INTERNAL errors, as is
// everything that CUDA reports.
//
// Run computes on the caller's thread and calls `done` before it returns. Problems of one
// AttentionPlan::Group or BackwardPlan::Group are planned and launched together. Thread-safe.
#ifndef FLASHBIAS_TESTS_SUPPORT_CUDA_BACKEND_H_
#define FLASHBIAS_TESTS_SUPPORT_CUDA_BACKEND_H_

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/attention_backend.h"
#include "kernels/cuda/device_traits.h"
#include "kernels/cuda/plan_options.h"
#include "kernels/heap_allocator.h"

namespace flashbias::support {

struct CudaBackendOptions {
  cuda::PlanOptions::Family family = cuda::PlanOptions::Family::kFastest;
  // Everything that may be skipped, or small cases would never try it.
  cuda::PlanOptions::Skipping skipping = cuda::PlanOptions::Skipping::kWhereverPossible;
  // How often each uploaded plan is launched; all launches must give the same bits.
  int launches = 1;
};

class CudaBackend : public AttentionBackend {
 public:
  // On device 0.
  static absl::StatusOr<std::unique_ptr<CudaBackend>> Create(const CudaBackendOptions& options);

  const BackendInfo& info() const override { return info_; }
  HostAllocator& host_allocator() override { return host_allocator_; }
  void Run(absl::Span<const AttentionProblem> problems, absl::Span<ProblemStats> stats,
           Done done) override;

  // Plans so far that were for the family: what a test of a family must not take for granted.
  int64_t plans(cuda::KernelFamily family) const {
    return family == cuda::KernelFamily::kHopper ? hopper_plans_ : portable_plans_;
  }

 private:
  CudaBackend(const CudaBackendOptions& options, const cuda::DeviceTraits& device,
              BackendInfo info);

  absl::Status RunGroups(absl::Span<const AttentionProblem> problems,
                         absl::Span<ProblemStats> stats);
  // `members` are indices into both arrays; their plan is a `Plan`.
  template <typename Plan>
  absl::Status RunGroup(absl::Span<const AttentionProblem> problems,
                        absl::Span<const size_t> members, absl::Span<ProblemStats> stats);

  const int launches_;
  const cuda::PlanOptions plan_options_;
  const cuda::DeviceTraits device_;
  const BackendInfo info_;
  HeapAllocator host_allocator_;
  std::atomic<int64_t> hopper_plans_ = 0;
  std::atomic<int64_t> portable_plans_ = 0;
};

}  // namespace flashbias::support

#endif  // FLASHBIAS_TESTS_SUPPORT_CUDA_BACKEND_H_
