// A consumer warpgroup: 64 query rows of each work item against the tiles that the producer loads.
//
// For each tile: scores by wgmma (ALiBi's ramp as one more 16-deep slice), softmax in registers,
// values by wgmma. One consumer at a time holds the exponential unit: a token goes
// round through named barriers and is handed on half-way, so that the others' tensor instructions
// run under it.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_CONSUMER_CUH_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_CONSUMER_CUH_

#include "kernels/cuda/hopper/epilogue.cuh"
#include "kernels/cuda/hopper/kernel_params.h"
#include "kernels/cuda/hopper/limits.cuh"
#include "kernels/cuda/hopper/softmax.cuh"

namespace flashbias::cuda::hopper {

template <typename Element, int kHeadDim>
class Consumer {
 public:
  using L = Layout<kHeadDim>;
  using Mma = Wgmma<Element>;

  // `index` is the warpgroup's among the block's consumers.
  __device__ Consumer(const KernelParams& params, int index) : params_(params), index_(index) {}

  __device__ __forceinline__ void Run() {
    if (index_ == L::kConsumers - 1) PassToken();
    for (;;) {
      MbarrierWait(L::ItemFull(base_, item_.slot()), item_.parity());
      const ItemInfo& info = *L::Info(shared_, item_.slot());
      if (info.sequence < 0) break;
      Compute(info);
      item_.Advance();
    }
    if (index_ == 0) TakeToken();
  }

 private:
  using RowSums = hopper::RowSums<kHeadDim>;
  static constexpr int kOutputs = RowSums::kOutputs;

  __device__ static int LaneRow() {
    return threadIdx.x % kWarpgroupThreads / 32 * 16 + threadIdx.x % 32 / 4;
  }

  __device__ void TakeToken() { NamedBarrierSync(TokenBarrier(index_), 2 * kWarpgroupThreads); }
  __device__ void PassToken() {
    const int to = index_ == L::kConsumers - 1 ? 0 : index_ + 1;
    NamedBarrierArrive(TokenBarrier(to), 2 * kWarpgroupThreads);
  }

  __device__ void ReleaseTile() {
    __syncwarp();  // every lane has read what the producer may now overwrite
    if (threadIdx.x % 32 == 0) MbarrierArrive(L::TileEmpty(base_, tile_.slot()));
    tile_.Advance();
  }

  // One work item.
  __device__ __forceinline__ void Compute(const ItemInfo& info) {
    const int row = info.q_begin + index_ * kRowsPerConsumer + LaneRow();  // and row + 8
    TileBounds* const bounds = L::Bounds(shared_, index_);
    // All warps have left the last item before its bounds go.
    JoinConsumer(index_);
    if (threadIdx.x % kWarpgroupThreads == 0) *bounds = MakeBounds(info);
    FillRampQueries(info.slope_in_scores);
    MbarrierWait(L::QueriesFull(base_, item_.slot()), item_.parity());
    *L::Rows(shared_, index_) = MakeLaneRows(info, row);
    JoinConsumer(index_);

    RowSums rows;
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) rows.output[i] = 0;
    rows.max0 = rows.max1 = kNoMaximum;
    rows.sum0 = rows.sum1 = 0;
    int computed = 0;

    for (;;) {
      MbarrierWait(L::TileFull(base_, tile_.slot()), tile_.parity());
      const int tile = L::Tiles(shared_)[tile_.slot()];
      if (tile == kEndOfItem) break;
      const bool needed = ComputeTile(info, *bounds, row, tile, rows);
      ReleaseTile();
      if (!needed) continue;
      ++computed;
      if (computed == bounds->next_check) {
        UpdateLimits<kHeadDim>(shared_, index_, item_.slot(), tile, computed,
                               rows.max0 + __log2f(SumOfRow(rows, 0)),
                               rows.max1 + __log2f(SumOfRow(rows, 1)));
      }
    }
    ReleaseTile();

    StoreRows<Element, kHeadDim>(info, row, rows);
    if (threadIdx.x % kWarpgroupThreads == 0) CountTiles(info, *bounds, computed);
    __syncwarp();
    if (threadIdx.x % 32 == 0) MbarrierArrive(L::ItemEmpty(base_, item_.slot()));
  }

  __device__ TileBounds MakeBounds(const ItemInfo& info) const {
    const int first_row = info.q_begin + index_ * kRowsPerConsumer;
    const VisibleKeys first = KeysOfRow(info, first_row);
    const VisibleKeys last = KeysOfRow(info, first_row + kRowsPerConsumer - 1);
    TileBounds bounds{.plain_first = last.first,
                      .plain_last = min(first.last, first.position) - (kKeyTileKeys - 1),
                      .next_check = FirstCheck(info),
                      .left_limit = -kNoLimit,
                      .right_limit = kNoLimit,
                      .first_key = first.first,
                      .last_key = last.last,
                      .interior_begin = last.first,
                      .interior_end = first.last,
                      .first_row = first.position,
                      .last_row = last.position};
    if (first_row >= info.q_len) {
      bounds.last_key = -1;
      bounds.plain_last = bounds.plain_first - 1;
    }
    return bounds;
  }

  // After a quarter of the least walk that logits near zero would take: no sooner can anything be
  // left out, and the pass over the keys has until then to end.
  __device__ static int FirstCheck(const ItemInfo& info) {
    if (info.norms_before == nullptr) return kNoLimit;
    const float tiles = -info.log2_budget * info.keys_per_log2 / (4 * kKeyTileKeys);
    return static_cast<int>(fminf(fmaxf(tiles, 1.0f), static_cast<float>(kNoLimit)));
  }

  __device__ LaneRows MakeLaneRows(const ItemInfo& info, int row) const {
    LaneRows rows{.left0 = ReferenceOfRow(info, KeysOfRow(info, row)).left,
                  .left1 = ReferenceOfRow(info, KeysOfRow(info, row + 8)).left};
    if (info.norms_before != nullptr) {
      const char* const queries =
          shared_ + L::kQueryOffset + (item_.slot() * L::kConsumers + index_) * L::kQueryBytes;
      const float reach = info.scale_log2 * (1.0f + 1e-4f);
      rows.reach0 = reach * QueryNorm<Element, kHeadDim>(queries, LaneRow());
      rows.reach1 = reach * QueryNorm<Element, kHeadDim>(queries, LaneRow() + 8);
    }
    return rows;
  }

  // The query side of the ramp: in every row the slope in three parts of the element type, against
  // three columns that count the tile's keys (0 .. 127, exact), and the same negated.
  __device__ void FillRampQueries(float slope) {
    const Element high = static_cast<Element>(slope);
    const float after_high = slope - static_cast<float>(high);
    const Element middle = static_cast<Element>(after_high);
    const float low = after_high - static_cast<float>(middle);
    const uint32_t first = PackPair<Element>(static_cast<float>(high), static_cast<float>(middle));
    const uint32_t second = PackPair<Element>(low, 0);
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

  // False: no row needs the tile, and only the token went round.
  __device__ __forceinline__ bool ComputeTile(const ItemInfo& info, const TileBounds& bounds,
                                              int row, int tile, RowSums& rows) {
    if (tile >= bounds.plain_first && tile <= bounds.plain_last) {
      ComputePlainTile(info, tile, rows);
      return true;
    }
    const int tile_last = tile + kKeyTileKeys - 1;
    if (tile > bounds.last_key || tile_last < bounds.first_key || tile_last <= bounds.left_limit ||
        tile >= bounds.right_limit) {
      TakeToken();
      PassToken();
      return false;
    }
    ComputeAnyTile(info, bounds, row, tile, rows);
    return true;
  }

  // A tile on the left of all rows that every row sees whole.
  __device__ __forceinline__ void ComputePlainTile(const ItemInfo& info, int tile, RowSums& rows) {
    float scores[kScores];
    ComputeScores(scores, false);
    const LaneRows* const lane = L::Rows(shared_, index_);
    const float slope_log2 = info.slope_log2;
    const float bias0 = -slope_log2 * static_cast<float>(lane->left0 - tile);
    const float bias1 = -slope_log2 * static_cast<float>(lane->left1 - tile);
    const float scores_per_log2 = info.scores_per_log2;
    if (AnyAbove(scores, (rows.max0 + kLazyGrowth - bias0) * scores_per_log2,
                 (rows.max1 + kLazyGrowth - bias1) * scores_per_log2)) {
      RaiseMaxima(info, scores, bias0, bias1, rows);
    }
    FinishTile(info, scores, bias0, bias1, rows);
  }

  __device__ __forceinline__ void ComputeAnyTile(const ItemInfo& info, const TileBounds& bounds,
                                                 int row, int tile, RowSums& rows) {
    const int tile_last = tile + kKeyTileKeys - 1;
    // With a causal mask what is on the right is masked, and needs no bias of its own.
    const bool two_sided = info.causal == 0 && tile_last > bounds.first_row;
    const bool on_right = two_sided && tile >= bounds.last_row;
    const bool bends = two_sided && !on_right;
    float scores[kScores];
    ComputeScores(scores, on_right);
    if (bends) BendRamp(scores, info, row, tile);
    if (tile < bounds.interior_begin || tile_last > bounds.interior_end) {
      ApplyMask(scores, info, row, tile);
    }
    const float slope_log2 = info.slope_log2;
    float bias0;
    float bias1;
    if (on_right) {
      const int right0 = ReferenceOfRow(info, KeysOfRow(info, row)).right;
      const int right1 = ReferenceOfRow(info, KeysOfRow(info, row + 8)).right;
      bias0 = slope_log2 * static_cast<float>(right0 - tile);
      bias1 = slope_log2 * static_cast<float>(right1 - tile);
    } else {
      const LaneRows* const lane = L::Rows(shared_, index_);
      bias0 = -slope_log2 * static_cast<float>(lane->left0 - tile);
      bias1 = -slope_log2 * static_cast<float>(lane->left1 - tile);
    }
    // Mostly the item's first tile, which has all to find out.
    RaiseMaxima(info, scores, bias0, bias1, rows);
    FinishTile(info, scores, bias0, bias1, rows);
  }

  // Makes the tile's largest logits the rows' maxima where they are larger.
  __device__ __forceinline__ void RaiseMaxima(const ItemInfo& info, const float (&scores)[kScores],
                                              float bias0, float bias1, RowSums& rows) {
    const float scale_log2 = info.scale_log2;
    float highest0;
    float highest1;
    RowMaxima(scores, &highest0, &highest1);
    highest0 = fmaxf(rows.max0, fmaf(highest0, scale_log2, bias0));
    highest1 = fmaxf(rows.max1, fmaf(highest1, scale_log2, bias1));
    Rescale(Exp2(rows.max0 - highest0), Exp2(rows.max1 - highest1), rows);
    rows.max0 = highest0;
    rows.max1 = highest1;
  }

  // From scores to the rows' new sums and output. A row's bias is what its scores lack.
  __device__ __forceinline__ void FinishTile(const ItemInfo& info, float (&scores)[kScores],
                                             float bias0, float bias1, RowSums& rows) {
    const float scale_log2 = info.scale_log2;
    uint32_t probabilities[kProbabilities];
    TakeToken();
    Exponentials<Element, !L::kSumsByOnes>(scores, probabilities, scale_log2, bias0 - rows.max0,
                                           bias1 - rows.max1, &rows.sum0, &rows.sum1,
                                           [this] { PassToken(); });
    AddValues(rows.output, probabilities);
  }

  __device__ __forceinline__ void ComputeScores(float (&scores)[kScores], bool on_right) {
    const uint32_t queries =
        base_ + L::kQueryOffset + (item_.slot() * L::kConsumers + index_) * L::kQueryBytes;
    const uint32_t keys = base_ + L::kKeyOffset + tile_.slot() * L::kTileBytes;
    const uint64_t a = MatrixDescriptor<L::kGroupBytes, L::kSwizzle>(queries, 16);
    const uint64_t b = MatrixDescriptor<L::kGroupBytes, L::kSwizzle>(keys, 16);
    const uint64_t counts = MatrixDescriptor<256, Swizzle::k32Bytes>(base_ + L::kRampOffset, 16);
    const uint64_t ramp = MatrixDescriptor<256, Swizzle::k32Bytes>(
        base_ + L::kRampQueryOffset + (2 * index_ + (on_right ? 1 : 0)) * L::kRampQueryBytes, 16);
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
    const uint32_t values = base_ + L::kValueOffset + tile_.slot() * L::kTileBytes;
    // The panel after the values is the block's one panel of ones.
    const uint32_t leading = L::kSumsByOnes ? base_ + L::kOnesOffset - values : L::kKeyPanelBytes;
    const uint64_t b = MatrixDescriptor<L::kGroupBytes, L::kSwizzle>(values, leading);
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

  __device__ static __forceinline__ void Rescale(float factor0, float factor1, RowSums& rows) {
    rows.sum0 *= factor0;
    rows.sum1 *= factor1;
#pragma unroll
    for (int i = 0; i < kOutputs; i += 4) {
      rows.output[i] *= factor0;
      rows.output[i + 1] *= factor0;
      rows.output[i + 2] *= factor1;
      rows.output[i + 3] *= factor1;
    }
  }

  __device__ void CountTiles(const ItemInfo& info, const TileBounds& bounds, int computed) {
    if (bounds.first_key > bounds.last_key) return;
    const int admitted = bounds.last_key / kKeyTileKeys - bounds.first_key / kKeyTileKeys + 1;
    TileCounts* const counts = &params_.plan.tile_counts[info.problem];
    atomicAdd(&counts->computed, static_cast<unsigned long long>(computed));
    if (admitted > computed) {
      atomicAdd(&counts->skipped, static_cast<unsigned long long>(admitted - computed));
    }
  }

  const KernelParams& params_;
  const int index_;
  char* const shared_ = SharedMemory();
  const uint32_t base_ = SharedAddress(SharedMemory());
  RingPosition<L::kBuffers> item_;
  RingPosition<L::kStages> tile_;
};

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_CONSUMER_CUH_
