// Whether a device still computes, and which errors it has met.
//
// Thread-safety: all methods from any thread; Report from one on which the device is current.
#ifndef FLASHBIAS_KERNELS_CUDA_DEVICE_HEALTH_H_
#define FLASHBIAS_KERNELS_CUDA_DEVICE_HEALTH_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "kernels/cuda/device_api.h"

namespace flashbias::cuda {

class DeviceHealth {
 public:
  // `label` names the device in messages. The device must outlive this.
  DeviceHealth(DeviceApi* device, std::string label);
  DeviceHealth(const DeviceHealth&) = delete;
  DeviceHealth& operator=(const DeviceHealth&) = delete;

  // OK, or the error from which the device does not recover; the first such error stays.
  absl::Status status() const ABSL_LOCKS_EXCLUDED(mutex_);

  // To be called where a call returned `code`, which is counted; `what` names the call. Finds out
  // whether the device recovers. Returns INTERNAL naming the device, `what` and the CUDA error.
  absl::Status Report(ErrorCode code, absl::string_view what) ABSL_LOCKS_EXCLUDED(mutex_);

  // Errors so far by their CUDA name.
  std::vector<std::pair<std::string, int64_t>> errors() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::Status Describe(ErrorCode code, absl::string_view what) const;

  DeviceApi* const device_;
  const std::string label_;

  mutable absl::Mutex mutex_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, int64_t> errors_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_DEVICE_HEALTH_H_
