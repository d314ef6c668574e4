// Ranges of regions that a request names -> addresses.
//
// Thread-safety: free function on its arguments; the registry is thread-safe.
#ifndef FLASHBIAS_SERVER_REGION_BINDING_H_
#define FLASHBIAS_SERVER_REGION_BINDING_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "server/attend_fields.h"
#include "server/attend_validation.h"
#include "server/region_registry.h"

namespace flashbias::server {

// Where tensors lie that are in regions; null: not there.
struct RegionBinding {
  const char* q = nullptr;
  const char* k = nullptr;
  const char* v = nullptr;
  const char* phi_q = nullptr;
  const char* phi_k = nullptr;
  char* o = nullptr;
  char* lse = nullptr;
  int64_t bytes = 0;        // of all these ranges in host memory
  TensorSet on_device = 0;  // those in memory of a device
  int device = kAnyDevice;  // whose memory that is, as Region::device
  // All that the above points into.
  std::vector<std::shared_ptr<const Region>> regions = {};
};

// `registry` null: the call may not use regions. INVALID_ARGUMENT naming the field: it may not, the
// region is not there, the range is not within it, an output overlaps something, or two devices'
// memory is named.
// REQUIRES: ValidateAttend made `valid` of `fields`.
absl::StatusOr<RegionBinding> BindRegions(const AttendFields& fields, const ValidatedAttend& valid,
                                          const RegionRegistry* registry);

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_REGION_BINDING_H_
