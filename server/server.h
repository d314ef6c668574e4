// The whole service in one object: backends, dispatcher, scheduler, gRPC server, health, metrics.
//
// Thread-safety: Shutdown may be called from any thread, once; the ports are constant.
#ifndef FLASHBIAS_SERVER_SERVER_H_
#define FLASHBIAS_SERVER_SERVER_H_

#include <memory>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/attention_backend.h"
#include "server/options.h"

namespace flashbias::server {

class Server {
 public:
  using NoDeviceLeft = absl::AnyInvocable<void()>;

  // Starts serving on all backends (as kernels/backend_factory.h makes them: equal but for their
  // devices). INVALID_ARGUMENT where an option is out of range, UNAVAILABLE where an address cannot
  // be had.
  //
  // `no_device_left` is called once, on a thread of a backend, when the last device has failed:
  // from then on the server reports NOT_SERVING, refuses new calls and has answered those that
  // waited; what is left is to call Shutdown, on another thread.
  static absl::StatusOr<std::unique_ptr<Server>> Create(
      const ServerOptions& options, std::vector<std::unique_ptr<AttentionBackend>> backends,
      NoDeviceLeft no_device_left = nullptr);
  // The same with one backend.
  static absl::StatusOr<std::unique_ptr<Server>> Create(const ServerOptions& options,
                                                        std::unique_ptr<AttentionBackend> backend);
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;
  // Shutdown(0) where Shutdown was not called; waits for the backend to let go of its work.
  ~Server();

  // The ports that listen, also where 0 was asked for. metrics_port is 0 without an endpoint.
  int port() const;
  int metrics_port() const;

  // Reports NOT_SERVING, refuses new calls with UNAVAILABLE, finishes what was accepted, then
  // closes the connections. What is not finished after `grace` is answered UNAVAILABLE and its
  // results are discarded; returns false then. A second call returns what the first did.
  bool Shutdown(absl::Duration grace);

 private:
  class Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_SERVER_H_
