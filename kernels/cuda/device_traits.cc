#include "kernels/cuda/device_traits.h"

namespace flashbias::cuda {

cudaError_t ReadDeviceTraits(int ordinal, DeviceTraits* traits) {
  int major = 0;
  int minor = 0;
  int num_sms = 0;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, ordinal);
  if (error != cudaSuccess) return error;
  *traits = {.ordinal = ordinal, .compute_capability = 10 * major + minor, .num_sms = num_sms};
  return cudaSuccess;
}

}  // namespace flashbias::cuda
