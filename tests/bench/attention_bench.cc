// How fast the CUDA kernels compute attention, and what share of the device's floor that is.
//
//   attention_bench --heads=50 --head_dim=32 --seq_lens=1024,16384
//   attention_bench --eps=0 --check --json=dense.json
//   attention_bench --direction=backward --dslopes --check
//
// tests/bench/README.md explains the columns.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <functional>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/reflection.h"
#include "absl/flags/usage.h"
#include "absl/strings/numbers.h"
#include "kernels/alibi.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/backward_plan.h"
#include "kernels/cuda/device_traits.h"
#include "kernels/problem_tensors.h"
#include "tests/bench/attention_floor.h"
#include "tests/bench/bench_case.h"
#include "tests/bench/bench_report.h"
#include "tests/bench/bound_plan.h"
#include "tests/bench/cuda_check.h"
#include "tests/bench/device_problem.h"
#include "tests/bench/gradient_check.h"
#include "tests/bench/launch_timer.h"
#include "tests/bench/spot_check.h"

ABSL_FLAG(std::string, direction, "forward", "forward or backward");
ABSL_FLAG(bool, dslopes, false, "for backward with alibi: the gradient of the slopes too");
ABSL_FLAG(int, heads, 50, "heads of q");
ABSL_FLAG(int, kv_heads, 0, "heads of k and v; 0: as many as --heads");
ABSL_FLAG(int, head_dim, 32, "values per head, 1 to 128");
ABSL_FLAG(std::vector<std::string>, seq_lens,
          std::vector<std::string>({"256", "1024", "4096", "8192", "16384"}),
          "keys of a sequence, one row of the table each");
ABSL_FLAG(int64_t, q_len, 0, "queries, at the end of the keys; 0: as many as keys");
ABSL_FLAG(int64_t, batch, 1, "sequences, all of the same length");
ABSL_FLAG(std::string, dtype, "float16", "float16 or bfloat16");
ABSL_FLAG(std::string, bias, "alibi", "alibi, none or low_rank (random fp32 factors)");
ABSL_FLAG(std::string, slopes, "seed",
          "for alibi: seed (2^(-8k/H)), standard (Press et al.), zero, or a number for every head");
ABSL_FLAG(int, rank, 2, "for low_rank: 1 to 64");
ABSL_FLAG(double, eps, flashbias::kDefaultEps,
          "largest share of softmax mass that skipping may drop; 0: dense");
ABSL_FLAG(
    bool, always_skip, false,
    "skip wherever it is possible, also where the pass over the keys costs more than it saves");
ABSL_FLAG(bool, causal, true, "a query sees keys up to its own position; --nocausal: every key");
ABSL_FLAG(int64_t, window, 0, "left window; 0: unlimited");
ABSL_FLAG(std::string, family, "auto", "kernel: auto, hopper or portable");
ABSL_FLAG(int, repeats, 0, "measured launches; 0: about half a second's, 5 to 100");
ABSL_FLAG(bool, graph, false, "time replays of a CUDA graph of the launch");
ABSL_FLAG(bool, check, false,
          "compare sampled rows with a double-precision reference; backward, with the definition");
ABSL_FLAG(int, check_rows, 48, "rows that --check compares");
ABSL_FLAG(std::string, json, "", "write the report as JSON here; -: stdout, the table to stderr");
ABSL_FLAG(int, device, 0, "which GPU");
ABSL_FLAG(double, clock_ghz, 0,
          "clock of the tensor and exp floors; 0: 1.83 or the device's highest, if that is lower");
ABSL_FLAG(double, tensor_flops_per_clock, 4096, "dense 16-bit tensor operations per clock and SM");
ABSL_FLAG(double, exps_per_clock, 16, "ex2 results per clock and SM");
ABSL_FLAG(double, memory_tbs, 4.25, "device memory, TB/s read and written");

namespace flashbias::bench {
namespace {

void Require(bool holds, const char* flag, const char* what) {
  if (!holds) Fail(flag, what);
}

std::vector<float> SlopesFromFlag(int heads) {
  const std::string name = absl::GetFlag(FLAGS_slopes);
  if (name == "seed") return SeedAlibiSlopes(heads);
  if (name == "standard") return StandardAlibiSlopes(heads);
  float slope = 0;
  Require(name == "zero" || (absl::SimpleAtof(name, &slope) && std::isfinite(slope)), "--slopes",
          "must be seed, standard, zero or a finite number");
  return std::vector<float>(heads, slope);
}

// The flags' shape but for its lengths.
BenchCase CaseFromFlags() {
  BenchCase shape;
  const std::string direction = absl::GetFlag(FLAGS_direction);
  Require(direction == "forward" || direction == "backward", "--direction",
          "must be forward or backward");
  if (direction == "backward") shape.direction = Direction::kBackward;
  shape.num_q_heads = absl::GetFlag(FLAGS_heads);
  Require(shape.num_q_heads > 0, "--heads", "must be positive");
  shape.num_kv_heads = absl::GetFlag(FLAGS_kv_heads);
  if (shape.num_kv_heads == 0) shape.num_kv_heads = shape.num_q_heads;
  Require(shape.num_kv_heads > 0 && shape.num_q_heads % shape.num_kv_heads == 0, "--kv_heads",
          "must divide --heads");
  shape.head_dim = absl::GetFlag(FLAGS_head_dim);
  Require(shape.head_dim >= 1 && shape.head_dim <= kMaxHeadDim, "--head_dim", "must be 1 to 128");
  shape.batch = absl::GetFlag(FLAGS_batch);
  Require(shape.batch > 0, "--batch", "must be positive");
  const std::string dtype = absl::GetFlag(FLAGS_dtype);
  Require(dtype == "float16" || dtype == "bfloat16", "--dtype", "must be float16 or bfloat16");
  shape.dtype = dtype == "float16" ? DType::kFloat16 : DType::kBFloat16;
  shape.mask = {.causal = absl::GetFlag(FLAGS_causal), .left_window = absl::GetFlag(FLAGS_window)};
  Require(shape.mask.left_window >= 0, "--window", "must not be negative");
  shape.eps = static_cast<float>(absl::GetFlag(FLAGS_eps));
  Require(shape.eps >= 0 && shape.eps <= kMaxEps, "--eps", "must be 0 to 2^-8");
  shape.rank = absl::GetFlag(FLAGS_rank);
  Require(shape.rank >= 1 && shape.rank <= kMaxRank, "--rank", "must be 1 to 64");

  const std::string bias = absl::GetFlag(FLAGS_bias);
  Require(bias == "alibi" || bias == "none" || bias == "low_rank", "--bias",
          "must be alibi, none or low_rank");
  shape.bias = bias == "alibi"  ? BiasKind::kAlibi
               : bias == "none" ? BiasKind::kNone
                                : BiasKind::kLowRank;
  if (shape.bias == BiasKind::kAlibi) {
    shape.slopes = SlopesFromFlag(shape.num_q_heads);
  } else {
    shape.eps = 0;  // only ALiBi can be skipped
  }
  shape.dslopes = absl::GetFlag(FLAGS_dslopes);
  Require(
      !shape.dslopes || (shape.direction == Direction::kBackward && shape.bias == BiasKind::kAlibi),
      "--dslopes", "needs --direction=backward and --bias=alibi");
  return shape;
}

std::vector<BenchCase> CasesFromFlags() {
  std::vector<BenchCase> cases;
  for (const std::string& text : absl::GetFlag(FLAGS_seq_lens)) {
    BenchCase shape = CaseFromFlags();
    Require(absl::SimpleAtoi(text, &shape.kv_len) && shape.kv_len > 0 && shape.kv_len <= 1 << 30,
            "--seq_lens", "must be numbers from 1 to 2^30");
    shape.q_len = absl::GetFlag(FLAGS_q_len);
    if (shape.q_len == 0) shape.q_len = shape.kv_len;
    Require(shape.q_len > 0 && shape.q_len <= shape.kv_len, "--q_len",
            "must be 0, or 1 to the number of keys");
    cases.push_back(shape);
  }
  return cases;
}

cuda::PlanOptions PlanOptionsFromFlags() {
  using cuda::PlanOptions;
  PlanOptions options;
  const std::string family = absl::GetFlag(FLAGS_family);
  Require(family == "auto" || family == "hopper" || family == "portable", "--family",
          "must be auto, hopper or portable");
  if (family == "hopper") options.family = PlanOptions::Family::kHopper;
  if (family == "portable") options.family = PlanOptions::Family::kPortable;
  if (absl::GetFlag(FLAGS_always_skip)) {
    options.skipping = PlanOptions::Skipping::kWhereverPossible;
  }
  return options;
}

cuda::DeviceTraits OpenDevice() {
  const int ordinal = absl::GetFlag(FLAGS_device);
  int count = 0;
  CheckCuda(cudaGetDeviceCount(&count), "no CUDA device");
  Require(ordinal >= 0 && ordinal < count, "--device", "there is no such CUDA device");
  FLASHBIAS_CHECK_CUDA(cudaSetDevice(ordinal));
  cuda::DeviceTraits traits;
  FLASHBIAS_CHECK_CUDA(cuda::ReadDeviceTraits(ordinal, &traits));
  return traits;
}

DeviceDescription DescribeDevice(const cuda::DeviceTraits& traits) {
  cudaDeviceProp properties;
  FLASHBIAS_CHECK_CUDA(cudaGetDeviceProperties(&properties, traits.ordinal));
  int clock_khz = 0;
  FLASHBIAS_CHECK_CUDA(cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, traits.ordinal));
  DeviceDescription device{.name = properties.name,
                           .compute_capability = traits.compute_capability,
                           .max_clock_ghz = clock_khz * 1e-6};
  FLASHBIAS_CHECK_CUDA(cudaDriverGetVersion(&device.driver_version));
  FLASHBIAS_CHECK_CUDA(cudaRuntimeGetVersion(&device.runtime_version));
  return device;
}

DeviceRates RatesFromFlags(const cuda::DeviceTraits& traits, const DeviceDescription& device) {
  DeviceRates rates{.num_sms = traits.num_sms,
                    .tensor_flops_per_clock_per_sm = absl::GetFlag(FLAGS_tensor_flops_per_clock),
                    .exps_per_clock_per_sm = absl::GetFlag(FLAGS_exps_per_clock),
                    .memory_bytes_per_s = absl::GetFlag(FLAGS_memory_tbs) * 1e12};
  const double clock_ghz = absl::GetFlag(FLAGS_clock_ghz);
  rates.clock_hz =
      clock_ghz > 0 ? clock_ghz * 1e9 : std::min(rates.clock_hz, device.max_clock_ghz * 1e9);
  return rates;
}

// Every flag that this file defines, with its value.
std::vector<std::pair<std::string, std::string>> FlagValues() {
  std::vector<std::pair<std::string, std::string>> values;
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (flag->Filename().find("attention_bench") == std::string::npos) continue;
    values.emplace_back(name, flag->CurrentValue());
  }
  return values;
}

// Launches once, checks that with `error`, and times the rest.
template <typename Plan>
BenchRow Measure(const BenchCase& shape, const BoundPlan<Plan>& plan, const DeviceRates& rates,
                 LaunchTimer& timer, cudaStream_t stream,
                 const std::function<double(int num_rows)>& error) {
  FLASHBIAS_CHECK_CUDA(plan.Launch());
  const cuda::TileCounts tiles = plan.TileCounts();
  BenchRow row{.shape = shape,
               .family = plan.family() == cuda::KernelFamily::kHopper ? "hopper" : "portable",
               .tiles_computed = tiles.computed,
               .tiles_skipped = tiles.skipped};
  if (absl::GetFlag(FLAGS_check)) row.relative_error = error(absl::GetFlag(FLAGS_check_rows));

  const int repeats = absl::GetFlag(FLAGS_repeats);
  const auto launch = [&] { return plan.Launch(); };
  if (absl::GetFlag(FLAGS_graph)) {
    const LaunchGraph graph(launch, stream);
    row.times = timer.Time([&] { return graph.Launch(); }, repeats);
  } else {
    row.times = timer.Time(launch, repeats);
  }

  const double all_tiles = static_cast<double>(tiles.computed + tiles.skipped);
  const double computed_share =
      all_tiles > 0 ? static_cast<double>(tiles.computed) / all_tiles : 1.0;
  row.floor = AttentionFloor(shape, computed_share, rates);
  if (shape.eps == 0) row.dense_tflops = DenseFlops(shape) / (row.times.median_ms * 1e9);
  return row;
}

BenchRow RunForward(const BenchCase& shape, const cuda::DeviceTraits& traits,
                    const cuda::PlanOptions& options, const DeviceRates& rates, LaunchTimer& timer,
                    cudaStream_t stream) {
  const HostInputs inputs(shape);
  const DeviceProblem device(inputs.problem());
  const BoundPlan<cuda::AttentionPlan> plan(device.problem(), traits, options, stream);
  return Measure(shape, plan, rates, timer, stream, [&](int num_rows) {
    return SampledRelativeError(inputs.problem(), device.Download(kTensorO), num_rows);
  });
}

// o and lse are those of the forward kernels.
BenchRow RunBackward(const BenchCase& shape, const cuda::DeviceTraits& traits,
                     const cuda::PlanOptions& options, const DeviceRates& rates, LaunchTimer& timer,
                     cudaStream_t stream) {
  const HostInputs inputs(shape);
  const DeviceProblem device(inputs.problem());
  AttentionProblem forward = device.problem();
  forward.direction = Direction::kForward;
  const BoundPlan<cuda::AttentionPlan> forward_plan(forward, traits, options, stream);
  FLASHBIAS_CHECK_CUDA(forward_plan.Launch());
  const BoundPlan<cuda::BackwardPlan> plan(device.problem(), traits, options, stream);
  return Measure(shape, plan, rates, timer, stream, [&](int num_rows) {
    AttentionProblem host = inputs.problem();
    constexpr TensorSet kFromDevice[] = {kTensorLse, kTensorO, kTensorDQ, kTensorDK, kTensorDV};
    std::vector<std::vector<char>> tensors;
    for (const TensorSet tensor : kFromDevice) {
      tensors.push_back(device.Download(tensor));
      PointAt(tensor, tensors.back().data(), &host);
    }
    return SampledGradientError(host, num_rows);
  });
}

int Main() {
  const std::vector<BenchCase> cases = CasesFromFlags();
  const cuda::PlanOptions options = PlanOptionsFromFlags();
  const std::string json_path = absl::GetFlag(FLAGS_json);

  const cuda::DeviceTraits traits = OpenDevice();
  BenchReport report{.device = DescribeDevice(traits), .flags = FlagValues()};
  report.rates = RatesFromFlags(traits, report.device);
  cudaStream_t stream = nullptr;
  FLASHBIAS_CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  LaunchTimer timer(stream);

  std::ostream& table = json_path == "-" ? std::cerr : std::cout;
  table << FormatHeader(report) << std::endl;
  for (const BenchCase& shape : cases) {
    const auto run = shape.direction == Direction::kForward ? RunForward : RunBackward;
    report.rows.push_back(run(shape, traits, options, report.rates, timer, stream));
    table << FormatRow(report.rows.back()) << std::endl;
  }
  FLASHBIAS_CHECK_CUDA(cudaStreamDestroy(stream));

  if (json_path == "-") {
    std::cout << FormatJson(report) << std::endl;
  } else if (!json_path.empty()) {
    std::ofstream file(json_path);
    file << FormatJson(report) << "\n";
    file.close();
    if (!file) Fail("--json", "the file cannot be written");
  }
  return 0;
}

}  // namespace
}  // namespace flashbias::bench

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage(
      "times the CUDA kernels; tests/bench/README.md explains the columns");
  absl::ParseCommandLine(argc, argv);
  return flashbias::bench::Main();
}
