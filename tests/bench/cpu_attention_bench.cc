// How fast the CPU backend computes causal ALiBi attention, and what share of the machine's
// multiply-add peak that is. Seed slopes, random normal q, k, v, batch 1.
//
//   cpu_attention_bench --benchmark_filter='D32/H50/N1024'
//
// GFLOP/s counts 4 D operations for every (query, key) pair of the causal triangle, N (N + 1) / 2
// of them a head, whether they were computed or skipped: with skipping on it is an equivalent rate,
// and only 'skip_off' rows have a share of peak. FLASHBIAS_BENCH_THREADS ("1,2" by default) lists
// the thread counts.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/notification.h"
#include "kernels/alibi.h"
#include "kernels/backend_factory.h"
#include "tests/bench/fma_peak.h"

namespace flashbias::bench {
namespace {

struct Shape {
  int num_heads;
  int head_dim;
  int64_t length;
  DType dtype;
};

std::vector<char> RandomTensor(const Shape& shape, unsigned seed) {
  const int64_t count = shape.length * shape.num_heads * shape.head_dim;
  std::vector<char> data(count * SizeOf(shape.dtype));
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < count; ++i) StoreElement(shape.dtype, data.data(), i, normal(generator));
  return data;
}

void RunBackend(AttentionBackend& backend, const AttentionProblem& problem, ProblemStats* stats) {
  absl::Notification done;
  backend.Run(absl::MakeConstSpan(&problem, 1), absl::MakeSpan(stats, 1),
              [&done](const absl::Status&) { done.Notify(); });
  done.WaitForNotification();
}

void BenchmarkShape(benchmark::State& state, const Shape& shape, float eps, int threads,
                    double peak_gflops) {
  auto backend = CreateBackend({.kind = "cpu", .cpu_threads = threads});
  if (!backend.ok()) {
    state.SkipWithError(std::string(backend.status().message()).c_str());
    return;
  }
  const std::vector<char> q = RandomTensor(shape, 1);
  const std::vector<char> k = RandomTensor(shape, 2);
  const std::vector<char> v = RandomTensor(shape, 3);
  std::vector<char> o(q.size());
  const std::vector<float> slopes = SeedAlibiSlopes(shape.num_heads);
  const Sequence sequence{.q_len = shape.length, .kv_len = shape.length};
  AttentionProblem problem{.dtype = shape.dtype,
                           .num_q_heads = shape.num_heads,
                           .num_kv_heads = shape.num_heads,
                           .head_dim = shape.head_dim,
                           .total_q = shape.length,
                           .total_kv = shape.length,
                           .q = q.data(),
                           .k = k.data(),
                           .v = v.data(),
                           .sequences = absl::MakeConstSpan(&sequence, 1),
                           .softmax_scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim)),
                           .bias_kind = BiasKind::kAlibi,
                           .alibi = {.slopes = slopes.data()},
                           .eps = eps,
                           .o = o.data()};
  ProblemStats stats;
  RunBackend(**backend, problem, &stats);
  for (auto _ : state) RunBackend(**backend, problem, &stats);

  const double pairs = static_cast<double>(shape.length) * (shape.length + 1) / 2.0;
  const double gflop = 4.0 * shape.head_dim * pairs * shape.num_heads * 1e-9;
  state.counters["GFLOP/s"] =
      benchmark::Counter(gflop, benchmark::Counter::kIsIterationInvariantRate);
  if (eps == 0) {
    state.counters["of_peak"] =
        benchmark::Counter(gflop / peak_gflops, benchmark::Counter::kIsIterationInvariantRate);
  }
  state.counters["skipped"] = static_cast<double>(stats.tiles_skipped) /
                              static_cast<double>(stats.tiles_skipped + stats.tiles_computed);
}

std::vector<int> ThreadCounts() {
  const char* list = std::getenv("FLASHBIAS_BENCH_THREADS");
  std::vector<int> counts;
  for (const auto& part : absl::StrSplit(list != nullptr ? list : "1,2", ',')) {
    int count = 0;
    if (absl::SimpleAtoi(part, &count) && count > 0) counts.push_back(count);
  }
  return counts;
}

void RegisterAll() {
  for (const int threads : ThreadCounts()) {
    const double peak = MeasureFmaPeakGflops(threads);
    benchmark::AddCustomContext(absl::StrCat("fma_peak_gflops_", threads, "_threads"),
                                absl::StrCat(peak));
    for (const auto& [heads, head_dim] : {std::pair{50, 32}, {25, 64}, {16, 128}}) {
      for (const int64_t length : {512, 1024, 2048, 4096, 8192}) {
        for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
          // One 16-bit length shows what conversion costs.
          if (dtype != DType::kFloat32 && length != 1024) continue;
          for (const float eps : {0.0f, kDefaultEps}) {
            const Shape shape{heads, head_dim, length, dtype};
            benchmark::RegisterBenchmark(
                absl::StrCat("D", head_dim, "/H", heads, "/N", length, "/", Name(dtype),
                             eps == 0 ? "/skip_off" : "/skip_on", "/threads:", threads)
                    .c_str(),
                [=](benchmark::State& state) { BenchmarkShape(state, shape, eps, threads, peak); })
                ->UseRealTime()
                ->Unit(benchmark::kMillisecond);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace flashbias::bench

int main(int argc, char** argv) {
  flashbias::bench::RegisterAll();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
