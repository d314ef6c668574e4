#include "server/attend_stream.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/attend_call.h"
#include "server/attend_reader.h"
#include "server/codec.h"
#include "server/log.h"
#include "server/pending_request.h"
#include "wire/chunk.h"
#include "wire/chunk_assembler.h"
#include "wire/contract.h"

namespace flashbias::server {

// One call; deletes itself when gRPC is done with it.
//
// gRPC calls OnReadDone, OnWriteDone and OnCancel on any threads, OnDone when all of them have
// returned. What mutex_ does not guard is touched by one of them at a time: by OnReadDone while the
// request arrives (a read is always under way or being handled), by whoever completes the request,
// then by OnWriteDone (a write is always under way or being handled).
class AttendStreams::Call final : public Reactor {
 public:
  Call(AttendStreams* streams, Direction direction, grpc::CallbackServerContext* context)
      : streams_(streams),
        direction_(direction),
        context_(context),
        arrival_(streams->clock_->Now()) {
    streams_->metrics_->CallStarted();
  }

  void Begin() ABSL_LOCKS_EXCLUDED(mutex_) {
    // Under overload this spares the transfer. The scheduler has counted it.
    if (std::optional<Outcome> refusal = streams_->scheduler_->Refusal(0)) {
      return FinishUncounted(*refusal);
    }
    ReadNext();
  }

  void RefuseIncomplete() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    if (phase_ != Phase::kReceiving) return;
    rejected_ = RejectReason::kDraining;
    FinishLocked(absl::UnavailableError("the server is draining"));
  }

  void OnReadDone(bool ok) override {
    if (ok) {
      HandleMessage();
    } else {
      HandleEnd();
    }
    MutexLock lock(&mutex_);
    if (phase_ == Phase::kFinished) {
      // No answer will need it, and the end of the call may be far: gRPC tells the client first.
      request_ = ReservedAttend();
      message_.Clear();
    }
  }

  void OnWriteDone(bool ok) override {
    if (!ok) {
      MutexLock lock(&mutex_);
      if (phase_ == Phase::kSending) gone_ = CancelWhere::kSending;
      FinishLocked(GoneStatus());
      return;
    }
    WriteNext();
  }

  void OnCancel() override {
    Ticket ticket;
    {
      MutexLock lock(&mutex_);
      cancelled_ = true;
      if (phase_ == Phase::kWaiting) {
        ticket = ticket_;
      } else {
        if (phase_ == Phase::kReceiving) gone_ = CancelWhere::kReceiving;
        if (phase_ == Phase::kSending) gone_ = CancelWhere::kSending;
        FinishLocked(GoneStatus());
      }
    }
    // Without the lock: it calls Answer.
    if (ticket.completion != nullptr) streams_->scheduler_->Cancel(ticket, GoneStatus());
  }

  void OnDone() override {
    Count();
    streams_->Remove(std::unique_ptr<Call>(this));
  }

 private:
  enum class Phase {
    kReceiving,  // header and chunks
    kWaiting,    // for the scheduler and the backend
    kSending,    // the answer
    kFinished,   // Finish was called; nothing may be started any more
  };

  absl::Status GoneStatus() const {
    return DeadlinePassed(*context_, *streams_->clock_)
               ? absl::DeadlineExceededError("the deadline passed before the answer")
               : absl::CancelledError("the caller left");
  }

  // The first caller's status is the call's.
  void FinishLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (phase_ == Phase::kFinished) return;
    ended_in_ = phase_;
    phase_ = Phase::kFinished;
    status_ = status;
    Finish(ToGrpc(status));
  }

  // What somebody else has counted.
  void FinishUncounted(const Outcome& outcome) ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    if (phase_ == Phase::kFinished) return;
    if (outcome.retry_after.has_value()) AddRetryPushback(context_, *outcome.retry_after);
    FinishLocked(outcome.status);
  }

  void Refuse(const absl::Status& status, std::optional<absl::Duration> retry_after = {})
      ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    if (phase_ == Phase::kFinished) return;
    rejected_ = ReasonOf(status);
    if (retry_after.has_value()) AddRetryPushback(context_, *retry_after);
    FinishLocked(status);
  }

  void ReadNext() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    if (phase_ == Phase::kReceiving) StartRead(&message_);
  }

  void HandleMessage() ABSL_LOCKS_EXCLUDED(mutex_) {
    std::vector<grpc::Slice> slices;
    received_bytes_ += static_cast<int64_t>(message_.Length());
    if (message_.Length() > 0 && !message_.Dump(&slices).ok()) {
      return Refuse(absl::InternalError("the message's bytes cannot be had from the transport"));
    }
    message_.Clear();
    absl::StatusOr<StreamMessage> message = ReadAttendStreamRequest(direction_, slices);
    if (!message.ok()) return Refuse(message.status());
    if (!has_header_) {
      if (!message->header.has_value()) {
        return Refuse(absl::InvalidArgumentError(absl::StrCat(
            "the first message holds ", message->chunk.has_value() ? "a chunk" : "nothing",
            "; accepted: header")));
      }
      has_header_ = true;
      return HandleHeader(*std::move(message), std::move(slices));
    }
    if (!message->chunk.has_value()) {
      return Refuse(absl::InvalidArgumentError(
          absl::StrCat("a message after the first holds ",
                       message->header.has_value() ? "a header" : "nothing", "; accepted: chunk")));
    }
    const absl::Status added = assembler_.Add(*message->chunk, slices, streams_->copy_pool_);
    if (!added.ok()) return Refuse(added);
    slices.clear();
    if (request_.upload != nullptr) TellUpload(*message->chunk);
    ReadNext();
  }

  // The chunk is where it belongs.
  void TellUpload(const wire::Chunk& chunk) {
    for (const wire::IncomingTensor& input : request_.inputs) {
      if (input.number == chunk.tensor) {
        request_.upload->Written(input.to + chunk.offset, chunk.data.size);
      }
    }
  }

  void HandleHeader(StreamMessage message, std::vector<grpc::Slice> slices)
      ABSL_LOCKS_EXCLUDED(mutex_) {
    if (message.max_chunk_bytes < 0) {
      return Refuse(absl::InvalidArgumentError(
          absl::StrCat("max_chunk_bytes is ", message.max_chunk_bytes,
                       "; accepted: 0 (1 MiB) or a positive number of bytes")));
    }
    chunk_bytes_ = message.max_chunk_bytes == 0 ? wire::kChunkBytes : message.max_chunk_bytes;
    chunk_bytes_ = std::min({chunk_bytes_, wire::kMaxChunkBytes,
                             streams_->limits_.max_message_bytes - wire::kChunkOverheadBytes});
    absl::StatusOr<ParsedAttend> parsed =
        ParseAttendFields(*std::move(message.header), std::move(slices), streams_->limits_);
    if (!parsed.ok()) return Refuse(parsed.status());

    const int64_t bytes = parsed->valid.tensors.bytes();
    std::shared_ptr<void> held = streams_->budget_->Reserve(bytes);
    if (held == nullptr) {
      return Refuse(
          absl::ResourceExhaustedError(absl::StrCat("streams hold ", streams_->budget_->reserved(),
                                                    " bytes of host memory, this one needs ", bytes,
                                                    ", the limit is ", streams_->budget_->limit())),
          kMemoryRetryAfter);
    }
    absl::StatusOr<ReservedAttend> reserved = ReserveAttendRequest(
        *std::move(parsed), *streams_->host_allocator_, std::move(held),
        [this](const HostBlock& inputs) { return streams_->dispatcher_->StartUpload(inputs); });
    if (!reserved.ok()) {
      return Refuse(reserved.status(), absl::IsResourceExhausted(reserved.status())
                                           ? std::optional(kMemoryRetryAfter)
                                           : std::nullopt);
    }
    request_ = *std::move(reserved);
    assembler_ = wire::ChunkAssembler(request_.inputs);
    MutexLock lock(&mutex_);
    if (phase_ != Phase::kReceiving) return;
    context_->AddInitialMetadata(wire::kStreamAccepted, "1");
    StartSendInitialMetadata();
    StartRead(&message_);
  }

  // The caller has sent all, or is gone (then OnCancel has come or will).
  void HandleEnd() ABSL_LOCKS_EXCLUDED(mutex_) {
    const absl::Status complete =
        has_header_
            ? assembler_.CheckComplete()
            : absl::InvalidArgumentError(
                  "the stream ended before its first message; accepted: header, then chunks");
    if (!complete.ok()) return Refuse(complete);
    if (context_->IsCancelled()) {
      // It sent all, and then broke off instead of ending its stream.
      MutexLock lock(&mutex_);
      if (phase_ == Phase::kReceiving) gone_ = CancelWhere::kReceiving;
      return FinishLocked(GoneStatus());
    }
    const absl::Duration receive = streams_->clock_->Now() - arrival_;
    {
      MutexLock lock(&mutex_);
      if (phase_ != Phase::kReceiving) return;
      phase_ = Phase::kWaiting;
    }
    if (request_.upload != nullptr) std::exchange(request_.upload, nullptr)->AllWritten();
    streams_->metrics_->StageFinished(Stage::kReceive, receive);
    DecodedAttend decoded = std::move(request_.decoded);
    const Ticket ticket = streams_->scheduler_->Enqueue(std::make_unique<PendingRequest>(
        PendingRequest::Params{.problem = decoded.problem,
                               .storage = std::move(decoded.storage),
                               .bytes = decoded.bytes,
                               .memory_is_reserved = true,
                               .receive_duration = receive,
                               .deadline = absl::FromChrono(context_->deadline())},
        [this](Outcome outcome) { Answer(std::move(outcome)); }));
    {
      MutexLock lock(&mutex_);
      ticket_ = ticket;
      if (!cancelled_ || phase_ != Phase::kWaiting) return;
    }
    // OnCancel came before there was a ticket.
    streams_->scheduler_->Cancel(ticket, GoneStatus());
  }

  // Runs once, as the request's completion; the call may be gone when it returns.
  void Answer(Outcome outcome) ABSL_LOCKS_EXCLUDED(mutex_) {
    if (!outcome.status.ok()) return FinishUncounted(outcome);
    const absl::Duration send = streams_->clock_->Now() - outcome.batch_end;
    batch_end_ = outcome.batch_end;
    response_.emplace(outcome.problem, std::move(outcome.storage), TimingOf(outcome, send),
                      chunk_bytes_);
    outcome_ = std::move(outcome);
    {
      MutexLock lock(&mutex_);
      phase_ = Phase::kSending;
    }
    WriteNext();
  }

  void WriteNext() ABSL_LOCKS_EXCLUDED(mutex_) {
    std::optional<grpc::ByteBuffer> next = response_->Next();
    if (!next.has_value()) {
      send_duration_ = streams_->clock_->Now() - batch_end_;
      // What the transport still holds keeps itself alive.
      response_.reset();
    }
    MutexLock lock(&mutex_);
    if (phase_ != Phase::kSending) return;
    if (!next.has_value()) return FinishLocked(absl::OkStatus());
    sent_bytes_ += static_cast<int64_t>(next->Length());
    answer_ = *std::move(next);
    StartWrite(&answer_);
  }

  // When nothing can change any more.
  void Count() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    Metrics& metrics = *streams_->metrics_;
    // A read that fails because the caller is gone looks like the end of its data until OnCancel.
    if (cancelled_ && ended_in_ == Phase::kReceiving && rejected_ == RejectReason::kInvalid) {
      rejected_.reset();
      gone_ = CancelWhere::kReceiving;
      status_ = GoneStatus();
    }
    if (rejected_.has_value()) metrics.Rejected(*rejected_);
    if (gone_.has_value()) metrics.Cancelled(*gone_);
    if (received_bytes_ > 0) metrics.ReceivedMessage(received_bytes_);
    if (status_.ok()) {
      CountStages(outcome_, send_duration_, &metrics);
      metrics.SentMessage(sent_bytes_);
    }
    const absl::Duration total = streams_->clock_->Now() - arrival_;
    metrics.CallFinished(StreamMethodOf(direction_), TransportOf(*context_), status_.code(), total);
    if (LogEnabled(LogLevel::kDebug)) {
      Log(LogLevel::kDebug,
          direction_ == Direction::kForward ? "attend stream" : "attend backward stream",
          {{"peer", context_->peer()}, {"status", status_.ToString()}, {"duration", total}});
    }
  }

  AttendStreams* const streams_;
  const Direction direction_;
  grpc::CallbackServerContext* const context_;
  const absl::Time arrival_;

  // While the request arrives.
  grpc::ByteBuffer message_;
  bool has_header_ = false;
  ReservedAttend request_;
  wire::ChunkAssembler assembler_;
  int64_t received_bytes_ = 0;

  // While the answer leaves.
  int64_t chunk_bytes_ = wire::kChunkBytes;
  std::optional<AttendResponseStream> response_;
  grpc::ByteBuffer answer_;
  Outcome outcome_;  // without its storage
  absl::Time batch_end_;
  absl::Duration send_duration_;
  int64_t sent_bytes_ = 0;

  Mutex mutex_;
  Phase phase_ ABSL_GUARDED_BY(mutex_) = Phase::kReceiving;
  Phase ended_in_ ABSL_GUARDED_BY(mutex_) = Phase::kReceiving;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;  // OnCancel came
  Ticket ticket_ ABSL_GUARDED_BY(mutex_);
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  std::optional<RejectReason> rejected_ ABSL_GUARDED_BY(mutex_);
  std::optional<CancelWhere> gone_ ABSL_GUARDED_BY(mutex_);
};

AttendStreams::AttendStreams(const AttendLimits& limits, HostAllocator* host_allocator,
                             const Clock* clock, Scheduler* scheduler, const Dispatcher* dispatcher,
                             Metrics* metrics, wire::CopyPool* copy_pool)
    : limits_(limits),
      host_allocator_(host_allocator),
      clock_(clock),
      scheduler_(scheduler),
      dispatcher_(dispatcher),
      metrics_(metrics),
      copy_pool_(copy_pool),
      budget_(std::make_shared<StreamBudget>(limits.max_stream_bytes)) {
  metrics_->WatchStreams([budget = budget_] { return budget->reserved(); });
}

AttendStreams::Reactor* AttendStreams::Begin(Direction direction,
                                             grpc::CallbackServerContext* context) {
  auto* const call = new Call(this, direction, context);
  {
    MutexLock lock(&mutex_);
    calls_.insert(call);
  }
  // After that: either RefuseIncomplete finds the call, or the call finds the scheduler draining.
  call->Begin();
  return call;
}

void AttendStreams::RefuseIncomplete() {
  MutexLock lock(&mutex_);
  for (Call* const call : calls_) call->RefuseIncomplete();
}

bool AttendStreams::WaitUntilIdle(absl::Time deadline) {
  MutexLock lock(&mutex_);
  return mutex_.Await([this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return calls_.empty(); },
                      deadline);
}

void AttendStreams::Remove(std::unique_ptr<Call> call) {
  MutexLock lock(&mutex_);
  calls_.erase(call.get());
  // Before WaitUntilIdle returns: what the call holds goes with it.
  call.reset();
  mutex_.NotifyWaiters();
}

}  // namespace flashbias::server
