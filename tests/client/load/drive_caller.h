// Sends requests through a LoadCaller and waits for all of them.
#ifndef FLASHBIAS_TESTS_CLIENT_LOAD_DRIVE_CALLER_H_
#define FLASHBIAS_TESTS_CLIENT_LOAD_DRIVE_CALLER_H_

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "client/load/engine/load_caller.h"

namespace flashbias::client {

// Slots and outcomes of requests in flight.
class CallerDriver {
 public:
  CallerDriver(int64_t requests, int slots)
      : requests_(requests), slots_(static_cast<size_t>(slots)), outcomes_(requests) {
    for (int slot = 0; slot < slots; ++slot) free_slots_.push_back(slot);
  }

  // Requests 0, 1, ... with as many in flight as there are slots. By request.
  std::vector<CallOutcome> Run(LoadCaller& caller) ABSL_LOCKS_EXCLUDED(mutex_) {
    for (int64_t n = 0; n < requests_; ++n) {
      const int slot = TakeSlot();
      caller.Start(n, slot, [this, n, slot](CallOutcome outcome) {
        absl::MutexLock lock(&mutex_);
        outcomes_[n] = std::move(outcome);
        free_slots_.push_back(slot);
      });
    }
    absl::MutexLock lock(&mutex_);
    const auto all_free = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return free_slots_.size() == slots_;
    };
    mutex_.Await(absl::Condition(&all_free));
    return std::move(outcomes_);
  }

 private:
  int TakeSlot() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    const auto some_free = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return !free_slots_.empty();
    };
    mutex_.Await(absl::Condition(&some_free));
    const int slot = free_slots_.back();
    free_slots_.pop_back();
    return slot;
  }

  const int64_t requests_;
  const size_t slots_;
  absl::Mutex mutex_;
  std::vector<int> free_slots_ ABSL_GUARDED_BY(mutex_);
  std::vector<CallOutcome> outcomes_ ABSL_GUARDED_BY(mutex_);
};

inline std::vector<CallOutcome> DriveCaller(LoadCaller& caller, int64_t requests, int slots) {
  return CallerDriver(requests, slots).Run(caller);
}

inline std::vector<AnswerSample> SamplesOf(const std::vector<CallOutcome>& outcomes) {
  std::vector<AnswerSample> samples;
  for (const CallOutcome& outcome : outcomes) {
    if (outcome.sample.has_value()) samples.push_back(*outcome.sample);
  }
  return samples;
}

}  // namespace flashbias::client

#endif  // FLASHBIAS_TESTS_CLIENT_LOAD_DRIVE_CALLER_H_
