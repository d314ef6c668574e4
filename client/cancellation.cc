#include "client/cancellation.h"

#include <utility>

namespace flashbias::client {

void Cancellation::Cancel() {
  std::map<int64_t, std::function<void()>> subscribers;
  {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
    subscribers.swap(subscribers_);
  }
  // Outside the lock: a subscriber may unsubscribe, or run a callback that calls back in here.
  for (auto& [id, on_cancel] : subscribers) on_cancel();
}

bool Cancellation::cancelled() const {
  absl::MutexLock lock(&mutex_);
  return cancelled_;
}

int64_t Cancellation::Subscribe(std::function<void()> on_cancel) {
  int64_t id = 0;
  {
    absl::MutexLock lock(&mutex_);
    id = next_id_++;
    if (!cancelled_) {
      subscribers_.emplace(id, std::move(on_cancel));
      return id;
    }
  }
  on_cancel();
  return id;
}

void Cancellation::Unsubscribe(int64_t id) {
  // The function is destroyed outside the lock: what it holds may be the last reference to more.
  std::function<void()> removed;
  absl::MutexLock lock(&mutex_);
  const auto it = subscribers_.find(id);
  if (it == subscribers_.end()) return;
  removed.swap(it->second);
  subscribers_.erase(it);
}

}  // namespace flashbias::client
