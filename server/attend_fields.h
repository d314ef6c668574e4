// The fields of an AttendRequest as they came, before anything was checked: views into the message,
// free of any message class.
//
// Ownership: nothing is owned; the message must outlive the views. Thread-safety: plain values.
#ifndef FLASHBIAS_SERVER_ATTEND_FIELDS_H_
#define FLASHBIAS_SERVER_ATTEND_FIELDS_H_

#include <cstdint>
#include <optional>
#include <string_view>

#include "absl/types/span.h"

namespace flashbias::server {

// Values of the contract's enums on the wire.
inline constexpr int kWireFloat16 = 1;
inline constexpr int kWireBFloat16 = 2;
inline constexpr int kWireFloat32 = 3;
inline constexpr int kWireMaskCausal = 1;
inline constexpr int kWireMaskFull = 2;

struct TensorFields {
  bool present = false;
  int dtype = 0;
  absl::Span<const int64_t> shape = {};
  std::string_view data = {};  // any alignment
};

enum class WireBias { kNone, kAlibi, kLowRank };

struct AttendFields {
  absl::Span<const int64_t> q_lens;
  absl::Span<const int64_t> kv_lens;
  int mask = 0;
  int64_t left_window = 0;
  absl::Span<const int64_t> query_start;
  absl::Span<const int64_t> key_start;
  std::optional<float> softmax_scale;
  std::optional<float> eps;
  bool want_lse = false;
  WireBias bias = WireBias::kNone;
  TensorFields slopes;  // kAlibi
  TensorFields phi_q;   // kLowRank
  TensorFields phi_k;   // kLowRank
  TensorFields q;
  TensorFields k;
  TensorFields v;
};

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_ATTEND_FIELDS_H_
