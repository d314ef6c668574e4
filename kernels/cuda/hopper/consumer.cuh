// A consumer warpgroup: 64 query rows of each work item against the tiles that the producer loads.
//
// For each tile: scores by wgmma (ALiBi's ramp as one more 16-deep slice), softmax in registers,
// values by wgmma. One warpgroup at a time holds the exponential unit: a token goes round through
// named barriers and is handed on half-way, so that the others' tensor instructions run under it.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_CONSUMER_CUH_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_CONSUMER_CUH_

#include "kernels/cuda/hopper/limits.cuh"
#include "kernels/cuda/hopper/softmax.cuh"

namespace flashbias::cuda::hopper {

template <typename Element, int kHeadDim>
class Consumer {
 public:
  using L = Layout<kHeadDim>;
  using Mma = Wgmma<Element>;

  // `index` is the warpgroup's among the consumers.
  __device__ Consumer(const AttentionParams& params, char* shared, int index)
      : params_(params), shared_(shared), base_(SharedAddress(shared)), index_(index) {}

  __device__ __forceinline__ void Run() {
    if (index_ == L::kConsumers - 1) PassToken();
    for (;;) {
      MbarrierWait(L::QueryFull(base_, query_.slot), query_.parity);
      const ItemInfo& info = *L::Info(shared_, query_.slot);
      if (info.sequence < 0) break;
      Compute(info);
      query_.Advance();
    }
    if (index_ == 0) TakeToken();
  }

 private:
  static constexpr int kOutputs = L::kValueColumns / 2;  // a lane's

  __device__ int WarpRow() const { return threadIdx.x % kWarpgroupThreads / 32 * 16; }
  __device__ int LaneRow() const { return WarpRow() + threadIdx.x % 32 / 4; }

  __device__ void TakeToken() { NamedBarrierSync(kTokenBarrier + index_, 2 * kWarpgroupThreads); }
  __device__ void PassToken() {
    const int to = index_ == L::kConsumers - 1 ? 0 : index_ + 1;
    NamedBarrierArrive(kTokenBarrier + to, 2 * kWarpgroupThreads);
  }

  __device__ void ReleaseTile() {
    if (threadIdx.x % 32 == 0) MbarrierArrive(L::TileEmpty(base_, tile_.slot));
    tile_.Advance();
  }

  // One work item.
  __device__ __forceinline__ void Compute(const ItemInfo& info) {
    const int first_row = info.q_begin + index_ * kRowsPerConsumer;
    const int row = first_row + LaneRow();  // and row + 8
    TileBounds* const bounds = L::Bounds(shared_, index_);
    // All warps have left the last item before its bounds go.
    JoinConsumer(index_);
    if (threadIdx.x % kWarpgroupThreads == 0) *bounds = MakeBounds(info, first_row);
    FillRampQueries(info.slope_in_scores);
    JoinConsumer(index_);

    *L::LaneRows(shared_) = make_int2(ReferenceOfRow(info, KeysOfRow(info, row)).left,
                                      ReferenceOfRow(info, KeysOfRow(info, row + 8)).left);

    float output[kOutputs];
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) output[i] = 0;
    float max0 = kNoMaximum;
    float max1 = kNoMaximum;
    float sum0 = 0;  // of this lane's columns; unused where sums come from the ones
    float sum1 = 0;
    int computed = 0;

    for (;;) {
      MbarrierWait(L::TileFull(base_, tile_.slot), tile_.parity);
      const int tile = L::Tiles(shared_)[tile_.slot];
      if (tile == kEndOfItem) break;
      const TileBounds b = *bounds;
      const int tile_last = tile + kKeyTileKeys - 1;
      if (tile > b.last_key || tile_last < b.first_key || tile_last <= b.left_limit ||
          tile >= b.right_limit) {
        TakeToken();
        PassToken();
        ReleaseTile();
        continue;
      }
      const bool on_left = tile_last <= b.first_row;
      const bool on_right = !on_left && tile >= b.last_row;
      // With a causal mask what is on the right is masked, and needs no other bias.
      const bool bends = info.causal == 0 && !on_left && !on_right;

      float scores[kScores];
      ComputeScores(scores, on_right && info.causal == 0);
      if (bends || tile < b.interior_begin || tile_last > b.interior_end) {
        ApplyMask(scores, info, row, tile, bends);
      }

      const float scale_log2 = info.scale_log2;
      const float slope_log2 = info.slope_log2;
      float bias0;
      float bias1;
      if (on_right && info.causal == 0) {
        const int right0 = ReferenceOfRow(info, KeysOfRow(info, row)).right;
        const int right1 = ReferenceOfRow(info, KeysOfRow(info, row + 8)).right;
        bias0 = slope_log2 * static_cast<float>(right0 - tile);
        bias1 = slope_log2 * static_cast<float>(right1 - tile);
      } else {
        const int2 left = *L::LaneRows(shared_);
        bias0 = -slope_log2 * static_cast<float>(left.x - tile);
        bias1 = -slope_log2 * static_cast<float>(left.y - tile);
      }

      const float scores_per_log2 = info.scores_per_log2;
      if (AnyAbove(scores, (max0 + kLazyGrowth - bias0) * scores_per_log2,
                   (max1 + kLazyGrowth - bias1) * scores_per_log2)) {
        float highest0;
        float highest1;
        RowMaxima(scores, &highest0, &highest1);
        highest0 = fmaxf(max0, fmaf(highest0, scale_log2, bias0));
        highest1 = fmaxf(max1, fmaf(highest1, scale_log2, bias1));
        Rescale(output, &sum0, &sum1, Exp2(max0 - highest0), Exp2(max1 - highest1));
        max0 = highest0;
        max1 = highest1;
      }

      uint32_t probabilities[kProbabilities];
      TakeToken();
      Exponentials<Element, !L::kSumsByOnes>(scores, probabilities, scale_log2, bias0 - max0,
                                             bias1 - max1, &sum0, &sum1, [this] { PassToken(); });
      AddValues(output, probabilities);
      ReleaseTile();

      ++computed;
      // Powers of two: the sums hardly grow after the first few.
      if (info.norms_before != nullptr && (computed & (computed - 1)) == 0) {
        UpdateLimits<Element, kHeadDim>(shared_, index_, query_.slot, tile,
                                        max0 + __log2f(RowSum(output, sum0, 0)),
                                        max1 + __log2f(RowSum(output, sum1, 1)));
      }
    }
    // Nothing reads this item's queries after its last scores.
    if (threadIdx.x % 32 == 0) MbarrierArrive(L::TileEmpty(base_, tile_.slot));
    tile_.Advance();

    Store(info, row, output, max0, RowSum(output, sum0, 0), 0);
    Store(info, row + 8, output, max1, RowSum(output, sum1, 1), 1);
    if (threadIdx.x % kWarpgroupThreads == 0) CountTiles(info, *bounds, computed);
    if (threadIdx.x % 32 == 0) MbarrierArrive(L::QueryEmpty(base_, query_.slot));
  }

  __device__ TileBounds MakeBounds(const ItemInfo& info, int first_row) const {
    const int last_row = first_row + kRowsPerConsumer - 1;
    const AdmittedKeys first = KeysOfRow(info, first_row);
    const AdmittedKeys last = KeysOfRow(info, last_row);
    TileBounds bounds{.first_key = first.first,
                      .last_key = last.last,
                      .interior_begin = last.first,
                      .interior_end = first.last,
                      .first_row = first.position,
                      .last_row = last.position,
                      .left_limit = -kNoLimit,
                      .right_limit = kNoLimit};
    if (first_row >= info.q_len) bounds.last_key = bounds.first_key - 1;
    return bounds;
  }

  // The query side of the ramp: in every row the slope in three parts of the element type, against
  // three columns that count the tile's keys (0 .. 127, exact), and the same negated.
  __device__ void FillRampQueries(float slope) {
    const Element high = static_cast<Element>(slope);
    const float after_high = slope - static_cast<float>(high);
    const Element middle = static_cast<Element>(after_high);
    const float low = after_high - static_cast<float>(middle);
    const uint32_t first = PackTwo<Element>(static_cast<float>(high), static_cast<float>(middle));
    const uint32_t second = PackTwo<Element>(low, 0);
    // One of a row's two 16-byte halves a thread, exchanged as the 32-byte swizzle does.
    const int thread = threadIdx.x % kWarpgroupThreads;
    const bool holds_slope = thread % 2 == thread / 8 % 2;
    const uint4 half = holds_slope ? make_uint4(first, second, 0, 0) : make_uint4(0, 0, 0, 0);
    constexpr uint32_t kSigns = 0x80008000u;
    auto* const to =
        reinterpret_cast<uint4*>(shared_ + L::kRampQueryOffset + 2 * index_ * L::kRampQueryBytes);
    to[thread] = half;
    to[thread + kWarpgroupThreads] =
        make_uint4(half.x ^ kSigns, half.y ^ kSigns, half.z ^ kSigns, half.w ^ kSigns);
    FenceAsyncProxy();
  }

  __device__ __forceinline__ void ComputeScores(float (&scores)[kScores], bool on_right) {
    const uint32_t queries =
        base_ + L::kQueryOffset + (query_.slot * L::kConsumers + index_) * L::kQueryBytes;
    const uint32_t keys = base_ + L::kKeyOffset + tile_.slot * L::kTileBytes;
    const uint64_t a = MatrixDescriptor(queries, 16, L::kGroupBytes, L::kSwizzle);
    const uint64_t b = MatrixDescriptor(keys, 16, L::kGroupBytes, L::kSwizzle);
    const uint64_t counts = MatrixDescriptor(base_ + L::kRampOffset, 16, 256, Swizzle::k32Bytes);
    const uint64_t ramp = MatrixDescriptor(
        base_ + L::kRampQueryOffset + (2 * index_ + (on_right ? 1 : 0)) * L::kRampQueryBytes, 16,
        256, Swizzle::k32Bytes);
    constexpr int kStepsPerPanel = L::kPanelColumns / 16;
    WgmmaFence();
    Mma::SetScores(scores, a, b);
#pragma unroll
    for (int step = 1; step < kHeadDim / 16; ++step) {
      const int panel = step / kStepsPerPanel;
      const int within = step % kStepsPerPanel * 2;
      Mma::AddScores(scores, a + panel * (L::kQueryPanelBytes / 16) + within,
                     b + panel * (L::kKeyPanelBytes / 16) + within);
    }
    Mma::AddScores(scores, ramp, counts);
    WgmmaCommit();
    WgmmaWaitAll();
    Pin(scores);
  }

  __device__ __forceinline__ void AddValues(float (&output)[kOutputs],
                                            uint32_t (&probabilities)[kProbabilities]) {
    const uint32_t values = base_ + L::kValueOffset + tile_.slot * L::kTileBytes;
    // The panel after the values is the block's one panel of ones.
    const uint32_t leading = L::kSumsByOnes ? base_ + L::kOnesOffset - values : L::kKeyPanelBytes;
    const uint64_t b = MatrixDescriptor(values, leading, L::kGroupBytes, L::kSwizzle);
    constexpr int kStepUnits = 16 * L::kRowBytes / 16;
    Pin(output);
    Pin(probabilities);
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < kKeyTileKeys / 16; ++step) {
      const uint32_t a[4] = {probabilities[4 * step], probabilities[4 * step + 1],
                             probabilities[4 * step + 2], probabilities[4 * step + 3]};
      Mma::AddValues(output, a, b + step * kStepUnits);
    }
    WgmmaCommit();
    WgmmaWaitAll();
    Pin(output);
  }

  __device__ static __forceinline__ void Rescale(float (&output)[kOutputs], float* sum0,
                                                 float* sum1, float factor0, float factor1) {
    *sum0 *= factor0;
    *sum1 *= factor1;
#pragma unroll
    for (int i = 0; i < kOutputs; i += 4) {
      output[i] *= factor0;
      output[i + 1] *= factor0;
      output[i + 2] *= factor1;
      output[i + 3] *= factor1;
    }
  }

  __device__ static float RowSum(const float (&output)[kOutputs], float lane_sum, int half) {
    if constexpr (L::kSumsByOnes) return output[kHeadDim / 2 + 2 * half];
    return QuadSum(lane_sum);
  }

  // Writes one row of the output and its log-sum-exp.
  __device__ __forceinline__ void Store(const ItemInfo& info, int row,
                                        const float (&output)[kOutputs], float maximum, float sum,
                                        int half) {
    if (row >= info.q_len) return;
    const AdmittedKeys keys = KeysOfRow(info, row);
    const bool has_keys = keys.first <= keys.last;
    const float factor = has_keys ? 1.0f / sum : 0.0f;
    const int64_t row_elements = static_cast<int64_t>(info.num_q_heads) * info.head_dim;
    auto* const to = static_cast<Element*>(info.o) + row * row_elements;
    const int lane_column = 2 * (threadIdx.x % 4);
    const bool in_pairs = info.head_dim % 2 == 0 && reinterpret_cast<uintptr_t>(info.o) % 4 == 0;
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      const int column = 8 * n + lane_column;
      const float low = has_keys ? output[4 * n + 2 * half] * factor : 0.0f;
      const float high = has_keys ? output[4 * n + 2 * half + 1] * factor : 0.0f;
      if (in_pairs) {
        if (column < info.head_dim) {
          *reinterpret_cast<uint32_t*>(to + column) = PackTwo<Element>(low, high);
        }
      } else {
        if (column < info.head_dim) to[column] = static_cast<Element>(low);
        if (column + 1 < info.head_dim) to[column + 1] = static_cast<Element>(high);
      }
    }
    if (info.lse != nullptr && threadIdx.x % 4 == 0) {
      float lse = -INFINITY;
      if (has_keys) {
        const Reference reference = ReferenceOfRow(info, keys);
        const double distance =
            fabs(static_cast<double>(row + info.exact_diagonal - reference.key));
        const double bias = info.slope == 0 ? 0.0 : -static_cast<double>(info.slope) * distance;
        constexpr double kLn2 = 0.69314718055994531;
        lse = static_cast<float>(
            (static_cast<double>(maximum) + log2(static_cast<double>(sum))) * kLn2 + bias);
      }
      info.lse[static_cast<int64_t>(row) * info.num_q_heads] = lse;
    }
  }

  __device__ void CountTiles(const ItemInfo& info, const TileBounds& bounds, int computed) {
    if (bounds.first_key > bounds.last_key) return;
    const int admitted = bounds.last_key / kKeyTileKeys - bounds.first_key / kKeyTileKeys + 1;
    TileCounts* const counts = &params_.tile_counts[info.problem];
    atomicAdd(&counts->computed, static_cast<unsigned long long>(computed));
    if (admitted > computed) {
      atomicAdd(&counts->skipped, static_cast<unsigned long long>(admitted - computed));
    }
  }

  const AttentionParams& params_;
  char* const shared_;
  const uint32_t base_;
  const int index_;
  RingPosition<L::kQueryBuffers> query_;
  RingPosition<L::kStages> tile_;
};

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_CONSUMER_CUH_
