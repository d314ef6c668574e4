// Tensors in memory that client and server share: true answers, refusals, and what is left when
// callers go.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/attention_client.h"
#include "flashbias/v1/attention.grpc.pb.h"
#include "gmock/gmock.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "gtest/gtest.h"
#include "kernels/backend_factory.h"
#include "server/server.h"
#include "tests/integration/child_process.h"
#include "tests/integration/http_get.h"
#include "tests/integration/remote_problem.h"
#include "tests/server/puppet_backend.h"
#include "tests/support/attention_case.h"
#include "tests/support/compare.h"
#include "tests/support/process_usage.h"

namespace flashbias::integration {
namespace {

using client::AttendResult;
using client::AttentionClient;
using client::SharedRegion;
using client::TensorView;
using server::PuppetBackend;
using server::Server;
using support::AttentionCase;
using support::Materialise;
using support::OwnedProblem;
using ::testing::HasSubstr;

size_t BytesOf(const TensorView& tensor) {
  size_t bytes = SizeOf(tensor.dtype);
  for (const int64_t extent : tensor.shape) bytes *= static_cast<size_t>(extent);
  return bytes;
}

// Places one after the other in a region.
class Placer {
 public:
  Placer(SharedRegion* region, size_t gap) : region_(region), at_(gap), gap_(gap) {}

  char* Take(size_t bytes) {
    char* const place = region_->data() + at_;
    at_ += bytes + gap_;
    EXPECT_LE(at_, region_->size());
    return place;
  }
  void Move(TensorView* tensor) {
    char* const to = Take(BytesOf(*tensor));
    if (BytesOf(*tensor) > 0) std::memcpy(to, tensor->data, BytesOf(*tensor));
    tensor->data = to;
  }
  float* TakeFloats(size_t count) {
    at_ = (at_ + 3) / 4 * 4;
    return reinterpret_cast<float*>(Take(count * sizeof(float)));
  }

 private:
  SharedRegion* const region_;
  size_t at_;
  const size_t gap_;
};

class SharedMemoryTest : public ::testing::Test {
 protected:
  SharedMemoryTest() {
    options_.listen_address = "127.0.0.1:0";
    options_.metrics_address = "127.0.0.1:0";
    options_.listen_unix = absl::StrCat(::testing::TempDir(), "/shared_memory.", getpid());
  }

  void Start(std::unique_ptr<AttentionBackend> backend) {
    auto server = Server::Create(options_, std::move(backend));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    client_ = NewClient(UnixTarget());
  }
  void StartCpu() {
    auto backend = CreateBackend({.kind = "cpu", .cpu_threads = 2});
    ASSERT_TRUE(backend.ok());
    Start(*std::move(backend));
  }
  PuppetBackend* StartPuppet(bool automatic) {
    auto backend = std::make_unique<PuppetBackend>(1);
    backend->set_automatic(automatic);
    PuppetBackend* const puppet = backend.get();
    Start(std::move(backend));
    return puppet;
  }

  std::string UnixTarget() const { return absl::StrCat("unix:", options_.listen_unix); }
  static std::unique_ptr<AttentionClient> NewClient(const std::string& target) {
    auto client = AttentionClient::Create({.target = target, .retry = {.max_attempts = 1}});
    EXPECT_TRUE(client.ok()) << client.status();
    return *std::move(client);
  }
  std::unique_ptr<SharedRegion> NewRegion(size_t bytes) const {
    auto region = client_->CreateRegion(bytes);
    EXPECT_TRUE(region.ok()) << region.status();
    return *std::move(region);
  }

  // Whether the gauges come to these values within ten seconds.
  bool AwaitGauges(double regions, double bytes) const {
    const absl::Time give_up = absl::Now() + absl::Seconds(10);
    while (absl::Now() < give_up) {
      absl::StatusOr<Samples> samples = Scrape(server_->metrics_port());
      EXPECT_TRUE(samples.ok());
      if ((*samples)["flashbias_shm_regions"] == regions &&
          (*samples)["flashbias_shm_region_bytes"] == bytes) {
        return true;
      }
      absl::SleepFor(absl::Milliseconds(2));
    }
    return false;
  }

  // A request by the generated classes: float32 [4, 2, 8], q, k and v in the region one after the
  // other, o_place and lse_place behind.
  static v1::AttendRequest WireRequest(uint64_t id) {
    v1::AttendRequest request;
    request.set_mask(v1::MASK_FULL);
    request.set_want_lse(true);
    uint64_t offset = 0;
    for (v1::Tensor* tensor : {request.mutable_q(), request.mutable_k(), request.mutable_v()}) {
      tensor->set_dtype(v1::DTYPE_FLOAT32);
      for (const int64_t extent : {4, 2, 8}) tensor->add_shape(extent);
      tensor->set_region_id(id);
      tensor->set_region_offset(offset);
      offset += 256;
    }
    request.mutable_o_place()->set_region_id(id);
    request.mutable_o_place()->set_offset(offset);
    request.mutable_lse_place()->set_region_id(id);
    request.mutable_lse_place()->set_offset(offset + 256);
    return request;
  }
  static grpc::Status Call(const std::string& target, const v1::AttendRequest& request,
                           v1::AttendResponse* response) {
    const auto stub = v1::AttentionService::NewStub(
        grpc::CreateChannel(target, grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    return stub->Attend(&context, request, response);
  }

  server::ServerOptions options_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<AttentionClient> client_;
};

TEST_F(SharedMemoryTest, AnswersAreThoseOfInlineCallsBitForBit) {
  StartCpu();
  // At odd addresses, too.
  for (const size_t gap : {size_t{64}, size_t{7}}) {
    for (uint64_t seed = 0; seed < 20; ++seed) {
      OwnedProblem owned = Materialise(support::RandomCase(seed));
      client::AttendRequest request = RequestOf(owned);
      const absl::StatusOr<AttendResult> inline_result = client_->Attend(request);
      ASSERT_TRUE(inline_result.ok()) << inline_result.status();

      const std::unique_ptr<SharedRegion> region = NewRegion(64 << 20);
      Placer placer(region.get(), gap);
      placer.Move(&request.q);
      if (seed % 3 != 0) placer.Move(&request.k);  // a mixture is fine
      placer.Move(&request.v);
      if (auto* factors = std::get_if<client::LowRankFactors>(&request.bias)) {
        placer.Move(&factors->phi_q);
        placer.Move(&factors->phi_k);
      }
      client::CallOptions options;
      if (seed % 4 != 1) {
        const size_t bytes = inline_result->o.size();
        options.result.o = {placer.Take(bytes), bytes};
      }
      if (request.want_lse && seed % 4 != 2) {
        const size_t count = inline_result->lse.size();
        options.result.lse = {placer.TakeFloats(count), count};
      }
      const absl::StatusOr<AttendResult> result = client_->Attend(request, options);
      ASSERT_TRUE(result.ok()) << result.status();
      EXPECT_EQ(result->shape, inline_result->shape);
      const absl::string_view o =
          options.result.o.empty()
              ? absl::string_view(result->o)
              : absl::string_view(options.result.o.data(), options.result.o.size());
      EXPECT_TRUE(o == inline_result->o) << "seed " << seed;
      const absl::Span<const float> lse =
          options.result.lse.empty() ? absl::MakeConstSpan(result->lse) : options.result.lse;
      ASSERT_EQ(lse.size(), inline_result->lse.size());
      // Neither may be null in a call of memcmp.
      EXPECT_TRUE(lse.empty() || std::memcmp(lse.data(), inline_result->lse.data(),
                                             lse.size() * sizeof(float)) == 0)
          << "seed " << seed;
    }
  }
}

TEST_F(SharedMemoryTest, WhatLiesInARegionIsInNoMessage) {
  options_.max_message_bytes = 1024;
  StartPuppet(true);
  client_ = nullptr;
  // Too little to stream with.
  auto small = AttentionClient::Create({.target = UnixTarget(), .max_message_bytes = 1023});
  ASSERT_TRUE(small.ok());
  client_ = *std::move(small);
  const std::unique_ptr<SharedRegion> region = NewRegion(1 << 20);
  const TensorView tensor = {
      .dtype = DType::kFloat32, .shape = {32, 2, 32}, .data = region->data()};
  const client::AttendRequest request = {
      .q = tensor, .k = tensor, .v = tensor, .mask = client::MaskKind::kFull};
  EXPECT_EQ(client_->Attend(request).status().code(), absl::StatusCode::kResourceExhausted)
      << "o has no place there";
  char* const o = region->data() + (1 << 19);
  const auto result = client_->Attend(request, {.result = {.o = {o, 8192}}});
  EXPECT_TRUE(result.ok()) << result.status();
}

TEST_F(SharedMemoryTest, WhatMustBeStreamedIsStreamedFromARegionToo) {
  StartCpu();
  auto streaming = AttentionClient::Create({.target = UnixTarget(), .stream_above_bytes = 8191});
  ASSERT_TRUE(streaming.ok());
  const auto region = (*streaming)->CreateRegion(1 << 20);
  ASSERT_TRUE(region.ok()) << region.status();
  char* const data = (*region)->data();
  for (size_t n = 0; n < 8192; ++n) data[n] = static_cast<char>(n % 61);
  const TensorView tensor = {.dtype = DType::kFloat32, .shape = {32, 2, 32}, .data = data};
  const client::AttendRequest request = {
      .q = tensor, .k = tensor, .v = tensor, .mask = client::MaskKind::kFull};
  const absl::StatusOr<AttendResult> want = client_->Attend(request);  // inline: not its region
  ASSERT_TRUE(want.ok()) << want.status();
  // The answer, of 8192 bytes, has no place in a region.
  const absl::StatusOr<AttendResult> got = (*streaming)->Attend(request);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_TRUE(got->o == want->o);
  // Here nothing is left to stream.
  char* const o = data + (1 << 19);
  ASSERT_TRUE((*streaming)->Attend(request, {.result = {.o = {o, 8192}}}).ok());
  EXPECT_TRUE(absl::string_view(o, 8192) == want->o);
  absl::StatusOr<Samples> samples = Scrape(server_->metrics_port());
  ASSERT_TRUE(samples.ok());
  EXPECT_EQ((*samples)["flashbias_requests_total{code=\"OK\",method=\"AttendStream\","
                       "transport=\"unix\"}"],
            1);
}

TEST_F(SharedMemoryTest, TheGeneratedClassesCanUseRegions) {
  StartPuppet(true);
  const std::unique_ptr<SharedRegion> region = NewRegion(4096);
  std::fill_n(reinterpret_cast<float*>(region->data()), 192, 0.5f);
  v1::AttendResponse response;
  const grpc::Status status = Call(UnixTarget(), WireRequest(region->id()), &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_TRUE(response.o().data().empty());
  EXPECT_TRUE(response.lse().data().empty());
  EXPECT_EQ(response.o().region_id(), region->id());
  EXPECT_EQ(response.o().region_offset(), 768u);
  EXPECT_EQ(response.lse().region_offset(), 1024u);
  EXPECT_EQ(response.o().shape_size(), 3);
  EXPECT_EQ(reinterpret_cast<const float*>(region->data())[192], 0.5f) << "o was written";
}

TEST_F(SharedMemoryTest, BadRangesAreRefusedWithTheirField) {
  StartPuppet(true);
  const std::unique_ptr<SharedRegion> region = NewRegion(4000);
  const std::unique_ptr<SharedRegion> other = NewRegion(4000);
  struct Case {
    const char* message;
    std::function<void(v1::AttendRequest*)> change;
  };
  const Case cases[] = {
      {"q.region_id is 1; accepted: the id of a region whose connection is open",
       [](auto* r) { r->mutable_q()->set_region_id(1); }},
      {"v takes 256 bytes from byte 3745 of its region on; accepted: ranges within its 4000 bytes",
       [](auto* r) { r->mutable_v()->set_region_offset(3745); }},
      {"k takes 256 bytes from byte 18446744073709551615",
       [](auto* r) { r->mutable_k()->set_region_offset(~uint64_t{0}); }},
      {"k takes 256 bytes from byte 18446744073709551360",
       [](auto* r) { r->mutable_k()->set_region_offset(~uint64_t{0} - 255); }},
      {"q.data has 256 bytes beside q.region_id",
       [](auto* r) { r->mutable_q()->set_data(std::string(256, 'x')); }},
      {"q.region_offset is 8 without q.region_id",
       [](auto* r) {
         r->mutable_q()->clear_region_id();
         r->mutable_q()->set_region_offset(8);
       }},
      {"q takes 64000000 bytes from byte 0",
       [](auto* r) { r->mutable_q()->set_shape(0, 1000000); }},
      {"accepted: at most 2^48 bytes in a region",
       [](auto* r) { r->mutable_q()->set_shape(0, int64_t{1} << 55); }},
      {"accepted: at most 2^62 bytes",
       [](auto* r) { r->mutable_q()->set_shape(0, int64_t{1} << 62); }},
      {"o_place.region_id is 2", [](auto* r) { r->mutable_o_place()->set_region_id(2); }},
      {"o_place.region_id is 0", [](auto* r) { r->mutable_o_place()->clear_region_id(); }},
      {"o_place takes 256 bytes from byte 3745",
       [](auto* r) { r->mutable_o_place()->set_offset(3745); }},
      {"overlaps q, bytes 0 to 256", [](auto* r) { r->mutable_o_place()->set_offset(255); }},
      {"overlaps v, bytes 512 to 768", [](auto* r) { r->mutable_o_place()->set_offset(767); }},
      {"o_place is bytes 768 to 1024 of its region and overlaps lse_place, bytes 1020 to 1052",
       [](auto* r) { r->mutable_lse_place()->set_offset(1020); }},
      {"lse_place is bytes 508 to 540 of its region and overlaps k",
       [](auto* r) { r->mutable_lse_place()->set_offset(508); }},
      {"lse_place.offset is 1026; accepted: multiples of 4",
       [](auto* r) { r->mutable_lse_place()->set_offset(1026); }},
      {"lse_place is set; accepted: only with want_lse", [](auto* r) { r->set_want_lse(false); }},
      {"alibi.slopes.region_id is set; accepted: data",
       [&](auto* r) {
         v1::Tensor* const slopes = r->mutable_alibi()->mutable_slopes();
         slopes->set_dtype(v1::DTYPE_FLOAT32);
         slopes->add_shape(2);
         slopes->set_region_id(region->id());
       }},
  };
  for (const Case& c : cases) {
    v1::AttendRequest request = WireRequest(region->id());
    c.change(&request);
    v1::AttendResponse response;
    const grpc::Status status = Call(UnixTarget(), request, &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << c.message;
    EXPECT_THAT(status.error_message(), HasSubstr(c.message));
  }
  // What touches does not overlap, and neither do the same bytes of another region.
  v1::AttendRequest request = WireRequest(region->id());
  request.mutable_v()->set_region_offset(4000 - 256);
  request.mutable_o_place()->set_region_id(other->id());
  request.mutable_o_place()->set_offset(1);
  v1::AttendResponse response;
  const grpc::Status status = Call(UnixTarget(), request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_F(SharedMemoryTest, CallsOverTcpMayNotNameRegions) {
  StartPuppet(true);
  const std::unique_ptr<SharedRegion> region = NewRegion(4096);
  const std::string tcp = absl::StrCat("127.0.0.1:", server_->port());
  v1::AttendRequest request = WireRequest(region->id());
  v1::AttendResponse response;
  grpc::Status status = Call(tcp, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(),
              HasSubstr("q.region_id is set; accepted: only in calls over"));
  for (v1::Tensor* tensor : {request.mutable_q(), request.mutable_k(), request.mutable_v()}) {
    tensor->clear_region_id();
    tensor->clear_region_offset();
    tensor->set_data(std::string(256, '\0'));
  }
  status = Call(tcp, request, &response);
  EXPECT_THAT(status.error_message(), HasSubstr("lse_place.region_id is set; accepted: only in"));
  EXPECT_TRUE(Call(UnixTarget(), request, &response).ok());
  const auto refused = NewClient(tcp)->CreateRegion(4096);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("unix:PATH"));
}

TEST_F(SharedMemoryTest, OffMeansOff) {
  options_.shared_memory = server::SharedMemory::kOff;
  StartPuppet(true);
  EXPECT_EQ(client_->CreateRegion(4096).status().code(), absl::StatusCode::kUnavailable);
  v1::AttendResponse response;
  const grpc::Status status = Call(UnixTarget(), WireRequest(5), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(AwaitGauges(0, 0));
}

TEST_F(SharedMemoryTest, LimitsAreToldToTheClient) {
  options_.max_region_bytes = 8192;
  StartPuppet(true);
  EXPECT_EQ(client_->CreateRegion(0).status().code(), absl::StatusCode::kInvalidArgument);
  auto region = client_->CreateRegion(8192);
  ASSERT_TRUE(region.ok());
  EXPECT_TRUE(AwaitGauges(1, 8192));
  const auto more = client_->CreateRegion(1);
  EXPECT_EQ(more.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(more.status().message()), HasSubstr("limit is 8192"));
  *region = nullptr;
  EXPECT_TRUE(AwaitGauges(0, 0));
  EXPECT_TRUE(client_->CreateRegion(1).ok());
}

TEST_F(SharedMemoryTest, ARegionThatIsWithdrawnWhileARequestRunsIsKeptUntilItsEnd) {
  PuppetBackend* const puppet = StartPuppet(false);
  std::unique_ptr<SharedRegion> region = NewRegion(4096);
  const uint64_t id = region->id();
  v1::AttendResponse response;
  grpc::Status status;
  std::thread call([&] { status = Call(UnixTarget(), WireRequest(id), &response); });
  ASSERT_TRUE(puppet->WaitForRunsInFlight(1));
  region = nullptr;
  v1::AttendResponse late;
  // The socket's end reaches the server a moment later.
  absl::SleepFor(absl::Milliseconds(200));
  const grpc::Status refused = Call(UnixTarget(), WireRequest(id), &late);
  EXPECT_THAT(refused.error_message(), HasSubstr("accepted: the id of a region"));
  EXPECT_TRUE(AwaitGauges(1, 4096)) << "in use still";
  EXPECT_EQ(support::MappedRegions(), 1);
  puppet->EndRun();  // reads and writes it
  call.join();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_TRUE(AwaitGauges(0, 0));
  EXPECT_EQ(support::MappedRegions(), 0);
}

TEST_F(SharedMemoryTest, ACancelledCallReleasesItsRegionWhenItsRunHasEnded) {
  PuppetBackend* const puppet = StartPuppet(false);
  std::unique_ptr<SharedRegion> region = NewRegion(4096);
  const TensorView tensor = {.dtype = DType::kFloat32, .shape = {4, 2, 8}, .data = region->data()};
  const auto result = client_->Attend(
      {.q = tensor, .k = tensor, .v = tensor, .mask = client::MaskKind::kFull},
      {.timeout = absl::Milliseconds(100), .result = {.o = {region->data() + 1024, 256}}});
  EXPECT_EQ(result.status().code(), absl::StatusCode::kDeadlineExceeded);
  ASSERT_TRUE(puppet->WaitForRunsInFlight(1));
  region = nullptr;
  EXPECT_TRUE(AwaitGauges(1, 4096));
  puppet->EndRun();
  EXPECT_TRUE(AwaitGauges(0, 0));
}

TEST_F(SharedMemoryTest, RegionsMayOutliveClientAndServer) {
  StartPuppet(true);
  std::unique_ptr<SharedRegion> region = NewRegion(4096);
  client_ = nullptr;
  server_ = nullptr;
  region->data()[4095] = 'x';
  region = nullptr;
  EXPECT_EQ(support::MappedRegions(), 0);
}

// The bytes change under the server's hands all the time: answers mean nothing, and nothing breaks.
TEST_F(SharedMemoryTest, MemoryThatChangesWhileItIsReadBreaksNothing) {
  StartCpu();
  const std::unique_ptr<SharedRegion> region = NewRegion(1 << 20);
  std::atomic<bool> stop = false;
  std::thread writer([&] {
    uint32_t state = 1;
    while (!stop) {
      auto* const words = reinterpret_cast<std::atomic<uint32_t>*>(region->data());
      for (size_t n = 0; n < (1 << 18); ++n) {
        words[n].store(state = state * 1664525 + 1013904223, std::memory_order_relaxed);
      }
    }
  });
  const TensorView tensor = {
      .dtype = DType::kFloat32, .shape = {256, 4, 32}, .data = region->data()};
  const std::vector<float> slopes = {0.5f, 0.25f, 0, -1};
  for (int n = 0; n < 50; ++n) {
    const auto result = client_->Attend({.q = tensor,
                                         .k = tensor,
                                         .v = tensor,
                                         .mask = client::MaskKind::kCausal,
                                         .bias = client::AlibiSlopes{.slopes = slopes}},
                                        {.result = {.o = {region->data() + (1 << 19), 131072}}});
    EXPECT_TRUE(result.ok()) << result.status();
  }
  stop = true;
  writer.join();
}

TEST_F(SharedMemoryTest, KilledCallersLeaveNothingAndTheNextCallSucceeds) {
  StartCpu();
  constexpr int kKills = support::kSlowBuild ? 20 : 60;
  int descriptors = 0;
  for (int kill = 0; kill < kKills; ++kill) {
    auto caller =
        ChildProcess::Start(absl::StrCat(FLASHBIAS_BIN_DIR, "/region_caller"), {UnixTarget()},
                            absl::StrCat(::testing::TempDir(), "/region_caller.", getpid()));
    ASSERT_TRUE(caller.ok()) << caller.status();
    const absl::Time give_up = absl::Now() + absl::Seconds(60);
    while (caller->Output().empty() && absl::Now() < give_up) {
      ASSERT_TRUE(caller->Running());
      absl::SleepFor(absl::Milliseconds(1));
    }
    absl::SleepFor(absl::Microseconds(137 * (kill % 30)));
    ASSERT_TRUE(caller->Running());
    caller->Signal(SIGKILL);
    ASSERT_TRUE(caller->Wait(absl::Seconds(10)).ok());
    ASSERT_TRUE(AwaitGauges(0, 0)) << "kill " << kill;
    {
      const std::unique_ptr<SharedRegion> region = NewRegion(4096);
      const TensorView tensor = {
          .dtype = DType::kFloat32, .shape = {4, 2, 8}, .data = region->data()};
      const auto result =
          client_->Attend({.q = tensor, .k = tensor, .v = tensor, .mask = client::MaskKind::kFull},
                          {.result = {.o = {region->data() + 1024, 256}}});
      ASSERT_TRUE(result.ok()) << result.status();
    }
    ASSERT_TRUE(AwaitGauges(0, 0));
    EXPECT_EQ(support::MappedRegions(), 0);
    if (kill == kKills / 2) descriptors = support::OpenDescriptors();
  }
  // gRPC closes its side of dead connections a moment later.
  const absl::Time give_up = absl::Now() + absl::Seconds(10);
  while (support::OpenDescriptors() > descriptors && absl::Now() < give_up) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  EXPECT_LE(support::OpenDescriptors(), descriptors);
}

}  // namespace
}  // namespace flashbias::integration
