// Memory of one tier: budgets, reserved blocks, and what is given back early.
#include "offload/arena.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

namespace tiercel {
namespace {

struct Heap {
  std::map<void*, int64_t> blocks;
  int n_allocated = 0;
};

void* allocate(Heap& heap, int64_t bytes) {
  void* address = std::aligned_alloc(256, static_cast<size_t>((bytes + 255) / 256 * 256));
  std::memset(address, 0, static_cast<size_t>(bytes));
  heap.blocks[address] = bytes;
  ++heap.n_allocated;
  return address;
}
void release(Heap& heap, void* address, int64_t bytes) {
  const auto block = heap.blocks.find(address);
  ASSERT_TRUE(block != heap.blocks.end() && block->second == bytes);
  heap.blocks.erase(block);
  std::free(address);
}

TEST(Arena, RefusesBeyondItsBudget) {
  Heap heap;
  Arena<Heap> arena(heap, "device", 1000);
  EXPECT_EQ(arena.take<float>(Purpose::kKeys, 0), nullptr);
  float* first = arena.take<float>(Purpose::kActivations, 200);
  try {
    arena.take<int32_t>(Purpose::kKeys, 100);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kDoesNotFit);
    EXPECT_STREQ(error.what(), "device memory: 200 bytes more than the budget of 1000 allows");
  }
  arena.give_back(first);
  EXPECT_NE(arena.take<int32_t>(Purpose::kKeys, 100), nullptr);
  EXPECT_EQ(sum(arena.used()), 400);
  EXPECT_EQ(arena.peak_bytes(), 800);
}

TEST(Arena, TakesPartsOfWhatItReserved) {
  Heap heap;
  {
    Arena<Heap> arena(heap, "device", 0);
    arena.reserve(2000 * 5);
    std::byte* last = nullptr;
    for (int i = 0; i < 2000; ++i) {  // 5 bytes each, 256 with what aligns them
      auto* bytes = arena.take<std::byte>(i % 2 == 0 ? Purpose::kKeys : Purpose::kSlots, 5);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes) % 256, 0u);
      for (int j = 0; j < 5; ++j) ASSERT_EQ(bytes[j], std::byte{0});
      std::memset(bytes, 1, 5);
      if (i > 0) {
        ASSERT_EQ(bytes, last + 256);
      }
      last = bytes;
    }
    EXPECT_EQ(sum(arena.used()), 10'000 + kReservedSpare);
    EXPECT_EQ(heap.n_allocated, 1);
    EXPECT_EQ(heap.blocks.begin()->second, 10'000 + kReservedSpare);
    // What comes and goes has its own.
    float* activations = arena.take<float>(Purpose::kActivations, 1);
    EXPECT_EQ(heap.blocks.at(activations), 4);
    arena.give_back(activations);
    EXPECT_EQ(heap.blocks.size(), 1u);
    // More than was reserved, too.
    auto* more = arena.take<std::byte>(Purpose::kKeys, 1 << 20);
    EXPECT_EQ(heap.blocks.at(more), 1 << 20);
  }
  EXPECT_TRUE(heap.blocks.empty());
}

TEST(Arena, ReservesNoMoreThanItsBudget) {
  Heap heap;
  Arena<Heap> arena(heap, "host", 1000 + kReservedSpare);
  EXPECT_THROW(arena.reserve(1001), Error);
  EXPECT_EQ(heap.n_allocated, 0);
  arena.reserve(1000);
  arena.take<std::byte>(Purpose::kKeys, 600);
  EXPECT_THROW(arena.take<std::byte>(Purpose::kKeys, 401), Error);
}

}  // namespace
}  // namespace tiercel
