// Where the tensors of some problems lie on the device, and how each of them gets there and back.
// Those that lie in memory of the device (AttentionProblem::on_device) are used there.
//
// Large tensors in pinned or registered memory go directly. Everything else is gathered in a
// staging block of the same layout as a part of the device memory, so that many small tensors are
// one copy:
//
//   device memory:  [gathered inputs][direct inputs][gathered outputs][direct outputs]
//
// Inputs that the device has already take no place there.
//
// Thread-safety: a plain value. Ownership: refers to the problems' tensors.
#ifndef FLASHBIAS_KERNELS_CUDA_TRANSFER_PLAN_H_
#define FLASHBIAS_KERNELS_CUDA_TRANSFER_PLAN_H_

#include <cstddef>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "kernels/attention_problem.h"
#include "kernels/cuda/pinned_pool.h"
#include "kernels/problem_tensors.h"

namespace flashbias::cuda {

// Of every tensor on the device, in bytes: what the kernels read fastest.
inline constexpr size_t kTensorAlignment = 256;

// To the next multiple of it.
inline size_t AlignTensor(size_t bytes) {
  return (bytes + kTensorAlignment - 1) / kTensorAlignment * kTensorAlignment;
}

// The problem's tensors but for those that are on the device already.
ProblemTensors TravellingTensors(const AttentionProblem& problem);

// Bytes of those on the device.
size_t TensorBytes(const AttentionProblem& problem);

class TransferPlan {
 public:
  // One copy: of one tensor, or, where direct, of several that follow each other in memory.
  struct Transfer {
    char* host;  // inputs are only read
    size_t bytes;
    size_t offset;  // in device memory
  };

  // Where the device has the bytes of an input already, aligned to kTensorAlignment; null: nowhere.
  using OnDeviceAlready = absl::FunctionRef<char*(const void* host, size_t bytes)>;

  // Tensors of at least `direct_bytes` that lie in the pool go directly.
  TransferPlan(absl::Span<const AttentionProblem* const> problems, const PinnedPool& pool,
               size_t direct_bytes, OnDeviceAlready already);

  // Of the device memory, a multiple of kTensorAlignment.
  size_t device_bytes() const { return device_bytes_; }

  // Each in order of its offsets, without empty tensors. Gathered inputs fill device memory from 0
  // to gathered_input_bytes(), gathered outputs so many bytes from gathered_outputs_begin() on.
  const std::vector<Transfer>& gathered_inputs() const { return gathered_inputs_; }
  const std::vector<Transfer>& direct_inputs() const { return direct_inputs_; }
  const std::vector<Transfer>& gathered_outputs() const { return gathered_outputs_; }
  const std::vector<Transfer>& direct_outputs() const { return direct_outputs_; }
  size_t gathered_input_bytes() const { return gathered_input_bytes_; }
  size_t gathered_outputs_begin() const { return gathered_outputs_begin_; }
  size_t gathered_output_bytes() const { return gathered_output_bytes_; }

  // Problem n with its tensors in the device memory that starts at `device`, or where they were.
  AttentionProblem OnDevice(size_t n, char* device) const;

 private:
  struct PlacedTensor {
    ProblemTensor tensor;
    size_t offset = 0;
    char* elsewhere = nullptr;  // an address instead
  };

  std::vector<const AttentionProblem*> problems_;
  std::vector<std::vector<PlacedTensor>> tensors_;  // [problems]
  std::vector<Transfer> gathered_inputs_, direct_inputs_, gathered_outputs_, direct_outputs_;
  size_t gathered_input_bytes_ = 0;
  size_t gathered_outputs_begin_ = 0;
  size_t gathered_output_bytes_ = 0;
  size_t device_bytes_ = 0;
};

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_TRANSFER_PLAN_H_
