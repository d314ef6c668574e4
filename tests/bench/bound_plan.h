// A plan of the CUDA kernels that is on the device and can be launched, and a CUDA graph of a
// launch.
#ifndef FLASHBIAS_TESTS_BENCH_BOUND_PLAN_H_
#define FLASHBIAS_TESTS_BENCH_BOUND_PLAN_H_

#include <cuda_runtime_api.h>

#include <functional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/attention_problem.h"
#include "kernels/cuda/attention_launch.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/backward_launch.h"
#include "kernels/cuda/backward_plan.h"
#include "kernels/cuda/device_traits.h"
#include "kernels/cuda/plan_options.h"
#include "tests/bench/cuda_check.h"
#include "tests/bench/cuda_memory.h"

namespace flashbias::bench {

inline cudaError_t LaunchPlan(const cuda::AttentionPlan& plan, cudaStream_t stream) {
  return cuda::LaunchAttention(plan, stream);
}
inline cudaError_t LaunchPlan(const cuda::BackwardPlan& plan, cudaStream_t stream) {
  return cuda::LaunchBackward(plan, stream);
}

// Of an AttentionPlan or a BackwardPlan for one problem, whose tensors are in device memory.
template <typename Plan>
class BoundPlan {
 public:
  // Enqueues the upload on the stream; all launches belong there.
  BoundPlan(const AttentionProblem& problem, const cuda::DeviceTraits& traits,
            const cuda::PlanOptions& options, cudaStream_t stream)
      : stream_(stream), plan_(Create(problem, traits, options)) {
    staging_ = AllocatePinned(plan_.staging_bytes());
    workspace_ = AllocateDevice(plan_.workspace_bytes());
    const absl::Status bound = plan_.Bind(staging_.get(), workspace_.get());
    if (!bound.ok()) Fail("plan", std::string(bound.message()).c_str());
    FLASHBIAS_CHECK_CUDA(cuda::UploadPlan(plan_, stream));
  }

  cudaError_t Launch() const { return LaunchPlan(plan_, stream_); }
  cuda::KernelFamily family() const { return plan_.family(); }

  // Of all launches so far, which it waits for.
  cuda::TileCounts TileCounts() const {
    cuda::TileCounts counts;
    FLASHBIAS_CHECK_CUDA(cudaStreamSynchronize(stream_));
    FLASHBIAS_CHECK_CUDA(
        cudaMemcpy(&counts, plan_.tile_counts(), sizeof(counts), cudaMemcpyDeviceToHost));
    return counts;
  }

 private:
  static Plan Create(const AttentionProblem& problem, const cuda::DeviceTraits& traits,
                     const cuda::PlanOptions& options) {
    auto plan = Plan::Create(absl::MakeConstSpan(&problem, 1), traits, options);
    if (!plan.ok()) Fail("plan", std::string(plan.status().message()).c_str());
    return *std::move(plan);
  }

  const cudaStream_t stream_;
  Plan plan_;
  PinnedMemory staging_;
  DeviceMemory workspace_;
};

// A CUDA graph of what `launch` enqueues on the stream.
class LaunchGraph {
 public:
  LaunchGraph(const std::function<cudaError_t()>& launch, cudaStream_t stream) : stream_(stream) {
    cudaGraph_t graph = nullptr;
    FLASHBIAS_CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    FLASHBIAS_CHECK_CUDA(launch());
    FLASHBIAS_CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
    FLASHBIAS_CHECK_CUDA(cudaGraphInstantiate(&exec_, graph, 0));
    FLASHBIAS_CHECK_CUDA(cudaGraphDestroy(graph));
  }
  ~LaunchGraph() { FLASHBIAS_CHECK_CUDA(cudaGraphExecDestroy(exec_)); }
  LaunchGraph(const LaunchGraph&) = delete;
  LaunchGraph& operator=(const LaunchGraph&) = delete;

  cudaError_t Launch() const { return cudaGraphLaunch(exec_, stream_); }

 private:
  const cudaStream_t stream_;
  cudaGraphExec_t exec_ = nullptr;
};

}  // namespace flashbias::bench

#endif  // FLASHBIAS_TESTS_BENCH_BOUND_PLAN_H_
