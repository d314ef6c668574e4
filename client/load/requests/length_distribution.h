// Lengths of sequences as a load draws them.
//
// Plain value; its functions are pure.
#ifndef FLASHBIAS_CLIENT_LOAD_REQUESTS_LENGTH_DISTRIBUTION_H_
#define FLASHBIAS_CLIENT_LOAD_REQUESTS_LENGTH_DISTRIBUTION_H_

#include <cstdint>
#include <string>
#include <vector>
#include "absl/strings/string_view.h"

#include "absl/status/status.h"

namespace flashbias::client {

// Far above what any message limit lets through; keeps every product of sizes below 2^62.
inline constexpr int64_t kMaxLength = int64_t{1} << 24;

struct LengthDistribution {
  enum class Kind { kFixed, kUniform, kLogNormal, kChoice };
  Kind kind = Kind::kFixed;
  int64_t min = 0;  // kFixed: the length
  int64_t max = 0;
  double median = 0;                 // kLogNormal; what falls outside min to max becomes the end
  double sigma = 0;                  // kLogNormal, of ln(length)
  std::vector<int64_t> values = {};  // kChoice
  std::vector<double> weights = {};  // kChoice; empty: equal

  // INVALID_ARGUMENT: a field of the kind is out of its range; lengths are 1 to kMaxLength. The
  // message calls the distribution `name`.
  absl::Status Validate(absl::string_view name) const;

  // What follows REQUIRES: Validate() is OK, or a fixed length.
  int64_t Largest() const;
  // The length at a quantile, 0 <= quantile < 1; of kChoice in the order of its values.
  int64_t Draw(double quantile) const;
  // "1024", "64 to 8192", "64 to 8192 (lognormal, median 900)", "512, 1024".
  std::string Describe() const;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REQUESTS_LENGTH_DISTRIBUTION_H_
