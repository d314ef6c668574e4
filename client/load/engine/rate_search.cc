#include "client/load/engine/rate_search.h"

#include <algorithm>

namespace flashbias::client {
namespace {

constexpr double kLowestShare = 0.01;  // of the first rate

}  // namespace

RateSearch::RateSearch(const Options& options)
    : options_(options),
      first_(options.max_rate > 0 ? std::min(options.first_rate, options.max_rate)
                                  : options.first_rate),
      next_(first_) {}

std::optional<double> RateSearch::Next() const {
  if (ended_) return std::nullopt;
  return next_;
}

void RateSearch::Report(bool met) {
  (met ? best_ : bound_) = next_;
  ++steps_;
  if (steps_ >= options_.max_steps) {
    ended_ = true;
  } else {
    ChooseNext();
  }
}

void RateSearch::ChooseNext() {
  if (!bound_.has_value()) {
    ended_ = options_.max_rate > 0 && next_ >= options_.max_rate;
    next_ *= options_.step_factor;
    if (options_.max_rate > 0) next_ = std::min(next_, options_.max_rate);
  } else if (!best_.has_value()) {
    next_ /= options_.step_factor * options_.step_factor;
    ended_ = next_ < kLowestShare * first_;
  } else {
    next_ = (*best_ + *bound_) / 2;
    ended_ = *bound_ - *best_ <= options_.precision * *best_;
  }
}

}  // namespace flashbias::client
