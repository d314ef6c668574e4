// Server, client and CPU backend in one process, talking over loopback.
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/attention_client.h"
#include "flashbias/v1/attention.grpc.pb.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend_factory.h"
#include "server/server.h"
#include "tests/integration/http_get.h"
#include "tests/integration/remote_problem.h"
#include "tests/support/attention_case.h"
#include "tests/support/compare.h"
#include "tests/support/golden.h"

namespace flashbias::integration {
namespace {

using client::AttendResult;
using client::AttentionClient;
using server::Server;
using server::ServerOptions;
using support::AttentionCase;
using support::Describe;
using support::Materialise;
using support::OwnedProblem;
using ::testing::HasSubstr;

class ServiceTest : public ::testing::Test {
 protected:
  void SetUp() override { Start({}); }

  // `options` with loopback ports that the system picks.
  void Start(ServerOptions options) {
    server_ = nullptr;
    options.listen_address = "127.0.0.1:0";
    options.metrics_address = "127.0.0.1:0";
    auto backend = CreateBackend({.kind = "cpu", .cpu_threads = 2});
    ASSERT_TRUE(backend.ok()) << backend.status();
    auto server = Server::Create(options, *std::move(backend));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  std::string Target() const { return absl::StrCat("127.0.0.1:", server_->port()); }

  std::unique_ptr<AttentionClient> NewClient(int connections = 1) const {
    auto client = AttentionClient::Create({.target = Target(), .num_connections = connections});
    EXPECT_TRUE(client.ok()) << client.status();
    return *std::move(client);
  }

  // The metrics once no call is in flight: a call's counters move after its answer is on the wire.
  Samples QuietMetrics() const {
    const absl::Time give_up = absl::Now() + absl::Seconds(10);
    while (true) {
      absl::StatusOr<Samples> samples = Scrape(server_->metrics_port());
      EXPECT_TRUE(samples.ok()) << samples.status();
      if (!samples.ok()) return {};
      if ((*samples)["flashbias_inflight_requests"] == 0 || absl::Now() > give_up) {
        return *std::move(samples);
      }
      absl::SleepFor(absl::Milliseconds(5));
    }
  }

  std::unique_ptr<Server> server_;
};

std::string RequestsTotal(const std::string& method, const std::string& code) {
  return absl::StrCat("flashbias_requests_total{code=\"", code, "\",method=\"", method,
                      "\",transport=\"tcp\"}");
}

TEST_F(ServiceTest, GoldenVectors) {
  auto cases = support::LoadGoldenCases();
  ASSERT_TRUE(cases.ok()) << cases.status();
  const auto client = NewClient();
  for (support::GoldenCase& golden : *cases) {
    const absl::StatusOr<AttendResult> result = AttendRemotely(*client, &golden.owned);
    ASSERT_TRUE(result.ok()) << golden.name << ": " << result.status();
    EXPECT_TRUE(support::MatchesGolden(golden));
  }
}

TEST_F(ServiceTest, LimitsInForceAreExported) {
  ServerOptions options;
  options.scheduler.max_queue_requests = 11;
  options.scheduler.max_queue_bytes = 12;
  options.max_stream_bytes = 13 << 20;
  options.max_message_bytes = 14 << 10;
  options.max_regions = 15;
  options.max_region_bytes = 16 << 10;
  Start(options);
  Samples samples = QuietMetrics();
  EXPECT_EQ(samples.at("flashbias_queue_limit_requests"), 11);
  EXPECT_EQ(samples.at("flashbias_queue_limit_bytes"), 12);
  EXPECT_EQ(samples.at("flashbias_stream_limit_bytes"), 13 << 20);
  EXPECT_EQ(samples.at("flashbias_message_limit_bytes"), 14 << 10);
  EXPECT_EQ(samples.at("flashbias_region_limit"), 0) << "there is no socket for them";
  EXPECT_EQ(samples.at("flashbias_shm_region_limit_bytes"), 0);
  options.listen_unix = absl::StrCat(::testing::TempDir(), "/limits.", getpid());
  Start(options);
  samples = QuietMetrics();
  EXPECT_EQ(samples.at("flashbias_region_limit"), 15);
  EXPECT_EQ(samples.at("flashbias_shm_region_limit_bytes"), 16 << 10);
}

TEST_F(ServiceTest, DefaultsAreThoseOfTheContract) {
  AttentionCase c;
  c.sequences = {{.q_len = 20, .kv_len = 50}};  // aligned to the end, 1 / sqrt(head_dim), 2^-24
  OwnedProblem owned = Materialise(c);
  client::AttendRequest request = RequestOf(owned);
  request.q_lens.clear();
  request.kv_lens.clear();
  request.query_start.clear();
  request.key_start.clear();
  request.softmax_scale.reset();
  request.eps.reset();
  const auto client = NewClient();
  const absl::StatusOr<AttendResult> result = client->Attend(request);
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_TRUE(StoreResult(*result, &owned).ok());
  EXPECT_TRUE(support::MatchesReference(owned));

  request.want_lse = false;
  const absl::StatusOr<AttendResult> without = client->Attend(request);
  ASSERT_TRUE(without.ok()) << without.status();
  EXPECT_TRUE(without->lse.empty());
  EXPECT_EQ(without->o, result->o);
}

TEST_F(ServiceTest, ServerInfoNamesTheBackend) {
  const absl::StatusOr<client::ServerInfo> info = NewClient()->GetServerInfo();
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->version, FLASHBIAS_VERSION);
  EXPECT_EQ(info->backend, "cpu");
  EXPECT_EQ(info->dtypes.size(), 3u);
  EXPECT_EQ(info->max_head_dim, kMaxHeadDim);
  EXPECT_EQ(info->max_rank, kMaxRank);
  EXPECT_EQ(info->max_message_bytes, ServerOptions().max_message_bytes);
  EXPECT_FLOAT_EQ(static_cast<float>(info->default_eps), kDefaultEps);
}

// Many callers with requests of every shape: each gets its own answer, whatever shares its batch,
// and the counters say exactly what was sent.
TEST_F(ServiceTest, ManyClientsGetTheirOwnAnswersAndAreCounted) {
  constexpr int kThreads = 20;
  constexpr int kCallsEach = support::kSlowBuild ? 4 : 12;
  const auto shared = NewClient(3);
  std::atomic<int64_t> o_and_lse_bytes{0};
  std::atomic<int64_t> input_bytes{0};
  std::atomic<int64_t> computed{0};
  std::atomic<int64_t> skipped{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      // Half of the callers share one client.
      std::unique_ptr<AttentionClient> own = thread % 2 == 0 ? NewClient() : nullptr;
      AttentionClient& client = own != nullptr ? *own : *shared;
      for (int call = 0; call < kCallsEach; ++call) {
        const AttentionCase c = support::RandomCase(thread * 1000 + call);
        OwnedProblem owned = Materialise(c);
        const absl::StatusOr<AttendResult> result = AttendRemotely(client, &owned);
        ASSERT_TRUE(result.ok()) << result.status() << " " << Describe(c);
        EXPECT_TRUE(support::MatchesReference(owned, 0, support::kDefaultBudget / 10))
            << Describe(c);
        EXPECT_GE(result->timing.batch_requests, 1);
        const auto element = static_cast<int64_t>(SizeOf(c.dtype));
        o_and_lse_bytes +=
            owned.q_elements() * element + (c.want_lse ? owned.lse_elements() * 4 : 0);
        input_bytes += (owned.q_elements() + 2 * owned.kv_elements()) * element;
        computed += result->timing.tiles_computed;
        skipped += result->timing.tiles_skipped;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();

  Samples metrics = QuietMetrics();
  constexpr double kCalls = kThreads * kCallsEach;
  EXPECT_EQ(metrics[RequestsTotal("Attend", "OK")], kCalls);
  EXPECT_EQ(metrics["flashbias_tiles_computed_total"], static_cast<double>(computed));
  EXPECT_EQ(metrics["flashbias_tiles_skipped_total"], static_cast<double>(skipped));
  EXPECT_EQ(metrics["flashbias_batch_requests_sum"], kCalls);
  EXPECT_GE(metrics["flashbias_batch_requests_count"], 1);
  EXPECT_LE(metrics["flashbias_batch_requests_count"], kCalls);
  EXPECT_EQ(metrics["flashbias_request_bytes_count"], kCalls);
  EXPECT_EQ(metrics["flashbias_response_bytes_count"], kCalls);
  EXPECT_EQ(
      metrics["flashbias_request_duration_seconds_count{method=\"Attend\",transport=\"tcp\"}"],
      kCalls);
  for (const char* stage :
       {"receive", "queue", "compute", "upload", "kernel", "download", "send"}) {
    EXPECT_EQ(
        metrics[absl::StrCat("flashbias_stage_duration_seconds_count{stage=\"", stage, "\"}")],
        kCalls)
        << stage;
  }
  // Tensors plus, per message, shapes, lens, slopes and factors: more than the tensors alone.
  EXPECT_EQ(metrics["flashbias_received_bytes_total"], metrics["flashbias_request_bytes_sum"]);
  EXPECT_EQ(metrics["flashbias_sent_bytes_total"], metrics["flashbias_response_bytes_sum"]);
  EXPECT_GT(metrics["flashbias_received_bytes_total"], static_cast<double>(input_bytes));
  EXPECT_GT(metrics["flashbias_sent_bytes_total"], static_cast<double>(o_and_lse_bytes));
  EXPECT_LT(metrics["flashbias_sent_bytes_total"],
            static_cast<double>(o_and_lse_bytes) + kCalls * 400);
  EXPECT_EQ(metrics["flashbias_queue_requests"], 0);
  EXPECT_EQ(metrics["flashbias_queue_bytes"], 0);
  EXPECT_EQ(metrics["flashbias_inflight_requests"], 0);
}

// What the response says about its time is all of the time that the server had the call.
TEST_F(ServiceTest, PhasesAddUpToTheTotal) {
  AttentionCase c;
  c.num_q_heads = c.num_kv_heads = 8;
  c.eps = 0;
  c.sequences = {{.q_len = support::kSlowBuild ? 300 : 3000, .kv_len = 3000}};
  OwnedProblem owned = Materialise(c);
  const auto client = NewClient();
  const char* const total_name =
      "flashbias_request_duration_seconds_sum{method=\"Attend\",transport=\"tcp\"}";
  double before = 0;
  std::string report;
  // Other programs may take the processor from one of the threads between two phases.
  for (int attempt = 0; attempt < 5; ++attempt) {
    const absl::StatusOr<AttendResult> result = AttendRemotely(*client, &owned);
    ASSERT_TRUE(result.ok()) << result.status();
    const double after = QuietMetrics()[total_name];
    const double total = after - before;
    before = after;
    const client::Timing& t = result->timing;
    EXPECT_EQ(t.upload, absl::ZeroDuration());
    EXPECT_EQ(t.download, absl::ZeroDuration());
    EXPECT_GT(t.kernel, absl::ZeroDuration());
    EXPECT_LE(t.kernel, t.compute);
    const double sum =
        absl::ToDoubleSeconds(t.receive + t.queue + t.upload + t.kernel + t.download + t.send);
    EXPECT_LE(sum, total);
    if (sum >= 0.9 * total) return;
    absl::StrAppend(&report, sum, " of ", total, " s; ");
  }
  ADD_FAILURE() << "phases add up to " << report;
}

// A message whose size is known to the byte.
TEST_F(ServiceTest, BytesAreCountedExactly) {
  const auto channel = grpc::CreateChannel(Target(), grpc::InsecureChannelCredentials());
  const auto stub = v1::AttentionService::NewStub(channel);
  v1::AttendRequest request;
  for (v1::Tensor* tensor : {request.mutable_q(), request.mutable_k(), request.mutable_v()}) {
    tensor->set_dtype(v1::DTYPE_FLOAT32);
    for (const int extent : {3, 1, 4}) tensor->add_shape(extent);
    tensor->set_data(std::string(48, '\0'));
  }
  request.set_mask(v1::MASK_FULL);
  double received = 0;
  double sent = 0;
  for (int call = 0; call < 5; ++call) {
    grpc::ClientContext context;
    v1::AttendResponse response;
    const grpc::Status status = stub->Attend(&context, request, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(response.o().data().size(), 48u);
    received += static_cast<double>(request.ByteSizeLong());
    sent += static_cast<double>(response.ByteSizeLong());
  }
  Samples metrics = QuietMetrics();
  EXPECT_EQ(metrics["flashbias_received_bytes_total"], received);
  // The server may write fields that a re-encoding leaves out, a zero duration for one.
  EXPECT_NEAR(metrics["flashbias_sent_bytes_total"], sent, 5 * 32);
}

TEST_F(ServiceTest, MetricsEndpointSpeaksPrometheus) {
  const absl::StatusOr<HttpResponse> response = HttpGet(server_->metrics_port(), "/metrics");
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->status, 200);
  EXPECT_THAT(response->headers, HasSubstr("text/plain"));
  EXPECT_THAT(response->body, HasSubstr("# TYPE flashbias_requests_total counter"));
  EXPECT_THAT(response->body, HasSubstr("flashbias_build_info{"));
  const absl::StatusOr<HttpResponse> other = HttpGet(server_->metrics_port(), "/secret");
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ(other->status, 404);
}

// What the client library would refuse itself, sent past it.
class BadRequestTest : public ServiceTest {
 protected:
  void SetUp() override {
    ServiceTest::SetUp();
    stub_ = v1::AttentionService::NewStub(
        grpc::CreateChannel(Target(), grpc::InsecureChannelCredentials()));
  }

  // A small request that is answered OK.
  static v1::AttendRequest Good() {
    v1::AttendRequest request;
    const auto fill = [](v1::Tensor* tensor, std::vector<int64_t> shape) {
      tensor->set_dtype(v1::DTYPE_FLOAT32);
      int64_t elements = 1;
      for (const int64_t extent : shape) {
        tensor->add_shape(extent);
        elements *= extent;
      }
      tensor->set_data(std::string(static_cast<size_t>(elements) * 4, '\0'));
    };
    fill(request.mutable_q(), {6, 4, 8});
    fill(request.mutable_k(), {6, 2, 8});
    fill(request.mutable_v(), {6, 2, 8});
    fill(request.mutable_alibi()->mutable_slopes(), {4});
    request.set_mask(v1::MASK_CAUSAL);
    return request;
  }

  grpc::Status Send(const v1::AttendRequest& request) {
    grpc::ClientContext context;
    v1::AttendResponse response;
    return stub_->Attend(&context, request, &response);
  }

  std::unique_ptr<v1::AttentionService::Stub> stub_;
};

TEST_F(BadRequestTest, GetsAnErrorThatNamesTheField) {
  ASSERT_TRUE(Send(Good()).ok()) << Send(Good()).error_message();
  struct Fault {
    const char* field;  // the message names it and what came
    std::function<void(v1::AttendRequest*)> make;
  };
  const float nan = std::nanf("");
  const auto set_float = [](v1::Tensor* tensor, float value) {
    tensor->mutable_data()->replace(0, 4, reinterpret_cast<const char*>(&value), 4);
  };
  const std::vector<Fault> faults = {
      {"q.data has", [](auto* r) { r->mutable_q()->mutable_data()->pop_back(); }},
      {"k.data has", [](auto* r) { r->mutable_k()->mutable_data()->push_back('x'); }},
      {"v.data has 0 bytes", [](auto* r) { r->mutable_v()->clear_data(); }},
      {"q is missing", [](auto* r) { r->clear_q(); }},
      {"q.shape is [4611686018427387904",
       [](auto* r) { r->mutable_q()->set_shape(0, int64_t{1} << 62); }},
      {"q.shape is [-6, 4, 8]", [](auto* r) { r->mutable_q()->set_shape(0, -6); }},
      {"q.shape has 4 extents", [](auto* r) { r->mutable_q()->add_shape(1); }},
      {"q.dtype is unspecified", [](auto* r) { r->mutable_q()->set_dtype(v1::DTYPE_UNSPECIFIED); }},
      {"q.dtype is 77", [](auto* r) { r->mutable_q()->set_dtype(static_cast<v1::DType>(77)); }},
      {"k.dtype is float16",
       [](auto* r) {
         r->mutable_k()->set_dtype(v1::DTYPE_FLOAT16);
         r->mutable_k()->mutable_data()->resize(6 * 2 * 8 * 2);
       }},
      {"num_kv_heads is 2; accepted: a positive divisor of num_q_heads 3",
       [](auto* r) {
         r->mutable_q()->set_shape(1, 3);
         r->mutable_q()->mutable_data()->resize(6 * 3 * 8 * 4);
       }},
      {"head_dim is 129",
       [](auto* r) {
         for (auto* t : {r->mutable_q(), r->mutable_k(), r->mutable_v()}) {
           t->set_shape(2, 129);
           t->mutable_data()->resize(static_cast<size_t>(t->shape(0) * t->shape(1)) * 129 * 4);
         }
       }},
      {"head_dim is 0",
       [](auto* r) {
         for (auto* t : {r->mutable_q(), r->mutable_k(), r->mutable_v()}) {
           t->set_shape(2, 0);
           t->clear_data();
         }
       }},
      {"mask is unspecified", [](auto* r) { r->clear_mask(); }},
      {"mask is 9", [](auto* r) { r->set_mask(static_cast<v1::Mask>(9)); }},
      {"left_window is -1", [](auto* r) { r->set_left_window(-1); }},
      {"kv_lens has 0 entries and q_lens has 1", [](auto* r) { r->add_q_lens(6); }},
      {"q_lens sums to 5",
       [](auto* r) {
         r->add_q_lens(5);
         r->add_kv_lens(6);
       }},
      {"kv_lens sums to 7",
       [](auto* r) {
         r->add_q_lens(6);
         r->add_kv_lens(7);
       }},
      {"q_lens[0] is -1",
       [](auto* r) {
         for (const int length : {-1, 7}) r->add_q_lens(length);
         for (const int length : {3, 3}) r->add_kv_lens(length);
       }},
      {"query_start has 2 entries",
       [](auto* r) {
         r->add_query_start(1);
         r->add_query_start(2);
       }},
      {"key_start[0] is 281474976710657",
       [](auto* r) { r->add_key_start((int64_t{1} << 48) + 1); }},
      {"softmax_scale is nan", [nan](auto* r) { r->set_softmax_scale(nan); }},
      {"softmax_scale is inf", [](auto* r) { r->set_softmax_scale(INFINITY); }},
      {"eps is -0.001", [](auto* r) { r->set_eps(-1e-3f); }},
      {"eps is 0.5", [](auto* r) { r->set_eps(0.5f); }},
      {"eps is nan", [nan](auto* r) { r->set_eps(nan); }},
      {"alibi.slopes.data[0] is nan",
       [&](auto* r) { set_float(r->mutable_alibi()->mutable_slopes(), std::nanf("")); }},
      {"alibi.slopes.data[0] is -inf",
       [&](auto* r) { set_float(r->mutable_alibi()->mutable_slopes(), -INFINITY); }},
      {"alibi.slopes.shape is [3]",
       [](auto* r) {
         r->mutable_alibi()->mutable_slopes()->set_shape(0, 3);
         r->mutable_alibi()->mutable_slopes()->mutable_data()->resize(12);
       }},
      {"alibi.slopes.dtype is float16",
       [](auto* r) {
         r->mutable_alibi()->mutable_slopes()->set_dtype(v1::DTYPE_FLOAT16);
         r->mutable_alibi()->mutable_slopes()->mutable_data()->resize(8);
       }},
      {"low_rank.phi_q.shape is [6, 4, 65]",
       [](auto* r) {
         auto* phi = r->mutable_low_rank()->mutable_phi_q();
         phi->set_dtype(v1::DTYPE_FLOAT32);
         for (const int extent : {6, 4, 65}) phi->add_shape(extent);
         phi->set_data(std::string(6 * 4 * 65 * 4, '\0'));
         *r->mutable_low_rank()->mutable_phi_k() = *phi;
       }},
      {"low_rank.phi_k.shape is [6, 3, 2]",
       [](auto* r) {
         auto* phi = r->mutable_low_rank()->mutable_phi_q();
         phi->set_dtype(v1::DTYPE_FLOAT32);
         for (const int extent : {6, 4, 2}) phi->add_shape(extent);
         phi->set_data(std::string(6 * 4 * 2 * 4, '\0'));
         auto* other = r->mutable_low_rank()->mutable_phi_k();
         *other = *phi;
         other->set_shape(1, 3);
         other->mutable_data()->resize(6 * 3 * 2 * 4);
       }},
  };
  for (const Fault& fault : faults) {
    v1::AttendRequest request = Good();
    fault.make(&request);
    const grpc::Status status = Send(request);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT)
        << fault.field << ": " << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(fault.field));
  }
  // Nothing of it was lost on the way, and the server still serves.
  EXPECT_TRUE(Send(Good()).ok());
  Samples metrics = QuietMetrics();
  EXPECT_EQ(metrics[RequestsTotal("Attend", "INVALID_ARGUMENT")],
            static_cast<double>(faults.size()));
  EXPECT_EQ(metrics["flashbias_rejected_total{reason=\"invalid\"}"],
            static_cast<double>(faults.size()));
}

TEST_F(BadRequestTest, TooLargeAMessageGetsAnErrorThatStatesTheLimit) {
  ServerOptions options;
  options.max_message_bytes = 20'000;
  Start(options);
  stub_ = v1::AttentionService::NewStub(
      grpc::CreateChannel(Target(), grpc::InsecureChannelCredentials()));
  v1::AttendRequest request = Good();
  EXPECT_TRUE(Send(request).ok());
  request.mutable_q()->mutable_data()->resize(40'000);
  const grpc::Status status = Send(request);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("20000"));
  EXPECT_TRUE(Send(Good()).ok());
}

TEST_F(ServiceTest, EmptySequencesAreLegal) {
  const auto client = NewClient();
  for (const auto& [q_len, kv_len] : {std::pair{0, 0}, std::pair{0, 5}, std::pair{3, 0}}) {
    AttentionCase c;
    c.sequences = {{.q_len = q_len, .kv_len = kv_len}};
    OwnedProblem owned = Materialise(c);
    const absl::StatusOr<AttendResult> result = AttendRemotely(*client, &owned);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(support::MatchesReference(owned));
  }
}

// Work of about a second for two threads: long enough to be cut short in every build.
OwnedProblem LongProblem() {
  AttentionCase c;
  c.num_q_heads = c.num_kv_heads = 32;
  c.head_dim = 128;
  c.bias = BiasKind::kNone;
  c.mask.causal = false;
  c.sequences = {{.q_len = 4096, .kv_len = 4096}};
  return Materialise(c);
}

TEST_F(ServiceTest, DeadlineEndsACall) {
  OwnedProblem owned = LongProblem();
  const absl::StatusOr<AttendResult> result =
      AttendRemotely(*NewClient(), &owned, {.timeout = absl::Milliseconds(20)});
  EXPECT_EQ(result.status().code(), absl::StatusCode::kDeadlineExceeded) << result.status();
  AttentionCase small;
  OwnedProblem after = Materialise(small);
  ASSERT_TRUE(AttendRemotely(*NewClient(), &after).ok());
  EXPECT_TRUE(support::MatchesReference(after));
}

TEST_F(ServiceTest, ShutdownFinishesWhatWasAccepted) {
  AttentionCase c;
  c.num_q_heads = c.num_kv_heads = 8;
  c.head_dim = 64;
  c.eps = 0;
  // A sanitizer's arithmetic is a hundred times slower; the drain has to end within its grace.
  constexpr int64_t kLength = support::kSlowBuild ? 256 : 2048;
  c.sequences = {{.q_len = kLength, .kv_len = kLength}};
  constexpr int kCallers = 4;
  std::atomic<int> answered{0};
  std::atomic<int> refused{0};
  std::vector<std::thread> callers;
  // Retries would hide what the server answered.
  auto created = AttentionClient::Create(
      {.target = Target(), .num_connections = kCallers, .retry = {.max_attempts = 1}});
  ASSERT_TRUE(created.ok()) << created.status();
  const auto client = *std::move(created);
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&] {
      OwnedProblem owned = Materialise(c);
      const absl::StatusOr<AttendResult> result =
          AttendRemotely(*client, &owned, {.timeout = absl::Seconds(30)});
      if (result.ok()) {
        ++answered;
        EXPECT_EQ(owned.CheckOutputs(), "");
      } else {
        ++refused;
        EXPECT_TRUE(absl::IsUnavailable(result.status())) << result.status();
        EXPECT_THAT(std::string(result.status().message()), HasSubstr("draining"));
      }
    });
  }
  // Until every message is there and one request is computed: from here on each is accepted, and
  // then answered, or told that the server drains.
  const absl::Time give_up = absl::Now() + absl::Seconds(20);
  while (absl::Now() < give_up) {
    absl::StatusOr<Samples> samples = Scrape(server_->metrics_port());
    if (samples.ok() && (*samples)["flashbias_batch_requests_count"] >= 1 &&
        (*samples)["flashbias_stage_duration_seconds_count{stage=\"receive\"}"] == kCallers) {
      break;
    }
  }
  EXPECT_TRUE(server_->Shutdown(absl::Seconds(30)));
  for (std::thread& caller : callers) caller.join();
  EXPECT_GE(answered, 1);
  EXPECT_EQ(answered + refused, kCallers);
  Samples metrics = QuietMetrics();
  EXPECT_EQ(metrics[RequestsTotal("Attend", "OK")], answered);
  EXPECT_EQ(metrics[RequestsTotal("Attend", "UNAVAILABLE")], refused);
  EXPECT_EQ(metrics["flashbias_rejected_total{reason=\"draining\"}"], refused);
  EXPECT_EQ(metrics["flashbias_batch_requests_sum"], answered) << "computed is answered";
}

}  // namespace
}  // namespace flashbias::integration
