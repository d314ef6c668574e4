#include "client/retrying_call.h"

#include <optional>
#include <string>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/wire_codec.h"

namespace flashbias::client {
namespace {

constexpr absl::Duration kMemoryPollInterval = absl::Milliseconds(1);

absl::Status CancelledByCaller() { return absl::CancelledError("cancelled by the caller"); }

Pushback PushbackOf(const grpc::ClientContext& context) {
  const auto& trailers = context.GetServerTrailingMetadata();
  const auto it = trailers.find("grpc-retry-pushback-ms");
  if (it == trailers.end()) return {};
  return ParsePushback(std::string(it->second.data(), it->second.size()));
}

}  // namespace

RetryingCall::RetryingCall(ChannelPool* pool, const RetryPolicy& retry, absl::Time deadline,
                           StartRpc start_rpc, MemoryIsFree memory_is_free, Done done,
                           MayRetry may_retry)
    : pool_(pool),
      retry_(retry),
      deadline_(deadline),
      start_rpc_(std::move(start_rpc)),
      memory_is_free_(std::move(memory_is_free)),
      may_retry_(std::move(may_retry)),
      done_(std::move(done)) {}

void RetryingCall::Start() { StartAttempt(); }

// gRPC may run a callback on the thread that cancels, so both cancellations happen outside mutex_.
void RetryingCall::Cancel() {
  std::shared_ptr<grpc::ClientContext> context;
  std::shared_ptr<grpc::Alarm> alarm;
  {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
    context = context_;
    alarm = alarm_;
  }
  if (context != nullptr) context->TryCancel();
  if (alarm != nullptr) alarm->Cancel();
}

// A context holds the channel, an alarm holds the library. Whoever lets the last of these go joins
// gRPC's threads, so a thread of gRPC must hold neither once `done` lets the client be destroyed:
// both are dropped as soon as they have served, always before Finish.

void RetryingCall::StartAttempt() {
  auto owned_context = std::make_shared<grpc::ClientContext>();
  grpc::ClientContext* const context = owned_context.get();
  if (deadline_ != absl::InfiniteFuture()) context->set_deadline(absl::ToChronoTime(deadline_));
  bool cancelled = false;
  {
    std::shared_ptr<grpc::Alarm> fired;
    absl::MutexLock lock(&mutex_);
    fired.swap(alarm_);
    cancelled = cancelled_;
    if (!cancelled) context_ = std::move(owned_context);
  }
  if (cancelled) {
    owned_context.reset();
    Finish(CancelledByCaller());
    return;
  }
  ++attempt_;
  lease_ = attempt_ == 1 ? pool_->Acquire() : pool_->Acquire(lease_.index());
  // A Cancel from here on finds the context: gRPC remembers it even before the attempt starts.
  start_rpc_(lease_.connection(), context, [self = shared_from_this()](const grpc::Status& status) {
    self->OnAttemptDone(status);
  });
}

void RetryingCall::OnAttemptDone(const grpc::Status& grpc_status) {
  lease_.Release();
  absl::Status status = ToStatus(grpc_status);
  bool cancelled = false;
  std::shared_ptr<grpc::ClientContext> context;
  {
    absl::MutexLock lock(&mutex_);
    cancelled = cancelled_;
    context.swap(context_);
  }
  const Pushback pushback = status.ok() ? Pushback{} : PushbackOf(*context);
  context.reset();
  if (status.ok()) {
    Finish(std::move(status));
    return;
  }
  if (cancelled) {
    Finish(CancelledByCaller());
    return;
  }
  // Not the caller then: gRPC's servers end calls so that came while they shut down.
  if (absl::IsCancelled(status)) {
    status = absl::UnavailableError(
        absl::StrCat("the server ended the call: ", absl::string_view(status.message())));
  }
  if (may_retry_ != nullptr && !may_retry_()) {
    Finish(std::move(status));
    return;
  }
  absl::BitGen random;
  const std::optional<absl::Duration> wait = WaitBeforeRetry(
      retry_, attempt_, status, pushback, absl::Now(), deadline_, absl::Uniform(random, 0.0, 1.0));
  if (wait.has_value()) {
    WaitThenStartAttempt(*wait);
  } else {
    Finish(std::move(status));
  }
}

void RetryingCall::WaitThenStartAttempt(absl::Duration wait) {
  bool cancelled = false;
  {
    absl::MutexLock lock(&mutex_);
    cancelled = cancelled_;
    if (!cancelled) {
      // Only alarm_ holds the alarm, and setting it is this thread's last act, so that nothing of
      // it is left here when the call ends elsewhere. gRPC runs the function on a thread of its
      // own, where it waits for mutex_; with false when cancelled, which StartAttempt sees for
      // itself. The reference is moved out because the alarm keeps its function, and alarm_ keeps
      // the alarm.
      alarm_ = std::make_shared<grpc::Alarm>();
      alarm_->Set(absl::ToChronoTime(absl::Now() + wait),
                  [self = shared_from_this()](bool) mutable {
                    const auto call = std::move(self);
                    call->StartAttempt();
                  });
    }
  }
  if (cancelled) Finish(CancelledByCaller());
}

void RetryingCall::Finish(absl::Status status) {
  if (memory_is_free_()) {
    std::move(done_)(std::move(status));
    return;
  }
  final_status_ = std::move(status);
  WaitThenFinish();
}

// By looking again and again: whoever lets the last slice go is deep inside the transport, where
// nothing of a caller's may run. The alarm is handled as in WaitThenStartAttempt.
void RetryingCall::WaitThenFinish() {
  absl::MutexLock lock(&mutex_);
  alarm_ = std::make_shared<grpc::Alarm>();
  alarm_->Set(absl::ToChronoTime(absl::Now() + kMemoryPollInterval),
              [self = shared_from_this()](bool) mutable {
                const auto call = std::move(self);
                {
                  std::shared_ptr<grpc::Alarm> fired;
                  absl::MutexLock fired_lock(&call->mutex_);
                  fired.swap(call->alarm_);
                }
                call->Finish(std::move(call->final_status_));
              });
}

}  // namespace flashbias::client
