// A problem's request with its tensors and results in a region, host or device.
//
// Thread-safety: a plain value. Ownership: refers to the problem's slopes and to the region.
#ifndef FLASHBIAS_TESTS_INTEGRATION_PLACED_REQUEST_H_
#define FLASHBIAS_TESTS_INTEGRATION_PLACED_REQUEST_H_

#include <cstddef>
#include <functional>
#include <string>

#include "client/attention_client.h"
#include "tests/support/owned_problem.h"

namespace flashbias::integration {

class PlacedRequest {
 public:
  // As memcpy; for device memory the test's own.
  using Copy = std::function<void(void* to, const void* from, size_t bytes)>;

  // Tensors and results lie one after the other from base + gap on, with `gap` bytes between; lse
  // at the next multiple of 4. The inputs are copied there, but for k where `k_stays`.
  PlacedRequest(const support::OwnedProblem& owned, void* base, size_t gap, const Copy& copy,
                bool k_stays = false);

  const client::AttendRequest& request() const { return request_; }
  const client::ResultBuffers& result() const { return result_; }
  size_t end() const { return at_; }  // bytes of the region that are in use

  // The results, o and then lse, copied from the region.
  std::string OutputBytes(const Copy& copy) const;

 private:
  void* Take(size_t bytes);

  char* const base_;
  const size_t gap_;
  size_t at_;
  client::AttendRequest request_;
  client::ResultBuffers result_;
};

}  // namespace flashbias::integration

#endif  // FLASHBIAS_TESTS_INTEGRATION_PLACED_REQUEST_H_
