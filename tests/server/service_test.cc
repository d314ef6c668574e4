// The service over real gRPC on loopback, with a puppet for a backend.
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <future>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "flashbias/v1/attention.grpc.pb.h"
#include "server/server.h"
#include "tests/server/http_get.h"
#include "tests/server/puppet_backend.h"

namespace flashbias::server {
namespace {

using testing::AllOf;
using testing::HasSubstr;

void Fill(v1::Tensor* tensor, const std::vector<int64_t>& shape) {
  tensor->set_dtype(v1::DTYPE_FLOAT32);
  int64_t elements = 1;
  for (const int64_t extent : shape) {
    tensor->add_shape(extent);
    elements *= extent;
  }
  std::string* const data = tensor->mutable_data();
  data->resize(static_cast<size_t>(elements) * 4);
  for (int64_t n = 0; n < elements; ++n) {
    StoreElement(DType::kFloat32, data->data(), n, std::sin(static_cast<float>(n)));
  }
}

v1::AttendRequest Request(int64_t rows = 5, int head_dim = 8) {
  v1::AttendRequest request;
  request.set_mask(v1::MASK_CAUSAL);
  request.set_want_lse(true);
  Fill(request.mutable_q(), {rows, 2, head_dim});
  Fill(request.mutable_k(), {rows, 1, head_dim});
  Fill(request.mutable_v(), {rows, 1, head_dim});
  return request;
}

// The gradients of Request(rows) with slopes, whose forward call gave what Fill makes up.
v1::AttendBackwardRequest BackwardRequest(int64_t rows = 5) {
  v1::AttendBackwardRequest request;
  *request.mutable_forward() = Request(rows);
  request.mutable_forward()->set_want_lse(false);
  Fill(request.mutable_forward()->mutable_alibi()->mutable_slopes(), {2});
  request.set_want_bias_gradient(true);
  Fill(request.mutable_lse(), {rows, 2});
  Fill(request.mutable_o(), {rows, 2, 8});
  Fill(request.mutable_d_o(), {rows, 2, 8});
  return request;
}

// grpc.health.v1 without its generated classes: the response is field 1, an enum.
grpc::ByteBuffer ToBuffer(const std::string& text) {
  const grpc::Slice slice(text);
  return grpc::ByteBuffer(&slice, 1);
}

std::string FromBuffer(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string text;
  if (!buffer.Dump(&slices).ok()) return text;
  for (const grpc::Slice& slice : slices) {
    text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return text;
}

struct CallResult {
  grpc::Status status;
  v1::AttendResponse response;
  std::multimap<std::string, std::string> trailers;
};

class ServiceTest : public testing::Test {
 protected:
  ServiceTest() {
    options_.listen_address = "127.0.0.1:0";
    options_.metrics_address = "";  // the HTTP server takes two seconds to stop
  }

  void Start(int slots = 1, std::vector<DType> dtypes = {DType::kFloat16, DType::kFloat32}) {
    auto backend = std::make_unique<PuppetBackend>(slots);
    backend->mutable_info().dtypes = std::move(dtypes);
    backend_ = backend.get();
    auto server = Server::Create(options_, std::move(backend));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    ASSERT_GT(server_->port(), 0);
    Connect();
  }

  void Connect() {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetMaxSendMessageSize(-1);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    channel_ = grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(server_->port()),
                                         grpc::InsecureChannelCredentials(), arguments);
    stub_ = v1::AttentionService::NewStub(channel_);
  }

  void TearDown() override {
    if (server_ == nullptr) return;
    backend_->set_automatic(true);
    while (backend_->runs_in_flight() > 0) backend_->EndRun();
    server_.reset();
  }

  CallResult Attend(const v1::AttendRequest& request, grpc::ClientContext* context) const {
    CallResult result;
    result.status = stub_->Attend(context, request, &result.response);
    for (const auto& [key, value] : context->GetServerTrailingMetadata()) {
      result.trailers.emplace(std::string(key.data(), key.size()),
                              std::string(value.data(), value.size()));
    }
    return result;
  }
  CallResult Attend(const v1::AttendRequest& request) const {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    return Attend(request, &context);
  }
  std::future<CallResult> AttendAsync(const v1::AttendRequest& request,
                                      grpc::ClientContext* context = nullptr) const {
    return std::async(std::launch::async, [this, request, context] {
      return context == nullptr ? Attend(request) : Attend(request, context);
    });
  }

  // Sends `text` to any method; for health and reflection.
  grpc::Status RawCall(const std::string& method, const std::string& text, std::string* answer) {
    grpc::GenericStub generic(channel_);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    const grpc::ByteBuffer request = ToBuffer(text);
    grpc::ByteBuffer response;
    grpc::Status status;
    absl::Notification done;
    generic.UnaryCall(&context, method, grpc::StubOptions(), &request, &response,
                      [&](grpc::Status result) {
                        status = std::move(result);
                        done.Notify();
                      });
    done.WaitForNotification();
    if (answer != nullptr && status.ok()) *answer = FromBuffer(response);
    return status;
  }

  // grpc.health.v1 ServingStatus: 1 SERVING, 2 NOT_SERVING; -1 where the call fails.
  int HealthOf(const std::string& service) {
    std::string request;
    if (!service.empty()) {
      request = "\x0a";
      request += static_cast<char>(service.size());
      request += service;
    }
    std::string answer;
    const grpc::Status status = RawCall("/grpc.health.v1.Health/Check", request, &answer);
    if (!status.ok() || answer.size() != 2 || answer[0] != '\x08') return -1;
    return answer[1];
  }

  // Scrapes until the line is there, for at most ten seconds.
  void AwaitMetric(const std::string& line) {
    const absl::Time deadline = absl::Now() + absl::Seconds(10);
    std::string text;
    do {
      text = HttpGet(server_->metrics_port(), "/metrics");
    } while (text.find("\n" + line + "\n") == std::string::npos && absl::Now() < deadline);
    EXPECT_THAT(text, HasSubstr("\n" + line + "\n"));
  }

  ServerOptions options_;
  PuppetBackend* backend_ = nullptr;  // owned by the server
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::AttentionService::Stub> stub_;
};

TEST_F(ServiceTest, AnswersAreTrueAndTimed) {
  Start();
  backend_->set_automatic(true);
  const v1::AttendRequest request = Request();
  const CallResult result = Attend(request);
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();

  const Sequence sequence{.q_len = 5, .kv_len = 5};
  AttentionProblem problem;
  problem.num_q_heads = 2;
  problem.num_kv_heads = 1;
  problem.head_dim = 8;
  problem.total_q = problem.total_kv = 5;
  problem.q = request.q().data().data();
  problem.k = request.k().data().data();
  problem.v = request.v().data().data();
  problem.sequences = absl::MakeConstSpan(&sequence, 1);
  problem.softmax_scale = static_cast<float>(1 / std::sqrt(8.0));
  for (int row = 0; row < 5; ++row) {
    for (int head = 0; head < 2; ++head) {
      const ReferenceRow want = ReferenceAttentionRow(problem, 0, row, head);
      const int64_t at = row * 2 + head;
      EXPECT_NEAR(LoadElement(DType::kFloat32, result.response.lse().data().data(), at), want.lse,
                  1e-5);
      for (int d = 0; d < 8; ++d) {
        EXPECT_NEAR(LoadElement(DType::kFloat32, result.response.o().data().data(), at * 8 + d),
                    want.o[static_cast<size_t>(d)], 1e-5);
      }
    }
  }
  const v1::Timing& timing = result.response.timing();
  EXPECT_GT(timing.receive_seconds(), 0);
  EXPECT_GE(timing.queue_seconds(), 0);
  EXPECT_GT(timing.compute_seconds(), 0);
  EXPECT_GE(timing.send_seconds(), 0);
  EXPECT_EQ(timing.batch_requests(), 1);
  EXPECT_EQ(timing.tiles_computed(), 10);
  EXPECT_EQ(timing.tiles_skipped(), 3);
  EXPECT_EQ(timing.upload_seconds(), absl::ToDoubleSeconds(PuppetBackend::kUpload));
  EXPECT_EQ(timing.kernel_seconds(), absl::ToDoubleSeconds(PuppetBackend::kKernel));
  EXPECT_EQ(timing.download_seconds(), absl::ToDoubleSeconds(PuppetBackend::kDownload));
}

TEST_F(ServiceTest, GradientsAreTrueTimedAndCounted) {
  options_.metrics_address = "127.0.0.1:0";
  Start();
  backend_->set_automatic(true);
  const v1::AttendBackwardRequest request = BackwardRequest();
  grpc::ClientContext context;
  v1::AttendBackwardResponse response;
  const grpc::Status status = stub_->AttendBackward(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();

  const Sequence sequence{.q_len = 5, .kv_len = 5};
  AttentionProblem problem;
  problem.direction = Direction::kBackward;
  problem.num_q_heads = 2;
  problem.num_kv_heads = 1;
  problem.head_dim = 8;
  problem.total_q = problem.total_kv = 5;
  problem.q = request.forward().q().data().data();
  problem.k = request.forward().k().data().data();
  problem.v = request.forward().v().data().data();
  problem.gradients.d_o = request.d_o().data().data();
  problem.sequences = absl::MakeConstSpan(&sequence, 1);
  problem.softmax_scale = static_cast<float>(1 / std::sqrt(8.0));
  problem.bias_kind = BiasKind::kAlibi;
  const std::vector<float> slopes = {
      LoadElement(DType::kFloat32, request.forward().alibi().slopes().data().data(), 0),
      LoadElement(DType::kFloat32, request.forward().alibi().slopes().data().data(), 1)};
  problem.alibi.slopes = slopes.data();
  const ReferenceGradients want = ComputeReferenceGradients(problem);
  const auto expect_near = [](const v1::Tensor& got, const std::vector<double>& values) {
    ASSERT_EQ(got.data().size(), values.size() * 4);
    for (size_t n = 0; n < values.size(); ++n) {
      EXPECT_NEAR(LoadElement(DType::kFloat32, got.data().data(), static_cast<int64_t>(n)),
                  values[n], 1e-5);
    }
  };
  expect_near(response.dq(), want.dq);
  expect_near(response.dk(), want.dk);
  expect_near(response.dv(), want.dv);
  expect_near(response.dslopes(), want.dslopes);
  EXPECT_EQ(response.timing().batch_requests(), 1);
  EXPECT_GT(response.timing().compute_seconds(), 0);

  v1::AttendBackwardRequest bad = request;
  bad.mutable_d_o()->mutable_data()->pop_back();
  grpc::ClientContext refused;
  const grpc::Status refusal = stub_->AttendBackward(&refused, bad, &response);
  EXPECT_EQ(refusal.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(refusal.error_message(), HasSubstr("d_o.data has 319 bytes; accepted: 320"));
  const std::string method = "method=\"AttendBackward\",transport=\"tcp\"}";
  AwaitMetric("flashbias_requests_total{code=\"OK\"," + method + " 1");
  AwaitMetric("flashbias_requests_total{code=\"INVALID_ARGUMENT\"," + method + " 1");
  AwaitMetric("flashbias_rejected_total{reason=\"invalid\"} 1");
}

// The queue's limits, deadlines and drains see no difference between the directions.
TEST_F(ServiceTest, GradientsWaitInTheSameQueue) {
  options_.scheduler.max_queue_requests = 1;
  options_.metrics_address = "127.0.0.1:0";
  Start();
  auto running = AttendAsync(Request());
  ASSERT_TRUE(backend_->WaitForRunsInFlight(1));
  const auto backward = [&](absl::Duration timeout) {
    return std::async(std::launch::async, [this, timeout] {
      grpc::ClientContext context;
      context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
      v1::AttendBackwardResponse response;
      return stub_->AttendBackward(&context, BackwardRequest(), &response);
    });
  };
  auto expires = backward(absl::Seconds(2));
  AwaitMetric("flashbias_queue_requests 1");
  const grpc::Status refused = backward(absl::Seconds(30)).get();
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(expires.get().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  AwaitMetric("flashbias_queue_requests 0");
  backend_->set_automatic(true);
  backend_->EndRun();
  EXPECT_TRUE(running.get().status.ok());
  EXPECT_TRUE(backward(absl::Seconds(30)).get().ok());
}

TEST_F(ServiceTest, ADTypeThatTheBackendDoesNotServeIsNamedWithThoseThatItDoes) {
  Start(1, {DType::kFloat16, DType::kBFloat16});
  const CallResult result = Attend(Request());
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(result.status.error_message(),
              HasSubstr("q.dtype is float32; accepted: float16, bfloat16"));
}

TEST_F(ServiceTest, WhatNoDeviceHasRoomForIsRefused) {
  Start();
  backend_->set_admit(absl::ResourceExhaustedError("it takes 9 bytes; the limit is 8"));
  const CallResult result = Attend(Request());
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(result.status.error_message(), HasSubstr("it takes 9 bytes; the limit is 8"));
  EXPECT_TRUE(result.trailers.empty()) << "coming back helps nobody";
}

TEST_F(ServiceTest, AnEmptyRequestGetsAnEmptyAnswer) {
  Start();
  backend_->set_automatic(true);
  v1::AttendRequest request = Request(0);
  const CallResult result = Attend(request);
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_EQ(result.response.o().shape(0), 0);
  EXPECT_TRUE(result.response.o().data().empty());
}

TEST_F(ServiceTest, InfoSaysWhatIsServed) {
  options_.scheduler.max_queue_requests = 77;
  options_.max_sequences = 99;
  Start();
  grpc::ClientContext context;
  v1::GetServerInfoResponse info;
  ASSERT_TRUE(stub_->GetServerInfo(&context, {}, &info).ok());
  EXPECT_EQ(info.version(), FLASHBIAS_VERSION);
  EXPECT_EQ(info.backend(), "puppet");
  EXPECT_EQ(info.devices(0), "a puppet");
  EXPECT_EQ(info.dtypes_size(), 2);
  EXPECT_EQ(info.dtypes(1), v1::DTYPE_FLOAT32);
  EXPECT_EQ(info.max_head_dim(), 128);
  EXPECT_EQ(info.fast_head_dims_size(), 3);
  EXPECT_EQ(info.max_rank(), 64);
  EXPECT_EQ(info.max_message_bytes(), 512 << 20);
  EXPECT_EQ(info.max_queue_requests(), 77);
  EXPECT_EQ(info.max_queue_bytes(), int64_t{2} << 30);
  EXPECT_EQ(info.default_eps(), 0x1p-24);
  EXPECT_EQ(info.max_eps(), 0x1p-8);
  EXPECT_EQ(info.max_sequences(), 99);
  EXPECT_EQ(info.max_heads(), 65536);
  EXPECT_EQ(info.max_stream_bytes(), int64_t{8} << 30);
}

TEST_F(ServiceTest, ABadRequestIsExplained) {
  Start();
  v1::AttendRequest request = Request();
  request.clear_mask();
  const CallResult result = Attend(request);
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(result.status.error_message(), HasSubstr("mask is unspecified"));
}

TEST_F(ServiceTest, BytesThatAreNoRequestAreRefused) {
  Start();
  EXPECT_EQ(RawCall("/flashbias.v1.AttentionService/Attend", "\xff\xff\xff", nullptr).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  const grpc::Status empty = RawCall("/flashbias.v1.AttentionService/Attend", "", nullptr);
  EXPECT_EQ(empty.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(empty.error_message(), HasSubstr("q is missing"));
  const grpc::Status backward =
      RawCall("/flashbias.v1.AttentionService/AttendBackward", "\xff\xff\xff", nullptr);
  EXPECT_EQ(backward.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(backward.error_message(), HasSubstr("is no flashbias.v1.AttendBackwardRequest"));
}

TEST_F(ServiceTest, ABackendErrorIsInternal) {
  Start();
  auto call = AttendAsync(Request());
  ASSERT_TRUE(backend_->WaitForRunsInFlight(1));
  backend_->EndRun(absl::DataLossError("device fell over"));
  const CallResult result = call.get();
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(result.status.error_message(), HasSubstr("device fell over"));
}

TEST_F(ServiceTest, RequestsThatWaitTogetherRunTogether) {
  options_.metrics_address = "127.0.0.1:0";
  Start();
  auto first = AttendAsync(Request());
  ASSERT_TRUE(backend_->WaitForRunsInFlight(1));
  auto second = AttendAsync(Request());
  auto third = AttendAsync(Request(7));
  AwaitMetric("flashbias_queue_requests 2");
  backend_->set_automatic(true);
  backend_->EndRun();
  EXPECT_TRUE(first.get().status.ok());
  const CallResult a = second.get();
  const CallResult b = third.get();
  EXPECT_TRUE(a.status.ok());
  EXPECT_TRUE(b.status.ok());
  EXPECT_EQ(a.response.timing().batch_requests(), 2);
  EXPECT_EQ(a.response.o().shape(0), 5);
  EXPECT_EQ(b.response.o().shape(0), 7);
}

// Its message never came whole: nothing of it may be decoded or called invalid.
TEST_F(ServiceTest, ACallThatDiesWhileItsMessageArrivesIsNoInvalidOne) {
  options_.metrics_address = "127.0.0.1:0";
  Start();
  v1::AttendRequest request = Request(0);
  request.clear_q();
  Fill(request.mutable_q(), {200'000, 2, 8});  // 13 MB
  const std::string bytes = request.SerializeAsString();
  grpc::GenericStub generic(channel_);
  // Deadlines from long before to long after what the transfer takes, wherever this runs.
  for (double milliseconds = 1; milliseconds < 200; milliseconds *= 1.06) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Milliseconds(milliseconds)));
    const grpc::ByteBuffer message = ToBuffer(bytes);
    grpc::ByteBuffer response;
    absl::Notification done;
    generic.UnaryCall(&context, "/flashbias.v1.AttentionService/Attend", grpc::StubOptions(),
                      &message, &response, [&](const grpc::Status& status) {
                        EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
                        done.Notify();
                      });
    done.WaitForNotification();
  }
  AwaitMetric("flashbias_inflight_requests 0");
  AwaitMetric(
      "flashbias_requests_total{code=\"INVALID_ARGUMENT\",method=\"Attend\",transport=\"tcp\"} "
      "0");
  AwaitMetric("flashbias_rejected_total{reason=\"invalid\"} 0");
  const std::string text = HttpGet(server_->metrics_port(), "/metrics");
  EXPECT_EQ(text.find("flashbias_cancelled_total{where=\"receiving\"} 0\n"), std::string::npos)
      << "none of them died on the way: the deadlines are no test here";
}

TEST_F(ServiceTest, ADeadlineEndsACallThatRuns) {
  Start();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
  const CallResult result = Attend(Request(), &context);
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  // The late result is harmless, and the slot serves the next call.
  ASSERT_TRUE(backend_->WaitForRunsInFlight(1));
  backend_->EndRun();
  backend_->set_automatic(true);
  EXPECT_TRUE(Attend(Request()).status.ok());
}

TEST_F(ServiceTest, ADeadlineEndsACallThatWaits) {
  options_.metrics_address = "127.0.0.1:0";
  Start();
  auto running = AttendAsync(Request());
  ASSERT_TRUE(backend_->WaitForRunsInFlight(1));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
  const CallResult result = Attend(Request(), &context);
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  AwaitMetric("flashbias_queue_requests 0");
  backend_->EndRun();
  EXPECT_TRUE(running.get().status.ok());
  EXPECT_TRUE(server_->Shutdown(absl::Seconds(30)));
  EXPECT_EQ(backend_->run_sizes().size(), 1u) << "the expired one was never computed";
}

TEST_F(ServiceTest, CancelWhileItRuns) {
  Start();
  grpc::ClientContext context;
  auto call = AttendAsync(Request(), &context);
  ASSERT_TRUE(backend_->WaitForRunsInFlight(1));
  context.TryCancel();
  EXPECT_EQ(call.get().status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(backend_->runs_in_flight(), 1u) << "the answer did not wait for the backend";
  backend_->EndRun();
  backend_->set_automatic(true);
  EXPECT_TRUE(Attend(Request()).status.ok());
}

TEST_F(ServiceTest, AFullQueueSaysWhenToComeAgain) {
  options_.scheduler.max_queue_requests = 1;
  options_.metrics_address = "127.0.0.1:0";
  Start();
  auto running = AttendAsync(Request());
  ASSERT_TRUE(backend_->WaitForRunsInFlight(1));
  auto waiting = AttendAsync(Request());
  AwaitMetric("flashbias_queue_requests 1");
  const CallResult refused = Attend(Request());
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("the limit is 1"));
  const auto pushback = refused.trailers.find("grpc-retry-pushback-ms");
  ASSERT_NE(pushback, refused.trailers.end());
  EXPECT_GE(std::stoi(pushback->second), 10);
  backend_->set_automatic(true);
  backend_->EndRun();
  EXPECT_TRUE(running.get().status.ok());
  EXPECT_TRUE(waiting.get().status.ok());
}

TEST_F(ServiceTest, WithoutHostMemoryARequestMayComeAgain) {
  options_.metrics_address = "127.0.0.1:0";
  Start();
  backend_->set_automatic(true);
  backend_->set_memory_full(true);
  const CallResult refused = Attend(Request());
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("the puppet's memory is full"));
  const auto pushback = refused.trailers.find("grpc-retry-pushback-ms");
  ASSERT_NE(pushback, refused.trailers.end());
  EXPECT_GE(std::stoi(pushback->second), 10);
  AwaitMetric("flashbias_rejected_total{reason=\"memory\"} 1");
  backend_->set_memory_full(false);
  EXPECT_TRUE(Attend(Request()).status.ok());
}

TEST_F(ServiceTest, AMessageBeyondTheLimitIsRefusedWithTheLimit) {
  options_.max_message_bytes = 4096;
  Start();
  backend_->set_automatic(true);
  const CallResult result = Attend(Request(200));
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(result.status.error_message(), HasSubstr("4096"));
  EXPECT_TRUE(Attend(Request(5)).status.ok()) << "the connection lives on";
}

TEST_F(ServiceTest, AResponseBeyondTheLimitIsRefusedUpFront) {
  options_.max_message_bytes = 4096;
  Start();
  v1::AttendRequest request = Request(0, 1);
  request.clear_q();
  Fill(request.mutable_q(), {470, 2, 1});
  const CallResult result = Attend(request);
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(result.status.error_message(),
              AllOf(HasSubstr("the response would take"), HasSubstr("the limit is 4096")));
  EXPECT_TRUE(backend_->run_sizes().empty());
}

TEST_F(ServiceTest, HealthIsServedForBothNames) {
  Start();
  EXPECT_EQ(HealthOf(""), 1);
  EXPECT_EQ(HealthOf("flashbias.v1.AttentionService"), 1);
  EXPECT_EQ(HealthOf("another.Service"), -1);
}

// Two devices. When the first fails the server goes on; when the second does, too, what runs fails,
// what waits is sent elsewhere, and health and metrics say so.
TEST_F(ServiceTest, WithoutAnyHealthyDeviceItStopsServing) {
  options_.metrics_address = "127.0.0.1:0";
  std::vector<PuppetBackend*> puppets;
  std::vector<std::unique_ptr<AttentionBackend>> backends;
  for (const char* label : {"0", "1"}) {
    auto backend = std::make_unique<PuppetBackend>(1);
    backend->mutable_info().device_label = label;
    puppets.push_back(backend.get());
    backends.push_back(std::move(backend));
  }
  absl::Notification no_device;
  auto server = Server::Create(options_, std::move(backends), [&] { no_device.Notify(); });
  ASSERT_TRUE(server.ok()) << server.status();
  server_ = *std::move(server);
  backend_ = puppets[1];
  Connect();

  auto first = AttendAsync(Request());
  ASSERT_TRUE(puppets[0]->WaitForRunsInFlight(1));
  auto second = AttendAsync(Request());
  ASSERT_TRUE(puppets[1]->WaitForRunsInFlight(1)) << "each device gets one";
  auto waiting = AttendAsync(Request());
  AwaitMetric("flashbias_queue_requests 1");

  const absl::Status broken = absl::InternalError("CUDA device 0: attention failed with an error");
  puppets[0]->set_usage({.errors = {{"cudaErrorIllegalAddress", 1}}});
  puppets[0]->set_health(broken);
  puppets[0]->EndRun(broken);
  EXPECT_EQ(first.get().status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(HealthOf(""), 1) << "one device is left";
  AwaitMetric("flashbias_device_healthy{device=\"0\"} 0");
  AwaitMetric("flashbias_device_healthy{device=\"1\"} 1");
  AwaitMetric("flashbias_cuda_errors_total{code=\"cudaErrorIllegalAddress\"} 1");
  EXPECT_FALSE(no_device.HasBeenNotified());

  puppets[1]->set_health(broken);
  puppets[1]->EndRun(broken);
  const CallResult failed = second.get();
  EXPECT_EQ(failed.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(failed.status.error_message(), HasSubstr("CUDA device 0"));
  EXPECT_EQ(waiting.get().status.error_code(), grpc::StatusCode::UNAVAILABLE);
  no_device.WaitForNotification();
  EXPECT_EQ(HealthOf(""), 2);
  EXPECT_EQ(HealthOf("flashbias.v1.AttentionService"), 2);
  EXPECT_EQ(Attend(Request()).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  AwaitMetric("flashbias_device_healthy{device=\"1\"} 0");
  EXPECT_TRUE(server_->Shutdown(absl::Seconds(10)));
}

TEST_F(ServiceTest, DrainFinishesWhatRunsAndRefusesWhatComes) {
  Start();
  auto running = AttendAsync(Request());
  ASSERT_TRUE(backend_->WaitForRunsInFlight(1));
  auto shutdown =
      std::async(std::launch::async, [&] { return server_->Shutdown(absl::Seconds(60)); });
  while (HealthOf("") == 1) std::this_thread::yield();
  EXPECT_EQ(HealthOf("flashbias.v1.AttentionService"), 2);
  CallResult refused;
  do {
    refused = Attend(Request());  // until Drain has followed NOT_SERVING
  } while (refused.status.ok());
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("draining"));
  backend_->EndRun();
  EXPECT_TRUE(running.get().status.ok());
  EXPECT_TRUE(shutdown.get());
  EXPECT_TRUE(server_->Shutdown(absl::ZeroDuration())) << "as the first call";
}

TEST_F(ServiceTest, ShutdownCutsShortWhatDoesNotEnd) {
  Start();
  auto running = AttendAsync(Request());
  ASSERT_TRUE(backend_->WaitForRunsInFlight(1));
  EXPECT_FALSE(server_->Shutdown(absl::Milliseconds(50)));
  const CallResult result = running.get();
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(result.status.error_message(), HasSubstr("shutting down"));
  backend_->EndRun();  // into memory that is still there
}

TEST_F(ServiceTest, AHealthWatchDoesNotHoldShutdownUp) {
  Start();
  grpc::GenericStub generic(channel_);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  auto watch = generic.PrepareCall(&context, "/grpc.health.v1.Health/Watch", &queue);
  void* tag = nullptr;
  bool ok = false;
  const auto step = [&] { return queue.Next(&tag, &ok) && ok; };
  watch->StartCall(&tag);
  ASSERT_TRUE(step());
  watch->Write(ToBuffer(""), &tag);
  ASSERT_TRUE(step());
  watch->WritesDone(&tag);
  ASSERT_TRUE(step());
  grpc::ByteBuffer state;
  watch->Read(&state, &tag);
  ASSERT_TRUE(step());
  EXPECT_EQ(FromBuffer(state), std::string("\x08\x01"));
  const absl::Time start = absl::Now();
  EXPECT_TRUE(server_->Shutdown(absl::Seconds(60)));
  EXPECT_LT(absl::Now() - start, absl::Seconds(30));
  do {
    watch->Read(&state, &tag);
  } while (step());
  EXPECT_EQ(FromBuffer(state), std::string("\x08\x02")) << "NOT_SERVING came before the end";
  grpc::Status status;
  watch->Finish(&status, &tag);
  step();
  queue.Shutdown();
  while (queue.Next(&tag, &ok)) {
  }
}

TEST_F(ServiceTest, ReflectionCanBeOff) {
  options_.reflection = false;
  Start();
  const std::string method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
  // An empty list_services (field 7) request.
  EXPECT_EQ(RawCall(method, std::string("\x3a\x00", 2), nullptr).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
}

TEST_F(ServiceTest, ReflectionListsTheService) {
  Start();
  const std::string method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
  std::string answer;
  const grpc::Status status = RawCall(method, std::string("\x3a\x00", 2), &answer);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_THAT(answer, HasSubstr("flashbias.v1.AttentionService"));
}

TEST_F(ServiceTest, ATakenPortIsAnError) {
  Start();
  ServerOptions options = options_;
  options.listen_address = "127.0.0.1:" + std::to_string(server_->port());
  const auto second = Server::Create(options, std::make_unique<PuppetBackend>(1));
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(options.listen_address));
}

class UnixSocketTest : public ServiceTest {
 protected:
  UnixSocketTest() { options_.listen_unix = path_; }
  ~UnixSocketTest() override { unlink(path_.c_str()); }

  // What Attend gives over the socket.
  grpc::Status AttendThere() {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    channel_ =
        grpc::CreateCustomChannel("unix:" + path_, grpc::InsecureChannelCredentials(), arguments);
    stub_ = v1::AttentionService::NewStub(channel_);
    return Attend(Request()).status;
  }
  absl::Status SecondServer() {
    return Server::Create(options_, std::make_unique<PuppetBackend>(1)).status();
  }

  const std::string path_ = testing::TempDir() + "/service_test." + std::to_string(getpid());
};

TEST_F(UnixSocketTest, IsServedBesideTcpForItsOwnerOnly) {
  options_.metrics_address = "127.0.0.1:0";
  Start();
  backend_->set_automatic(true);
  struct stat file = {};
  ASSERT_EQ(stat(path_.c_str(), &file), 0);
  EXPECT_TRUE(S_ISSOCK(file.st_mode));
  EXPECT_EQ(file.st_mode & 0777, 0600u);
  EXPECT_TRUE(Attend(Request()).status.ok());
  EXPECT_TRUE(AttendThere().ok());
  AwaitMetric("flashbias_requests_total{code=\"OK\",method=\"Attend\",transport=\"unix\"} 1");
  AwaitMetric("flashbias_requests_total{code=\"OK\",method=\"Attend\",transport=\"tcp\"} 1");
  server_.reset();
  EXPECT_NE(stat(path_.c_str(), &file), 0) << "the socket goes with its server";
}

TEST_F(UnixSocketTest, OneThatADeadServerLeftIsReplaced) {
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  path_.copy(address.sun_path, sizeof(address.sun_path) - 1);
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  close(fd);
  Start();
  backend_->set_automatic(true);
  EXPECT_TRUE(AttendThere().ok());
}

TEST_F(UnixSocketTest, OneThatIsServedIsAnError) {
  Start();
  backend_->set_automatic(true);
  const absl::Status status = SecondServer();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(path_), HasSubstr("a server")));
  EXPECT_TRUE(AttendThere().ok()) << "the first server keeps its socket";
}

TEST_F(UnixSocketTest, AFileThatIsNoSocketIsAnErrorAndStays) {
  std::ofstream(path_) << "precious";
  const absl::Status status = SecondServer();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no socket"));
  std::string text;
  std::ifstream(path_) >> text;
  EXPECT_EQ(text, "precious");
}

TEST_F(UnixSocketTest, AFolderThatIsNotThereIsAnError) {
  options_.listen_unix = path_ + "/no/folder";
  const absl::Status status = SecondServer();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("listen_unix"));
}

TEST_F(ServiceTest, BadOptionsAreAnError) {
  options_.max_message_bytes = 0;
  EXPECT_EQ(Server::Create(options_, std::make_unique<PuppetBackend>(1)).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(ServiceTest, WhatHappensIsCounted) {
  options_.metrics_address = "127.0.0.1:0";
  Start();
  const v1::AttendRequest request = Request();
  auto call = AttendAsync(request);
  ASSERT_TRUE(backend_->WaitForRunsInFlight(1));
  AwaitMetric("flashbias_inflight_requests 1");
  backend_->set_automatic(true);
  backend_->EndRun();
  ASSERT_TRUE(call.get().status.ok());
  v1::AttendRequest bad = request;
  bad.clear_mask();
  ASSERT_FALSE(Attend(bad).status.ok());
  grpc::ClientContext context;
  v1::GetServerInfoResponse info;
  ASSERT_TRUE(stub_->GetServerInfo(&context, {}, &info).ok());
  const std::string labels = "method=\"Attend\",transport=\"tcp\"} ";
  const size_t bytes = request.ByteSizeLong() + bad.ByteSizeLong();
  AwaitMetric("flashbias_requests_total{code=\"OK\"," + labels + "1");
  AwaitMetric("flashbias_requests_total{code=\"INVALID_ARGUMENT\"," + labels + "1");
  AwaitMetric("flashbias_requests_total{code=\"OK\",method=\"GetServerInfo\",transport=\"tcp\"} 1");
  AwaitMetric("flashbias_request_duration_seconds_count{" + labels + "2");
  AwaitMetric("flashbias_rejected_total{reason=\"invalid\"} 1");
  AwaitMetric("flashbias_stage_duration_seconds_count{stage=\"receive\"} 2");
  AwaitMetric("flashbias_stage_duration_seconds_count{stage=\"queue\"} 1");
  AwaitMetric("flashbias_stage_duration_seconds_count{stage=\"compute\"} 1");
  AwaitMetric("flashbias_stage_duration_seconds_count{stage=\"send\"} 1");
  AwaitMetric("flashbias_received_bytes_total " + std::to_string(bytes));
  AwaitMetric("flashbias_response_bytes_count 1");
  AwaitMetric("flashbias_tiles_computed_total 10");
  AwaitMetric("flashbias_tiles_skipped_total 3");
  AwaitMetric("flashbias_inflight_requests 0");
  AwaitMetric("flashbias_build_info{backend=\"puppet\",version=\"" FLASHBIAS_VERSION "\"} 1");
}

TEST_F(ServiceTest, ManyCallersAllGetAnswers) {
  Start(2);
  backend_->set_automatic(true);
  std::vector<std::future<int>> callers;
  for (int t = 0; t < 4; ++t) {
    callers.push_back(std::async(std::launch::async, [&, t] {
      int answered = 0;
      for (int n = 0; n < 25; ++n) {
        const CallResult result = Attend(Request(1 + (n + t) % 9));
        answered += result.status.ok() && result.response.o().shape(0) == 1 + (n + t) % 9;
      }
      return answered;
    }));
  }
  for (auto& caller : callers) EXPECT_EQ(caller.get(), 25);
  EXPECT_TRUE(server_->Shutdown(absl::Seconds(30)));
}

}  // namespace
}  // namespace flashbias::server
