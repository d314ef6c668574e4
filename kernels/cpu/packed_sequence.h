// Keys and values of one sequence as the micro-kernel reads them: float, tile by tile.
//
// Requests are token-major: consecutive rows of one head stand thousands of bytes apart, each in a
// page of its own, and reading them once per query tile costs more than the arithmetic. So every
// key tile is packed once, for all heads of a row while the row is at hand, and read many times.
//
// A plain view; the memory belongs to the run (cpu_backend.cc). Written by PackTile, for different
// tiles from different threads; read only afterwards.
#ifndef FLASHBIAS_KERNELS_CPU_PACKED_SEQUENCE_H_
#define FLASHBIAS_KERNELS_CPU_PACKED_SEQUENCE_H_

#include <cstddef>
#include <cstdint>

#include "kernels/attention_problem.h"
#include "kernels/cpu/workspace.h"

namespace flashbias::cpu {

struct PackedSequence {
  int32_t problem = 0;        // index in the run
  int32_t sequence = 0;       // index in the problem
  int32_t kv_head_begin = 0;  // heads [begin, begin + count) of k and v
  int32_t kv_head_count = 0;
  int32_t factor_head_begin = 0;  // heads of phi_k that they use; count 0: no low-rank bias
  int32_t factor_head_count = 0;
  int64_t num_tiles = 0;
  int64_t key_tile_floats = 0;
  int64_t value_tile_floats = 0;
  int64_t factor_tile_floats = 0;

  float* keys = nullptr;      // [kv_head_count, num_tiles, panel, head_dim, panel width]
  float* values = nullptr;    // [kv_head_count, num_tiles, panel, kKeyTile, panel width]
  float* factors = nullptr;   // [factor_head_count, num_tiles, panel, rank, panel width]
  float* tile_max = nullptr;  // [kv_head_count, num_tiles]: largest |k|, see skip_table.h

  // Floats of all four arrays.
  int64_t TotalFloats() const {
    return (kv_head_count * (key_tile_floats + value_tile_floats + 1) +
            factor_head_count * factor_tile_floats) *
           num_tiles;
  }
  float* KeyTile(int kv_head, int64_t tile) const {
    return keys + ((kv_head - kv_head_begin) * num_tiles + tile) * key_tile_floats;
  }
  float* ValueTile(int kv_head, int64_t tile) const {
    return values + ((kv_head - kv_head_begin) * num_tiles + tile) * value_tile_floats;
  }
  float* FactorTile(int factor_head, int64_t tile) const {
    return factors + ((factor_head - factor_head_begin) * num_tiles + tile) * factor_tile_floats;
  }
  float* TileMax(int kv_head) const { return tile_max + (kv_head - kv_head_begin) * num_tiles; }
};

}  // namespace flashbias::cpu

#endif  // FLASHBIAS_KERNELS_CPU_PACKED_SEQUENCE_H_
