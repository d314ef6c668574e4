#include "client/stream_call.h"

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "grpcpp/support/client_callback.h"
#include "wire/chunk.h"
#include "wire/chunk_assembler.h"
#include "wire/contract.h"
#include "wire/message_reader.h"

namespace flashbias::client {
namespace {

// gRPC calls the methods on any threads: OnReadInitialMetadataDone, reads and writes each in their
// own order, OnDone when all of them have returned.
class StreamCall final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  StreamCall(grpc::ClientContext* context, std::shared_ptr<StreamExchange> exchange,
             std::function<void(grpc::Status)> on_done)
      : context_(context), exchange_(std::move(exchange)), on_done_(std::move(on_done)) {
    exchange_->accepted = false;
    exchange_->answer = exchange_->expected;
    chunks_ = exchange_->chunks;
  }

  void Start(const ChannelPool::Connection& connection) {
    connection.bytes.PrepareBidiStreamingCall(context_, exchange_->names.stream_path,
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
    std::optional<AnswerFields> header;
    std::optional<wire::Chunk> chunk;
    wire::MessageReader reader(*slices);
    while (reader.Next()) {
      switch (reader.field()) {
        case wire::StreamNumber::kHeader:
          reader.ReadMessage([&] { ReadAnswer(exchange_->expected, &reader, &header.emplace()); });
          break;
        case wire::StreamNumber::kChunk:
          wire::ReadChunk(&reader, &chunk.emplace());
          break;
        default:
          reader.Skip();
      }
    }
    if (!reader.ok()) return NoMessage(*slices, exchange_->names.stream_response, reader);
    if (header.has_value() == chunk.has_value() || header.has_value() == has_header_) {
      return absl::InternalError(
          absl::StrCat("the server answered a message ", header.has_value() ? "with" : "without",
                       " header and ", chunk.has_value() ? "with" : "without",
                       " chunk; expected: a ", has_header_ ? "chunk" : "header"));
    }
    if (header.has_value()) return HandleHeader(*header);
    return AsServerError(assembler_.Add(*chunk, *slices, nullptr));
  }

  absl::Status HandleHeader(const AnswerFields& fields) {
    Answer& answer = exchange_->answer;
    if (absl::Status status = CheckAnswer(answer, fields, /*data_follows=*/true); !status.ok()) {
      return status;
    }
    answer.timing = fields.timing;
    std::vector<wire::IncomingTensor> incoming;
    for (AnswerTensor& tensor : answer.tensors) {
      incoming.push_back({.number = tensor.stream_number,
                          .name = tensor.name,
                          .to = tensor.Allocate(),
                          .bytes = static_cast<uint64_t>(tensor.bytes)});
    }
    assembler_ = wire::ChunkAssembler(incoming);
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

void StartStreamCall(const ChannelPool::Connection& connection, grpc::ClientContext* context,
                     std::shared_ptr<StreamExchange> exchange,
                     std::function<void(grpc::Status)> on_done) {
  (new StreamCall(context, std::move(exchange), std::move(on_done)))->Start(connection);
}

}  // namespace flashbias::client
