// One benchmarked shape and its inputs in host memory.
//
// The inputs are random normal, the same bits for the same case on every machine.
#ifndef FLASHBIAS_TESTS_BENCH_BENCH_CASE_H_
#define FLASHBIAS_TESTS_BENCH_BENCH_CASE_H_

#include <cstdint>
#include <vector>

#include "kernels/attention_problem.h"

namespace flashbias::bench {

struct BenchCase {
  Direction direction = Direction::kForward;
  DType dtype = DType::kFloat16;
  int num_q_heads = 50;
  int num_kv_heads = 50;
  int head_dim = 32;
  int64_t batch = 1;     // sequences, all alike
  int64_t q_len = 1024;  // of each; aligned to the end of the keys
  int64_t kv_len = 1024;
  Mask mask;
  BiasKind bias = BiasKind::kAlibi;
  std::vector<float> slopes;  // [num_q_heads], for kAlibi
  int rank = 2;               // for kLowRank, whose factors are fp32, one for each head
  float eps = kDefaultEps;
  bool dslopes = false;  // backward, kAlibi: their gradient is wanted
};

// (query, key) pairs of one head over all sequences that the mask admits.
double AdmittedPairs(const BenchCase& shape);

// Owns what the problem of a case points to, in host memory.
class HostInputs {
 public:
  explicit HostInputs(const BenchCase& shape);

  // Host pointers; o is null, and so are lse and what is written of a backward problem, but for
  // dslopes where they are wanted. Valid while this object lives.
  const AttentionProblem& problem() const { return problem_; }

  HostInputs(const HostInputs&) = delete;
  HostInputs& operator=(const HostInputs&) = delete;

 private:
  std::vector<float> slopes_, dslopes_;
  std::vector<char> q_, k_, v_, phi_q_, phi_k_, d_o_;
  std::vector<Sequence> sequences_;
  AttentionProblem problem_;
};

}  // namespace flashbias::bench

#endif  // FLASHBIAS_TESTS_BENCH_BENCH_CASE_H_
