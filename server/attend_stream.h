// Calls to AttendStream and AttendBackwardStream: tensors arrive in chunks, each copied straight to
// where the backend reads it; the answer leaves in chunks that refer to where the backend wrote it.
//
//   header -> memory for everything is reserved -> chunks -> queue -> batch -> header, chunks
//
// Where the backend can, chunks go on to the device while the rest arrives
// (kernels/upload_ahead.h).
//
// Every call is finished exactly once and at once when its caller goes away, whatever it is doing:
// gRPC's shutdown waits for ever for a callback call that is not. What a call holds goes when gRPC
// has let go of the last message, or, where its batch runs, with the batch.
//
// Thread-safety: all methods from any thread. What the pointers point to must outlive the object,
// and the object every call (WaitUntilIdle).
#ifndef FLASHBIAS_SERVER_ATTEND_STREAM_H_
#define FLASHBIAS_SERVER_ATTEND_STREAM_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <set>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "kernels/attention_problem.h"
#include "kernels/host_memory.h"
#include "server/attend_validation.h"
#include "server/clock.h"
#include "server/dispatcher.h"
#include "server/metrics.h"
#include "server/mutex.h"
#include "server/scheduler.h"
#include "server/stream_budget.h"
#include "wire/copy_pool.h"

namespace flashbias::server {

class AttendStreams {
 public:
  using Reactor = grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>;

  AttendStreams(const AttendLimits& limits, HostAllocator* host_allocator, const Clock* clock,
                Scheduler* scheduler, const Dispatcher* dispatcher, Metrics* metrics,
                wire::CopyPool* copy_pool);
  AttendStreams(const AttendStreams&) = delete;
  AttendStreams& operator=(const AttendStreams&) = delete;

  // A new call; gRPC owns it in effect.
  Reactor* Begin(Direction direction, grpc::CallbackServerContext* context)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Finishes with UNAVAILABLE every call whose data has not all come. For a scheduler that drains.
  void RefuseIncomplete() ABSL_LOCKS_EXCLUDED(mutex_);

  // Whether by `deadline` gRPC is done with every call.
  bool WaitUntilIdle(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  class Call;

  void Remove(std::unique_ptr<Call> call) ABSL_LOCKS_EXCLUDED(mutex_);

  // Constant after construction.
  const AttendLimits limits_;
  HostAllocator* const host_allocator_;
  const Clock* const clock_;
  Scheduler* const scheduler_;
  const Dispatcher* const dispatcher_;
  Metrics* const metrics_;
  wire::CopyPool* const copy_pool_;
  const std::shared_ptr<StreamBudget> budget_;

  Mutex mutex_;
  std::set<Call*> calls_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_ATTEND_STREAM_H_
