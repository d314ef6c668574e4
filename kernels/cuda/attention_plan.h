// Turns a batch of problems into what one launch of the CUDA kernels needs.
//
//   plan = AttentionPlan::Create(problems, traits)        host, allocates
//   reserve plan.staging_bytes() of host memory (pinned, for an asynchronous upload)
//       and plan.workspace_bytes() of device memory (256-byte aligned)
//   plan.Bind(staging, workspace)                         host, fills the staging memory
//   UploadPlan / LaunchAttention (attention_launch.h)     asynchronous, allocate nothing
//
// Thread-safety: a plain value; const calls are safe from any thread. Ownership: a plan owns only
// host memory of its own; the problems' tensors, the staging memory and the workspace stay the
// caller's and must live until the launch has completed.
#ifndef FLASHBIAS_KERNELS_CUDA_ATTENTION_PLAN_H_
#define FLASHBIAS_KERNELS_CUDA_ATTENTION_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/attention_problem.h"
#include "kernels/cuda/attention_params.h"
#include "kernels/cuda/device_traits.h"
#include "kernels/cuda/key_norms.h"
#include "kernels/cuda/pack_rows.h"

namespace flashbias::cuda {

enum class KernelFamily : uint8_t {
  kHopper,    // sm_90a: wgmma, TMA (kernels/cuda/hopper)
  kPortable,  // sm_80 and up: mma.sync (kernels/cuda/portable)
};

struct PlanOptions {
  enum class Choice : uint8_t { kFastest, kHopper, kPortable };
  // kHopper is a wish: what that kernel cannot do is planned for the portable one.
  Choice family = Choice::kFastest;
};

class AttentionPlan {
 public:
  // What must be the same for all problems of a plan; compare with ==.
  struct Group {
    DType dtype;
    int padded_head_dim;  // 32, 64 or 128
    bool low_rank;
    bool operator==(const Group&) const = default;
  };
  static Group GroupOf(const AttentionProblem& problem);

  // The problems are validated ones (attention_problem.h) whose q, k, v, o, lse and factors lie in
  // device memory, while `sequences` and `alibi.slopes` lie in host memory and are copied.
  // INVALID_ARGUMENT: fp32 tensors, problems of several groups, more than 2^30 rows in a sequence.
  static absl::StatusOr<AttentionPlan> Create(absl::Span<const AttentionProblem> problems,
                                              const DeviceTraits& device,
                                              const PlanOptions& options = {});

  size_t staging_bytes() const { return staging_bytes_; }
  size_t workspace_bytes() const { return workspace_bytes_; }

  // Writes staging_bytes() that UploadPlan copies to the start of `workspace`.
  void Bind(void* staging, void* workspace);

  // Where the device adds up tile counts: [number of problems], in the bound workspace. UploadPlan
  // sets them to zero.
  TileCounts* tile_counts() const { return params_.tile_counts; }

  KernelFamily family() const { return family_; }
  const Group& group() const { return group_; }

  // For attention_launch.cc.
  const AttentionParams& params() const { return params_; }
  const KeyNormParams& key_norm_params() const { return key_norm_params_; }
  const PackParams& pack_params() const { return pack_params_; }
  bool has_splits() const { return has_splits_; }
  void* workspace() const { return workspace_; }
  const void* staging() const { return staging_; }
  const DeviceTraits& device() const { return device_; }

 private:
  Group group_{};
  KernelFamily family_ = KernelFamily::kPortable;
  DeviceTraits device_;
  bool has_splits_ = false;

  // Host images of the arrays that are uploaded. Pointers into the workspace are offsets until Bind.
  std::vector<SequenceParams> sequences_;
  std::vector<WorkItem> items_;
  std::vector<float> slopes_;
  std::vector<KeyNormJob> key_norm_jobs_;
  std::vector<PackJob> pack_jobs_;
  int num_problems_ = 0;

  size_t staging_bytes_ = 0;
  size_t workspace_bytes_ = 0;
  void* staging_ = nullptr;
  void* workspace_ = nullptr;
  AttentionParams params_{};
  KeyNormParams key_norm_params_{};
  PackParams pack_params_{};
};

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_ATTENTION_PLAN_H_
