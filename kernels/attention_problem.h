// One validated attention request as plain shapes and non-owning views.
//
//   logit[i, j] = softmax_scale * <q_i, k_j> + bias[i, j]
//   P           = softmax over the keys j that the mask admits
//   o_i         = sum_j P[i, j] v_j          lse_i = ln sum_j exp(logit[i, j])
//
// (FlashAttention, Dao et al. 2022, algorithm 1, with an additive bias; FlashBias, Wu et al. 2025.)
// Row r of a sequence's queries stands at position i = query_start + r, row c of its keys at
// j = key_start + c. Rows whose mask admits no key give o = 0 and lse = -infinity.
//
// A backward problem gives the gradients of a scalar loss L whose gradient d_o = dL/do is known
// (FlashAttention, Dao et al. 2022, section 3.1 and appendix B.2, with an additive bias):
//
//   P[i, j]  = exp(logit[i, j] - lse_i)              from the forward call's lse
//   dS[i, j] = P[i, j] (<d_o_i, v_j> - <d_o_i, o_i>)     = dL/dlogit[i, j]
//   dq_i     = softmax_scale sum_j dS[i, j] k_j      dk_j = softmax_scale sum_i dS[i, j] q_i
//   dv_j     = sum_i P[i, j] d_o_i
//   dslope_h = -sum_ij dS[i, j] |i - j|
//   dphi_q_i = sum_j dS[i, j] phi_k_j                dphi_k_j = sum_i dS[i, j] phi_q_i
//
// where heads that share a key/value head, slopes or a factor add up. With eps, P is 0 for keys
// that hold at most eps of a row's mass.
//
// Pointers are to host memory, but for the tensors in `on_device`.
//
// Ownership: nothing is owned; whoever builds a problem keeps every pointer alive until the
// backend's completion callback has run. Thread-safety: a plain value; `o` and `lse`, or of a
// backward problem `gradients` but for d_o, are written by the backend that runs it, everything
// else is read only.
// Validity: shapes, sizes and values were checked at the border (server/codec); backends assert.
#ifndef FLASHBIAS_KERNELS_ATTENTION_PROBLEM_H_
#define FLASHBIAS_KERNELS_ATTENTION_PROBLEM_H_

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/dtype.h"

namespace flashbias {

inline constexpr int kMaxHeadDim = 128;
inline constexpr int kMaxRank = 64;
inline constexpr float kDefaultEps = 0x1p-24f;
inline constexpr float kMaxEps = 0x1p-8f;
// No position or length is beyond this, so sums and differences of two fit an int64 with room.
inline constexpr int64_t kMaxPosition = int64_t{1} << 48;

// One of the sequences that are packed one after the other in a problem's tensors.
struct Sequence {
  int64_t q_begin = 0;      // first row in q, o, lse and phi_q
  int64_t q_len = 0;        // rows; 0 is legal
  int64_t kv_begin = 0;     // first row in k, v and phi_k
  int64_t kv_len = 0;       // rows; 0 is legal
  int64_t query_start = 0;  // position of the first query
  int64_t key_start = 0;    // position of the first key
};

// Which keys a query at position i may see.
struct Mask {
  bool causal = true;       // j <= i
  int64_t left_window = 0;  // 0: unlimited; w > 0: i - j < w
};

// Whether the window hides any key. One wider than any distance hides none; asking first keeps sums
// with left_window in range.
inline bool HasLeftWindow(const Mask& mask) {
  return mask.left_window > 0 && mask.left_window <= 4 * kMaxPosition;
}

// A set of a problem's tensors.
using TensorSet = uint16_t;
inline constexpr TensorSet kTensorQ = 1 << 0;
inline constexpr TensorSet kTensorK = 1 << 1;
inline constexpr TensorSet kTensorV = 1 << 2;
inline constexpr TensorSet kTensorPhiQ = 1 << 3;
inline constexpr TensorSet kTensorPhiK = 1 << 4;
inline constexpr TensorSet kTensorO = 1 << 5;
inline constexpr TensorSet kTensorLse = 1 << 6;
inline constexpr TensorSet kTensorDO = 1 << 7;
inline constexpr TensorSet kTensorDQ = 1 << 8;
inline constexpr TensorSet kTensorDK = 1 << 9;
inline constexpr TensorSet kTensorDV = 1 << 10;
inline constexpr TensorSet kTensorDSlopes = 1 << 11;
inline constexpr TensorSet kTensorDPhiQ = 1 << 12;
inline constexpr TensorSet kTensorDPhiK = 1 << 13;

// Of a problem that every device can run.
inline constexpr int kAnyDevice = -1;

enum class Direction : uint8_t { kForward, kBackward };

enum class BiasKind : uint8_t { kNone, kAlibi, kLowRank };

// bias[i, j] = -slope[h] * |i - j|, natural-log domain.
struct AlibiBias {
  const float* slopes = nullptr;  // fp32 [num_q_heads], or [num_sequences, num_q_heads]
  bool per_sequence = false;      // which of the two shapes
};

// bias[i, j] = <phi_q[i, h], phi_k[j, h]>, natural-log domain.
struct LowRankBias {
  const void* phi_q = nullptr;  // [total_q, phi_q_heads, rank], contiguous
  const void* phi_k = nullptr;  // [total_kv, phi_k_heads, rank], contiguous
  DType dtype = DType::kFloat32;
  int rank = 0;         // 1 .. kMaxRank
  int phi_q_heads = 0;  // 1 (shared by all heads) or num_q_heads
  int phi_k_heads = 0;  // 1 (shared by all heads) or num_q_heads
};

// What a backward problem has beside the tensors of its forward problem.
struct Gradients {
  const void* d_o = nullptr;  // as o

  void* dq = nullptr;  // as q
  void* dk = nullptr;  // as k
  void* dv = nullptr;  // as v

  // fp32 whatever the dtypes. Of the bias that the problem has, all or none.
  float* dslopes = nullptr;  // as the slopes; null: not wanted
  float* dphi_q = nullptr;   // [total_q, phi_q_heads, rank]; null: not wanted
  float* dphi_k = nullptr;   // [total_kv, phi_k_heads, rank]; null: not wanted
};

struct AttentionProblem {
  Direction direction = Direction::kForward;
  DType dtype = DType::kFloat32;  // of q, k, v, o, d_o, dq, dk and dv
  int num_q_heads = 0;            // a multiple of num_kv_heads
  int num_kv_heads = 0;           // head h of q uses head h / (num_q_heads / num_kv_heads) of k, v
  int head_dim = 0;               // 1 .. kMaxHeadDim
  int64_t total_q = 0;            // rows over all sequences
  int64_t total_kv = 0;

  const void* q = nullptr;  // [total_q, num_q_heads, head_dim], contiguous, any alignment
  const void* k = nullptr;  // [total_kv, num_kv_heads, head_dim], contiguous, any alignment
  const void* v = nullptr;  // [total_kv, num_kv_heads, head_dim], contiguous, any alignment
  absl::Span<const Sequence> sequences;

  Mask mask;
  float softmax_scale = 1.0f;  // finite
  BiasKind bias_kind = BiasKind::kNone;
  AlibiBias alibi;       // used when bias_kind == kAlibi
  LowRankBias low_rank;  // used when bias_kind == kLowRank
  // Largest share of a row's softmax mass that skipping may drop (kernels/skip_table.h);
  // 0 computes every key.
  float eps = kDefaultEps;

  // Of a backward problem these are read, both as the forward call gave them.
  void* o = nullptr;     // [total_q, num_q_heads, head_dim], contiguous, any alignment
  float* lse = nullptr;  // [total_q, num_q_heads] fp32, natural log; null: not wanted
  Gradients gradients;   // used when direction == kBackward; tensors contiguous, any alignment

  // Tensors that lie in memory of the device (kernels/device_memory.h): it uses them there, and
  // nothing on the host touches them.
  TensorSet on_device = 0;
  // Whose memory that is: the place of the one backend that can run the problem among those made
  // together. kAnyDevice where on_device is empty.
  int device = kAnyDevice;
};

// The slopes of one sequence: fp32 [num_q_heads].
inline const float* SlopesOf(const AttentionProblem& problem, int64_t sequence) {
  return problem.alibi.slopes +
         (problem.alibi.per_sequence ? sequence * static_cast<int64_t>(problem.num_q_heads) : 0);
}

}  // namespace flashbias

#endif  // FLASHBIAS_KERNELS_ATTENTION_PROBLEM_H_
