#include "server/service.h"

#include <algorithm>
#include <optional>
#include <thread>
#include <utility>

#include "server/attend_call.h"
#include "server/codec.h"
#include "server/log.h"
#include "server/pending_request.h"
#include "wire/contract.h"

namespace flashbias::server {
namespace {

int CopyThreads(const ServerOptions& options) {
  if (options.copy_threads > 0) return options.copy_threads;
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency() / 4), 1, 8);
}

}  // namespace

// One call to Attend or AttendBackward; deletes itself when gRPC is done with it. Answer runs once,
// because only the request's completion or, where no request came to be, Begin calls it.
class Service::AttendCall final : public grpc::ServerUnaryReactor {
 public:
  AttendCall(Service* service, Direction direction, grpc::CallbackServerContext* context,
             grpc::ByteBuffer* response)
      : service_(service),
        direction_(direction),
        context_(context),
        response_(response),
        arrival_(service->clock_->Now()) {
    service_->CallBegins();
    service_->metrics_->CallStarted();
  }

  // Decodes and enqueues. The call may be answered when this returns, not yet destroyed: gRPC binds
  // it only after the handler has returned it.
  void Begin(grpc::ByteBuffer* message) {
    Metrics& metrics = *service_->metrics_;
    // gRPC also starts a call that died while its message was arriving, with an invalid buffer
    // (that of an empty message is valid).
    if (!message->Valid() || context_->IsCancelled()) {
      metrics.Cancelled(CancelWhere::kReceiving);
      Answer({.status = DeadlinePassed()
                            ? absl::DeadlineExceededError("the deadline passed before the message")
                            : absl::CancelledError("the caller left before its message came")});
      return;
    }
    const auto message_bytes = static_cast<int64_t>(message->Length());
    metrics.ReceivedMessage(message_bytes);
    // Under overload this spares the decoding.
    if (std::optional<Outcome> refusal = service_->scheduler_->Refusal(message_bytes)) {
      Answer(*std::move(refusal));
      return;
    }
    absl::StatusOr<DecodedAttend> decoded;
    std::optional<absl::Duration> retry_after;
    absl::StatusOr<ParsedAttend> parsed = ParseAttendRequest(
        direction_, message, service_->limits_,
        TransportOf(*context_) == Transport::kUnix ? service_->regions_ : nullptr);
    if (parsed.ok()) {
      decoded =
          StageAttendRequest(*std::move(parsed), *service_->host_allocator_, &service_->copy_pool_);
      if (absl::IsResourceExhausted(decoded.status())) retry_after = kMemoryRetryAfter;
    } else {
      decoded = parsed.status();
    }
    const absl::Duration receive = service_->clock_->Now() - arrival_;
    metrics.StageFinished(Stage::kReceive, receive);
    if (!decoded.ok()) {
      metrics.Rejected(ReasonOf(decoded.status()));
      Answer({.status = decoded.status(), .retry_after = retry_after});
      return;
    }
    ticket_ = service_->scheduler_->Enqueue(std::make_unique<PendingRequest>(
        PendingRequest::Params{.problem = decoded->problem,
                               .storage = std::move(decoded->storage),
                               .bytes = decoded->bytes,
                               .receive_duration = receive,
                               .deadline = absl::FromChrono(context_->deadline())},
        [this](Outcome outcome) { Answer(std::move(outcome)); }));
  }

  void OnCancel() override {
    if (ticket_.completion == nullptr) return;  // answered in Begin
    service_->scheduler_->Cancel(
        ticket_, DeadlinePassed()
                     ? absl::DeadlineExceededError("the deadline passed before the answer")
                     : absl::CancelledError("the caller cancelled"));
  }

  void OnDone() override {
    Service* const service = service_;
    delete this;
    service->CallEnds();
  }

 private:
  bool DeadlinePassed() const { return server::DeadlinePassed(*context_, *service_->clock_); }

  void Answer(Outcome outcome) {
    Metrics& metrics = *service_->metrics_;
    if (outcome.status.ok()) {
      const absl::Duration send = service_->clock_->Now() - outcome.batch_end;
      *response_ = EncodeAttendResponse(outcome.problem, std::move(outcome.storage),
                                        TimingOf(outcome, send));
      // gRPC aborts the process on an OK answer without a buffer.
      if (!response_->Valid()) outcome.status = absl::InternalError("the response has no bytes");
    }
    if (outcome.status.ok()) {
      CountStages(outcome, service_->clock_->Now() - outcome.batch_end, &metrics);
      metrics.SentMessage(static_cast<int64_t>(response_->Length()));
    } else if (outcome.retry_after.has_value()) {
      AddRetryPushback(context_, *outcome.retry_after);
    }
    const absl::Duration total = service_->clock_->Now() - arrival_;
    metrics.CallFinished(MethodOf(direction_), TransportOf(*context_), outcome.status.code(),
                         total);
    if (LogEnabled(LogLevel::kDebug)) {
      Log(LogLevel::kDebug, direction_ == Direction::kForward ? "attend" : "attend backward",
          {{"peer", context_->peer()}, {"status", outcome.status.ToString()}, {"duration", total}});
    }
    Finish(ToGrpc(outcome.status));  // last: the call may be gone when this returns
  }

  Service* const service_;
  const Direction direction_;
  grpc::CallbackServerContext* const context_;
  grpc::ByteBuffer* const response_;
  const absl::Time arrival_;
  Ticket ticket_;
};

Service::Service(const ServerOptions& options, const BackendInfo& backend,
                 HostAllocator* host_allocator, const Clock* clock, Scheduler* scheduler,
                 const Dispatcher* dispatcher, Metrics* metrics, const RegionRegistry* regions)
    : backend_(backend),
      host_allocator_(host_allocator),
      clock_(clock),
      scheduler_(scheduler),
      metrics_(metrics),
      regions_(regions),
      copy_pool_(CopyThreads(options)) {
  limits_ = {.dtypes = backend_.dtypes,
             .max_head_dim = backend_.max_head_dim,
             .max_rank = backend_.max_rank,
             .max_sequence_rows = backend_.max_sequence_rows,
             .max_sequences = options.max_sequences,
             .max_message_bytes = options.max_message_bytes,
             .max_stream_bytes = options.max_stream_bytes};
  streams_ = std::make_unique<AttendStreams>(limits_, host_allocator_, clock_, scheduler_,
                                             dispatcher, metrics_, &copy_pool_);
  info_.set_version(FLASHBIAS_VERSION);
  info_.set_backend(backend_.name);
  for (const std::string& device : backend_.devices) info_.add_devices(device);
  for (const DType dtype : backend_.dtypes)
    info_.add_dtypes(static_cast<v1::DType>(wire::ToWire(dtype)));
  info_.set_max_head_dim(backend_.max_head_dim);
  for (const int head_dim : backend_.fast_head_dims) info_.add_fast_head_dims(head_dim);
  info_.set_max_rank(backend_.max_rank);
  info_.set_max_message_bytes(options.max_message_bytes);
  info_.set_max_queue_requests(options.scheduler.max_queue_requests);
  info_.set_max_queue_bytes(options.scheduler.max_queue_bytes);
  info_.set_default_eps(kDefaultEps);
  info_.set_max_eps(kMaxEps);
  info_.set_max_sequences(options.max_sequences);
  info_.set_max_heads(kMaxHeads);
  info_.set_max_stream_bytes(options.max_stream_bytes);
}

grpc::ServerUnaryReactor* Service::BeginCall(Direction direction,
                                             grpc::CallbackServerContext* context,
                                             const grpc::ByteBuffer* request,
                                             grpc::ByteBuffer* response) {
  auto* const call = new AttendCall(this, direction, context, response);
  // gRPC owns the buffer, which is not const itself, until the call ends; the codec lets go of its
  // memory as soon as it has been read.
  call->Begin(const_cast<grpc::ByteBuffer*>(request));
  return call;
}

grpc::ServerUnaryReactor* Service::Attend(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) {
  return BeginCall(Direction::kForward, context, request, response);
}

grpc::ServerUnaryReactor* Service::AttendBackward(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* response) {
  return BeginCall(Direction::kBackward, context, request, response);
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Service::AttendStream(
    grpc::CallbackServerContext* context) {
  return streams_->Begin(Direction::kForward, context);
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Service::AttendBackwardStream(
    grpc::CallbackServerContext* context) {
  return streams_->Begin(Direction::kBackward, context);
}

grpc::ServerUnaryReactor* Service::GetServerInfo(grpc::CallbackServerContext* context,
                                                 const v1::GetServerInfoRequest* /*request*/,
                                                 v1::GetServerInfoResponse* response) {
  const absl::Time arrival = clock_->Now();
  metrics_->CallStarted();
  *response = info_;
  metrics_->CallFinished(Method::kGetServerInfo, TransportOf(*context), absl::StatusCode::kOk,
                         clock_->Now() - arrival);
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

bool Service::WaitUntilIdle(absl::Time deadline) {
  if (!streams_->WaitUntilIdle(deadline)) return false;
  MutexLock lock(&mutex_);
  return mutex_.Await([this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return IdleLocked(); },
                      deadline);
}

void Service::CallBegins() {
  MutexLock lock(&mutex_);
  ++calls_;
}

void Service::CallEnds() {
  MutexLock lock(&mutex_);
  --calls_;
  mutex_.NotifyWaiters();
}

}  // namespace flashbias::server
