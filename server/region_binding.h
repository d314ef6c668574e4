// Ranges of regions that a request names -> addresses.
//
// Thread-safety: free function on its arguments; the registry is thread-safe.
#ifndef FLASHBIAS_SERVER_REGION_BINDING_H_
#define FLASHBIAS_SERVER_REGION_BINDING_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "server/attend_tensors.h"
#include "server/region_registry.h"

namespace flashbias::server {

// Where tensors lie that are in regions; null: not there.
struct RegionBinding {
  std::vector<char*> inputs;   // one for each of AttendTensors::inputs
  std::vector<char*> outputs;  // and of its outputs
  int64_t bytes = 0;           // of all these ranges in host memory
  TensorSet on_device = 0;     // those in memory of a device
  int device = kAnyDevice;     // whose memory that is, as Region::device
  // All that the above points into.
  std::vector<std::shared_ptr<const Region>> regions = {};
};

// `registry` null: the call may not use regions. INVALID_ARGUMENT naming the field: it may not, the
// region is not there, the range is not within it, an output overlaps something, float32 that the
// backend reads or writes as such are not aligned, or two devices' memory is named.
// REQUIRES: ValidateAttend made `tensors`.
absl::StatusOr<RegionBinding> BindRegions(const AttendTensors& tensors,
                                          const RegionRegistry* registry);

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_REGION_BINDING_H_
