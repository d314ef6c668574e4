#include "tests/bench/device_problem.h"

#include <cuda_runtime_api.h>

namespace flashbias::bench {

DeviceProblem::DeviceProblem(const AttentionProblem& host)
    : tensors_(TensorsOf(host)), problem_(host) {
  for (ProblemTensor& tensor : tensors_) {
    memory_.push_back(AllocateDevice(tensor.bytes));
    void* const device = memory_.back().get();
    if (tensor.is_input && tensor.data != nullptr) {
      FLASHBIAS_CHECK_CUDA(cudaMemcpy(device, tensor.data, tensor.bytes, cudaMemcpyHostToDevice));
    } else {
      FLASHBIAS_CHECK_CUDA(cudaMemset(device, 0xff, tensor.bytes));
    }
    tensor.data = device;
    PointAt(tensor.tensor, device, &problem_);
  }
  // Copies from pageable memory can return before they are done, and other streams do not wait for
  // them.
  FLASHBIAS_CHECK_CUDA(cudaStreamSynchronize(cudaStreamLegacy));
}

void* DeviceProblem::data(TensorSet tensor) const {
  for (const ProblemTensor& own : tensors_) {
    if (own.tensor == tensor) return own.data;
  }
  return nullptr;
}

std::vector<char> DeviceProblem::Download(TensorSet tensor) const {
  for (const ProblemTensor& own : tensors_) {
    if (own.tensor != tensor) continue;
    std::vector<char> host(own.bytes);
    FLASHBIAS_CHECK_CUDA(cudaMemcpy(host.data(), own.data, own.bytes, cudaMemcpyDeviceToHost));
    return host;
  }
  return {};
}

}  // namespace flashbias::bench
