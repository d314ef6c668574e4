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
#include "kernels/upload_ahead.h"
#include "tests/support/attention_case.h"
#include "tests/support/owned_problem.h"

namespace flashbias::support {

class ArrivingProblem {
 public:
  ArrivingProblem(AttentionBackend& backend, const AttentionCase& c)
      : owned_(Materialise(c)), problem_(owned_.problem()) {
    const auto kv_bytes = static_cast<size_t>(owned_.kv_elements()) * SizeOf(c.dtype);
    o_bytes_ = static_cast<size_t>(owned_.q_elements()) * SizeOf(c.dtype);
    size_t bytes = 0;
    std::vector<const void**> pointers;
    const auto add = [&](const void** pointer, size_t size) {
      if (size == 0) return;
      pointers.push_back(pointer);
      tensors_.push_back({.from = static_cast<const char*>(*pointer), .at = bytes, .bytes = size});
      bytes += (size + 255) / 256 * 256;
    };
    add(&problem_.q, o_bytes_);
    add(&problem_.k, kv_bytes);
    add(&problem_.v, kv_bytes);
    if (problem_.bias_kind == BiasKind::kLowRank) {
      const size_t factor = SizeOf(problem_.low_rank.dtype);
      add(&problem_.low_rank.phi_q, static_cast<size_t>(owned_.phi_q_elements()) * factor);
      add(&problem_.low_rank.phi_k, static_cast<size_t>(owned_.phi_k_elements()) * factor);
    }
    inputs_ = *backend.host_allocator().Allocate(bytes);
    std::memset(inputs_.data(), 0xff, bytes);
    for (size_t n = 0; n < pointers.size(); ++n) *pointers[n] = inputs_.data() + tensors_[n].at;
    lse_bytes_ =
        problem_.lse == nullptr ? 0 : static_cast<size_t>(owned_.lse_elements()) * sizeof(float);
    outputs_ = *backend.host_allocator().Allocate((o_bytes_ + 255) / 256 * 256 + lse_bytes_ + 1);
    problem_.o = outputs_.data();
    if (problem_.lse != nullptr) {
      problem_.lse = reinterpret_cast<float*>(outputs_.data() + (o_bytes_ + 255) / 256 * 256);
    }
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

  std::string OutputBytes() const {
    return std::string(static_cast<const char*>(problem_.o), o_bytes_) +
           std::string(reinterpret_cast<const char*>(problem_.lse), lse_bytes_);
  }

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
  size_t o_bytes_ = 0;
  size_t lse_bytes_ = 0;
  HostBlock inputs_;
  HostBlock outputs_;
  std::unique_ptr<UploadAhead> upload_;  // goes before its block
};

}  // namespace flashbias::support

#endif  // FLASHBIAS_TESTS_SUPPORT_ARRIVING_PROBLEM_H_
