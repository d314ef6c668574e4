// Spreads batches over the backends of this process: one executor a device.
//
// A batch goes to the healthy device with the least work in flight that has a free slot. A device
// that has turned unhealthy gets no more, unless none is left: then batches go on to it and fail at
// once, so that every request is answered.
//
// Thread-safety: as Executor; state and Run look at the executors one after the other.
#ifndef FLASHBIAS_SERVER_DISPATCHER_H_
#define FLASHBIAS_SERVER_DISPATCHER_H_

#include <atomic>
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

  // The backends (at least one), the clock and the metrics must outlive the dispatcher. `none_left`
  // is called once, on a backend's thread and with no mutex held, when a batch has ended and no
  // device is healthy any more, before the requests of that batch are answered.
  Dispatcher(absl::Span<AttentionBackend* const> backends, const Clock* clock, Metrics* metrics,
             NoneLeft none_left = nullptr);
  Dispatcher(const Dispatcher&) = delete;
  Dispatcher& operator=(const Dispatcher&) = delete;

  // That of the device which the next batch goes to.
  BackendState state() const;

  // As Executor::Run. REQUIRES: state() had a free slot; only one thread starts batches.
  void Run(std::unique_ptr<Batch> batch, Executor::SlotFreed slot_freed);

  // OK where every healthy device could run the problem, else what one of them says against it.
  absl::Status Admit(const AttentionProblem& problem) const;

  // To the device that a batch would go to now, which is a guess: where the request's batch goes to
  // another one, that copies its inputs itself. Null: as AttentionBackend::StartUpload.
  std::unique_ptr<UploadAhead> StartUpload(const HostBlock& inputs) const;

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
