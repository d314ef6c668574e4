// Gradients through the whole service: client, server and CPU backend, whole, in chunks and in
// shared memory.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <variant>
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
#include "tests/integration/http_get.h"
#include "tests/integration/remote_problem.h"
#include "tests/support/attention_case.h"
#include "tests/support/compare_gradients.h"
#include "tests/support/golden.h"

namespace flashbias::integration {
namespace {

using client::AttendGradients;
using client::AttentionClient;
using client::SharedRegion;
using client::TensorView;
using server::Server;
using support::AttentionCase;
using support::Describe;
using support::Materialise;
using support::OwnedProblem;
using ::testing::HasSubstr;

AttentionCase RandomBackwardCase(uint64_t seed) {
  AttentionCase c = support::RandomCase(seed);
  c.direction = Direction::kBackward;
  c.want_bias_gradient = seed % 4 != 3;
  return c;
}

class BackwardTest : public ::testing::Test {
 protected:
  BackwardTest() {
    options_.listen_address = "127.0.0.1:0";
    options_.metrics_address = "127.0.0.1:0";
    options_.listen_unix = absl::StrCat(::testing::TempDir(), "/backward.", getpid());
  }

  void Start() {
    auto backend = CreateBackend({.kind = "cpu", .cpu_threads = 2});
    ASSERT_TRUE(backend.ok()) << backend.status();
    auto server = Server::Create(options_, *std::move(backend));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  std::string TcpTarget() const { return absl::StrCat("127.0.0.1:", server_->port()); }
  std::string UnixTarget() const { return absl::StrCat("unix:", options_.listen_unix); }
  static std::unique_ptr<AttentionClient> NewClient(AttentionClient::Options options) {
    auto client = AttentionClient::Create(std::move(options));
    EXPECT_TRUE(client.ok()) << client.status();
    return *std::move(client);
  }

  // Once it has this value, or after ten seconds.
  double Metric(const std::string& name, double wanted) const {
    const absl::Time give_up = absl::Now() + absl::Seconds(10);
    while (true) {
      absl::StatusOr<Samples> samples = Scrape(server_->metrics_port());
      EXPECT_TRUE(samples.ok()) << samples.status();
      const double value = samples.ok() ? (*samples)["flashbias_" + name] : -1;
      if (value == wanted || absl::Now() > give_up) return value;
      absl::SleepFor(absl::Milliseconds(2));
    }
  }
  double Calls(const std::string& method, const std::string& transport, double wanted) const {
    return Metric(absl::StrCat("requests_total{code=\"OK\",method=\"", method, "\",transport=\"",
                               transport, "\"}"),
                  wanted);
  }

  server::ServerOptions options_;
  std::unique_ptr<Server> server_;
};

TEST_F(BackwardTest, GoldenVectors) {
  Start();
  auto cases = support::LoadGoldenGradients();
  ASSERT_TRUE(cases.ok()) << cases.status();
  const auto client = NewClient({.target = TcpTarget()});
  for (support::GoldenGradients& golden : *cases) {
    const auto gradients = AttendBackwardRemotely(*client, &golden.owned);
    ASSERT_TRUE(gradients.ok()) << golden.name << ": " << gradients.status();
    EXPECT_TRUE(support::MatchesGolden(golden));
  }
}

TEST_F(BackwardTest, EveryWayGivesTheSameBits) {
  Start();
  const auto whole = NewClient({.target = TcpTarget()});
  const auto streamed = NewClient({.target = TcpTarget(), .stream_above_bytes = 0});
  const auto small_chunks =
      NewClient({.target = UnixTarget(), .max_message_bytes = 4096, .stream_above_bytes = 0});
  constexpr int kCases = support::kSlowBuild ? 8 : 24;
  for (uint64_t seed = 0; seed < kCases; ++seed) {
    const AttentionCase c = RandomBackwardCase(seed);
    OwnedProblem owned = Materialise(c);
    const auto gradients = AttendBackwardRemotely(*whole, &owned);
    ASSERT_TRUE(gradients.ok()) << gradients.status() << " " << Describe(c);
    EXPECT_TRUE(support::MatchesReferenceGradients(owned)) << Describe(c);
    const std::string want = owned.OutputBytes();
    for (AttentionClient* client : {streamed.get(), small_chunks.get()}) {
      const auto again = AttendBackwardRemotely(*client, &owned);
      ASSERT_TRUE(again.ok()) << again.status() << " " << Describe(c);
      EXPECT_TRUE(owned.CheckOutputs().empty()) << owned.CheckOutputs();
      EXPECT_TRUE(owned.OutputBytes() == want) << Describe(c);
    }
    // The library's own memory.
    const auto own = whole->AttendBackward(BackwardRequestOf(owned));
    ASSERT_TRUE(own.ok()) << own.status();
    std::string bytes = own->dq + own->dk + own->dv;
    for (const std::vector<float>* floats : {&own->dslopes, &own->dphi_q, &own->dphi_k}) {
      bytes.append(reinterpret_cast<const char*>(floats->data()), floats->size() * sizeof(float));
    }
    EXPECT_TRUE(bytes == want) << Describe(c);
  }
  EXPECT_EQ(Calls("AttendBackward", "tcp", 2 * kCases), 2 * kCases);
  EXPECT_EQ(Calls("AttendBackwardStream", "tcp", kCases), kCases);
  EXPECT_EQ(Calls("AttendBackwardStream", "unix", kCases), kCases);
}

// Places one after the other in a region.
class Placer {
 public:
  Placer(char* base, size_t gap) : base_(base), at_(gap), gap_(gap) {}

  char* Take(size_t bytes) {
    char* const place = base_ + at_;
    at_ += bytes + gap_;
    return place;
  }
  void Move(TensorView* tensor) {
    size_t bytes = SizeOf(tensor->dtype);
    for (const int64_t extent : tensor->shape) bytes *= static_cast<size_t>(extent);
    char* const to = Take(bytes);
    if (bytes > 0) std::memcpy(to, tensor->data, bytes);
    tensor->data = to;
  }
  float* TakeFloats(size_t count) {
    at_ = (at_ + 3) / 4 * 4;
    return reinterpret_cast<float*>(Take(count * sizeof(float)));
  }

 private:
  char* const base_;
  size_t at_;
  const size_t gap_;
};

// Moves the buffer to the region, and its bytes back at the end of its life.
template <typename T>
class PlacedBuffer {
 public:
  PlacedBuffer(Placer* placer, absl::Span<T>* buffer) : home_(*buffer) {
    if (buffer->empty()) return;
    T* const to = std::is_same_v<T, float>
                      ? reinterpret_cast<T*>(placer->TakeFloats(buffer->size()))
                      : reinterpret_cast<T*>(placer->Take(buffer->size() * sizeof(T)));
    *buffer = placed_ = absl::MakeSpan(to, buffer->size());
  }
  void Return() const {
    if (!placed_.empty()) std::memcpy(home_.data(), placed_.data(), placed_.size() * sizeof(T));
  }

 private:
  const absl::Span<T> home_;
  absl::Span<T> placed_;
};

TEST_F(BackwardTest, InSharedMemoryTheyAreTheSameBits) {
  Start();
  const auto client = NewClient({.target = UnixTarget()});
  constexpr int kCases = support::kSlowBuild ? 8 : 24;
  for (uint64_t seed = 0; seed < kCases; ++seed) {
    const AttentionCase c = RandomBackwardCase(seed);
    OwnedProblem owned = Materialise(c);
    ASSERT_TRUE(AttendBackwardRemotely(*client, &owned).ok());
    const std::string want = owned.OutputBytes();

    // At odd addresses, too, and in mixtures.
    const auto region = client->CreateRegion(64 << 20);
    ASSERT_TRUE(region.ok()) << region.status();
    Placer placer((*region)->data(), seed % 2 == 0 ? 64 : 7);
    client::AttendBackwardRequest request = BackwardRequestOf(owned);
    client::AttendRequest& forward = request.forward;
    for (TensorView* tensor : {&forward.q, &forward.k, &forward.v, &request.o, &request.d_o}) {
      if (seed % 5 == 4 && tensor == &forward.k) continue;
      placer.Move(tensor);
    }
    if (auto* factors = std::get_if<client::LowRankFactors>(&forward.bias)) {
      placer.Move(&factors->phi_q);
      placer.Move(&factors->phi_k);
    }
    if (seed % 3 != 2) {
      float* const lse = placer.TakeFloats(request.lse.size());
      std::copy(request.lse.begin(), request.lse.end(), lse);
      request.lse = {lse, request.lse.size()};
    }
    owned.PoisonOutputs();
    client::GradientBuffers buffers = GradientBuffersOf(owned);
    const PlacedBuffer dq(&placer, &buffers.dq);
    const PlacedBuffer dk(&placer, &buffers.dk);
    const PlacedBuffer dphi_q(&placer, &buffers.dphi_q);
    const PlacedBuffer dphi_k(&placer, &buffers.dphi_k);
    const PlacedBuffer dslopes(&placer, &buffers.dslopes);  // come in the answer all the same
    const auto gradients = client->AttendBackward(request, {.gradients = buffers});
    ASSERT_TRUE(gradients.ok()) << gradients.status() << " " << Describe(c);
    dq.Return();
    dk.Return();
    dphi_q.Return();
    dphi_k.Return();
    dslopes.Return();
    EXPECT_TRUE(owned.CheckOutputs().empty()) << owned.CheckOutputs();
    EXPECT_TRUE(owned.OutputBytes() == want) << Describe(c);
  }
}

// What a training step does, with nothing but the client's types.
TEST_F(BackwardTest, TheAnswerOfAForwardCallIsTheInputOfItsBackwardCall) {
  Start();
  const auto client = NewClient({.target = TcpTarget()});
  AttentionCase c;
  c.sequences = {{.q_len = 9, .kv_len = 20}, {.q_len = 17, .kv_len = 17}};
  const OwnedProblem forward = Materialise(c);
  client::AttendRequest request = RequestOf(forward);
  const auto result = client->Attend(request);
  ASSERT_TRUE(result.ok()) << result.status();
  c.direction = Direction::kBackward;
  OwnedProblem owned = Materialise(c);  // the same inputs
  client::AttendBackwardRequest backward = BackwardRequestOf(owned);
  backward.forward = request;
  backward.o.data = result->o.data();
  backward.lse = result->lse;
  ASSERT_TRUE(client->AttendBackward(backward, {.gradients = GradientBuffersOf(owned)}).ok());
  EXPECT_TRUE(support::MatchesReferenceGradients(owned));
}

// float32 [4, 2, 8] for all, with a low-rank bias of rank 2, in a region of 8192 bytes one after
// the other, 256 bytes each; places of the gradients behind.
v1::AttendBackwardRequest WireRequest(uint64_t id) {
  v1::AttendBackwardRequest request;
  v1::AttendRequest* const forward = request.mutable_forward();
  forward->set_mask(v1::MASK_FULL);
  request.set_want_bias_gradient(true);
  uint64_t offset = 0;
  const auto place = [&](v1::Tensor* tensor, const std::vector<int64_t>& shape) {
    tensor->set_dtype(v1::DTYPE_FLOAT32);
    for (const int64_t extent : shape) tensor->add_shape(extent);
    tensor->set_region_id(id);
    tensor->set_region_offset(offset);
    offset += 256;
  };
  for (v1::Tensor* tensor : {forward->mutable_q(), forward->mutable_k(), forward->mutable_v(),
                             request.mutable_o(), request.mutable_d_o()}) {
    place(tensor, {4, 2, 8});
  }
  place(forward->mutable_low_rank()->mutable_phi_q(), {4, 2, 2});
  place(forward->mutable_low_rank()->mutable_phi_k(), {4, 1, 2});
  place(request.mutable_lse(), {4, 2});
  for (v1::RegionPlace* output :
       {request.mutable_dq_place(), request.mutable_dk_place(), request.mutable_dv_place(),
        request.mutable_dphi_q_place(), request.mutable_dphi_k_place()}) {
    output->set_region_id(id);
    output->set_offset(offset);
    offset += 256;
  }
  return request;
}

grpc::Status Call(const std::string& target, const v1::AttendBackwardRequest& request,
                  v1::AttendBackwardResponse* response) {
  const auto stub = v1::AttentionService::NewStub(
      grpc::CreateChannel(target, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  return stub->AttendBackward(&context, request, response);
}

TEST_F(BackwardTest, TheGeneratedClassesCanUseRegions) {
  Start();
  const auto client = NewClient({.target = UnixTarget()});
  const auto region = client->CreateRegion(8192);
  ASSERT_TRUE(region.ok()) << region.status();
  float* const floats = reinterpret_cast<float*>((*region)->data());
  for (int n = 0; n < 512; ++n) floats[n] = std::sin(static_cast<float>(n));
  v1::AttendBackwardResponse response;
  const grpc::Status status = Call(UnixTarget(), WireRequest((*region)->id()), &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  uint64_t offset = 8 * 256;
  for (const v1::Tensor* tensor :
       {&response.dq(), &response.dk(), &response.dv(), &response.dphi_q(), &response.dphi_k()}) {
    EXPECT_TRUE(tensor->data().empty());
    EXPECT_EQ(tensor->region_id(), (*region)->id());
    EXPECT_EQ(tensor->region_offset(), offset);
    EXPECT_NE(floats[offset / 4], 0.0f) << "it was written";
    offset += 256;
  }
}

TEST_F(BackwardTest, BadRangesAreRefusedWithTheirField) {
  Start();
  const auto client = NewClient({.target = UnixTarget()});
  const auto region = client->CreateRegion(8192);
  ASSERT_TRUE(region.ok()) << region.status();
  struct Case {
    const char* message;
    std::function<void(v1::AttendBackwardRequest*)> change;
  };
  const Case cases[] = {
      {"o.region_id is 1; accepted: the id of a region whose connection is open",
       [](auto* r) { r->mutable_o()->set_region_id(1); }},
      {"d_o takes 256 bytes from byte 7937 of its region on; accepted: ranges within its 8192",
       [](auto* r) { r->mutable_d_o()->set_region_offset(7937); }},
      {"lse takes 32 bytes from byte 18446744073709551612",
       [](auto* r) { r->mutable_lse()->set_region_offset(~uint64_t{0} - 3); }},
      {"lse.region_offset is 1794; accepted: multiples of 4",
       [](auto* r) { r->mutable_lse()->set_region_offset(1794); }},
      {"dphi_q_place.offset is 2817; accepted: multiples of 4",
       [](auto* r) { r->mutable_dphi_q_place()->set_offset(2817); }},
      {"dphi_k_place.offset is 3074; accepted: multiples of 4",
       [](auto* r) { r->mutable_dphi_k_place()->set_offset(3074); }},
      {"dv_place takes 256 bytes from byte 8000",
       [](auto* r) { r->mutable_dv_place()->set_offset(8000); }},
      {"dq_place is bytes 768 to 1024 of its region and overlaps o",
       [](auto* r) { r->mutable_dq_place()->set_offset(768); }},
      {"dk_place is bytes 1024 to 1280 of its region and overlaps d_o",
       [](auto* r) { r->mutable_dk_place()->set_offset(1024); }},
      {"dv_place is bytes 1800 to 2056 of its region and overlaps lse",
       [](auto* r) { r->mutable_dv_place()->set_offset(1800); }},
      {"dk_place is bytes 2100 to 2356 of its region and overlaps dq_place",
       [](auto* r) { r->mutable_dk_place()->set_offset(2100); }},
      {"dphi_k_place is bytes 2816 to 2848 of its region and overlaps dphi_q_place",
       [](auto* r) { r->mutable_dphi_k_place()->set_offset(2816); }},
      {"dphi_q_place is set; accepted: only with low_rank and want_bias_gradient",
       [](auto* r) { r->set_want_bias_gradient(false); }},
  };
  for (const Case& c : cases) {
    v1::AttendBackwardRequest request = WireRequest((*region)->id());
    c.change(&request);
    v1::AttendBackwardResponse response;
    const grpc::Status status = Call(UnixTarget(), request, &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << c.message;
    EXPECT_THAT(status.error_message(), HasSubstr(c.message));
  }
  v1::AttendBackwardResponse response;
  const v1::AttendBackwardRequest request = WireRequest((*region)->id());
  EXPECT_THAT(Call(TcpTarget(), request, &response).error_message(),
              HasSubstr("q.region_id is set; accepted: only in calls over the server's unix"));
  EXPECT_TRUE(Call(UnixTarget(), request, &response).ok());
}

}  // namespace
}  // namespace flashbias::integration
