#include "kernels/cuda/mirror.h"

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <utility>

#include "kernels/cuda/transfer_plan.h"

namespace flashbias::cuda {

Mirror::Mirror(const Parts& parts, const char* host, size_t bytes, DeviceRange range, Event* event)
    : parts_(parts), host_(host), bytes_(bytes), event_(event), range_(std::move(range)) {}

Mirror::~Mirror() {
  static_cast<void>(parts_.device->Use());
  {
    absl::MutexLock lock(&mutex_);
    assert(pins_ == 0);
    ReleaseLocked();
  }
  parts_.device->DestroyEvent(event_);
}

bool Mirror::Contains(const void* host) const {
  return reinterpret_cast<uintptr_t>(host) - reinterpret_cast<uintptr_t>(host_) < bytes_;
}

void Mirror::Written(const char* data, size_t bytes) {
  absl::MutexLock lock(&mutex_);
  if (range_.data() == nullptr) return;
  auto run = std::find_if(runs_.begin(), runs_.end(),
                          [data](const Run& other) { return other.end == data; });
  if (run == runs_.end()) {
    runs_.push_back({.begin = data, .copied = data, .end = data});
    run = std::prev(runs_.end());
  }
  run->end += bytes;
  // A copy of a few KiB takes the driver longer than the device.
  if (static_cast<size_t>(run->end - run->copied) >= parts_.piece_bytes) CopyLocked(*run);
}

void Mirror::AllWritten() {
  absl::MutexLock lock(&mutex_);
  for (Run& run : runs_) {
    if (range_.data() != nullptr && run.copied != run.end) CopyLocked(run);
  }
  complete_ = true;
}

void Mirror::CopyLocked(Run& run) {
  DeviceApi& device = *parts_.device;
  const char* what = "cudaSetDevice";
  ErrorCode code = device.Use();
  if (code == kSuccess) {
    what = "an upload ahead";
    code = device.Copy(range_.data() + (run.copied - host_), run.copied,
                       static_cast<size_t>(run.end - run.copied), CopyKind::kHostToDevice,
                       parts_.stream);
  }
  if (code == kSuccess) {
    what = "cudaEventRecord";
    code = device.Record(event_, parts_.stream);
  }
  if (code == kSuccess) {
    run.copied = run.end;
    return;
  }
  static_cast<void>(parts_.health->Report(code, what));
  // The copy itself may be on its way.
  if (device.Wait(parts_.stream) != kSuccess) device.StickyError();
  ReleaseLocked();
}

bool Mirror::Pin() {
  absl::MutexLock lock(&mutex_);
  if (range_.data() == nullptr || !complete_) return false;
  ++pins_;
  return true;
}

void Mirror::Unpin() {
  absl::MutexLock lock(&mutex_);
  if (--pins_ == 0 && revoke_when_unpinned_) ReleaseLocked();
}

void Mirror::Revoke() {
  absl::MutexLock lock(&mutex_);
  if (pins_ > 0) {
    revoke_when_unpinned_ = true;
  } else {
    ReleaseLocked();
  }
}

char* Mirror::Find(const void* host, size_t bytes) const {
  if (!Contains(host)) return nullptr;
  const auto* const data = static_cast<const char*>(host);
  if (static_cast<size_t>(data - host_) % kTensorAlignment != 0) return nullptr;
  absl::MutexLock lock(&mutex_);
  for (const Run& run : runs_) {
    if (run.begin <= data && data <= run.copied &&
        bytes <= static_cast<size_t>(run.copied - data)) {
      return range_.data() + (data - host_);
    }
  }
  return nullptr;
}

void Mirror::ReleaseLocked() {
  if (range_.data() == nullptr) return;
  DeviceApi& device = *parts_.device;
  static_cast<void>(device.Use());
  if (device.Wait(event_) != kSuccess) {
    device.StickyError();
    if (device.Wait(parts_.stream) != kSuccess) device.StickyError();
  }
  range_ = DeviceRange();
  *parts_.total -= bytes_;
}

}  // namespace flashbias::cuda
