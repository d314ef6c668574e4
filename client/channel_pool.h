// Several connections to one target; each call takes one that carries the fewest calls. A
// connection is a gRPC channel: where it balances, it has a TCP connection to each address of the
// target.
//
// Thread-safety: thread-safe. Ownership: leases point into the pool, which must outlive them.
#ifndef FLASHBIAS_CLIENT_CHANNEL_POOL_H_
#define FLASHBIAS_CLIENT_CHANNEL_POOL_H_

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/tls_options.h"
#include "flashbias/v1/attention.grpc.pb.h"
#include "grpcpp/channel.h"
#include "grpcpp/generic/generic_stub.h"

namespace flashbias::client {

class ChannelPool {
 public:
  struct Options {
    std::string target;
    std::string load_balancing_policy = "pick_first";  // gRPC's name of it
    std::optional<TlsOptions> tls;  // checked (client/tls_validation.h); absent: plain text
    bool use_http_proxy = true;     // that the environment names
    int num_connections = 1;
    int max_message_bytes = 0;  // sent and received
    std::string user_agent;
    // Of the first reconnection; a longer wait than the callers' retries makes those pointless.
    absl::Duration initial_reconnect_backoff;
  };

  // One connection, for messages of the generated classes and for bytes.
  struct Connection {
    explicit Connection(const std::shared_ptr<grpc::Channel>& channel)
        : stub(v1::AttentionService::NewStub(channel)), bytes(channel) {}
    const std::unique_ptr<v1::AttentionService::Stub> stub;
    mutable grpc::GenericStub bytes;
  };

  // One call's hold on a connection; released at destruction.
  class Lease {
   public:
    Lease() = default;
    Lease(ChannelPool* pool, size_t index) : pool_(pool), index_(index) {}
    Lease(Lease&& other) noexcept;
    Lease& operator=(Lease&& other) noexcept;
    ~Lease() { Release(); }

    void Release();
    // Which connection it is or was.
    size_t index() const { return index_; }
    // REQUIRES: not released or moved from.
    const Connection& connection() const { return *pool_->connections_[index_]; }

   private:
    ChannelPool* pool_ = nullptr;
    size_t index_ = 0;
  };

  // REQUIRES: options.num_connections >= 1.
  explicit ChannelPool(const Options& options);

  // Takes a connection other than `avoid` where there is one: a broken connection ends its calls at
  // once, so it carries the fewest just when it should not be taken.
  Lease Acquire(std::optional<size_t> avoid = std::nullopt) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Release(size_t index) ABSL_LOCKS_EXCLUDED(mutex_);

  std::vector<std::unique_ptr<Connection>> connections_;  // constant after construction

  absl::Mutex mutex_;
  std::vector<int> outstanding_ ABSL_GUARDED_BY(mutex_);  // calls per connection
  size_t next_ ABSL_GUARDED_BY(mutex_) = 0;               // where the search for the fewest starts
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_CHANNEL_POOL_H_
