// Spreads batches over the backends of this process: one executor a device.
//
// A batch goes to the healthy device with the least work in flight that has a free slot. A device
// that has turned unhealthy gets no more, unless none is left: then batches go on to it and fail at
// once, so that every request is answered. Requests whose tensors lie in a device's memory go to
// that device, whatever its load and health.
//
// Thread-safety: as Executor; state and Run look at the executors one after the other.
#ifndef FLASHBIAS_SERVER_DISPATCHER_H_
#define FLASHBIAS_SERVER_DISPATCHER_H_

#include <atomic>
#include <cstddef>
#include <memory>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kernels/attention_backend.h"
#include "server/batch.h"
#include "server/batch_policy.h"
#include "server/clock.h"
#include "server/executor.h"
#include "server/metrics.h"

namespace flashbias::server {

class Dispatcher {
 public:
  using NoneLeft = absl::AnyInvocable<void()>;
  // A slot that waits for the batch it was taken for, which must come.
  class Claim {
   private:
    friend class Dispatcher;
    explicit Claim(Executor* executor) : executor_(executor) {}
    Executor* executor_;
  };

  // The backends (at least one), the clock and the metrics must outlive the dispatcher. `none_left`
  // is called once, on a backend's thread and with no mutex held, when a batch has ended and no
  // device is healthy any more, before the requests of that batch are answered.
  Dispatcher(absl::Span<AttentionBackend* const> backends, const Clock* clock, Metrics* metrics,
             NoneLeft none_left = nullptr);
  Dispatcher(const Dispatcher&) = delete;
  Dispatcher& operator=(const Dispatcher&) = delete;

  // That of the device which the next batch with this BatchKey::device goes to.
  BackendState state(int device = kAnyDevice) const;

  // Takes a slot for the batch, on the device that its problems name. REQUIRES: state() of that had
  // a free slot; only one thread at a time asks and claims.
  Claim ClaimSlot(const Batch& batch);

  // As Executor::Run, in the slot claimed for the batch.
  void Run(Claim claim, std::unique_ptr<Batch> batch, Executor::SlotFreed slot_freed);

  // OK where every healthy device that may run the problem could, else what one of them says
  // against it.
  absl::Status Admit(const AttentionProblem& problem) const;

  size_t num_devices() const { return executors_.size(); }
  bool any_healthy() const;

  // As Executor's, for all devices.
  void Abandon(const absl::Status& status);
  bool WaitUntilIdle(absl::Time deadline);

 private:
  // Constant after construction.
  std::vector<std::unique_ptr<Executor>> executors_;
  NoneLeft none_left_;  // called by whoever sets none_left_called_

  std::atomic<bool> none_left_called_ = false;
};

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_DISPATCHER_H_
