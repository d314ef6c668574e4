#include "server/pending_request.h"

#include <algorithm>
#include <utility>

#include "kernels/work_estimate.h"

namespace flashbias::server {

bool Completion::Finish(Outcome outcome) {
  if (finished_.exchange(true, std::memory_order_acq_rel)) return false;
  // Moved out, so that what the callback holds goes with this call and not with the last ticket.
  Callback callback = std::move(callback_);
  std::move(callback)(std::move(outcome));
  return true;
}

PendingRequest::PendingRequest(Params params, Completion::Callback callback)
    : problem_(params.problem),
      storage_(std::move(params.storage)),
      bytes_(params.bytes),
      memory_is_reserved_(params.memory_is_reserved),
      work_(std::min(kMaxRequestWork, EstimateScoreElements(params.problem))),
      receive_duration_(params.receive_duration),
      deadline_(params.deadline),
      completion_(std::make_shared<Completion>(std::move(callback))) {}

PendingRequest::~PendingRequest() {
  if (completion_->finished()) return;
  completion_->Finish({.status = absl::InternalError("the server lost the request")});
}

bool PendingRequest::Fail(std::unique_ptr<PendingRequest> request, absl::Status status) {
  return request->completion_->Finish({.status = std::move(status)});
}

void PendingRequest::Succeed(std::unique_ptr<PendingRequest> request, Outcome outcome) {
  outcome.problem = request->problem_;
  outcome.storage = std::move(request->storage_);
  outcome.receive_duration = request->receive_duration_;
  request->completion_->Finish(std::move(outcome));
}

}  // namespace flashbias::server
