// The slot map against a trivial model, a list of slots, least recently used first: one body for
// every backend.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <list>
#include <map>
#include <numeric>
#include <random>
#include <vector>

#include "engine/base/ops.h"
#include "tests/seed.h"

namespace tiercel::test {

// Slots, and the lists that choose among them. Memory<T>: a vector that the backend reads and
// writes.
template <template <typename> typename Memory>
struct SlotCache {
  int32_t n_kv_heads;
  int64_t n_chunks, n_slots, stride;
  Memory<int32_t> slot_of_chunk, chunk_of_slot, order, ids, counts;
  Memory<int32_t> hit_slots, hit_counts, miss_chunks, miss_slots, miss_counts, scratch;
  Memory<int64_t> totals;

  SlotCache(int32_t heads, int64_t chunks, int64_t slots, int64_t k)
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
  // What the last call left in the lists is anything.
  void poison() {
    std::fill(hit_counts.begin(), hit_counts.end(), -9);
    std::fill(miss_counts.begin(), miss_counts.end(), -9);
    for (auto* list : {&hit_slots, &miss_chunks, &miss_slots}) {
      std::fill(list->begin(), list->end(), -9);
    }
  }
};

template <typename List>
std::vector<int32_t> head_of(const List& v, int64_t begin, int64_t n) {
  return {v.begin() + begin, v.begin() + begin + n};
}

// One KV head. New order: untouched, hits in their old order, misses.
struct SlotModel {
  std::list<int32_t> order;
  std::map<int32_t, int32_t> chunk_of_slot, slot_of_chunk;

  explicit SlotModel(int64_t n_slots) {
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

// The op under test: maps and waits.
template <template <typename> typename Memory>
struct SlotsUnderTest {
  using Cache = SlotCache<Memory>;
  std::function<void(const MapSlotsParams&)> map_slots;

  void map(Cache& c) const {
    c.poison();
    map_slots(c.params());
  }

  // The two maps agree with the model's.
  static void expect_maps(const Cache& c, int32_t j, const SlotModel& model) {
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

  // Neighbours in time select much the same chunks: most steps draw from a small hot set.
  void expect_model(uint64_t seed, int n_steps) const {
    std::mt19937_64 rng(seed);
    const auto up_to = [&](int64_t n) {
      return static_cast<int64_t>(rng() % static_cast<uint64_t>(n));
    };
    const int64_t n_chunks = 1 + up_to(200), n_slots = 1 + up_to(60), k = 1 + up_to(n_slots);
    Cache cache(2, n_chunks, n_slots, k);
    SlotModel models[] = {SlotModel(n_slots), SlotModel(n_slots)};
    std::vector<int32_t> all(n_chunks);
    std::iota(all.begin(), all.end(), 0);
    for (int step = 0; step < n_steps; ++step) {
      for (int32_t j = 0; j < 2; ++j) {
        const int64_t pool = up_to(4) == 0 ? n_chunks : std::min(n_chunks, 1 + k + up_to(k + 1));
        const int64_t count = up_to(std::min(k, pool) + 1);
        std::vector<int32_t> ids;
        std::sample(all.begin(), all.begin() + pool, std::back_inserter(ids), count, rng);
        std::shuffle(ids.begin(), ids.end(), rng);
        std::copy(ids.begin(), ids.end(), cache.ids.begin() + j * k);
        cache.counts[j] = static_cast<int32_t>(count);
      }
      map(cache);
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

  void expect_models(uint64_t n_runs, int n_steps) const {
    for (uint64_t run = 0; run < n_runs; ++run) {
      SCOPED_TRACE(testing::Message() << "run " << run);
      expect_model(seed() + run, n_steps);
      if (testing::Test::HasFatalFailure()) return;
    }
  }

  void expect_totals_are_added_to() const {
    Cache c(2, 10, 4, 3);
    c.totals = {100, 200, 300, int64_t{1} << 40, 0, 0};
    c.ids = {1, 5, 9, 2, 3, -1};
    c.counts = {3, 2};
    map(c);
    EXPECT_EQ(c.totals, Memory<int64_t>({103, 200, 303, (int64_t{1} << 40) + 2, 0, 2}));
    c.ids = {5, 6, -1, 2, 3, 4};
    c.counts = {2, 3};
    map(c);
    EXPECT_EQ(c.totals, Memory<int64_t>({105, 201, 304, (int64_t{1} << 40) + 5, 2, 3}));
  }

  void expect_nothing_selected_changes_nothing() const {
    Cache c(1, 10, 4, 2);
    c.ids = {3, 4};
    c.counts = {2};
    map(c);
    const auto order = c.order, chunks = c.chunk_of_slot;
    c.counts = {0};
    map(c);
    EXPECT_EQ(c.hit_counts[0], 0);
    EXPECT_EQ(c.miss_counts[0], 0);
    EXPECT_EQ(c.order, order);
    EXPECT_EQ(c.chunk_of_slot, chunks);
  }
};

}  // namespace tiercel::test
