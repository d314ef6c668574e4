#include "server/metrics_endpoint.h"

#include <netdb.h>
#include <prometheus/collectable.h>
#include <prometheus/exposer.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <exception>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/process_metrics.h"

namespace flashbias::server {
namespace {

// Connects to a listener of this machine and leaves.
void Knock(const std::string& host, int port) {
  addrinfo hints = {};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), absl::StrCat(port).c_str(), &hints, &found) != 0) return;
  const int socket =
      ::socket(found->ai_family, found->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (socket >= 0) {
    // What comes of it does not matter: the listener has woken.
    (void)connect(socket, found->ai_addr, found->ai_addrlen);
    close(socket);
  }
  freeaddrinfo(found);
}

// Where a listener of this address can be reached: "0.0.0.0:8472" is no address to connect to.
std::string ReachableHost(const std::string& address) {
  std::string host = address.substr(0, address.rfind(':'));
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  if (host.empty() || host == "0.0.0.0") return "127.0.0.1";
  return host == "::" ? "::1" : host;
}

}  // namespace

struct MetricsEndpoint::Impl {
  std::string host;
  std::shared_ptr<prometheus::Collectable> collectable;
  std::shared_ptr<prometheus::Collectable> process;
  std::unique_ptr<prometheus::Exposer> exposer;
};

absl::StatusOr<std::unique_ptr<MetricsEndpoint>> MetricsEndpoint::Create(const std::string& address,
                                                                         const Metrics& metrics) {
  auto impl = std::make_unique<Impl>();
  impl->host = ReachableHost(address);
  impl->collectable = metrics.collectable();
  impl->process = NewProcessMetrics();
  // The HTTP library reports a bad or taken address by throwing.
  try {
    impl->exposer = std::make_unique<prometheus::Exposer>(address);
  } catch (const std::exception&) {  // its text names the library, not the reason
    return absl::UnavailableError(absl::StrCat("metrics_address is '", address,
                                               "': cannot listen there (taken or not local)"));
  }
  impl->exposer->RegisterCollectable(impl->collectable);
  impl->exposer->RegisterCollectable(impl->process);
  return std::unique_ptr<MetricsEndpoint>(new MetricsEndpoint(std::move(impl)));
}

MetricsEndpoint::MetricsEndpoint(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

MetricsEndpoint::~MetricsEndpoint() {
  // The HTTP library looks whether it is to stop when somebody connects, otherwise every two
  // seconds.
  std::atomic<bool> stopped{false};
  std::thread visitor([&stopped, host = impl_->host, port = port()] {
    while (!stopped.load()) {
      Knock(host, port);
      absl::SleepFor(absl::Milliseconds(5));
    }
  });
  impl_->exposer.reset();
  stopped.store(true);
  visitor.join();
}

int MetricsEndpoint::port() const { return impl_->exposer->GetListeningPorts().front(); }

}  // namespace flashbias::server
