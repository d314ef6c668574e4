#include "server/attend_call.h"

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace flashbias::server {
namespace {

// Read by gRPC's retry machinery and by our client.
constexpr const char* kRetryPushback = "grpc-retry-pushback-ms";

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  return {static_cast<grpc::StatusCode>(status.code()), std::string(status.message())};
}

Method MethodOf(Direction direction) {
  return direction == Direction::kForward ? Method::kAttend : Method::kAttendBackward;
}

Method StreamMethodOf(Direction direction) {
  return direction == Direction::kForward ? Method::kAttendStream : Method::kAttendBackwardStream;
}

Transport TransportOf(const grpc::CallbackServerContext& context) {
  return absl::StartsWith(context.peer(), "unix") ? Transport::kUnix : Transport::kTcp;
}

RejectReason ReasonOf(const absl::Status& status) {
  return absl::IsResourceExhausted(status) ? RejectReason::kMemory : RejectReason::kInvalid;
}

bool DeadlinePassed(const grpc::CallbackServerContext& context, const Clock& clock) {
  return absl::FromChrono(context.deadline()) <= clock.Now();
}

void AddRetryPushback(grpc::CallbackServerContext* context, absl::Duration retry_after) {
  context->AddTrailingMetadata(kRetryPushback,
                               absl::StrCat(absl::ToInt64Milliseconds(retry_after)));
}

ResponseTiming TimingOf(const Outcome& outcome, absl::Duration send) {
  return {.receive = outcome.receive_duration,
          .queue = outcome.queue_duration,
          .compute = outcome.compute_duration,
          .send = send,
          .batch_requests = outcome.batch_requests,
          .stats = outcome.stats};
}

void CountStages(const Outcome& outcome, absl::Duration send, Metrics* metrics) {
  metrics->StageFinished(Stage::kQueue, outcome.queue_duration);
  metrics->StageFinished(Stage::kCompute, outcome.compute_duration);
  metrics->StageFinished(Stage::kUpload, outcome.stats.upload);
  metrics->StageFinished(Stage::kKernel, outcome.stats.kernel);
  metrics->StageFinished(Stage::kDownload, outcome.stats.download);
  metrics->StageFinished(Stage::kSend, send);
  metrics->TilesFinished(outcome.stats.tiles_computed, outcome.stats.tiles_skipped);
}

}  // namespace flashbias::server
