#include "server/attend_tensors.h"

namespace flashbias::server {

int64_t AttendTensors::bytes() const {
  int64_t bytes = 0;
  for (const InputTensor& input : inputs) bytes += input.bytes;
  for (const OutputTensor& output : outputs) bytes += output.bytes;
  return bytes;
}

void PointAt(TensorSet tensor, void* data, AttentionProblem* problem) {
  Gradients& gradients = problem->gradients;
  switch (tensor) {
    case kTensorQ:
      problem->q = data;
      return;
    case kTensorK:
      problem->k = data;
      return;
    case kTensorV:
      problem->v = data;
      return;
    case kTensorPhiQ:
      problem->low_rank.phi_q = data;
      return;
    case kTensorPhiK:
      problem->low_rank.phi_k = data;
      return;
    case kTensorO:
      problem->o = data;
      return;
    case kTensorLse:
      problem->lse = static_cast<float*>(data);
      return;
    case kTensorDO:
      gradients.d_o = data;
      return;
    case kTensorDQ:
      gradients.dq = data;
      return;
    case kTensorDK:
      gradients.dk = data;
      return;
    case kTensorDV:
      gradients.dv = data;
      return;
    case kTensorDSlopes:
      gradients.dslopes = static_cast<float*>(data);
      return;
    case kTensorDPhiQ:
      gradients.dphi_q = static_cast<float*>(data);
      return;
    case kTensorDPhiK:
      gradients.dphi_k = static_cast<float*>(data);
      return;
    default:
      return;
  }
}

void* OutputOf(const AttentionProblem& problem, TensorSet tensor) {
  const Gradients& gradients = problem.gradients;
  switch (tensor) {
    case kTensorO:
      return problem.o;
    case kTensorLse:
      return problem.lse;
    case kTensorDQ:
      return gradients.dq;
    case kTensorDK:
      return gradients.dk;
    case kTensorDV:
      return gradients.dv;
    case kTensorDSlopes:
      return gradients.dslopes;
    case kTensorDPhiQ:
      return gradients.dphi_q;
    case kTensorDPhiK:
      return gradients.dphi_k;
    default:
      return nullptr;
  }
}

}  // namespace flashbias::server
