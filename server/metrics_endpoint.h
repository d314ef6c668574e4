// Serves GET /metrics over HTTP: what is counted, and the state of the process.
//
// Thread-safety: made and destroyed by one thread; it answers scrapes on threads of its own.
#ifndef FLASHBIAS_SERVER_METRICS_ENDPOINT_H_
#define FLASHBIAS_SERVER_METRICS_ENDPOINT_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/metrics.h"

namespace flashbias::server {

class MetricsEndpoint {
 public:
  // `address` is host:port; port 0 picks a free one. Keeps what it serves alive.
  // UNAVAILABLE where the address cannot be had.
  static absl::StatusOr<std::unique_ptr<MetricsEndpoint>> Create(const std::string& address,
                                                                 const Metrics& metrics);
  MetricsEndpoint(const MetricsEndpoint&) = delete;
  MetricsEndpoint& operator=(const MetricsEndpoint&) = delete;
  ~MetricsEndpoint();

  int port() const;

 private:
  struct Impl;
  explicit MetricsEndpoint(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_METRICS_ENDPOINT_H_
