#include "server/dispatcher.h"

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <tuple>
#include <utility>

namespace flashbias::server {
namespace {

// What speaks against giving an executor the next batch, the most important first.
struct Objections {
  explicit Objections(const Executor& executor) : Objections(executor.load(), executor.healthy()) {}
  Objections(const ExecutorLoad& load, bool healthy)
      : unhealthy(!healthy), full(load.state.free_slots <= 0), work(load.work) {}

  bool unhealthy;
  bool full;
  int64_t work;
};

// The executor with the least objections, the first of several; `key` says how they are weighed.
template <typename Key>
Executor& Best(const std::vector<std::unique_ptr<Executor>>& executors, const Key& key) {
  size_t best = 0;
  auto least = key(Objections(*executors[0]));
  for (size_t n = 1; n < executors.size(); ++n) {
    const auto next = key(Objections(*executors[n]));
    if (next < least) {
      best = n;
      least = next;
    }
  }
  return *executors[best];
}

}  // namespace

Dispatcher::Dispatcher(absl::Span<AttentionBackend* const> backends, const Clock* clock,
                       Metrics* metrics, NoneLeft none_left)
    : none_left_(std::move(none_left)) {
  assert(!backends.empty());
  for (AttentionBackend* const backend : backends) {
    executors_.push_back(std::make_unique<Executor>(backend, clock, metrics));
  }
}

BackendState Dispatcher::state(int device) const {
  if (device != kAnyDevice) return executors_[static_cast<size_t>(device)]->load().state;
  return Best(executors_,
              [](const Objections& o) { return std::tuple(o.unhealthy, o.full, o.work); })
      .load()
      .state;
}

Dispatcher::Claim Dispatcher::ClaimSlot(const Batch& batch) {
  // A device may have failed since state() was asked. Slots only come free meanwhile, and the batch
  // must go somewhere: a free slot weighs more than health.
  const int device = batch.problems()[0].device;
  Executor& chosen = device != kAnyDevice ? *executors_[static_cast<size_t>(device)]
                                          : Best(executors_, [](const Objections& o) {
                                              return std::tuple(o.full, o.unhealthy, o.work);
                                            });
  chosen.Claim(batch.work());
  return Claim(&chosen);
}

void Dispatcher::Run(Claim claim, std::unique_ptr<Batch> batch, Executor::SlotFreed slot_freed) {
  claim.executor_->Run(std::move(batch), [this, freed = std::move(slot_freed)]() mutable {
    if (none_left_ != nullptr && !any_healthy() && !none_left_called_.exchange(true)) none_left_();
    std::move(freed)();
  });
}

absl::Status Dispatcher::Admit(const AttentionProblem& problem) const {
  for (size_t n = 0; n < executors_.size(); ++n) {
    const bool may_run = problem.device == kAnyDevice || problem.device == static_cast<int>(n);
    if (!may_run || !executors_[n]->healthy()) continue;
    absl::Status status = executors_[n]->Admit(problem);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

bool Dispatcher::any_healthy() const {
  return std::any_of(executors_.begin(), executors_.end(),
                     [](const auto& executor) { return executor->healthy(); });
}

void Dispatcher::Abandon(const absl::Status& status) {
  for (const auto& executor : executors_) executor->Abandon(status);
}

bool Dispatcher::WaitUntilIdle(absl::Time deadline) {
  return std::all_of(executors_.begin(), executors_.end(),
                     [&](const auto& executor) { return executor->WaitUntilIdle(deadline); });
}

}  // namespace flashbias::server
