// Random numbers by place instead of by turn: number `index` of a stream is a function of the seed,
// the stream and the index, so that threads need no common state and a seed repeats a load whatever
// the timing.
//
// Pure functions; thread-safe. The mixing is that of SplitMix64 (Steele, Lea, Flood 2014).
#ifndef FLASHBIAS_CLIENT_LOAD_REQUESTS_COUNTER_RANDOM_H_
#define FLASHBIAS_CLIENT_LOAD_REQUESTS_COUNTER_RANDOM_H_

#include <cstdint>

namespace flashbias::client {

// Uniform over 64 bits for consecutive `value`.
inline uint64_t MixBits(uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

inline uint64_t RandomBits(uint64_t seed, uint64_t stream, uint64_t index) {
  return MixBits(MixBits(MixBits(seed) + stream) + index);
}

// 0 <= value < 1.
inline double RandomUnit(uint64_t seed, uint64_t stream, uint64_t index) {
  return static_cast<double>(RandomBits(seed, stream, index) >> 11) * 0x1p-53;
}

// 0 <= value < count. REQUIRES: count is above 0 and far below 2^64.
inline int64_t RandomBelow(int64_t count, uint64_t seed, uint64_t stream, uint64_t index) {
  return static_cast<int64_t>(RandomBits(seed, stream, index) % static_cast<uint64_t>(count));
}

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REQUESTS_COUNTER_RANDOM_H_
