#include "server/stream_budget.h"

namespace flashbias::server {

int64_t StreamBudget::reserved() {
  MutexLock lock(&mutex_);
  return reserved_;
}

std::shared_ptr<void> StreamBudget::Reserve(int64_t bytes) {
  {
    MutexLock lock(&mutex_);
    if (bytes > limit_ - reserved_) return nullptr;
    reserved_ += bytes;
  }
  // The pointer is only a token: what counts is that its last copy goes.
  return std::shared_ptr<void>(this, [self = shared_from_this(), bytes](void*) {
    MutexLock lock(&self->mutex_);
    self->reserved_ -= bytes;
  });
}

}  // namespace flashbias::server
