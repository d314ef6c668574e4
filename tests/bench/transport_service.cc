#include <cmath>
#include <cstdint>
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
  explicit ServiceSubject(const TransportSetup& setup) : setup_(setup) {
    const auto bytes = static_cast<size_t>(setup.tokens * kTensorBytesPerToken);
    uint32_t seed = 0;
    for (std::vector<char>* tensor : {&q_, &k_, &v_}) {
      tensor->resize(bytes);
      FillWithValues(seed++, tensor);
    }
    slopes_.resize(kHeads);
    for (int n = 0; n < kHeads; ++n) {
      slopes_[static_cast<size_t>(n)] = std::exp2(-8.0F * static_cast<float>(n + 1) / kHeads);
    }
    o_.assign(static_cast<size_t>(setup.lanes), std::vector<char>(bytes));
  }

  absl::Status Start(std::vector<std::unique_ptr<AttentionBackend>> backends) {
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
    return absl::OkStatus();
  }

  absl::Status Call(int lane) override {
    const std::vector<int64_t> shape = {setup_.tokens, kHeads, kHeadDim};
    const client::AttendRequest request = {
        .q = {.dtype = DType::kFloat16, .shape = shape, .data = q_.data()},
        .k = {.dtype = DType::kFloat16, .shape = shape, .data = k_.data()},
        .v = {.dtype = DType::kFloat16, .shape = shape, .data = v_.data()},
        .mask = client::MaskKind::kCausal,
        .bias = client::AlibiSlopes{.slopes = slopes_}};
    client::CallOptions options;
    options.result.o = absl::MakeSpan(o_[static_cast<size_t>(lane)]);
    return client_->Attend(request, options).status();
  }

 private:
  const TransportSetup setup_;
  std::vector<char> q_, k_, v_;
  std::vector<float> slopes_;
  std::vector<std::vector<char>> o_;
  std::unique_ptr<server::Server> server_;
  std::unique_ptr<client::AttentionClient> client_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TransportSubject>> MakeServiceSubject(const TransportSetup& setup) {
  auto subject = std::make_unique<ServiceSubject>(setup);
  std::vector<std::unique_ptr<AttentionBackend>> backends;
  backends.push_back(std::make_unique<NullBackend>());
  if (absl::Status status = subject->Start(std::move(backends)); !status.ok()) return status;
  return subject;
}

absl::StatusOr<std::unique_ptr<TransportSubject>> MakeGpuSubject(const TransportSetup& setup) {
  auto backends = CreateBackends({.kind = "cuda"});
  if (!backends.ok()) return backends.status();
  auto subject = std::make_unique<ServiceSubject>(setup);
  if (absl::Status status = subject->Start(*std::move(backends)); !status.ok()) return status;
  return subject;
}

}  // namespace flashbias::bench
