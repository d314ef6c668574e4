#include "kernels/cuda/device_health.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace flashbias::cuda {

DeviceHealth::DeviceHealth(DeviceApi* device, std::string label)
    : device_(device), label_(std::move(label)) {}

absl::Status DeviceHealth::status() const {
  absl::MutexLock lock(&mutex_);
  return status_;
}

absl::Status DeviceHealth::Report(ErrorCode code, absl::string_view what) {
  const ErrorCode sticky = device_->StickyError();
  absl::MutexLock lock(&mutex_);
  ++errors_[device_->ErrorName(code)];
  if (sticky != kSuccess && status_.ok()) status_ = Describe(sticky, what);
  return Describe(code, what);
}

std::vector<std::pair<std::string, int64_t>> DeviceHealth::errors() const {
  absl::MutexLock lock(&mutex_);
  return {errors_.begin(), errors_.end()};
}

absl::Status DeviceHealth::Describe(ErrorCode code, absl::string_view what) const {
  return absl::InternalError(absl::StrCat("CUDA device ", label_, ": ", what, " failed with ",
                                          device_->ErrorName(code), " (", device_->ErrorText(code),
                                          ")"));
}

}  // namespace flashbias::cuda
