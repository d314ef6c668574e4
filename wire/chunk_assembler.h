// Puts the chunks of a stream where they belong.
//
// Nothing that a chunk claims is believed: its tensor must be one of those expected, it must begin
// where that tensor's last chunk ended, and end within it.
//
// Thread-safety: one thread at a time. Ownership: writes to memory that the caller keeps.
#ifndef FLASHBIAS_WIRE_CHUNK_ASSEMBLER_H_
#define FLASHBIAS_WIRE_CHUNK_ASSEMBLER_H_

#include <grpcpp/support/slice.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "wire/chunk.h"
#include "wire/copy_pool.h"

namespace flashbias::wire {

struct IncomingTensor {
  int number = 0;         // of contract.h
  const char* name = "";  // for errors; a literal
  char* to = nullptr;
  uint64_t bytes = 0;
};

class ChunkAssembler {
 public:
  ChunkAssembler() = default;
  explicit ChunkAssembler(absl::Span<const IncomingTensor> tensors) {
    for (const IncomingTensor& tensor : tensors) tensors_.push_back({.tensor = tensor});
  }

  // Copies the chunk's data, a range of the message that `slices` hold. INVALID_ARGUMENT: naming
  // the tensor, the offset, what came and what was expected; nothing was written.
  absl::Status Add(const Chunk& chunk, absl::Span<const grpc::Slice> slices, CopyPool* pool);

  // OK once every tensor is whole; else INVALID_ARGUMENT naming one that is not.
  absl::Status CheckComplete() const;

 private:
  struct State {
    IncomingTensor tensor;
    uint64_t received = 0;
  };
  std::vector<State> tensors_;
};

}  // namespace flashbias::wire

#endif  // FLASHBIAS_WIRE_CHUNK_ASSEMBLER_H_
