#include "client/channel_pool.h"

#include <algorithm>
#include <utility>

#include "grpc/grpc.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/channel_arguments.h"
#include "wire/transport_options.h"

namespace flashbias::client {
namespace {

std::shared_ptr<grpc::ChannelCredentials> CredentialsOf(const std::optional<TlsOptions>& tls) {
  if (!tls.has_value()) return grpc::InsecureChannelCredentials();
  return grpc::SslCredentials({.pem_root_certs = tls->root_certificates,
                               .pem_private_key = tls->private_key,
                               .pem_cert_chain = tls->certificate_chain});
}

}  // namespace

ChannelPool::Lease::Lease(Lease&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)), index_(other.index_) {}

ChannelPool::Lease& ChannelPool::Lease::operator=(Lease&& other) noexcept {
  if (this != &other) {
    Release();
    pool_ = std::exchange(other.pool_, nullptr);
    index_ = other.index_;
  }
  return *this;
}

void ChannelPool::Lease::Release() {
  if (ChannelPool* pool = std::exchange(pool_, nullptr)) pool->Release(index_);
}

ChannelPool::ChannelPool(const Options& options) {
  // gRPC shuts down with its last object, which may wait ten seconds for a poller with nothing left
  // to poll. A process that has called once keeps it.
  [[maybe_unused]] static const bool kept = (grpc_init(), true);
  grpc::ChannelArguments arguments;
  arguments.SetMaxSendMessageSize(options.max_message_bytes);
  arguments.SetMaxReceiveMessageSize(options.max_message_bytes);
  arguments.SetUserAgentPrefix(options.user_agent);
  // Without it gRPC gives channels of equal arguments one shared connection.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetLoadBalancingPolicyName(options.load_balancing_policy);
  if (!options.use_http_proxy) arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  if (options.tls.has_value() && !options.tls->server_name.empty()) {
    arguments.SetSslTargetNameOverride(options.tls->server_name);
  }
  // Retries are ours: gRPC's own would keep a second copy of every request.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  // A server that stopped reading or vanished ends its calls. It also bounds how long a write holds
  // the caller's memory (TCP_USER_TIMEOUT follows it).
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  for (const wire::ChannelArgument& argument : wire::kTransportArguments) {
    arguments.SetInt(argument.name, argument.value);
  }
  const auto backoff_ms = static_cast<int>(
      std::clamp<int64_t>(absl::ToInt64Milliseconds(options.initial_reconnect_backoff), 1, 1000));
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, backoff_ms);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 5000);
  const std::shared_ptr<grpc::ChannelCredentials> credentials = CredentialsOf(options.tls);
  for (int n = 0; n < options.num_connections; ++n) {
    connections_.push_back(std::make_unique<Connection>(
        grpc::CreateCustomChannel(options.target, credentials, arguments)));
  }
  absl::MutexLock lock(&mutex_);
  outstanding_.assign(connections_.size(), 0);
}

ChannelPool::Lease ChannelPool::Acquire(std::optional<size_t> avoid) {
  absl::MutexLock lock(&mutex_);
  const size_t count = outstanding_.size();
  size_t best = next_ % count;
  if (best == avoid) best = (best + 1) % count;
  for (size_t n = 0; n < count; ++n) {
    const size_t index = (next_ + n) % count;
    if (index != avoid && outstanding_[index] < outstanding_[best]) best = index;
  }
  next_ = best + 1;
  ++outstanding_[best];
  return Lease(this, best);
}

void ChannelPool::Release(size_t index) {
  absl::MutexLock lock(&mutex_);
  --outstanding_[index];
}

}  // namespace flashbias::client
