#include "kernels/cuda/device_arena.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "absl/strings/str_cat.h"

namespace flashbias::cuda {
namespace {

constexpr size_t kAlignment = 256;
// Regions are at least this large where the bound allows: small runs share one.
constexpr size_t kRegionBytes = size_t{256} << 20;

}  // namespace

DeviceArena::DeviceArena(DeviceApi* device, size_t max_bytes, std::function<void()> reclaim)
    : device_(device),
      max_bytes_(max_bytes / kAlignment * kAlignment),
      reclaim_(std::move(reclaim)) {}

DeviceArena::~DeviceArena() {
  absl::MutexLock lock(&mutex_);
  assert(usage_.used_bytes == 0);
  for (const Region& region : regions_) device_->FreeDevice(region.memory);
}

absl::StatusOr<DeviceRange> DeviceArena::Reserve(size_t bytes) {
  absl::MutexLock lock(&mutex_);
  const uint64_t ticket = next_ticket_++;
  while (turn_ != ticket) changed_.Wait(&mutex_);
  absl::StatusOr<DeviceRange> range = ReserveInTurnLocked(bytes, /*may_wait=*/reclaim_ == nullptr);
  if (absl::IsUnavailable(range.status())) {
    // It gives ranges back, which takes the mutex. Turns are not: nobody comes between.
    mutex_.Unlock();
    reclaim_();
    mutex_.Lock();
    range = ReserveInTurnLocked(bytes, /*may_wait=*/true);
  }
  ++turn_;
  if (turn_ != next_ticket_) changed_.SignalAll();
  return range;
}

absl::StatusOr<DeviceRange> DeviceArena::TryReserve(size_t bytes) {
  absl::MutexLock lock(&mutex_);
  if (turn_ != next_ticket_) return absl::UnavailableError("others wait for their turn");
  return ReserveInTurnLocked(bytes, /*may_wait=*/false);
}

absl::StatusOr<DeviceRange> DeviceArena::ReserveInTurnLocked(size_t bytes, bool may_wait) {
  if (bytes > max_bytes_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("it takes ", bytes, " bytes of device memory; the limit is ", max_bytes_));
  }
  bytes = std::max<size_t>((bytes + kAlignment - 1) / kAlignment, 1) * kAlignment;
  for (;;) {
    char* data = FitLocked(bytes);
    if (data == nullptr && GrowLocked(bytes, may_wait)) data = FitLocked(bytes);
    if (data != nullptr) return DeviceRange(this, data);
    if (!may_wait) return absl::UnavailableError("others hold what it takes");
    if (usage_.used_bytes == 0) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "it takes ", bytes, " bytes of device memory; the device has no such room free"));
    }
    changed_.Wait(&mutex_);
  }
}

DeviceArena::Usage DeviceArena::usage() const {
  absl::MutexLock lock(&mutex_);
  return usage_;
}

void DeviceArena::Release(char* data) {
  absl::MutexLock lock(&mutex_);
  for (Region& region : regions_) {
    if (data < region.memory || data >= region.memory + region.bytes) continue;
    const auto range = region.used.find(static_cast<size_t>(data - region.memory));
    assert(range != region.used.end());
    usage_.used_bytes -= range->second;
    region.used.erase(range);
    changed_.SignalAll();
    return;
  }
  assert(false);
}

char* DeviceArena::FitLocked(size_t bytes) {
  for (Region& region : regions_) {
    size_t begin = 0;
    for (const auto& [offset, size] : region.used) {
      if (offset - begin >= bytes) break;
      begin = offset + size;
    }
    if (region.bytes - begin < bytes) continue;
    region.used.emplace(begin, bytes);
    usage_.used_bytes += bytes;
    return region.memory + begin;
  }
  return nullptr;
}

bool DeviceArena::GrowLocked(size_t bytes, bool may_wait) {
  for (;;) {
    const size_t room = max_bytes_ - usage_.size_bytes;
    const size_t wanted = std::max(bytes, std::min(kRegionBytes, room));
    if (wanted <= room) {
      for (const size_t size : {wanted, bytes}) {
        void* memory = nullptr;
        if (device_->AllocateDevice(size, &memory) == kSuccess) {
          regions_.push_back({.memory = static_cast<char*>(memory), .bytes = size, .used = {}});
          usage_.size_bytes += size;
          return true;
        }
        device_->StickyError();  // else the failure would show at the next call
      }
    }
    if (!may_wait || !ShrinkLocked()) return false;
  }
}

bool DeviceArena::ShrinkLocked() {
  const auto idle = std::find_if(regions_.begin(), regions_.end(),
                                 [](const Region& region) { return region.used.empty(); });
  if (idle == regions_.end()) return false;
  device_->FreeDevice(idle->memory);
  usage_.size_bytes -= idle->bytes;
  regions_.erase(idle);
  return true;
}

}  // namespace flashbias::cuda
