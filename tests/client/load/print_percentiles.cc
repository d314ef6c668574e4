// Prints latencies of several distributions and what our histograms make of them, as JSON, for
// percentiles.py.
#include <cstdint>
#include <functional>
#include <iostream>
#include <random>
#include <string>

#include "client/load/engine/latency_histogram.h"
#include "nlohmann/json.hpp"

namespace flashbias::client {
namespace {

constexpr double kPercents[] = {0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 99.99, 100};
// A prime, so that no percentile lies between two of the values.
constexpr int kCount = 20011;

// Recorded by turns in histograms that are then merged, as a run does.
nlohmann::json Recorded(LatencyHistogram::Precision precision, int64_t parts,
                        const std::function<double()>& nanoseconds) {
  nlohmann::json json;
  LatencyHistogram all(precision);
  for (int part = 0; part < 3; ++part) {
    LatencyHistogram histogram(precision);
    for (int n = part; n < kCount; n += 3) {
      const auto value = static_cast<int64_t>(nanoseconds());
      json["nanoseconds"].push_back(value);
      histogram.Record(absl::Nanoseconds(value));
    }
    all.Merge(histogram);
  }
  json["parts"] = parts;
  for (const double percent : kPercents) {
    json["percentiles"].push_back({percent, absl::ToDoubleNanoseconds(all.Percentile(percent))});
  }
  json["mean"] = absl::ToDoubleNanoseconds(all.Mean());
  json["deviation"] = absl::ToDoubleNanoseconds(all.StandardDeviation());
  json["min"] = absl::ToDoubleNanoseconds(all.min());
  json["max"] = absl::ToDoubleNanoseconds(all.max());
  return json;
}

nlohmann::json Everything() {
  std::mt19937_64 random(11);
  std::uniform_real_distribution<double> uniform(10e3, 1e6);
  std::exponential_distribution<double> exponential(1 / 5e6);
  std::lognormal_distribution<double> lognormal(16, 1.5);
  std::normal_distribution<double> narrow(30e6, 0.2e6);
  nlohmann::json json;
  for (const auto precision :
       {LatencyHistogram::Precision::kFine, LatencyHistogram::Precision::kCoarse}) {
    const bool fine = precision == LatencyHistogram::Precision::kFine;
    const auto add = [&](const std::string& name, const std::function<double()>& nanoseconds) {
      json[name + (fine ? "" : ", coarse")] = Recorded(precision, fine ? 1024 : 64, nanoseconds);
    };
    add("uniform", [&] { return uniform(random); });
    add("exponential", [&] { return exponential(random); });
    add("log-normal", [&] { return std::min(lognormal(random), 119e9); });
    add("narrow", [&] { return narrow(random); });
    // Of every hundred one stalls.
    add("stalls", [&] { return random() % 100 == 0 ? 1000 * uniform(random) : narrow(random); });
  }
  return json;
}

}  // namespace
}  // namespace flashbias::client

int main() {
  std::cout << flashbias::client::Everything() << '\n';
  return std::cout.good() ? 0 : 1;
}
