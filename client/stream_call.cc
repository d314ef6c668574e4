#include "client/stream_call.h"

#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "client/wire_codec.h"
#include "grpcpp/support/client_callback.h"
#include "wire/chunk.h"
#include "wire/chunk_assembler.h"
#include "wire/contract.h"
#include "wire/message_reader.h"

namespace flashbias::client {
namespace {

wire::OutgoingTensor Outgoing(int number, const TensorView& tensor) {
  uint64_t bytes = SizeOf(tensor.dtype);
  for (const int64_t extent : tensor.shape) bytes *= static_cast<uint64_t>(extent);
  return {.number = number, .data = static_cast<const char*>(tensor.data), .bytes = bytes};
}

// gRPC calls the methods on any threads: OnReadInitialMetadataDone, reads and writes each in their
// own order, OnDone when all of them have returned.
class StreamCall final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  StreamCall(grpc::ClientContext* context, std::shared_ptr<StreamExchange> exchange,
             std::function<void(grpc::Status)> on_done)
      : context_(context), exchange_(std::move(exchange)), on_done_(std::move(on_done)) {
    exchange_->accepted = false;
    exchange_->result = AttendResult();
    chunks_ = exchange_->chunks;
  }

  void Start(const ChannelPool::Connection& connection) {
    connection.bytes.PrepareBidiStreamingCall(context_, wire::kAttendStreamMethod,
                                              grpc::StubOptions(), this);
    outgoing_ = exchange_->header;
    StartWrite(&outgoing_);
    StartRead(&incoming_);
    StartCall();
  }

  void OnReadInitialMetadataDone(bool ok) override {
    // A refusal comes without the key.
    if (!ok || !context_->GetServerInitialMetadata().contains(wire::kStreamAccepted)) return;
    exchange_->accepted = true;
    OneOfTwoIsThere();
  }

  void OnWriteDone(bool ok) override {
    outgoing_.Clear();
    if (!ok) return;  // the status says why
    if (!std::exchange(header_sent_, true)) {
      OneOfTwoIsThere();
    } else {
      WriteNext();
    }
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;  // no more is to come
    if (absl::Status status = HandleMessage(); !status.ok()) {
      error_ = std::move(status);
      context_->TryCancel();
      return;
    }
    StartRead(&incoming_);
  }

  void OnDone(const grpc::Status& server_status) override {
    grpc::Status status = server_status;
    if (error_.ok() && status.ok()) error_ = CheckWhole();
    if (!error_.ok()) {
      status = {static_cast<grpc::StatusCode>(error_.code()), std::string(error_.message())};
    }
    outgoing_.Clear();
    incoming_.Clear();
    const std::function<void(grpc::Status)> on_done = std::move(on_done_);
    delete this;  // it holds nothing of the caller's any more when they hear of it
    on_done(status);
  }

 private:
  // The header was sent, or accepted; after the second of these the chunks go.
  void OneOfTwoIsThere() ABSL_LOCKS_EXCLUDED(mutex_) {
    {
      absl::MutexLock lock(&mutex_);
      if (++there_ < 2) return;
    }
    WriteNext();
  }

  void WriteNext() {
    const std::optional<wire::ChunkCutter::Piece> piece = chunks_.Next();
    if (!piece.has_value()) {
      StartWritesDone();
      return;
    }
    const grpc::Slice slices[] = {
        grpc::Slice(wire::EncodeChunkHead(piece->tensor, piece->offset, piece->bytes)),
        exchange_->loans->Lend(piece->data, piece->bytes)};
    outgoing_ = grpc::ByteBuffer(slices, 2);
    StartWrite(&outgoing_);
  }

  absl::Status HandleMessage() {
    const absl::StatusOr<std::vector<grpc::Slice>> slices = TakeSlices(&incoming_);
    if (!slices.ok()) return slices.status();
    std::optional<ResponseFields> header;
    std::optional<wire::Chunk> chunk;
    wire::MessageReader reader(*slices);
    while (reader.Next()) {
      switch (reader.field()) {
        case wire::StreamNumber::kHeader:
          reader.ReadMessage([&] { ReadResponse(&reader, &header.emplace()); });
          break;
        case wire::StreamNumber::kChunk:
          wire::ReadChunk(&reader, &chunk.emplace());
          break;
        default:
          reader.Skip();
      }
    }
    if (!reader.ok()) return NoMessage(*slices, "AttendStreamResponse", reader);
    if (header.has_value() == chunk.has_value() || header.has_value() == has_header_) {
      return absl::InternalError(
          absl::StrCat("the server answered a message ", header.has_value() ? "with" : "without",
                       " header and ", chunk.has_value() ? "with" : "without",
                       " chunk; expected: a ", has_header_ ? "chunk" : "header"));
    }
    if (header.has_value()) return HandleHeader(*std::move(header));
    return AsServerError(assembler_.Add(*chunk, *slices, nullptr));
  }

  absl::Status HandleHeader(ResponseFields response) {
    const RequestSummary& request = exchange_->summary;
    const int64_t lse_values = request.want_lse ? request.total_q * request.num_q_heads : 0;
    const auto lse_bytes = static_cast<size_t>(lse_values) * sizeof(float);
    const size_t o_bytes = static_cast<size_t>(request.response_bytes) - lse_bytes;
    if (response.o.data.size != 0 || response.lse.data.size != 0) {
      return absl::InternalError("the server answered a header with data; expected: none");
    }
    // As if the elements were there: they are checked chunk by chunk.
    response.o.data.size = o_bytes;
    response.lse.data.size = lse_bytes;
    if (absl::Status status = CheckResponse(request, response); !status.ok()) return status;

    AttendResult& result = exchange_->result;
    result.dtype = request.dtype;
    result.shape = std::move(response.o.shape);
    result.timing = response.timing;
    const ResultBuffers& buffers = exchange_->buffers;
    char* o = buffers.o.data();
    if (buffers.o.empty()) {
      result.o.resize(o_bytes);
      o = result.o.data();
    }
    std::vector<wire::IncomingTensor> tensors = {
        {.number = wire::kStreamO, .name = "o", .to = o, .bytes = o_bytes}};
    if (request.want_lse) {
      float* lse = buffers.lse.data();
      if (buffers.lse.empty()) {
        result.lse.resize(static_cast<size_t>(lse_values));
        lse = result.lse.data();
      }
      tensors.push_back({.number = wire::kStreamLse,
                         .name = "lse",
                         .to = reinterpret_cast<char*>(lse),
                         .bytes = lse_bytes});
    }
    assembler_ = wire::ChunkAssembler(tensors);
    has_header_ = true;
    return absl::OkStatus();
  }

  absl::Status CheckWhole() const {
    if (!has_header_) return absl::InternalError("the server answered nothing; expected: a header");
    return AsServerError(assembler_.CheckComplete());
  }

  static absl::Status AsServerError(const absl::Status& status) {
    if (status.ok()) return status;
    return absl::InternalError(absl::StrCat("the server answered wrongly: ", status.message()));
  }

  grpc::ClientContext* const context_;
  const std::shared_ptr<StreamExchange> exchange_;
  std::function<void(grpc::Status)> on_done_;

  // Of whoever writes: one write or wait is under way at any time.
  wire::ChunkCutter chunks_;
  grpc::ByteBuffer outgoing_;
  bool header_sent_ = false;

  // Of whoever reads.
  grpc::ByteBuffer incoming_;
  bool has_header_ = false;
  wire::ChunkAssembler assembler_;
  absl::Status error_;

  absl::Mutex mutex_;
  int there_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace

std::shared_ptr<StreamExchange> MakeStreamExchange(const AttendRequest& request,
                                                   const RequestSummary& summary,
                                                   const ResultBuffers& buffers,
                                                   int64_t max_message_bytes) {
  const int64_t chunk_bytes = wire::ChunkBytesFor(max_message_bytes);
  auto exchange = std::make_shared<StreamExchange>();
  exchange->summary = summary;
  exchange->buffers = buffers;
  exchange->header = EncodeStreamHeader(request, chunk_bytes, *exchange->loans);
  std::vector<wire::OutgoingTensor> tensors = {Outgoing(wire::kStreamQ, request.q),
                                               Outgoing(wire::kStreamK, request.k),
                                               Outgoing(wire::kStreamV, request.v)};
  if (const auto* low_rank = std::get_if<LowRankFactors>(&request.bias)) {
    tensors.push_back(Outgoing(wire::kStreamPhiQ, low_rank->phi_q));
    tensors.push_back(Outgoing(wire::kStreamPhiK, low_rank->phi_k));
  }
  exchange->chunks = wire::ChunkCutter(std::move(tensors), chunk_bytes);
  return exchange;
}

void StartStreamCall(const ChannelPool::Connection& connection, grpc::ClientContext* context,
                     std::shared_ptr<StreamExchange> exchange,
                     std::function<void(grpc::Status)> on_done) {
  (new StreamCall(context, std::move(exchange), std::move(on_done)))->Start(connection);
}

}  // namespace flashbias::client
