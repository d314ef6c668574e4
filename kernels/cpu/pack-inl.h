// Packing of queries, keys and values into the layouts of the micro-kernel (workspace.h).
// Included once per Highway target by attention_kernel.cc.
#if defined(FLASHBIAS_KERNELS_CPU_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHBIAS_KERNELS_CPU_PACK_INL_H_
#undef FLASHBIAS_KERNELS_CPU_PACK_INL_H_
#else
#define FLASHBIAS_KERNELS_CPU_PACK_INL_H_
#endif

#include <algorithm>

#include "hwy/cache_control.h"
#include "kernels/cpu/attention_task.h"
#include "kernels/cpu/vector-inl.h"
#include "kernels/cpu/workspace.h"

HWY_BEFORE_NAMESPACE();
namespace flashbias::cpu {
namespace HWY_NAMESPACE {

// Columns that one pass of the micro-kernel computes.
constexpr size_t kPanel = 2 * kLanes;

// Address of row `row`, head `head` of a [rows, heads, width] tensor.
HWY_INLINE const char* RowAddress(const void* tensor, DType dtype, int64_t row, int64_t heads,
                                  int64_t head, int64_t width) {
  return static_cast<const char*>(tensor) +
         (row * heads + head) * width * static_cast<int64_t>(SizeOf(dtype));
}

// The row of the low-rank key factor that head `head` uses.
HWY_INLINE const char* PhiKeyRow(const LowRankBias& bias, int64_t row, int64_t head) {
  return RowAddress(bias.phi_k, bias.dtype, row, bias.phi_k_heads, bias.phi_k_heads == 1 ? 0 : head,
                    bias.rank);
}

HWY_INLINE const char* PhiQueryRow(const LowRankBias& bias, int64_t row, int64_t head) {
  return RowAddress(bias.phi_q, bias.dtype, row, bias.phi_q_heads, bias.phi_q_heads == 1 ? 0 : head,
                    bias.rank);
}

// Asks the cache for `bytes` from `from` on. Consecutive rows of one head stand in different pages,
// where the hardware does not look ahead.
HWY_INLINE void PrefetchRow(const char* from, size_t bytes) {
  constexpr size_t kCacheLine = 64;
  for (size_t i = 0; i < bytes; i += kCacheLine) hwy::Prefetch(from + i);
  hwy::Prefetch(from + bytes - 1);
}

// Four rows of four floats -> their transpose, to[i * to_stride ..].
HWY_INLINE void Transpose4x4(const float* HWY_RESTRICT from, size_t from_stride,
                             float* HWY_RESTRICT to, size_t to_stride) {
#if HWY_TARGET == HWY_SCALAR  // has no blocks to shuffle
  for (size_t i = 0; i < 4; ++i) {
    for (size_t n = 0; n < 4; ++n) to[i * to_stride + n] = from[n * from_stride + i];
  }
#else
  const hn::Full128<float> d;
  const hn::Full128<uint64_t> d64;
  const auto r0 = hn::Load(d, from);
  const auto r1 = hn::Load(d, from + from_stride);
  const auto r2 = hn::Load(d, from + 2 * from_stride);
  const auto r3 = hn::Load(d, from + 3 * from_stride);
  const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d, r0, r1));
  const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d, r2, r3));
  const auto high01 = hn::BitCast(d64, hn::InterleaveUpper(d, r0, r1));
  const auto high23 = hn::BitCast(d64, hn::InterleaveUpper(d, r2, r3));
  hn::Store(hn::BitCast(d, hn::InterleaveLower(d64, low01, low23)), d, to);
  hn::Store(hn::BitCast(d, hn::InterleaveUpper(d64, low01, low23)), d, to + to_stride);
  hn::Store(hn::BitCast(d, hn::InterleaveLower(d64, high01, high23)), d, to + 2 * to_stride);
  hn::Store(hn::BitCast(d, hn::InterleaveUpper(d64, high01, high23)), d, to + 3 * to_stride);
#endif
}

// Columns of the score product that a low-rank bias adds to head_dim.
HWY_INLINE size_t FactorRank(const AttentionProblem& problem) {
  return problem.bias_kind == BiasKind::kLowRank ? problem.low_rank.rank : 0;
}

// Floats of a value tile, whose columns are padded to whole vectors.
HWY_INLINE size_t PaddedHeadDim(const AttentionProblem& problem) {
  return RoundUp(problem.head_dim, kLanes);
}

// Four rows of `inner` columns -> columns key .. key + 3 of the panels at `tile`.
HWY_INLINE void StoreTransposed(const float* HWY_RESTRICT rows, size_t stride, size_t inner,
                                size_t key, float* HWY_RESTRICT tile) {
  float* HWY_RESTRICT to = tile + key / kPanel * inner * kPanel + key % kPanel;
  size_t i = 0;
  for (; i + 4 <= inner; i += 4) Transpose4x4(rows + i, stride, to + i * kPanel, kPanel);
  for (; i < inner; ++i) {
    for (size_t n = 0; n < 4; ++n) to[i * kPanel + n] = rows[n * stride + i];
  }
}

// Loads rows [row, row + 4) of a head, as far as they exist, and zeroes the rest.
template <typename Address>
HWY_INLINE void LoadFourRows(DType dtype, size_t count, size_t width, size_t stride,
                             const Address& address, float* HWY_RESTRICT to) {
  const Floats d;
  for (size_t n = 0; n < 4; ++n) {
    if (n < count) {
      LoadRow(dtype, address(n), width, to + n * stride);
    } else {
      for (size_t i = 0; i < stride; i += kLanes) hn::Store(hn::Zero(d), d, to + n * stride + i);
    }
  }
}

// The factors of a low-rank bias are packed relative to the tile's middle key: softmax does not see
// the difference (it goes into a per-row constant), and it stays exact where the factors are large,
// as positions are.
HWY_INLINE int64_t MiddleKey(const Sequence& sequence, int64_t tile) {
  const int64_t begin = tile * kKeyTile;
  const int64_t count = std::min<int64_t>(kKeyTile, sequence.kv_len - begin);
  return sequence.kv_begin + begin + count / 2;
}

HWY_INLINE void PackFactors(const AttentionProblem& problem, const PackedSequence& packed,
                            int64_t tile, Workspace& ws) {
  const LowRankBias& bias = problem.low_rank;
  const Sequence& sequence = problem.sequences[packed.sequence];
  const size_t rank = bias.rank;
  const size_t stride = RoundUp(rank, kLanes);
  const int64_t begin = sequence.kv_begin + tile * kKeyTile;
  const auto count =
      static_cast<size_t>(std::min<int64_t>(kKeyTile, sequence.kv_len - tile * kKeyTile));
  float* HWY_RESTRICT rows = ws.row_buffer.get();
  for (int h = 0; h < packed.factor_head_count; ++h) {
    const int head = packed.factor_head_begin + h;
    LoadRow(bias.dtype, PhiKeyRow(bias, MiddleKey(sequence, tile), head), rank, ws.phi_mid.get());
    for (size_t key = 0; key < kKeyTile; key += 4) {
      const size_t left = count > key ? count - key : 0;
      LoadFourRows(
          bias.dtype, left, rank, stride,
          [&](size_t n) { return PhiKeyRow(bias, begin + static_cast<int64_t>(key + n), head); },
          rows);
      for (size_t n = 0; n < std::min<size_t>(left, 4); ++n) {
        for (size_t i = 0; i < rank; ++i) rows[n * stride + i] -= ws.phi_mid[i];
      }
      StoreTransposed(rows, stride, rank, key, packed.FactorTile(head, tile));
    }
  }
}

// Key rows, transposed, and value rows, as panels of kPanel columns (the last one of kLanes where
// the padded head_dim is an odd number of vectors). Four tokens at a time, all heads of them.
HWY_INLINE void PackKeysAndValues(const AttentionProblem& problem, const PackedSequence& packed,
                                  int64_t tile, Workspace& ws) {
  const Floats d;
  const Sequence& sequence = problem.sequences[packed.sequence];
  const size_t head_dim = problem.head_dim;
  const size_t padded = PaddedHeadDim(problem);
  const int64_t begin = sequence.kv_begin + tile * kKeyTile;
  const auto count =
      static_cast<size_t>(std::min<int64_t>(kKeyTile, sequence.kv_len - tile * kKeyTile));
  float* HWY_RESTRICT rows = ws.row_buffer.get();
  for (int h = 0; h < packed.kv_head_count; ++h) {
    packed.TileMax(packed.kv_head_begin + h)[tile] = 0;
  }
  for (size_t key = 0; key < kKeyTile; key += 4) {
    const size_t left = std::min<size_t>(count > key ? count - key : 0, 4);
    for (int h = 0; h < packed.kv_head_count; ++h) {
      const int head = packed.kv_head_begin + h;
      const auto row_of = [&](const void* tensor) {
        return [&problem, tensor, head, first = begin + static_cast<int64_t>(key)](size_t n) {
          return RowAddress(tensor, problem.dtype, first + static_cast<int64_t>(n),
                            problem.num_kv_heads, head, problem.head_dim);
        };
      };
      LoadFourRows(problem.dtype, left, head_dim, padded, row_of(problem.k), rows);
      float& largest = packed.TileMax(head)[tile];
      for (size_t n = 0; n < left; ++n) {
        const float norm = std::sqrt(SquaredNorm(rows + n * padded, head_dim));
        largest = norm <= largest || std::isnan(largest) ? largest : norm;  // NaN stays
      }
      StoreTransposed(rows, padded, head_dim, key, packed.KeyTile(head, tile));

      LoadFourRows(problem.dtype, left, head_dim, padded, row_of(problem.v), rows);
      float* HWY_RESTRICT values = packed.ValueTile(head, tile);
      for (size_t column = 0; column < padded; column += kPanel) {
        const size_t width = std::min(kPanel, padded - column);
        for (size_t n = 0; n < 4; ++n) {
          float* HWY_RESTRICT to = values + column * kKeyTile + (key + n) * width;
          for (size_t i = 0; i < width; i += kLanes) {
            hn::Store(hn::Load(d, rows + n * padded + column + i), d, to + i);
          }
        }
      }
    }
  }
}

// Writes one query row into its group's panel: the factors' part times log2(e), then q times
// softmax_scale * log2(e).
HWY_INLINE void PackQueryRow(const float* HWY_RESTRICT phi_q_log2, size_t rank,
                             const float* HWY_RESTRICT q, size_t head_dim, float q_factor,
                             size_t row, Workspace& ws) {
  const size_t inner = rank + head_dim;
  float* HWY_RESTRICT to = ws.q.get() + row / kGroupRows * inner * kGroupRows + row % kGroupRows;
  for (size_t i = 0; i < rank; ++i) to[i * kGroupRows] = phi_q_log2[i];
  to += rank * kGroupRows;
  for (size_t i = 0; i < head_dim; ++i) to[i * kGroupRows] = q[i] * q_factor;
}

}  // namespace HWY_NAMESPACE
}  // namespace flashbias::cpu
HWY_AFTER_NAMESPACE();

#endif
