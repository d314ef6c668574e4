#include "wire/chunk_assembler.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "wire/gather.h"

namespace flashbias::wire {
namespace {

template <typename... Args>
absl::Status Invalid(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

}  // namespace

absl::Status ChunkAssembler::Add(const Chunk& chunk, absl::Span<const grpc::Slice> slices,
                                 CopyPool* pool) {
  const auto found = std::find_if(tensors_.begin(), tensors_.end(), [&](const State& state) {
    return state.tensor.number == chunk.tensor;
  });
  if (found == tensors_.end()) {
    const std::string accepted =
        absl::StrJoin(tensors_, ", ",
                      [](std::string* out, const State& state) { out->append(state.tensor.name); });
    return Invalid("chunk.tensor is number ", chunk.tensor, ", at byte ", chunk.offset, " with ",
                   chunk.data.size, " bytes; accepted: ", accepted);
  }
  State& state = *found;
  const IncomingTensor& tensor = state.tensor;
  if (chunk.offset < 0 || static_cast<uint64_t>(chunk.offset) != state.received) {
    return Invalid("chunk of ", tensor.name, ": offset is ", chunk.offset,
                   "; accepted: ", state.received, ", where the last one ended");
  }
  if (chunk.data.size == 0 || chunk.data.size > static_cast<uint64_t>(kMaxChunkBytes)) {
    return Invalid("chunk of ", tensor.name, " at byte ", chunk.offset, ": data has ",
                   chunk.data.size, " bytes; accepted: 1 to ", kMaxChunkBytes);
  }
  const uint64_t left = tensor.bytes - state.received;
  if (chunk.data.size > left) {
    return Invalid("chunk of ", tensor.name, " at byte ", chunk.offset, ": data has ",
                   chunk.data.size, " bytes; accepted: at most ", left, ", what is left of the ",
                   tensor.bytes, " bytes of ", tensor.name);
  }
  const GatherItem item = {.from = chunk.data, .to = tensor.to + state.received};
  Gather(slices, {&item, 1}, pool);
  state.received += chunk.data.size;
  return absl::OkStatus();
}

absl::Status ChunkAssembler::CheckComplete() const {
  for (const State& state : tensors_) {
    if (state.received == state.tensor.bytes) continue;
    return Invalid("the stream ended at byte ", state.received, " of ", state.tensor.name,
                   "; accepted: all of its ", state.tensor.bytes, " bytes");
  }
  return absl::OkStatus();
}

}  // namespace flashbias::wire
