#include "wire/slice_stream.h"

#include <algorithm>
#include <limits>

namespace flashbias::wire {

bool SliceStream::Next(const void** data, int* size) {
  while (index_ < slices_.size() && offset_ == slices_[index_].size()) {
    ++index_;
    offset_ = 0;
  }
  if (index_ == slices_.size()) return false;
  const grpc::Slice& slice = slices_[index_];
  const size_t bytes =
      std::min(slice.size() - offset_, static_cast<size_t>(std::numeric_limits<int>::max()));
  *data = slice.begin() + offset_;
  *size = static_cast<int>(bytes);
  offset_ += bytes;
  position_ += static_cast<int64_t>(bytes);
  return true;
}

// Only ever within what the last Next gave, which is one slice.
void SliceStream::BackUp(int count) {
  offset_ -= static_cast<size_t>(count);
  position_ -= count;
}

bool SliceStream::Skip(int count) {
  auto left = static_cast<size_t>(count);
  while (left > 0 && index_ < slices_.size()) {
    const size_t bytes = std::min(left, slices_[index_].size() - offset_);
    offset_ += bytes;
    position_ += static_cast<int64_t>(bytes);
    left -= bytes;
    if (left > 0) {
      ++index_;
      offset_ = 0;
    }
  }
  return left == 0;
}

}  // namespace flashbias::wire
