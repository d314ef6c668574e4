// What an attention call takes and gives: shapes, views of the caller's memory, an owning result.
//
//   logit[i, j] = softmax_scale * <q_i, k_j> + bias[i, j]      (natural-log domain)
//   o_i         = sum_j softmax_j(logit[i, j]) v_j             over the keys j that the mask admits
//   lse_i       = ln sum_j exp(logit[i, j])
//
// and its gradients (AttendBackwardRequest), of a scalar L whose gradient d_o = dL/do is known:
//
//   P[i, j]  = exp(logit[i, j] - lse_i)
//   dS[i, j] = P[i, j] (<d_o_i, v_j> - <d_o_i, o_i>)
//   dq_i     = softmax_scale sum_j dS[i, j] k_j      dk_j = softmax_scale sum_i dS[i, j] q_i
//   dv_j     = sum_i P[i, j] d_o_i
//   dslope_h = -sum_ij dS[i, j] |i - j|
//   dphi_q_i = sum_j dS[i, j] phi_k_j                dphi_k_j = sum_i dS[i, j] phi_q_i
//
// where heads that share a key/value head, slopes or a factor add up.
//
// Query row r of a sequence stands at position i = query_start + r, key row c at
// j = key_start + c. A row whose mask admits no key gives o = 0 and lse = -infinity.
//
// Plain values, as thread-safe as an int. Views own nothing: the caller keeps what they point at
// alive and unchanged for as long as the call says (client/attention_client.h).
#ifndef FLASHBIAS_CLIENT_ATTENTION_TYPES_H_
#define FLASHBIAS_CLIENT_ATTENTION_TYPES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kernels/dtype.h"

namespace flashbias::client {

// A dense row-major tensor in the caller's memory, in the machine's (little-endian) byte order.
struct TensorView {
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape = {};  // outermost first
  const void* data = nullptr;       // any alignment; may be null when an extent is 0
};

// Which keys a query sees. There is no default: a wrong mask gives plausible wrong numbers.
enum class MaskKind { kUnspecified, kCausal, kFull };

// bias[i, j] = -slope[h] * |i - j|. A positive slope penalises distance, zero is no bias, a
// negative slope favours far keys. kernels/alibi.h computes the usual ones.
struct AlibiSlopes {
  absl::Span<const float> slopes = {};  // [num_q_heads], or [num_sequences, num_q_heads]; finite
};

// bias[i, j] = <phi_q[i, h], phi_k[j, h]>. Both have one dtype, any of the three; R is 1 to 64.
struct LowRankFactors {
  TensorView phi_q = {};  // [total_q, num_q_heads or 1, R]
  TensorView phi_k = {};  // [total_kv, num_q_heads or 1, R]
};

struct AttendRequest {
  TensorView q = {};  // [total_q, num_q_heads, head_dim]
  TensorView k =
      {};  // [total_kv, num_kv_heads, head_dim]; num_q_heads is a multiple of num_kv_heads
  TensorView v = {};  // [total_kv, num_kv_heads, head_dim]

  // Rows of each sequence, packed one after the other in q and in k and v; 0 is legal. Both empty:
  // one sequence.
  std::vector<int64_t> q_lens = {};
  std::vector<int64_t> kv_lens = {};

  MaskKind mask = MaskKind::kUnspecified;  // kCausal: j <= i
  int64_t left_window = 0;                 // 0: none; w > 0: only keys with i - j < w

  // One entry per sequence. Empty: query_start = key_start + kv_len - q_len (queries stand at the
  // end of the keys), key_start = 0. Magnitudes up to 2^48.
  std::vector<int64_t> query_start = {};
  std::vector<int64_t> key_start = {};

  std::optional<float> softmax_scale = {};  // absent: 1 / sqrt(head_dim)
  // Largest share of a row's softmax mass that skipping may drop, 0 to 2^-8. Absent: 2^-24,
  // invisible at any dtype. 0: every key is computed.
  std::optional<float> eps = {};
  bool want_lse = false;

  std::variant<std::monostate, AlibiSlopes, LowRankFactors> bias = {};  // monostate: none
};

// The gradients of a forward call, from what that was given and gave.
struct AttendBackwardRequest {
  // The forward call as it was; want_lse is not looked at.
  AttendRequest forward = {};
  TensorView o = {};                 // what it gave: [total_q, num_q_heads, head_dim], dtype of q
  absl::Span<const float> lse = {};  // what it gave with want_lse: [total_q, num_q_heads]
  TensorView d_o = {};               // the gradient of o, shape and dtype as o
  // Whether the gradient of the bias is wanted: dslopes, or dphi_q and dphi_k. Refused without one.
  bool want_bias_gradient = false;
};

// Where a call's time went inside the server, and what was done there.
struct Timing {
  absl::Duration receive = {};  // decoding and validating, once the request's bytes had arrived
  absl::Duration queue = {};    // until its batch started
  absl::Duration compute = {};  // its batch on the backend
  absl::Duration send = {};     // until the response was handed over
  int64_t batch_requests = 0;   // requests in its batch, this one included
  int64_t tiles_computed = 0;   // (head, query tile, key tile) triples computed
  int64_t tiles_skipped = 0;    // triples that the mask admits and the eps bound left out
  // Parts of `compute`, those of the whole batch.
  absl::Duration upload = {};    // until the inputs were in device memory; 0 on a CPU
  absl::Duration kernel = {};    // from there until the results were computed
  absl::Duration download = {};  // from there until they were in host memory; 0 on a CPU
};

// Memory of the caller's for an answer, any alignment for o. Empty: the AttendResult owns the
// tensor; otherwise of exactly its size, and the AttendResult's own is empty. Written in whole when
// the call succeeds; when it fails, not at all, or in part if the call was streamed or the buffer
// lies in a region (client/shared_region.h, client/device_region.h).
struct ResultBuffers {
  absl::Span<char> o = {};     // bytes of [total_q, num_q_heads, head_dim]
  absl::Span<float> lse = {};  // [total_q, num_q_heads]; only with want_lse
};

struct AttendResult {
  DType dtype = DType::kFloat32;    // that of q
  std::vector<int64_t> shape = {};  // [total_q, num_q_heads, head_dim]
  std::string o = {};               // the elements, row-major, little-endian
  std::vector<float> lse = {};      // [total_q, num_q_heads], bias included; empty unless want_lse
  Timing timing = {};
};

// ResultBuffers for an answer to AttendBackward.
struct GradientBuffers {
  absl::Span<char> dq = {};  // bytes of a tensor as q
  absl::Span<char> dk = {};  // as k
  absl::Span<char> dv = {};  // as v
  // Only with want_bias_gradient and the bias that they are of.
  absl::Span<float> dslopes = {};  // as the slopes
  absl::Span<float> dphi_q = {};   // as phi_q
  absl::Span<float> dphi_k = {};   // as phi_k
};

// Gradients, each with the shape of what it is the gradient of, row-major.
struct AttendGradients {
  DType dtype = DType::kFloat32;  // of dq, dk and dv: that of q
  std::string dq = {};            // the elements, little-endian
  std::string dk = {};
  std::string dv = {};
  // float32 whatever the dtypes; empty without want_bias_gradient and the bias that they are of.
  std::vector<float> dslopes = {};
  std::vector<float> dphi_q = {};
  std::vector<float> dphi_k = {};
  Timing timing = {};
};

struct ServerInfo {
  std::string version = {};               // "0.1.0"
  std::string backend = {};               // "cpu" or "cuda"
  std::vector<std::string> devices = {};  // one description each
  std::vector<DType> dtypes = {};         // accepted for q, k, v
  int max_head_dim = 0;
  std::vector<int> fast_head_dims = {};  // computed without padding
  int max_rank = 0;
  int64_t max_message_bytes = 0;   // of one request or response
  int64_t max_queue_requests = 0;  // beyond this: RESOURCE_EXHAUSTED
  int64_t max_queue_bytes = 0;     // beyond this: RESOURCE_EXHAUSTED
  int64_t max_stream_bytes = 0;    // of host memory for all streams together
  double default_eps = 0;
  double max_eps = 0;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_ATTENTION_TYPES_H_
