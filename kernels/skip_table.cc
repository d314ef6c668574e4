#include "kernels/skip_table.h"

#include <algorithm>

namespace flashbias {

KeyRange AdmittedKeys(const Sequence& sequence, const Mask& mask, int64_t q_row) {
  const int64_t offset = sequence.query_start + q_row - sequence.key_start;  // i in key rows
  KeyRange range{.begin = 0, .end = sequence.kv_len};
  if (mask.causal) range.end = std::min(range.end, offset + 1);
  // kMaxPosition keeps offset far from the ends of int64; a window beyond it admits everything.
  if (mask.left_window > 0 && mask.left_window <= 4 * kMaxPosition) {
    range.begin = std::max(range.begin, offset - mask.left_window + 1);
  }
  if (range.begin >= range.end) return KeyRange{};
  return range;
}

}  // namespace flashbias
