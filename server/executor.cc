#include "server/executor.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/log.h"

namespace flashbias::server {

namespace {

using Completions = std::vector<std::shared_ptr<Completion>>;

Completions CompletionsOf(const Batch& batch) {
  Completions completions;
  for (const auto& request : batch.requests()) completions.push_back(request->completion());
  return completions;
}

}  // namespace

Executor::Executor(AttentionBackend* backend, const Clock* clock, Metrics* metrics)
    : backend_(backend),
      clock_(clock),
      metrics_(metrics),
      slots_(std::max(1, backend->info().max_concurrent_runs)) {}

Executor::~Executor() { WaitUntilIdle(absl::InfiniteFuture()); }

ExecutorLoad Executor::load() const {
  MutexLock lock(&mutex_);
  ExecutorLoad load;
  load.state = {.slots = slots_,
                .free_slots = slots_ - claims_ - static_cast<int>(running_.size())};
  load.work = claimed_work_;
  for (const auto& batch : running_) load.work += batch->work();
  return load;
}

void Executor::Claim(int64_t work) {
  MutexLock lock(&mutex_);
  ++claims_;
  claimed_work_ += work;
  assert(claims_ + static_cast<int>(running_.size()) <= slots_);
}

void Executor::Run(std::unique_ptr<Batch> batch, SlotFreed slot_freed) {
  Batch* const running = batch.get();
  metrics_->BatchStarted(running->num_requests(), running->work(), running->tokens());
  Completions completions;
  absl::Status abandoned;
  {
    MutexLock lock(&mutex_);
    assert(claims_ > 0);
    --claims_;
    claimed_work_ -= running->work();
    running_.push_back(std::move(batch));
    if (!abandoned_.ok()) completions = CompletionsOf(*running);
    abandoned = abandoned_;
  }
  for (const auto& completion : completions) completion->Finish({.status = abandoned});
  const absl::Time start = clock_->Now();
  backend_->Run(
      running->problems(), running->stats(),
      [this, running, start, freed = std::move(slot_freed)](const absl::Status& status) mutable {
        OnDone(running, start, status, std::move(freed));
      });
}

void Executor::OnDone(Batch* running, absl::Time start, const absl::Status& status,
                      SlotFreed slot_freed) {
  const absl::Time end = clock_->Now();
  std::unique_ptr<Batch> batch;
  {
    MutexLock lock(&mutex_);
    const auto at = std::find_if(running_.begin(), running_.end(),
                                 [&](const auto& other) { return other.get() == running; });
    assert(at != running_.end());
    batch = std::move(*at);
    running_.erase(at);
    ++finishing_;
  }
  // The device gets its next batch before this thread spends time on answers.
  std::move(slot_freed)();

  absl::Status answer;
  if (!status.ok()) {
    answer = absl::IsResourceExhausted(status)
                 ? status
                 : absl::InternalError(absl::StrCat("the backend failed: ", status.message()));
    Log(LogLevel::kError, "batch failed",
        {{"status", status.ToString()}, {"requests", batch->num_requests()}});
  }
  Batch::Finish(std::move(batch), answer, start, end);

  MutexLock lock(&mutex_);
  --finishing_;
  mutex_.NotifyWaiters();
}

void Executor::Abandon(const absl::Status& status) {
  Completions completions;
  {
    MutexLock lock(&mutex_);
    abandoned_ = status;
    for (const auto& batch : running_) {
      const Completions more = CompletionsOf(*batch);
      completions.insert(completions.end(), more.begin(), more.end());
    }
  }
  for (const auto& completion : completions) completion->Finish({.status = status});
}

bool Executor::WaitUntilIdle(absl::Time deadline) {
  MutexLock lock(&mutex_);
  return mutex_.Await([this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return IdleLocked(); },
                      deadline);
}

}  // namespace flashbias::server
