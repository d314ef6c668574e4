// Turns a batch of forward problems into what one launch of the CUDA kernels needs.
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

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/attention_problem.h"
#include "kernels/cuda/attention_params.h"
#include "kernels/cuda/device_traits.h"
#include "kernels/cuda/hopper/hopper_attention.h"
#include "kernels/cuda/key_norms.h"
#include "kernels/cuda/pack_rows.h"
#include "kernels/cuda/plan_options.h"
#include "kernels/cuda/sequence_table.h"

namespace flashbias::cuda {

class AttentionPlan {
 public:
  // What must be the same for all problems of a plan; compare with ==.
  struct Group {
    DType dtype;
    int padded_head_dim;  // 32, 64 or 128
    bool low_rank;
    KernelFamily family;
    bool operator==(const Group&) const = default;
  };
  static Group GroupOf(const AttentionProblem& problem, const DeviceTraits& device,
                       const PlanOptions& options = {});

  // How a problem is computed never depends on the others in the plan, and so neither does a bit of
  // its result. The problems are validated ones (attention_problem.h) whose q, k, v, o, lse and
  // factors lie in device memory, while `sequences` and `alibi.slopes` lie in host memory and are
  // copied. INVALID_ARGUMENT: fp32 tensors, problems of several groups, more than 2^30 rows in a
  // sequence.
  static absl::StatusOr<AttentionPlan> Create(absl::Span<const AttentionProblem> problems,
                                              const DeviceTraits& device,
                                              const PlanOptions& options = {});

  size_t staging_bytes() const { return layout_.end_of_upload; }
  size_t workspace_bytes() const { return layout_.end; }

  // Writes the staging_bytes() that UploadPlan copies to the start of `workspace`; both must be
  // aligned to 256 bytes. Every launch reads the staging memory again, on the host: it must stay as
  // it is until the last one was enqueued. INTERNAL: the driver refused to encode a tensor map.
  absl::Status Bind(void* staging, void* workspace);

  // Where the device adds up tile counts, in the bound workspace: [number of problems]. UploadPlan
  // sets them to zero.
  TileCounts* tile_counts() const { return params_.tile_counts; }

  KernelFamily family() const { return group_.family; }
  const Group& group() const { return group_; }
  absl::Span<const WorkItem> items() const { return items_; }
  // Sequences in the order of the problems; the pointers are not yet bound.
  absl::Span<const SequenceParams> sequences() const { return table_.params(); }

  // For attention_launch.cc; complete after Bind.
  const AttentionParams& params() const { return params_; }
  const KeyNormParams& key_norm_params() const { return table_.key_norm_params(); }
  const PackParams& pack_params() const { return table_.pack_params(); }
  // REQUIRES: family() == kHopper, and this plan and its staging memory outlive the result.
  hopper::HostPlan hopper_plan() const;
  bool has_splits() const { return has_splits_; }
  const DeviceTraits& device() const { return device_; }
  const void* staging() const { return staging_; }
  void* workspace() const { return workspace_; }

 private:
  // Arrays in the workspace, as offsets from its start; those before `end_of_upload` are uploaded.
  // The table has others between them.
  struct Layout {
    size_t next_item = 0;
    size_t tile_counts = 0;
    size_t sequences = 0;
    size_t tensor_maps = 0;
    size_t items = 0;
    size_t end_of_upload = 0;
    size_t partial_o = 0;
    size_t partial_lse = 0;
    size_t end = 0;
  };

  void ShareTiles();
  void ChooseSplits();
  void MakeItems();
  void MakeLayout();
  int QueryTileRows() const;
  int KeyTileKeys() const;

  Group group_{};
  DeviceTraits device_;
  bool has_splits_ = false;
  int num_problems_ = 0;

  SequenceTable table_;
  std::vector<WorkItem> items_;
  int64_t partial_rows_ = 0;

  Layout layout_;
  void* staging_ = nullptr;
  void* workspace_ = nullptr;
  AttentionParams params_{};
};

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_ATTENTION_PLAN_H_
