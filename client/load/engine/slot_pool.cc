#include "client/load/engine/slot_pool.h"

namespace flashbias::client {

SlotPool::SlotPool(int size) {
  absl::MutexLock lock(&mutex_);
  free_.reserve(size);
  for (int slot = size - 1; slot >= 0; --slot) free_.push_back(slot);
}

std::optional<int> SlotPool::Take() {
  absl::MutexLock lock(&mutex_);
  if (free_.empty()) return std::nullopt;
  const int slot = free_.back();
  free_.pop_back();
  return slot;
}

void SlotPool::GiveBack(int slot) {
  absl::MutexLock lock(&mutex_);
  free_.push_back(slot);
}

}  // namespace flashbias::client
