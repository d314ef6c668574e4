// Memory that this process shares with a server on the same host: tensors that lie in it are not
// sent but named.
//
//   auto client = AttentionClient::Create({.target = "unix:/run/flashbias.sock"});
//   auto region = (*client)->CreateRegion(64 << 20);
//   char* q = (*region)->data();             // fill q, k and v there
//   (*client)->Attend({.q = {..., .data = q}, ...}, {.result = {.o = {(*region)->data() + o_at,
//   n}}});
//
// Every tensor and result buffer that lies wholly in a region of the client's is used where it
// lies; that is seen from its address. Slopes are always sent.
//
// Thread-safety: what it says of itself is constant; the bytes are the caller's to guard.
// Ownership: the destructor gives the region back: no later call may name it, and the server frees
// it once calls in flight have ended. It must outlive calls whose tensors lie in it, and may
// outlive its client. The server frees it too when this process ends, however that comes about; a
// child made by fork without exec keeps it alive.
//
// While a call runs, its tensors must not be written to: its result would be undefined. After a
// call that failed (a deadline, a cancellation) the server may go on reading them, and writing o
// and lse in a region, until it is done with the request.
#ifndef FLASHBIAS_CLIENT_SHARED_REGION_H_
#define FLASHBIAS_CLIENT_SHARED_REGION_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace flashbias::client {

class RegionMap;

class SharedRegion {
 public:
  // AttentionClient::CreateRegion calls this, with the target's path and its own map.
  static absl::StatusOr<std::unique_ptr<SharedRegion>> Create(const std::string& unix_path,
                                                              size_t bytes, absl::Duration timeout,
                                                              std::shared_ptr<RegionMap> map);
  ~SharedRegion();
  SharedRegion(const SharedRegion&) = delete;
  SharedRegion& operator=(const SharedRegion&) = delete;

  char* data() const { return data_; }  // aligned to a page; zeroes at first
  size_t size() const { return size_; }
  uint64_t id() const { return id_; }  // as the wire has it

 private:
  SharedRegion(int connection, char* data, size_t size, uint64_t id,
               std::shared_ptr<RegionMap> map);

  const int connection_;  // a descriptor; the region lives as long as it is open
  char* const data_;
  const size_t size_;
  const uint64_t id_;
  const std::shared_ptr<RegionMap> map_;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_SHARED_REGION_H_
