// The CUDA devices of this machine, and backends for them.
//
// The driver is looked up when it is first called: a program with this in it runs where there is
// none. Thread-safety: free functions, any thread.
#ifndef FLASHBIAS_KERNELS_CUDA_CUDA_DEVICES_H_
#define FLASHBIAS_KERNELS_CUDA_CUDA_DEVICES_H_

#include <cstddef>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/attention_backend.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/cuda_backend.h"

namespace flashbias::cuda {

struct CudaDevicesOptions {
  // Ordinals as the CUDA runtime counts them; empty: every usable device.
  std::vector<int> devices;
  CudaBackendOptions backend;  // of each
  // Pinned host memory, shared by all devices.
  size_t pinned_memory_bytes = size_t{4} << 30;
  PlanOptions plan;  // for tests
};

// Ordinals of the devices that the kernels run on (compute capability 8.0 and up); empty where
// there is no driver.
std::vector<int> UsableDevices();

// One backend a device. INVALID_ARGUMENT: a device that is not there or not usable, an option out
// of range; NOT_FOUND: there is no usable device; INTERNAL: a device fails.
absl::StatusOr<std::vector<std::unique_ptr<CudaBackend>>> CreateCudaBackends(
    const CudaDevicesOptions& options);

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_CUDA_DEVICES_H_
