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
// where the hardware does not look ahead, and waiting for them would take a third of the time.
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

// Inner dimension of the score product: rank columns of the factors, then head_dim columns.
HWY_INLINE size_t InnerDim(const AttentionProblem& problem) {
  return (problem.bias_kind == BiasKind::kLowRank ? problem.low_rank.rank : 0) + problem.head_dim;
}

// Packs key rows [begin, begin + count) of the sequence, zero-padded to kKeyTile, transposed. The
// factors of a low-rank bias are taken relative to the tile's middle key: softmax does not see the
// difference (it goes into a per-row constant), and it stays exact where the factors are large, as
// positions are.
HWY_INLINE void PackKeys(const AttentionProblem& problem, const Sequence& sequence, int kv_head,
                         int q_head, int64_t begin, size_t count, Workspace& ws) {
  const size_t head_dim = problem.head_dim;
  const size_t rank = InnerDim(problem) - head_dim;
  const size_t inner = rank + head_dim;
  const size_t stride = RoundUp(inner, kLanes);
  const Floats d;
  if (rank > 0) {
    const int64_t mid = sequence.kv_begin + begin + static_cast<int64_t>(count / 2);
    LoadRow(problem.low_rank.dtype, PhiKeyRow(problem.low_rank, mid, q_head), rank,
            ws.row_buffer.get());
    std::copy_n(ws.row_buffer.get(), rank, ws.phi_mid.get());
  }
  for (size_t c = 0; c < count; ++c) {
    const int64_t row = sequence.kv_begin + begin + static_cast<int64_t>(c);
    float* HWY_RESTRICT to = ws.key_rows.get() + c * stride;
    const char* key =
        RowAddress(problem.k, problem.dtype, row, problem.num_kv_heads, kv_head, problem.head_dim);
    if (rank == 0) {
      LoadRow(problem.dtype, key, head_dim, to);
      continue;
    }
    LoadRow(problem.low_rank.dtype, PhiKeyRow(problem.low_rank, row, q_head), rank,
            ws.row_buffer.get());
    for (size_t i = 0; i < rank; ++i) to[i] = ws.row_buffer[i] - ws.phi_mid[i];
    LoadRow(problem.dtype, key, head_dim, ws.row_buffer.get());
    std::copy_n(ws.row_buffer.get(), head_dim, to + rank);
    std::fill(to + inner, to + stride, 0.0f);
  }
  for (size_t i = count * stride; i < kKeyTile * stride; i += kLanes) {
    hn::Store(hn::Zero(d), d, ws.key_rows.get() + i);
  }
  for (size_t key = 0; key < kKeyTile; key += 4) {
    const size_t panel = key / kPanel;
    float* HWY_RESTRICT to = ws.keys.get() + panel * inner * kPanel + key % kPanel;
    const float* HWY_RESTRICT from = ws.key_rows.get() + key * stride;
    size_t i = 0;
    for (; i + 4 <= inner; i += 4) Transpose4x4(from + i, stride, to + i * kPanel, kPanel);
    for (; i < inner; ++i) {
      for (size_t n = 0; n < 4; ++n) to[i * kPanel + n] = from[n * stride + i];
    }
  }
}

// Packs value rows [begin, begin + count): panels of kPanel columns, the last one of kLanes where
// the padded head_dim is an odd number of vectors.
HWY_INLINE void PackValues(const AttentionProblem& problem, const Sequence& sequence, int kv_head,
                           int64_t begin, size_t count, Workspace& ws) {
  const Floats d;
  const size_t head_dim = problem.head_dim;
  const size_t padded = RoundUp(head_dim, kLanes);
  for (size_t c = 0; c < count; ++c) {
    const char* from =
        RowAddress(problem.v, problem.dtype, sequence.kv_begin + begin + static_cast<int64_t>(c),
                   problem.num_kv_heads, kv_head, problem.head_dim);
    LoadRow(problem.dtype, from, head_dim, ws.row_buffer.get());
    for (size_t column = 0; column < padded; column += kPanel) {
      const size_t width = std::min(kPanel, padded - column);
      float* HWY_RESTRICT to = ws.values.get() + column * kKeyTile + c * width;
      for (size_t i = 0; i < width; i += kLanes) {
        hn::Store(hn::Load(d, ws.row_buffer.get() + column + i), d, to + i);
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
