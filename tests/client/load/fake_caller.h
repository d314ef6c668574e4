// A LoadCaller without a server, whose answers a test scripts, and which watches the loop.
#ifndef FLASHBIAS_TESTS_CLIENT_LOAD_FAKE_CALLER_H_
#define FLASHBIAS_TESTS_CLIENT_LOAD_FAKE_CALLER_H_

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/load/engine/load_caller.h"
#include "client/load/engine/pacing.h"

namespace flashbias::client {

class FakeCaller : public LoadCaller {
 public:
  enum class Answers {
    kAtOnce,   // before Start returns
    kDelayed,  // each `time` after it was sent
    kSerial,   // one after the other, each takes `time`
    kHeld,     // when Release is called
  };
  using Script = std::function<CallOutcome(int64_t index)>;

  explicit FakeCaller(Answers answers, absl::Duration time = {}, Script script = nullptr)
      : answers_(answers), time_(time), script_(std::move(script)) {
    thread_ = std::thread([this] { AnswerInTurn(); });
  }
  ~FakeCaller() override {
    {
      absl::MutexLock lock(&mutex_);
      ended_ = true;
    }
    thread_.join();
  }

  int num_entries() const override { return 2; }
  int num_targets() const override { return 3; }

  void Start(int64_t index, int slot, DoneCallback done) override {
    const absl::Duration now = MonotonicNow();
    {
      absl::MutexLock lock(&mutex_);
      indices_.push_back(index);
      if (std::find(slots_.begin(), slots_.end(), slot) != slots_.end()) shared_slots_ = true;
      slots_.push_back(slot);
      largest_slot_ = std::max(largest_slot_, slot);
      most_in_flight_ = std::max(most_in_flight_, slots_.size());
      if (answers_ != Answers::kAtOnce) {
        last_due_ = answers_ == Answers::kSerial ? std::max(now, last_due_) + time_ : now + time_;
        pending_.push_back({index, slot, last_due_, std::move(done)});
        return;
      }
    }
    Answer(index, slot, std::move(done));
  }

  // Of kHeld: answers everything, from now on at once.
  void Release() {
    absl::MutexLock lock(&mutex_);
    released_ = true;
  }

  int64_t started() {
    absl::MutexLock lock(&mutex_);
    return static_cast<int64_t>(indices_.size());
  }
  std::vector<int64_t> indices() {  // ascending
    absl::MutexLock lock(&mutex_);
    std::vector<int64_t> sorted = indices_;
    std::sort(sorted.begin(), sorted.end());
    return sorted;
  }
  bool shared_slots() {
    absl::MutexLock lock(&mutex_);
    return shared_slots_;
  }
  int largest_slot() {
    absl::MutexLock lock(&mutex_);
    return largest_slot_;
  }
  size_t most_in_flight() {
    absl::MutexLock lock(&mutex_);
    return most_in_flight_;
  }

 private:
  struct Pending {
    int64_t index;
    int slot;
    absl::Duration due;
    DoneCallback done;
  };

  void Answer(int64_t index, int slot, DoneCallback done) {
    {
      absl::MutexLock lock(&mutex_);
      slots_.erase(std::find(slots_.begin(), slots_.end(), slot));
    }
    std::move(done)(script_ != nullptr ? script_(index) : CallOutcome{});
  }

  bool SomethingToDo() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return ended_ || (!pending_.empty() && (released_ || answers_ != Answers::kHeld));
  }
  void AnswerInTurn() {
    for (;;) {
      mutex_.LockWhen(absl::Condition(this, &FakeCaller::SomethingToDo));
      if (pending_.empty()) {
        mutex_.Unlock();
        return;
      }
      Pending pending = std::move(pending_.front());
      pending_.pop_front();
      mutex_.Unlock();
      SleepUntil(pending.due, absl::ZeroDuration());
      Answer(pending.index, pending.slot, std::move(pending.done));
    }
  }

  const Answers answers_;
  const absl::Duration time_;
  const Script script_;
  absl::Mutex mutex_;
  std::vector<int64_t> indices_ ABSL_GUARDED_BY(mutex_);
  std::vector<int> slots_ ABSL_GUARDED_BY(mutex_);  // in flight
  bool shared_slots_ ABSL_GUARDED_BY(mutex_) = false;
  int largest_slot_ ABSL_GUARDED_BY(mutex_) = -1;
  size_t most_in_flight_ ABSL_GUARDED_BY(mutex_) = 0;
  std::deque<Pending> pending_ ABSL_GUARDED_BY(mutex_);
  absl::Duration last_due_ ABSL_GUARDED_BY(mutex_);
  bool released_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_TESTS_CLIENT_LOAD_FAKE_CALLER_H_
