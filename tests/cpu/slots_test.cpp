// The slot map against a trivial model: a list of slots, least recently used first.
#include "cpu/slots.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <list>
#include <map>
#include <numeric>
#include <random>
#include <vector>

#include "tests/seed.h"

namespace tiercel {
namespace {

using cpu::Queue;

struct Cache {
  int32_t n_kv_heads;
  int64_t n_chunks, n_slots, stride;
  std::vector<int32_t> slot_of_chunk, chunk_of_slot, order, ids, counts;
  std::vector<int32_t> hit_slots, hit_counts, miss_chunks, miss_slots, miss_counts, scratch;

  Cache(int32_t heads, int64_t chunks, int64_t slots, int64_t k)
      : n_kv_heads(heads), n_chunks(chunks), n_slots(slots), stride(k) {
    slot_of_chunk.assign(heads * chunks, -1);
    chunk_of_slot.assign(heads * slots, -1);
    order.resize(heads * slots);
    for (int32_t j = 0; j < heads; ++j) {
      std::iota(order.begin() + j * slots, order.begin() + (j + 1) * slots, 0);
    }
    counts.assign(heads, 0);
    hit_counts = miss_counts = counts;
    ids.assign(heads * k, -1);
    hit_slots = miss_chunks = miss_slots = ids;
    scratch.assign(heads * slots, -5);
  }
  MapSlotsParams params() {
    MapSlotsParams p;
    p.state = {slot_of_chunk.data(), chunk_of_slot.data(), order.data(), n_chunks, n_slots};
    p.n_kv_heads = n_kv_heads;
    p.ids = ids.data();
    p.counts = counts.data();
    p.stride = stride;
    p.hit_slots = hit_slots.data();
    p.hit_counts = hit_counts.data();
    p.miss_chunks = miss_chunks.data();
    p.miss_slots = miss_slots.data();
    p.miss_counts = miss_counts.data();
    p.scratch = scratch.data();
    return p;
  }
};

// One KV head. New order: untouched, hits in their old order, misses.
struct Model {
  std::list<int32_t> order;
  std::map<int32_t, int32_t> chunk_of_slot, slot_of_chunk;

  explicit Model(int64_t n_slots) {
    for (int32_t s = 0; s < n_slots; ++s) order.push_back(s);
  }
  struct Lists {
    std::vector<int32_t> hit_slots, miss_chunks, miss_slots;
  };
  Lists step(const std::vector<int32_t>& ids) {
    Lists lists;
    for (const int32_t id : ids) {
      const auto found = slot_of_chunk.find(id);
      if (found == slot_of_chunk.end()) {
        lists.miss_chunks.push_back(id);
      } else {
        lists.hit_slots.push_back(found->second);
      }
    }
    std::list<int32_t> hits;
    for (auto it = order.begin(); it != order.end();) {
      const auto next = std::next(it);
      if (std::count(lists.hit_slots.begin(), lists.hit_slots.end(), *it) != 0) {
        hits.splice(hits.end(), order, it);
      }
      it = next;
    }
    for (const int32_t chunk : lists.miss_chunks) {
      const int32_t slot = order.front();
      order.pop_front();
      lists.miss_slots.push_back(slot);
      if (const auto old = chunk_of_slot.find(slot); old != chunk_of_slot.end()) {
        slot_of_chunk.erase(old->second);
      }
      chunk_of_slot[slot] = chunk;
      slot_of_chunk[chunk] = slot;
    }
    order.splice(order.end(), hits);
    order.insert(order.end(), lists.miss_slots.begin(), lists.miss_slots.end());
    return lists;
  }
};

std::vector<int32_t> head_of(const std::vector<int32_t>& v, int64_t begin, int64_t n) {
  return {v.begin() + begin, v.begin() + begin + n};
}

// Every selected chunk has exactly one slot, the two maps agree, order is a permutation.
void expect_consistent(const Cache& c, int32_t j) {
  std::vector<bool> seen(c.n_slots, false);
  for (int64_t i = 0; i < c.n_slots; ++i) {
    const int32_t slot = c.order[j * c.n_slots + i];
    ASSERT_TRUE(slot >= 0 && slot < c.n_slots && !seen[slot]);
    seen[slot] = true;
    const int32_t chunk = c.chunk_of_slot[j * c.n_slots + slot];
    if (chunk >= 0) {
      ASSERT_EQ(c.slot_of_chunk[j * c.n_chunks + chunk], slot);
    }
  }
  for (int64_t chunk = 0; chunk < c.n_chunks; ++chunk) {
    const int32_t slot = c.slot_of_chunk[j * c.n_chunks + chunk];
    if (slot >= 0) {
      ASSERT_EQ(c.chunk_of_slot[j * c.n_slots + slot], chunk);
    }
  }
  for (int32_t i = 0; i < c.counts[j]; ++i) {
    ASSERT_GE(c.slot_of_chunk[j * c.n_chunks + c.ids[j * c.stride + i]], 0);
  }
}

void fuzz(uint64_t seed, int64_t n_lookups) {
  std::mt19937_64 rng(seed);
  const auto up_to = [&](int64_t n) {
    return static_cast<int64_t>(rng() % static_cast<uint64_t>(n));
  };
  const int64_t n_chunks = 1 + up_to(200), n_slots = 1 + up_to(60), k = 1 + up_to(n_slots);
  Cache cache(2, n_chunks, n_slots, k);
  Model models[] = {Model(n_slots), Model(n_slots)};
  Queue queue({.n_threads = 1, .isa = cpu::Isa::kPortable});
  std::vector<int32_t> all(n_chunks);
  std::iota(all.begin(), all.end(), 0);
  for (int64_t lookups = 0; lookups < n_lookups;) {
    for (int32_t j = 0; j < 2; ++j) {
      // Neighbours in time select much the same chunks: most steps draw from a small hot set.
      const int64_t pool = up_to(4) == 0 ? n_chunks : std::min(n_chunks, 1 + k + up_to(k + 1));
      const int64_t count = up_to(std::min(k, pool) + 1);
      std::vector<int32_t> ids;
      std::sample(all.begin(), all.begin() + pool, std::back_inserter(ids), count, rng);
      std::copy(ids.begin(), ids.end(), cache.ids.begin() + j * k);
      cache.counts[j] = static_cast<int32_t>(count);
      lookups += count + 1;
    }
    cpu::map_slots(queue, cache.params());
    for (int32_t j = 0; j < 2; ++j) {
      const auto lists = models[j].step(head_of(cache.ids, j * k, cache.counts[j]));
      ASSERT_EQ(head_of(cache.hit_slots, j * k, cache.hit_counts[j]), lists.hit_slots);
      ASSERT_EQ(head_of(cache.miss_chunks, j * k, cache.miss_counts[j]), lists.miss_chunks);
      ASSERT_EQ(head_of(cache.miss_slots, j * k, cache.miss_counts[j]), lists.miss_slots);
      ASSERT_EQ(head_of(cache.order, j * n_slots, n_slots),
                std::vector<int32_t>(models[j].order.begin(), models[j].order.end()));
      for (const int32_t slot : lists.hit_slots) {
        ASSERT_EQ(std::count(lists.miss_slots.begin(), lists.miss_slots.end(), slot), 0);
      }
      expect_consistent(cache, j);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(Slots, MillionLookupsAgreeWithTheModel) {
  for (uint64_t run = 0; run < 50; ++run) {
    SCOPED_TRACE(testing::Message() << "run " << run);
    fuzz(test::seed() + run, 20'000);
    if (HasFatalFailure()) return;
  }
}

TEST(Slots, SelectionOfAllSlotsReplacesEverything) {
  Cache c(1, 10, 3, 3);
  Queue queue({.n_threads = 1, .isa = cpu::Isa::kPortable});
  c.ids = {1, 5, 9};
  c.counts = {3};
  cpu::map_slots(queue, c.params());
  EXPECT_EQ(c.miss_counts[0], 3);
  EXPECT_EQ(c.miss_slots, std::vector<int32_t>({0, 1, 2}));
  c.ids = {2, 5, 8};
  cpu::map_slots(queue, c.params());
  EXPECT_EQ(c.hit_counts[0], 1);
  EXPECT_EQ(c.hit_slots[0], 1);
  EXPECT_EQ(head_of(c.miss_chunks, 0, 2), std::vector<int32_t>({2, 8}));
  EXPECT_EQ(head_of(c.miss_slots, 0, 2), std::vector<int32_t>({0, 2}));
  EXPECT_EQ(c.slot_of_chunk[1], -1);
  EXPECT_EQ(c.slot_of_chunk[9], -1);
  EXPECT_EQ(c.order, std::vector<int32_t>({1, 0, 2}));
}

TEST(Slots, TotalsAreAddedTo) {
  Cache c(2, 10, 4, 3);
  Queue queue({.n_threads = 1, .isa = cpu::Isa::kPortable});
  std::vector<int64_t> totals = {100, 200, 300, int64_t{1} << 40, 0, 0};
  MapSlotsParams p = c.params();
  p.totals = totals.data();
  c.ids = {1, 5, 9, 2, 3, -1};
  c.counts = {3, 2};
  cpu::map_slots(queue, p);
  EXPECT_EQ(totals, std::vector<int64_t>({103, 200, 303, (int64_t{1} << 40) + 2, 0, 2}));
  c.ids = {5, 6, -1, 2, 3, 4};
  c.counts = {2, 3};
  cpu::map_slots(queue, p);
  EXPECT_EQ(totals, std::vector<int64_t>({105, 201, 304, (int64_t{1} << 40) + 5, 2, 3}));
}

TEST(Slots, NothingSelectedChangesNothing) {
  Cache c(1, 10, 4, 2);
  Queue queue({.n_threads = 1, .isa = cpu::Isa::kPortable});
  c.ids = {3, 4};
  c.counts = {2};
  cpu::map_slots(queue, c.params());
  const auto order = c.order, chunks = c.chunk_of_slot;
  c.counts = {0};
  cpu::map_slots(queue, c.params());
  EXPECT_EQ(c.hit_counts[0] + c.miss_counts[0], 0);
  EXPECT_EQ(c.order, order);
  EXPECT_EQ(c.chunk_of_slot, chunks);
}

TEST(SlotsDeathTest, TooFewSlots) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  Cache c(1, 10, 2, 3);
  c.counts = {3};
  c.ids = {0, 1, 2};
  EXPECT_DEATH(
      {
        Queue queue({.n_threads = 1, .isa = cpu::Isa::kPortable});
        cpu::map_slots(queue, c.params());
      },
      "3 chunks for 2 slots");
}

}  // namespace
}  // namespace tiercel
