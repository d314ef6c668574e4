#include "tests/bench/spot_check.h"

#include <cmath>
#include <random>

#include "kernels/reference/reference_attention.h"

namespace flashbias::bench {

double SampledRelativeError(const AttentionProblem& inputs, const std::vector<char>& o,
                            int num_rows) {
  std::mt19937_64 generator(7);
  double error = 0;
  double norm = 0;
  for (int n = 0; n < num_rows; ++n) {
    const auto sequence =
        static_cast<int64_t>(generator() % static_cast<uint64_t>(inputs.sequences.size()));
    const Sequence& s = inputs.sequences[sequence];
    int64_t row = static_cast<int64_t>(generator() % static_cast<uint64_t>(s.q_len));
    if (n == 0) row = 0;
    if (n == 1) row = s.q_len - 1;
    const int head = static_cast<int>(generator() % static_cast<uint64_t>(inputs.num_q_heads));
    const ReferenceRow expected = ReferenceAttentionRow(inputs, sequence, row, head);
    const int64_t at = ((s.q_begin + row) * inputs.num_q_heads + head) * inputs.head_dim;
    for (int d = 0; d < inputs.head_dim; ++d) {
      const double actual = LoadElement(inputs.dtype, o.data(), at + d);
      error += (actual - expected.o[d]) * (actual - expected.o[d]);
      norm += expected.o[d] * expected.o[d];
    }
  }
  return std::sqrt(error / norm);
}

}  // namespace flashbias::bench
