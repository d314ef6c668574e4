// A backward problem's request with its tensors and gradients in a region, host or device.
//
// Thread-safety: a plain value. Ownership: refers to the problem's slopes and to the region.
#ifndef FLASHBIAS_TESTS_INTEGRATION_PLACED_BACKWARD_H_
#define FLASHBIAS_TESTS_INTEGRATION_PLACED_BACKWARD_H_

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "client/attention_client.h"
#include "tests/support/owned_problem.h"

namespace flashbias::integration {

class PlacedBackward {
 public:
  // As memcpy; for device memory the test's own.
  using Copy = std::function<void(void* to, const void* from, size_t bytes)>;

  // Tensors and gradients lie one after the other from base + gap on, with `gap` bytes between;
  // what is float at the next multiple of 4. The inputs are copied there. dslopes have a buffer
  // here.
  PlacedBackward(const support::OwnedProblem& owned, void* base, size_t gap, const Copy& copy);
  PlacedBackward(const PlacedBackward&) = delete;
  PlacedBackward& operator=(const PlacedBackward&) = delete;

  const client::AttendBackwardRequest& request() const { return request_; }
  const client::GradientBuffers& gradients() const { return gradients_; }

  // The gradients, copied from the region: as OwnedProblem::OutputBytes.
  std::string OutputBytes(const Copy& copy) const;

 private:
  void* Take(size_t bytes);
  float* TakeFloats(size_t count);

  char* const base_;
  const size_t gap_;
  size_t at_;
  client::AttendBackwardRequest request_;
  client::GradientBuffers gradients_;
  std::vector<float> dslopes_;
};

}  // namespace flashbias::integration

#endif  // FLASHBIAS_TESTS_INTEGRATION_PLACED_BACKWARD_H_
