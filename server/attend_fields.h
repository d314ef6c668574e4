// The fields of an AttendRequest or AttendBackwardRequest as they came, before anything was
// checked. Small fields are copied; of tensors' elements only their place in the message or in a
// region is known.
//
// Thread-safety: plain values.
#ifndef FLASHBIAS_SERVER_ATTEND_FIELDS_H_
#define FLASHBIAS_SERVER_ATTEND_FIELDS_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "wire/tensor_field.h"

namespace flashbias::server {

enum class WireBias { kNone, kAlibi, kLowRank };

// What an AttendBackwardRequest has beside its forward request.
struct BackwardFields {
  bool want_bias_gradient = false;
  wire::TensorField lse;
  wire::TensorField o;
  wire::TensorField d_o;
  std::optional<wire::RegionPlace> dq_place;
  std::optional<wire::RegionPlace> dk_place;
  std::optional<wire::RegionPlace> dv_place;
  std::optional<wire::RegionPlace> dphi_q_place;
  std::optional<wire::RegionPlace> dphi_k_place;
};

struct AttendFields {
  // The header of a stream: tensors but the slopes have no elements yet.
  bool data_follows = false;
  std::vector<int64_t> q_lens;
  std::vector<int64_t> kv_lens;
  int mask = 0;
  int64_t left_window = 0;
  std::vector<int64_t> query_start;
  std::vector<int64_t> key_start;
  std::optional<float> softmax_scale;
  std::optional<float> eps;
  bool want_lse = false;
  WireBias bias = WireBias::kNone;
  wire::TensorField slopes;  // kAlibi
  wire::TensorField phi_q;   // kLowRank
  wire::TensorField phi_k;   // kLowRank
  wire::TensorField q;
  wire::TensorField k;
  wire::TensorField v;
  std::optional<wire::RegionPlace> o_place;
  std::optional<wire::RegionPlace> lse_place;
  // Present: all of the above is the forward request of an AttendBackwardRequest.
  std::optional<BackwardFields> backward;
};

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_ATTEND_FIELDS_H_
