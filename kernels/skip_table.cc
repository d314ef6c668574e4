#include "kernels/skip_table.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace flashbias {
namespace {

float NormOrInfinity(float norm) {
  return std::isnan(norm) ? std::numeric_limits<float>::infinity() : norm;
}

// The union over rows first .. last: both ends of a row's range grow with the row.
KeyRange AdmittedKeys(const Sequence& sequence, const Mask& mask, int64_t first, int64_t last) {
  const int64_t offset = sequence.query_start - sequence.key_start;  // positions in key rows
  KeyRange range{.begin = 0, .end = sequence.kv_len};
  if (mask.causal) range.end = std::min(range.end, offset + last + 1);
  if (HasLeftWindow(mask)) {
    range.begin = std::max(range.begin, offset + first - mask.left_window + 1);
  }
  if (range.begin >= range.end) return KeyRange{};
  return range;
}

}  // namespace

KeyRange AdmittedKeys(const Sequence& sequence, const Mask& mask, int64_t q_row) {
  return AdmittedKeys(sequence, mask, q_row, q_row);
}

KeyRange AdmittedKeysOfAnyRow(const Sequence& sequence, const Mask& mask) {
  if (sequence.q_len == 0) return KeyRange{};
  return AdmittedKeys(sequence, mask, 0, sequence.q_len - 1);
}

SkipTable MakeSkipTable(absl::Span<const float> tile_max) {
  SkipTable table;
  table.prefix_max.resize(tile_max.size());
  table.suffix_max.resize(tile_max.size());
  float running = 0;
  for (size_t t = 0; t < tile_max.size(); ++t) {
    running = std::max(running, NormOrInfinity(tile_max[t]));
    table.prefix_max[t] = running;
  }
  running = 0;
  for (size_t t = tile_max.size(); t-- > 0;) {
    running = std::max(running, NormOrInfinity(tile_max[t]));
    table.suffix_max[t] = running;
  }
  return table;
}

SkipBound::SkipBound(float slope, float eps, bool two_sided) {
  if (!(slope > 0) || !std::isfinite(slope) || !(eps > 0)) return;
  slope_ = slope;
  const double share = two_sided ? eps / 2.0 : static_cast<double>(eps);
  log_budget_ = std::log(share) + std::log(-std::expm1(-slope_));
  enabled_ = std::isfinite(log_budget_);
}

}  // namespace flashbias
