// AttendStream over real gRPC on loopback, with a puppet for a backend and generated classes for a
// caller.
#include "server/attend_stream.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

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

v1::AttendRequest Request(int64_t rows = 5, int64_t kv_rows = 5) {
  v1::AttendRequest request;
  request.set_mask(v1::MASK_CAUSAL);
  request.set_want_lse(true);
  Fill(request.mutable_q(), {rows, 2, 8});
  Fill(request.mutable_k(), {kv_rows, 1, 8});
  Fill(request.mutable_v(), {kv_rows, 1, 8});
  return request;
}

v1::AttendStreamRequest HeaderOf(v1::AttendRequest request) {
  for (v1::Tensor* const tensor : {request.mutable_q(), request.mutable_k(), request.mutable_v()}) {
    tensor->clear_data();
  }
  if (request.has_low_rank()) {
    request.mutable_low_rank()->mutable_phi_q()->clear_data();
    request.mutable_low_rank()->mutable_phi_k()->clear_data();
  }
  v1::AttendStreamRequest message;
  *message.mutable_header() = std::move(request);
  return message;
}

v1::AttendStreamRequest ChunkOf(v1::StreamTensor tensor, int64_t offset, const std::string& data) {
  v1::AttendStreamRequest message;
  message.mutable_chunk()->set_tensor(tensor);
  message.mutable_chunk()->set_offset(offset);
  message.mutable_chunk()->set_data(data);
  return message;
}

// All chunks of a request, tensors in turn.
std::vector<v1::AttendStreamRequest> ChunksOf(const v1::AttendRequest& request, size_t bytes) {
  std::vector<std::pair<v1::StreamTensor, const std::string*>> tensors = {
      {v1::STREAM_TENSOR_Q, &request.q().data()},
      {v1::STREAM_TENSOR_K, &request.k().data()},
      {v1::STREAM_TENSOR_V, &request.v().data()}};
  if (request.has_low_rank()) {
    tensors.emplace_back(v1::STREAM_TENSOR_PHI_Q, &request.low_rank().phi_q().data());
    tensors.emplace_back(v1::STREAM_TENSOR_PHI_K, &request.low_rank().phi_k().data());
  }
  std::vector<v1::AttendStreamRequest> chunks;
  bool more = true;
  for (size_t at = 0; more; at += bytes) {
    more = false;
    for (const auto& [tensor, data] : tensors) {
      if (at >= data->size()) continue;
      chunks.push_back(ChunkOf(tensor, static_cast<int64_t>(at), data->substr(at, bytes)));
      more = true;
    }
  }
  return chunks;
}

class AttendStreamTest : public testing::Test {
 protected:
  // One call.
  struct Stream {
    explicit Stream(v1::AttentionService::Stub* stub, absl::Duration timeout = absl::Seconds(30)) {
      context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
      rpc = stub->AttendStream(&context);
    }
    // The answer put together, once the caller has sent all it will.
    grpc::Status Finish() {
      rpc->WritesDone();
      v1::AttendStreamResponse message;
      while (rpc->Read(&message)) {
        ++messages;
        if (message.has_header()) answer = message.header();
        if (!message.has_chunk()) continue;
        std::string* const data = message.chunk().tensor() == v1::STREAM_TENSOR_O
                                      ? answer.mutable_o()->mutable_data()
                                      : answer.mutable_lse()->mutable_data();
        EXPECT_EQ(static_cast<size_t>(message.chunk().offset()), data->size());
        largest_chunk = std::max(largest_chunk, message.chunk().data().size());
        data->append(message.chunk().data());
      }
      return rpc->Finish();
    }
    grpc::Status SendAndFinish(const v1::AttendRequest& request, size_t chunk_bytes) {
      rpc->Write(HeaderOf(request));
      for (const auto& chunk : ChunksOf(request, chunk_bytes)) {
        if (!rpc->Write(chunk)) break;
      }
      return Finish();
    }

    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReaderWriter<v1::AttendStreamRequest, v1::AttendStreamResponse>>
        rpc;
    v1::AttendResponse answer;
    int messages = 0;
    size_t largest_chunk = 0;
  };

  AttendStreamTest() {
    options_.listen_address = "127.0.0.1:0";
    options_.metrics_address = "";  // the HTTP server takes two seconds to stop
  }

  void StartWithMetrics() {
    options_.metrics_address = "127.0.0.1:0";
    Start();
  }
  void Start() {
    auto backend = std::make_unique<PuppetBackend>(1);
    backend_ = backend.get();
    auto server = Server::Create(options_, std::move(backend));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    stub_ = NewStub();
  }

  // Over a connection of its own.
  std::unique_ptr<v1::AttentionService::Stub> NewStub() const {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return v1::AttentionService::NewStub(
        grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(server_->port()),
                                  grpc::InsecureChannelCredentials(), arguments));
  }

  void TearDown() override {
    if (server_ == nullptr) return;
    ExpectNothingHeld();
    backend_->set_automatic(true);
    while (backend_->runs_in_flight() > 0) backend_->EndRun();
    server_.reset();
  }

  // Nothing is in flight and no host memory is held, in at most ten seconds.
  void ExpectNothingHeld() {
    if (server_->metrics_port() != 0) {
      AwaitMetric("flashbias_inflight_requests 0");
      AwaitMetric("flashbias_stream_reserved_bytes 0");
    }
    AwaitMemory([](size_t used) { return used == 0; });
  }
  void AwaitMemory(const std::function<bool(size_t)>& wanted) {
    const absl::Time deadline = absl::Now() + absl::Seconds(10);
    while (!wanted(backend_->memory_used()) && absl::Now() < deadline) {
      absl::SleepFor(absl::Milliseconds(2));
    }
    EXPECT_TRUE(wanted(backend_->memory_used())) << backend_->memory_used();
  }
  void AwaitMetric(const std::string& line) {
    const absl::Time deadline = absl::Now() + absl::Seconds(10);
    std::string text;
    do {
      text = HttpGet(server_->metrics_port(), "/metrics");
    } while (text.find("\n" + line + "\n") == std::string::npos && absl::Now() < deadline);
    // Without the text, which is long.
    EXPECT_NE(text.find("\n" + line + "\n"), std::string::npos) << line;
  }
  void AwaitCalls(const std::string& code, int count) {
    AwaitMetric("flashbias_requests_total{code=\"" + code +
                "\",method=\"AttendStream\",transport=\"tcp\"} " + std::to_string(count));
  }

  ServerOptions options_;
  PuppetBackend* backend_ = nullptr;  // owned by the server
  std::unique_ptr<Server> server_;
  std::unique_ptr<v1::AttentionService::Stub> stub_;
};

TEST_F(AttendStreamTest, AnswersAreThoseOfAttend) {
  StartWithMetrics();
  backend_->set_automatic(true);
  v1::AttendRequest low_rank = Request(7, 3);
  low_rank.set_want_lse(false);
  Fill(low_rank.mutable_low_rank()->mutable_phi_q(), {7, 1, 3});
  Fill(low_rank.mutable_low_rank()->mutable_phi_k(), {3, 2, 3});
  v1::AttendRequest alibi = Request(4);
  Fill(alibi.mutable_alibi()->mutable_slopes(), {2});
  int calls = 0;
  for (const v1::AttendRequest& request :
       {Request(), low_rank, alibi, Request(0, 0), Request(0, 4), Request(3, 0)}) {
    grpc::ClientContext context;
    v1::AttendResponse want;
    ASSERT_TRUE(stub_->Attend(&context, request, &want).ok());
    for (const size_t chunk_bytes : {size_t{1}, size_t{13}, size_t{1} << 20}) {
      Stream stream(stub_.get());
      const grpc::Status status = stream.SendAndFinish(request, chunk_bytes);
      ASSERT_TRUE(status.ok()) << status.error_message();
      EXPECT_EQ(stream.answer.o().data(), want.o().data());
      EXPECT_EQ(stream.answer.lse().data(), want.lse().data());
      EXPECT_THAT(stream.answer.o().shape(), testing::ElementsAreArray(want.o().shape()));
      EXPECT_EQ(stream.answer.has_lse(), want.has_lse());
      EXPECT_EQ(stream.answer.timing().tiles_computed(), 10);
      EXPECT_GT(stream.answer.timing().receive_seconds(), 0);
      EXPECT_EQ(stream.context.GetServerInitialMetadata().count("flashbias-stream-accepted"), 1u);
      ++calls;
    }
  }
  AwaitCalls("OK", calls);
}

TEST_F(AttendStreamTest, TheAnswersChunksAreAsLargeAsTheCallerSays) {
  Start();
  backend_->set_automatic(true);
  const v1::AttendRequest request = Request(40, 1);  // o has 2560 bytes, lse 320
  v1::AttendStreamRequest header = HeaderOf(request);
  header.set_max_chunk_bytes(1000);
  Stream stream(stub_.get());
  stream.rpc->Write(header);
  for (const auto& chunk : ChunksOf(request, 4096)) stream.rpc->Write(chunk);
  ASSERT_TRUE(stream.Finish().ok());
  EXPECT_EQ(stream.messages, 1 + 1 + 3);
  EXPECT_EQ(stream.largest_chunk, 1000u);
  EXPECT_EQ(stream.answer.o().data().size(), 2560u);
}

TEST_F(AttendStreamTest, TheAnswersChunksFitTheServersMessageLimit) {
  options_.max_message_bytes = 1024;
  Start();
  backend_->set_automatic(true);
  Stream stream(stub_.get());
  const grpc::Status status = stream.SendAndFinish(Request(40, 1), 900);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(stream.largest_chunk, 1024u - 64);
}

TEST_F(AttendStreamTest, WhatIsOutOfOrderIsExplained) {
  StartWithMetrics();
  const v1::AttendRequest request = Request();  // q has 320 bytes, k and v 160
  const v1::AttendStreamRequest header = HeaderOf(request);
  v1::AttendStreamRequest with_data = header;
  with_data.mutable_header()->mutable_q()->set_data("x");
  v1::AttendStreamRequest no_mask = header;
  no_mask.mutable_header()->clear_mask();
  v1::AttendStreamRequest huge = header;
  huge.mutable_header()->mutable_k()->set_shape(0, int64_t{1} << 61);
  v1::AttendStreamRequest negative = header;
  negative.set_max_chunk_bytes(-1);
  v1::AttendStreamRequest in_region = header;
  in_region.mutable_header()->mutable_v()->set_region_id(7);
  v1::AttendStreamRequest at_offset = header;
  at_offset.mutable_header()->mutable_k()->set_region_offset(7);
  v1::AttendStreamRequest o_place = header;
  o_place.mutable_header()->mutable_o_place();
  v1::AttendStreamRequest lse_place = header;
  lse_place.mutable_header()->mutable_lse_place()->set_region_id(7);
  const auto q = [&](int64_t offset, size_t bytes) {
    return ChunkOf(v1::STREAM_TENSOR_Q, offset, std::string(bytes, 'q'));
  };
  struct Fault {
    std::vector<v1::AttendStreamRequest> messages;
    std::string error;
  };
  const std::vector<Fault> faults = {
      {{}, "the stream ended before its first message"},
      {{q(0, 4)}, "the first message holds a chunk; accepted: header"},
      {{v1::AttendStreamRequest()}, "the first message holds nothing; accepted: header"},
      {{header, header}, "a message after the first holds a header; accepted: chunk"},
      {{header, v1::AttendStreamRequest()}, "a message after the first holds nothing"},
      {{with_data}, "q.data has 1 bytes; accepted: none in the header of a stream"},
      {{no_mask}, "mask is unspecified"},
      {{huge}, "k.shape is"},
      {{negative}, "max_chunk_bytes is -1"},
      {{in_region}, "v.region_id is 7; accepted: 0 in the header of a stream"},
      {{at_offset}, "k.region_offset is 7; accepted: 0 in the header of a stream"},
      {{o_place}, "o_place is set; accepted: none in the header of a stream"},
      {{lse_place}, "lse_place is set; accepted: none in the header of a stream"},
      {{header, q(4, 4)}, "chunk of q: offset is 4; accepted: 0"},
      {{header, q(0, 4), q(0, 4)}, "chunk of q: offset is 0; accepted: 4"},
      {{header, q(0, 4), q(8, 4)}, "chunk of q: offset is 8; accepted: 4"},
      {{header, q(0, 0)}, "data has 0 bytes"},
      {{header, q(0, 321)}, "data has 321 bytes; accepted: at most 320"},
      {{header, q(0, 320), q(320, 1)}, "at most 0, what is left of the 320 bytes of q"},
      {{header, ChunkOf(v1::STREAM_TENSOR_O, 0, "o")}, "chunk.tensor is number 6"},
      {{header, ChunkOf(v1::STREAM_TENSOR_PHI_Q, 0, "o")}, "accepted: q, k, v"},
      {{header}, "the stream ended at byte 0 of q; accepted: all of its 320 bytes"},
      {{header, q(0, 320)}, "the stream ended at byte 0 of k; accepted: all of its 160 bytes"},
  };
  for (const Fault& fault : faults) {
    Stream stream(stub_.get());
    for (const auto& message : fault.messages) stream.rpc->Write(message);
    const grpc::Status status = stream.Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << fault.error;
    EXPECT_THAT(status.error_message(), HasSubstr(fault.error));
  }
  AwaitCalls("INVALID_ARGUMENT", static_cast<int>(faults.size()));
  AwaitMetric("flashbias_rejected_total{reason=\"invalid\"} " + std::to_string(faults.size()));
}

// As HeaderOf, ChunksOf and Stream, for gradients.
using Backward = v1::AttendBackwardStreamRequest;

Backward HeaderOf(v1::AttendBackwardRequest request) {
  Backward message;
  *message.mutable_header() = std::move(request);
  v1::AttendBackwardRequest* const header = message.mutable_header();
  *header->mutable_forward() = HeaderOf(header->forward()).header();
  for (v1::Tensor* tensor : {header->mutable_lse(), header->mutable_o(), header->mutable_d_o()}) {
    tensor->clear_data();
  }
  return message;
}

std::vector<Backward> ChunksOf(const v1::AttendBackwardRequest& request, size_t bytes) {
  std::vector<Backward> chunks;
  const auto add = [&](const v1::AttendStreamRequest& chunk) {
    *chunks.emplace_back().mutable_chunk() = chunk.chunk();
  };
  for (const auto& chunk : ChunksOf(request.forward(), bytes)) add(chunk);
  for (const auto& [tensor, data] : {std::pair{v1::STREAM_TENSOR_D_O, &request.d_o().data()},
                                     std::pair{v1::STREAM_TENSOR_O, &request.o().data()},
                                     std::pair{v1::STREAM_TENSOR_LSE, &request.lse().data()}}) {
    for (size_t at = 0; at < data->size(); at += bytes) {
      add(ChunkOf(tensor, static_cast<int64_t>(at), data->substr(at, bytes)));
    }
  }
  return chunks;
}

struct BackwardStream {
  explicit BackwardStream(v1::AttentionService::Stub* stub) {
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(30)));
    rpc = stub->AttendBackwardStream(&context);
  }
  v1::Tensor* TensorOf(v1::StreamTensor tensor) {
    switch (tensor) {
      case v1::STREAM_TENSOR_DQ:
        return answer.mutable_dq();
      case v1::STREAM_TENSOR_DK:
        return answer.mutable_dk();
      case v1::STREAM_TENSOR_DV:
        return answer.mutable_dv();
      case v1::STREAM_TENSOR_DSLOPES:
        return answer.mutable_dslopes();
      case v1::STREAM_TENSOR_DPHI_Q:
        return answer.mutable_dphi_q();
      case v1::STREAM_TENSOR_DPHI_K:
        return answer.mutable_dphi_k();
      default:
        ADD_FAILURE() << "a chunk of tensor " << tensor;
        return answer.mutable_dq();
    }
  }
  grpc::Status Finish() {
    rpc->WritesDone();
    v1::AttendBackwardStreamResponse message;
    while (rpc->Read(&message)) {
      if (message.has_header()) answer = message.header();
      if (!message.has_chunk()) continue;
      std::string* const data = TensorOf(message.chunk().tensor())->mutable_data();
      EXPECT_EQ(static_cast<size_t>(message.chunk().offset()), data->size());
      data->append(message.chunk().data());
    }
    return rpc->Finish();
  }

  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReaderWriter<Backward, v1::AttendBackwardStreamResponse>> rpc;
  v1::AttendBackwardResponse answer;
};

v1::AttendBackwardRequest BackwardRequest(v1::AttendRequest forward) {
  v1::AttendBackwardRequest request;
  const int64_t rows = forward.q().shape(0);
  forward.set_want_lse(false);
  request.set_want_bias_gradient(forward.has_alibi() || forward.has_low_rank());
  *request.mutable_forward() = std::move(forward);
  Fill(request.mutable_lse(), {rows, 2});
  Fill(request.mutable_o(), {rows, 2, 8});
  Fill(request.mutable_d_o(), {rows, 2, 8});
  return request;
}

TEST_F(AttendStreamTest, GradientsAreThoseOfAttendBackward) {
  StartWithMetrics();
  backend_->set_automatic(true);
  v1::AttendRequest low_rank = Request(7, 3);
  Fill(low_rank.mutable_low_rank()->mutable_phi_q(), {7, 1, 3});
  Fill(low_rank.mutable_low_rank()->mutable_phi_k(), {3, 2, 3});
  v1::AttendRequest alibi = Request(4);
  Fill(alibi.mutable_alibi()->mutable_slopes(), {2});
  int calls = 0;
  for (const v1::AttendRequest& forward :
       {Request(), low_rank, alibi, Request(0, 0), Request(0, 4), Request(3, 0)}) {
    const v1::AttendBackwardRequest request = BackwardRequest(forward);
    grpc::ClientContext context;
    v1::AttendBackwardResponse want;
    ASSERT_TRUE(stub_->AttendBackward(&context, request, &want).ok());
    for (const size_t chunk_bytes : {size_t{1}, size_t{13}, size_t{1} << 20}) {
      BackwardStream stream(stub_.get());
      stream.rpc->Write(HeaderOf(request));
      for (const auto& chunk : ChunksOf(request, chunk_bytes)) stream.rpc->Write(chunk);
      const grpc::Status status = stream.Finish();
      ASSERT_TRUE(status.ok()) << status.error_message();
      EXPECT_EQ(stream.answer.timing().tiles_computed(), 10);
      *stream.answer.mutable_timing() = want.timing();
      EXPECT_EQ(stream.answer.SerializeAsString(), want.SerializeAsString());
      EXPECT_EQ(stream.context.GetServerInitialMetadata().count("flashbias-stream-accepted"), 1u);
      ++calls;
    }
  }
  AwaitMetric(
      "flashbias_requests_total{code=\"OK\",method=\"AttendBackwardStream\",transport="
      "\"tcp\"} " +
      std::to_string(calls));
}

TEST_F(AttendStreamTest, WhatIsWrongInAStreamOfGradientsIsExplained) {
  StartWithMetrics();
  const v1::AttendBackwardRequest request = BackwardRequest(Request());  // o has 320 bytes
  const Backward header = HeaderOf(request);
  Backward with_data = header;
  with_data.mutable_header()->mutable_lse()->set_data("x");
  Backward in_region = header;
  in_region.mutable_header()->mutable_d_o()->set_region_id(7);
  Backward place = header;
  place.mutable_header()->mutable_dk_place();
  Backward huge = header;
  huge.mutable_header()->mutable_o()->set_shape(0, int64_t{1} << 61);
  const auto chunk = [](v1::StreamTensor tensor, int64_t offset, size_t bytes) {
    Backward message;
    *message.mutable_chunk() = ChunkOf(tensor, offset, std::string(bytes, 'x')).chunk();
    return message;
  };
  struct Fault {
    std::vector<Backward> messages;
    std::string error;
  };
  const std::vector<Fault> faults = {
      {{}, "the stream ended before its first message"},
      {{chunk(v1::STREAM_TENSOR_Q, 0, 4)}, "the first message holds a chunk; accepted: header"},
      {{with_data}, "lse.data has 1 bytes; accepted: none in the header of a stream"},
      {{in_region}, "d_o.region_id is 7; accepted: 0 in the header of a stream"},
      {{place}, "dk_place is set; accepted: none in the header of a stream"},
      {{huge}, "o.shape is"},
      {{header, chunk(v1::STREAM_TENSOR_D_O, 4, 4)}, "chunk of d_o: offset is 4; accepted: 0"},
      {{header, chunk(v1::STREAM_TENSOR_O, 0, 321)}, "data has 321 bytes; accepted: at most 320"},
      {{header, chunk(v1::STREAM_TENSOR_DQ, 0, 1)}, "chunk.tensor is number 9"},
      {{header, chunk(v1::STREAM_TENSOR_PHI_Q, 0, 1)}, "accepted: q, k, v, lse, o, d_o"},
      {{header}, "the stream ended at byte 0 of q"},
  };
  for (const Fault& fault : faults) {
    BackwardStream stream(stub_.get());
    for (const auto& message : fault.messages) stream.rpc->Write(message);
    const grpc::Status status = stream.Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << fault.error;
    EXPECT_THAT(status.error_message(), HasSubstr(fault.error));
  }
  AwaitMetric("flashbias_rejected_total{reason=\"invalid\"} " + std::to_string(faults.size()));
}

TEST_F(AttendStreamTest, AllTensorsOfAStreamOfGradientsCountTowardsItsLimit) {
  // q, o, d_o and dq of 320 KB; k, v, dk and dv of 256 bytes, lse of 40 KB.
  const v1::AttendBackwardRequest request = BackwardRequest(Request(5000, 8));
  constexpr int64_t kBytes = 4 * 320000 + 4 * 256 + 40000;
  options_.max_stream_bytes = kBytes;
  StartWithMetrics();
  {
    BackwardStream stream(stub_.get());
    stream.rpc->Write(HeaderOf(request));
    stream.rpc->WaitForInitialMetadata();
    AwaitMetric("flashbias_stream_reserved_bytes " + std::to_string(kBytes));
    stream.context.TryCancel();
    EXPECT_EQ(stream.Finish().error_code(), grpc::StatusCode::CANCELLED);
    ExpectNothingHeld();
  }
  v1::AttendBackwardRequest larger = request;
  Fill(larger.mutable_forward()->mutable_alibi()->mutable_slopes(), {2});
  larger.set_want_bias_gradient(true);
  BackwardStream stream(stub_.get());
  stream.rpc->Write(HeaderOf(larger));
  const grpc::Status status = stream.Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(),
              HasSubstr("the tensors of request and answer together would take " +
                        std::to_string(kBytes + 8) + " bytes"));
}

// The caller goes on writing; it must hear of it all the same.
TEST_F(AttendStreamTest, ARefusedHeaderEndsACallThatIsStillSending) {
  StartWithMetrics();
  v1::AttendRequest request = Request();
  request.clear_mask();
  Stream stream(stub_.get());
  stream.rpc->Write(HeaderOf(request));
  const auto chunk = ChunkOf(v1::STREAM_TENSOR_Q, 0, std::string(1 << 20, 'q'));
  while (stream.rpc->Write(chunk)) {
  }
  EXPECT_EQ(stream.Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  AwaitCalls("INVALID_ARGUMENT", 1);
}

TEST_F(AttendStreamTest, MoreThanAStreamMayHoldIsRefusedForGood) {
  options_.max_stream_bytes = 1 << 20;
  Start();
  v1::AttendRequest request = Request();
  request.mutable_k()->set_shape(0, 1 << 20);
  request.mutable_v()->set_shape(0, 1 << 20);
  Stream stream(stub_.get());
  stream.rpc->Write(HeaderOf(request));
  const grpc::Status status = stream.Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(),
              AllOf(HasSubstr("k would take 33554432 bytes"), HasSubstr("the limit is 1048576")));
  EXPECT_EQ(stream.context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 0u);
}

TEST_F(AttendStreamTest, StreamsThatHoldTheMemoryMakeOthersComeAgain) {
  options_.max_stream_bytes = 1 << 20;
  StartWithMetrics();
  backend_->set_automatic(true);
  v1::AttendRequest small = Request(5000, 8);  // q and o take 640 KB together
  small.set_want_lse(false);
  Stream first(stub_.get());
  first.rpc->Write(HeaderOf(small));
  first.rpc->WaitForInitialMetadata();
  AwaitMetric("flashbias_stream_reserved_bytes 640512");
  EXPECT_GT(backend_->memory_used(), 2u * 5000 * 64);

  Stream second(stub_.get());
  second.rpc->Write(HeaderOf(small));
  const grpc::Status status = second.Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("streams hold "));
  EXPECT_EQ(second.context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);

  first.context.TryCancel();
  first.Finish();
  ExpectNothingHeld();
  Stream third(stub_.get());
  const grpc::Status again = third.SendAndFinish(small, 1 << 16);
  EXPECT_TRUE(again.ok()) << again.error_message();
}

TEST_F(AttendStreamTest, FullHostMemoryMakesCallersComeAgain) {
  Start();
  backend_->set_memory_full(true);
  Stream stream(stub_.get());
  stream.rpc->Write(HeaderOf(Request()));
  const grpc::Status status = stream.Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("the puppet's memory is full"));
  EXPECT_EQ(stream.context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
  EXPECT_EQ(stream.context.GetServerInitialMetadata().count("flashbias-stream-accepted"), 0u);
}

TEST_F(AttendStreamTest, ABackendErrorIsInternal) {
  Start();
  Stream stream(stub_.get());
  auto status = std::async(std::launch::async, [&] { return stream.SendAndFinish(Request(), 64); });
  ASSERT_TRUE(backend_->WaitForRunsInFlight(1));
  backend_->EndRun(absl::DataLossError("device fell over"));
  const grpc::Status result = status.get();
  EXPECT_EQ(result.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(result.error_message(), HasSubstr("device fell over"));
}

// What a backend was told of one request's inputs.
struct ToldUpload {
  const HostBlock* inputs = nullptr;
  std::string written;  // what it was told of, as it was then
  bool all = false;
  bool gone = false;
};

class TellingUpload final : public UploadAhead {
 public:
  explicit TellingUpload(ToldUpload* told) : told_(told) {}
  ~TellingUpload() override {
    // Its block goes later.
    EXPECT_NE(told_->inputs->data(), nullptr);
    told_->gone = true;
  }
  void Written(const char* data, size_t bytes) override {
    EXPECT_GE(data, told_->inputs->data());
    EXPECT_LE(data + bytes, told_->inputs->data() + told_->inputs->size());
    EXPECT_FALSE(told_->all);
    told_->written.append(data, bytes);
  }
  void AllWritten() override { told_->all = true; }

 private:
  ToldUpload* const told_;
};

TEST_F(AttendStreamTest, TheBackendHearsOfEachChunk) {
  StartWithMetrics();
  ToldUpload told;
  backend_->set_uploads([&](const HostBlock& inputs) {
    told = {.inputs = &inputs};
    return std::make_unique<TellingUpload>(&told);
  });
  const v1::AttendRequest request = Request();
  const auto chunks = ChunksOf(request, 64);
  std::string sent;
  for (const auto& chunk : chunks) sent += chunk.chunk().data();

  Stream stream(stub_.get());
  auto status = std::async(std::launch::async, [&] { return stream.SendAndFinish(request, 64); });
  ASSERT_TRUE(backend_->WaitForRunsInFlight(1));
  EXPECT_EQ(told.written, sent) << "chunk by chunk, each when it is in its place";
  EXPECT_TRUE(told.all) << "before it runs";
  EXPECT_FALSE(told.gone) << "while it runs";
  backend_->EndRun();
  EXPECT_TRUE(status.get().ok());
  EXPECT_TRUE(told.gone);

  // A caller that leaves.
  {
    auto stub = NewStub();
    Stream leaves(stub.get());
    leaves.rpc->Write(HeaderOf(request));
    leaves.rpc->WaitForInitialMetadata();
    EXPECT_FALSE(told.gone) << "it begins with the header";
    leaves.rpc->Write(chunks[0]);
    leaves.context.TryCancel();
    leaves.Finish();
  }
  ExpectNothingHeld();
  EXPECT_TRUE(told.gone);
  EXPECT_FALSE(told.all);
}

// Callers that go away while the server is receiving: by cancelling and by closing the connection,
// before the header, after it, between chunks and before the last.
TEST_F(AttendStreamTest, CallersThatVanishWhileTheySendLeaveNothing) {
  StartWithMetrics();
  const v1::AttendRequest request = Request(1 << 10, 1 << 10);
  const auto chunks = ChunksOf(request, 1 << 13);
  int calls = 0;
  for (size_t sent = 0; sent <= chunks.size(); ++sent) {
    for (const bool cancel : {true, false}) {
      auto stub = NewStub();
      auto stream = std::make_unique<Stream>(stub.get());
      if (sent > 0) {
        stream->rpc->Write(HeaderOf(request));
        stream->rpc->WaitForInitialMetadata();
        EXPECT_GT(backend_->memory_used(), 0u);
      }
      for (size_t n = 0; n + 1 < sent; ++n) stream->rpc->Write(chunks[n]);
      AwaitMetric("flashbias_inflight_requests 1");
      if (cancel) stream->context.TryCancel();
      stream.reset();  // a context that goes cancels its call
      stub.reset();
      ExpectNothingHeld();
      ++calls;
    }
  }
  AwaitCalls("CANCELLED", calls);
  AwaitMetric("flashbias_cancelled_total{where=\"receiving\"} " + std::to_string(calls));
  AwaitCalls("INVALID_ARGUMENT", 0);
  EXPECT_TRUE(backend_->run_sizes().empty());
}

TEST_F(AttendStreamTest, ADeadlineEndsACallThatStillSends) {
  StartWithMetrics();
  Stream stream(stub_.get(), absl::Milliseconds(200));
  stream.rpc->Write(HeaderOf(Request()));
  stream.rpc->WaitForInitialMetadata();
  v1::AttendStreamResponse message;
  EXPECT_FALSE(stream.rpc->Read(&message));
  EXPECT_EQ(stream.rpc->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  ExpectNothingHeld();
  AwaitMetric("flashbias_cancelled_total{where=\"receiving\"} 1");
}

TEST_F(AttendStreamTest, CancelWhileItRunsAndWhileItWaits) {
  StartWithMetrics();
  const v1::AttendRequest request = Request();
  Stream running(stub_.get());
  auto running_status =
      std::async(std::launch::async, [&] { return running.SendAndFinish(request, 64); });
  ASSERT_TRUE(backend_->WaitForRunsInFlight(1));
  Stream waiting(stub_.get());
  auto waiting_status =
      std::async(std::launch::async, [&] { return waiting.SendAndFinish(request, 64); });
  AwaitMetric("flashbias_queue_requests 1");
  AwaitMetric("flashbias_queue_bytes 0");
  waiting.context.TryCancel();
  EXPECT_EQ(waiting_status.get().error_code(), grpc::StatusCode::CANCELLED);
  AwaitMetric("flashbias_queue_requests 0");
  running.context.TryCancel();
  EXPECT_EQ(running_status.get().error_code(), grpc::StatusCode::CANCELLED);
  AwaitMetric("flashbias_inflight_requests 0");
  EXPECT_EQ(backend_->runs_in_flight(), 1u);
  EXPECT_GT(backend_->memory_used(), 0u) << "the batch writes there still";
  AwaitMetric("flashbias_cancelled_total{where=\"queue\"} 1");
  AwaitMetric("flashbias_cancelled_total{where=\"running\"} 1");
  backend_->EndRun();
}

TEST_F(AttendStreamTest, ACallerThatVanishesDuringTheAnswerLeavesNothing) {
  StartWithMetrics();
  backend_->set_automatic(true);
  // Zero keys make the answer cheap: 32 MiB of it, more than the connection takes unread.
  v1::AttendRequest request = Request(1, 0);
  request.clear_q();
  Fill(request.mutable_q(), {1 << 19, 2, 8});
  for (const int read : {0, 1, 3}) {
    auto stub = NewStub();
    auto stream = std::make_unique<Stream>(stub.get());
    stream->rpc->Write(HeaderOf(request));
    for (const auto& chunk : ChunksOf(request, 4 << 20)) stream->rpc->Write(chunk);
    stream->rpc->WritesDone();
    v1::AttendStreamResponse message;
    for (int n = 0; n < read; ++n) EXPECT_TRUE(stream->rpc->Read(&message));
    // The inputs have gone, the outputs wait for the caller.
    AwaitMemory([](size_t used) { return used > 0 && used < size_t{40} << 20; });
    stream.reset();
    stub.reset();
    ExpectNothingHeld();
  }
  AwaitMetric("flashbias_cancelled_total{where=\"sending\"} 3");
  AwaitCalls("CANCELLED", 3);
}

TEST_F(AttendStreamTest, ADrainEndsStreamsThatStillArriveAndFinishesTheOthers) {
  StartWithMetrics();
  Stream arriving(stub_.get());
  arriving.rpc->Write(HeaderOf(Request()));
  arriving.rpc->WaitForInitialMetadata();
  Stream running(stub_.get());
  auto running_status =
      std::async(std::launch::async, [&] { return running.SendAndFinish(Request(), 64); });
  ASSERT_TRUE(backend_->WaitForRunsInFlight(1));
  auto drained =
      std::async(std::launch::async, [&] { return server_->Shutdown(absl::Seconds(30)); });
  v1::AttendStreamResponse nothing;
  EXPECT_FALSE(arriving.rpc->Read(&nothing));  // waits for the drain
  const grpc::Status status = arriving.rpc->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("draining"));
  Stream late(stub_.get());
  EXPECT_EQ(late.SendAndFinish(Request(), 64).error_code(), grpc::StatusCode::UNAVAILABLE);
  backend_->EndRun();
  EXPECT_TRUE(running_status.get().ok());
  EXPECT_TRUE(drained.get());
  AwaitMetric("flashbias_rejected_total{reason=\"draining\"} 2");
}

TEST_F(AttendStreamTest, AShutdownThatCannotWaitAnswersWhatRuns) {
  Start();
  Stream running(stub_.get());
  auto status =
      std::async(std::launch::async, [&] { return running.SendAndFinish(Request(), 64); });
  ASSERT_TRUE(backend_->WaitForRunsInFlight(1));
  EXPECT_FALSE(server_->Shutdown(absl::Milliseconds(50)));
  EXPECT_EQ(status.get().error_code(), grpc::StatusCode::UNAVAILABLE);
  backend_->EndRun();
}

// A caller that reads nothing of a large answer holds the server up no longer than the grace.
TEST_F(AttendStreamTest, AShutdownDoesNotWaitForACallerThatDoesNotRead) {
  Start();
  backend_->set_automatic(true);
  v1::AttendRequest request = Request(1, 0);
  request.clear_q();
  Fill(request.mutable_q(), {1 << 19, 2, 8});
  Stream stream(stub_.get());
  stream.rpc->Write(HeaderOf(request));
  for (const auto& chunk : ChunksOf(request, 4 << 20)) stream.rpc->Write(chunk);
  stream.rpc->WritesDone();
  v1::AttendStreamResponse message;
  ASSERT_TRUE(stream.rpc->Read(&message));
  EXPECT_FALSE(server_->Shutdown(absl::Milliseconds(50)));
  while (stream.rpc->Read(&message)) {
  }
  EXPECT_FALSE(stream.rpc->Finish().ok());
}

TEST_F(AttendStreamTest, BytesAreCounted) {
  StartWithMetrics();
  backend_->set_automatic(true);
  Stream stream(stub_.get());
  const v1::AttendRequest request = Request();
  size_t sent = HeaderOf(request).ByteSizeLong();
  for (const auto& chunk : ChunksOf(request, 64)) sent += chunk.ByteSizeLong();
  ASSERT_TRUE(stream.SendAndFinish(request, 64).ok());
  AwaitCalls("OK", 1);
  AwaitMetric("flashbias_received_bytes_total " + std::to_string(sent));
  AwaitMetric("flashbias_stage_duration_seconds_count{stage=\"receive\"} 1");
  AwaitMetric("flashbias_stage_duration_seconds_count{stage=\"send\"} 1");
}

}  // namespace
}  // namespace flashbias::server
