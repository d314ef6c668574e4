#include "kernels/cuda/backward_launch.h"

#include "kernels/cuda/backward_rows.h"
#include "kernels/cuda/bias_gradients.h"
#include "kernels/cuda/hopper/hopper_backward.h"
#include "kernels/cuda/portable/portable_backward.h"

namespace flashbias::cuda {
namespace {

cudaError_t LaunchPasses(const BackwardPlan& plan, cudaStream_t stream) {
  const BackwardParams& params = plan.params();
  const auto& [dtype, padded_head_dim, low_rank, dslopes, family] = plan.group();
  const int num_sms = plan.device().num_sms;
  if (family == KernelFamily::kHopper) {
    return hopper::LaunchBackward(params, dtype, padded_head_dim, dslopes, num_sms, stream);
  }
  return portable::LaunchBackward(params, dtype, padded_head_dim, low_rank, dslopes, num_sms,
                                  stream);
}

}  // namespace

cudaError_t UploadPlan(const BackwardPlan& plan, cudaStream_t stream) {
  return cudaMemcpyAsync(plan.workspace(), plan.staging(), plan.staging_bytes(),
                         cudaMemcpyHostToDevice, stream);
}

cudaError_t LaunchBackward(const BackwardPlan& plan, cudaStream_t stream) {
  const BackwardParams& params = plan.params();
  const DType dtype = plan.group().dtype;
  const int num_sms = plan.device().num_sms;
  cudaError_t error = LaunchPackRows(plan.pack_params(), num_sms, stream);
  if (error != cudaSuccess) return error;
  error = LaunchKeyNorms(plan.key_norm_params(), dtype, stream);
  if (error != cudaSuccess) return error;
  if (plan.rows_params().num_blocks > 0) {
    error = LaunchBackwardRows(params, plan.rows_params(), dtype, stream);
    if (error != cudaSuccess) return error;
  }
  if (params.num_kv_items + params.num_q_items > 0) {
    error = LaunchPasses(plan, stream);
    if (error != cudaSuccess) return error;
  }
  return LaunchSums(plan.sum_params(), num_sms, stream);
}

}  // namespace flashbias::cuda
