// What every plan has of its problems' sequences: their parameters, the slopes, and what the passes
// before attention need, which pack rows and take key norms.
//
//   table.Add(problem, ...)                      for each problem
//   table.PlaceUploads(layout), PlaceScratch(layout)
//   table.Bind(staging, workspace)
//
// Thread-safety: a plain value; const calls are safe from any thread. Ownership: as a plan
// (attention_plan.h).
#ifndef FLASHBIAS_KERNELS_CUDA_SEQUENCE_TABLE_H_
#define FLASHBIAS_KERNELS_CUDA_SEQUENCE_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/attention_problem.h"
#include "kernels/cuda/attention_params.h"
#include "kernels/cuda/key_norms.h"
#include "kernels/cuda/pack_rows.h"
#include "kernels/cuda/plan_options.h"
#include "kernels/cuda/workspace_layout.h"

namespace flashbias::cuda {

// OK, or INVALID_ARGUMENT: what no CUDA kernel computes, of either direction.
absl::Status CheckServed(const AttentionProblem& problem);

class SequenceTable {
 public:
  // A problem with eps above 0 and slopes that decay has key norms where `skipping` says so.
  // `score_work` is how much longer than the forward pass the kernel takes for a score element that
  // is not skipped.
  void Add(const AttentionProblem& problem, PlanOptions::Skipping skipping, double score_work);

  size_t size() const { return sequences_.size(); }
  // In the order of the problems. Pointers to what lies in the workspace are there after Bind.
  const std::vector<SequenceParams>& params() const { return sequences_; }
  SequenceParams& params(size_t n) { return sequences_[n]; }
  // Where d_o of sequence n lies, packed or not; of a backward problem.
  const void* d_o(size_t n) const { return d_o_[n]; }
  bool has_key_norms(size_t n) const { return places_[n].key_norms != kNone; }
  // On the host; null: none.
  const float* host_slopes(size_t n) const {
    return places_[n].slopes == kNone ? nullptr : slopes_.data() + places_[n].slopes;
  }

  // Arrays that are uploaded, and those that are not.
  void PlaceUploads(WorkspaceLayout* layout);
  void PlaceScratch(WorkspaceLayout* layout);
  // Writes what is uploaded; counters are the caller's to zero, before.
  void Bind(void* staging, void* workspace);

  // Complete after Bind.
  const KeyNormParams& key_norm_params() const { return key_norm_params_; }
  const PackParams& pack_params() const { return pack_params_; }

 private:
  static constexpr int64_t kNone = -1;

  // What Bind must still turn into pointers, for one sequence. Offsets within their arrays.
  struct Places {
    int64_t slopes = kNone;     // floats
    int64_t key_norms = kNone;  // floats
    int64_t packed_q = kNone;   // bytes
    int64_t packed_k = kNone;
    int64_t packed_v = kNone;
    int64_t packed_d_o = kNone;
  };

  // Arrays in the workspace, as offsets from its start.
  struct Layout {
    size_t done_blocks = 0;
    size_t slopes = 0;
    size_t key_norm_jobs = 0;
    size_t pack_jobs = 0;
    size_t key_norms = 0;
    size_t packed = 0;
  };

  void AddKeyNorms(float eps);
  void AddPacking(const AttentionProblem& problem, size_t first_sequence);

  int num_problems_ = 0;
  std::vector<SequenceParams> sequences_;
  std::vector<const void*> d_o_;  // [sequences]
  std::vector<Places> places_;    // [sequences]
  std::vector<float> slopes_;
  std::vector<KeyNormJob> key_norm_jobs_;
  std::vector<int> key_norm_sequences_;  // [key_norm_jobs]
  std::vector<int> key_norm_counters_;   // [key_norm_jobs], the first of each
  std::vector<PackJob> pack_jobs_;
  std::vector<int64_t> pack_offsets_;  // [pack_jobs], bytes
  int64_t key_norm_floats_ = 0;
  int32_t key_norm_blocks_ = 0;
  int32_t num_key_norm_counters_ = 0;
  int64_t packed_bytes_ = 0;

  Layout layout_;
  KeyNormParams key_norm_params_{};
  PackParams pack_params_{};
};

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_SEQUENCE_TABLE_H_
