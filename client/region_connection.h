// Asks a server for a region (wire/region_protocol.h).
//
// Thread-safety: free function.
#ifndef FLASHBIAS_CLIENT_REGION_CONNECTION_H_
#define FLASHBIAS_CLIENT_REGION_CONNECTION_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "wire/region_protocol.h"
#include "wire/unique_fd.h"

namespace flashbias::client {

struct GrantedRegion {
  wire::UniqueFd connection;  // the region lives as long as it is open
  uint64_t id = 0;            // never 0
  wire::UniqueFd memory;      // as it came, unchecked
};

// Blocks, at most about `timeout`. UNAVAILABLE: nobody answers beside `unix_path`; INTERNAL: the
// answer is none; else what the server says.
absl::StatusOr<GrantedRegion> AskForRegion(const std::string& unix_path,
                                           const wire::RegionRequest& request,
                                           absl::Duration timeout);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_REGION_CONNECTION_H_
