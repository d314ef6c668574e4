// Numbers for what is in flight: each is given to one at a time.
//
// Thread-safe; nothing blocks.
#ifndef FLASHBIAS_CLIENT_LOAD_ENGINE_SLOT_POOL_H_
#define FLASHBIAS_CLIENT_LOAD_ENGINE_SLOT_POOL_H_

#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace flashbias::client {

class SlotPool {
 public:
  // Of 0 .. size - 1.
  explicit SlotPool(int size);

  // nullopt: all are taken. The one given back last comes first: its memory is warm.
  std::optional<int> Take() ABSL_LOCKS_EXCLUDED(mutex_);
  void GiveBack(int slot) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::Mutex mutex_;
  std::vector<int> free_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_ENGINE_SLOT_POOL_H_
