// A consumer warpgroup of the backward kernels: 64 rows that stay against the tiles that move.
//
// For each tile two products by wgmma, S of queries and keys and dP of d_o and values, with the
// rows that stay as rows of the result; then, in registers, P = 2^(scale S + shifts) and dS = P (dP
// - delta); then dk (or dq) += dS times the tile and dv += P times the tile, whose left operands
// are those registers as they are. While one warpgroup's tensor instructions run, the others
// compute exponentials.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_BACKWARD_CONSUMER_CUH_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_BACKWARD_CONSUMER_CUH_

#include "kernels/cuda/gradient_scale.cuh"
#include "kernels/cuda/hopper/backward_layout.cuh"
#include "kernels/cuda/hopper/backward_store.cuh"
#include "kernels/cuda/hopper/softmax.cuh"

namespace flashbias::cuda::hopper {

// How a tile lies to a consumer's rows.
enum class TileKind {
  kUnneeded,
  kPlain,   // every pair admitted, all keys on one side of all queries
  kMasked,  // all keys that are admitted on one side
  kBent,    // on both
};

template <typename Element, int kHeadDim, BackwardPass kPass, bool kSlopeGradient>
class BackwardConsumer {
 public:
  using L = BackwardLayout<kHeadDim, kPass>;
  using Mma = Wgmma<Element>;

  // `index` is the warpgroup's among the block's consumers.
  __device__ explicit BackwardConsumer(int index) : index_(index) {}

  __device__ __forceinline__ void Run() {
    for (;;) {
      MbarrierWait(L::ItemFull(base_, item_.slot()), item_.parity());
      const BackwardItem& item = *L::Item(shared_, item_.slot());
      if (item.sequence < 0) break;
      Compute(item);
      item_.Advance();
    }
  }

 private:
  static constexpr int kScores = kTileRows / 2;  // a lane's
  static constexpr int kWeights = kScores / 2;   // a lane's, in pairs
  static constexpr int kOutputs = kHeadDim / 2;  // a lane's
  static constexpr int kValueOutputs = L::kDkDv ? kOutputs : 4;

  // Of the lane's columns in one query row, with the factors of dS and P. Distances are less the
  // reference's.
  struct SlopeSums {
    float mass;                // sum_j P[i, j]
    float probable_distances;  // sum_j P[i, j] |i - j|
    float differences;         // sum_j dS[i, j]
    float distances;           // sum_j dS[i, j] |i - j|
  };

  // Tiles, by their first row, that are plain, on the left and needed: what all tiles of an item
  // but a few are. Others are looked at one by one.
  struct PlainTiles {
    int first;
    int last;
  };

  // The lane's two rows that stay, in what it adds to its scores.
  struct Rows {
    int begin;  // first row of the consumer
    // kDq: what the scores of the tile's column 0 are short of, if it were at key row 0.
    StayingRow row0;
    StayingRow row1;
    SlopeSums slopes[2];  // kSlopeGradient
  };

  __device__ static int LaneRow() {
    return threadIdx.x % kWarpgroupThreads / 32 * 16 + threadIdx.x % 32 / 4;
  }
  __device__ static int LaneColumn() { return 2 * static_cast<int>(threadIdx.x % 4); }

  __device__ __forceinline__ void Compute(const BackwardItem& item) {
    float score_gradient[kOutputs];
    float value_gradient[kValueOutputs];
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) score_gradient[i] = 0;
#pragma unroll
    for (int i = 0; i < kValueOutputs; ++i) value_gradient[i] = 0;
    Rows rows;
    rows.begin = item.begin + index_ * kTileRows;
    rows.slopes[0] = rows.slopes[1] = {0, 0, 0, 0};
    if constexpr (!L::kDkDv) {
      const StayingRow* const all = L::Rows(shared_, item_.slot()) + index_ * kTileRows;
      rows.row0 = all[LaneRow()];
      rows.row1 = all[LaneRow() + 8];
    }
    const PlainTiles plain = FindPlainTiles(item, rows.begin);
    // The weights of the tile before, while the tensor cores read them.
    uint32_t probabilities[kWeights];
    uint32_t differences[kWeights];
    int pending = -1;  // its stage

    for (;;) {
      const int stage = tile_.slot();
      MbarrierWait(L::TileFull(base_, stage), tile_.parity());
      const BackwardTile& tile = *L::Tile(shared_, stage);
      const int first = FirstRowOf(tile);
      if (first == kEndOfItem) break;
      bool on_right = false;
      TileKind kind = TileKind::kPlain;
      if (!IsPlain(plain, tile, first, rows.begin)) {
        kind = KindOf(item, tile, first, rows.begin, &on_right);
      }
      if (kind == TileKind::kUnneeded) {
        if constexpr (L::kOverlaps) {
          // Who goes through many of these must not keep the ring from turning.
          WgmmaWait<0>();
          PinGradients(score_gradient, value_gradient, probabilities, differences);
          if (pending >= 0) Release(pending);
          pending = -1;
        }
        Release(stage);
      } else {
        float scores[kScores];
        float products[kScores];
        StartProducts(scores, products, stage);
        WgmmaWait<1>();  // of all before, too
        Pin(scores);
        if constexpr (L::kOverlaps) {
          PinGradients(score_gradient, value_gradient, probabilities, differences);
          if (pending >= 0) Release(pending);
          pending = stage;
        }
        if (kind == TileKind::kPlain) {
          Weigh<TileKind::kPlain>(item, tile, first, on_right, stage, rows, scores, products,
                                  probabilities, differences);
        } else if (kind == TileKind::kMasked) {
          Weigh<TileKind::kMasked>(item, tile, first, on_right, stage, rows, scores, products,
                                   probabilities, differences);
        } else {
          Weigh<TileKind::kBent>(item, tile, first, on_right, stage, rows, scores, products,
                                 probabilities, differences);
        }
        PinGradients(score_gradient, value_gradient, probabilities, differences);
        WgmmaFence();
        if constexpr (L::kDkDv) AddGradient(value_gradient, probabilities, L::Moving(stage, 1));
        AddGradient(score_gradient, differences, L::Moving(stage, 0));
        WgmmaCommit();
        if constexpr (!L::kOverlaps) {
          WgmmaWait<0>();
          PinGradients(score_gradient, value_gradient, probabilities, differences);
          Release(stage);
        }
      }
      tile_.Advance();
    }
    if constexpr (L::kOverlaps) {
      WgmmaWait<0>();
      PinGradients(score_gradient, value_gradient, probabilities, differences);
      if (pending >= 0) Release(pending);
    }
    Release(tile_.slot());
    tile_.Advance();
    Store(item, rows, score_gradient, value_gradient);
    MbarrierArrive(L::ItemEmpty(base_, item_.slot()));
  }

  __device__ __forceinline__ void Store(const BackwardItem& item, const Rows& rows,
                                        const float (&score_gradient)[kOutputs],
                                        const float (&value_gradient)[kValueOutputs]) {
    const int64_t row_elements = static_cast<int64_t>(item.out_heads) * item.head_dim;
    const int row = rows.begin + LaneRow();
    const int num_rows = L::kDkDv ? item.kv_len : item.q_len;
    StoreGradient<Element, kHeadDim>(item.score_gradient, row_elements, item.head_dim, row,
                                     num_rows, item.score_factor, score_gradient);
    if constexpr (L::kDkDv) {
      StoreGradient<Element, kHeadDim>(item.value_gradient, row_elements, item.head_dim, row,
                                       num_rows, item.value_factor, value_gradient);
    }
    if constexpr (kSlopeGradient) StoreSlopeGradient(item, rows);
  }

  // sum_ij dS[i, j] |i - j| of the item, always added up in the same order.
  __device__ __forceinline__ void StoreSlopeGradient(const BackwardItem& item, const Rows& rows) {
    float sum = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const SlopeSums& row = rows.slopes[half];
      const float mass_factor = item.value_factor;
      const float excess =
          ExcessOfMass<Element>(QuadSum(row.mass) * mass_factor, QuadSum(row.differences));
      sum += row.distances - excess * (row.probable_distances * mass_factor);
      // Distances are less the reference's.
      const int left = half == 0 ? rows.row0.left : rows.row1.left;
      const int64_t position = rows.begin + LaneRow() + 8 * half + item.exact_diagonal;
      const auto distance = static_cast<float>(llabs(position - left));
      if (excess == 0) sum += row.differences * distance;
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(~0u, sum, distance);
    }
    float* const sums = L::SlopeSums(shared_);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    NamedBarrierSync(kSumsBarrier, L::kConsumers * kWarpgroupThreads);
    if (threadIdx.x == 0 && item.slope_gradient != nullptr) {
      float total = 0;
      for (int warp = 0; warp < 4 * L::kConsumers; ++warp) total += sums[warp];
      *item.slope_gradient = total * item.slope_factor;
    }
    NamedBarrierSync(kSumsBarrier, L::kConsumers * kWarpgroupThreads);
  }

  // The same in all lanes, and the compiler knows it. kDq: nothing else of the tile is read by any
  // lane, so that one may release it for all.
  __device__ __forceinline__ static int FirstRowOf(const BackwardTile& tile) {
    int first = 0;
    if (L::kDkDv || threadIdx.x % 32 == 0) first = tile.first;
    return __shfl_sync(~0u, first, 0);
  }

  __device__ void Release(int stage) {
    if constexpr (!L::kDkDv) __syncwarp();
    if (L::kDkDv || threadIdx.x % 32 == 0) MbarrierArrive(L::TileEmpty(base_, stage));
  }

  __device__ __forceinline__ PlainTiles FindPlainTiles(const BackwardItem& item,
                                                       int staying) const {
    const int staying_last = staying + kTileRows - 1;
    if constexpr (L::kDkDv) {
      const int last = item.window_diagonal == kNoWindow
                           ? kNoLimit
                           : staying - item.window_diagonal - (kTileRows - 1);
      if (staying >= item.kv_len) return {kNoLimit, -1};
      return {staying_last - item.diagonal, last};
    } else {
      const KeyLimits limits = item.limits[index_];
      const int last_row = min(staying_last, item.q_len - 1);
      if (staying >= item.q_len) return {kNoLimit, -1};
      return {
          max(last_row + item.window_diagonal, limits.left + 1 - (kTileRows - 1)),
          min(min(staying + item.diagonal, item.kv_len - 1) - (kTileRows - 1), limits.right - 1)};
    }
  }

  __device__ __forceinline__ static bool IsPlain(const PlainTiles& plain, const BackwardTile& tile,
                                                 int moving, int staying) {
    bool is_plain = moving >= plain.first && moving <= plain.last;
    if constexpr (L::kDkDv) {
      const KeyLimits limits = tile.limits;
      is_plain = is_plain && staying + (kTileRows - 1) > limits.left && staying < limits.right;
    }
    return is_plain;
  }

  __device__ __forceinline__ TileKind KindOf(const BackwardItem& item, const BackwardTile& tile,
                                             int moving, int staying, bool* on_right) const {
    const int first_row = L::kDkDv ? moving : staying;
    const int first_key = L::kDkDv ? staying : moving;
    const int last_key = first_key + kTileRows - 1;
    const int last_row = min(first_row + kTileRows, item.q_len) - 1;
    if (first_row > last_row || first_key >= item.kv_len) return TileKind::kUnneeded;
    const KeyLimits limits = L::kDkDv ? tile.limits : item.limits[index_];
    if (last_key <= limits.left || first_key >= limits.right) return TileKind::kUnneeded;
    const int first_position = first_row + item.diagonal;
    const int last_position = last_row + item.diagonal;
    const int first_seen = first_row + item.window_diagonal;  // by the first row
    const int all_see_from = last_row + item.window_diagonal;
    if (last_key < first_seen) return TileKind::kUnneeded;
    const bool causal = item.causal != 0;
    if (causal && first_key > last_position) return TileKind::kUnneeded;
    const bool is_whole = first_key >= all_see_from && last_key < item.kv_len &&
                          (!causal || last_key <= first_position);
    *on_right = !causal && first_key >= last_position;
    const bool on_left = causal || last_key <= first_position;
    if (!on_left && !*on_right) return TileKind::kBent;
    return is_whole ? TileKind::kPlain : TileKind::kMasked;
  }

  // Scores and products of the tile, as two groups.
  __device__ __forceinline__ void StartProducts(float (&scores)[kScores],
                                                float (&products)[kScores], int stage) {
    WgmmaFence();
    StartProduct(scores, L::Staying(item_.slot(), index_, 0), L::Moving(stage, 0));
    WgmmaCommit();
    StartProduct(products, L::Staying(item_.slot(), index_, 1), L::Moving(stage, 1));
    WgmmaCommit();
  }

  __device__ __forceinline__ void StartProduct(float (&result)[kScores], uint32_t staying,
                                               uint32_t moving) {
    const uint64_t a = MatrixDescriptor<L::kGroupBytes, L::kSwizzle>(base_ + staying, 16);
    const uint64_t b = MatrixDescriptor<L::kGroupBytes, L::kSwizzle>(base_ + moving, 16);
    constexpr int kStepsPerPanel = L::kPanelColumns / 16;
    Mma::SetScores(result, a, b);
#pragma unroll
    for (int step = 1; step < kHeadDim / 16; ++step) {
      const int offset = step / kStepsPerPanel * (L::kPanelBytes / 16) + step % kStepsPerPanel * 2;
      Mma::AddScores(result, a + offset, b + offset);
    }
  }

  // gradient += weights times the tile.
  __device__ __forceinline__ void AddGradient(float (&gradient)[kOutputs],
                                              const uint32_t (&weights)[kWeights],
                                              uint32_t moving) {
    const uint64_t b =
        MatrixDescriptor<L::kGroupBytes, L::kSwizzle>(base_ + moving, L::kPanelBytes);
    constexpr int kStepUnits = 16 * L::kRowBytes / 16;
#pragma unroll
    for (int step = 0; step < kTileRows / 16; ++step) {
      const uint32_t a[4] = {weights[4 * step], weights[4 * step + 1], weights[4 * step + 2],
                             weights[4 * step + 3]};
      Mma::AddValues(gradient, a, b + step * kStepUnits);
    }
  }

  __device__ __forceinline__ static void PinGradients(float (&score_gradient)[kOutputs],
                                                      float (&value_gradient)[kValueOutputs],
                                                      uint32_t (&probabilities)[kWeights],
                                                      uint32_t (&differences)[kWeights]) {
    Pin(score_gradient);
    Pin(differences);
    if constexpr (L::kDkDv) {
      Pin(value_gradient);
      Pin(probabilities);
    }
  }

  // From scores to probabilities while the products are under way, then to the tile's weights. The
  // assembler orders each half as it likes: fences between columns made everything a fifth slower.
  template <TileKind kKind>
  __device__ __forceinline__ void Weigh(const BackwardItem& item, const BackwardTile& tile,
                                        int first, bool on_right, int stage, Rows& rows,
                                        float (&scores)[kScores], float (&products)[kScores],
                                        uint32_t (&probabilities)[kWeights],
                                        uint32_t (&differences)[kWeights]) {
    uint32_t admitted[2] = {~0u, ~0u};
    if constexpr (kKind != TileKind::kPlain) {
      admitted[0] = Admitted(item, rows.begin + LaneRow(), first);
      admitted[1] = Admitted(item, rows.begin + LaneRow() + 8, first);
    }
    const float scale_log2 = item.scale_log2;
    const float dp_factor = item.dp_factor;
    const Shifts<kKind> shifts(item, tile, first, on_right, rows, L::LeftShifts(shared_, stage),
                               L::RightShifts(shared_, stage));
#pragma unroll
    for (int n = 0; n < kTileRows / 8; ++n) {
      const typename Shifts<kKind>::Columns columns = shifts.Of(n);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float& weight = scores[4 * n + j];
        weight = Exp2(fmaf(weight, scale_log2, columns.shift[j]));
        if constexpr (kKind != TileKind::kPlain) {
          if ((admitted[j / 2] & 1u << (2 * n + j % 2)) == 0) weight = 0;
        }
      }
    }
    WgmmaWait<0>();
    Pin(products);
#pragma unroll
    for (int n = 0; n < kTileRows / 8; ++n) {
      const typename Shifts<kKind>::Columns columns = shifts.Of(n);
      const float* const weights = &scores[4 * n];
      if constexpr (L::kDkDv) {
        probabilities[2 * n] = PackPair<Element>(weights[0], weights[1]);
        probabilities[2 * n + 1] = PackPair<Element>(weights[2], weights[3]);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float& product = products[4 * n + j];
        product = weights[j] * fmaf(product, dp_factor, columns.delta[j]);
        if constexpr (kKind != TileKind::kPlain) {
          if ((admitted[j / 2] & 1u << (2 * n + j % 2)) == 0) product = 0;
        }
      }
      differences[2 * n] = PackPair<Element>(products[4 * n], products[4 * n + 1]);
      differences[2 * n + 1] = PackPair<Element>(products[4 * n + 2], products[4 * n + 3]);
    }
    if constexpr (kSlopeGradient) {
      AddToSlopeSums<kKind>(item, first, on_right, rows, scores, products);
    }
  }

  // Bits 2 n + j of the lane's columns 8 n + j that the mask admits with a row that stays.
  __device__ __forceinline__ static uint32_t Admitted(const BackwardItem& item, int row,
                                                      int first) {
    const int begin = first + LaneColumn();
    if constexpr (L::kDkDv) {
      // Of a key: the queries that see it.
      const int lowest = item.causal != 0 ? max(row - item.diagonal, 0) : 0;
      const uint32_t from = ~ColumnsUpTo(lowest - 1 - begin);
      if (item.window_diagonal == kNoWindow) return from;
      return from & ColumnsUpTo(row - item.window_diagonal - begin);
    } else {
      const VisibleKeys keys = KeysOfRow(item, row);
      return ColumnsUpTo(keys.last - begin) & ~ColumnsUpTo(keys.first - 1 - begin);
    }
  }

  // What is added to a tile's scaled scores and products.
  template <TileKind kKind>
  class Shifts {
   public:
    // Of the lane's elements 4 n .. 4 n + 3.
    struct Columns {
      float shift[4];
      float delta[4];
    };

    __device__ __forceinline__ Shifts(const BackwardItem& item, const BackwardTile& tile, int first,
                                      bool on_right, const Rows& rows, const float4* left_shifts,
                                      const float2* right_shifts)
        : left_shifts_(left_shifts + threadIdx.x % 4),
          right_shifts_(right_shifts + threadIdx.x % 4),
          on_right_(on_right),
          delta0_(rows.row0.delta),
          delta1_(rows.row1.delta) {
      if constexpr (L::kDkDv) {
        // Of the lane's keys.
        const int key = rows.begin + LaneRow() - item.begin;
        slope_ = on_right ? -tile.slope_log2 : tile.slope_log2;
        row0_ = slope_ * static_cast<float>(key);
        row1_ = slope_ * static_cast<float>(key + 8);
        turn_ = rows.begin + LaneRow() - item.diagonal - first - LaneColumn();
      } else {
        const int begin = first + LaneColumn();
        const StayingRow& a = rows.row0;
        const StayingRow& b = rows.row1;
        const float slope = item.slope_log2;
        slope_ = on_right ? -slope : slope;
        row0_ = fmaf(-slope_, static_cast<float>((on_right ? a.right : a.left) - begin), a.shift);
        row1_ = fmaf(-slope_, static_cast<float>((on_right ? b.right : b.left) - begin), b.shift);
        if constexpr (kKind == TileKind::kBent) {
          right0_ = fmaf(slope, static_cast<float>(a.right - begin), a.shift);
          right1_ = fmaf(slope, static_cast<float>(b.right - begin), b.shift);
        }
        turn_ = rows.begin + LaneRow() + item.diagonal - begin;
      }
    }

    __device__ __forceinline__ Columns Of(int n) const {
      Columns columns;
      if constexpr (L::kDkDv) {
        // Columns are queries.
        const float4 left = left_shifts_[4 * n];
        float2 shift = make_float2(left.x, left.y);
        float2 right = shift;
        if (kKind == TileKind::kBent || on_right_) right = right_shifts_[4 * n];
        if (kKind != TileKind::kBent) shift = right;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float of_row = j < 2 ? row0_ : row1_;
          columns.shift[j] = (j % 2 == 0 ? shift.x : shift.y) + of_row;
          if constexpr (kKind == TileKind::kBent) {
            // The key is on the right of the query.
            if (turn_ + (j < 2 ? 0 : 8) > 8 * n + j % 2) {
              columns.shift[j] = (j % 2 == 0 ? right.x : right.y) - of_row;
            }
          }
          columns.delta[j] = j % 2 == 0 ? left.z : left.w;
        }
      } else {
        // Columns are keys.
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int column = 8 * n + j % 2;
          columns.shift[j] = fmaf(slope_, static_cast<float>(column), j < 2 ? row0_ : row1_);
          if constexpr (kKind == TileKind::kBent) {
            if (column > turn_ + (j < 2 ? 0 : 8)) {
              columns.shift[j] =
                  fmaf(-slope_, static_cast<float>(column), j < 2 ? right0_ : right1_);
            }
          }
          columns.delta[j] = j < 2 ? delta0_ : delta1_;
        }
      }
      return columns;
    }

   private:
    const float4* const left_shifts_;
    const float2* const right_shifts_;
    const bool on_right_;
    const float delta0_;  // kDq
    const float delta1_;
    float slope_;
    float row0_;
    float row1_;
    float right0_;  // kDq, kBent
    float right1_;
    int turn_;  // the column at which keys and queries change sides
  };

  // Adds the tile to the lane's sums. Distances are less each row's distance to its reference,
  // which changes nothing, because dS adds up to zero over a row.
  template <TileKind kKind>
  __device__ __forceinline__ static void AddToSlopeSums(const BackwardItem& item, int first,
                                                        bool on_right, Rows& rows,
                                                        const float (&probabilities)[kScores],
                                                        const float (&differences)[kScores]) {
    static_assert(!L::kDkDv);
    const int begin = first + LaneColumn();
    const int position = rows.begin + LaneRow() + item.diagonal - begin;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const StayingRow& row = half == 0 ? rows.row0 : rows.row1;
      SlopeSums& sums = rows.slopes[half];
      const int turn = position + 8 * half;
      const int to_begin = on_right ? begin - row.right : row.left - begin;
      const float sign = on_right ? 1.0f : -1.0f;
#pragma unroll
      for (int i = 0; i < kScores / 2; ++i) {
        const int column = i / 2 * 8 + i % 2;
        const int element = i / 2 * 4 + 2 * half + i % 2;
        float distance = fmaf(sign, static_cast<float>(column), static_cast<float>(to_begin));
        if constexpr (kKind == TileKind::kBent) {
          distance = static_cast<float>(column > turn ? begin + column - row.right
                                                      : row.left - begin - column);
        }
        sums.mass += probabilities[element];
        sums.differences += differences[element];
        sums.distances = fmaf(differences[element], distance, sums.distances);
        sums.probable_distances = fmaf(probabilities[element], distance, sums.probable_distances);
      }
    }
  }

  const int index_;
  char* const shared_ = SharedMemory();
  const uint32_t base_ = SharedAddress(SharedMemory());
  RingPosition<L::kBuffers> item_;
  RingPosition<L::kStages> tile_;
};

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_BACKWARD_CONSUMER_CUH_
