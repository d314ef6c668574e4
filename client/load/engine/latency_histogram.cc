#include "client/load/engine/latency_histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace flashbias::client {
namespace {

constexpr int64_t kMinMicroseconds = 1;
constexpr int64_t kMaxMicroseconds = 120'000'000;

// Rounded up, so that a bucket's upper end is the largest latency that it takes.
int64_t WholeMicroseconds(absl::Duration latency) {
  const int64_t whole = absl::ToInt64Microseconds(
      std::clamp(latency, absl::ZeroDuration(), absl::Microseconds(kMaxMicroseconds)));
  return std::clamp(absl::Microseconds(whole) < latency ? whole + 1 : whole, kMinMicroseconds,
                    kMaxMicroseconds);
}

}  // namespace

LatencyHistogram::LatencyHistogram(Precision precision)
    : sub_bits_(precision == Precision::kFine ? 10 : 6) {}

// Values below 2^(sub_bits_ + 1) have buckets of their own; above, bucket = (shift << sub_bits_) +
// the top sub_bits_ + 1 bits, which keeps buckets contiguous across powers of two.
size_t LatencyHistogram::BucketOf(int64_t microseconds) const {
  const auto value = static_cast<uint64_t>(microseconds);
  const int shift = std::max(0, static_cast<int>(std::bit_width(value)) - sub_bits_ - 1);
  return (static_cast<size_t>(shift) << sub_bits_) + static_cast<size_t>(value >> shift);
}

int64_t LatencyHistogram::UpperEnd(size_t bucket) const {
  const auto index = static_cast<int64_t>(bucket);
  if (index < (int64_t{2} << sub_bits_)) return index;
  const int64_t shift = (index >> sub_bits_) - 1;
  const int64_t top = index - (shift << sub_bits_);
  return ((top + 1) << shift) - 1;
}

void LatencyHistogram::Record(absl::Duration latency) {
  if (buckets_.empty()) buckets_.resize(BucketOf(kMaxMicroseconds) + 1, 0);
  ++buckets_[BucketOf(WholeMicroseconds(latency))];
  ++count_;
  sum_ += latency;
  const double seconds = absl::ToDoubleSeconds(latency);
  sum_of_squares_ += seconds * seconds;
  min_ = std::min(min_, latency);
  max_ = std::max(max_, latency);
}

void LatencyHistogram::Merge(const LatencyHistogram& other) {
  if (other.count_ == 0) return;
  if (buckets_.empty()) buckets_.resize(other.buckets_.size(), 0);
  for (size_t n = 0; n < buckets_.size(); ++n) buckets_[n] += other.buckets_[n];
  count_ += other.count_;
  sum_ += other.sum_;
  sum_of_squares_ += other.sum_of_squares_;
  min_ = std::min(min_, other.min_);
  max_ = std::max(max_, other.max_);
}

absl::Duration LatencyHistogram::Mean() const {
  return count_ == 0 ? absl::ZeroDuration() : sum_ / count_;
}

absl::Duration LatencyHistogram::StandardDeviation() const {
  if (count_ == 0) return absl::ZeroDuration();
  const auto count = static_cast<double>(count_);
  const double mean = absl::ToDoubleSeconds(sum_) / count;
  return absl::Seconds(std::sqrt(std::max(0.0, sum_of_squares_ / count - mean * mean)));
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

std::vector<LatencyHistogram::Bucket> LatencyHistogram::Buckets() const {
  std::vector<Bucket> filled;
  for (size_t n = 0; n < buckets_.size(); ++n) {
    if (buckets_[n] == 0) continue;
    filled.push_back({.most = absl::Microseconds(UpperEnd(n)), .count = buckets_[n]});
  }
  return filled;
}

}  // namespace flashbias::client
