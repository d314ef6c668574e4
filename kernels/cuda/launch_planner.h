// What plans and launches attention on one device, seen from what runs batches there: an interface
// over attention_plan.h, backward_plan.h and their launches, for the same reasons as device_api.h.
//
// Thread-safety: a planner may be called from any thread; a launch belongs to one at a time.
#ifndef FLASHBIAS_KERNELS_CUDA_LAUNCH_PLANNER_H_
#define FLASHBIAS_KERNELS_CUDA_LAUNCH_PLANNER_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/attention_problem.h"
#include "kernels/cuda/attention_params.h"
#include "kernels/cuda/device_api.h"

namespace flashbias::cuda {

// One planned launch for some problems; see AttentionPlan for what each call means.
class PlannedLaunch {
 public:
  virtual ~PlannedLaunch() = default;

  virtual size_t staging_bytes() const = 0;
  virtual size_t workspace_bytes() const = 0;
  // Both aligned to 256 bytes; they stay as they are until the launch has ended.
  virtual absl::Status Bind(void* staging, void* workspace) = 0;

  virtual ErrorCode Upload(Stream* stream) = 0;
  virtual ErrorCode Launch(Stream* stream) = 0;

  // On the device, [problems].
  virtual const TileCounts* tile_counts() const = 0;
};

class LaunchPlanner {
 public:
  virtual ~LaunchPlanner() = default;

  // Problems with equal groups may share a launch.
  virtual uint64_t GroupOf(const AttentionProblem& problem) const = 0;

  // At least workspace_bytes() of any launch with only this problem; the bytes of a launch are at
  // most the sum over its problems.
  virtual size_t WorkspaceBound(const AttentionProblem& problem) const = 0;

  // REQUIRES: problems of one group whose tensors lie in device memory.
  virtual absl::StatusOr<std::unique_ptr<PlannedLaunch>> Plan(
      absl::Span<const AttentionProblem> problems) const = 0;
};

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_LAUNCH_PLANNER_H_
