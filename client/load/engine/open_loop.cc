#include <algorithm>
#include <cstddef>
#include <latch>
#include <limits>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/blocking_counter.h"
#include "client/load/engine/load_loop.h"
#include "client/load/engine/load_recorder.h"
#include "client/load/engine/pacing.h"
#include "client/load/engine/progress_reporter.h"
#include "client/load/engine/slot_pool.h"

namespace flashbias::client {
namespace {

// How long a request to stop may go unseen, and the end of the run.
constexpr absl::Duration kLookEvery = absl::Milliseconds(10);

class OpenLoop {
 public:
  OpenLoop(LoadCaller& caller, const OpenLoopOptions& options, const std::atomic<bool>& stop)
      : caller_(caller),
        options_(options),
        stop_(stop),
        recorder_(caller.num_entries(), caller.num_targets()),
        free_slots_(options.max_outstanding),
        calls_(options.max_outstanding),
        senders_(options.send_threads),
        ready_(options.send_threads) {
    if (!options.arrivals.empty()) {
      recorder_.EndSchedule(options.arrivals.back() - options.warmup);
    }
  }

  LoadResult Run(const LoadObserver& observer) {
    std::vector<std::thread> threads;
    threads.reserve(options_.send_threads);
    for (int n = 0; n < options_.send_threads; ++n) threads.emplace_back([this] { SendInTurn(); });
    ready_.Wait();
    start_ = MonotonicNow() + absl::Milliseconds(1);
    begin_.count_down();

    ProgressReporter reporter(start_, &recorder_, observer);
    while (senders_.load() > 0 || outstanding_.load() > 0) {
      const absl::Duration now = MonotonicNow();
      reporter.Poll(now < start_ + options_.warmup, outstanding_.load());
      SleepUntil(now + kLookEvery, absl::ZeroDuration());
    }
    for (std::thread& thread : threads) thread.join();
    return recorder_.Finish();
  }

 private:
  struct Call {
    absl::Duration intended;  // from the start
    absl::Duration sent;
  };

  void SendInTurn() {
    AskForExactWakeups();
    ready_.DecrementCount();
    begin_.wait();
    for (;;) {
      const size_t n = next_.fetch_add(1);
      if (n >= options_.arrivals.size() || !WaitFor(options_.arrivals[n])) break;
      Send(static_cast<int64_t>(n), options_.arrivals[n]);
    }
    senders_.fetch_sub(1);
  }

  // False: the run was stopped before `arrival`. Those from before that are still to be sent, if
  // late.
  bool WaitFor(absl::Duration arrival) {
    const absl::Duration due = start_ + arrival;
    for (;;) {
      const absl::Duration now = MonotonicNow();
      if (stop_.load(std::memory_order_relaxed)) {
        // Looked at after the stop was seen: before that moment another sender may have sent more.
        return arrival <= StoppedAt(MonotonicNow() - start_);
      }
      if (now >= due) return true;
      if (due - now > kLookEvery) {
        SleepUntil(std::min(now + kLookEvery, due - options_.spin), absl::ZeroDuration());
      } else {
        SleepUntil(due, options_.spin);
      }
    }
  }

  // From the start; `now` where this is the first to see it.
  absl::Duration StoppedAt(absl::Duration now) {
    int64_t known = kNotStopped;
    const int64_t seen = absl::ToInt64Nanoseconds(now);
    if (stopped_at_ns_.compare_exchange_strong(known, seen)) {
      known = seen;
      recorder_.EndSchedule(now - options_.warmup);
    }
    return absl::Nanoseconds(known);
  }

  void Send(int64_t n, absl::Duration arrival) {
    recorder_.RecordOffered();
    const std::optional<int> slot = free_slots_.Take();
    if (!slot.has_value()) {
      recorder_.RecordOverflow(arrival - options_.warmup, Measured(arrival));
      return;
    }
    outstanding_.fetch_add(1);
    calls_[*slot] = {.intended = arrival, .sent = MonotonicNow() - start_};
    caller_.Start(n, *slot,
                  [this, slot = *slot](CallOutcome outcome) { Finish(slot, std::move(outcome)); });
  }

  void Finish(int slot, CallOutcome outcome) {
    const absl::Duration answered = outcome.answered.value_or(MonotonicNow()) - start_;
    const Call call = calls_[slot];
    recorder_.RecordAnswer({.intended = call.intended - options_.warmup,
                            .sent = call.sent - options_.warmup,
                            .answered = answered - options_.warmup},
                           Measured(call.intended), std::move(outcome));
    free_slots_.GiveBack(slot);
    // The last thing: after it the run may be gone.
    outstanding_.fetch_sub(1);
  }

  bool Measured(absl::Duration arrival) const { return arrival >= options_.warmup; }

  static constexpr int64_t kNotStopped = std::numeric_limits<int64_t>::max();

  LoadCaller& caller_;
  const OpenLoopOptions& options_;
  const std::atomic<bool>& stop_;
  LoadRecorder recorder_;
  SlotPool free_slots_;
  std::vector<Call> calls_;  // [slots]; each belongs to who holds the slot
  absl::Duration start_;     // constant once begin_ is at zero
  std::atomic<size_t> next_{0};
  std::atomic<int64_t> outstanding_{0};
  std::atomic<int64_t> stopped_at_ns_{kNotStopped};
  std::atomic<int> senders_;  // that still send
  absl::BlockingCounter ready_;
  std::latch begin_{1};
};

}  // namespace

LoadResult RunOpenLoop(LoadCaller& caller, const OpenLoopOptions& options,
                       const std::atomic<bool>& stop, const LoadObserver& observer) {
  return OpenLoop(caller, options, stop).Run(observer);
}

}  // namespace flashbias::client
