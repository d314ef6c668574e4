// Parts of tensors, as the messages of a stream hold them.
//
// Free functions on their arguments; plain values.
#ifndef FLASHBIAS_WIRE_CHUNK_H_
#define FLASHBIAS_WIRE_CHUNK_H_

#include <algorithm>
#include <cstdint>
#include <string>

#include "wire/message_reader.h"
#include "wire/tensor_field.h"

namespace flashbias::wire {

// The contract's limit of a chunk's data.
inline constexpr int64_t kMaxChunkBytes = int64_t{4} << 20;
// What is sent where nobody asks for less.
inline constexpr int64_t kChunkBytes = int64_t{1} << 20;
// Upper bound of what a message holds besides a chunk's data.
inline constexpr int64_t kChunkOverheadBytes = 64;
// Both ends refuse to stream with a smaller message limit.
inline constexpr int64_t kMinStreamMessageBytes = 1024;

// The data of a chunk that fits a message of `max_message_bytes`. REQUIRES: at least
// kMinStreamMessageBytes.
constexpr int64_t ChunkBytesFor(int64_t max_message_bytes) {
  return std::min(kChunkBytes, max_message_bytes - kChunkOverheadBytes);
}

struct Chunk {
  int tensor = 0;  // a number of contract.h, or one that nobody knows
  int64_t offset = 0;
  ByteRange data = {};
};

// The field at which `reader` stands, merged into `chunk` as protobuf merges a message that comes
// twice; false where it came with another wire type and was skipped. Outcome: reader->ok().
bool ReadChunk(MessageReader* reader, Chunk* chunk);

// An AttendStreamRequest or AttendStreamResponse with a chunk, up to the `bytes` of its data.
// REQUIRES: bytes > 0.
std::string EncodeChunkHead(int tensor, int64_t offset, uint64_t bytes);

}  // namespace flashbias::wire

#endif  // FLASHBIAS_WIRE_CHUNK_H_
