#include "kernels/cuda/transfer_plan.h"

namespace flashbias::cuda {

ProblemTensors TravellingTensors(const AttentionProblem& problem) {
  ProblemTensors tensors;
  for (const ProblemTensor& tensor : TensorsOf(problem)) {
    if ((problem.on_device & tensor.tensor) == 0) tensors.push_back(tensor);
  }
  return tensors;
}

size_t TensorBytes(const AttentionProblem& problem) {
  size_t bytes = 0;
  for (const ProblemTensor& tensor : TravellingTensors(problem)) bytes += AlignTensor(tensor.bytes);
  return bytes;
}

TransferPlan::TransferPlan(absl::Span<const AttentionProblem* const> problems,
                           const PinnedPool& pool, size_t direct_bytes, OnDeviceAlready already)
    : problems_(problems.begin(), problems.end()) {
  tensors_.reserve(problems.size());
  for (const AttentionProblem* const problem : problems) {
    std::vector<PlacedTensor>& placed = tensors_.emplace_back();
    for (const ProblemTensor& tensor : TravellingTensors(*problem)) {
      placed.push_back({.tensor = tensor});
    }
  }
  enum class Pass : uint8_t { kGatheredInputs, kDirectInputs, kGatheredOutputs, kDirectOutputs };
  const auto place = [&](Pass pass, std::vector<Transfer>& transfers) {
    const bool direct = pass == Pass::kDirectInputs || pass == Pass::kDirectOutputs;
    const bool inputs = pass == Pass::kGatheredInputs || pass == Pass::kDirectInputs;
    const auto add = [&](PlacedTensor& placed) {
      const size_t bytes = placed.tensor.bytes;
      char* const host = static_cast<char*>(placed.tensor.data);
      if (bytes == 0 || inputs != placed.tensor.is_input || placed.elsewhere != nullptr) return;
      if (inputs && (placed.elsewhere = already(host, bytes)) != nullptr) return;
      if (direct != (bytes >= direct_bytes && pool.Contains(host, bytes))) return;
      placed.offset = device_bytes_;
      if (direct && !transfers.empty()) {
        // Tensors that follow each other in memory as they do on the device are one copy. What
        // lies between two outputs is not ours to write.
        Transfer& last = transfers.back();
        const size_t gap = AlignTensor(last.bytes) - last.bytes;
        if (last.host + last.bytes + gap == host && (gap == 0 || inputs) &&
            pool.Contains(last.host, last.bytes + gap + bytes)) {
          last.bytes += gap + bytes;
          device_bytes_ += AlignTensor(bytes);
          return;
        }
      }
      transfers.push_back({.host = host, .bytes = bytes, .offset = device_bytes_});
      device_bytes_ += AlignTensor(bytes);
    };
    const size_t begin = device_bytes_;
    for (std::vector<PlacedTensor>& tensors : tensors_) {
      for (PlacedTensor& tensor : tensors) add(tensor);
    }
    return begin;
  };
  place(Pass::kGatheredInputs, gathered_inputs_);
  gathered_input_bytes_ = device_bytes_;
  place(Pass::kDirectInputs, direct_inputs_);
  gathered_outputs_begin_ = place(Pass::kGatheredOutputs, gathered_outputs_);
  gathered_output_bytes_ = device_bytes_ - gathered_outputs_begin_;
  place(Pass::kDirectOutputs, direct_outputs_);
}

AttentionProblem TransferPlan::OnDevice(size_t n, char* device) const {
  AttentionProblem problem = *problems_[n];
  for (const PlacedTensor& placed : tensors_[n]) {
    PointAt(placed.tensor.tensor,
            placed.elsewhere != nullptr ? placed.elsewhere : device + placed.offset, &problem);
  }
  return problem;
}

}  // namespace flashbias::cuda
