#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/attention_client.h"
#include "kernels/backend_factory.h"
#include "kernels/heap_allocator.h"
#include "server/server.h"
#include "tests/bench/transport_subject.h"

namespace flashbias::bench {
namespace {

class NullBackend final : public AttentionBackend {
 public:
  NullBackend() {
    info_.name = "null";
    info_.dtypes = {DType::kFloat16};
    info_.max_concurrent_runs = 8;
  }
  const BackendInfo& info() const override { return info_; }
  HostAllocator& host_allocator() override { return host_allocator_; }
  void Run(absl::Span<const AttentionProblem> /*problems*/, absl::Span<ProblemStats> /*stats*/,
           Done done) override {
    std::move(done)(absl::OkStatus());
  }

 private:
  BackendInfo info_;
  HeapAllocator host_allocator_;
};

class ServiceSubject final : public TransportSubject {
 public:
  explicit ServiceSubject(const TransportSetup& setup)
      : setup_(setup), bytes_(static_cast<size_t>(setup.tokens * kTensorBytesPerToken)) {
    slopes_.resize(kHeads);
    for (int n = 0; n < kHeads; ++n) {
      slopes_[static_cast<size_t>(n)] = std::exp2(-8.0F * static_cast<float>(n + 1) / kHeads);
    }
  }

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
    auto client = client::AttentionClient::Create(
        {.target = setup_.unix_path.empty() ? absl::StrCat("127.0.0.1:", server_->port())
                                            : absl::StrCat("unix:", setup_.unix_path),
         .num_connections = setup_.connections});
    if (!client.ok()) return client.status();
    client_ = *std::move(client);
    const size_t total = (3 + static_cast<size_t>(setup_.lanes)) * bytes_;
    if (shared) {
      auto region = client_->CreateRegion(total);
      if (!region.ok()) return region.status();
      region_ = *std::move(region);
      tensors_ = region_->data();
    } else {
      heap_.resize(total);
      tensors_ = heap_.data();
    }
    std::fill_n(tensors_, total, '\0');
    for (uint32_t n = 0; n < 3; ++n) FillWithValues(n, {tensors_ + n * bytes_, bytes_});
    return absl::OkStatus();
  }

  absl::Status Call(int lane, std::optional<ServerTime>* time) override {
    const std::vector<int64_t> shape = {setup_.tokens, kHeads, kHeadDim};
    const client::AttendRequest request = {
        .q = {.dtype = DType::kFloat16, .shape = shape, .data = tensors_},
        .k = {.dtype = DType::kFloat16, .shape = shape, .data = tensors_ + bytes_},
        .v = {.dtype = DType::kFloat16, .shape = shape, .data = tensors_ + 2 * bytes_},
        .mask = client::MaskKind::kCausal,
        .bias = client::AlibiSlopes{.slopes = slopes_}};
    client::CallOptions options;
    options.result.o = {tensors_ + (3 + static_cast<size_t>(lane)) * bytes_, bytes_};
    const auto result = client_->Attend(request, options);
    if (!result.ok()) return result.status();
    const client::Timing& t = result->timing;
    *time = ServerTime{.receive = t.receive,
                       .queue = t.queue,
                       .upload = t.upload,
                       .kernel = t.kernel,
                       .download = t.download,
                       .rest = t.compute - t.upload - t.kernel - t.download,
                       .send = t.send};
    return absl::OkStatus();
  }

 private:
  const TransportSetup setup_;
  const size_t bytes_;  // of each of q, k, v and o
  std::vector<char> heap_;
  std::vector<float> slopes_;
  std::unique_ptr<server::Server> server_;
  std::unique_ptr<client::AttentionClient> client_;
  std::unique_ptr<client::SharedRegion> region_;
  char* tensors_ = nullptr;  // q, k, v, then one o for each lane
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
  backends.push_back(std::make_unique<NullBackend>());
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
