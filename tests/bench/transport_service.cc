#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/attention_client.h"
#include "kernels/backend_factory.h"
#include "kernels/heap_allocator.h"
#include "server/server.h"
#include "tests/bench/service_caller.h"
#include "tests/bench/transport_subject.h"

namespace flashbias::bench {
namespace {

// Computes nothing, and takes its time for that.
class NullBackend final : public AttentionBackend {
 public:
  explicit NullBackend(absl::Duration run_time) : run_time_(run_time) {
    info_.name = "null";
    info_.dtypes = {DType::kFloat16};
    info_.max_concurrent_runs = 8;
  }
  const BackendInfo& info() const override { return info_; }
  HostAllocator& host_allocator() override { return host_allocator_; }
  void Run(absl::Span<const AttentionProblem> /*problems*/, absl::Span<ProblemStats> /*stats*/,
           Done done) override {
    const absl::Time end = absl::Now() + run_time_;
    while (run_time_ > absl::ZeroDuration() && absl::Now() < end) {
    }
    std::move(done)(absl::OkStatus());
  }

 private:
  const absl::Duration run_time_;
  BackendInfo info_;
  HeapAllocator host_allocator_;
};

class ServiceSubject final : public TransportSubject {
 public:
  explicit ServiceSubject(const TransportSetup& setup) : setup_(setup), caller_(setup) {}

  // Tensors in shared memory, or in the heap.
  absl::Status Start(std::vector<std::unique_ptr<AttentionBackend>> backends, bool shared) {
    server::ServerOptions options;
    options.listen_address = "127.0.0.1:0";
    options.metrics_address = "";
    options.listen_unix = setup_.unix_path;
    options.copy_threads = setup_.copy_threads;
    options.reflection = false;
    auto server = server::Server::Create(options, std::move(backends));
    if (!server.ok()) return server.status();
    server_ = *std::move(server);
    absl::Status connected =
        caller_.Connect(setup_.unix_path.empty() ? absl::StrCat("127.0.0.1:", server_->port())
                                                 : absl::StrCat("unix:", setup_.unix_path));
    if (!connected.ok()) return connected;
    char* tensors = nullptr;
    if (shared) {
      auto region = caller_.client().CreateRegion(caller_.total_bytes());
      if (!region.ok()) return region.status();
      region_ = *std::move(region);
      tensors = region_->data();
    } else {
      heap_.resize(caller_.total_bytes());
      tensors = heap_.data();
    }
    std::fill_n(tensors, caller_.total_bytes(), '\0');
    const size_t bytes = caller_.tensor_bytes();
    for (uint32_t n = 0; n < caller_.num_inputs(); ++n) {
      FillWithValues(n, {tensors + n * bytes, bytes});
    }
    return caller_.SetTensors(tensors);
  }

  absl::Status Call(int lane, std::optional<ServerTime>* time) override {
    return caller_.Call(lane, time);
  }

 private:
  const TransportSetup setup_;
  std::vector<char> heap_;
  std::unique_ptr<server::Server> server_;
  ServiceCaller caller_;
  std::unique_ptr<client::SharedRegion> region_;
};

absl::StatusOr<std::unique_ptr<TransportSubject>> Make(
    const TransportSetup& setup, std::vector<std::unique_ptr<AttentionBackend>> backends,
    bool shared) {
  auto subject = std::make_unique<ServiceSubject>(setup);
  if (absl::Status status = subject->Start(std::move(backends), shared); !status.ok()) {
    return status;
  }
  return subject;
}

absl::StatusOr<std::unique_ptr<TransportSubject>> MakeComputingNothing(const TransportSetup& setup,
                                                                       bool shared) {
  std::vector<std::unique_ptr<AttentionBackend>> backends;
  backends.push_back(std::make_unique<NullBackend>(setup.run_time));
  return Make(setup, std::move(backends), shared);
}

absl::StatusOr<std::unique_ptr<TransportSubject>> MakeOnGpus(const TransportSetup& setup,
                                                             bool shared) {
  auto backends = CreateBackends({.kind = "cuda"});
  if (!backends.ok()) return backends.status();
  return Make(setup, *std::move(backends), shared);
}

}  // namespace

absl::StatusOr<std::unique_ptr<TransportSubject>> MakeServiceSubject(const TransportSetup& setup) {
  return MakeComputingNothing(setup, /*shared=*/false);
}

absl::StatusOr<std::unique_ptr<TransportSubject>> MakeSharedSubject(const TransportSetup& setup) {
  return MakeComputingNothing(setup, /*shared=*/true);
}

absl::StatusOr<std::unique_ptr<TransportSubject>> MakeGpuSubject(const TransportSetup& setup) {
  return MakeOnGpus(setup, /*shared=*/false);
}

absl::StatusOr<std::unique_ptr<TransportSubject>> MakeSharedGpuSubject(
    const TransportSetup& setup) {
  return MakeOnGpus(setup, /*shared=*/true);
}

}  // namespace flashbias::bench
