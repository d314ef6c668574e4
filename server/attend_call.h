// What calls for attention and for gradients, whole and in chunks, have in common: how an outcome
// becomes gRPC's status, metadata and our metrics.
//
// Free functions, thread-safe.
#ifndef FLASHBIAS_SERVER_ATTEND_CALL_H_
#define FLASHBIAS_SERVER_ATTEND_CALL_H_

#include <grpcpp/grpcpp.h>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/clock.h"
#include "server/codec.h"
#include "server/metrics.h"
#include "server/pending_request.h"

namespace flashbias::server {

// When host memory may be free again: about what a batch takes.
inline constexpr absl::Duration kMemoryRetryAfter = absl::Milliseconds(100);

grpc::Status ToGrpc(const absl::Status& status);
// Of a call that is whole, and of one in chunks.
Method MethodOf(Direction direction);
Method StreamMethodOf(Direction direction);
Transport TransportOf(const grpc::CallbackServerContext& context);
// Of a request that was refused before it was queued.
RejectReason ReasonOf(const absl::Status& status);
bool DeadlinePassed(const grpc::CallbackServerContext& context, const Clock& clock);

// Tells the caller when to come again.
void AddRetryPushback(grpc::CallbackServerContext* context, absl::Duration retry_after);

// Of an OK outcome that is handed over `send` after its batch ended.
ResponseTiming TimingOf(const Outcome& outcome, absl::Duration send);
// The stages of an OK outcome, but for receive, and its tiles.
void CountStages(const Outcome& outcome, absl::Duration send, Metrics* metrics);

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_ATTEND_CALL_H_
