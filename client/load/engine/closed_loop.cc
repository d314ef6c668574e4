#include <algorithm>
#include <limits>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "client/load/engine/load_loop.h"
#include "client/load/engine/load_recorder.h"
#include "client/load/engine/pacing.h"
#include "client/load/engine/progress_reporter.h"

namespace flashbias::client {
namespace {

// How long the end of the run may go unseen.
constexpr absl::Duration kLookEvery = absl::Milliseconds(10);

class ClosedLoop {
 public:
  ClosedLoop(LoadCaller& caller, const ClosedLoopOptions& options, const std::atomic<bool>& stop)
      : caller_(caller),
        options_(options),
        stop_(stop),
        recorder_(caller.num_entries(), caller.num_targets()),
        start_(MonotonicNow()),
        callers_(options.concurrency) {}

  LoadResult Run(const LoadObserver& observer) {
    std::vector<std::thread> threads;
    threads.reserve(options_.concurrency);
    for (int slot = 0; slot < options_.concurrency; ++slot) {
      threads.emplace_back([this, slot] { CallInTurn(slot); });
    }
    ProgressReporter reporter(start_, &recorder_, observer);
    while (callers_.load() > 0) {
      reporter.Poll(measured_from_ns_.load() == kNotMeasuring, outstanding_.load());
      SleepUntil(MonotonicNow() + kLookEvery, absl::ZeroDuration());
    }
    for (std::thread& thread : threads) thread.join();
    return recorder_.Finish();
  }

 private:
  struct Request {
    int64_t index;
    bool measured;
  };
  // Not absl::Notification, whose order ThreadSanitizer cannot see.
  class Answer {
   public:
    void Set(CallOutcome outcome) ABSL_LOCKS_EXCLUDED(mutex_) {
      absl::MutexLock lock(&mutex_);
      outcome_ = std::move(outcome);
      there_ = true;
    }
    CallOutcome Await() ABSL_LOCKS_EXCLUDED(mutex_) {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(&there_));
      return std::move(outcome_);
    }

   private:
    absl::Mutex mutex_;
    bool there_ ABSL_GUARDED_BY(mutex_) = false;
    CallOutcome outcome_ ABSL_GUARDED_BY(mutex_);
  };

  void CallInTurn(int slot) {
    for (;;) {
      const absl::Duration sent = MonotonicNow();
      const std::optional<Request> request = NextRequest(sent);
      if (!request.has_value()) break;
      recorder_.RecordOffered();
      outstanding_.fetch_add(1);
      Answer answer;
      caller_.Start(request->index, slot, [&answer](CallOutcome outcome) {
        if (!outcome.answered.has_value()) outcome.answered = MonotonicNow();
        answer.Set(std::move(outcome));
      });
      CallOutcome outcome = answer.Await();
      outstanding_.fetch_sub(1);

      const bool failed = !outcome.status.ok();
      const absl::Duration from = request->measured ? MeasuredFrom() : start_;
      const CallTimes times = {
          .intended = sent - from, .sent = sent - from, .answered = *outcome.answered - from};
      recorder_.RecordAnswer(times, request->measured, std::move(outcome));
      if (failed) SleepUntil(MonotonicNow() + options_.pause_after_error, absl::ZeroDuration());
    }
    callers_.fetch_sub(1);
  }

  // nullopt: the run ends.
  std::optional<Request> NextRequest(absl::Duration now) {
    if (stop_.load(std::memory_order_relaxed)) return std::nullopt;
    const int64_t index = next_.fetch_add(1);
    const bool after_time = now - start_ >= options_.warmup;
    const bool after_requests = options_.warmup_requests > 0 && index >= options_.warmup_requests;
    if (!after_time && !after_requests) return Request{.index = index, .measured = false};

    // The first one fixes when the warm-up ended.
    int64_t unset = kNotMeasuring;
    measured_from_ns_.compare_exchange_strong(
        unset, absl::ToInt64Nanoseconds(after_time ? start_ + options_.warmup : now));
    if (now - MeasuredFrom() >= options_.duration) return std::nullopt;
    if (options_.requests > 0 && measured_.fetch_add(1) >= options_.requests) return std::nullopt;
    return Request{.index = index, .measured = true};
  }

  absl::Duration MeasuredFrom() const { return absl::Nanoseconds(measured_from_ns_.load()); }

  static constexpr int64_t kNotMeasuring = std::numeric_limits<int64_t>::max();

  LoadCaller& caller_;
  const ClosedLoopOptions& options_;
  const std::atomic<bool>& stop_;
  LoadRecorder recorder_;
  const absl::Duration start_;
  std::atomic<int64_t> next_{0};
  std::atomic<int64_t> measured_{0};
  std::atomic<int64_t> outstanding_{0};
  std::atomic<int64_t> measured_from_ns_{kNotMeasuring};  // a moment, as start_
  std::atomic<int> callers_;                              // that still call
};

}  // namespace

LoadResult RunClosedLoop(LoadCaller& caller, const ClosedLoopOptions& options,
                         const std::atomic<bool>& stop, const LoadObserver& observer) {
  return ClosedLoop(caller, options, stop).Run(observer);
}

}  // namespace flashbias::client
