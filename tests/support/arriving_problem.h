// A problem whose inputs fill a block of a backend's allocator by and by, as the server has those
// of streamed requests, and whose outputs lie in another one.
//
// Not thread-safe, but disjoint problems are independent. The backend must outlive it.
#ifndef FLASHBIAS_TESTS_SUPPORT_ARRIVING_PROBLEM_H_
#define FLASHBIAS_TESTS_SUPPORT_ARRIVING_PROBLEM_H_

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kernels/attention_backend.h"
#include "kernels/problem_tensors.h"
#include "kernels/upload_ahead.h"
#include "tests/support/attention_case.h"
#include "tests/support/output_bytes.h"
#include "tests/support/owned_problem.h"

namespace flashbias::support {

class ArrivingProblem {
 public:
  ArrivingProblem(AttentionBackend& backend, const AttentionCase& c)
      : owned_(Materialise(c)), problem_(owned_.problem()) {
    const ProblemTensors tensors = TensorsOf(problem_);
    // Each at a multiple of 256 bytes.
    const auto lay_out = [&](bool inputs) {
      size_t bytes = 0;
      for (const ProblemTensor& tensor : tensors) {
        if (tensor.is_input == inputs) bytes += (tensor.bytes + 255) / 256 * 256;
      }
      HostBlock block = *backend.host_allocator().Allocate(std::max<size_t>(bytes, 1));
      std::memset(block.data(), 0xff, bytes);
      size_t at = 0;
      for (const ProblemTensor& tensor : tensors) {
        if (tensor.is_input != inputs) continue;
        PointAt(tensor.tensor, block.data() + at, &problem_);
        if (inputs && tensor.bytes > 0) {
          tensors_.push_back(
              {.from = static_cast<const char*>(tensor.data), .at = at, .bytes = tensor.bytes});
        }
        at += (tensor.bytes + 255) / 256 * 256;
      }
      return block;
    };
    inputs_ = lay_out(true);
    outputs_ = lay_out(false);
    upload_ = backend.StartUpload(inputs_);
  }

  bool has_upload() const { return upload_ != nullptr; }
  const AttentionProblem& problem() const { return problem_; }
  size_t input_bytes() const { return inputs_.size(); }

  // A chunk of each tensor in turn, up to `share` of all; with 1, all is there.
  void Send(double share, size_t chunk = 700) {
    for (bool more = true; more;) {
      more = false;
      for (Tensor& tensor : tensors_) {
        const auto end = static_cast<size_t>(static_cast<double>(tensor.bytes) * share);
        if (tensor.sent >= end) continue;
        const size_t size = std::min(chunk, end - tensor.sent);
        char* const to = inputs_.data() + tensor.at + tensor.sent;
        std::memcpy(to, tensor.from + tensor.sent, size);
        if (upload_ != nullptr) upload_->Written(to, size);
        tensor.sent += size;
        more = true;
      }
    }
    if (share == 1 && upload_ != nullptr) upload_->AllWritten();
  }
  void Cancel() { upload_ = nullptr; }

  std::string OutputBytes() const { return support::OutputBytes(problem_); }

 private:
  struct Tensor {
    const char* from;
    size_t at;
    size_t bytes;
    size_t sent = 0;
  };
  OwnedProblem owned_;
  AttentionProblem problem_;
  std::vector<Tensor> tensors_;
  HostBlock inputs_;
  HostBlock outputs_;
  std::unique_ptr<UploadAhead> upload_;  // goes before its block
};

}  // namespace flashbias::support

#endif  // FLASHBIAS_TESTS_SUPPORT_ARRIVING_PROBLEM_H_
