#include "tests/support/golden.h"

#include <cmath>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/support/compare.h"
#include "tests/support/npz.h"

namespace flashbias::support {
namespace {

// Where the sources are not, as on a machine that only runs the tests, the variable says where.
std::string Directory() {
  const char* given = std::getenv("FLASHBIAS_VECTORS");
  return given != nullptr ? absl::StrCat(given, "/") : FLASHBIAS_SOURCE_DIR "/tests/vectors/";
}

struct Limits {
  double relative_error;  // of o
  double lse;             // of |lse - expected| / (1 + |expected|)
};

Limits LimitsFor(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return {.relative_error = 2e-3, .lse = 2e-3};
    case DType::kBFloat16:
      return {.relative_error = 1.5e-2, .lse = 1.5e-2};
    case DType::kFloat32:
      break;
  }
  return {.relative_error = RelativeErrorLimit(DType::kFloat32), .lse = 1e-6};
}

using Arrays = std::map<std::string, NpyArray>;

void StoreAll(const NpyArray& array, void* data) {
  for (size_t n = 0; n < array.values.size(); ++n) {
    StoreElement(DType::kFloat32, data, static_cast<int64_t>(n),
                 static_cast<float>(array.values[n]));
  }
}

absl::StatusOr<OwnedProblem> BuildProblem(const std::string& name, const nlohmann::json& entry,
                                          const Arrays& arrays, Direction direction) {
  for (const char* needed : {"q", "k", "v", "do", "o", "lse", "dq", "dk", "dv"}) {
    if (arrays.count(needed) == 0) {
      return absl::InvalidArgumentError(absl::StrCat(name, ": no array '", needed, "'"));
    }
  }
  const NpyArray& q = arrays.at("q");
  const NpyArray& k = arrays.at("k");
  if (q.shape.size() != 3 || k.shape.size() != 3 || arrays.at("v").shape != k.shape) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": q, k and v are not [rows, heads, dim]"));
  }
  AttentionProblem shape;
  shape.direction = direction;
  shape.total_q = q.shape[0];
  shape.num_q_heads = static_cast<int>(q.shape[1]);
  shape.head_dim = static_cast<int>(q.shape[2]);
  shape.total_kv = k.shape[0];
  shape.num_kv_heads = static_cast<int>(k.shape[1]);
  shape.mask.causal = entry.value("causal", false);
  shape.mask.left_window = entry.value("window", int64_t{0});
  shape.softmax_scale =
      static_cast<float>(entry.value("scale", 1.0 / std::sqrt(static_cast<double>(q.shape[2]))));
  if (arrays.count("slopes") != 0) shape.bias_kind = BiasKind::kAlibi;
  if (arrays.count("phi_q") != 0) {
    shape.bias_kind = BiasKind::kLowRank;
    shape.low_rank.rank = static_cast<int>(arrays.at("phi_q").shape.back());
    shape.low_rank.phi_q_heads = static_cast<int>(arrays.at("phi_q").shape[1]);
    shape.low_rank.phi_k_heads = static_cast<int>(arrays.at("phi_k").shape[1]);
  }
  Sequence sequence{.q_len = shape.total_q, .kv_len = shape.total_kv};
  sequence.key_start = entry.value("k_start", int64_t{0});
  sequence.query_start =
      entry.value("q_start", sequence.key_start + sequence.kv_len - sequence.q_len);

  OwnedProblem owned(shape, {sequence}, /*want_lse=*/true, /*byte_offset=*/0);
  StoreAll(q, owned.q());
  StoreAll(k, owned.k());
  StoreAll(arrays.at("v"), owned.v());
  if (shape.bias_kind == BiasKind::kAlibi) StoreAll(arrays.at("slopes"), owned.slopes());
  if (shape.bias_kind == BiasKind::kLowRank) {
    StoreAll(arrays.at("phi_q"), owned.phi_q());
    StoreAll(arrays.at("phi_k"), owned.phi_k());
  }
  if (direction == Direction::kBackward) {
    StoreAll(arrays.at("do"), owned.d_o());
    StoreAll(arrays.at("o"), owned.o_input());
    StoreAll(arrays.at("lse"), owned.lse_input());
  }
  return owned;
}

// Calls add(name, problem, arrays) for every case of index.json.
template <typename Add>
absl::Status LoadAll(Direction direction, const Add& add) {
  const std::string directory = Directory();
  const absl::StatusOr<std::string> text = ReadFile(absl::StrCat(directory, "index.json"));
  if (!text.ok()) return text.status();
  const nlohmann::json index = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!index.is_object()) return absl::InvalidArgumentError("index.json is not a JSON object");
  for (const auto& [name, entry] : index.items()) {
    const absl::StatusOr<Arrays> arrays = ReadNpz(absl::StrCat(directory, name, ".npz"));
    if (!arrays.ok()) return arrays.status();
    absl::StatusOr<OwnedProblem> owned = BuildProblem(name, entry, *arrays, direction);
    if (!owned.ok()) return owned.status();
    add(name, *std::move(owned), *arrays);
  }
  return absl::OkStatus();
}

// Empty where there is none.
std::vector<double> ValuesOf(const Arrays& arrays, const std::string& name) {
  const auto found = arrays.find(name);
  return found == arrays.end() ? std::vector<double>() : found->second.values;
}

// Of rounded inputs, as LimitsFor.
double GradientLimitFor(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return 4e-3;
    case DType::kBFloat16:
      return 3e-2;
    case DType::kFloat32:
      break;
  }
  return 2e-5;
}

}  // namespace

absl::StatusOr<std::vector<GoldenCase>> LoadGoldenCases() {
  std::vector<GoldenCase> cases;
  const absl::Status status = LoadAll(
      Direction::kForward, [&](const std::string& name, OwnedProblem owned, const Arrays& arrays) {
        cases.push_back({.name = name,
                         .owned = std::move(owned),
                         .o = ValuesOf(arrays, "o"),
                         .lse = ValuesOf(arrays, "lse")});
      });
  if (!status.ok()) return status;
  return cases;
}

absl::StatusOr<std::vector<GoldenGradients>> LoadGoldenGradients() {
  std::vector<GoldenGradients> cases;
  const absl::Status status = LoadAll(
      Direction::kBackward, [&](const std::string& name, OwnedProblem owned, const Arrays& arrays) {
        cases.push_back({.name = name,
                         .owned = std::move(owned),
                         .expected = {.dq = ValuesOf(arrays, "dq"),
                                      .dk = ValuesOf(arrays, "dk"),
                                      .dv = ValuesOf(arrays, "dv"),
                                      .dslopes = ValuesOf(arrays, "dslopes"),
                                      .dphi_q = ValuesOf(arrays, "dphi_q"),
                                      .dphi_k = ValuesOf(arrays, "dphi_k")}});
      });
  if (!status.ok()) return status;
  return cases;
}

::testing::AssertionResult MatchesGolden(const GoldenCase& golden) {
  const AttentionProblem& problem = golden.owned.problem();
  const std::string damage = golden.owned.CheckOutputs();
  if (!damage.empty()) return ::testing::AssertionFailure() << damage;
  double difference = 0;
  double norm = 0;
  for (size_t n = 0; n < golden.o.size(); ++n) {
    const double error =
        static_cast<double>(LoadElement(problem.dtype, problem.o, static_cast<int64_t>(n))) -
        golden.o[n];
    difference += error * error;
    norm += golden.o[n] * golden.o[n];
  }
  const double relative_error = std::sqrt(difference / norm);
  const Limits limits = LimitsFor(problem.dtype);
  if (!(relative_error <= limits.relative_error)) {
    return ::testing::AssertionFailure() << golden.name << ": relative error " << relative_error;
  }
  for (size_t n = 0; n < golden.lse.size(); ++n) {
    const auto lse = static_cast<double>(problem.lse[n]);
    if (lse == golden.lse[n]) continue;  // both -infinity
    if (!(std::fabs(lse - golden.lse[n]) <= limits.lse * (1 + std::fabs(golden.lse[n])))) {
      return ::testing::AssertionFailure()
             << golden.name << ": lse[" << n << "] is " << lse << ", expected " << golden.lse[n];
    }
  }
  return ::testing::AssertionSuccess();
}

::testing::AssertionResult MatchesGolden(const GoldenGradients& golden) {
  const AttentionProblem& problem = golden.owned.problem();
  const std::string damage = golden.owned.CheckOutputs();
  if (!damage.empty()) return ::testing::AssertionFailure() << damage;
  struct Tensor {
    const char* name;
    DType dtype;
    const void* data;
    const std::vector<double>& expected;
  };
  const Gradients& g = problem.gradients;
  const Tensor tensors[] = {{"dq", problem.dtype, g.dq, golden.expected.dq},
                            {"dk", problem.dtype, g.dk, golden.expected.dk},
                            {"dv", problem.dtype, g.dv, golden.expected.dv},
                            {"dslopes", DType::kFloat32, g.dslopes, golden.expected.dslopes},
                            {"dphi_q", DType::kFloat32, g.dphi_q, golden.expected.dphi_q},
                            {"dphi_k", DType::kFloat32, g.dphi_k, golden.expected.dphi_k}};
  const double limit = GradientLimitFor(problem.dtype);
  for (const Tensor& tensor : tensors) {
    double difference = 0;
    double norm = 0;
    for (size_t n = 0; n < tensor.expected.size(); ++n) {
      const double error =
          static_cast<double>(LoadElement(tensor.dtype, tensor.data, static_cast<int64_t>(n))) -
          tensor.expected[n];
      difference += error * error;
      norm += tensor.expected[n] * tensor.expected[n];
    }
    const double floor = 0.5 * limit * std::sqrt(static_cast<double>(tensor.expected.size()));
    if (!(std::sqrt(difference) <= limit * std::sqrt(norm) + floor)) {
      return ::testing::AssertionFailure()
             << golden.name << ": " << tensor.name << " differs by " << std::sqrt(difference)
             << " from a norm of " << std::sqrt(norm);
    }
  }
  return ::testing::AssertionSuccess();
}

}  // namespace flashbias::support
