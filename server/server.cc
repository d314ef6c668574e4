#include "server/server.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/clock.h"
#include "server/executor.h"
#include "server/health.h"
#include "server/log.h"
#include "server/metrics.h"
#include "server/metrics_endpoint.h"
#include "server/mutex.h"
#include "server/reflection.h"
#include "server/scheduler.h"
#include "server/scheduler_thread.h"
#include "server/service.h"
#include "server/unix_socket.h"
#include "wire/transport_options.h"

namespace flashbias::server {
namespace {

// Answers that were given but not sent yet when the grace period ends get this long.
constexpr absl::Duration kFlushTime = absl::Seconds(1);
// Calls that only end when they are cancelled (health watches, reflection) get this long.
constexpr absl::Duration kStreamCloseTime = absl::Milliseconds(100);

int Milliseconds(absl::Duration duration) {
  return static_cast<int>(absl::ToInt64Milliseconds(duration));
}

}  // namespace

class Server::Impl {
 public:
  explicit Impl(std::unique_ptr<AttentionBackend> backend)
      : backend_(std::move(backend)),
        metrics_(FLASHBIAS_VERSION, backend_->info().name),
        executor_(backend_.get(), &clock_, &metrics_) {}

  ~Impl() {
    if (grpc_ != nullptr) Shutdown(absl::ZeroDuration());
  }

  absl::Status Start(const ServerOptions& options) {
    absl::StatusOr<std::unique_ptr<Scheduler>> scheduler =
        Scheduler::Create(options.scheduler, &clock_, &executor_, &metrics_);
    if (!scheduler.ok()) return scheduler.status();
    scheduler_ = *std::move(scheduler);
    service_ = std::make_unique<Service>(options, backend_->info(), &backend_->host_allocator(),
                                         &clock_, scheduler_.get(), &metrics_);
    if (!options.metrics_address.empty()) {
      absl::StatusOr<std::unique_ptr<MetricsEndpoint>> endpoint =
          MetricsEndpoint::Create(options.metrics_address, metrics_);
      if (!endpoint.ok()) return endpoint.status();
      metrics_endpoint_ = *std::move(endpoint);
    }
    scheduler_thread_ = std::make_unique<SchedulerThread>(scheduler_.get(), &clock_);
    return Listen(options);
  }

  int port() const { return port_; }
  int metrics_port() const { return metrics_endpoint_ ? metrics_endpoint_->port() : 0; }

  bool Shutdown(absl::Duration grace) ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    if (!drained_.has_value()) drained_ = ShutdownOnce(absl::Now() + grace);
    return *drained_;
  }

 private:
  absl::Status Listen(const ServerOptions& options) {
    Health::EnableForNewServers();
    grpc::ServerBuilder builder;
    builder.SetOption(ReflectionOption(options.reflection));
    builder.SetMaxReceiveMessageSize(static_cast<int>(options.max_message_bytes));
    builder.SetMaxSendMessageSize(static_cast<int>(options.max_message_bytes));
    for (const wire::ChannelArgument& argument : wire::kTransportArguments) {
      builder.AddChannelArgument(argument.name, argument.value);
    }
    // Otherwise a second server on the same port would silently take half of the connections.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_concurrent_streams);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, Milliseconds(options.keepalive_time));
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                               Milliseconds(options.keepalive_timeout));
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                               Milliseconds(options.min_ping_interval));
    // Only reflection needs threads of gRPC's synchronous kind.
    builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 1);
    builder.AddListeningPort(options.listen_address, grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(service_.get());
    if (options.listen_unix.empty()) {
      grpc_ = builder.BuildAndStart();
    } else {
      // gRPC would take the path from a server that still uses it.
      if (absl::Status free = RemoveStaleSocket(options.listen_unix); !free.ok()) return free;
      builder.AddListeningPort(absl::StrCat("unix:", options.listen_unix),
                               grpc::InsecureServerCredentials());
      const OwnerOnlyFiles socket_mode;
      grpc_ = builder.BuildAndStart();
      if (grpc_ == nullptr && port_ != 0) {
        return absl::UnavailableError(
            absl::StrCat("listen_unix is '", options.listen_unix, "': cannot listen there"));
      }
    }
    if (grpc_ == nullptr || port_ == 0) {
      return absl::UnavailableError(absl::StrCat("listen_address is '", options.listen_address,
                                                 "': cannot listen there (taken or not local)"));
    }
    Health(grpc_.get()).SetServing(true);
    return absl::OkStatus();
  }

  bool ShutdownOnce(absl::Time deadline) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Health(grpc_.get()).SetServing(false);
    scheduler_->Drain();
    const bool drained =
        scheduler_->WaitUntilDrained(deadline) && service_->WaitUntilIdle(deadline);
    if (!drained) {
      scheduler_->Shutdown();
      executor_.Abandon(absl::UnavailableError("the server is shutting down"));
      service_->WaitUntilIdle(absl::Now() + kFlushTime);
    }
    // With a deadline, always: a health watch ends only when it is cancelled.
    grpc_->Shutdown(absl::ToChronoTime(absl::Now() + kStreamCloseTime));
    service_->WaitUntilIdle(absl::InfiniteFuture());
    return drained;
  }

  // In the order of dependence: each uses only what stands above it.
  const SystemClock clock_;
  const std::unique_ptr<AttentionBackend> backend_;
  Metrics metrics_;
  Executor executor_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<Service> service_;
  std::unique_ptr<MetricsEndpoint> metrics_endpoint_;
  std::unique_ptr<grpc::Server> grpc_;
  int port_ = 0;

  Mutex mutex_;
  std::optional<bool> drained_ ABSL_GUARDED_BY(mutex_);  // set once shut down

  std::unique_ptr<SchedulerThread> scheduler_thread_;  // last: it drives what stands above
};

absl::StatusOr<std::unique_ptr<Server>> Server::Create(const ServerOptions& options,
                                                       std::unique_ptr<AttentionBackend> backend) {
  if (backend == nullptr) return absl::InvalidArgumentError("backend is null");
  const absl::Status valid = Validate(options);
  if (!valid.ok()) return valid;
  auto impl = std::make_unique<Impl>(std::move(backend));
  const absl::Status status = impl->Start(options);
  if (!status.ok()) return status;
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Server::~Server() = default;

int Server::port() const { return impl_->port(); }

int Server::metrics_port() const { return impl_->metrics_port(); }

bool Server::Shutdown(absl::Duration grace) { return impl_->Shutdown(grace); }

}  // namespace flashbias::server
