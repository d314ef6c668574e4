// The one place where a request is checked: fields as they came -> a problem that backends may
// trust.
//
// Every product of sizes is checked for overflow, and every size against the bytes that really
// came, before anything is allocated; region_binding.h does the latter for tensors in regions, and
// those that are to come in a stream are held against its limit. Pure
// function, thread-safe.
#ifndef FLASHBIAS_SERVER_ATTEND_VALIDATION_H_
#define FLASHBIAS_SERVER_ATTEND_VALIDATION_H_

#include <cstdint>
#include <limits>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/attention_problem.h"
#include "server/attend_fields.h"
#include "server/attend_tensors.h"

namespace flashbias::server {

// Work per request grows with its head count even where its tensors are empty.
inline constexpr int64_t kMaxHeads = 65536;
// The contract's limit; --max_sequences may lower it.
inline constexpr int64_t kMaxSequences = 65536;
// Upper bound of what a response holds besides the elements of its tensors.
inline constexpr int64_t kResponseOverheadBytes = 512;
// Of a tensor in a region: far beyond any region, and no sum or multiple of it overflows.
inline constexpr int64_t kMaxRegionTensorBytes = int64_t{1} << 48;

struct AttendLimits {
  absl::Span<const DType> dtypes = {};  // that the backend serves
  int max_head_dim = kMaxHeadDim;
  int max_rank = kMaxRank;
  int64_t max_sequence_rows = std::numeric_limits<int64_t>::max();  // of queries or keys
  int64_t max_sequences = kMaxSequences;
  int64_t max_message_bytes = 0;  // of the response
  // Of the tensors of a stream, inputs and outputs; at most 2^48.
  int64_t max_stream_bytes = 0;
};

struct ValidatedAttend {
  // Complete but for its pointers and `sequences`, which its owner points at storage of its own.
  AttentionProblem problem;
  std::vector<Sequence> sequences;
  int64_t num_slopes = 0;  // 0: no ALiBi
  AttendTensors tensors;   // all but the slopes
};

// INVALID_ARGUMENT naming the field, what came and what is accepted; RESOURCE_EXHAUSTED where the
// response would exceed max_message_bytes or, in a stream, all tensors together max_stream_bytes.
absl::StatusOr<ValidatedAttend> ValidateAttend(const AttendFields& fields,
                                               const AttendLimits& limits);

// The values of alibi.slopes, once they are at hand. INVALID_ARGUMENT: one is not finite.
absl::Status CheckSlopes(absl::Span<const float> slopes);

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_ATTEND_VALIDATION_H_
