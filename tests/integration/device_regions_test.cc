// Regions in front of the CUDA backend, whose device is a fake one: what is copied, what is
// registered, what is used in place, and what is left when callers go.
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/attention_client.h"
#include "flashbias/v1/attention.grpc.pb.h"
#include "gmock/gmock.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "server/server.h"
#include "tests/integration/child_process.h"
#include "tests/integration/http_get.h"
#include "tests/integration/placed_backward.h"
#include "tests/integration/placed_request.h"
#include "tests/integration/remote_problem.h"
#include "tests/support/attention_case.h"
#include "tests/support/compare.h"
#include "tests/support/fake_device.h"
#include "tests/support/reference_backend.h"
#include "tests/support/run_backend.h"

namespace flashbias::integration {
namespace {

using client::AttendResult;
using client::AttentionClient;
using server::Server;
using support::AttentionCase;
using support::Describe;
using support::FakeDevice;
using support::FakePlanner;
using support::ForeignMemory;
using support::Materialise;
using support::OwnedProblem;
using ::testing::HasSubstr;

constexpr size_t kMiB = size_t{1} << 20;

class DeviceRegionsTest : public ::testing::Test {
 protected:
  DeviceRegionsTest() {
    options_.listen_address = "127.0.0.1:0";
    options_.metrics_address = "127.0.0.1:0";
    options_.listen_unix = absl::StrCat(::testing::TempDir(), "/device_regions.", getpid());
    device_->Import(memory_);
  }
  ~DeviceRegionsTest() override {
    client_ = nullptr;
    server_ = nullptr;
    for (const auto& device : {device_, second_}) {
      EXPECT_EQ(device->live_objects(), 0) << "something was not given back";
    }
  }

  void Start(bool two_devices = false) {
    std::vector<std::shared_ptr<cuda::DeviceApi>> devices = {device_};
    if (two_devices) devices.push_back(second_);
    const auto pool = std::make_shared<cuda::PinnedPool>(devices, 64 * kMiB);
    std::vector<std::unique_ptr<AttentionBackend>> backends;
    for (const auto& device : {device_, second_}) {
      if (backends.size() == devices.size()) break;
      auto backend = cuda::CudaBackend::Create(
          {.device_memory_bytes = 16 * kMiB, .direct_copy_bytes = 0}, device,
          std::make_unique<FakePlanner>(device.get()), pool,
          {.name = "cuda",
           .device_label = absl::StrCat(backends.size()),
           .dtypes = {DType::kFloat16, DType::kBFloat16, DType::kFloat32}});
      ASSERT_TRUE(backend.ok()) << backend.status();
      backends.push_back(*std::move(backend));
    }
    StartWith(std::move(backends));
  }
  void StartWith(std::vector<std::unique_ptr<AttentionBackend>> backends) {
    auto server = Server::Create(options_, std::move(backends));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    auto client = AttentionClient::Create({.target = Target(), .retry = {.max_attempts = 1}});
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }
  std::string Target() const { return absl::StrCat("unix:", options_.listen_unix); }

  auto Register(const ForeignMemory& memory) const {
    return client_->RegisterDeviceMemory(
        {.data = memory.data(), .bytes = memory.size(), .ipc_handle = memory.handle()});
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

  static size_t CountHistory(const FakeDevice& device, const std::string& what) {
    const std::vector<std::string> history = device.history();
    return static_cast<size_t>(
        std::count_if(history.begin(), history.end(),
                      [&](const std::string& entry) { return entry.starts_with(what); }));
  }
  size_t CountHistory(const std::string& what) const { return CountHistory(*device_, what); }

  // Calls, and compares what lies in the region then with the reference.
  void ExpectAnswer(const PlacedRequest& placed, const AttentionCase& c) const {
    const absl::StatusOr<AttendResult> result =
        client_->Attend(placed.request(), {.result = placed.result()});
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(placed.OutputBytes(&std::memcpy) == ReferenceBytes(c)) << Describe(c);
  }

  static AttentionCase Small() {
    AttentionCase c;
    c.dtype = DType::kFloat16;
    return c;
  }
  static std::string ReferenceBytes(const AttentionCase& c) {
    support::ReferenceBackend reference;
    return OutputBytesOf(reference, c);
  }

  server::ServerOptions options_;
  const ForeignMemory memory_{64 * kMiB, 'm'};
  const std::shared_ptr<FakeDevice> device_ = std::make_shared<FakeDevice>();
  const std::shared_ptr<FakeDevice> second_ = std::make_shared<FakeDevice>();
  std::unique_ptr<Server> server_;
  std::unique_ptr<AttentionClient> client_;
};

TEST_F(DeviceRegionsTest, SharedMemoryIsRegisteredAndCopiedDirectly) {
  Start();
  const OwnedProblem owned = Materialise(Small());
  auto region = client_->CreateRegion(100000);
  ASSERT_TRUE(region.ok()) << region.status();
  EXPECT_EQ(device_->registered_bytes(), 100000u);
  EXPECT_TRUE(AwaitGauge("registered_bytes", 100000));
  EXPECT_TRUE(AwaitGauge("shm_unregistered_regions", 0));
  ExpectAnswer(PlacedRequest(owned, (*region)->data(), 5, &std::memcpy), Small());
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
  ExpectAnswer(PlacedRequest(owned, (*region)->data(), 5, &std::memcpy), Small());
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
  const PlacedRequest placed(owned, (*region)->data(), 5, &std::memcpy);
  EXPECT_EQ(client_
                ->Attend(placed.request(),
                         {.timeout = absl::Milliseconds(300), .result = placed.result()})
                .status()
                .code(),
            absl::StatusCode::kDeadlineExceeded);
  *region = nullptr;
  absl::SleepFor(absl::Milliseconds(50));
  EXPECT_TRUE(AwaitGauge("registered_bytes", 100000)) << "its download is to come";
  device_->ReleaseKernels();
  EXPECT_TRUE(AwaitGauge("registered_bytes", 0));
}

TEST_F(DeviceRegionsTest, DeviceMemoryIsUsedInPlace) {
  Start();
  auto region = Register(memory_);
  ASSERT_TRUE(region.ok()) << region.status();
  EXPECT_EQ((*region)->data(), memory_.data());
  EXPECT_EQ((*region)->size(), memory_.size());
  EXPECT_TRUE(AwaitGauge("device_regions", 1));
  EXPECT_TRUE(AwaitGauge("device_region_bytes", static_cast<double>(memory_.size())));
  EXPECT_TRUE(AwaitGauge("shm_regions", 0));
  ExpectAnswer(PlacedRequest(Materialise(Small()), memory_.data(), 256, &std::memcpy), Small());
  EXPECT_EQ(CountHistory("upload"), 1u) << "the plan";
  EXPECT_EQ(CountHistory("download"), 1u) << "the tile counts";
  *region = nullptr;
  EXPECT_EQ(device_->open_ipc(), 0) << "the client waits until it is closed";
  EXPECT_TRUE(AwaitGauge("device_regions", 0));
  EXPECT_TRUE(AwaitGauge("device_region_bytes", 0));
}

TEST_F(DeviceRegionsTest, EveryKindOfProblemAtEveryAddress) {
  Start();
  auto region = Register(memory_);
  ASSERT_TRUE(region.ok()) << region.status();
  for (const size_t gap : {size_t{256}, size_t{7}}) {
    for (uint64_t seed = 0; seed < (support::kSlowBuild ? 5 : 20); ++seed) {
      const AttentionCase c = support::RandomCase(seed);
      const OwnedProblem owned = Materialise(c);
      ExpectAnswer(PlacedRequest(owned, memory_.data(), gap, &std::memcpy, seed % 3 == 0), c);
    }
  }
}

TEST_F(DeviceRegionsTest, GradientsLieThereToo) {
  Start();
  auto region = Register(memory_);
  ASSERT_TRUE(region.ok()) << region.status();
  for (uint64_t seed = 0; seed < (support::kSlowBuild ? 5 : 20); ++seed) {
    AttentionCase c = support::RandomCase(seed);
    c.direction = Direction::kBackward;
    const OwnedProblem owned = Materialise(c);
    const PlacedBackward placed(owned, memory_.data(), seed % 2 == 0 ? 256 : 7, &std::memcpy);
    const auto gradients =
        client_->AttendBackward(placed.request(), {.gradients = placed.gradients()});
    ASSERT_TRUE(gradients.ok()) << gradients.status() << " " << Describe(c);
    EXPECT_TRUE(placed.OutputBytes(&std::memcpy) == ReferenceBytes(c)) << Describe(c);
    const auto inline_call = client_->AttendBackward(BackwardRequestOf(owned));
    ASSERT_TRUE(inline_call.ok()) << inline_call.status();
    EXPECT_TRUE(inline_call->dq ==
                absl::string_view(placed.gradients().dq.data(), placed.gradients().dq.size()))
        << Describe(c);
  }
  // What comes in the answer is written by this process.
  AttentionCase c = Small();
  c.direction = Direction::kBackward;
  const OwnedProblem owned = Materialise(c);
  const PlacedBackward placed(owned, memory_.data(), 256, &std::memcpy);
  client::GradientBuffers buffers = placed.gradients();
  buffers.dslopes = {reinterpret_cast<float*>(memory_.data()), buffers.dslopes.size()};
  const absl::Status status =
      client_->AttendBackward(placed.request(), {.gradients = buffers}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("gradients.dslopes lies in a region on a device; accepted: host memory"));
}

// Of a request, k lies in the message, v in shared memory, the rest on the device.
TEST_F(DeviceRegionsTest, AllPlacesMix) {
  Start();
  auto region = Register(memory_);
  auto shared = client_->CreateRegion(100000);
  ASSERT_TRUE(region.ok() && shared.ok());
  const OwnedProblem owned = Materialise(Small());
  const PlacedRequest placed(owned, memory_.data(), 3, &std::memcpy, /*k_stays=*/true);
  client::AttendRequest request = placed.request();
  std::memcpy((*shared)->data() + 9, owned.problem().v, owned.kv_elements() * sizeof(uint16_t));
  request.v.data = (*shared)->data() + 9;
  std::string o(placed.result().o.size(), '\0');
  const absl::StatusOr<AttendResult> result =
      client_->Attend(request, {.result = {.o = absl::MakeSpan(o), .lse = placed.result().lse}});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(o, ReferenceBytes(Small()).substr(0, o.size()));
  EXPECT_EQ(placed.OutputBytes(&std::memcpy).substr(o.size()),
            ReferenceBytes(Small()).substr(o.size()));
}

TEST_F(DeviceRegionsTest, WhatCannotBeRegisteredIsToldToTheCaller) {
  Start();
  const ForeignMemory unknown(4096, 'u');
  absl::Status status = Register(unknown).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("ipc_handle: CUDA device 0 cannot open"));

  client::DeviceMemoryView view = {
      .data = memory_.data(), .bytes = memory_.size(), .ipc_handle = memory_.handle(), .offset = 4};
  status = client_->RegisterDeviceMemory(view).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("67108864 bytes from byte 4 of its allocation on; accepted: ranges within "
                        "its 67108864 bytes"));
  view.offset = ~uint64_t{0} - 3;
  EXPECT_EQ(client_->RegisterDeviceMemory(view).status().code(),
            absl::StatusCode::kInvalidArgument);
  view = {.data = memory_.data(), .bytes = 100, .ipc_handle = memory_.handle(), .offset = 2};
  EXPECT_THAT(std::string(client_->RegisterDeviceMemory(view).status().message()),
              HasSubstr("accepted: multiples of 4"));
  view = {.data = memory_.data(), .bytes = 0, .ipc_handle = memory_.handle()};
  EXPECT_EQ(client_->RegisterDeviceMemory(view).status().code(),
            absl::StatusCode::kInvalidArgument);
  view = {.data = memory_.data(), .bytes = 100, .ipc_handle = memory_.handle().subspan(1)};
  EXPECT_THAT(std::string(client_->RegisterDeviceMemory(view).status().message()),
              HasSubstr("ipc_handle has 63 bytes; accepted: the 64"));
  view = {.data = nullptr, .bytes = 100, .ipc_handle = memory_.handle()};
  EXPECT_THAT(std::string(client_->RegisterDeviceMemory(view).status().message()),
              HasSubstr("data is null"));
  EXPECT_TRUE(AwaitGauge("device_regions", 0));
}

TEST_F(DeviceRegionsTest, RangesBeyondARegionAreRefused) {
  Start();
  // Two regions of one allocation.
  client::DeviceMemoryView view = {
      .data = memory_.data(), .bytes = 65536, .ipc_handle = memory_.handle()};
  auto first = client_->RegisterDeviceMemory(view);
  view = {.data = memory_.data() + 65536,
          .bytes = 65536,
          .ipc_handle = memory_.handle(),
          .offset = 65536};
  auto second = client_->RegisterDeviceMemory(view);
  ASSERT_TRUE(first.ok() && second.ok()) << first.status() << second.status();
  EXPECT_EQ(device_->opened_ipc(), 1);
  const OwnedProblem owned = Materialise(Small());
  ExpectAnswer(PlacedRequest(owned, (*second)->data(), 3, &std::memcpy), Small());
  *first = nullptr;
  EXPECT_EQ(device_->open_ipc(), 1);
  ExpectAnswer(PlacedRequest(owned, (*second)->data(), 5, &std::memcpy), Small());

  // The client sees tensors that only begin in a region, or end there.
  const PlacedRequest placed(owned, (*second)->data(), 3, &std::memcpy);
  client::AttendRequest request = placed.request();
  request.v.data = static_cast<char*>((*second)->data()) - 1;
  absl::Status status = client_->Attend(request, {.result = placed.result()}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("v has 2048 bytes, of which some lie in"));
  request = placed.request();
  client::ResultBuffers buffers = placed.result();
  buffers.o = {static_cast<char*>((*second)->data()) + 65536 - 2047, 2048};
  status = client_->Attend(request, {.result = buffers}).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("result.o has 2048 bytes"));
  request.bias = client::AlibiSlopes{.slopes = {static_cast<float*>((*second)->data()), 2}};
  status = client_->Attend(request, {.result = placed.result()}).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("alibi.slopes lie in a region on a device"));
  EXPECT_THAT(std::string(client_->RegisterDeviceMemory(view).status().message()),
              HasSubstr("overlap a region of this client's"));
}

// The server's own check: another client's regions overlap this one's.
TEST_F(DeviceRegionsTest, ResultsMayNotOverlapTensorsInAnotherRegionOfTheAllocation) {
  Start();
  auto region = Register(memory_);
  auto other_client = AttentionClient::Create({.target = Target()});
  // The same memory under an address of its own.
  auto alias = (*other_client)
                   ->RegisterDeviceMemory({.data = memory_.data() + 2 * memory_.size(),
                                           .bytes = memory_.size() - 4,
                                           .ipc_handle = memory_.handle(),
                                           .offset = 4});
  ASSERT_TRUE(region.ok() && alias.ok()) << region.status() << alias.status();
  v1::AttendRequest request;
  request.set_mask(v1::MASK_FULL);
  uint64_t offset = 0;
  for (v1::Tensor* tensor : {request.mutable_q(), request.mutable_k(), request.mutable_v()}) {
    tensor->set_dtype(v1::DTYPE_FLOAT32);
    for (const int64_t extent : {4, 2, 8}) tensor->add_shape(extent);
    tensor->set_region_id((*region)->id());
    tensor->set_region_offset(offset);
    offset += 256;
  }
  request.mutable_o_place()->set_region_id((*alias)->id());
  const auto call = [&](uint64_t at) {
    request.mutable_o_place()->set_offset(at);
    const auto stub = v1::AttentionService::NewStub(
        grpc::CreateChannel(Target(), grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    v1::AttendResponse response;
    return stub->Attend(&context, request, &response);
  };
  EXPECT_TRUE(call(768 - 4).ok()) << call(768 - 4).error_message();
  EXPECT_THAT(call(768 - 8).error_message(),
              HasSubstr("o_place is bytes 760 to 1016 of its region and overlaps v"));
  request.mutable_q()->set_region_offset(memory_.size() - 255);
  EXPECT_THAT(call(764).error_message(), HasSubstr("q takes 256 bytes from byte 67108609"));
}

TEST_F(DeviceRegionsTest, MemoryIsKeptOpenUntilItsRunHasEnded) {
  Start();
  device_->HoldKernels();
  auto region = Register(memory_);
  ASSERT_TRUE(region.ok()) << region.status();
  const OwnedProblem owned = Materialise(Small());
  const PlacedRequest placed(owned, memory_.data(), 3, &std::memcpy);
  EXPECT_EQ(client_
                ->Attend(placed.request(),
                         {.timeout = absl::Milliseconds(300), .result = placed.result()})
                .status()
                .code(),
            absl::StatusCode::kDeadlineExceeded);
  std::thread release([&] {
    *region = nullptr;
    EXPECT_EQ(device_->open_ipc(), 0) << "the destructor waits for the run";
  });
  absl::SleepFor(absl::Milliseconds(100));
  EXPECT_EQ(device_->open_ipc(), 1);
  EXPECT_TRUE(AwaitGauge("device_regions", 1));
  device_->ReleaseKernels();
  release.join();
  EXPECT_TRUE(AwaitGauge("device_regions", 0));
  EXPECT_EQ(CountHistory("kernel"), 1u);
}

TEST_F(DeviceRegionsTest, KilledCallersLeaveNothingAndTheNextCallSucceeds) {
  Start();
  const ForeignMemory theirs(kMiB, 't');
  device_->Import(theirs);
  for (int kill = 0; kill < (support::kSlowBuild ? 10 : 30); ++kill) {
    auto caller =
        ChildProcess::Start(absl::StrCat(FLASHBIAS_BIN_DIR, "/device_region_caller"),
                            {Target(), absl::StrCat(int{'t'})},
                            absl::StrCat(::testing::TempDir(), "/device_region_caller.", getpid()));
    ASSERT_TRUE(caller.ok()) << caller.status();
    const absl::Time give_up = absl::Now() + absl::Seconds(60);
    while (caller->Output().empty() && absl::Now() < give_up) {
      ASSERT_TRUE(caller->Running());
      absl::SleepFor(absl::Milliseconds(1));
    }
    if (kill % 2 == 0) {
      // In flight for sure.
      device_->HoldKernels();
      absl::SleepFor(absl::Milliseconds(20));
    }
    absl::SleepFor(absl::Microseconds(137 * (kill % 30)));
    caller->Signal(SIGKILL);
    ASSERT_TRUE(caller->Wait(absl::Seconds(10)).ok());
    if (kill % 2 == 0) {
      absl::SleepFor(absl::Milliseconds(20));
      EXPECT_EQ(device_->open_ipc(), 1) << "a kernel is to run there";
      device_->ReleaseKernels();
    }
    ASSERT_TRUE(AwaitGauge("device_regions", 0)) << "kill " << kill;
    EXPECT_EQ(device_->open_ipc(), 0);
    auto region = Register(memory_);
    ASSERT_TRUE(region.ok()) << region.status();
    ExpectAnswer(PlacedRequest(Materialise(Small()), memory_.data(), 3, &std::memcpy), Small());
  }
  EXPECT_TRUE(AwaitGauge("device_regions", 0));
  EXPECT_TRUE(AwaitGauge("device_region_bytes", 0));
}

TEST_F(DeviceRegionsTest, ARequestRunsOnTheDeviceWhoseMemoryItNames) {
  const ForeignMemory on_second(64 * kMiB, 's');
  device_->Import(on_second, /*on_this_device=*/false);
  second_->Import(on_second);
  second_->Import(memory_, /*on_this_device=*/false);
  Start(/*two_devices=*/true);
  auto first_region = Register(memory_);
  auto second_region = Register(on_second);
  ASSERT_TRUE(first_region.ok() && second_region.ok())
      << first_region.status() << second_region.status();
  const OwnedProblem owned = Materialise(Small());
  for (int n = 0; n < 3; ++n) {
    ExpectAnswer(PlacedRequest(owned, on_second.data(), 3, &std::memcpy), Small());
  }
  EXPECT_EQ(CountHistory(*second_, "kernel"), 3u);
  ExpectAnswer(PlacedRequest(owned, memory_.data(), 3, &std::memcpy), Small());
  EXPECT_EQ(CountHistory(*device_, "kernel"), 1u);

  const PlacedRequest placed(owned, memory_.data(), 3, &std::memcpy);
  client::ResultBuffers elsewhere = placed.result();
  elsewhere.o = {on_second.data(), elsewhere.o.size()};
  const absl::Status status = client_->Attend(placed.request(), {.result = elsewhere}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("o_place lies in memory of another device than q; accepted: one device"));
}

// A stream would read all tensors on the host.
TEST_F(DeviceRegionsTest, CallsWithTensorsOnADeviceAreNeverStreamed) {
  Start();
  client_ = *AttentionClient::Create({.target = Target(), .max_message_bytes = 2000});
  auto region = Register(memory_);
  ASSERT_TRUE(region.ok()) << region.status();
  const OwnedProblem owned = Materialise(Small());
  const PlacedRequest placed(owned, memory_.data(), 3, &std::memcpy, /*k_stays=*/true);
  const absl::Status status =
      client_->Attend(placed.request(), {.result = placed.result()}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("max_message_bytes is 2000"));
  ExpectAnswer(PlacedRequest(owned, memory_.data(), 3, &std::memcpy), Small());
}

TEST_F(DeviceRegionsTest, WithoutADeviceRegisteringIsRefused) {
  std::vector<std::unique_ptr<AttentionBackend>> backends;
  backends.push_back(std::make_unique<support::ReferenceBackend>());
  StartWith(std::move(backends));
  const absl::Status status = Register(memory_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("the reference backend has no device memory; accepted: host memory"));
  EXPECT_TRUE(client_->CreateRegion(4096).ok());
}

TEST_F(DeviceRegionsTest, OffMeansOffAndOnlyUnixSocketsHaveRegions) {
  options_.shared_memory = server::SharedMemory::kOff;
  Start();
  EXPECT_EQ(Register(memory_).status().code(), absl::StatusCode::kUnavailable);
  client_ = *AttentionClient::Create({.target = absl::StrCat("127.0.0.1:", server_->port())});
  EXPECT_THAT(std::string(Register(memory_).status().message()), HasSubstr("unix:PATH"));
}

TEST_F(DeviceRegionsTest, ARegionMayOutliveClientAndServer) {
  Start();
  auto region = Register(memory_);
  ASSERT_TRUE(region.ok()) << region.status();
  client_ = nullptr;
  server_ = nullptr;
  EXPECT_EQ(device_->open_ipc(), 0);
  *region = nullptr;
}

}  // namespace
}  // namespace flashbias::integration
