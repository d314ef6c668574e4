#include "tests/support/attention_case.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/alibi.h"
#include "tests/support/compare.h"

namespace flashbias::support {
namespace {

const char* NameOf(BiasKind kind) {
  switch (kind) {
    case BiasKind::kNone:
      return "none";
    case BiasKind::kAlibi:
      return "alibi";
    case BiasKind::kLowRank:
      return "low_rank";
  }
  return "unknown";
}

void FillRandom(DType dtype, void* data, int64_t elements, InputKind kind, float scale,
                Random* random) {
  for (int64_t n = 0; n < elements; ++n) {
    const float value = kind == InputKind::kConstant ? 0.5f : scale * random->Normal();
    StoreElement(dtype, data, n, value);
  }
}

}  // namespace

uint64_t Random::Bits() {
  state_ += 0x9e3779b97f4a7c15u;
  uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

int64_t Random::Below(int64_t bound) {
  return static_cast<int64_t>(Bits() % static_cast<uint64_t>(bound));
}

int64_t Random::Between(int64_t low, int64_t high) { return low + Below(high - low + 1); }

float Random::Normal() {
  const uint64_t bits = Bits();
  const uint64_t sum =
      (bits & 0xffff) + ((bits >> 16) & 0xffff) + ((bits >> 32) & 0xffff) + (bits >> 48);
  // Each term has mean 32767.5 and variance 65536^2 / 12.
  return (static_cast<float>(sum) - 131070.0f) * (1.7320508f / 65536.0f);
}

std::string Describe(const AttentionCase& c) {
  std::string text = absl::StrCat(
      c.name, ": ", Name(c.dtype), " heads ", c.num_q_heads, "/", c.num_kv_heads, " head_dim ",
      c.head_dim, c.mask.causal ? " causal" : " full", " left_window ", c.mask.left_window,
      " softmax_scale ", c.softmax_scale, " bias ", NameOf(c.bias));
  if (c.bias == BiasKind::kAlibi) {
    absl::StrAppend(&text, " slopes ", static_cast<int>(c.slopes),
                    c.slopes_per_sequence ? " per sequence" : "");
  } else if (c.bias == BiasKind::kLowRank) {
    absl::StrAppend(&text, " rank ", c.rank, " ", Name(c.factor_dtype), " per head ",
                    c.phi_q_per_head, "/", c.phi_k_per_head);
  }
  absl::StrAppend(&text, " eps ", c.eps, " want_lse ", c.want_lse, " input ",
                  static_cast<int>(c.input), " byte_offset ", c.byte_offset, " seed ", c.seed);
  if (c.direction == Direction::kBackward) {
    absl::StrAppend(&text, " backward, d_o_scale ", c.d_o_scale,
                    c.want_bias_gradient ? "" : ", no bias gradient");
  }
  absl::StrAppend(&text, " sequences");
  for (const SequenceCase& s : c.sequences) {
    absl::StrAppend(&text, " [q_len ", s.q_len, " kv_len ", s.kv_len);
    if (s.query_start != SequenceCase::kEndAligned) {
      absl::StrAppend(&text, " query_start ", s.query_start);
    }
    absl::StrAppend(&text, " key_start ", s.key_start, "]");
  }
  return text;
}

void PrintTo(const AttentionCase& test_case, std::ostream* out) { *out << Describe(test_case); }

std::vector<float> MakeSlopes(SlopeKind kind, int num_heads) {
  std::vector<float> slopes;
  switch (kind) {
    case SlopeKind::kStandard:
      return StandardAlibiSlopes(num_heads);
    case SlopeKind::kSeed:
      return SeedAlibiSlopes(num_heads);
    case SlopeKind::kRange:
      for (int h = 0; h < num_heads; ++h) {
        const double t = num_heads == 1 ? 0.0 : static_cast<double>(h) / (num_heads - 1);
        slopes.push_back(static_cast<float>(std::exp2(-0.16 + t * (-8.0 + 0.16))));
      }
      return slopes;
    case SlopeKind::kZero:
      return std::vector<float>(num_heads, 0.0f);
    case SlopeKind::kNegative:
      for (const float slope : SeedAlibiSlopes(num_heads)) slopes.push_back(-slope);
      return slopes;
    case SlopeKind::kTiny:
      return std::vector<float>(num_heads, 1e-8f);
    case SlopeKind::kMixed: {
      constexpr float kSlopes[] = {0.25f,       0.0f,   -0.125f,     1e-8f,
                                   0.89502507f, -1e-8f, 0.00390625f, 4};
      for (int h = 0; h < num_heads; ++h) slopes.push_back(kSlopes[h % 8]);
      return slopes;
    }
  }
  return slopes;
}

OwnedProblem Materialise(const AttentionCase& c) {
  AttentionProblem shape;
  shape.direction = c.direction;
  shape.dtype = c.dtype;
  shape.num_q_heads = c.num_q_heads;
  shape.num_kv_heads = c.num_kv_heads;
  shape.head_dim = c.head_dim;
  shape.mask = c.mask;
  shape.softmax_scale =
      c.softmax_scale != 0 ? c.softmax_scale : 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  shape.bias_kind = c.bias;
  shape.alibi.per_sequence = c.slopes_per_sequence;
  shape.low_rank.dtype = c.factor_dtype;
  shape.low_rank.rank = c.rank;
  shape.low_rank.phi_q_heads = c.phi_q_per_head ? c.num_q_heads : 1;
  shape.low_rank.phi_k_heads = c.phi_k_per_head ? c.num_q_heads : 1;
  shape.eps = c.eps;
  std::vector<Sequence> sequences;
  for (const SequenceCase& s : c.sequences) {
    sequences.push_back({.q_begin = shape.total_q,
                         .q_len = s.q_len,
                         .kv_begin = shape.total_kv,
                         .kv_len = s.kv_len,
                         .query_start = s.query_start == SequenceCase::kEndAligned
                                            ? s.key_start + s.kv_len - s.q_len
                                            : s.query_start,
                         .key_start = s.key_start});
    shape.total_q += s.q_len;
    shape.total_kv += s.kv_len;
  }

  OwnedProblem owned(shape, std::move(sequences), c.want_lse, c.byte_offset, c.want_bias_gradient);
  Random random(c.seed);
  const float q_scale = c.input == InputKind::kLargeLogits ? 4.0f : 1.0f;
  FillRandom(c.dtype, owned.q(), owned.q_elements(), c.input, q_scale, &random);
  FillRandom(c.dtype, owned.k(), owned.kv_elements(), c.input, 1.0f, &random);
  // v always varies: a constant v would hide wrong weights.
  FillRandom(c.dtype, owned.v(), owned.kv_elements(), InputKind::kNormal, 1.0f, &random);
  if (c.bias == BiasKind::kAlibi) {
    const std::vector<float> slopes = MakeSlopes(c.slopes, c.num_q_heads);
    for (int64_t n = 0; n < owned.num_slopes(); ++n) {
      // Another sequence gets other slopes, or mixing them up would go unseen.
      const float factor = static_cast<float>(1 + n / c.num_q_heads);
      owned.slopes()[n] = slopes[n % c.num_q_heads] * factor;
    }
  } else if (c.bias == BiasKind::kLowRank) {
    // Variance of the bias: about 1 whatever the rank is.
    const float scale = std::pow(static_cast<float>(c.rank), -0.25f);
    FillRandom(c.factor_dtype, owned.phi_q(), owned.phi_q_elements(), InputKind::kNormal, scale,
               &random);
    FillRandom(c.factor_dtype, owned.phi_k(), owned.phi_k_elements(), InputKind::kNormal, scale,
               &random);
  }
  if (c.direction == Direction::kBackward) {
    FillRandom(c.dtype, owned.d_o(), owned.q_elements(), InputKind::kNormal, c.d_o_scale, &random);
    owned.SetForwardResults();
  }
  return owned;
}

AttentionCase RandomCase(uint64_t seed) {
  Random random(seed * 7919 + 13);
  constexpr DType kDTypes[] = {DType::kFloat16, DType::kBFloat16, DType::kFloat32};
  constexpr int64_t kLengths[] = {0, 1, 2, 5, 16, 31, 64, 65, 100, 128, 129, 190, 257};
  AttentionCase c;
  c.name = absl::StrCat("random_", seed);
  c.seed = seed;
  c.dtype = kDTypes[random.Below(3)];
  c.num_kv_heads = static_cast<int>(random.Between(1, 3));
  c.num_q_heads = c.num_kv_heads * static_cast<int>(random.Between(1, 4));
  c.head_dim = static_cast<int>(random.Coin() ? 32 << random.Below(3) : random.Between(1, 128));
  c.sequences.clear();
  for (int64_t n = random.Between(1, 4); n > 0; --n) {
    SequenceCase s;
    s.q_len = kLengths[random.Below(13)];
    s.kv_len = random.Coin() ? s.q_len : kLengths[random.Below(13)];
    if (random.Below(3) == 0) {
      s.key_start = random.Between(-300, 300);
      if (random.Coin()) s.query_start = s.key_start + random.Between(-80, 300);
    }
    c.sequences.push_back(s);
  }
  c.mask.causal = random.Below(3) != 0;
  c.mask.left_window = random.Below(3) == 0 ? random.Between(1, 200) : 0;
  c.bias = static_cast<BiasKind>(random.Below(3));
  c.slopes = static_cast<SlopeKind>(random.Below(7));
  c.slopes_per_sequence = random.Coin();
  c.rank = static_cast<int>(random.Coin() ? random.Between(1, 8) : random.Between(1, 64));
  c.phi_q_per_head = random.Coin();
  c.phi_k_per_head = random.Coin();
  c.factor_dtype = kDTypes[random.Below(3)];
  c.eps = random.Coin() ? kDefaultEps : (random.Coin() ? 0.0f : kMaxEps);
  c.want_lse = random.Below(4) != 0;
  c.byte_offset = random.Coin() ? 0 : static_cast<int>(random.Below(17));
  return c;
}

AttentionCase BigRandomCase(uint64_t seed) {
  AttentionCase c = RandomCase(seed);
  const int64_t length = kSlowBuild ? 150 : 600;
  if (seed % 4 == 0) c.sequences.push_back({.q_len = length, .kv_len = length + 100});
  return c;
}

}  // namespace flashbias::support
