#include "kernels/cuda/mirror_set.h"

#include <cassert>

namespace flashbias::cuda {

// What the server holds.
class MirrorSet::Filling final : public UploadAhead {
 public:
  Filling(MirrorSet* set, std::shared_ptr<Mirror> mirror) : set_(set), mirror_(std::move(mirror)) {}
  ~Filling() override {
    set_->Remove(mirror_);
    // Others may hold it for a moment; the block goes now.
    mirror_->Revoke();
  }
  void Written(const char* data, size_t bytes) override { mirror_->Written(data, bytes); }
  void AllWritten() override { mirror_->AllWritten(); }

 private:
  MirrorSet* const set_;
  const std::shared_ptr<Mirror> mirror_;
};

MirrorSet::~MirrorSet() {
  absl::MutexLock lock(&mutex_);
  assert(mirrors_.empty());
  if (stream_ != nullptr) parts_.device->DestroyStream(stream_);
}

std::unique_ptr<UploadAhead> MirrorSet::Start(const HostBlock& inputs) {
  const size_t bytes = inputs.size();
  // From other memory copies would wait.
  if (bytes < parts_.piece_bytes || !parts_.pool->Contains(inputs.data(), bytes)) return nullptr;
  if (!parts_.health->status().ok() || parts_.device->Use() != kSuccess) return nullptr;

  absl::MutexLock lock(&mutex_);
  if (bytes > parts_.max_bytes || total_bytes_ > parts_.max_bytes - bytes) return nullptr;
  // Reserved and known in one step, so that RevokeIdle misses none. Nothing that fails here is
  // worth a report: a run that meets the same will.
  if (stream_ == nullptr && parts_.device->CreateStream(&stream_) != kSuccess) {
    stream_ = nullptr;
    parts_.device->StickyError();
    return nullptr;
  }
  absl::StatusOr<DeviceRange> range = parts_.arena->TryReserve(bytes);
  if (!range.ok()) return nullptr;
  Event* event = nullptr;
  if (parts_.device->CreateEvent(&event) != kSuccess) {
    parts_.device->StickyError();
    return nullptr;
  }
  total_bytes_ += bytes;
  auto mirror = std::make_shared<Mirror>(Mirror::Parts{.device = parts_.device,
                                                       .health = parts_.health,
                                                       .stream = stream_,
                                                       .piece_bytes = parts_.piece_bytes,
                                                       .total = &total_bytes_},
                                         inputs.data(), bytes, *std::move(range), event);
  mirrors_.push_back(mirror);
  return std::make_unique<Filling>(this, std::move(mirror));
}

MirrorUse MirrorSet::Use(const void* host) {
  std::shared_ptr<Mirror> found;
  {
    absl::MutexLock lock(&mutex_);
    for (const std::shared_ptr<Mirror>& mirror : mirrors_) {
      if (mirror->Contains(host)) found = mirror;
    }
  }
  return found != nullptr && found->Pin() ? MirrorUse(std::move(found)) : MirrorUse();
}

void MirrorSet::RevokeIdle() {
  std::vector<std::shared_ptr<Mirror>> mirrors;
  {
    absl::MutexLock lock(&mutex_);
    mirrors = mirrors_;
  }
  for (const std::shared_ptr<Mirror>& mirror : mirrors) mirror->Revoke();
}

void MirrorSet::Remove(const std::shared_ptr<Mirror>& mirror) {
  absl::MutexLock lock(&mutex_);
  std::erase(mirrors_, mirror);
}

}  // namespace flashbias::cuda
