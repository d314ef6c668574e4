#include "client/region_map.h"

#include <iterator>

namespace flashbias::client {
namespace {

uintptr_t AddressOf(const void* data) { return reinterpret_cast<uintptr_t>(data); }

}  // namespace

bool RegionMap::Add(const void* data, size_t size, uint64_t id, bool on_device) {
  absl::MutexLock lock(&mutex_);
  const auto after = ranges_.lower_bound(AddressOf(data) + size);
  if (after != ranges_.begin() &&
      std::prev(after)->first + std::prev(after)->second.size > AddressOf(data)) {
    return false;
  }
  ranges_[AddressOf(data)] = {.size = size, .id = id, .on_device = on_device};
  return true;
}

void RegionMap::Remove(const void* data) {
  absl::MutexLock lock(&mutex_);
  ranges_.erase(AddressOf(data));
}

std::optional<wire::RegionPlace> RegionMap::Find(const void* data, size_t bytes) const {
  if (bytes == 0) return std::nullopt;
  absl::MutexLock lock(&mutex_);
  const auto after = ranges_.upper_bound(AddressOf(data));
  if (after == ranges_.begin()) return std::nullopt;
  const auto& [begin, range] = *std::prev(after);
  const size_t offset = AddressOf(data) - begin;
  if (offset > range.size || bytes > range.size - offset) return std::nullopt;
  return wire::RegionPlace{.region_id = range.id, .offset = offset};
}

bool RegionMap::TouchesDevice(const void* data, size_t bytes) const {
  if (bytes == 0) return false;
  absl::MutexLock lock(&mutex_);
  for (auto at = ranges_.lower_bound(AddressOf(data) + bytes); at != ranges_.begin();) {
    --at;
    if (at->first + at->second.size <= AddressOf(data)) return false;
    if (at->second.on_device) return true;
  }
  return false;
}

}  // namespace flashbias::client
