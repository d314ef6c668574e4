#include "client/load/latency_histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>

namespace flashbias::client {
namespace {

constexpr int kSubBits = 10;
constexpr int64_t kSubCount = int64_t{1} << kSubBits;
constexpr int64_t kMinMicroseconds = 1;
constexpr int64_t kMaxMicroseconds = 120'000'000;

// Values below 2 * kSubCount have buckets of their own; above, bucket = shift * kSubCount + the top
// kSubBits + 1 bits, which keeps buckets contiguous across powers of two.
constexpr size_t BucketOf(int64_t microseconds) {
  const auto value = static_cast<uint64_t>(microseconds);
  const int shift = std::max(0, static_cast<int>(std::bit_width(value)) - kSubBits - 1);
  return static_cast<size_t>(shift) * kSubCount + static_cast<size_t>(value >> shift);
}

// The largest value of a bucket.
constexpr int64_t UpperEnd(size_t bucket) {
  const auto index = static_cast<int64_t>(bucket);
  if (index < 2 * kSubCount) return index;
  const int64_t shift = index / kSubCount - 1;
  const int64_t top = index - shift * kSubCount;
  return ((top + 1) << shift) - 1;
}

static_assert(UpperEnd(BucketOf(2047)) == 2047 && UpperEnd(BucketOf(2048)) == 2049 &&
                  BucketOf(2050) == BucketOf(2048) + 1,
              "buckets are contiguous where their width doubles");

}  // namespace

LatencyHistogram::LatencyHistogram() : buckets_(BucketOf(kMaxMicroseconds) + 1, 0) {}

void LatencyHistogram::Record(absl::Duration latency) {
  const int64_t microseconds =
      std::clamp(absl::ToInt64Microseconds(latency), kMinMicroseconds, kMaxMicroseconds);
  ++buckets_[BucketOf(microseconds)];
  ++count_;
  sum_ += latency;
  max_ = std::max(max_, latency);
}

void LatencyHistogram::Merge(const LatencyHistogram& other) {
  for (size_t n = 0; n < buckets_.size(); ++n) buckets_[n] += other.buckets_[n];
  count_ += other.count_;
  sum_ += other.sum_;
  max_ = std::max(max_, other.max_);
}

absl::Duration LatencyHistogram::Mean() const {
  return count_ == 0 ? absl::ZeroDuration() : sum_ / count_;
}

absl::Duration LatencyHistogram::Percentile(double percent) const {
  if (count_ == 0) return absl::ZeroDuration();
  // 99.9 has no exact double: without the slack 99.9 % of 1000 would be rounded up to 1000.
  const double exact_rank = percent / 100.0 * static_cast<double>(count_);
  const auto rank = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(exact_rank - 1e-6)));
  int64_t seen = 0;
  for (size_t n = 0; n < buckets_.size(); ++n) {
    seen += buckets_[n];
    if (seen >= rank) return std::min(absl::Microseconds(UpperEnd(n)), max_);
  }
  return max_;
}

}  // namespace flashbias::client
