// CUDA errors end a benchmark: a message that names the call, exit code 1. For programs only.
#ifndef FLASHBIAS_TESTS_BENCH_CUDA_CHECK_H_
#define FLASHBIAS_TESTS_BENCH_CUDA_CHECK_H_

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>

namespace flashbias::bench {

// What a benchmark says when it cannot go on.
[[noreturn]] inline void Fail(const char* what, const char* why) {
  std::fprintf(stderr, "attention_bench: %s: %s\n", what, why);
  std::exit(1);  // NOLINT(concurrency-mt-unsafe): a benchmark has one thread
}

inline void CheckCuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) Fail(what, cudaGetErrorString(error));
}

}  // namespace flashbias::bench

#define FLASHBIAS_CHECK_CUDA(call) ::flashbias::bench::CheckCuda((call), #call)

#endif  // FLASHBIAS_TESTS_BENCH_CUDA_CHECK_H_
