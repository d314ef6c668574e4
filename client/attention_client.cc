#include "client/attention_client.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "client/answer.h"
#include "client/bearer_token.h"
#include "client/channel_pool.h"
#include "client/region_map.h"
#include "client/region_placement.h"
#include "client/request_validation.h"
#include "client/retrying_call.h"
#include "client/stream_call.h"
#include "client/tensor_loans.h"
#include "client/tls_validation.h"
#include "client/wire_codec.h"
#include "wire/chunk.h"

namespace flashbias::client {
namespace {

// gRPC's name; null: the value is none of the enumeration.
const char* PolicyName(LoadBalancing load_balancing) {
  switch (load_balancing) {
    case LoadBalancing::kPickFirst:
      return "pick_first";
    case LoadBalancing::kRoundRobin:
      return "round_robin";
  }
  return nullptr;
}

absl::Status ValidateSecurity(const AttentionClient::Options& options) {
  if (options.tls.has_value()) {
    if (absl::Status status = ValidateTlsOptions(*options.tls); !status.ok()) return status;
    // gRPC would look for the whole list in the certificate.
    if (options.tls->server_name.empty() && absl::StrContains(options.target, ',')) {
      return absl::InvalidArgumentError(
          absl::StrCat("tls.server_name is empty; accepted with several addresses, '",
                       options.target, "': the name that all of their certificates carry"));
    }
  }
  if (options.bearer_token.empty()) return absl::OkStatus();
  absl::Status token = ValidateBearerToken(options.bearer_token, "bearer_token");
  if (!token.ok()) return token;
  return CheckTokenStaysPrivate(options.target, options.tls.has_value(), "bearer_token", "tls");
}

absl::Status ValidateOptions(const AttentionClient::Options& options) {
  if (options.target.empty()) {
    return absl::InvalidArgumentError("target is empty; accepted: host:port");
  }
  if (options.num_connections < 1 || options.num_connections > 256) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_connections is ", options.num_connections, "; accepted: 1 to 256"));
  }
  if (options.default_timeout <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("default_timeout is ", absl::FormatDuration(options.default_timeout),
                     "; accepted: positive durations, infinity for none"));
  }
  if (options.max_message_bytes < 1 ||
      options.max_message_bytes > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_message_bytes is ", options.max_message_bytes, "; accepted: 1 to 2147483647"));
  }
  if (options.stream_above_bytes < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "stream_above_bytes is ", options.stream_above_bytes, "; accepted: 0 or more"));
  }
  if (PolicyName(options.load_balancing) == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("load_balancing is ",
                                                   static_cast<int>(options.load_balancing),
                                                   "; accepted: kPickFirst, kRoundRobin"));
  }
  if (absl::Status status = ValidateSecurity(options); !status.ok()) return status;
  return ValidateRetryPolicy(options.retry);
}

absl::Status CheckSize(const char* what, int64_t bytes, int64_t limit) {
  if (bytes <= limit) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat(what, " takes ", bytes, " bytes; the client's max_message_bytes is ", limit));
}

const AttendRequest& ForwardOf(const AttendRequest& request) { return request; }
const AttendRequest& ForwardOf(const AttendBackwardRequest& request) { return request.forward; }

ChannelPool::Options PoolOptions(const AttentionClient::Options& options) {
  return {.target = options.target,
          .load_balancing_policy = PolicyName(options.load_balancing),
          .tls = options.tls,
          // A proxy would see a token that no TLS hides.
          .use_http_proxy = options.bearer_token.empty() || options.tls.has_value(),
          .num_connections = options.num_connections,
          .max_message_bytes = static_cast<int>(options.max_message_bytes),
          .user_agent = options.user_agent.empty() ? "flashbias-client/" FLASHBIAS_VERSION
                                                   : options.user_agent,
          .initial_reconnect_backoff = options.retry.initial_backoff};
}

}  // namespace

class AttentionClient::Impl {
 public:
  explicit Impl(Options options) : options_(std::move(options)), pool_(PoolOptions(options_)) {}

  ~Impl() {
    std::vector<std::shared_ptr<RetryingCall>> calls;
    {
      absl::MutexLock lock(&mutex_);
      for (const auto& [id, call] : calls_) calls.push_back(call);
    }
    for (const auto& call : calls) call->Cancel();
    calls.clear();
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(this, &Impl::Idle));
  }

  const Options& options() const { return options_; }
  const std::shared_ptr<RegionMap>& regions() const { return regions_; }

  // Of the server's socket. INVALID_ARGUMENT: the target is none.
  absl::StatusOr<std::string> UnixPath() const {
    absl::string_view path = options_.target;
    if (!absl::ConsumePrefix(&path, "unix:")) {
      return absl::InvalidArgumentError(
          absl::StrCat("target is '", options_.target, "'; accepted for shared memory: unix:PATH"));
    }
    absl::ConsumePrefix(&path, "//");
    return std::string(path);
  }

  // Makes the attempts; `done` runs once, before the call counts as ended.
  void Call(const CallOptions& options, RetryingCall::StartRpc start_rpc,
            RetryingCall::MemoryIsFree memory_is_free, RetryingCall::Done done,
            RetryingCall::MayRetry may_retry = nullptr) ABSL_LOCKS_EXCLUDED(mutex_) {
    if (options.timeout < absl::ZeroDuration()) {
      std::move(done)(absl::InvalidArgumentError(
          absl::StrCat("timeout is ", absl::FormatDuration(options.timeout),
                       "; accepted: positive durations, zero for the client's default")));
      return;
    }
    const std::shared_ptr<Cancellation> cancellation = options.cancellation;
    if (cancellation != nullptr && cancellation->cancelled()) {
      std::move(done)(absl::CancelledError("cancelled by the caller"));
      return;
    }
    int64_t id = 0;
    {
      absl::MutexLock lock(&mutex_);
      id = next_id_++;
    }
    // The subscription's number is known only after the call exists, hence the shared cell.
    auto subscription = std::make_shared<int64_t>(-1);
    auto call = std::make_shared<RetryingCall>(
        &pool_, options_.retry, Deadline(options), WithToken(std::move(start_rpc)),
        std::move(memory_is_free),
        [this, id, cancellation, subscription,
         done = std::move(done)](absl::Status status) mutable {
          if (cancellation != nullptr) cancellation->Unsubscribe(*subscription);
          {
            // What the callback holds goes with it, before the client may go.
            RetryingCall::Done last = std::move(done);
            std::move(last)(std::move(status));
          }
          Remove(id);
        },
        std::move(may_retry));
    {
      absl::MutexLock lock(&mutex_);
      calls_.emplace(id, call);
    }
    if (cancellation != nullptr) {
      *subscription = cancellation->Subscribe([weak = std::weak_ptr<RetryingCall>(call)] {
        if (auto strong = weak.lock()) strong->Cancel();
      });
    }
    call->Start();
  }

  // Gets what came of a call.
  using AnswerCallback = absl::AnyInvocable<void(absl::StatusOr<Answer>) &&>;

  // The whole of a call with tensors, of either kind of request; `buffers` are for its answer.
  template <typename Request, typename Buffers>
  void Begin(const Request& request, const Buffers& buffers, const CallOptions& options,
             AnswerCallback callback) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // Of a call that is whole.
  struct Messages {
    const std::shared_ptr<TensorLoans> loans = std::make_shared<TensorLoans>();
    grpc::ByteBuffer request;  // attempts share its slices
    grpc::ByteBuffer response;
  };

  // A call in one message each way.
  void CallWhole(const MethodNames& names, const std::shared_ptr<Messages>& messages, Answer answer,
                 const CallOptions& options, AnswerCallback callback) {
    Call(
        options,
        [messages, path = names.path](const ChannelPool::Connection& connection,
                                      grpc::ClientContext* context,
                                      std::function<void(grpc::Status)> on_done) {
          messages->response.Clear();
          connection.bytes.UnaryCall(context, path, grpc::StubOptions(), &messages->request,
                                     &messages->response, std::move(on_done));
        },
        [messages] {
          messages->request.Clear();
          return messages->loans->AllReturned();
        },
        [messages, name = names.response, answer = std::move(answer),
         callback = std::move(callback)](absl::Status status) mutable {
          if (status.ok()) status = DecodeAnswer(name, &messages->response, &answer);
          if (status.ok()) {
            std::move(callback)(std::move(answer));
          } else {
            std::move(callback)(std::move(status));
          }
        });
  }

  // A call in chunks. REQUIRES: as MakeStreamExchange.
  void Stream(const std::shared_ptr<StreamExchange>& exchange, const CallOptions& options,
              AnswerCallback callback) {
    const absl::Status size =
        CheckSize("the request without its tensors",
                  static_cast<int64_t>(exchange->header.Length()), options_.max_message_bytes);
    if (!size.ok()) {
      std::move(callback)(size);
      return;
    }
    Call(
        options,
        [exchange](const ChannelPool::Connection& connection, grpc::ClientContext* context,
                   std::function<void(grpc::Status)> on_done) {
          StartStreamCall(connection, context, exchange, std::move(on_done));
        },
        [exchange] {
          exchange->header.Clear();
          return exchange->loans->AllReturned();
        },
        [exchange, callback = std::move(callback)](absl::Status status) mutable {
          if (status.ok()) {
            std::move(callback)(std::move(exchange->answer));
          } else {
            std::move(callback)(std::move(status));
          }
        },
        // What was sent may have been computed, and is too much to send twice unasked.
        [exchange] { return !exchange->accepted; });
  }

  // The same, with the token in the metadata of each attempt.
  RetryingCall::StartRpc WithToken(RetryingCall::StartRpc start_rpc) const {
    if (options_.bearer_token.empty()) return start_rpc;
    return [this, start_rpc = std::move(start_rpc)](const ChannelPool::Connection& connection,
                                                    grpc::ClientContext* context,
                                                    std::function<void(grpc::Status)> on_done) {
      context->AddMetadata("authorization", absl::StrCat("Bearer ", options_.bearer_token));
      start_rpc(connection, context, std::move(on_done));
    };
  }

  absl::Time Deadline(const CallOptions& options) const {
    absl::Duration timeout = options.timeout;
    if (timeout == absl::ZeroDuration()) {
      timeout = options.deadline == absl::InfiniteFuture() ? options_.default_timeout
                                                           : absl::InfiniteDuration();
    }
    return std::min(options.deadline, absl::Now() + timeout);
  }

  void Remove(int64_t id) ABSL_LOCKS_EXCLUDED(mutex_) {
    // The call is destroyed outside the lock.
    std::shared_ptr<RetryingCall> removed;
    absl::MutexLock lock(&mutex_);
    const auto it = calls_.find(id);
    removed = std::move(it->second);
    calls_.erase(it);
  }

  bool Idle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return calls_.empty(); }

  const Options options_;
  ChannelPool pool_;
  const std::shared_ptr<RegionMap> regions_ = std::make_shared<RegionMap>();

  absl::Mutex mutex_;
  int64_t next_id_ ABSL_GUARDED_BY(mutex_) = 0;
  std::unordered_map<int64_t, std::shared_ptr<RetryingCall>> calls_ ABSL_GUARDED_BY(mutex_);
};

template <typename Request, typename Buffers>
void AttentionClient::Impl::Begin(const Request& request, const Buffers& buffers,
                                  const CallOptions& options, AnswerCallback callback) {
  absl::Status readable = CheckSlopesOnHost(ForwardOf(request), *regions_);
  const absl::StatusOr<RequestSummary> summary =
      readable.ok() ? SummarizeRequest(request) : std::move(readable);
  if (!summary.ok()) {
    std::move(callback)(summary.status());
    return;
  }
  absl::StatusOr<Answer> expected = ExpectAnswer(request, buffers);
  if (!expected.ok()) {
    std::move(callback)(expected.status());
    return;
  }
  Answer placed = *expected;
  const absl::StatusOr<RegionPlacement> placement = PlaceTensors(request, *regions_, &placed);
  if (!placement.ok()) {
    std::move(callback)(placement.status());
    return;
  }
  // Sizes are checked before anything is made, and once more when the encoding is known.
  const int64_t limit = options_.max_message_bytes;
  const int64_t request_bytes = summary->request_bytes - placement->request_bytes;
  const int64_t response_bytes = summary->response_bytes - placement->response_bytes;
  const int64_t whole = std::min(limit, options_.stream_above_bytes);
  // A stream carries all elements, and those on a device cannot be read here.
  const bool may_stream = limit >= wire::kMinStreamMessageBytes && !placement->on_device;
  if (may_stream && std::max(request_bytes, response_bytes) > whole) {
    return Stream(MakeStreamExchange(request, *std::move(expected), limit), options,
                  std::move(callback));
  }
  absl::Status size = CheckSize("the request", request_bytes, limit);
  if (size.ok()) size = CheckSize("the answer", response_bytes, limit);
  const auto messages = std::make_shared<Messages>();
  if (size.ok()) {
    messages->request = EncodeRequest(request, *placement, placed, *messages->loans);
    const auto bytes = static_cast<int64_t>(messages->request.Length());
    if (bytes > limit && may_stream) {
      return Stream(MakeStreamExchange(request, *std::move(expected), limit), options,
                    std::move(callback));
    }
    size = CheckSize("the request", bytes, limit);
  }
  if (!size.ok()) {
    std::move(callback)(std::move(size));
    return;
  }
  CallWhole(NamesOf(request), messages, std::move(placed), options, std::move(callback));
}

AttentionClient::AttentionClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
AttentionClient::~AttentionClient() = default;

absl::StatusOr<std::unique_ptr<AttentionClient>> AttentionClient::Create(Options options) {
  if (absl::Status status = ValidateOptions(options); !status.ok()) return status;
  return std::unique_ptr<AttentionClient>(
      new AttentionClient(std::make_unique<Impl>(std::move(options))));
}

absl::StatusOr<AttendResult> AttentionClient::Attend(const AttendRequest& request,
                                                     const CallOptions& options) {
  absl::StatusOr<AttendResult> result;
  absl::Notification answered;
  AttendAsync(request, options, [&](absl::StatusOr<AttendResult> answer) {
    result = std::move(answer);
    answered.Notify();
  });
  answered.WaitForNotification();
  return result;
}

void AttentionClient::AttendAsync(const AttendRequest& request, const CallOptions& options,
                                  AttendCallback callback) {
  const GradientBuffers& other = options.gradients;
  if (!other.dq.empty() || !other.dk.empty() || !other.dv.empty() || !other.dslopes.empty() ||
      !other.dphi_q.empty() || !other.dphi_k.empty()) {
    std::move(callback)(absl::InvalidArgumentError(
        "gradients has buffers; accepted: in calls to AttendBackward; Attend has result"));
    return;
  }
  impl_->Begin(request, options.result, options,
               [callback = std::move(callback)](absl::StatusOr<Answer> answer) mutable {
                 if (answer.ok()) {
                   std::move(callback)(TakeResult(*std::move(answer)));
                 } else {
                   std::move(callback)(answer.status());
                 }
               });
}

absl::StatusOr<AttendGradients> AttentionClient::AttendBackward(
    const AttendBackwardRequest& request, const CallOptions& options) {
  absl::StatusOr<AttendGradients> gradients;
  absl::Notification answered;
  AttendBackwardAsync(request, options, [&](absl::StatusOr<AttendGradients> answer) {
    gradients = std::move(answer);
    answered.Notify();
  });
  answered.WaitForNotification();
  return gradients;
}

void AttentionClient::AttendBackwardAsync(const AttendBackwardRequest& request,
                                          const CallOptions& options,
                                          AttendBackwardCallback callback) {
  if (!options.result.o.empty() || !options.result.lse.empty()) {
    std::move(callback)(absl::InvalidArgumentError(
        "result has buffers; accepted: in calls to Attend; AttendBackward has gradients"));
    return;
  }
  impl_->Begin(request, options.gradients, options,
               [callback = std::move(callback)](absl::StatusOr<Answer> answer) mutable {
                 if (answer.ok()) {
                   std::move(callback)(TakeGradients(*std::move(answer)));
                 } else {
                   std::move(callback)(answer.status());
                 }
               });
}

absl::StatusOr<std::unique_ptr<SharedRegion>> AttentionClient::CreateRegion(size_t bytes) {
  const absl::StatusOr<std::string> path = impl_->UnixPath();
  if (!path.ok()) return path.status();
  return SharedRegion::Create(*path, bytes, impl_->options().default_timeout, impl_->regions());
}

absl::StatusOr<std::unique_ptr<DeviceRegion>> AttentionClient::RegisterDeviceMemory(
    const DeviceMemoryView& memory) {
  const absl::StatusOr<std::string> path = impl_->UnixPath();
  if (!path.ok()) return path.status();
  return DeviceRegion::Create(*path, memory, impl_->options().default_timeout, impl_->regions());
}

absl::StatusOr<ServerInfo> AttentionClient::GetServerInfo(const CallOptions& options) {
  v1::GetServerInfoRequest request;
  v1::GetServerInfoResponse response;
  absl::Status result;
  absl::Notification answered;
  impl_->Call(
      options,
      [&](const ChannelPool::Connection& connection, grpc::ClientContext* context,
          std::function<void(grpc::Status)> on_done) {
        response.Clear();
        connection.stub->async()->GetServerInfo(context, &request, &response, std::move(on_done));
      },
      [] { return true; },
      [&](absl::Status status) {
        result = std::move(status);
        answered.Notify();
      });
  answered.WaitForNotification();
  if (!result.ok()) return result;
  return DecodeServerInfo(response);
}

}  // namespace flashbias::client
