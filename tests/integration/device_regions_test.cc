// Regions in front of the CUDA backend, whose device is a fake one: what is copied, what is
// registered, and what is left when callers go.
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/attention_client.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "server/server.h"
#include "tests/integration/http_get.h"
#include "tests/integration/remote_problem.h"
#include "tests/support/attention_case.h"
#include "tests/support/fake_device.h"
#include "tests/support/reference_backend.h"
#include "tests/support/run_backend.h"

namespace flashbias::integration {
namespace {

using client::AttendResult;
using client::AttentionClient;
using client::SharedRegion;
using server::Server;
using support::AttentionCase;
using support::FakeDevice;
using support::FakePlanner;
using support::Materialise;
using support::OwnedProblem;

class DeviceRegionsTest : public ::testing::Test {
 protected:
  DeviceRegionsTest() {
    options_.listen_address = "127.0.0.1:0";
    options_.metrics_address = "127.0.0.1:0";
    options_.listen_unix = absl::StrCat(::testing::TempDir(), "/device_regions.", getpid());
  }
  ~DeviceRegionsTest() override {
    client_ = nullptr;
    server_ = nullptr;
    EXPECT_EQ(device_->live_objects(), 0) << "something was not given back";
  }

  void Start() {
    const auto pool = std::make_shared<cuda::PinnedPool>(
        std::vector<std::shared_ptr<cuda::DeviceApi>>{device_}, size_t{64} << 20);
    auto backend = cuda::CudaBackend::Create(
        {.device_memory_bytes = size_t{16} << 20, .direct_copy_bytes = 0}, device_,
        std::make_unique<FakePlanner>(device_.get()), pool,
        {.name = "cuda", .dtypes = {DType::kFloat16, DType::kBFloat16, DType::kFloat32}});
    ASSERT_TRUE(backend.ok()) << backend.status();
    auto server = Server::Create(options_, *std::move(backend));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    auto client = AttentionClient::Create(
        {.target = absl::StrCat("unix:", options_.listen_unix), .retry = {.max_attempts = 1}});
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }

  // Whether the gauge comes to this value within ten seconds.
  bool AwaitGauge(const std::string& name, double value) const {
    const absl::Time give_up = absl::Now() + absl::Seconds(10);
    while (absl::Now() < give_up) {
      absl::StatusOr<Samples> samples = Scrape(server_->metrics_port());
      EXPECT_TRUE(samples.ok());
      if ((*samples)["flashbias_" + name] == value) return true;
      absl::SleepFor(absl::Milliseconds(2));
    }
    return false;
  }

  size_t CountHistory(const std::string& what) const {
    const std::vector<std::string> history = device_->history();
    return static_cast<size_t>(
        std::count_if(history.begin(), history.end(),
                      [&](const std::string& entry) { return entry.starts_with(what); }));
  }

  server::ServerOptions options_;
  const std::shared_ptr<FakeDevice> device_ = std::make_shared<FakeDevice>();
  std::unique_ptr<Server> server_;
  std::unique_ptr<AttentionClient> client_;
};

AttentionCase Small() {
  AttentionCase c;
  c.dtype = DType::kFloat16;
  c.want_lse = true;
  return c;
}

std::string ReferenceBytes(const AttentionCase& c) {
  support::ReferenceBackend reference;
  return OutputBytesOf(reference, c);
}

// A request whose tensors and results lie in a region, one after the other.
struct RegionCall {
  RegionCall(SharedRegion* region, const OwnedProblem& owned) : request(RequestOf(owned)) {
    char* at = region->data();
    const size_t q_bytes = owned.q_elements() * sizeof(uint16_t);
    const size_t kv_bytes = owned.kv_elements() * sizeof(uint16_t);
    const auto move = [&at](client::TensorView* tensor, size_t bytes) {
      std::memcpy(at, tensor->data, bytes);
      tensor->data = at;
      at += bytes;
    };
    move(&request.q, q_bytes);
    move(&request.k, kv_bytes);
    move(&request.v, kv_bytes);
    options.result.o = {at, q_bytes};
    at += (q_bytes + 3) / 4 * 4;
    options.result.lse = {reinterpret_cast<float*>(at), static_cast<size_t>(owned.lse_elements())};
  }
  std::string OutputBytes() const {
    return std::string(options.result.o.data(), options.result.o.size()) +
           std::string(reinterpret_cast<const char*>(options.result.lse.data()),
                       options.result.lse.size() * sizeof(float));
  }

  client::AttendRequest request;
  client::CallOptions options;
};

TEST_F(DeviceRegionsTest, SharedMemoryIsRegisteredAndCopiedDirectly) {
  Start();
  const OwnedProblem owned = Materialise(Small());
  auto region = client_->CreateRegion(100000);
  ASSERT_TRUE(region.ok()) << region.status();
  EXPECT_EQ(device_->registered_bytes(), 100000u);
  EXPECT_TRUE(AwaitGauge("registered_bytes", 100000));
  EXPECT_TRUE(AwaitGauge("shm_unregistered_regions", 0));
  const RegionCall call(region->get(), owned);
  const absl::StatusOr<AttendResult> result = client_->Attend(call.request, call.options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(call.OutputBytes() == ReferenceBytes(Small()));
  EXPECT_EQ(CountHistory("upload"), 4u) << "q, k, v, and the plan";
  EXPECT_EQ(CountHistory("download"), 3u) << "o, lse, and the tile counts";
  *region = nullptr;
  EXPECT_TRUE(AwaitGauge("registered_bytes", 0));
  EXPECT_EQ(device_->registered_bytes(), 0u);
}

TEST_F(DeviceRegionsTest, SharedMemoryThatCannotBeRegisteredIsStaged) {
  Start();
  device_->FailNext(FakeDevice::Call::kRegisterHost, cuda::kOutOfMemory, /*sticky=*/false);
  const OwnedProblem owned = Materialise(Small());
  auto region = client_->CreateRegion(100000);
  ASSERT_TRUE(region.ok()) << region.status();
  EXPECT_TRUE(AwaitGauge("registered_bytes", 0));
  EXPECT_TRUE(AwaitGauge("shm_unregistered_regions", 1));
  const RegionCall call(region->get(), owned);
  const absl::StatusOr<AttendResult> result = client_->Attend(call.request, call.options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(call.OutputBytes() == ReferenceBytes(Small()));
  EXPECT_EQ(CountHistory("upload"), 2u) << "all tensors together, and the plan";
  *region = nullptr;
  EXPECT_TRUE(AwaitGauge("shm_unregistered_regions", 0));
}

TEST_F(DeviceRegionsTest, ARegionStaysRegisteredUntilItsRunHasEnded) {
  Start();
  device_->HoldKernels();
  const OwnedProblem owned = Materialise(Small());
  auto region = client_->CreateRegion(100000);
  ASSERT_TRUE(region.ok()) << region.status();
  RegionCall call(region->get(), owned);
  call.options.timeout = absl::Milliseconds(300);
  EXPECT_EQ(client_->Attend(call.request, call.options).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  *region = nullptr;
  absl::SleepFor(absl::Milliseconds(50));
  EXPECT_TRUE(AwaitGauge("registered_bytes", 100000)) << "its download is to come";
  device_->ReleaseKernels();
  EXPECT_TRUE(AwaitGauge("registered_bytes", 0));
}

}  // namespace
}  // namespace flashbias::integration
