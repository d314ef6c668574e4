// Cuts tensors into chunks, one tensor after the other.
//
// Thread-safety: one thread at a time. Ownership: points at the tensors, which must live and stay
// unchanged for as long as pieces of them are used.
#ifndef FLASHBIAS_WIRE_CHUNK_CUTTER_H_
#define FLASHBIAS_WIRE_CHUNK_CUTTER_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace flashbias::wire {

struct OutgoingTensor {
  int number = 0;  // of contract.h
  const char* data = nullptr;
  uint64_t bytes = 0;
};

class ChunkCutter {
 public:
  struct Piece {
    int tensor = 0;
    int64_t offset = 0;
    const char* data = nullptr;
    size_t bytes = 0;  // 1 to chunk_bytes
  };

  ChunkCutter() = default;
  // REQUIRES: chunk_bytes > 0.
  ChunkCutter(std::vector<OutgoingTensor> tensors, int64_t chunk_bytes)
      : tensors_(std::move(tensors)), chunk_bytes_(static_cast<uint64_t>(chunk_bytes)) {}

  // The next piece; nullopt: all was cut.
  std::optional<Piece> Next() {
    while (index_ < tensors_.size() && offset_ == tensors_[index_].bytes) {
      ++index_;
      offset_ = 0;
    }
    if (index_ == tensors_.size()) return std::nullopt;
    const OutgoingTensor& tensor = tensors_[index_];
    const Piece piece = {.tensor = tensor.number,
                         .offset = static_cast<int64_t>(offset_),
                         .data = tensor.data + offset_,
                         .bytes = std::min(chunk_bytes_, tensor.bytes - offset_)};
    offset_ += piece.bytes;
    return piece;
  }

 private:
  std::vector<OutgoingTensor> tensors_;
  uint64_t chunk_bytes_ = 1;
  size_t index_ = 0;     // of the tensor that is being cut
  uint64_t offset_ = 0;  // of its next piece
};

}  // namespace flashbias::wire

#endif  // FLASHBIAS_WIRE_CHUNK_CUTTER_H_
