#include "client/load/load_runner.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <random>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"

namespace flashbias::client {
namespace {

constexpr absl::Duration kPauseAfterError = absl::Milliseconds(10);

void AddTiming(const Timing& timing, StageTotals* totals) {
  ++totals->calls;
  totals->receive += timing.receive;
  totals->queue += timing.queue;
  totals->compute += timing.compute;
  totals->upload += timing.upload;
  totals->kernel += timing.kernel;
  totals->download += timing.download;
  totals->send += timing.send;
  totals->batch_requests += timing.batch_requests;
  totals->tiles_computed += timing.tiles_computed;
  totals->tiles_skipped += timing.tiles_skipped;
}

void MergeInto(LoadResult&& from, LoadResult* into) {
  into->latency.Merge(from.latency);
  into->succeeded += from.succeeded;
  into->failed += from.failed;
  for (auto& [code, errors] : from.errors) {
    LoadErrors& total = into->errors[code];
    if (total.count == 0) total.first_message = std::move(errors.first_message);
    total.count += errors.count;
  }
  into->stages.receive += from.stages.receive;
  into->stages.queue += from.stages.queue;
  into->stages.compute += from.stages.compute;
  into->stages.upload += from.stages.upload;
  into->stages.kernel += from.stages.kernel;
  into->stages.download += from.stages.download;
  into->stages.send += from.stages.send;
  into->stages.calls += from.stages.calls;
  into->stages.batch_requests += from.stages.batch_requests;
  into->stages.tiles_computed += from.stages.tiles_computed;
  into->stages.tiles_skipped += from.stages.tiles_skipped;
  into->samples.insert(into->samples.end(), std::make_move_iterator(from.samples.begin()),
                       std::make_move_iterator(from.samples.end()));
}

// One run: the threads' common state.
class Run {
 public:
  Run(AttentionClient* client, const Workload& workload, const Verifier* verifier,
      const LoadOptions& options, const std::atomic<bool>& stop)
      : client_(client),
        workload_(workload),
        verifier_(verifier),
        options_(options),
        stop_(stop),
        start_(absl::Now()),
        end_(start_ + options.limit.duration),
        max_requests_(options.limit.requests > 0 ? options.limit.requests
                                                 : std::numeric_limits<int64_t>::max()),
        running_(options.concurrency) {}

  LoadResult Execute(const std::function<void(const LoadProgress&)>& progress) {
    std::vector<std::thread> threads;
    threads.reserve(options_.concurrency);
    for (int n = 0; n < options_.concurrency; ++n) threads.emplace_back([this, n] { Work(n); });
    while (!WaitForWorkers(absl::Seconds(1))) {
      if (progress != nullptr) {
        progress({.elapsed = absl::Now() - start_,
                  .succeeded = succeeded_.load(std::memory_order_relaxed),
                  .failed = failed_.load(std::memory_order_relaxed)});
      }
    }
    for (std::thread& thread : threads) thread.join();
    absl::MutexLock lock(&mutex_);
    result_.elapsed = last_answer_ - start_;
    return std::move(result_);
  }

 private:
  bool WaitForWorkers(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return mutex_.AwaitWithTimeout(absl::Condition(this, &Run::NoneRunning), timeout);
  }
  bool NoneRunning() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return running_ == 0; }

  void Work(int worker) ABSL_LOCKS_EXCLUDED(mutex_) {
    LoadResult result;
    std::mt19937_64 random(options_.seed * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(worker));
    while (!stop_.load(std::memory_order_relaxed) && absl::Now() < end_) {
      const int64_t ticket = next_.fetch_add(1, std::memory_order_relaxed);
      if (ticket >= max_requests_) break;
      Send(ticket, &random, &result);
    }
    const absl::Time now = absl::Now();
    absl::MutexLock lock(&mutex_);
    MergeInto(std::move(result), &result_);
    last_answer_ = std::max(last_answer_, now);
    --running_;
  }

  void Send(int64_t ticket, std::mt19937_64* random, LoadResult* result) {
    const int input = static_cast<int>(ticket % workload_.num_inputs());
    const LoadDirection direction = workload_.direction();
    absl::Status status;
    AttendResult answer;
    AttendGradients gradients;
    const absl::Time sent = absl::Now();
    if (direction != LoadDirection::kBackward) {
      absl::StatusOr<AttendResult> forward =
          client_->Attend(workload_.request(input), {.timeout = options_.timeout});
      status = forward.status();
      if (forward.ok()) answer = *std::move(forward);
    }
    if (status.ok() && direction != LoadDirection::kForward) {
      const AttendResult& of =
          direction == LoadDirection::kBoth ? answer : workload_.forward_result(input);
      absl::StatusOr<AttendGradients> backward = client_->AttendBackward(
          workload_.backward_request(input, of), {.timeout = options_.timeout});
      status = backward.status();
      if (backward.ok()) gradients = *std::move(backward);
    }
    const absl::Duration latency = absl::Now() - sent;
    if (!status.ok()) {
      failed_.fetch_add(1, std::memory_order_relaxed);
      ++result->failed;
      LoadErrors& errors = result->errors[status.code()];
      if (errors.count++ == 0) errors.first_message = std::string(status.message());
      absl::SleepFor(kPauseAfterError);
      return;
    }
    succeeded_.fetch_add(1, std::memory_order_relaxed);
    ++result->succeeded;
    result->latency.Record(latency);
    if (direction != LoadDirection::kBackward) AddTiming(answer.timing, &result->stages);
    if (direction != LoadDirection::kForward) AddTiming(gradients.timing, &result->stages);
    // The first of the run is always taken, so that a short run verifies something.
    if (options_.verify_share > 0 && (ticket == 0 || std::uniform_real_distribution<double>(
                                                         0, 1)(*random) < options_.verify_share)) {
      AnswerSample sample{.input = input};
      if (direction != LoadDirection::kBackward) verifier_->Sample(answer, random, &sample);
      if (direction != LoadDirection::kForward) verifier_->Sample(gradients, random, &sample);
      result->samples.push_back(std::move(sample));
    }
  }

  AttentionClient* const client_;
  const Workload& workload_;
  const Verifier* const verifier_;
  const LoadOptions& options_;
  const std::atomic<bool>& stop_;
  const absl::Time start_;
  const absl::Time end_;
  const int64_t max_requests_;

  std::atomic<int64_t> next_{0};
  std::atomic<int64_t> succeeded_{0};
  std::atomic<int64_t> failed_{0};

  absl::Mutex mutex_;
  int running_ ABSL_GUARDED_BY(mutex_);
  absl::Time last_answer_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  LoadResult result_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

LoadLimit LimitFrom(std::optional<absl::Duration> duration, int64_t requests,
                    absl::Duration default_duration) {
  const absl::Duration otherwise = requests > 0 ? absl::InfiniteDuration() : default_duration;
  return {.duration = duration.value_or(otherwise), .requests = requests};
}

absl::Status MakeForwardCalls(AttentionClient* client, absl::Duration timeout, Workload* workload) {
  if (workload->direction() != LoadDirection::kBackward) return absl::OkStatus();
  for (int input = 0; input < workload->num_inputs(); ++input) {
    absl::StatusOr<AttendResult> result =
        client->Attend(workload->request(input), {.timeout = timeout});
    if (!result.ok()) return result.status();
    workload->SetForwardResult(input, *std::move(result));
  }
  return absl::OkStatus();
}

LoadResult RunLoad(AttentionClient* client, const Workload& workload, const Verifier* verifier,
                   const LoadOptions& options, const std::atomic<bool>& stop,
                   const std::function<void(const LoadProgress&)>& progress) {
  return Run(client, workload, verifier, options, stop).Execute(progress);
}

}  // namespace flashbias::client
