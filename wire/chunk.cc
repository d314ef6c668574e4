#include "wire/chunk.h"

#include "wire/contract.h"
#include "wire/message_writer.h"

namespace flashbias::wire {

bool ReadChunk(MessageReader* reader, Chunk* chunk) {
  bool is_message = false;
  reader->ReadMessage([&] {
    is_message = true;
    while (reader->Next()) {
      switch (reader->field()) {
        case ChunkNumber::kTensor:
          reader->ReadEnum(&chunk->tensor);
          break;
        case ChunkNumber::kOffset:
          reader->ReadVarint(&chunk->offset);
          break;
        case ChunkNumber::kData:
          reader->ReadBytes(&chunk->data);
          break;
        default:
          reader->Skip();
      }
    }
  });
  return is_message;
}

std::string EncodeChunkHead(int tensor, int64_t offset, uint64_t bytes) {
  MessageWriter chunk;
  chunk.Varint(ChunkNumber::kTensor, tensor);
  chunk.Varint(ChunkNumber::kOffset, offset);
  chunk.LengthDelimited(ChunkNumber::kData, bytes);
  const std::string head = chunk.Take();
  MessageWriter message;
  message.LengthDelimited(StreamNumber::kChunk, head.size() + bytes);
  message.Bytes(head.data(), head.size());
  return message.Take();
}

}  // namespace flashbias::wire
