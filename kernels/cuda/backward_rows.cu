#include "kernels/cuda/backward_rows.h"

#include <cfloat>

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/key_norms.h"
#include "kernels/cuda/portable/query_row.cuh"
#include "kernels/cuda/softmax_math.cuh"

namespace flashbias::cuda {
namespace {

// A block reads 64 rows of as many heads as a warp reads in one go, 16 bytes a lane: query rows of
// q, o and d_o, or (fp16) value rows.
constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kRowsPerWarp = kLimitRows / kWarps;
constexpr int kMaxSliceHeads = 32;
constexpr int kNowhere = 1 << 30;  // a limit beyond every key

// More than the rounding of a sum of 128 squares.
constexpr float kRoundUp = 1.0f + 2e-5f;

__host__ __device__ constexpr int CeilDiv(int a, int b) { return (a + b - 1) / b; }

// What limits need of a row.
struct RowBound {
  float reach;  // |scale q| in log2 a unit of |k|, rounded up
  float lse;    // as RowStats
  int left;     // ALiBi's distances are left - key, or key - right
  int right;
};

// What a lane reads of a row.
struct RowPiece {
  uint4 q;
  uint4 o;
  uint4 d_o;
  float lse;
};

// Eight elements of a row from `column` on. Rows that are packed are padded with zeros.
__device__ uint4 LoadPiece(const void* tensor, int64_t row_begin, int column) {
  return __ldg(
      reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(tensor) + row_begin + column));
}

// The same of a row of any alignment and head_dim, zero from head_dim on.
__device__ uint4 LoadUnalignedPiece(const void* tensor, int64_t row_begin, int column,
                                    int head_dim) {
  const auto* const at = static_cast<const unsigned char*>(tensor) + 2 * (row_begin + column);
  uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (column + i < head_dim) words[i / 2] |= LoadUnaligned16(at + 2 * i) << (i % 2 * 16);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

template <typename T>
__device__ float Dot(const uint4& a, const uint4& b) {
  const uint32_t first[4] = {a.x, a.y, a.z, a.w};
  const uint32_t second[4] = {b.x, b.y, b.z, b.w};
  float even = 0;
  float odd = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 x = UnpackPair<T>(first[i]);
    const float2 y = UnpackPair<T>(second[i]);
    even = fmaf(x.x, y.x, even);
    odd = fmaf(x.y, y.y, odd);
  }
  return even + odd;
}

__device__ float SumOfLanes(float value, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

// Norms order as their bits; NaN counts as infinity.
__device__ void RaiseMagnitude(uint32_t* to, float square) {
  const float norm = square <= FLT_MAX ? sqrtf(square) * kRoundUp : INFINITY;
  if (norm > 0) atomicMax(to, __float_as_uint(norm));
}

__device__ RowsJob JobOfBlock(const BackwardRowsParams& rows, int block) {
  int first = 0;
  int last = rows.num_jobs - 1;
  while (first < last) {
    const int middle = (first + last + 1) / 2;
    if (rows.jobs[middle].first_block <= block) {
      first = middle;
    } else {
      last = middle - 1;
    }
  }
  return rows.jobs[first];
}

// Whether none of the row's keys at or before `key` matter: of those |k| is at most `norm`.
__device__ bool IsNegligible(const RowBound& row, float norm, int distance, float slope_log2,
                             float budget) {
  if (row.lse == INFINITY) return true;  // the row has no keys at all
  // Slack as in kernels/skip_table.h.
  const float largest = fmaf(row.reach, norm * (1.0f + 1e-4f), 5e-3f);
  return distance >= 0 && largest - slope_log2 * static_cast<float>(distance) - row.lse <= budget;
}

// The limits of one head's 64 rows; a warp, two rows a lane. What is further out can only be more
// negligible, so the border is found by bisection.
__device__ KeyLimits FindLimits(const SequenceParams& s, const RowBound (&rows)[2], int kv_head,
                                float slope, int first_row, int last_row) {
  KeyLimits limits{-kNowhere, kNowhere};
  const float slope_log2 = portable::ToFinite(slope * kLog2E);
  const float budget = (s.log_eps_per_side + logf(-expm1f(-slope))) * kLog2E;
  if (!(slope > 0) || !isfinite(budget)) return limits;
  const float* const before = s.key_norms + static_cast<int64_t>(kv_head) * s.norm_tiles;
  const float* const after = before + static_cast<int64_t>(s.num_kv_heads) * s.norm_tiles;
  const portable::KeyRange keys = portable::AdmittedKeys(s, first_row, last_row);
  if (keys.empty()) return limits;

  // Tiles below `few` are negligible, those from `many` on are not known to be.
  int few = 0;
  int many = s.norm_tiles;
  while (few < many) {
    const int tile = (few + many) / 2;
    const int last_key = (tile + 1) * kNormTileKeys - 1;
    const float norm = before[tile];
    const bool negligible =
        IsNegligible(rows[0], norm, rows[0].left - last_key, slope_log2, budget) &&
        IsNegligible(rows[1], norm, rows[1].left - last_key, slope_log2, budget);
    if (__all_sync(~0u, negligible)) {
      few = tile + 1;
    } else {
      many = tile;
    }
  }
  if (few > 0) limits.left = few * kNormTileKeys - 1;
  if (s.causal != 0) return limits;

  few = 0;  // tiles from s.norm_tiles - few on are negligible
  many = s.norm_tiles;
  while (few < many) {
    const int tile = s.norm_tiles - 1 - (few + many) / 2;
    const int first_key = tile * kNormTileKeys;
    const float norm = after[tile];
    const bool negligible =
        IsNegligible(rows[0], norm, first_key - rows[0].right, slope_log2, budget) &&
        IsNegligible(rows[1], norm, first_key - rows[1].right, slope_log2, budget);
    if (__all_sync(~0u, negligible)) {
      few = s.norm_tiles - tile;
    } else {
      many = s.norm_tiles - 1 - tile;
    }
  }
  if (few > 0) limits.right = (s.norm_tiles - few) * kNormTileKeys;
  return limits;
}

// Tiles of 64 keys that the rows see, and those of them that the limits leave.
__device__ void CountTiles(const SequenceParams& s, int first_row, int last_row, KeyLimits limits,
                           TileCounts* counts) {
  const portable::KeyRange keys = portable::AdmittedKeys(s, first_row, last_row);
  if (keys.empty()) return;
  const int admitted = keys.last / kNormTileKeys - keys.first / kNormTileKeys + 1;
  const int first = max(keys.first, limits.left < 0 ? 0 : limits.left + 1);
  const int last = min(keys.last, limits.right - 1);
  const int computed = first > last ? 0 : last / kNormTileKeys - first / kNormTileKeys + 1;
  atomicAdd(&counts->computed, static_cast<unsigned long long>(computed));
  if (admitted > computed) {
    atomicAdd(&counts->skipped, static_cast<unsigned long long>(admitted - computed));
  }
}

template <typename T>
__device__ void QueryRows(const BackwardParams& params, const BackwardSequence& sequence, int tile,
                          int slice_heads, int first_head, int heads,
                          RowBound (*bounds)[kLimitRows]) {
  const SequenceParams& s = sequence.forward;
  const int lanes = 32 / slice_heads;  // of a head
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int head_in_slice = lane / lanes;
  const int column = lane % lanes * 8;
  const bool active = head_in_slice < heads && column < s.head_dim;
  const int head = first_head + min(head_in_slice, heads - 1);
  const int group = s.num_q_heads / s.num_kv_heads;
  const float slope = s.slopes != nullptr ? s.slopes[head] : 0.0f;
  const bool aligned = s.head_dim % 8 == 0 && IsAligned(sequence.o, 16);
  const bool bounded = sequence.limits != nullptr;
  float largest = 0;  // |d_o|^2
  float largest_o = 0;

  // All loads before anything is done with them.
  const int warp_row = tile * kLimitRows + warp * kRowsPerWarp;
  RowPiece pieces[kRowsPerWarp];
#pragma unroll
  for (int n = 0; n < kRowsPerWarp; ++n) {
    const uint4 zero = make_uint4(0, 0, 0, 0);
    const bool exists = warp_row + n < s.q_len;
    const int64_t vector = int64_t{exists ? warp_row + n : 0} * s.num_q_heads + head;
    const int64_t begin = vector * s.q_head_stride;
    RowPiece& piece = pieces[n];
    piece.d_o = exists && active ? LoadPiece(sequence.d_o, begin, column) : zero;
    piece.q = exists && active && bounded ? LoadPiece(s.q, begin, column) : zero;
    piece.o =
        exists && active && aligned ? LoadPiece(sequence.o, vector * s.head_dim, column) : zero;
    piece.lse = exists ? __ldg(s.lse + vector) : -INFINITY;
  }
  if (!aligned) {
    for (int n = 0; n < kRowsPerWarp; ++n) {
      const int64_t vector = int64_t{warp_row + n} * s.num_q_heads + head;
      if (warp_row + n < s.q_len && active) {
        pieces[n].o = LoadUnalignedPiece(sequence.o, vector * s.head_dim, column, s.head_dim);
      }
    }
  }

#pragma unroll
  for (int n = 0; n < kRowsPerWarp; ++n) {
    const int row_in_tile = warp * kRowsPerWarp + n;
    const int row = warp_row + n;
    const auto& [q, o, d_o, lse] = pieces[n];
    const float delta = SumOfLanes(Dot<T>(o, d_o), lanes);
    const float d_o_square = SumOfLanes(Dot<T>(d_o, d_o), lanes);
    largest = fmaxf(largest, d_o_square <= FLT_MAX ? d_o_square : INFINITY);
    const float o_square = SumOfLanes(Dot<T>(o, o), lanes);
    largest_o = fmaxf(largest_o, o_square <= FLT_MAX ? o_square : INFINITY);
    const float q_square = bounded ? SumOfLanes(Dot<T>(q, q), lanes) : 0.0f;

    const portable::KeyRange keys = portable::AdmittedKeys(s, row, row);
    const bool has_keys = row < s.q_len && !keys.empty() && lse != -INFINITY;
    float relative = INFINITY;
    RowBound bound{0, INFINITY, 0, 0};
    if (has_keys) {
      relative =
          static_cast<float>((lse - portable::ReferenceBias(s, keys, row, slope)) * kExactLog2E);
      const int position = row + s.diagonal;
      const int64_t distance =
          llabs(int64_t{position} - portable::ReferenceKey(keys, position, slope));
      bound = {.reach = fabsf(s.softmax_scale) * kLog2E *
                        sqrtf(fmaf(q_square, kRoundUp, kVanishedSquares)) * kRoundUp,
               .lse = relative,
               .left = static_cast<int>(max(position - distance, int64_t{kNoWindow})),
               .right = static_cast<int>(min(position + distance, int64_t{INT32_MAX}))};
    }
    if (lane % lanes == 0 && head_in_slice < heads) {
      sequence.rows[static_cast<int64_t>(head) * sequence.row_stride + row] = {
          relative, has_keys ? delta : 0.0f};
      bounds[head_in_slice][row_in_tile] = bound;
    }
  }
  if (sequence.magnitudes != nullptr && lane % lanes == 0 && head_in_slice < heads) {
    RaiseMagnitude(&sequence.magnitudes[2 * (head / group)], largest);
    RaiseMagnitude(&sequence.magnitudes[2 * (head / group) + 1], largest_o);
  }
  __syncthreads();

  const int first_row = tile * kLimitRows;
  if (first_row >= s.q_len) return;
  const int last_row = min(first_row + kLimitRows, s.q_len) - 1;
  for (int n = warp; n < heads; n += kWarps) {
    KeyLimits limits{-kNowhere, kNowhere};
    if (bounded) {
      const RowBound rows[2] = {bounds[n][lane], bounds[n][lane + 32]};
      const float of_head = s.slopes != nullptr ? s.slopes[first_head + n] : 0.0f;
      limits = FindLimits(s, rows, (first_head + n) / group, of_head, first_row, last_row);
    }
    if (lane != 0) continue;
    if (bounded) {
      const int tiles = sequence.row_stride / kLimitRows;
      sequence.limits[static_cast<int64_t>(first_head + n) * tiles + tile] = limits;
      int32_t* const reach = sequence.reach + 2 * (first_head + n);
      const int64_t left = int64_t{last_row} + s.diagonal - limits.left;
      const int64_t right = limits.right - (int64_t{first_row} + s.diagonal);
      atomicMax(&reach[0], static_cast<int>(min(max(left, int64_t{0}), int64_t{INT32_MAX})));
      atomicMax(&reach[1], static_cast<int>(min(max(right, int64_t{0}), int64_t{INT32_MAX})));
    }
    CountTiles(s, first_row, last_row, limits, &params.tile_counts[s.problem]);
  }
}

// fp16: the largest |v|.
template <typename T>
__device__ void ValueRows(const BackwardSequence& sequence, int tile, int slice_heads,
                          int first_head, int heads) {
  const SequenceParams& s = sequence.forward;
  const int lanes = 32 / slice_heads;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int head_in_slice = lane / lanes;
  const int column = lane % lanes * 8;
  const bool active = head_in_slice < heads && column < s.head_dim;
  const int head = first_head + min(head_in_slice, heads - 1);
  float largest = 0;
  uint4 pieces[kRowsPerWarp];
#pragma unroll
  for (int n = 0; n < kRowsPerWarp; ++n) {
    const int row = tile * kLimitRows + warp * kRowsPerWarp + n;
    const int64_t vector = int64_t{row} * s.num_kv_heads + head;
    pieces[n] = row < s.kv_len && active ? LoadPiece(s.v, vector * s.kv_head_stride, column)
                                         : make_uint4(0, 0, 0, 0);
  }
#pragma unroll
  for (const uint4& v : pieces) {
    const float square = SumOfLanes(Dot<T>(v, v), lanes);
    largest = fmaxf(largest, square <= FLT_MAX ? square : INFINITY);
  }
  if (lane % lanes == 0 && head_in_slice < heads) {
    RaiseMagnitude(&sequence.magnitudes[2 * head + 1], largest);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    BackwardRowsKernel(const __grid_constant__ BackwardParams params,
                       const __grid_constant__ BackwardRowsParams rows) {
  __shared__ RowBound bounds[kMaxSliceHeads][kLimitRows];
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
  const RowsJob job = JobOfBlock(rows, static_cast<int>(blockIdx.x));
  const BackwardSequence& sequence = params.sequences[job.sequence];
  const SequenceParams& s = sequence.forward;
  const int block = static_cast<int>(blockIdx.x) - job.first_block;
  const int slice_heads = job.slice_heads;
  const int q_slices = CeilDiv(s.num_q_heads, slice_heads);
  const int q_blocks = sequence.row_stride / kLimitRows * q_slices;
  if (block < q_blocks) {
    const int first_head = block % q_slices * slice_heads;
    QueryRows<T>(params, sequence, block / q_slices, slice_heads, first_head,
                 min(slice_heads, s.num_q_heads - first_head), bounds);
  } else {
    const int kv_slices = CeilDiv(s.num_kv_heads, slice_heads);
    const int first_head = (block - q_blocks) % kv_slices * slice_heads;
    ValueRows<T>(sequence, (block - q_blocks) / kv_slices, slice_heads, first_head,
                 min(slice_heads, s.num_kv_heads - first_head));
  }
}

}  // namespace

int32_t BackwardRowsBlocks(const SequenceParams& sequence, DType dtype) {
  if (sequence.q_len == 0) return 0;
  const int slice_heads = KeyNormSliceHeads(sequence.head_dim);
  const auto q_tiles = static_cast<int>(BackwardRowStride(sequence.q_len) / kLimitRows);
  int blocks = q_tiles * CeilDiv(sequence.num_q_heads, slice_heads);
  if (dtype == DType::kFloat16) {
    blocks += CeilDiv(sequence.kv_len, kLimitRows) * CeilDiv(sequence.num_kv_heads, slice_heads);
  }
  return blocks;
}

cudaError_t LaunchBackwardRows(const BackwardParams& params, const BackwardRowsParams& rows,
                               DType dtype, cudaStream_t stream) {
  if (rows.num_blocks == 0) return cudaSuccess;
  if (dtype == DType::kFloat16) {
    BackwardRowsKernel<__half><<<rows.num_blocks, kThreads, 0, stream>>>(params, rows);
  } else {
    BackwardRowsKernel<__nv_bfloat16><<<rows.num_blocks, kThreads, 0, stream>>>(params, rows);
  }
  return cudaGetLastError();
}

}  // namespace flashbias::cuda
