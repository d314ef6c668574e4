// Requests that run together, and which requests may.
//
// Thread-safety: none; a batch has one owner at a time.
#ifndef FLASHBIAS_SERVER_BATCH_H_
#define FLASHBIAS_SERVER_BATCH_H_

#include <cstdint>
#include <memory>
#include <tuple>
#include <vector>

#include "absl/types/span.h"
#include "kernels/attention_backend.h"
#include "server/pending_request.h"

namespace flashbias::server {

// Requests share a batch when their keys are equal; lengths, head counts, slopes, positions and
// masks may differ.
struct BatchKey {
  Direction direction = Direction::kForward;
  DType dtype = DType::kFloat32;
  int padded_head_dim = 0;  // 32, 64 or 128
  BiasKind bias_kind = BiasKind::kNone;
  int device = kAnyDevice;  // that must run them

  friend bool operator==(const BatchKey&, const BatchKey&) = default;
  friend bool operator<(const BatchKey& a, const BatchKey& b) {
    return std::tie(a.direction, a.dtype, a.padded_head_dim, a.bias_kind, a.device) <
           std::tie(b.direction, b.dtype, b.padded_head_dim, b.bias_kind, b.device);
  }
};

BatchKey KeyOf(const AttentionProblem& problem);

class Batch {
 public:
  void Add(std::unique_ptr<PendingRequest> request);

  int64_t num_requests() const { return static_cast<int64_t>(requests_.size()); }
  // Sums over the requests.
  int64_t work() const { return work_; }
  int64_t bytes() const { return bytes_; }
  int64_t tokens() const { return tokens_; }  // query rows

  const std::vector<std::unique_ptr<PendingRequest>>& requests() const { return requests_; }
  // For AttentionBackend::Run; entry n of both belongs to request n. Adding invalidates both.
  absl::Span<const AttentionProblem> problems() const { return problems_; }
  absl::Span<ProblemStats> stats() { return absl::MakeSpan(stats_); }

  // Finishes every request: with its result where `status` is OK, else with `status`.
  // `start` and `end` are those of the run.
  static void Finish(std::unique_ptr<Batch> batch, const absl::Status& status, absl::Time start,
                     absl::Time end);

 private:
  std::vector<std::unique_ptr<PendingRequest>> requests_;
  std::vector<AttentionProblem> problems_;
  std::vector<ProblemStats> stats_;
  int64_t work_ = 0;
  int64_t bytes_ = 0;
  int64_t tokens_ = 0;
};

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_BATCH_H_
