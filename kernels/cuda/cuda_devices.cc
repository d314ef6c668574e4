#include "kernels/cuda/cuda_devices.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/attention_planner.h"
#include "kernels/cuda/device_traits.h"
#include "kernels/cuda/runtime_device.h"

namespace flashbias::cuda {
namespace {

constexpr int kLeastCapability = 80;

absl::StatusOr<BackendInfo> Describe(const DeviceTraits& traits) {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, traits.ordinal);
  if (error != cudaSuccess) {
    return absl::InternalError(absl::StrCat("CUDA device ", traits.ordinal,
                                            ": cudaGetDeviceProperties failed with ",
                                            cudaGetErrorName(error)));
  }
  BackendInfo info;
  info.name = "cuda";
  info.devices = {absl::StrCat(properties.name, ", device ", traits.ordinal, ", sm_",
                               traits.compute_capability, ", ", properties.totalGlobalMem >> 20,
                               " MiB")};
  info.device_label = absl::StrCat(traits.ordinal);
  info.device_uuid.assign(properties.uuid.bytes, sizeof(properties.uuid.bytes));
  info.max_sequence_rows = kMaxSequenceRows;
  info.dtypes = {DType::kFloat16, DType::kBFloat16};
  info.fast_head_dims = {32, 64, 128};
  return info;
}

}  // namespace

std::vector<int> UsableDevices() {
  std::vector<int> usable;
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // there is no driver: no error of a later call's
    return usable;
  }
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    DeviceTraits traits;
    if (ReadDeviceTraits(ordinal, &traits) == cudaSuccess &&
        traits.compute_capability >= kLeastCapability) {
      usable.push_back(ordinal);
    }
  }
  return usable;
}

absl::StatusOr<std::vector<std::unique_ptr<CudaBackend>>> CreateCudaBackends(
    const CudaDevicesOptions& options) {
  const std::vector<int> usable = UsableDevices();
  if (usable.empty()) {
    return absl::NotFoundError(
        "there is no CUDA driver, or no device of compute capability 8.0 or more");
  }
  const std::vector<int>& chosen = options.devices.empty() ? usable : options.devices;
  std::vector<std::shared_ptr<DeviceApi>> devices;
  for (const int ordinal : chosen) {
    if (std::find(usable.begin(), usable.end(), ordinal) == usable.end() ||
        std::count(chosen.begin(), chosen.end(), ordinal) != 1) {
      return absl::InvalidArgumentError(absl::StrCat("cuda_devices is ", absl::StrJoin(chosen, ","),
                                                     "; accepted: each at most once of ",
                                                     absl::StrJoin(usable, ",")));
    }
    devices.push_back(std::make_shared<RuntimeDevice>(ordinal));
  }
  const auto pool = std::make_shared<PinnedPool>(devices, options.pinned_memory_bytes);

  std::vector<std::unique_ptr<CudaBackend>> backends;
  for (size_t n = 0; n < chosen.size(); ++n) {
    DeviceTraits traits;
    const cudaError_t error = ReadDeviceTraits(chosen[n], &traits);
    if (error != cudaSuccess)
      return DeviceHealth(devices[n].get(), absl::StrCat(chosen[n]))
          .Report(error, "cudaDeviceGetAttribute");
    absl::StatusOr<BackendInfo> info = Describe(traits);
    if (!info.ok()) return info.status();
    absl::StatusOr<std::unique_ptr<CudaBackend>> backend = CudaBackend::Create(
        options.backend, devices[n], std::make_unique<AttentionPlanner>(traits, options.plan), pool,
        *std::move(info));
    if (!backend.ok()) return backend.status();
    backends.push_back(*std::move(backend));
  }
  return backends;
}

}  // namespace flashbias::cuda
