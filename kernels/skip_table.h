// Which key tiles can hold softmax mass, per query tile: skipping with a proof.
//
// For a head with ALiBi slope s > 0, let U_i(J) = |softmax_scale| |q_i| max_{j in J} |k_j| and let i'
// be the admitted key nearest to i, at distance d'. By Cauchy-Schwarz every key j in J has
// logit[i, j] <= U_i(J) - s |i - j|, and lse_i >= logit[i, i'], so keys on one side of i that all
// stand at distance >= W hold at most
//
//   exp(U_i(J) - s W - logit[i, i']) / (1 - exp(-s))
//
// of row i's mass. The table drops the leading and trailing key tiles for which that is <= eps (eps/2
// a side where the mask admits keys on both sides), with J the dropped keys themselves, so one far
// outlier in k costs only the tiles that it can reach. Then |o_i error| <= 2 eps max|v|.
// Everything is evaluated in double and widened by a slack that covers its rounding; a bound that is
// not finite keeps the tile. s <= 0, eps = 0 and NaN or infinity in a head's q or k switch skipping
// off for that head.
//
// Thread-safety: BuildSkipTable is a pure function; SkipTable is a plain value.
#ifndef FLASHBIAS_KERNELS_SKIP_TABLE_H_
#define FLASHBIAS_KERNELS_SKIP_TABLE_H_

#include <cstdint>
#include <vector>

#include "kernels/attention_problem.h"

namespace flashbias {

// Half-open range of key tiles; begin == end means that no key is admitted.
struct TileRange {
  int32_t begin = 0;
  int32_t end = 0;
};

struct TileShape {
  int q_rows = 64;
  int kv_rows = 64;
};

// The key tiles that the mask admits for query rows [q_first, q_last] (inclusive, 0-based in the
// sequence). REQUIRES: 0 <= q_first <= q_last < q_len.
TileRange AdmittedTiles(const Sequence& sequence, const Mask& mask, int64_t q_first, int64_t q_last,
                        int kv_rows);

// Half-open range of key rows (0-based in the sequence) that the mask admits for one query row.
struct KeyRange {
  int64_t begin = 0;
  int64_t end = 0;
};
KeyRange AdmittedKeys(const Sequence& sequence, const Mask& mask, int64_t q_row);

struct SkipTable {
  TileShape tile;
  int64_t num_q_tiles = 0;
  // [num_q_heads, num_q_tiles]: key tiles to compute, within what the mask admits.
  std::vector<TileRange> ranges;
};

// The table of one sequence of `problem`.
SkipTable BuildSkipTable(const AttentionProblem& problem, int64_t sequence, TileShape tile);

}  // namespace flashbias

#endif  // FLASHBIAS_KERNELS_SKIP_TABLE_H_
