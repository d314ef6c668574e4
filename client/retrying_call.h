// One call with its attempts: starts them, waits between them without holding a thread, and can be
// cancelled at any moment.
//
// Thread-safety: thread-safe. Ownership: keeps itself alive from Start until `done` has returned.
#ifndef FLASHBIAS_CLIENT_RETRYING_CALL_H_
#define FLASHBIAS_CLIENT_RETRYING_CALL_H_

#include <functional>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/channel_pool.h"
#include "client/retry_policy.h"
#include "grpcpp/alarm.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/status.h"

namespace flashbias::client {

class RetryingCall : public std::enable_shared_from_this<RetryingCall> {
 public:
  // Starts one attempt through gRPC's callback API; called once per attempt.
  using StartRpc =
      std::function<void(const ChannelPool::Connection& connection, grpc::ClientContext* context,
                         std::function<void(grpc::Status)> on_done)>;
  // Whether nothing of the call's memory is in the transport's hands; `done` waits for it. Called
  // when no attempt is under way, perhaps often.
  using MemoryIsFree = std::function<bool()>;
  // Whether the attempt that just failed may be made again, if the policy says so too.
  using MayRetry = std::function<bool()>;
  // Gets the status of the last attempt; called once, on a thread of gRPC.
  using Done = absl::AnyInvocable<void(absl::Status) &&>;

  // `pool` must live until `done` has been called. `may_retry` null: always.
  RetryingCall(ChannelPool* pool, const RetryPolicy& retry, absl::Time deadline, StartRpc start_rpc,
               MemoryIsFree memory_is_free, Done done, MayRetry may_retry = nullptr);

  // To be called once.
  void Start();
  // Idempotent; before Start or after the end it is harmless.
  void Cancel() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void StartAttempt() ABSL_LOCKS_EXCLUDED(mutex_);
  void OnAttemptDone(const grpc::Status& grpc_status) ABSL_LOCKS_EXCLUDED(mutex_);
  void WaitThenStartAttempt(absl::Duration wait) ABSL_LOCKS_EXCLUDED(mutex_);
  void Finish(absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);
  void WaitThenFinish() ABSL_LOCKS_EXCLUDED(mutex_);

  ChannelPool* const pool_;
  const RetryPolicy retry_;
  const absl::Time deadline_;
  const StartRpc start_rpc_;
  const MemoryIsFree memory_is_free_;
  const MayRetry may_retry_;

  // Touched by one attempt after the other, never by two threads at once.
  Done done_;
  int attempt_ = 0;
  ChannelPool::Lease lease_;
  absl::Status final_status_;  // while `done` waits for memory

  absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  // Null unless an attempt is in flight.
  std::shared_ptr<grpc::ClientContext> context_ ABSL_GUARDED_BY(mutex_);
  // Null unless a wait is under way; set for as long as it is here.
  std::shared_ptr<grpc::Alarm> alarm_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_RETRYING_CALL_H_
