// Turns a batch of backward problems into what one launch of the CUDA backward pass needs; used as
// AttentionPlan is:
//
//   plan = BackwardPlan::Create(problems, traits)
//   plan.Bind(staging, workspace)
//   UploadPlan / LaunchBackward (backward_launch.h)
//
// Thread-safety and ownership: as AttentionPlan.
#ifndef FLASHBIAS_KERNELS_CUDA_BACKWARD_PLAN_H_
#define FLASHBIAS_KERNELS_CUDA_BACKWARD_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/attention_problem.h"
#include "kernels/cuda/backward_params.h"
#include "kernels/cuda/backward_rows.h"
#include "kernels/cuda/bias_gradients.h"
#include "kernels/cuda/device_traits.h"
#include "kernels/cuda/key_norms.h"
#include "kernels/cuda/pack_rows.h"
#include "kernels/cuda/plan_options.h"
#include "kernels/cuda/sequence_table.h"

namespace flashbias::cuda {

class BackwardPlan {
 public:
  // What must be the same for all problems of a plan; compare with ==.
  struct Group {
    DType dtype;
    int padded_head_dim;  // 32, 64 or 128
    bool low_rank;
    // Kernels that also sum up dslopes may round otherwise: not for problems that want none.
    bool dslopes;
    KernelFamily family;
    bool operator==(const Group&) const = default;
  };
  static Group GroupOf(const AttentionProblem& problem, const DeviceTraits& device,
                       const PlanOptions& options = {});

  // As AttentionPlan::Create, for backward problems; o, lse and the gradients lie in device memory
  // too.
  static absl::StatusOr<BackwardPlan> Create(absl::Span<const AttentionProblem> problems,
                                             const DeviceTraits& device,
                                             const PlanOptions& options = {});

  size_t staging_bytes() const { return layout_.end_of_upload; }
  size_t workspace_bytes() const { return layout_.end; }

  // As AttentionPlan::Bind, but that launches do not read the staging memory.
  absl::Status Bind(void* staging, void* workspace);

  // As AttentionPlan's: of the pass over the rows, each tile once.
  TileCounts* tile_counts() const { return params_.tile_counts; }

  KernelFamily family() const { return group_.family; }
  const Group& group() const { return group_; }
  absl::Span<const WorkItem> kv_items() const { return kv_items_; }
  absl::Span<const WorkItem> q_items() const { return q_items_; }
  // In the order of the problems; complete after Bind.
  absl::Span<const BackwardSequence> sequences() const { return sequences_; }
  absl::Span<const SumJob> sum_jobs() const { return sum_jobs_; }

  // For backward_launch.cc; complete after Bind.
  const BackwardParams& params() const { return params_; }
  const BackwardRowsParams& rows_params() const { return rows_params_; }
  const SumParams& sum_params() const { return sum_params_; }
  const KeyNormParams& key_norm_params() const { return table_.key_norm_params(); }
  const PackParams& pack_params() const { return table_.pack_params(); }
  const DeviceTraits& device() const { return device_; }
  const void* staging() const { return staging_; }
  void* workspace() const { return workspace_; }

 private:
  static constexpr int64_t kNone = -1;

  // Where the arrays of one sequence begin within the plan's, in elements; kNone: it has none.
  struct Places {
    int64_t rows = 0;
    int64_t limits = kNone;
    int64_t reach = kNone;
    int64_t magnitudes = kNone;
    int64_t dslopes = kNone;  // of the partial gradients, as the next two
    int64_t dphi_q = kNone;
    int64_t dphi_k = kNone;
  };

  // Arrays in the workspace, as offsets from its start; those before `end_of_upload` are uploaded.
  // The table has others between them.
  struct Layout {
    size_t next_item = 0;
    size_t tile_counts = 0;
    size_t reach = 0;
    size_t magnitudes = 0;
    size_t sequences = 0;
    size_t tensor_maps = 0;
    size_t kv_items = 0;
    size_t q_items = 0;
    size_t rows_jobs = 0;
    size_t sum_jobs = 0;
    size_t end_of_upload = 0;
    size_t rows = 0;
    size_t limits = 0;
    size_t partials = 0;
    size_t end = 0;
  };

  void AddProblem(const AttentionProblem& problem, const PlanOptions& options);
  void AddDSlopes(const AttentionProblem& problem, size_t first_sequence);
  void AddDPhi(const AttentionProblem& problem, size_t first_sequence);
  // Of `partials` new partial gradients, at the returned place.
  int64_t AddSum(const SumJob& job, int64_t partials);
  void MakeItems();
  void MakeRowsJobs();
  void MakeLayout();
  int KvItemKeys() const;
  int QItemRows() const;

  Group group_{};
  DeviceTraits device_;
  int num_problems_ = 0;

  SequenceTable table_;
  std::vector<BackwardSequence> sequences_;
  std::vector<Places> places_;  // [sequences]
  std::vector<WorkItem> kv_items_;
  std::vector<WorkItem> q_items_;
  std::vector<RowsJob> rows_jobs_;
  int32_t rows_blocks_ = 0;
  std::vector<SumJob> sum_jobs_;
  std::vector<int64_t> sum_places_;  // [sum_jobs], of the partial gradients
  // Elements of the arrays that Places refers to.
  int64_t num_rows_ = 0;
  int64_t num_limits_ = 0;
  int64_t num_reach_ = 0;
  int64_t num_magnitudes_ = 0;
  int64_t num_partials_ = 0;

  Layout layout_;
  void* staging_ = nullptr;
  void* workspace_ = nullptr;
  BackwardParams params_{};
  BackwardRowsParams rows_params_{};
  SumParams sum_params_{};
};

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_BACKWARD_PLAN_H_
