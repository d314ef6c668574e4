#include "wire/copy_pool.h"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace flashbias::wire {

// Lives in the frame of Copy.
struct CopyPool::Job {
  std::vector<Piece> pieces;    // each at most kChunkBytes
  std::vector<size_t> chunks;   // first piece of each chunk, and the end of the last
  std::atomic<size_t> next{0};  // chunk that nobody has begun
  int helpers = 0;              // inside this job; guarded by the pool's mutex

  // Copies chunks until none is left to begin.
  void Work() {
    while (true) {
      const size_t chunk = next.fetch_add(1, std::memory_order_relaxed);
      if (chunk + 1 >= chunks.size()) return;
      for (size_t n = chunks[chunk]; n < chunks[chunk + 1]; ++n) {
        std::memcpy(pieces[n].to, pieces[n].from, pieces[n].bytes);
      }
    }
  }
  bool Alone() const { return helpers == 0; }
};

CopyPool::CopyPool(int threads) {
  for (int n = 1; n < threads; ++n) helpers_.emplace_back([this] { Help(); });
}

CopyPool::~CopyPool() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  for (std::thread& helper : helpers_) helper.join();
}

void CopyPool::Copy(absl::Span<const Piece> pieces) {
  size_t total = 0;
  for (const Piece& piece : pieces) total += piece.bytes;
  if (helpers_.empty() || total < kSharedFrom) {
    for (const Piece& piece : pieces) {
      if (piece.bytes > 0) std::memcpy(piece.to, piece.from, piece.bytes);
    }
    return;
  }

  Job job;
  job.pieces.reserve(pieces.size() + total / kChunkBytes);
  size_t in_chunk = kChunkBytes;  // full: the first piece opens a chunk
  for (Piece piece : pieces) {
    while (piece.bytes > 0) {
      if (in_chunk == kChunkBytes) {
        job.chunks.push_back(job.pieces.size());
        in_chunk = 0;
      }
      const size_t bytes = std::min(piece.bytes, kChunkBytes - in_chunk);
      job.pieces.push_back({.from = piece.from, .to = piece.to, .bytes = bytes});
      piece.from = static_cast<const char*>(piece.from) + bytes;
      piece.to = static_cast<char*>(piece.to) + bytes;
      piece.bytes -= bytes;
      in_chunk += bytes;
    }
  }
  job.chunks.push_back(job.pieces.size());

  {
    absl::MutexLock lock(&mutex_);
    jobs_.push_back(&job);
  }
  job.Work();
  absl::MutexLock lock(&mutex_);
  RemoveLocked(&job);
  mutex_.Await(absl::Condition(&job, &Job::Alone));
}

void CopyPool::Help() {
  absl::MutexLock lock(&mutex_);
  while (true) {
    mutex_.Await(absl::Condition(this, &CopyPool::HasWorkLocked));
    if (stopping_) return;
    Job* const job = jobs_.front();
    ++job->helpers;
    mutex_.Unlock();
    job->Work();
    mutex_.Lock();
    RemoveLocked(job);
    --job->helpers;
  }
}

void CopyPool::RemoveLocked(Job* job) {
  const auto at = std::find(jobs_.begin(), jobs_.end(), job);
  if (at != jobs_.end()) jobs_.erase(at);
}

}  // namespace flashbias::wire
