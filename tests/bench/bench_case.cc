#include "tests/bench/bench_case.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <random>
#include <thread>

namespace flashbias::bench {
namespace {

// Elements of one random generator, so that any number of threads gives the same tensor.
constexpr int64_t kChunk = int64_t{1} << 18;

std::vector<char> RandomTensor(DType dtype, int64_t count, unsigned tensor, float deviation = 1) {
  std::vector<char> data(count * SizeOf(dtype));
  std::atomic<int64_t> next_chunk = 0;
  const auto fill = [&] {
    for (;;) {
      const int64_t chunk = next_chunk.fetch_add(1);
      const int64_t begin = chunk * kChunk;
      if (begin >= count) return;
      std::seed_seq seed{tensor, static_cast<unsigned>(chunk)};
      std::mt19937 generator(seed);
      std::normal_distribution<float> normal(0, deviation);
      const int64_t end = std::min(count, begin + kChunk);
      for (int64_t i = begin; i < end; ++i) {
        StoreElement(dtype, data.data(), i, normal(generator));
      }
    }
  };
  std::vector<std::jthread> threads;
  for (unsigned t = 1; t < std::thread::hardware_concurrency(); ++t) threads.emplace_back(fill);
  fill();
  threads.clear();
  return data;
}

}  // namespace

double AdmittedPairs(const BenchCase& shape) {
  double pairs = 0;
  for (int64_t row = 0; row < shape.q_len; ++row) {
    const int64_t position = shape.kv_len - shape.q_len + row;
    const int64_t last =
        shape.mask.causal ? std::min(position, shape.kv_len - 1) : shape.kv_len - 1;
    const int64_t first = shape.mask.left_window > 0
                              ? std::max<int64_t>(0, position - shape.mask.left_window + 1)
                              : 0;
    pairs += static_cast<double>(std::max<int64_t>(0, last - first + 1));
  }
  return pairs * static_cast<double>(shape.batch);
}

HostInputs::HostInputs(const BenchCase& shape) : slopes_(shape.slopes) {
  const int64_t total_q = shape.batch * shape.q_len;
  const int64_t total_kv = shape.batch * shape.kv_len;
  q_ = RandomTensor(shape.dtype, total_q * shape.num_q_heads * shape.head_dim, 1);
  k_ = RandomTensor(shape.dtype, total_kv * shape.num_kv_heads * shape.head_dim, 2);
  v_ = RandomTensor(shape.dtype, total_kv * shape.num_kv_heads * shape.head_dim, 3);
  for (int64_t s = 0; s < shape.batch; ++s) {
    sequences_.push_back({.q_begin = s * shape.q_len,
                          .q_len = shape.q_len,
                          .kv_begin = s * shape.kv_len,
                          .kv_len = shape.kv_len,
                          .query_start = shape.kv_len - shape.q_len});
  }
  problem_ = {.direction = shape.direction,
              .dtype = shape.dtype,
              .num_q_heads = shape.num_q_heads,
              .num_kv_heads = shape.num_kv_heads,
              .head_dim = shape.head_dim,
              .total_q = total_q,
              .total_kv = total_kv,
              .q = q_.data(),
              .k = k_.data(),
              .v = v_.data(),
              .sequences = sequences_,
              .mask = shape.mask,
              .softmax_scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim)),
              .bias_kind = shape.bias,
              .eps = shape.eps};
  if (shape.bias == BiasKind::kAlibi) problem_.alibi.slopes = slopes_.data();
  if (shape.bias == BiasKind::kLowRank) {
    // The product of two factors then has variance 1, whatever the rank.
    const float deviation = std::pow(static_cast<float>(shape.rank), -0.25f);
    phi_q_ = RandomTensor(DType::kFloat32, total_q * shape.num_q_heads * shape.rank, 4, deviation);
    phi_k_ = RandomTensor(DType::kFloat32, total_kv * shape.num_q_heads * shape.rank, 5, deviation);
    problem_.low_rank = {.phi_q = phi_q_.data(),
                         .phi_k = phi_k_.data(),
                         .rank = shape.rank,
                         .phi_q_heads = shape.num_q_heads,
                         .phi_k_heads = shape.num_q_heads};
  }
  if (shape.direction == Direction::kBackward) {
    d_o_ = RandomTensor(shape.dtype, total_q * shape.num_q_heads * shape.head_dim, 6);
    problem_.gradients.d_o = d_o_.data();
    if (shape.dslopes) {
      dslopes_.resize(shape.num_q_heads);
      problem_.gradients.dslopes = dslopes_.data();
    }
  }
}

}  // namespace flashbias::bench
