// The bounded queue, and what leaves it when.
//
// Requests wait first in, first out in groups that could share a batch (server/batch.h); the group
// with the oldest request goes first. The core is a state machine: Poll(now) does everything that
// is due at `now` and says when to come again. SchedulerThread drives it in production, tests by
// hand. With start_at_once, whoever enqueues a request does what Poll does right away: waking
// another thread takes longer than starting a small batch.
//
// A request leaves the queue by exactly one of: a batch, its deadline, Cancel, Shutdown. Requests
// whose deadline passed never reach the backend.
//
// Thread-safety: all methods from any thread. No callback of a request is
// called with mutex_ held. Lock order: Scheduler::mutex_ before Executor::mutex_.
#ifndef FLASHBIAS_SERVER_SCHEDULER_H_
#define FLASHBIAS_SERVER_SCHEDULER_H_

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/batch.h"
#include "server/batch_policy.h"
#include "server/clock.h"
#include "server/dispatcher.h"
#include "server/metrics.h"
#include "server/mutex.h"
#include "server/pending_request.h"

namespace flashbias::server {

struct SchedulerOptions {
  BatchLimits batch = {};
  // Requests that may wait; at least 1.
  int64_t max_queue_requests = 0;
  // Memory that waiting requests may hold; at least 1. A request larger than this is still taken
  // when nothing else waits, so that every legal request can be served.
  int64_t max_queue_bytes = 0;
  // Whether Enqueue starts what is due; else only Poll does.
  bool start_at_once = false;
};

// INVALID_ARGUMENT naming the option, its value and what is accepted.
absl::Status Validate(const SchedulerOptions& options);

// Names an enqueued request for Cancel. Keeps its completion alive, not its tensors.
struct Ticket {
  uint64_t id = 0;  // 0: was not accepted
  std::shared_ptr<Completion> completion;
};

class Scheduler {
 public:
  // INVALID_ARGUMENT where an option is out of range. What the pointers point to must outlive the
  // scheduler.
  static absl::StatusOr<std::unique_ptr<Scheduler>> Create(const SchedulerOptions& options,
                                                           const Clock* clock,
                                                           Dispatcher* dispatcher,
                                                           Metrics* metrics);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;
  // Shutdown, then waits for what runs.
  ~Scheduler();

  // Takes the request over. It is finished at once where it cannot be accepted: UNAVAILABLE when
  // draining, DEADLINE_EXCEEDED, or RESOURCE_EXHAUSTED: with Outcome::retry_after where the queue
  // is full, without where no device can ever run it.
  Ticket Enqueue(std::unique_ptr<PendingRequest> request) ABSL_LOCKS_EXCLUDED(mutex_);

  // The outcome that Enqueue would give a request of `bytes` now for want of room or because of
  // draining; nullopt: it would be accepted. Lets a caller refuse before it decodes.
  std::optional<Outcome> Refusal(int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);

  // Finishes the request with `status` and, where it still waits, frees its place in the queue;
  // where it runs, its result is discarded. Nothing happens to one that is finished already.
  // Whoever finishes a request counts it: DEADLINE_EXCEEDED of one that does not run yet as
  // rejected{deadline}, everything else as cancelled.
  void Cancel(const Ticket& ticket, absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);

  // Drops what expired, starts every batch that is due and has a slot; returns when to call again
  // unless AwaitChange returns before. Several threads may be at it: the queue is looked at one
  // after the other, batches are started side by side.
  absl::Time Poll(absl::Time now) ABSL_LOCKS_EXCLUDED(mutex_);

  // Returns when something happened since the last Poll that may make another one useful, at the
  // latest at `until`, what Poll returned, in real time.
  void AwaitChange(absl::Time until) ABSL_LOCKS_EXCLUDED(mutex_);
  // Makes the next or current AwaitChange return.
  void Wake() ABSL_LOCKS_EXCLUDED(mutex_);

  // Refuses new requests from now on; accepted ones go on.
  void Drain() ABSL_LOCKS_EXCLUDED(mutex_);
  // Whether by `deadline` (real time) everything accepted is finished.
  bool WaitUntilDrained(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_);
  // Drain, and finishes what waits with UNAVAILABLE.
  void Shutdown() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Waiting {
    uint64_t id;
    std::unique_ptr<PendingRequest> request;
  };
  using Queue = std::list<Waiting>;

  struct Group {
    Queue queue;  // never empty
    int64_t work = 0;
    int64_t bytes = 0;
  };
  struct Place {
    BatchKey key;
    Queue::iterator at;
  };

  Scheduler(const SchedulerOptions& options, const Clock* clock, Dispatcher* dispatcher,
            Metrics* metrics);

  // What is to be done about the queue next.
  struct Step {
    std::vector<std::unique_ptr<PendingRequest>> expired;
    std::unique_ptr<Batch> batch;  // null: nothing to start
    std::optional<Dispatcher::Claim> claim;
  };
  // Poll, but for at most so many batches, so that a caller with other duties gets away from a
  // queue that others keep filling.
  absl::Time PollFor(absl::Time now, int max_batches) ABSL_LOCKS_EXCLUDED(mutex_);
  void OnSlotFreed() ABSL_LOCKS_EXCLUDED(mutex_);

  std::optional<Outcome> RefusalLocked(int64_t bytes, absl::Time now) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Takes a request out of every structure below.
  std::unique_ptr<PendingRequest> RemoveLocked(uint64_t id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::vector<std::unique_ptr<PendingRequest>> TakeExpiredLocked(absl::Time now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Takes the batch to start now and what has expired out of the queue; sets next_poll_ where there
  // is no batch.
  Step NextStepLocked(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::unique_ptr<Batch> CutLocked(const BatchKey& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // To be called after every change of the queue: gauges and waiters.
  void QueueChangedLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Wakes who waits for what may have come true.
  void NotifyLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whether AwaitChange has waited long enough.
  bool PollIsDueLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return woken_ || changed_ || next_poll_ < waiting_until_;
  }

  // Constant after construction.
  const SchedulerOptions options_;
  const Clock* const clock_;
  Dispatcher* const dispatcher_;
  Metrics* const metrics_;

  Mutex mutex_;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;    // by Wake, until AwaitChange returns
  bool changed_ ABSL_GUARDED_BY(mutex_) = false;  // since the last look at the queue
  absl::Time next_poll_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  absl::Time waiting_until_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();  // in AwaitChange
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  int64_t queue_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  // Batches and expired requests that left the queue and have not reached the executor or their
  // callers yet.
  int dispatching_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<BatchKey, Group> groups_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<uint64_t, Place> places_ ABSL_GUARDED_BY(mutex_);
  // Of the waiting requests that have one, earliest first.
  std::set<std::pair<absl::Time, uint64_t>> deadlines_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_SCHEDULER_H_
