#include "client/load/requests/length_distribution.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace flashbias::client {
namespace {

template <typename... Args>
absl::Status Invalid(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

absl::Status CheckLength(absl::string_view name, absl::string_view field, int64_t value,
                         int64_t least) {
  if (value >= least && value <= kMaxLength) return absl::OkStatus();
  return Invalid(name, field, " is ", value, "; accepted: ", least, " to ", kMaxLength);
}

absl::Status CheckRange(absl::string_view name, const LengthDistribution& lengths) {
  if (absl::Status status = CheckLength(name, ".min", lengths.min, 1); !status.ok()) return status;
  return CheckLength(name, ".max", lengths.max, lengths.min);
}

absl::Status CheckLogNormal(absl::string_view name, const LengthDistribution& lengths) {
  if (!(lengths.median >= 1 && lengths.median <= static_cast<double>(kMaxLength))) {
    return Invalid(name, ".median is ", lengths.median, "; accepted: 1 to ", kMaxLength);
  }
  if (!(lengths.sigma > 0 && lengths.sigma <= 10)) {
    return Invalid(name, ".sigma is ", lengths.sigma, "; accepted: above 0, up to 10");
  }
  return CheckRange(name, lengths);
}

absl::Status CheckChoice(absl::string_view name, const LengthDistribution& lengths) {
  if (lengths.values.empty()) {
    return Invalid(name, ".values is empty; accepted: at least one length");
  }
  for (size_t n = 0; n < lengths.values.size(); ++n) {
    const std::string field = absl::StrCat(".values[", n, "]");
    if (absl::Status status = CheckLength(name, field, lengths.values[n], 1); !status.ok()) {
      return status;
    }
  }
  if (lengths.weights.empty()) return absl::OkStatus();
  if (lengths.weights.size() != lengths.values.size()) {
    return Invalid(name, ".weights has ", lengths.weights.size(),
                   " entries; accepted: one for each of the ", lengths.values.size(), " values");
  }
  for (size_t n = 0; n < lengths.weights.size(); ++n) {
    if (!(lengths.weights[n] > 0 && std::isfinite(lengths.weights[n]))) {
      return Invalid(name, ".weights[", n, "] is ", lengths.weights[n],
                     "; accepted: positive numbers");
    }
  }
  return absl::OkStatus();
}

// The share of lengths, rounded to whole ones, that are at most `length`.
double LogNormalShare(const LengthDistribution& lengths, int64_t length) {
  const double z = std::log((static_cast<double>(length) + 0.5) / lengths.median) / lengths.sigma;
  return 0.5 * std::erfc(-z / std::numbers::sqrt2);
}

// The least length whose share exceeds the quantile.
int64_t DrawLogNormal(const LengthDistribution& lengths, double quantile) {
  int64_t below = lengths.min - 1;
  int64_t at = lengths.max;
  while (at - below > 1) {
    const int64_t middle = below + (at - below) / 2;
    (LogNormalShare(lengths, middle) > quantile ? at : below) = middle;
  }
  return at;
}

int64_t DrawChoice(const LengthDistribution& lengths, double quantile) {
  const auto weight = [&](size_t n) { return lengths.weights.empty() ? 1 : lengths.weights[n]; };
  double total = 0;
  for (size_t n = 0; n < lengths.values.size(); ++n) total += weight(n);
  double sum = 0;
  for (size_t n = 0; n < lengths.values.size(); ++n) {
    sum += weight(n);
    if (quantile * total < sum) return lengths.values[n];
  }
  return lengths.values.back();
}

}  // namespace

absl::Status LengthDistribution::Validate(absl::string_view name) const {
  switch (kind) {
    case Kind::kFixed:
      return CheckLength(name, "", min, 1);
    case Kind::kUniform:
      return CheckRange(name, *this);
    case Kind::kLogNormal:
      return CheckLogNormal(name, *this);
    case Kind::kChoice:
      return CheckChoice(name, *this);
  }
  return absl::OkStatus();
}

int64_t LengthDistribution::Largest() const {
  switch (kind) {
    case Kind::kFixed:
      return min;
    case Kind::kUniform:
    case Kind::kLogNormal:
      return max;
    case Kind::kChoice:
      return *std::max_element(values.begin(), values.end());
  }
  return 0;
}

int64_t LengthDistribution::Draw(double quantile) const {
  switch (kind) {
    case Kind::kFixed:
      return min;
    case Kind::kUniform: {
      const auto count = static_cast<double>(max - min + 1);
      return std::min(max, min + static_cast<int64_t>(quantile * count));
    }
    case Kind::kLogNormal:
      return DrawLogNormal(*this, quantile);
    case Kind::kChoice:
      return DrawChoice(*this, quantile);
  }
  return 0;
}

std::string LengthDistribution::Describe() const {
  switch (kind) {
    case Kind::kFixed:
      return absl::StrCat(min);
    case Kind::kUniform:
      return absl::StrCat(min, " to ", max);
    case Kind::kLogNormal:
      return absl::StrCat(min, " to ", max, " (lognormal, median ", median, ")");
    case Kind::kChoice:
      return absl::StrJoin(values, ", ");
  }
  return "";
}

}  // namespace flashbias::client
