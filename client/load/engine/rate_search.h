// Finds the highest rate that meets an objective: steps up until one does not, then bisects.
//
// Where the first rate does not meet it, steps down until one does, with the square of the factor
// and no further than to a hundredth, below which the objective is taken for one that no rate
// meets. Each answer is believed, so a chance result costs the search accuracy, never its end: the
// bracket shrinks with every step.
//
// Thread-safety: none. No clock, no I/O: the caller drives a rate and says what came of it.
#ifndef FLASHBIAS_CLIENT_LOAD_ENGINE_RATE_SEARCH_H_
#define FLASHBIAS_CLIENT_LOAD_ENGINE_RATE_SEARCH_H_

#include <optional>

namespace flashbias::client {

class RateSearch {
 public:
  struct Options {
    double first_rate = 0;     // requests a second; above 0; lowered to max_rate
    double step_factor = 1.5;  // above 1
    double precision = 0.05;   // the bisection ends when the bracket is this share of its lower end
    double max_rate = 0;       // 0: none
    int max_steps = 40;        // of both parts
  };
  // REQUIRES: options within those ranges.
  explicit RateSearch(const Options& options);

  // What to drive next; nullopt: the search has ended.
  std::optional<double> Next() const;
  // The rate that Next() gave met the objective, or did not.
  void Report(bool met);

  // The highest rate that met the objective; nullopt: none has.
  std::optional<double> best() const { return best_; }
  // The lowest that did not, above best(); nullopt: none was found.
  std::optional<double> bound() const { return bound_; }

 private:
  void ChooseNext();

  const Options options_;
  const double first_;  // that is driven
  std::optional<double> best_;
  std::optional<double> bound_;
  double next_;
  int steps_ = 0;
  bool ended_ = false;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_ENGINE_RATE_SEARCH_H_
