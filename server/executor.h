// Runs batches on one backend device, as many at once as it has slots.
//
// Thread-safety: all methods from any thread. Ownership: a running batch is owned here until the
// backend's completion callback has run, so that results nobody waits for any more are harmless.
// No callback of anyone else is called with mutex_ held.
#ifndef FLASHBIAS_SERVER_EXECUTOR_H_
#define FLASHBIAS_SERVER_EXECUTOR_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kernels/attention_backend.h"
#include "server/batch.h"
#include "server/batch_policy.h"
#include "server/clock.h"
#include "server/metrics.h"
#include "server/mutex.h"

namespace flashbias::server {

struct ExecutorLoad {
  BackendState state;
  int64_t work = 0;  // of the batches that run or are about to, estimated score elements
};

class Executor {
 public:
  using SlotFreed = absl::AnyInvocable<void() &&>;

  // The backend, the clock and the metrics must outlive the executor.
  Executor(AttentionBackend* backend, const Clock* clock, Metrics* metrics);
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;
  // Waits until nothing runs.
  ~Executor();

  ExecutorLoad load() const ABSL_LOCKS_EXCLUDED(mutex_);

  // What the backend says.
  bool healthy() const { return backend_->health().ok(); }
  absl::Status Admit(const AttentionProblem& problem) const { return backend_->Admit(problem); }
  std::unique_ptr<UploadAhead> StartUpload(const HostBlock& inputs) const {
    return backend_->StartUpload(inputs);
  }

  // Takes a slot for a batch of so much work that Run is about to start. REQUIRES: load() has a
  // free slot; only one thread at a time asks and claims.
  void Claim(int64_t work) ABSL_LOCKS_EXCLUDED(mutex_);

  // Starts the batch in the slot claimed for it and returns. When it ends the slot is free first,
  // then `slot_freed` is called, then every request is finished: with its result, or, where the
  // backend failed, with INTERNAL, or RESOURCE_EXHAUSTED where the backend said that.
  void Run(std::unique_ptr<Batch> batch, SlotFreed slot_freed) ABSL_LOCKS_EXCLUDED(mutex_);

  // Finishes the requests of all batches that run now or start later with `status`; their results
  // are discarded.
  void Abandon(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);

  // Whether by `deadline` every batch that was started has ended and all of its requests are
  // finished.
  bool WaitUntilIdle(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void OnDone(Batch* running, absl::Time start, const absl::Status& status, SlotFreed slot_freed)
      ABSL_LOCKS_EXCLUDED(mutex_);
  bool IdleLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return claims_ == 0 && running_.empty() && finishing_ == 0;
  }

  // Constant after construction.
  AttentionBackend* const backend_;
  const Clock* const clock_;
  Metrics* const metrics_;
  const int slots_;

  mutable Mutex mutex_;
  absl::Status abandoned_ ABSL_GUARDED_BY(mutex_);  // what Abandon said
  // Slots whose batch has not come yet, and its work.
  int claims_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t claimed_work_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::unique_ptr<Batch>> running_ ABSL_GUARDED_BY(mutex_);
  // Batches whose slot is free again but whose requests are still being finished.
  int finishing_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_EXECUTOR_H_
