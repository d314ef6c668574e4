// Which tensors of a call lie in regions.
//
// Thread-safety: plain values and a free function.
#ifndef FLASHBIAS_CLIENT_REGION_PLACEMENT_H_
#define FLASHBIAS_CLIENT_REGION_PLACEMENT_H_

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/answer.h"
#include "client/attention_types.h"
#include "client/region_map.h"
#include "wire/tensor_field.h"

namespace flashbias::client {

// Of a request's tensors; those of the answer have their places in Answer.
struct RegionPlacement {
  std::optional<wire::RegionPlace> q = {};
  std::optional<wire::RegionPlace> k = {};
  std::optional<wire::RegionPlace> v = {};
  std::optional<wire::RegionPlace> phi_q = {};
  std::optional<wire::RegionPlace> phi_k = {};
  // Of an AttendBackwardRequest.
  std::optional<wire::RegionPlace> o = {};
  std::optional<wire::RegionPlace> lse = {};
  std::optional<wire::RegionPlace> d_o = {};
  bool on_device = false;  // whether any of these regions is on a device
  // Bytes of tensors that need not be sent, of the request's and of the answer's.
  int64_t request_bytes = 0;
  int64_t response_bytes = 0;
};

// INVALID_ARGUMENT: the request's slopes lie on a device. To be called before they are read.
absl::Status CheckSlopesOnHost(const AttendRequest& request, const RegionMap& regions);

// Also gives the answer's tensors their places. INVALID_ARGUMENT naming the tensor: some of it lies
// in a region on a device, but not all, or must not lie on one.
// REQUIRES: SummarizeRequest(request) is OK, `answer` is ExpectAnswer's.
absl::StatusOr<RegionPlacement> PlaceTensors(const AttendRequest& request, const RegionMap& regions,
                                             Answer* answer);
absl::StatusOr<RegionPlacement> PlaceTensors(const AttendBackwardRequest& request,
                                             const RegionMap& regions, Answer* answer);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_REGION_PLACEMENT_H_
