// Where the tensors of a mix lie in a region of shared memory: every input, the forward answers
// that backward calls take, and a slot of results for each request in flight.
//
// Thread-safety: const methods. Offsets and sizes are bytes; offsets are multiples of 64.
#ifndef FLASHBIAS_CLIENT_LOAD_REQUESTS_REGION_PLAN_H_
#define FLASHBIAS_CLIENT_LOAD_REQUESTS_REGION_PLAN_H_

#include <cstdint>
#include <vector>

#include "client/load/requests/request_mix.h"

namespace flashbias::client {

class RegionPlan {
 public:
  struct Input {
    int64_t q = 0, k = 0, v = 0, d_o = 0;
  };
  struct Answer {
    int64_t o = 0, lse = 0;
  };
  struct Results {
    int64_t o = 0, lse = 0, dq = 0, dk = 0, dv = 0;
  };

  // A slot takes the largest answer of the mix.
  RegionPlan(const RequestMix& mix, int slots);

  int64_t bytes() const { return results_at_ + slots_ * slot_bytes_; }
  const Input& input(int entry, int input) const { return entries_[entry].inputs[input]; }
  // Of forward_calls(entry).
  const Answer& forward(int entry, int call) const { return entries_[entry].forward[call]; }
  Results results(int entry, int slot) const;

 private:
  struct Entry {
    std::vector<Input> inputs;
    std::vector<Answer> forward;
    Results results;  // from the start of a slot
  };

  const int64_t slots_;
  int64_t results_at_ = 0;
  int64_t slot_bytes_ = 0;
  std::vector<Entry> entries_;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REQUESTS_REGION_PLAN_H_
