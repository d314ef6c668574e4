#include "kernels/cuda/work_order.h"

#include <algorithm>
#include <limits>

#include "kernels/skip_table.h"
#include "kernels/work_estimate.h"

namespace flashbias::cuda {
namespace {

// Costs that the order tells apart; larger ones are scaled down to so many.
constexpr int32_t kMaxCosts = 1 << 20;

// The keys that any of the rows may see.
KeyRange KeysOfRows(const SequenceParams& s, int64_t q_begin, int64_t q_end) {
  KeyRange keys{.begin = std::max<int64_t>(0, q_begin + s.window_diagonal),
                .end = s.causal != 0 ? std::min<int64_t>(s.kv_len, q_end + s.diagonal) : s.kv_len};
  if (keys.begin >= keys.end) return KeyRange{};
  return keys;
}

// The rows that see any of the keys.
int64_t RowsOfKeys(const SequenceParams& s, int64_t k_begin, int64_t k_end) {
  const int64_t first = s.causal != 0 ? std::max<int64_t>(0, k_begin - s.diagonal) : 0;
  const int64_t end = std::min<int64_t>(s.q_len, k_end - s.window_diagonal);
  return std::max<int64_t>(0, end - first);
}

// Of `admitted` partners, those within reach of an extent of `count` rows or keys.
double WithinReach(const SequenceParams& s, int64_t admitted, int64_t count, double reach) {
  const double sides = s.causal != 0 ? 1 : 2;
  return std::min(static_cast<double>(admitted), static_cast<double>(count) + sides * reach);
}

}  // namespace

double ReachOfHead(const SequenceParams& sequence, float slope) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (sequence.log_eps_per_side == -kInfinity) return kInfinity;
  return ExpectedReach(slope, sequence.log_eps_per_side);
}

double ExpectedKeysOfRows(const SequenceParams& sequence, int64_t q_begin, int64_t q_end,
                          double reach) {
  const KeyRange keys = KeysOfRows(sequence, q_begin, q_end);
  return WithinReach(sequence, keys.end - keys.begin, q_end - q_begin, reach);
}

double ExpectedRowsOfKeys(const SequenceParams& sequence, int64_t k_begin, int64_t k_end,
                          double reach) {
  return WithinReach(sequence, RowsOfKeys(sequence, k_begin, k_end), k_end - k_begin, reach);
}

std::vector<WorkItem> LongestFirst(const std::vector<WorkItem>& items,
                                   const std::vector<int32_t>& costs) {
  int32_t highest = 0;
  for (const int32_t cost : costs) highest = std::max(highest, cost);
  int shift = 0;
  while ((highest >> shift) >= kMaxCosts) ++shift;
  const auto place_of = [&](size_t k) { return (highest >> shift) - (costs[k] >> shift); };
  // A counting sort: there may be tens of thousands of items, and few different costs.
  std::vector<size_t> begin(static_cast<size_t>(highest >> shift) + 2);
  for (size_t k = 0; k < items.size(); ++k) ++begin[place_of(k) + 1];
  for (size_t k = 1; k < begin.size(); ++k) begin[k] += begin[k - 1];
  std::vector<WorkItem> ordered(items.size());
  for (size_t k = 0; k < items.size(); ++k) ordered[begin[place_of(k)]++] = items[k];
  return ordered;
}

}  // namespace flashbias::cuda
