#include "server/server.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/clock.h"
#include "server/dispatcher.h"
#include "server/health.h"
#include "server/log.h"
#include "server/metrics.h"
#include "server/metrics_endpoint.h"
#include "server/mutex.h"
#include "server/reflection.h"
#include "server/region_listener.h"
#include "server/region_registry.h"
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
// For those that are told that there are regions enough.
constexpr int64_t kSpareRegionConnections = 64;

// Infinite: the largest int, which means the same to gRPC.
int Milliseconds(absl::Duration duration) {
  return static_cast<int>(
      std::min<int64_t>(absl::ToInt64Milliseconds(duration), std::numeric_limits<int>::max()));
}

Limits LimitsOf(const ServerOptions& options) {
  const bool regions = SharedMemoryIsOn(options);
  return {.queue_requests = options.scheduler.max_queue_requests,
          .queue_bytes = options.scheduler.max_queue_bytes,
          .stream_bytes = options.max_stream_bytes,
          .message_bytes = options.max_message_bytes,
          .regions = regions ? options.max_regions : 0,
          .region_bytes = regions ? options.max_region_bytes : 0};
}

}  // namespace

class Server::Impl {
 public:
  Impl(std::vector<std::unique_ptr<AttentionBackend>> backends, NoDeviceLeft no_device_left)
      : backends_(std::move(backends)),
        metrics_(FLASHBIAS_VERSION, backends_[0]->info().name),
        no_device_left_(std::move(no_device_left)),
        dispatcher_(Pointers(), &clock_, &metrics_, [this] { OnNoDeviceLeft(); }) {
    metrics_.WatchDevices([this] { return ReadDevices(); });
  }

  ~Impl() {
    if (grpc_ == nullptr) return;
    Shutdown(absl::ZeroDuration());
    // A batch that ends later, and with it the last device, would still tell gRPC's health service.
    scheduler_->WaitUntilDrained(absl::InfiniteFuture());
  }

  absl::Status Start(const ServerOptions& options) {
    metrics_.SetLimits(LimitsOf(options));
    absl::StatusOr<std::unique_ptr<Scheduler>> scheduler =
        Scheduler::Create(options.scheduler, &clock_, &dispatcher_, &metrics_);
    if (!scheduler.ok()) return scheduler.status();
    scheduler_ = *std::move(scheduler);
    if (SharedMemoryIsOn(options)) {
      regions_ = std::make_shared<RegionRegistry>(
          RegionLimits{.max_bytes = options.max_region_bytes,
                       .max_peer_bytes = options.max_peer_region_bytes,
                       .max_regions = options.max_regions},
          Pointers());
      metrics_.WatchRegions([regions = regions_] { return regions->usage(); });
    }
    service_ =
        std::make_unique<Service>(options, WholeInfo(), &backends_[0]->host_allocator(), &clock_,
                                  scheduler_.get(), &dispatcher_, &metrics_, regions_.get());
    if (!options.metrics_address.empty()) {
      absl::StatusOr<std::unique_ptr<MetricsEndpoint>> endpoint =
          MetricsEndpoint::Create(options.metrics_address, metrics_);
      if (!endpoint.ok()) return endpoint.status();
      metrics_endpoint_ = *std::move(endpoint);
    }
    scheduler_thread_ = std::make_unique<SchedulerThread>(scheduler_.get(), &clock_);
    absl::Status listens = Listen(options);
    if (listens.ok() && regions_ != nullptr) listens = ListenForRegions(options);
    return listens;
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
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS,
                               Milliseconds(options.max_connection_age));
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS,
                               Milliseconds(options.max_connection_age_grace));
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
    health_server_ = grpc_.get();
    Health(grpc_.get()).SetServing(true);
    // Whichever of the two threads comes second sees what the other one did.
    if (no_device_) Health(grpc_.get()).SetServing(false);
    return absl::OkStatus();
  }

  absl::Status ListenForRegions(const ServerOptions& options) {
    absl::StatusOr<std::unique_ptr<RegionListener>> listener = RegionListener::Create(
        {.path = RegionSocketPath(options),
         .max_connections = static_cast<size_t>(options.max_regions + kSpareRegionConnections)},
        regions_.get());
    if (!listener.ok()) return listener.status();
    region_listener_ = *std::move(listener);
    return absl::OkStatus();
  }

  std::vector<AttentionBackend*> Pointers() const {
    std::vector<AttentionBackend*> pointers;
    for (const auto& backend : backends_) pointers.push_back(backend.get());
    return pointers;
  }

  // What callers are told: the backends differ in their devices only.
  BackendInfo WholeInfo() const {
    BackendInfo info = backends_[0]->info();
    info.devices.clear();
    for (const auto& backend : backends_) {
      const std::vector<std::string>& devices = backend->info().devices;
      info.devices.insert(info.devices.end(), devices.begin(), devices.end());
    }
    return info;
  }

  std::vector<DeviceReading> ReadDevices() const {
    std::vector<DeviceReading> readings;
    for (const auto& backend : backends_) {
      readings.push_back({.label = backend->info().device_label,
                          .healthy = backend->health().ok(),
                          .usage = backend->usage()});
    }
    return readings;
  }

  // On a backend's thread.
  void OnNoDeviceLeft() {
    Log(LogLevel::kError, "no device left",
        {{"status", backends_[0]->health().ToString()}, {"devices", backends_.size()}});
    no_device_ = true;
    if (grpc::Server* const server = health_server_) Health(server).SetServing(false);
    // What waits was not begun: its callers may try another server.
    scheduler_->Shutdown();
    if (no_device_left_ != nullptr) no_device_left_();
  }

  bool ShutdownOnce(absl::Time deadline) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Health(grpc_.get()).SetServing(false);
    scheduler_->Drain();
    service_->RefuseStreams();
    const bool drained =
        scheduler_->WaitUntilDrained(deadline) && service_->WaitUntilIdle(deadline);
    if (!drained) {
      scheduler_->Shutdown();
      dispatcher_.Abandon(absl::UnavailableError("the server is shutting down"));
      service_->WaitUntilIdle(absl::Now() + kFlushTime);
    }
    // With a deadline, always: a health watch ends only when it is cancelled.
    grpc_->Shutdown(absl::ToChronoTime(absl::Now() + kStreamCloseTime));
    service_->WaitUntilIdle(absl::InfiniteFuture());
    return drained;
  }

  // In the order of dependence: each uses only what stands above it.
  const SystemClock clock_;
  const std::vector<std::unique_ptr<AttentionBackend>> backends_;
  Metrics metrics_;
  NoDeviceLeft no_device_left_;
  std::atomic<bool> no_device_ = false;
  std::atomic<grpc::Server*> health_server_ = nullptr;
  Dispatcher dispatcher_;
  std::unique_ptr<Scheduler> scheduler_;
  std::shared_ptr<RegionRegistry> regions_;  // null: no shared memory
  std::unique_ptr<RegionListener> region_listener_;
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
  std::vector<std::unique_ptr<AttentionBackend>> backends;
  backends.push_back(std::move(backend));
  return Create(options, std::move(backends));
}

absl::StatusOr<std::unique_ptr<Server>> Server::Create(
    const ServerOptions& options, std::vector<std::unique_ptr<AttentionBackend>> backends,
    NoDeviceLeft no_device_left) {
  if (backends.empty())
    return absl::InvalidArgumentError("there is no backend; accepted: 1 or more");
  for (const auto& backend : backends) {
    if (backend == nullptr) return absl::InvalidArgumentError("backend is null");
  }
  const absl::Status valid = Validate(options);
  if (!valid.ok()) return valid;
  auto impl = std::make_unique<Impl>(std::move(backends), std::move(no_device_left));
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
