// What a plan must know of the device that will run it.
#ifndef FLASHBIAS_KERNELS_CUDA_DEVICE_TRAITS_H_
#define FLASHBIAS_KERNELS_CUDA_DEVICE_TRAITS_H_

#include <cuda_runtime_api.h>

namespace flashbias::cuda {

struct DeviceTraits {
  int ordinal = 0;
  int compute_capability = 0;  // 10 * major + minor: 80, 89, 90, 120
  int num_sms = 0;
};

// Reads them from the driver. Errors: no such device, no driver.
cudaError_t ReadDeviceTraits(int ordinal, DeviceTraits* traits);

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_DEVICE_TRAITS_H_
