// One attempt of a streamed call: sends a request in chunks over the caller's memory and puts the
// answer's chunks where they belong.
//
// The header goes first; chunks follow once the server has accepted it, so that nothing large is
// sent in vain, one write at a time. An answer that does not fit the request ends the call.
//
// Thread-safety: Start from one thread, the rest happens on gRPC's. Ownership: a StreamCall owns
// itself from Start until `on_done` has been called; what it shares with its caller is a
// StreamExchange.
#ifndef FLASHBIAS_CLIENT_STREAM_CALL_H_
#define FLASHBIAS_CLIENT_STREAM_CALL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include "client/answer.h"
#include "client/channel_pool.h"
#include "client/tensor_loans.h"
#include "client/wire_codec.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/status.h"
#include "wire/chunk.h"
#include "wire/chunk_cutter.h"

namespace flashbias::client {

// What goes out and what comes back; used by one attempt after the other, never by two at once.
struct StreamExchange {
  // Constant while an attempt is under way.
  const std::shared_ptr<TensorLoans> loans = std::make_shared<TensorLoans>();
  grpc::ByteBuffer header;
  wire::ChunkCutter chunks;  // of the request's tensors; each attempt cuts a copy
  MethodNames names = {};
  Answer expected;

  // Written by the attempt.
  bool accepted = false;  // the server took the header: it may have been sent data
  Answer answer;          // whole where the status is OK
};

// The exchange of a request. REQUIRES: SummarizeRequest(request) is OK, `expected` is
// ExpectAnswer's and has no places, max_message_bytes is at least wire::kMinStreamMessageBytes.
template <typename Request>
std::shared_ptr<StreamExchange> MakeStreamExchange(const Request& request, Answer expected,
                                                   int64_t max_message_bytes) {
  const int64_t chunk_bytes = wire::ChunkBytesFor(max_message_bytes);
  auto exchange = std::make_shared<StreamExchange>();
  exchange->names = NamesOf(request);
  exchange->expected = std::move(expected);
  exchange->header = EncodeStreamHeader(request, chunk_bytes, *exchange->loans);
  exchange->chunks = wire::ChunkCutter(OutgoingTensors(request), chunk_bytes);
  return exchange;
}

// `on_done` gets the server's status, or INTERNAL where its answer does not fit the request; called
// once, on a thread of gRPC. `context` must live until then.
void StartStreamCall(const ChannelPool::Connection& connection, grpc::ClientContext* context,
                     std::shared_ptr<StreamExchange> exchange,
                     std::function<void(grpc::Status)> on_done);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_STREAM_CALL_H_
