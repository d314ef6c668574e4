#include "wire/copy_pool.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <thread>
#include <vector>

namespace flashbias::wire {
namespace {

// Pieces of uneven sizes, some empty, of `total` bytes of `from`, to the same places in `to`.
std::vector<CopyPool::Piece> Pieces(const std::vector<char>& from, std::vector<char>* to,
                                    uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<CopyPool::Piece> pieces;
  for (size_t at = 0; at < from.size();) {
    const size_t bytes =
        std::min<size_t>(from.size() - at, random() % 3 == 0 ? random() % 700000 : random() % 9000);
    pieces.push_back({.from = from.data() + at, .to = to->data() + at, .bytes = bytes});
    at += bytes;
  }
  return pieces;
}

std::vector<char> RandomBytes(size_t size) {
  std::mt19937_64 random(size);
  std::vector<char> bytes(size);
  for (size_t n = 0; n < size; n += 61) bytes[n] = static_cast<char>(random());
  return bytes;
}

TEST(CopyPoolTest, CopiesAllWithAnyNumberOfThreads) {
  for (const size_t size : {size_t{0}, size_t{1}, CopyPool::kChunkBytes, CopyPool::kSharedFrom - 1,
                            CopyPool::kSharedFrom, size_t{5'000'001}}) {
    const std::vector<char> from = RandomBytes(size);
    for (const int threads : {0, 1, 2, 5}) {
      CopyPool pool(threads);
      std::vector<char> to(size, '?');
      pool.Copy(Pieces(from, &to, size + 1));
      EXPECT_TRUE(from == to) << size << " bytes, " << threads << " threads";
    }
  }
}

TEST(CopyPoolTest, OneLargePieceIsShared) {
  const std::vector<char> from = RandomBytes(20'000'003);
  std::vector<char> to(from.size());
  CopyPool pool(3);
  const CopyPool::Piece piece = {.from = from.data(), .to = to.data(), .bytes = from.size()};
  pool.Copy({&piece, 1});
  EXPECT_TRUE(from == to);
}

TEST(CopyPoolTest, ManyCallersShareOnePool) {
  CopyPool pool(3);
  const std::vector<char> from = RandomBytes(3'000'000);
  std::vector<std::vector<char>> copies(6);
  std::vector<std::thread> callers;
  for (size_t n = 0; n < copies.size(); ++n) {
    callers.emplace_back([&, n] {
      for (int repeat = 0; repeat < 40; ++repeat) {
        copies[n].assign(from.size(), '?');
        pool.Copy(Pieces(from, &copies[n], n));
        // At once: no helper may still be copying.
        ASSERT_TRUE(copies[n] == from);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

}  // namespace
}  // namespace flashbias::wire
