#include "server/batch.h"

#include <utility>

namespace flashbias::server {

BatchKey KeyOf(const AttentionProblem& problem) {
  const int padded = problem.head_dim <= 32 ? 32 : problem.head_dim <= 64 ? 64 : 128;
  return {.direction = problem.direction,
          .dtype = problem.dtype,
          .padded_head_dim = padded,
          .bias_kind = problem.bias_kind,
          .device = problem.device};
}

void Batch::Add(std::unique_ptr<PendingRequest> request) {
  work_ += request->work();
  bytes_ += request->bytes();
  tokens_ += request->problem().total_q;
  problems_.push_back(request->problem());
  stats_.emplace_back();
  requests_.push_back(std::move(request));
}

void Batch::Finish(std::unique_ptr<Batch> batch, const absl::Status& status, absl::Time start,
                   absl::Time end) {
  for (size_t n = 0; n < batch->requests_.size(); ++n) {
    std::unique_ptr<PendingRequest> request = std::move(batch->requests_[n]);
    if (!status.ok()) {
      PendingRequest::Fail(std::move(request), status);
      continue;
    }
    Outcome outcome;
    outcome.stats = batch->stats_[n];
    outcome.queue_duration = start - request->enqueue_time();
    outcome.compute_duration = end - start;
    outcome.batch_end = end;
    outcome.batch_requests = static_cast<int64_t>(batch->requests_.size());
    PendingRequest::Succeed(std::move(request), std::move(outcome));
  }
}

}  // namespace flashbias::server
