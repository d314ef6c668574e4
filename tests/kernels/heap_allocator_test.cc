#include "kernels/heap_allocator.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

namespace flashbias {
namespace {

TEST(HeapAllocatorTest, BlocksAreAlignedAndWritableToTheirEnd) {
  HeapAllocator allocator;
  for (const size_t bytes :
       {size_t{0}, size_t{1}, size_t{1000}, HeapAllocator::kKeptFrom - 1, HeapAllocator::kKeptFrom,
        HeapAllocator::kKeptFrom + 1, size_t{9'999'999}}) {
    const auto block = allocator.Allocate(bytes);
    ASSERT_TRUE(block.ok()) << block.status();
    ASSERT_NE(block->data(), nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(block->data()) % HostAllocator::kAlignment, 0u);
    EXPECT_GE(block->size(), bytes);
    std::memset(block->data(), 'x', bytes);
  }
}

TEST(HeapAllocatorTest, LargeBlocksComeBack) {
  HeapAllocator allocator;
  constexpr size_t kBytes = 5'000'000;
  auto block = allocator.Allocate(kBytes);
  ASSERT_TRUE(block.ok());
  char* const first = block->data();
  *block = HostBlock();
  EXPECT_GE(allocator.idle_bytes(), kBytes);
  EXPECT_LE(allocator.idle_bytes(), kBytes + kBytes / 8);
  const auto again = allocator.Allocate(kBytes + 1000);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->data(), first) << "of like size";
  EXPECT_EQ(allocator.idle_bytes(), 0u);
}

TEST(HeapAllocatorTest, IdleMemoryIsBounded) {
  HeapAllocator allocator;
  std::vector<HostBlock> blocks;
  for (int n = 0; n < 7; ++n) blocks.push_back(*allocator.Allocate(size_t{100} << 20));
  blocks.clear();
  EXPECT_LE(allocator.idle_bytes(), HeapAllocator::kMaxIdleBytes);
  EXPECT_GT(allocator.idle_bytes(), HeapAllocator::kMaxIdleBytes / 2);
}

TEST(HeapAllocatorTest, WhatCannotBeHadIsAnError) {
  HeapAllocator allocator;
  for (const size_t bytes : {size_t{1} << 47, std::numeric_limits<size_t>::max()}) {
    EXPECT_EQ(allocator.Allocate(bytes).status().code(), absl::StatusCode::kResourceExhausted);
  }
}

TEST(HeapAllocatorTest, BlocksKeepASharedAllocatorAlive) {
  auto allocator = std::make_shared<HeapAllocator>();
  const std::weak_ptr<HeapAllocator> watched = allocator;
  absl::StatusOr<HostBlock> block = allocator->Allocate(HeapAllocator::kKeptFrom);
  ASSERT_TRUE(block.ok());
  allocator.reset();
  EXPECT_FALSE(watched.expired());
  *block = HostBlock();
  EXPECT_TRUE(watched.expired());
}

TEST(HeapAllocatorTest, ThreadsShareIt) {
  HeapAllocator allocator;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int n = 0; n < 200; ++n) {
        auto block = allocator.Allocate(HeapAllocator::kKeptFrom + static_cast<size_t>(n % 3));
        ASSERT_TRUE(block.ok());
        const char mark = static_cast<char>(t);
        std::memset(block->data(), mark, 64);
        std::this_thread::yield();
        for (int at = 0; at < 64; ++at) ASSERT_EQ(block->data()[at], mark);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace flashbias
