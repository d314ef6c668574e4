#include "client/load/requests/region_plan.h"

#include <algorithm>
#include <utility>

namespace flashbias::client {
namespace {

// Hands out places one after the other.
class Places {
 public:
  int64_t Take(int64_t bytes) {
    const int64_t place = at_;
    at_ += (bytes + 63) / 64 * 64;
    return place;
  }
  int64_t end() const { return at_; }

 private:
  int64_t at_ = 0;
};

}  // namespace

RegionPlan::RegionPlan(const RequestMix& mix, int slots) : slots_(slots) {
  Places places;
  for (int n = 0; n < mix.num_entries(); ++n) {
    const Workload& workload = mix.workload(n);
    const WorkloadOptions& shape = workload.options();
    const int64_t row_bytes =
        shape.heads * shape.head_dim * static_cast<int64_t>(SizeOf(shape.dtype));
    const int64_t kv_row_bytes = row_bytes / shape.heads * shape.kv_heads;
    const int64_t lse_row_bytes = shape.heads * static_cast<int64_t>(sizeof(float));
    Entry entry;
    for (int input = 0; input < workload.num_inputs(); ++input) {
      const Workload::Input& of = workload.input(input);
      Input to;
      to.q = places.Take(static_cast<int64_t>(of.q.size()));
      to.k = places.Take(static_cast<int64_t>(of.k.size()));
      to.v = places.Take(static_cast<int64_t>(of.v.size()));
      to.d_o = places.Take(static_cast<int64_t>(of.d_o.size()));
      entry.inputs.push_back(to);
    }
    for (const PlannedRequest& call : mix.forward_calls(n)) {
      Answer to;
      to.o = places.Take(call.q_len * row_bytes);
      to.lse = places.Take(call.q_len * lse_row_bytes);
      entry.forward.push_back(to);
    }
    Places slot;
    if (shape.direction != LoadDirection::kBackward) {
      entry.results.o = slot.Take(shape.q_len * row_bytes);
      entry.results.lse = slot.Take(shape.q_len * lse_row_bytes);
    }
    if (shape.direction != LoadDirection::kForward) {
      entry.results.dq = slot.Take(shape.q_len * row_bytes);
      entry.results.dk = slot.Take(shape.seq_len * kv_row_bytes);
      entry.results.dv = slot.Take(shape.seq_len * kv_row_bytes);
    }
    slot_bytes_ = std::max(slot_bytes_, slot.end());
    entries_.push_back(std::move(entry));
  }
  results_at_ = places.end();
}

RegionPlan::Results RegionPlan::results(int entry, int slot) const {
  Results results = entries_[entry].results;
  const int64_t base = results_at_ + slot * slot_bytes_;
  for (int64_t* offset : {&results.o, &results.lse, &results.dq, &results.dk, &results.dv}) {
    *offset += base;
  }
  return results;
}

}  // namespace flashbias::client
