#include "server/metrics_endpoint.h"

#include <prometheus/collectable.h>
#include <prometheus/exposer.h>

#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/process_metrics.h"

namespace flashbias::server {

struct MetricsEndpoint::Impl {
  std::shared_ptr<prometheus::Collectable> collectable;
  std::shared_ptr<prometheus::Collectable> process;
  std::unique_ptr<prometheus::Exposer> exposer;
};

absl::StatusOr<std::unique_ptr<MetricsEndpoint>> MetricsEndpoint::Create(const std::string& address,
                                                                         const Metrics& metrics) {
  auto impl = std::make_unique<Impl>();
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

MetricsEndpoint::~MetricsEndpoint() = default;

int MetricsEndpoint::port() const { return impl_->exposer->GetListeningPorts().front(); }

}  // namespace flashbias::server
