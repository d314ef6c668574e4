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

  // Values have barriers of their own where scores run ahead of them.
  __device__ void AwaitValues() {
    if (L::kScoresAhead) MbarrierWait(L::ValuesFull(base_, tile_.slot()), tile_.parity());
  }
  // Scores are computed: the stage may get the keys of another tile.
  __device__ void ReleaseKeys(const RingPosition<L::kStages>& position) {
    if (L::kScoresAhead && threadIdx.x % 32 == 0) {
      MbarrierArrive(L::KeysEmpty(base_, position.slot()));
    }
  }
  // And of the values, or, where both are one, of the keys too.
  __device__ void ReleaseTile() {
    if (threadIdx.x % 32 == 0) MbarrierArrive(L::ValuesEmpty(base_, tile_.slot()));
    tile_.Advance();
  }
  // A tile that nothing was computed of. Only full stages may be released: an early arrival would
  // count for the tile before.
  __device__ void DropTile() {
    AwaitValues();
    __syncwarp();  // one lane releases for all
    ReleaseKeys(tile_);
    ReleaseTile();
  }

  // One work item.
  __device__ __forceinline__ void Compute(const ItemInfo& info) {
    const int row = info.q_begin + index_ * kRowsPerConsumer + LaneRow();  // and row + 8
    // Bounds and ramp are a buffer's: what they replace no warp has read since the last join.
    TileBounds* const bounds = L::Bounds(shared_, item_.slot(), index_);
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

    for (int tile = AwaitTile(tile_); tile != kEndOfItem; tile = next_tile_) {
      if (IsPlain(*bounds, tile)) {
        ComputePlainTiles(info, *bounds, tile, computed, rows);
      } else if (IsNeeded(*bounds, tile)) {
        ComputeCutTile(info, *bounds, row, tile, computed == 0, rows);
      } else {
        TakeToken();
        PassToken();
        next_tile_ = AwaitTile(tile_.Next());
        DropTile();
        continue;
      }
      ReleaseTile();
      ++computed;
      if (computed == bounds->next_check) {
        UpdateLimits<kHeadDim>(shared_, index_, item_.slot(), tile, computed, rows);
      }
    }
    DropTile();

    StoreRows<Element, kHeadDim>(info, row, rows);
    if (threadIdx.x % kWarpgroupThreads == 0) CountTiles(info, *bounds, computed);
    MbarrierArrive(L::ItemEmpty(base_, item_.slot()));
  }

  // The first key of the tile at that place of the ring, once it is there. Read by the lane that
  // will release the stage.
  __device__ int AwaitTile(const RingPosition<L::kStages>& position) {
    MbarrierWait(L::KeysFull(base_, position.slot()), position.parity());
    int tile = 0;
    if (threadIdx.x % 32 == 0) tile = L::Tiles(shared_)[position.slot()];
    return __shfl_sync(~0u, tile, 0);
  }

  __device__ TileBounds MakeBounds(const ItemInfo& info) const {
    const int first_row = info.q_begin + index_ * kRowsPerConsumer;
    const VisibleKeys first = KeysOfRow(info, first_row);
    const VisibleKeys last = KeysOfRow(info, first_row + kRowsPerConsumer - 1);
    TileBounds bounds{.plain_first = last.first,
                      .plain_last = min(first.last, first.position) - (kKeyTileKeys - 1),
                      .settled_before = -kNoLimit,
                      .next_check = FirstCheck(info),
                      .left_limit = -kNoLimit,
                      .right_limit = kNoLimit,
                      .first_key = first.first,
                      .last_key = last.last,
                      .interior_begin = last.first,
                      .interior_end = first.last,
                      .cut_first = info.causal != 0 && info.slope >= 0 ? last.first : kNoLimit,
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
      const float2 norms = QueryNorms<Element, kHeadDim>(queries, LaneRow());
      rows.reach0 = reach * norms.x;
      rows.reach1 = reach * norms.y;
    }
    return rows;
  }

  // The query side of the ramp: in every row the slope in three parts of the element type, against
  // three columns that count the tile's keys (0 .. 127, exact).
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
    auto* const to = reinterpret_cast<uint4*>(shared_ + L::RampQueries(item_.slot(), index_));
    to[thread] = half;
    FenceAsyncProxy();
  }

  // On the left of all rows, and every row sees it whole.
  __device__ static bool IsPlain(const TileBounds& bounds, int tile) {
    return tile >= bounds.plain_first && tile <= bounds.plain_last;
  }
  __device__ static bool IsNeeded(const TileBounds& bounds, int tile) {
    const int tile_last = tile + kKeyTileKeys - 1;
    return tile <= bounds.last_key && tile_last >= bounds.first_key &&
           tile_last > bounds.left_limit && tile < bounds.right_limit;
  }

  // A tile that is not plain. This and ComputePlainTiles leave next_tile_ behind.
  __device__ __forceinline__ void ComputeCutTile(const ItemInfo& info, const TileBounds& bounds,
                                                 int row, int tile, bool first, RowSums& rows) {
    const bool cut_by_causal_mask = tile >= bounds.cut_first;
    if (cut_by_causal_mask && bounds.last_key < tile + kKeyTileKeys / 2) {
      ComputeDiagonalTile<kKeyTileKeys / 2, 0>(info, tile, first, rows);
    } else if (cut_by_causal_mask && bounds.interior_end >= tile + kKeyTileKeys / 2 - 1) {
      ComputeDiagonalTile<kKeyTileKeys, kKeyTileKeys / 2>(info, tile, first, rows);
    } else {
      ComputeAnyTile(info, bounds, row, tile, rows);
    }
  }

  // The first kKeys of a tile, which only the causal mask cuts, and none of its first kWhole.
  template <int kKeys, int kWhole>
  __device__ __forceinline__ void ComputeDiagonalTile(const ItemInfo& info, int tile, bool first,
                                                      RowSums& rows) {
    float scores[kKeys / 2];
    ComputeScores(scores, false);
    const LaneRows* const lane = L::Rows(shared_, index_);
    const int last0 = lane->left0;
    const int last1 = lane->left1;
    ApplyCut<kWhole / 2>(scores, last0, last1, tile);
    const float slope_log2 = info.slope_log2;
    const float bias0 = -slope_log2 * static_cast<float>(last0 - tile);
    const float bias1 = -slope_log2 * static_cast<float>(last1 - tile);
    RaiseMaxima(info, scores, bias0, bias1, first, rows);
    FinishTile(info, scores, bias0, bias1, rows);
  }

  // A plain tile. Where there are registers for it, also the plain ones that follow: each one's
  // scores go to the tensor cores right before the values of the tile before. `tile` and `computed`
  // move along up to the last one, which is the caller's to release.
  __device__ __forceinline__ void ComputePlainTiles(const ItemInfo& info, const TileBounds& bounds,
                                                    int& tile, int& computed, RowSums& rows) {
    float scores[kScores];
    uint32_t probabilities[kScores / 2];
    ComputeScores(scores, false);
    float2 bias = PlainBias(info, tile);
    if (tile >= bounds.settled_before && IsAnyAbove(info, scores, bias, rows)) {
      RaiseMaxima(info, scores, bias.x, bias.y, false, rows);
    }
    Weigh(info, scores, bias.x, bias.y, probabilities, rows);
    if constexpr (L::kScoresAhead) {
      // The limits, when they are due, come first.
      while (next_tile_ = AwaitTile(tile_.Next()),
             IsPlain(bounds, next_tile_) && computed + 1 != bounds.next_check) {
        tile = next_tile_;
        StartScores(scores, tile_.Next(), false);
        StartValues(rows.output, probabilities);
        WgmmaWait<1>();
        Pin(scores);
        ReleaseKeys(tile_.Next());
        bias = PlainBias(info, tile);
        const bool above = tile >= bounds.settled_before && IsAnyAbove(info, scores, bias, rows);
        FinishValues(rows.output, probabilities);
        ReleaseTile();
        ++computed;
        if (above) RaiseMaxima(info, scores, bias.x, bias.y, false, rows);
        Weigh(info, scores, bias.x, bias.y, probabilities, rows);
      }
      StartValues(rows.output, probabilities);
    } else {
      StartValues(rows.output, probabilities);
      next_tile_ = AwaitTile(tile_.Next());  // under the tensor instructions
    }
    FinishValues(rows.output, probabilities);
  }

  // The rows' logits in a plain tile are scores * scale_log2 + these.
  __device__ float2 PlainBias(const ItemInfo& info, int tile) const {
    const LaneRows* const lane = L::Rows(shared_, index_);
    const float slope_log2 = info.slope_log2;
    return make_float2(-slope_log2 * static_cast<float>(lane->left0 - tile),
                       -slope_log2 * static_cast<float>(lane->left1 - tile));
  }

  __device__ __forceinline__ bool IsAnyAbove(const ItemInfo& info, const float (&scores)[kScores],
                                             float2 bias, const RowSums& rows) const {
    const float scores_per_log2 = info.scores_per_log2;
    return AnyAbove(scores, (rows.max0 + kLazyGrowth - bias.x) * scores_per_log2,
                    (rows.max1 + kLazyGrowth - bias.y) * scores_per_log2);
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
    RaiseMaxima(info, scores, bias0, bias1, false, rows);
    FinishTile(info, scores, bias0, bias1, rows);
  }

  // Makes the tile's largest logits the rows' maxima where they are larger. `first`: there is
  // nothing yet to be rescaled.
  template <int kCount>
  __device__ __forceinline__ void RaiseMaxima(const ItemInfo& info, const float (&scores)[kCount],
                                              float bias0, float bias1, bool first, RowSums& rows) {
    const float scale_log2 = info.scale_log2;
    float highest0;
    float highest1;
    RowMaxima(scores, &highest0, &highest1);
    highest0 = fmaxf(rows.max0, fmaf(highest0, scale_log2, bias0));
    highest1 = fmaxf(rows.max1, fmaf(highest1, scale_log2, bias1));
    if (!first) Rescale(Exp2(rows.max0 - highest0), Exp2(rows.max1 - highest1), rows);
    rows.max0 = highest0;
    rows.max1 = highest1;
  }

  // From scores to the rows' new sums and output. A row's bias is what its scores lack.
  template <int kCount>
  __device__ __forceinline__ void FinishTile(const ItemInfo& info, float (&scores)[kCount],
                                             float bias0, float bias1, RowSums& rows) {
    uint32_t probabilities[kCount / 2];
    Weigh(info, scores, bias0, bias1, probabilities, rows);
    StartValues(rows.output, probabilities);
    next_tile_ = AwaitTile(tile_.Next());  // under the tensor instructions
    FinishValues(rows.output, probabilities);
  }

  // The softmax weights of a tile, while this consumer has the token.
  template <int kCount>
  __device__ __forceinline__ void Weigh(const ItemInfo& info, const float (&scores)[kCount],
                                        float bias0, float bias1,
                                        uint32_t (&probabilities)[kCount / 2], RowSums& rows) {
    const float scale_log2 = info.scale_log2;
    TakeToken();
    Exponentials<Element, !L::kSumsByOnes>(scores, probabilities, scale_log2, bias0 - rows.max0,
                                           bias1 - rows.max1, &rows.sum0, &rows.sum1,
                                           [this] { PassToken(); });
  }

  template <int kCount>
  __device__ __forceinline__ void ComputeScores(float (&scores)[kCount], bool on_right) {
    StartScores(scores, tile_, on_right);
    WgmmaWait<0>();
    Pin(scores);
    ReleaseKeys(tile_);
  }

  // Against the first 2 kCount keys of the tile at that place.
  template <int kCount>
  __device__ __forceinline__ void StartScores(float (&scores)[kCount],
                                              const RingPosition<L::kStages>& position,
                                              bool on_right) {
    const uint32_t queries =
        base_ + L::kQueryOffset + (item_.slot() * L::kConsumers + index_) * L::kQueryBytes;
    const uint32_t keys = base_ + L::kKeyOffset + position.slot() * L::kTileBytes;
    const uint64_t a = MatrixDescriptor<L::kGroupBytes, L::kSwizzle>(queries, 16);
    const uint64_t b = MatrixDescriptor<L::kGroupBytes, L::kSwizzle>(keys, 16);
    const uint64_t counts = MatrixDescriptor<256, Swizzle::k32Bytes>(
        base_ + L::kRampOffset + (on_right ? L::kRampBytes : 0), 16);
    const uint64_t ramp =
        MatrixDescriptor<256, Swizzle::k32Bytes>(base_ + L::RampQueries(item_.slot(), index_), 16);
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
  }

  template <int kCount>
  __device__ __forceinline__ void StartValues(float (&output)[kOutputs],
                                              uint32_t (&probabilities)[kCount]) {
    AwaitValues();
    const uint32_t values = base_ + L::kValueOffset + tile_.slot() * L::kTileBytes;
    // The panel after the values is the block's one panel of ones.
    const uint32_t leading = L::kSumsByOnes ? base_ + L::kOnesOffset - values : L::kKeyPanelBytes;
    const uint64_t b = MatrixDescriptor<L::kGroupBytes, L::kSwizzle>(values, leading);
    constexpr int kStepUnits = 16 * L::kRowBytes / 16;
    Pin(output);
    Pin(probabilities);
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < kCount / 4; ++step) {
      const uint32_t a[4] = {probabilities[4 * step], probabilities[4 * step + 1],
                             probabilities[4 * step + 2], probabilities[4 * step + 3]};
      Mma::AddValues(output, a, b + step * kStepUnits);
    }
    WgmmaCommit();
  }

  template <int kCount>
  __device__ __forceinline__ void FinishValues(float (&output)[kOutputs],
                                               uint32_t (&probabilities)[kCount]) {
    WgmmaWait<0>();
    Pin(output);
    Pin(probabilities);
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
    Add(&counts->computed, computed);
    if (admitted > computed) Add(&counts->skipped, admitted - computed);
  }

  const KernelParams& params_;
  const int index_;
  char* const shared_ = SharedMemory();
  const uint32_t base_ = SharedAddress(SharedMemory());
  RingPosition<L::kBuffers> item_;
  RingPosition<L::kStages> tile_;
  int next_tile_ = kEndOfItem;
};

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_CONSUMER_CUH_
