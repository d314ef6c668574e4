// LaunchPlanner over AttentionPlan and BackwardPlan and their launches.
//
// Thread-safety: as LaunchPlanner.
#ifndef FLASHBIAS_KERNELS_CUDA_ATTENTION_PLANNER_H_
#define FLASHBIAS_KERNELS_CUDA_ATTENTION_PLANNER_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/attention_problem.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/device_traits.h"
#include "kernels/cuda/launch_planner.h"

namespace flashbias::cuda {

class AttentionPlanner final : public LaunchPlanner {
 public:
  explicit AttentionPlanner(const DeviceTraits& device, const PlanOptions& options = {})
      : device_(device), options_(options) {}

  uint64_t GroupOf(const AttentionProblem& problem) const override;
  // For problems whose tensors are aligned to 16 bytes on the device.
  size_t WorkspaceBound(const AttentionProblem& problem) const override;
  absl::StatusOr<std::unique_ptr<PlannedLaunch>> Plan(
      absl::Span<const AttentionProblem> problems) const override;

 private:
  const DeviceTraits device_;
  const PlanOptions options_;
};

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_ATTENTION_PLANNER_H_
