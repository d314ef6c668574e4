// Offsets of arrays in a plan's workspace, one after the other.
//
// Thread-safety: a plain value.
#ifndef FLASHBIAS_KERNELS_CUDA_WORKSPACE_LAYOUT_H_
#define FLASHBIAS_KERNELS_CUDA_WORKSPACE_LAYOUT_H_

#include <cstddef>
#include <cstring>
#include <vector>

namespace flashbias::cuda {

// Of every array, in bytes.
inline constexpr size_t kWorkspaceAlignment = 256;

class WorkspaceLayout {
 public:
  // Where `count` values begin.
  template <typename T>
  size_t Place(size_t count) {
    const size_t begin = end_;
    end_ = (end_ + count * sizeof(T) + kWorkspaceAlignment - 1) / kWorkspaceAlignment *
           kWorkspaceAlignment;
    return begin;
  }
  template <typename T>
  size_t Place(const std::vector<T>& values) {
    return Place<T>(values.size());
  }

  size_t end() const { return end_; }

 private:
  size_t end_ = 0;
};

// The array of `T` that begins `offset` bytes after `base`.
template <typename T>
T* ArrayAt(void* base, size_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(base) + offset);
}

template <typename T>
void CopyArray(const std::vector<T>& values, void* base, size_t offset) {
  if (!values.empty()) {
    std::memcpy(static_cast<char*>(base) + offset, values.data(), values.size() * sizeof(T));
  }
}

}  // namespace flashbias::cuda

#endif  // FLASHBIAS_KERNELS_CUDA_WORKSPACE_LAYOUT_H_
