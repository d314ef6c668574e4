// A generated test case: what varies between problems, described by values, and its materialisation
// as a problem with random inputs that are already rounded to the case's dtypes.
//
// Thread-safety: plain values and pure functions. The same case gives the same bits everywhere.
#ifndef FLASHBIAS_TESTS_SUPPORT_ATTENTION_CASE_H_
#define FLASHBIAS_TESTS_SUPPORT_ATTENTION_CASE_H_

#include <cstdint>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/attention_problem.h"
#include "tests/support/owned_problem.h"

namespace flashbias::support {

enum class SlopeKind {
  kStandard,  // Press et al.
  kSeed,      // 2^(-8 k / H)
  kRange,     // from 2^-0.16 down to 2^-8, geometrically: the FlashBias model's 50 heads
  kZero,
  kNegative,  // the seed slopes, negated
  kTiny,      // 1e-8
  kMixed,     // positive, zero, negative, tiny, steep, in turn
};

enum class InputKind {
  kNormal,       // about N(0, 1)
  kLargeLogits,  // q four times larger: sharp softmax, logits of tens
  kConstant,     // every element 0.5: all keys equally likely without a bias
};

struct SequenceCase {
  // query_start's value for "aligned to the end of the keys".
  static constexpr int64_t kEndAligned = std::numeric_limits<int64_t>::min();

  int64_t q_len = 0;
  int64_t kv_len = 0;
  int64_t query_start = kEndAligned;
  int64_t key_start = 0;
};

struct AttentionCase {
  std::string name;  // letters, digits and '_'
  DType dtype = DType::kFloat32;
  int num_q_heads = 2;
  int num_kv_heads = 2;
  int head_dim = 32;
  std::vector<SequenceCase> sequences = std::vector<SequenceCase>(1, {.q_len = 16, .kv_len = 16});
  Mask mask = {};
  float softmax_scale = 0;  // 0: 1 / sqrt(head_dim)
  BiasKind bias = BiasKind::kAlibi;
  SlopeKind slopes = SlopeKind::kSeed;
  bool slopes_per_sequence = false;
  int rank = 2;
  bool phi_q_per_head = true;  // false: one factor for all heads
  bool phi_k_per_head = true;
  DType factor_dtype = DType::kFloat32;
  float eps = kDefaultEps;
  bool want_lse = true;
  InputKind input = InputKind::kNormal;
  int byte_offset = 0;  // see OwnedProblem
  uint64_t seed = 1;
  // Of a backward case, d_o is about N(0, d_o_scale^2), and o and lse are the reference's.
  Direction direction = Direction::kForward;
  bool want_bias_gradient = true;
  float d_o_scale = 1;
};

// All fields on one line, for failure messages.
std::string Describe(const AttentionCase& test_case);
void PrintTo(const AttentionCase& test_case, std::ostream* out);

OwnedProblem Materialise(const AttentionCase& test_case);

std::vector<float> MakeSlopes(SlopeKind kind, int num_heads);

// A random case of moderate size: any dtype, mask, bias, offsets, packing. Deterministic in `seed`.
AttentionCase RandomCase(uint64_t seed);

// A random case, of which every fourth has work enough for several threads.
AttentionCase BigRandomCase(uint64_t seed);

// Deterministic on every platform, unlike the standard distributions.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Bits();                             // SplitMix64 (Steele, Lea, Flood 2014)
  int64_t Below(int64_t bound);                // 0 .. bound - 1; REQUIRES: bound > 0
  int64_t Between(int64_t low, int64_t high);  // inclusive
  bool Coin() { return (Bits() & 1) != 0; }
  float Normal();  // mean 0, variance 1, within +-3.5: the sum of four uniform values

 private:
  uint64_t state_;
};

}  // namespace flashbias::support

#endif  // FLASHBIAS_TESTS_SUPPORT_ATTENTION_CASE_H_
