#include "kernels/cuda/attention_launch.h"

#include "kernels/cuda/hopper/hopper_attention.h"
#include "kernels/cuda/portable/portable_attention.h"

namespace flashbias::cuda {

cudaError_t UploadPlan(const AttentionPlan& plan, cudaStream_t stream) {
  return cudaMemcpyAsync(plan.workspace(), plan.staging(), plan.staging_bytes(),
                         cudaMemcpyHostToDevice, stream);
}

cudaError_t LaunchAttention(const AttentionPlan& plan, cudaStream_t stream) {
  const AttentionParams& params = plan.params();
  if (params.num_items == 0) return cudaSuccess;
  const auto& [dtype, padded_head_dim, low_rank, family] = plan.group();
  const int num_sms = plan.device().num_sms;

  cudaError_t error = LaunchPackRows(plan.pack_params(), num_sms, stream);
  if (error != cudaSuccess) return error;
  error = LaunchKeyNorms(plan.key_norm_params(), dtype, stream);
  if (error != cudaSuccess) return error;
  if (family == KernelFamily::kHopper) {
    return hopper::LaunchAttention(plan.hopper_plan(), dtype, padded_head_dim, num_sms, stream);
  }
  error = portable::LaunchAttention(params, dtype, padded_head_dim, low_rank, num_sms, stream);
  if (error != cudaSuccess || !plan.has_splits()) return error;
  return portable::LaunchMergeSplits(params, dtype, padded_head_dim, stream);
}

}  // namespace flashbias::cuda
