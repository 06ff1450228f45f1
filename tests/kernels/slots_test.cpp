// The slot map against a trivial model, a list of slots, least recently used first; and against
// cpu::map_slots.
#include "kernels/slots.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <list>
#include <map>
#include <numeric>
#include <random>
#include <vector>

#include "cpu/slots.h"
#include "tests/kernels/device_vector.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

template <typename T>
using Memory = test::DeviceVector<T>;

struct Cache {
  int32_t n_kv_heads;
  int64_t n_chunks, n_slots, stride;
  Memory<int32_t> slot_of_chunk, chunk_of_slot, order, ids, counts;
  Memory<int32_t> hit_slots, hit_counts, miss_chunks, miss_slots, miss_counts, scratch;
  Memory<int64_t> totals;

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
    totals.assign(heads * 3, 0);
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
    p.totals = totals.data();
    return p;
  }
  void map() {
    std::fill(hit_counts.begin(), hit_counts.end(), -9);
    std::fill(miss_counts.begin(), miss_counts.end(), -9);
    for (auto* list : {&hit_slots, &miss_chunks, &miss_slots}) {
      std::fill(list->begin(), list->end(), -9);
    }
    cuda::map_slots(test::stream(), params());
    test::stream().finish();
  }
};

std::vector<int32_t> head_of(const Memory<int32_t>& v, int64_t begin, int64_t n) {
  return {v.begin() + begin, v.begin() + begin + n};
}

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

// The two maps agree with the model's.
void expect_maps(const Cache& c, int32_t j, const Model& model) {
  for (int64_t slot = 0; slot < c.n_slots; ++slot) {
    const auto found = model.chunk_of_slot.find(static_cast<int32_t>(slot));
    ASSERT_EQ(c.chunk_of_slot[j * c.n_slots + slot],
              found == model.chunk_of_slot.end() ? -1 : found->second);
  }
  for (int64_t chunk = 0; chunk < c.n_chunks; ++chunk) {
    const auto found = model.slot_of_chunk.find(static_cast<int32_t>(chunk));
    ASSERT_EQ(c.slot_of_chunk[j * c.n_chunks + chunk],
              found == model.slot_of_chunk.end() ? -1 : found->second);
  }
}

void fuzz(uint64_t seed, int steps) {
  std::mt19937_64 rng(seed);
  const auto up_to = [&](int64_t n) {
    return static_cast<int64_t>(rng() % static_cast<uint64_t>(n));
  };
  const int64_t n_chunks = 1 + up_to(200), n_slots = 1 + up_to(60), k = 1 + up_to(n_slots);
  Cache cache(2, n_chunks, n_slots, k);
  Model models[] = {Model(n_slots), Model(n_slots)};
  std::vector<int32_t> all(n_chunks);
  std::iota(all.begin(), all.end(), 0);
  for (int step = 0; step < steps; ++step) {
    for (int32_t j = 0; j < 2; ++j) {
      // Neighbours in time select much the same chunks: most steps draw from a small hot set.
      const int64_t pool = up_to(4) == 0 ? n_chunks : std::min(n_chunks, 1 + k + up_to(k + 1));
      const int64_t count = up_to(std::min(k, pool) + 1);
      std::vector<int32_t> ids;
      std::sample(all.begin(), all.begin() + pool, std::back_inserter(ids), count, rng);
      std::shuffle(ids.begin(), ids.end(), rng);
      std::copy(ids.begin(), ids.end(), cache.ids.begin() + j * k);
      cache.counts[j] = static_cast<int32_t>(count);
    }
    cache.map();
    for (int32_t j = 0; j < 2; ++j) {
      const auto lists = models[j].step(head_of(cache.ids, j * k, cache.counts[j]));
      ASSERT_EQ(cache.hit_counts[j] + cache.miss_counts[j], cache.counts[j]);
      ASSERT_EQ(head_of(cache.hit_slots, j * k, cache.hit_counts[j]), lists.hit_slots);
      ASSERT_EQ(head_of(cache.miss_chunks, j * k, cache.miss_counts[j]), lists.miss_chunks);
      ASSERT_EQ(head_of(cache.miss_slots, j * k, cache.miss_counts[j]), lists.miss_slots);
      ASSERT_EQ(head_of(cache.order, j * n_slots, n_slots),
                std::vector<int32_t>(models[j].order.begin(), models[j].order.end()));
      expect_maps(cache, j, models[j]);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(CudaSlots, AgreesWithTheModel) {
  for (uint64_t run = 0; run < 8; ++run) {
    SCOPED_TRACE(testing::Message() << "run " << run);
    fuzz(test::seed() + run, 30);
    if (HasFatalFailure()) return;
  }
}

// More slots than a strip, and than the bit map in shared memory holds.
TEST(CudaSlots, ManySlots) {
  std::mt19937_64 rng(test::seed());
  for (const int64_t n_slots : {int64_t{9001}, int64_t{70001}}) {
    const int64_t n_chunks = 3 * n_slots, k = n_slots > 10000 ? 5000 : n_slots;
    Cache a(1, n_chunks, n_slots, k), b(1, n_chunks, n_slots, k);
    std::vector<int32_t> all(n_chunks);
    std::iota(all.begin(), all.end(), 0);
    cpu::Queue queue({.n_threads = 1, .isa = cpu::Isa::kPortable});
    for (int step = 0; step < 5; ++step) {
      const int64_t count = step == 3 ? k : k - static_cast<int64_t>(rng() % 500);
      std::vector<int32_t> ids;
      std::sample(all.begin(), all.begin() + 2 * k, std::back_inserter(ids), count, rng);
      std::copy(ids.begin(), ids.end(), a.ids.begin());
      a.counts[0] = static_cast<int32_t>(count);
      b.ids = a.ids;
      b.counts = a.counts;
      a.map();
      cpu::map_slots(queue, b.params());
      ASSERT_EQ(a.hit_counts, b.hit_counts);
      ASSERT_EQ(a.miss_counts, b.miss_counts);
      ASSERT_EQ(a.totals, b.totals);
      ASSERT_EQ(head_of(a.hit_slots, 0, a.hit_counts[0]), head_of(b.hit_slots, 0, a.hit_counts[0]));
      for (const auto list : {&Cache::miss_chunks, &Cache::miss_slots}) {
        ASSERT_EQ(head_of(a.*list, 0, a.miss_counts[0]), head_of(b.*list, 0, a.miss_counts[0]));
      }
      ASSERT_EQ(a.order, b.order);
      ASSERT_EQ(a.chunk_of_slot, b.chunk_of_slot);
      ASSERT_EQ(a.slot_of_chunk, b.slot_of_chunk);
    }
  }
}

TEST(CudaSlots, TotalsAreAddedTo) {
  Cache c(2, 10, 4, 3);
  c.totals = {100, 200, 300, int64_t{1} << 40, 0, 0};
  c.ids = {1, 5, 9, 2, 3, -1};
  c.counts = {3, 2};
  c.map();
  EXPECT_EQ(c.totals, Memory<int64_t>({103, 200, 303, (int64_t{1} << 40) + 2, 0, 2}));
  c.ids = {5, 6, -1, 2, 3, 4};
  c.counts = {2, 3};
  c.map();
  EXPECT_EQ(c.totals, Memory<int64_t>({105, 201, 304, (int64_t{1} << 40) + 5, 2, 3}));
}

TEST(CudaSlots, NothingSelectedChangesNothing) {
  Cache c(1, 10, 4, 2);
  c.ids = {3, 4};
  c.counts = {2};
  c.map();
  const auto order = c.order, chunks = c.chunk_of_slot;
  c.counts = {0};
  c.map();
  EXPECT_EQ(c.hit_counts[0], 0);
  EXPECT_EQ(c.miss_counts[0], 0);
  EXPECT_EQ(c.order, order);
  EXPECT_EQ(c.chunk_of_slot, chunks);
}

}  // namespace
}  // namespace tiercel
