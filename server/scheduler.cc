#include "server/scheduler.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace flashbias::server {
namespace {

// Bounds of the retry hint: below, retries would only add load; above, a caller would wait longer
// than any queue of ours lasts.
constexpr absl::Duration kMinRetryAfter = absl::Milliseconds(10);
constexpr absl::Duration kMaxRetryAfter = absl::Seconds(10);

// With kMaxRequestWork these keep every sum of the queue far below INT64_MAX.
constexpr int64_t kMaxQueueRequests = int64_t{1} << 20;
constexpr int64_t kMaxQueueBytes = int64_t{1} << 50;

// Batches that Enqueue starts before it leaves the rest to others.
constexpr int kMaxBatchesAtOnce = 4;

absl::Status Expired(const char* where) {
  return absl::DeadlineExceededError(absl::StrCat("the deadline passed ", where));
}

absl::Status CheckRange(const char* name, int64_t value, int64_t max) {
  if (value >= 1 && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, "; accepted: 1 to ", max));
}

}  // namespace

absl::Status Validate(const SchedulerOptions& options) {
  for (const absl::Status& status : {
           CheckRange("max_queue_requests", options.max_queue_requests, kMaxQueueRequests),
           CheckRange("max_queue_bytes", options.max_queue_bytes, kMaxQueueBytes),
           CheckRange("max_batch_work", options.batch.max_work, kMaxRequestWork),
           CheckRange("max_batch_bytes", options.batch.max_bytes, kMaxQueueBytes),
           CheckRange("max_batch_requests", options.batch.max_requests, kMaxQueueRequests),
           CheckRange("worthwhile_batch_bytes", options.batch.worthwhile_bytes,
                      std::numeric_limits<int64_t>::max()),
       }) {
    if (!status.ok()) return status;
  }
  if (options.batch.max_queue_delay < absl::ZeroDuration() ||
      options.batch.max_queue_delay == absl::InfiniteDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_queue_delay is ", absl::FormatDuration(options.batch.max_queue_delay),
                     "; accepted: 0 or a finite positive duration"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Scheduler>> Scheduler::Create(const SchedulerOptions& options,
                                                             const Clock* clock,
                                                             Dispatcher* dispatcher,
                                                             Metrics* metrics) {
  const absl::Status status = Validate(options);
  if (!status.ok()) return status;
  return std::unique_ptr<Scheduler>(new Scheduler(options, clock, dispatcher, metrics));
}

Scheduler::Scheduler(const SchedulerOptions& options, const Clock* clock, Dispatcher* dispatcher,
                     Metrics* metrics)
    : options_(options), clock_(clock), dispatcher_(dispatcher), metrics_(metrics) {}

Scheduler::~Scheduler() {
  Shutdown();
  // The slot-freed callbacks of running batches point here.
  dispatcher_->WaitUntilIdle(absl::InfiniteFuture());
}

Ticket Scheduler::Enqueue(std::unique_ptr<PendingRequest> request) {
  const absl::Time now = clock_->Now();
  Ticket ticket{.id = 0, .completion = request->completion()};
  const absl::Status admitted = dispatcher_->Admit(request->problem());
  std::optional<Outcome> refusal;
  bool accepted = false;
  {
    MutexLock lock(&mutex_);
    refusal = RefusalLocked(request->queue_bytes(), now);
    if (!refusal.has_value() && request->deadline() <= now) {
      metrics_->Rejected(RejectReason::kDeadline);
      refusal = Outcome{.status = Expired("before the request was queued")};
    }
    if (!refusal.has_value() && !admitted.ok()) {
      metrics_->Rejected(RejectReason::kMemory);
      refusal = Outcome{.status = admitted};
    }
    if (!refusal.has_value()) {
      ticket.id = next_id_++;
      request->set_enqueue_time(now);
      if (request->deadline() != absl::InfiniteFuture()) {
        deadlines_.emplace(request->deadline(), ticket.id);
      }
      BatchKey key = KeyOf(request->problem());
      // Of one device everything may run together.
      if (dispatcher_->num_devices() == 1) key.device = kAnyDevice;
      Group& group = groups_[key];
      group.work += request->work();
      group.bytes += request->bytes();
      queue_bytes_ += request->queue_bytes();
      group.queue.push_back({.id = ticket.id, .request = std::move(request)});
      places_.emplace(ticket.id, Place{.key = key, .at = std::prev(group.queue.end())});
      accepted = true;
      if (!options_.start_at_once) changed_ = true;  // else this thread looks itself
      QueueChangedLocked();
    }
  }
  if (refusal.has_value()) ticket.completion->Finish(*std::move(refusal));
  if (accepted && options_.start_at_once) PollFor(now, kMaxBatchesAtOnce);
  return ticket;
}

std::optional<Outcome> Scheduler::Refusal(int64_t bytes) {
  const absl::Time now = clock_->Now();
  MutexLock lock(&mutex_);
  return RefusalLocked(bytes, now);
}

std::optional<Outcome> Scheduler::RefusalLocked(int64_t bytes, absl::Time now) const {
  if (draining_) {
    metrics_->Rejected(RejectReason::kDraining);
    return Outcome{.status = absl::UnavailableError("the server is draining")};
  }
  const auto waiting = static_cast<int64_t>(places_.size());
  if (waiting == 0) return std::nullopt;
  std::string full;
  if (waiting >= options_.max_queue_requests) {
    full = absl::StrCat("the queue is full: ", waiting, " requests wait, the limit is ",
                        options_.max_queue_requests);
  } else if (bytes > 0 && bytes > options_.max_queue_bytes - queue_bytes_) {
    full =
        absl::StrCat("the queue is full: waiting requests hold ", queue_bytes_,
                     " bytes, this one needs ", bytes, ", the limit is ", options_.max_queue_bytes);
  } else {
    return std::nullopt;
  }
  metrics_->Rejected(RejectReason::kQueue);
  // What the oldest request has waited is about what the whole queue takes to move through.
  absl::Time oldest = now;
  for (const auto& [key, group] : groups_) {
    oldest = std::min(oldest, group.queue.front().request->enqueue_time());
  }
  return Outcome{.status = absl::ResourceExhaustedError(full),
                 .retry_after = std::clamp(now - oldest, kMinRetryAfter, kMaxRetryAfter)};
}

void Scheduler::Cancel(const Ticket& ticket, absl::Status status) {
  std::unique_ptr<PendingRequest> waiting;
  {
    MutexLock lock(&mutex_);
    waiting = RemoveLocked(ticket.id);
    if (waiting != nullptr) QueueChangedLocked();
  }
  const bool running = ticket.completion->running();
  const bool expired = absl::IsDeadlineExceeded(status);
  if (!ticket.completion->Finish({.status = std::move(status)})) return;
  if (running) {
    metrics_->Cancelled(CancelWhere::kRunning);
  } else if (expired) {
    metrics_->Rejected(RejectReason::kDeadline);  // as where the timer comes first
  } else {
    metrics_->Cancelled(CancelWhere::kQueue);
  }
}

absl::Time Scheduler::Poll(absl::Time now) { return PollFor(now, std::numeric_limits<int>::max()); }

absl::Time Scheduler::PollFor(absl::Time now, int max_batches) {
  for (int batches = 0;; ++batches) {
    Step step;
    {
      MutexLock lock(&mutex_);
      if (batches < max_batches) step = NextStepLocked(now);
      // What is left may be due as well, and this thread is busy for a while.
      changed_ = !places_.empty() && (batches == max_batches || step.batch != nullptr);
      QueueChangedLocked();
      if (step.batch == nullptr && step.expired.empty()) return next_poll_;
      dispatching_ += (step.batch != nullptr ? 1 : 0) + static_cast<int>(step.expired.size());
    }
    for (auto& request : step.expired) {
      if (PendingRequest::Fail(std::move(request), Expired("while the request was queued"))) {
        metrics_->Rejected(RejectReason::kDeadline);
      }
    }
    const bool starts = step.batch != nullptr;
    if (starts) {
      dispatcher_->Run(*step.claim, std::move(step.batch), [this] { OnSlotFreed(); });
      now = std::max(now, clock_->Now());
    }
    MutexLock lock(&mutex_);
    dispatching_ -= (starts ? 1 : 0) + static_cast<int>(step.expired.size());
    NotifyLocked();
  }
}

void Scheduler::AwaitChange(absl::Time until) {
  MutexLock lock(&mutex_);
  waiting_until_ = until;
  mutex_.Await([this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return PollIsDueLocked(); }, until);
  waiting_until_ = absl::InfinitePast();
  woken_ = false;
}

void Scheduler::OnSlotFreed() {
  MutexLock lock(&mutex_);
  if (places_.empty()) return;
  changed_ = true;
  NotifyLocked();
}

void Scheduler::Wake() {
  MutexLock lock(&mutex_);
  woken_ = true;
  NotifyLocked();
}

void Scheduler::Drain() {
  MutexLock lock(&mutex_);
  draining_ = true;
}

bool Scheduler::WaitUntilDrained(absl::Time deadline) {
  {
    MutexLock lock(&mutex_);
    const auto nothing_waits = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return places_.empty() && dispatching_ == 0;
    };
    if (!mutex_.Await(nothing_waits, deadline)) return false;
  }
  return dispatcher_->WaitUntilIdle(deadline);
}

void Scheduler::Shutdown() {
  std::vector<std::unique_ptr<PendingRequest>> waiting;
  {
    MutexLock lock(&mutex_);
    draining_ = true;
    while (!groups_.empty()) {
      waiting.push_back(RemoveLocked(groups_.begin()->second.queue.front().id));
    }
    QueueChangedLocked();
  }
  for (auto& request : waiting) {
    PendingRequest::Fail(std::move(request), absl::UnavailableError("the server is shutting down"));
  }
}

std::unique_ptr<PendingRequest> Scheduler::RemoveLocked(uint64_t id) {
  const auto place = places_.find(id);
  if (place == places_.end()) return nullptr;
  const auto group = groups_.find(place->second.key);
  std::unique_ptr<PendingRequest> request = std::move(place->second.at->request);
  group->second.queue.erase(place->second.at);
  places_.erase(place);
  deadlines_.erase({request->deadline(), id});
  queue_bytes_ -= request->queue_bytes();
  if (group->second.queue.empty()) {
    groups_.erase(group);
  } else {
    group->second.work -= request->work();
    group->second.bytes -= request->bytes();
  }
  return request;
}

std::vector<std::unique_ptr<PendingRequest>> Scheduler::TakeExpiredLocked(absl::Time now) {
  std::vector<std::unique_ptr<PendingRequest>> expired;
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    expired.push_back(RemoveLocked(deadlines_.begin()->second));
  }
  return expired;
}

Scheduler::Step Scheduler::NextStepLocked(absl::Time now) {
  Step step{.expired = TakeExpiredLocked(now), .batch = nullptr, .claim = std::nullopt};
  std::vector<std::pair<absl::Time, BatchKey>> by_age;
  by_age.reserve(groups_.size());
  for (const auto& [key, group] : groups_) {
    by_age.emplace_back(group.queue.front().request->enqueue_time(), key);
  }
  std::sort(by_age.begin(), by_age.end());

  absl::Time again = deadlines_.empty() ? absl::InfiniteFuture() : deadlines_.begin()->first;
  for (const auto& [oldest, key] : by_age) {
    const Group& group = groups_.at(key);
    const GroupSummary summary{.requests = static_cast<int64_t>(group.queue.size()),
                               .work = group.work,
                               .bytes = group.bytes,
                               .oldest_enqueue = oldest};
    const BatchDecision decision =
        DecideBatch(summary, dispatcher_->state(key.device), options_.batch, now);
    if (decision.cut) {
      step.batch = CutLocked(key);
      step.claim = dispatcher_->ClaimSlot(*step.batch);
      return step;
    }
    again = std::min(again, decision.wait_until);
  }
  next_poll_ = again;
  return step;
}

std::unique_ptr<Batch> Scheduler::CutLocked(const BatchKey& key) {
  const BatchLimits& limits = options_.batch;
  auto batch = std::make_unique<Batch>();
  for (auto group = groups_.find(key); group != groups_.end(); group = groups_.find(key)) {
    const Waiting& next = group->second.queue.front();
    const bool fits = batch->num_requests() < limits.max_requests &&
                      batch->work() + next.request->work() <= limits.max_work &&
                      batch->bytes() + next.request->bytes() <= limits.max_bytes;
    if (batch->num_requests() > 0 && !fits) break;
    next.request->completion()->set_running();
    batch->Add(RemoveLocked(next.id));
  }
  return batch;
}

void Scheduler::QueueChangedLocked() {
  metrics_->SetQueue(static_cast<int64_t>(places_.size()), queue_bytes_);
  NotifyLocked();
}

void Scheduler::NotifyLocked() {
  if (draining_ || PollIsDueLocked()) mutex_.NotifyWaiters();
}

}  // namespace flashbias::server
