// Streamed calls of the client against a server that a test scripts, with generated classes.
#include "client/stream_call.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "client/attention_client.h"
#include "flashbias/v1/attention.grpc.pb.h"
#include "gmock/gmock.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"
#include "tests/client/fake_server.h"

namespace flashbias::client {
namespace {

using ::testing::HasSubstr;
using ServerStream = grpc::ServerReaderWriter<v1::AttendStreamResponse, v1::AttendStreamRequest>;

void Accept(grpc::ServerContext* context, ServerStream* stream) {
  context->AddInitialMetadata("flashbias-stream-accepted", "1");
  stream->SendInitialMetadata();
}

// What the client sent, put together; false: it broke off or a rule.
bool Receive(grpc::ServerContext* context, ServerStream* stream, v1::AttendRequest* request,
             size_t* largest_message = nullptr) {
  v1::AttendStreamRequest message;
  if (!stream->Read(&message) || !message.has_header()) return false;
  *request = message.header();
  Accept(context, stream);
  while (stream->Read(&message)) {
    if (!message.has_chunk()) return false;
    if (largest_message != nullptr) {
      *largest_message = std::max(*largest_message, message.ByteSizeLong());
    }
    v1::Tensor* tensor = request->mutable_q();
    switch (message.chunk().tensor()) {
      case v1::STREAM_TENSOR_Q:
        break;
      case v1::STREAM_TENSOR_K:
        tensor = request->mutable_k();
        break;
      case v1::STREAM_TENSOR_V:
        tensor = request->mutable_v();
        break;
      case v1::STREAM_TENSOR_PHI_Q:
        tensor = request->mutable_low_rank()->mutable_phi_q();
        break;
      case v1::STREAM_TENSOR_PHI_K:
        tensor = request->mutable_low_rank()->mutable_phi_k();
        break;
      default:
        return false;
    }
    if (message.chunk().offset() != static_cast<int64_t>(tensor->data().size())) return false;
    tensor->mutable_data()->append(message.chunk().data());
  }
  return true;
}

v1::AttendStreamResponse HeaderOf(v1::AttendResponse response) {
  v1::AttendStreamResponse message;
  response.mutable_o()->clear_data();
  if (response.has_lse()) response.mutable_lse()->clear_data();
  *message.mutable_header() = std::move(response);
  return message;
}

v1::AttendStreamResponse ChunkOf(v1::StreamTensor tensor, int64_t offset, const std::string& data) {
  v1::AttendStreamResponse message;
  message.mutable_chunk()->set_tensor(tensor);
  message.mutable_chunk()->set_offset(offset);
  message.mutable_chunk()->set_data(data);
  return message;
}

// In chunks of 100 bytes, o first.
std::vector<v1::AttendStreamResponse> MessagesOf(const v1::AttendResponse& response) {
  std::vector<v1::AttendStreamResponse> messages = {HeaderOf(response)};
  for (const auto& [tensor, data] : {std::pair{v1::STREAM_TENSOR_O, &response.o().data()},
                                     std::pair{v1::STREAM_TENSOR_LSE, &response.lse().data()}}) {
    for (size_t at = 0; at < data->size(); at += 100) {
      messages.push_back(ChunkOf(tensor, static_cast<int64_t>(at), data->substr(at, 100)));
    }
  }
  return messages;
}

// The same for gradients: puts a request together, and echoes it in chunks of 100 bytes.
using BackwardServerStream =
    grpc::ServerReaderWriter<v1::AttendBackwardStreamResponse, v1::AttendBackwardStreamRequest>;

bool Receive(grpc::ServerContext* context, BackwardServerStream* stream,
             v1::AttendBackwardRequest* request) {
  v1::AttendBackwardStreamRequest message;
  if (!stream->Read(&message) || !message.has_header()) return false;
  *request = message.header();
  context->AddInitialMetadata("flashbias-stream-accepted", "1");
  stream->SendInitialMetadata();
  while (stream->Read(&message)) {
    if (!message.has_chunk()) return false;
    v1::AttendRequest* const forward = request->mutable_forward();
    v1::Tensor* tensor = nullptr;
    switch (message.chunk().tensor()) {
      case v1::STREAM_TENSOR_Q:
        tensor = forward->mutable_q();
        break;
      case v1::STREAM_TENSOR_K:
        tensor = forward->mutable_k();
        break;
      case v1::STREAM_TENSOR_V:
        tensor = forward->mutable_v();
        break;
      case v1::STREAM_TENSOR_PHI_Q:
        tensor = forward->mutable_low_rank()->mutable_phi_q();
        break;
      case v1::STREAM_TENSOR_PHI_K:
        tensor = forward->mutable_low_rank()->mutable_phi_k();
        break;
      case v1::STREAM_TENSOR_LSE:
        tensor = request->mutable_lse();
        break;
      case v1::STREAM_TENSOR_O:
        tensor = request->mutable_o();
        break;
      case v1::STREAM_TENSOR_D_O:
        tensor = request->mutable_d_o();
        break;
      default:
        return false;
    }
    if (message.chunk().offset() != static_cast<int64_t>(tensor->data().size())) return false;
    tensor->mutable_data()->append(message.chunk().data());
  }
  return true;
}

void AnswerInChunks(v1::AttendBackwardResponse response, BackwardServerStream* stream) {
  std::vector<v1::AttendBackwardStreamResponse> messages(1);
  const auto cut = [&](v1::StreamTensor number, v1::Tensor* tensor) {
    const std::string data = std::move(*tensor->mutable_data());
    tensor->clear_data();
    for (size_t at = 0; at < data.size(); at += 100) {
      *messages.emplace_back().mutable_chunk() =
          ChunkOf(number, static_cast<int64_t>(at), data.substr(at, 100)).chunk();
    }
  };
  cut(v1::STREAM_TENSOR_DV, response.mutable_dv());
  cut(v1::STREAM_TENSOR_DK, response.mutable_dk());
  cut(v1::STREAM_TENSOR_DQ, response.mutable_dq());
  if (response.has_dslopes()) cut(v1::STREAM_TENSOR_DSLOPES, response.mutable_dslopes());
  if (response.has_dphi_q()) cut(v1::STREAM_TENSOR_DPHI_Q, response.mutable_dphi_q());
  if (response.has_dphi_k()) cut(v1::STREAM_TENSOR_DPHI_K, response.mutable_dphi_k());
  *messages.front().mutable_header() = std::move(response);
  for (const auto& message : messages) stream->Write(message);
}

class StreamServer final : public v1::AttentionService::Service {
 public:
  using Handler =
      std::function<grpc::Status(int call, grpc::ServerContext* context, ServerStream* stream)>;

  explicit StreamServer(Handler handler) : handler_(std::move(handler)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~StreamServer() override {
    server_->Shutdown(absl::ToChronoTime(absl::Now() + absl::Seconds(1)));
  }

  grpc::Status AttendStream(grpc::ServerContext* context, ServerStream* stream) override {
    return handler_(calls_++, context, stream);
  }
  // Echoes, and keeps what came in received_backward.
  grpc::Status AttendBackwardStream(grpc::ServerContext* context,
                                    BackwardServerStream* stream) override {
    ++calls_;
    received_backward.Clear();
    if (!Receive(context, stream, &received_backward)) {
      return {grpc::StatusCode::INVALID_ARGUMENT, "broken off"};
    }
    v1::AttendBackwardResponse response;
    Echo(received_backward, &response);
    AnswerInChunks(std::move(response), stream);
    return grpc::Status::OK;
  }
  v1::AttendBackwardRequest received_backward;  // of one call at a time

  grpc::Status Attend(grpc::ServerContext* /*context*/, const v1::AttendRequest* request,
                      v1::AttendResponse* response) override {
    ++unary_calls_;
    return Echo(*request, response);
  }

  std::unique_ptr<AttentionClient> Connect(AttentionClient::Options options = {}) const {
    options.target = absl::StrCat("127.0.0.1:", port_);
    options.retry.initial_backoff = absl::Milliseconds(2);
    auto client = AttentionClient::Create(std::move(options));
    EXPECT_TRUE(client.ok()) << client.status();
    return *std::move(client);
  }
  int calls() const { return calls_; }
  int unary_calls() const { return unary_calls_; }

 private:
  const Handler handler_;
  int port_ = 0;
  std::atomic<int> calls_{0};
  std::atomic<int> unary_calls_{0};
  std::unique_ptr<grpc::Server> server_;
};

// A request of 10 KiB and the memory that it points at.
struct TestRequest {
  std::vector<float> q = std::vector<float>(20 * 4 * 8);
  std::vector<float> k = std::vector<float>(60 * 2 * 8);
  std::vector<float> phi = std::vector<float>(60 * 3);
  AttendRequest request = {.q = {.shape = {20, 4, 8}, .data = q.data()},
                           .k = {.shape = {60, 2, 8}, .data = k.data()},
                           .v = {.shape = {60, 2, 8}, .data = k.data()},
                           .mask = MaskKind::kCausal,
                           .want_lse = true};
  TestRequest() {
    for (size_t n = 0; n < q.size(); ++n) q[n] = static_cast<float>(n);
    for (size_t n = 0; n < k.size(); ++n) k[n] = -static_cast<float>(n);
    for (size_t n = 0; n < phi.size(); ++n) phi[n] = 0.5f * static_cast<float>(n);
  }
};

StreamServer::Handler EchoHandler(v1::AttendRequest* received = nullptr,
                                  size_t* largest_message = nullptr) {
  return [=](int, grpc::ServerContext* context, ServerStream* stream) {
    v1::AttendRequest request;
    if (!Receive(context, stream, &request, largest_message)) {
      return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "broken off");
    }
    if (received != nullptr) *received = request;
    v1::AttendResponse response;
    Echo(request, &response);
    for (const auto& message : MessagesOf(response)) stream->Write(message);
    return grpc::Status::OK;
  };
}

const AttentionClient::Options kStreamAll = {.stream_above_bytes = 0};

TEST(StreamCallTest, WhatIsSentIsWhatAttendWouldSend) {
  v1::AttendRequest received;
  size_t largest_message = 0;
  StreamServer server(EchoHandler(&received, &largest_message));
  TestRequest test;
  test.request.bias = LowRankFactors{.phi_q = {.shape = {20, 1, 3}, .data = test.phi.data()},
                                     .phi_k = {.shape = {60, 1, 3}, .data = test.phi.data()}};
  test.request.eps = 0.0f;
  // It goes by stream because it fits no message.
  const auto client = server.Connect({.max_message_bytes = 1024});
  const auto result = client->Attend(test.request);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(server.calls(), 1);
  EXPECT_LE(largest_message, 1024u);
  EXPECT_GE(largest_message, 960u);

  EXPECT_EQ(received.q().data(), std::string(reinterpret_cast<const char*>(test.q.data()), 2560));
  EXPECT_EQ(received.k().data(), std::string(reinterpret_cast<const char*>(test.k.data()), 3840));
  EXPECT_EQ(received.v().data(), received.k().data());
  EXPECT_EQ(received.low_rank().phi_k().data(),
            std::string(reinterpret_cast<const char*>(test.phi.data()), 720));
  EXPECT_EQ(received.low_rank().phi_q().data().size(), 240u);
  EXPECT_THAT(received.k().shape(), testing::ElementsAre(60, 2, 8));
  EXPECT_TRUE(received.has_eps());

  EXPECT_EQ(result->o, received.q().data());
  EXPECT_EQ(result->lse.size(), 80u);
  EXPECT_EQ(result->lse[79], 79.0f);
  EXPECT_EQ(result->shape, (std::vector<int64_t>{20, 4, 8}));
  EXPECT_EQ(result->timing.tiles_computed, 7);
}

TEST(StreamCallTest, AnswersGoWhereTheCallerSays) {
  StreamServer server(EchoHandler());
  TestRequest test;
  std::vector<char> o(2560, '?');
  std::vector<float> lse(80, -1);
  CallOptions options;
  options.result = {.o = absl::MakeSpan(o), .lse = absl::MakeSpan(lse)};
  const auto result = server.Connect(kStreamAll)->Attend(test.request, options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(0, std::memcmp(o.data(), test.q.data(), o.size()));
  EXPECT_EQ(lse[79], 79.0f);
  EXPECT_TRUE(result->o.empty());
  EXPECT_TRUE(result->lse.empty());
  options.result.o = absl::MakeSpan(o.data(), 17);
  EXPECT_EQ(server.Connect(kStreamAll)->Attend(test.request, options).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(StreamCallTest, GradientsTravelInChunksToo) {
  StreamServer server(EchoHandler());
  TestRequest test;
  const std::vector<float> lse(80, 0.25f);
  const std::vector<float> slopes = {1, 2, 3, 4};
  std::vector<float> d_o(640);
  for (size_t n = 0; n < d_o.size(); ++n) d_o[n] = 0.125f * static_cast<float>(n);
  AttendBackwardRequest request{.forward = test.request, .lse = lse, .want_bias_gradient = true};
  request.o = test.request.q;
  request.d_o = {.shape = {20, 4, 8}, .data = d_o.data()};
  const auto bytes = [](const std::vector<float>& values) {
    return std::string(reinterpret_cast<const char*>(values.data()), values.size() * 4);
  };
  const auto client = server.Connect(kStreamAll);
  for (const bool low_rank : {false, true}) {
    if (low_rank) {
      request.forward.bias =
          LowRankFactors{.phi_q = {.shape = {20, 1, 3}, .data = test.phi.data()},
                         .phi_k = {.shape = {60, 1, 3}, .data = test.phi.data()}};
    } else {
      request.forward.bias = AlibiSlopes{.slopes = slopes};
    }
    auto gradients = client->AttendBackward(request);
    ASSERT_TRUE(gradients.ok()) << gradients.status();
    EXPECT_EQ(server.received_backward.o().data(), bytes(test.q));
    EXPECT_EQ(server.received_backward.lse().data(), bytes(lse));
    EXPECT_EQ(gradients->dq, bytes(d_o));
    EXPECT_EQ(gradients->dk, bytes(test.k));
    EXPECT_EQ(gradients->dv, bytes(test.k));
    EXPECT_EQ(gradients->dslopes.size(), low_rank ? 0u : 4u);
    EXPECT_EQ(gradients->dphi_k, low_rank ? test.phi : std::vector<float>());
    EXPECT_EQ(gradients->timing.tiles_computed, 7);

    std::string dk(test.k.size() * 4, '?');
    CallOptions options;
    options.gradients.dk = absl::MakeSpan(dk);
    gradients = client->AttendBackward(request, options);
    ASSERT_TRUE(gradients.ok()) << gradients.status();
    EXPECT_EQ(dk, bytes(test.k));
    EXPECT_TRUE(gradients->dk.empty());
    EXPECT_EQ(gradients->dq, bytes(d_o));
  }
  EXPECT_EQ(server.calls(), 4);
}

TEST(StreamCallTest, OnlyWhatIsAboveTheThresholdIsStreamed) {
  StreamServer server(EchoHandler());
  TestRequest test;  // 10240 bytes of q, k and v, an answer of 2880
  EXPECT_TRUE(server.Connect()->Attend(test.request).ok());
  EXPECT_TRUE(server.Connect({.stream_above_bytes = 10240})->Attend(test.request).ok());
  EXPECT_EQ(server.calls(), 0);
  EXPECT_TRUE(server.Connect({.stream_above_bytes = 10239})->Attend(test.request).ok());
  // The tensors fit a message, what is around them does not.
  EXPECT_TRUE(server.Connect({.max_message_bytes = 10240})->Attend(test.request).ok());
  EXPECT_EQ(server.calls(), 2);
  EXPECT_EQ(server.unary_calls(), 2);
  // The answer alone is above.
  test.request.k.shape = test.request.v.shape = {1, 2, 8};
  test.request.q_lens.clear();
  EXPECT_TRUE(server.Connect({.stream_above_bytes = 2800})->Attend(test.request).ok());
  EXPECT_EQ(server.calls(), 3);
}

TEST(StreamCallTest, AHeaderThatFitsNoMessageIsRefusedHere) {
  StreamServer server(EchoHandler());
  TestRequest test;
  test.request.q_lens.assign(2000, 0);
  test.request.q_lens[0] = 20;
  test.request.kv_lens.assign(2000, 0);
  test.request.kv_lens[0] = 60;
  const auto result = server.Connect({.max_message_bytes = 2048})->Attend(test.request);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("without its tensors"));
  EXPECT_EQ(server.calls(), 0);
}

TEST(StreamCallTest, AnswersThatDoNotFitTheRequestAreInternal) {
  using Messages = std::vector<v1::AttendStreamResponse>;
  struct Fault {
    const char* error;
    std::function<void(Messages*)> make;
  };
  const std::vector<Fault> faults = {
      {"expected: a header", [](Messages* m) { m->erase(m->begin()); }},
      {"expected: a chunk", [](Messages* m) { m->insert(m->begin(), m->front()); }},
      {"answered nothing", [](Messages* m) { m->clear(); }},
      {"o with 1 bytes; expected: 0",
       [](Messages* m) { m->front().mutable_header()->mutable_o()->set_data("x"); }},
      {"o of shape",
       [](Messages* m) { m->front().mutable_header()->mutable_o()->set_shape(0, 2); }},
      {"o of float16",
       [](Messages* m) { m->front().mutable_header()->mutable_o()->set_dtype(v1::DTYPE_FLOAT16); }},
      {"lse of dtype number 0; expected: float32",
       [](Messages* m) { m->front().mutable_header()->clear_lse(); }},
      {"offset is 100; accepted: 0", [](Messages* m) { m->erase(m->begin() + 1); }},
      {"offset is 0; accepted: 100",
       [](Messages* m) { m->insert(m->begin() + 1, Messages::value_type((*m)[1])); }},
      {"what is left of the 320 bytes of lse",
       [](Messages* m) { m->push_back(ChunkOf(v1::STREAM_TENSOR_LSE, 320, "x")); }},
      {"ended at byte 300 of lse", [](Messages* m) { m->pop_back(); }},
      {"chunk.tensor is number 1, at byte 0 with 1 bytes; accepted: o, lse",
       [](Messages* m) { m->push_back(ChunkOf(v1::STREAM_TENSOR_Q, 0, "x")); }},
      {"data has 0 bytes", [](Messages* m) { m->back().mutable_chunk()->clear_data(); }},
  };
  StreamServer server([&](int call, grpc::ServerContext* context, ServerStream* stream) {
    v1::AttendRequest request;
    Receive(context, stream, &request);
    v1::AttendResponse response;
    Echo(request, &response);
    Messages messages = MessagesOf(response);
    faults[static_cast<size_t>(call)].make(&messages);
    for (const auto& message : messages) stream->Write(message);
    return grpc::Status::OK;
  });
  const auto client = server.Connect(kStreamAll);
  TestRequest test;
  for (const Fault& fault : faults) {
    const auto result = client->Attend(test.request);
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInternal) << fault.error;
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(fault.error));
  }
  EXPECT_EQ(server.calls(), static_cast<int>(faults.size()));
}

TEST(StreamCallTest, NothingIsSentUntilItIsWantedAndARefusalIsTriedAgain) {
  std::atomic<bool> data_came{false};
  StreamServer server([&](int call, grpc::ServerContext* context, ServerStream* stream) {
    if (call == 2) return EchoHandler()(call, context, stream);
    v1::AttendStreamRequest message;
    EXPECT_TRUE(stream->Read(&message));
    EXPECT_TRUE(message.has_header());
    // Cut off by cancelling: what a client sends in the meantime would be read here.
    std::thread cancel([&] {
      absl::SleepFor(absl::Milliseconds(50));
      context->TryCancel();
    });
    if (call == 0 && stream->Read(&message)) data_came = true;
    cancel.join();
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
  });
  TestRequest test;
  // CANCELLED from a server counts as a refusal.
  EXPECT_TRUE(server.Connect(kStreamAll)->Attend(test.request).ok());
  EXPECT_EQ(server.calls(), 3);
  EXPECT_FALSE(data_came);

  StreamServer draining([&](int call, grpc::ServerContext* context, ServerStream* stream) {
    if (call == 2) return EchoHandler()(call, context, stream);
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
  });
  EXPECT_TRUE(draining.Connect(kStreamAll)->Attend(test.request).ok());
  EXPECT_EQ(draining.calls(), 3);
}

TEST(StreamCallTest, WhatWasAcceptedIsNotTriedAgain) {
  StreamServer server([&](int, grpc::ServerContext* context, ServerStream* stream) {
    v1::AttendRequest request;
    EXPECT_TRUE(Receive(context, stream, &request));
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "shutting down");
  });
  TestRequest test;
  const auto result = server.Connect(kStreamAll)->Attend(test.request);
  EXPECT_TRUE(absl::IsUnavailable(result.status())) << result.status();
  EXPECT_EQ(server.calls(), 1);
}

TEST(StreamCallTest, ARefusalInTheMiddleOfTheDataArrives) {
  StreamServer server([&](int, grpc::ServerContext* context, ServerStream* stream) {
    v1::AttendStreamRequest message;
    EXPECT_TRUE(stream->Read(&message));
    Accept(context, stream);
    EXPECT_TRUE(stream->Read(&message));
    return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "not this one");
  });
  const std::vector<float> large(8 << 20);
  const AttendRequest request = {.q = {.shape = {1 << 16, 1, 128}, .data = large.data()},
                                 .k = {.shape = {1 << 16, 1, 128}, .data = large.data()},
                                 .v = {.shape = {1 << 16, 1, 128}, .data = large.data()},
                                 .mask = MaskKind::kCausal};
  const auto result = server.Connect(kStreamAll)->Attend(request);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument) << result.status();
}

// Servers that stop at some point: before the header is accepted, before the data is read, before
// and in the middle of the answer. Deadline, cancellation and destruction end the call.
TEST(StreamCallTest, CallsEndWhereverTheServerHangs) {
  const std::vector<float> large(2 << 20);
  const AttendRequest request = {.q = {.shape = {1 << 14, 1, 128}, .data = large.data()},
                                 .k = {.shape = {1 << 14, 1, 128}, .data = large.data()},
                                 .v = {.shape = {1 << 14, 1, 128}, .data = large.data()},
                                 .mask = MaskKind::kCausal};
  enum Stage { kHeader, kData, kAnswer, kChunks, kStages };
  for (int stage = 0; stage < kStages; ++stage) {
    for (const char* how : {"deadline", "cancel", "destroy"}) {
      absl::Notification reached;
      StreamServer server([&](int, grpc::ServerContext* context, ServerStream* stream) {
        v1::AttendRequest received;
        if (stage == kData) Accept(context, stream);
        if (stage >= kAnswer) {
          EXPECT_TRUE(Receive(context, stream, &received));
        }
        if (stage == kChunks) {
          v1::AttendResponse response;
          Echo(received, &response);
          stream->Write(HeaderOf(response));
          stream->Write(ChunkOf(v1::STREAM_TENSOR_O, 0, response.o().data().substr(0, 1 << 20)));
        }
        reached.Notify();
        while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(2));
        return grpc::Status::CANCELLED;
      });
      auto client = server.Connect(kStreamAll);
      CallOptions options;
      options.cancellation = std::make_shared<Cancellation>();
      const bool by_deadline = how == std::string("deadline");
      options.timeout = by_deadline ? absl::Seconds(1) : absl::Seconds(60);
      absl::Notification ended;
      absl::Status status;
      client->AttendAsync(request, options, [&](absl::StatusOr<AttendResult> result) {
        status = result.status();
        ended.Notify();
      });
      reached.WaitForNotification();
      if (how == std::string("cancel")) options.cancellation->Cancel();
      if (how == std::string("destroy")) client.reset();
      ASSERT_TRUE(ended.WaitForNotificationWithTimeout(absl::Seconds(10))) << stage << how;
      EXPECT_EQ(status.code(),
                by_deadline ? absl::StatusCode::kDeadlineExceeded : absl::StatusCode::kCancelled)
          << stage << how << status;
    }
  }
}

}  // namespace
}  // namespace flashbias::client
