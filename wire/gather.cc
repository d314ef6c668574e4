#include "wire/gather.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <vector>

namespace flashbias::wire {

void Gather(absl::Span<const grpc::Slice> slices, absl::Span<const GatherItem> items,
            CopyPool* pool) {
  std::vector<size_t> ends;  // of each slice in the message
  ends.reserve(slices.size());
  size_t end = 0;
  for (const grpc::Slice& slice : slices) ends.push_back(end += slice.size());

  std::vector<CopyPool::Piece> pieces;
  for (const GatherItem& item : items) {
    size_t at = item.from.begin;
    size_t left = item.from.size;
    auto* to = static_cast<char*>(item.to);
    auto index = static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), at) - ends.begin());
    for (; left > 0; ++index) {
      assert(index < slices.size());
      const grpc::Slice& slice = slices[index];
      const size_t offset = at - (ends[index] - slice.size());
      const size_t bytes = std::min(left, slice.size() - offset);
      pieces.push_back({.from = slice.begin() + offset, .to = to, .bytes = bytes});
      at += bytes;
      to += bytes;
      left -= bytes;
    }
  }
  if (pool != nullptr) return pool->Copy(pieces);
  for (const CopyPool::Piece& piece : pieces) {
    if (piece.bytes > 0) std::memcpy(piece.to, piece.from, piece.bytes);
  }
}

}  // namespace flashbias::wire
