// Inputs that go to a device while the rest of them still arrives in host memory.
//
// It only ever saves time: where the device has no room, takes its room back or fails, and where
// the problem is run on another device, the run copies what it needs itself.
//
// Thread-safety: one thread at a time. Ownership: refers to the block that it was started for,
// which must outlive it; must be gone before the backend, and must outlive runs of problems in that
// block.
#ifndef FLASHBIAS_KERNELS_UPLOAD_AHEAD_H_
#define FLASHBIAS_KERNELS_UPLOAD_AHEAD_H_

#include <cstddef>

namespace flashbias {

class UploadAhead {
 public:
  UploadAhead() = default;
  UploadAhead(const UploadAhead&) = delete;
  UploadAhead& operator=(const UploadAhead&) = delete;
  // Waits until the device reads nothing of the block any more: for copies that are under way.
  virtual ~UploadAhead() = default;

  // The `bytes` from `data` on, within the block, will not change any more. REQUIRES: they were not
  // written before.
  virtual void Written(const char* data, size_t bytes) = 0;

  // No more will be written. Only after that, runs make use of what was copied.
  virtual void AllWritten() = 0;
};

}  // namespace flashbias

#endif  // FLASHBIAS_KERNELS_UPLOAD_AHEAD_H_
