// Vector types, row conversion and exp2 for one instruction set. Included once per Highway target
// by attention_kernel.cc; see Highway's foreach_target.h for the guard below.
#if defined(FLASHBIAS_KERNELS_CPU_VECTOR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHBIAS_KERNELS_CPU_VECTOR_INL_H_
#undef FLASHBIAS_KERNELS_CPU_VECTOR_INL_H_
#else
#define FLASHBIAS_KERNELS_CPU_VECTOR_INL_H_
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/cpu/workspace.h"
#include "kernels/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace flashbias::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Capped so that arrays of vectors have a compile-time layout.
using Floats = hn::CappedTag<float, 16>;
using Int32s = hn::RebindToSigned<Floats>;
using Vec = hn::Vec<Floats>;
constexpr size_t kLanes = hn::MaxLanes(Floats());

// Rows that one pass of the micro-kernel computes, each with two vectors of accumulators. 16
// registers hold 6 x 2 of them beside the operands, 32 hold 12 x 2; both cover the latency of the
// multiply-add, and more rows read a packed tile fewer times.
#if HWY_TARGET <= HWY_AVX3  // and its extensions: better targets have lower numbers
constexpr int kGroupRows = kMaxGroupRows;
#else
constexpr int kGroupRows = kMinGroupRows;
#endif

// The targets whose 16-bit conversions are IEEE-exact hardware instructions.
#undef FLASHBIAS_HARDWARE_FLOAT16
#if HWY_TARGET <= HWY_AVX2
#define FLASHBIAS_HARDWARE_FLOAT16 1
#else
#define FLASHBIAS_HARDWARE_FLOAT16 0
#endif

constexpr size_t RoundUp(size_t n, size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// One vector of elements starting at `from`, which needs no alignment.
HWY_INLINE Vec LoadFloats(DType dtype, const char* HWY_RESTRICT from) {
  const Floats d;
  if (dtype == DType::kFloat32) {
    return hn::LoadU(d, reinterpret_cast<const float*>(from));
  }
  const hn::Rebind<uint16_t, Floats> d16;
  const auto raw = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(from));
  if (dtype == DType::kBFloat16) {
    const hn::Rebind<uint32_t, Floats> d32;
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, raw)));
  }
#if FLASHBIAS_HARDWARE_FLOAT16
  const hn::Rebind<hwy::float16_t, Floats> df16;
  return hn::PromoteTo(d, hn::BitCast(df16, raw));
#else
  alignas(64) float lanes[kLanes];
  for (size_t i = 0; i < kLanes; ++i) {
    lanes[i] = LoadElement(dtype, from, static_cast<int64_t>(i));
  }
  return hn::Load(d, lanes);
#endif
}

// Converts `count` elements to float and zeroes the rest up to RoundUp(count, kLanes). Never reads
// beyond the elements. `to` must be aligned.
HWY_INLINE void LoadRow(DType dtype, const char* HWY_RESTRICT from, size_t count,
                        float* HWY_RESTRICT to) {
  const Floats d;
  const size_t element = SizeOf(dtype);
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    hn::Store(LoadFloats(dtype, from + i * element), d, to + i);
  }
  if (i < count) {
    alignas(64) char tail[kLanes * sizeof(float)] = {};
    std::memcpy(tail, from + i * element, (count - i) * element);
    hn::Store(LoadFloats(dtype, tail), d, to + i);
  }
}

// Writes `count` floats as `dtype`, rounded to nearest even; `to` needs no alignment.
HWY_INLINE void StoreRow(DType dtype, const float* HWY_RESTRICT from, size_t count,
                         char* HWY_RESTRICT to) {
  if (dtype == DType::kFloat32) {
    std::memcpy(to, from, count * sizeof(float));
    return;
  }
  size_t i = 0;
#if FLASHBIAS_HARDWARE_FLOAT16
  if (dtype == DType::kFloat16) {
    const Floats d;
    const hn::Rebind<hwy::float16_t, Floats> df16;
    const hn::Rebind<uint16_t, Floats> d16;
    for (; i + kLanes <= count; i += kLanes) {
      const auto half = hn::DemoteTo(df16, hn::Load(d, from + i));
      hn::StoreU(hn::BitCast(d16, half), d16, reinterpret_cast<uint16_t*>(to) + i);
    }
  }
#endif
  for (; i < count; ++i) StoreElement(dtype, to, static_cast<int64_t>(i), from[i]);
}

// 2^x for x <= 0; exactly 0 below -126 and at -infinity, NaN for NaN. Relative error 1e-7.
HWY_INLINE Vec Exp2(Vec x) {
  const Floats d;
  const Int32s di;
  // Adding 1.5 * 2^23 rounds x to an integer n in the low mantissa bits; the 127 more make those
  // bits the exponent field of 2^n.
  const Vec magic = hn::Set(d, 12582912.0f + 127.0f);
  const Vec shifted = hn::Add(x, magic);
  const Vec power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, shifted)));
  const Vec f = hn::Sub(x, hn::Sub(shifted, magic));
  // Minimax polynomial of 2^f on [-1/2, 1/2] (Remez), relative error 7.6e-8.
  Vec p = hn::Set(d, 0.001327647296384123f);
  p = hn::MulAdd(p, f, hn::Set(d, 0.009675541328778257f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.05550713270260807f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.24022119724085947f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.6931469670668923f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -126.0f)), hn::Mul(p, power));
}

// |row| over `count` floats, rounded up where squares underflow; the row is zero-padded to whole
// vectors.
HWY_INLINE float NormAtLeast(const float* HWY_RESTRICT row, size_t count) {
  const Floats d;
  Vec sum = hn::Zero(d);
  for (size_t i = 0; i < count; i += kLanes) {
    const Vec x = hn::Load(d, row + i);
    sum = hn::MulAdd(x, x, sum);
  }
  // What kMaxHeadDim squares lose below the smallest float is less than 2^-120.
  return std::sqrt(hn::GetLane(hn::SumOfLanes(d, sum)) + 0x1p-120f);
}

}  // namespace HWY_NAMESPACE
}  // namespace flashbias::cpu
HWY_AFTER_NAMESPACE();

#endif
