// Checks a request before it is sent.
//
// Pure functions; thread-safe. Messages name the field, what came and what is accepted.
#ifndef FLASHBIAS_CLIENT_REQUEST_VALIDATION_H_
#define FLASHBIAS_CLIENT_REQUEST_VALIDATION_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/attention_types.h"

namespace flashbias::client {

// The limits of the contract (proto/flashbias/v1/attention.proto).
inline constexpr int64_t kMaxHeadDim = 128;
inline constexpr int64_t kMaxHeads = 65536;
inline constexpr int64_t kMaxRank = 64;
inline constexpr int64_t kMaxSequences = 65536;
inline constexpr int64_t kMaxPosition = int64_t{1} << 48;
inline constexpr int64_t kMaxElements = int64_t{1} << 62;
inline constexpr float kMaxEps = 0x1p-8f;

// What a valid request comes to.
struct RequestSummary {
  DType dtype = DType::kFloat32;
  int64_t total_q = 0;
  int64_t total_kv = 0;
  int64_t num_q_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t num_sequences = 0;
  bool want_lse = false;
  // Bytes of all tensors of the request, and of those of its answer; saturate at INT64_MAX.
  int64_t request_bytes = 0;
  int64_t response_bytes = 0;
};

// INVALID_ARGUMENT: the request is not one that a server accepts. Reads slopes, no other tensor.
absl::StatusOr<RequestSummary> SummarizeRequest(const AttendRequest& request);
absl::StatusOr<RequestSummary> SummarizeRequest(const AttendBackwardRequest& request);

// As the contract has it: [num_q_heads] or [num_sequences, num_q_heads]. REQUIRES: a count that
// SummarizeRequest takes.
std::vector<int64_t> ShapeOfSlopes(const AlibiSlopes& alibi, int64_t num_q_heads);

int64_t SaturatingAdd(int64_t a, int64_t b);
// Of a tensor without negative extents; saturates at INT64_MAX.
int64_t SaturatedBytes(DType dtype, const std::vector<int64_t>& shape);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_REQUEST_VALIDATION_H_
