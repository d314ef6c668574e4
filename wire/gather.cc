#include "wire/gather.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <vector>

namespace flashbias::wire {

namespace {

// Where each slice ends in the message.
std::vector<size_t> Ends(absl::Span<const grpc::Slice> slices) {
  std::vector<size_t> ends;
  ends.reserve(slices.size());
  size_t end = 0;
  for (const grpc::Slice& slice : slices) ends.push_back(end += slice.size());
  return ends;
}

// Calls `visit(data, bytes)` for each piece of the range, in order.
template <typename Visit>
void ForEachPiece(absl::Span<const grpc::Slice> slices, const std::vector<size_t>& ends,
                  ByteRange range, const Visit& visit) {
  size_t at = range.begin;
  size_t left = range.size;
  auto index = static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), at) - ends.begin());
  for (; left > 0; ++index) {
    assert(index < slices.size());
    const grpc::Slice& slice = slices[index];
    const size_t offset = at - (ends[index] - slice.size());
    const size_t bytes = std::min(left, slice.size() - offset);
    if (bytes > 0) visit(slice.begin() + offset, bytes);
    at += bytes;
    left -= bytes;
  }
}

}  // namespace

void Gather(absl::Span<const grpc::Slice> slices, absl::Span<const GatherItem> items,
            CopyPool* pool) {
  const std::vector<size_t> ends = Ends(slices);
  std::vector<CopyPool::Piece> pieces;
  for (const GatherItem& item : items) {
    auto* to = static_cast<char*>(item.to);
    ForEachPiece(slices, ends, item.from, [&](const uint8_t* data, size_t bytes) {
      pieces.push_back({.from = data, .to = to, .bytes = bytes});
      to += bytes;
    });
  }
  if (pool != nullptr) return pool->Copy(pieces);
  for (const CopyPool::Piece& piece : pieces) std::memcpy(piece.to, piece.from, piece.bytes);
}

void AppendTo(absl::Span<const grpc::Slice> slices, ByteRange from, std::string* to) {
  to->reserve(to->size() + from.size);
  ForEachPiece(slices, Ends(slices), from, [&](const uint8_t* data, size_t bytes) {
    to->append(reinterpret_cast<const char*>(data), bytes);
  });
}

}  // namespace flashbias::wire
