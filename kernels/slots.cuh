// The slot map of one KV head, by one block: cpu/slots.cpp in strips of four entries a thread.
// Shared by map_slots and by the last kernel of a selection.
//
//   order before   least recently used ............................ most recently used
//   order after    untouched, as before | hits, as before | misses, in the order of ids
//
// Strips are walked from the front and what stays moves to the front, so order is renewed in place:
// a strip writes only where strips up to itself have been read.
#pragma once

#include "engine/base/ops.h"
#include "kernels/block_scan.cuh"
#include "kernels/gpu.cuh"

namespace tiercel::cuda {

inline constexpr int kMapThreads = kScanThreads;  // of map_slots
inline constexpr int kMapItems = 4;               // of a thread in a strip
inline constexpr int kMapStrip = kMapThreads * kMapItems;
inline constexpr int kMapWords = 2048;  // of a bit map over slots in shared memory

struct MapShared {
  uint32_t sums[4][32];  // two for each walk: strips take turns
  uint32_t hit[kMapWords];
};

// Phase 1: slots of hits and chunks of misses, in the order of ids; a bit for every slot hit, to be
// seen by all threads when it returns. Returns the number of misses.
template <int kThreads>
GPU int32_t look_up(const MapSlotsParams& p, int64_t j, const int32_t* ids, int32_t count,
                    uint32_t* hit, uint32_t (*sums)[32]) {
  const int32_t* slot_of_chunk = p.state.slot_of_chunk + j * p.state.chunk_capacity;
  int32_t n_misses = 0;
  int turn = 0;
  for (int32_t strip = 0; strip < count; strip += kThreads * kMapItems, turn ^= 1) {
    const int32_t first = strip + static_cast<int32_t>(threadIdx.x) * kMapItems;
    int32_t chunk[kMapItems], slot[kMapItems];
    uint32_t missed = 0, total;
#pragma unroll
    for (int i = 0; i < kMapItems; ++i) chunk[i] = first + i < count ? ids[first + i] : -1;
#pragma unroll
    for (int i = 0; i < kMapItems; ++i) slot[i] = chunk[i] >= 0 ? slot_of_chunk[chunk[i]] : 0;
#pragma unroll
    for (int i = 0; i < kMapItems; ++i) {
      missed += slot[i] < 0;
      if (chunk[i] >= 0 && slot[i] >= 0) gpu::atomic_or(hit + slot[i] / 32, 1u << slot[i] % 32);
    }
    int32_t at =
        n_misses + static_cast<int32_t>(threads_before<kThreads>(missed, sums[turn], total));
#pragma unroll
    for (int i = 0; i < kMapItems; ++i) {
      if (chunk[i] < 0) continue;
      if (slot[i] < 0) {
        p.miss_chunks[j * p.stride + at++] = chunk[i];
      } else {
        p.hit_slots[j * p.stride + first + i - at] = slot[i];
      }
    }
    n_misses += static_cast<int32_t>(total);
  }
  return n_misses;
}

// What a thread sees of a strip of order. chunk: of each slot, looked up only where there is one
// strip.
struct OrderItems {
  int32_t slot[kMapItems], chunk[kMapItems];

  GPU void load(const MapSlotsParams& p, int64_t j, int32_t first, bool is_only) {
    const int32_t n_slots = static_cast<int32_t>(p.state.n_slots);
    const int32_t* order = p.state.order + j * p.state.n_slots;
    const int32_t* chunk_of_slot = p.state.chunk_of_slot + j * p.state.n_slots;
#pragma unroll
    for (int i = 0; i < kMapItems; ++i) slot[i] = first + i < n_slots ? order[first + i] : -1;
#pragma unroll
    for (int i = 0; i < kMapItems; ++i) {
      chunk[i] = is_only && slot[i] >= 0 ? chunk_of_slot[slot[i]] : -1;
    }
  }
};

// Miss number i, which gets this slot, of the chunk before.
GPU void assign_slot(const MapSlotsParams& p, int64_t j, int32_t i, int32_t slot, int32_t before) {
  int32_t* slot_of_chunk = p.state.slot_of_chunk + j * p.state.chunk_capacity;
  const int32_t now = p.miss_chunks[j * p.stride + i];
  if (before >= 0) slot_of_chunk[before] = -1;  // it was resident, so it is no miss
  p.state.chunk_of_slot[j * p.state.n_slots + slot] = now;
  slot_of_chunk[now] = slot;
}

// Phase 2, one walk over order: of the slots that are not hit the first n_misses go to the misses,
// the others close up to the front. Where there is one strip, it has been read, and the rest of
// order and the maps are written at once; else hits wait behind the misses' slots.
template <int kThreads>
GPU void renew_order(const MapSlotsParams& p, int64_t j, int32_t count, int32_t n_misses,
                     OrderItems& items, const uint32_t* hit, uint32_t (*sums)[32]) {
  const int32_t n_slots = static_cast<int32_t>(p.state.n_slots);
  const bool is_only = n_slots <= kThreads * kMapItems;
  int32_t* order = p.state.order + j * p.state.n_slots;
  int32_t* tail = order + (n_slots - count);
  int32_t* miss_slots = p.miss_slots + j * p.stride;
  int32_t* hits = is_only ? tail : miss_slots + n_misses;
  int32_t n_free = 0;
  int turn = 0;
  for (int32_t strip = 0; strip < n_slots; strip += kThreads * kMapItems, turn ^= 1) {
    const int32_t first = strip + static_cast<int32_t>(threadIdx.x) * kMapItems;
    if (strip > 0) items.load(p, j, first, false);
    bool is_hit[kMapItems];
    uint32_t free = 0, total;
#pragma unroll
    for (int i = 0; i < kMapItems; ++i) {
      const int32_t slot = items.slot[i];
      is_hit[i] = slot >= 0 && (hit[slot / 32] >> slot % 32 & 1) != 0;
      free += slot >= 0 && !is_hit[i];
    }
    int32_t at = n_free + static_cast<int32_t>(threads_before<kThreads>(free, sums[turn], total));
#pragma unroll
    for (int i = 0; i < kMapItems; ++i) {
      const int32_t slot = items.slot[i];
      if (slot < 0) continue;
      if (is_hit[i]) {
        hits[first + i - at] = slot;
      } else if (at < n_misses) {
        miss_slots[at] = slot;
        if (is_only) {
          tail[count - n_misses + at] = slot;
          assign_slot(p, j, at, slot, items.chunk[i]);
        }
        ++at;
      } else {
        order[at++ - n_misses] = slot;
      }
    }
    n_free += static_cast<int32_t>(total);
  }
}

// Phase 3 after several strips: the tail of order, and the two maps of the misses' slots.
template <int kThreads>
GPU void assign_slots(const MapSlotsParams& p, int64_t j, int32_t count, int32_t n_misses) {
  const int64_t n_slots = p.state.n_slots;
  const int32_t* chunk_of_slot = p.state.chunk_of_slot + j * n_slots;
  int32_t* tail = p.state.order + j * n_slots + (n_slots - count);
  const int32_t* miss_slots = p.miss_slots + j * p.stride;
  const int32_t n_hits = count - n_misses;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += kThreads) {
    const int32_t slot = miss_slots[i];
    tail[i < n_misses ? n_hits + i : i - n_misses] = slot;
    if (i < n_misses) assign_slot(p, j, i, slot, chunk_of_slot[slot]);
  }
}

// A bit for every slot of a KV head.
GPU uint32_t* hit_bits(const MapSlotsParams& p, int64_t j, MapShared& s) {
  return p.state.n_slots <= kMapWords * 32
             ? s.hit
             : reinterpret_cast<uint32_t*>(p.scratch + j * p.state.n_slots);
}

// What can be done before ids are known; a barrier comes before finish_map.
template <int kThreads>
GPU OrderItems begin_map(const MapSlotsParams& p, int64_t j, MapShared& s) {
  OrderItems items;
  items.load(p, j, static_cast<int32_t>(threadIdx.x) * kMapItems,
             p.state.n_slots <= kThreads * kMapItems);
  uint32_t* hit = hit_bits(p, j, s);
  const int64_t n_words = (p.state.n_slots + 31) / 32;
  for (int64_t i = threadIdx.x; i < n_words; i += kThreads) hit[i] = 0;
  return items;
}

// ids: p's of this KV head, or a copy of them.
template <int kThreads>
GPU void finish_map(const MapSlotsParams& p, int64_t j, const int32_t* ids, int32_t count,
                    OrderItems& items, MapShared& s) {
  uint32_t* hit = hit_bits(p, j, s);
  const bool is_only = p.state.n_slots <= kThreads * kMapItems;
  const int32_t n_misses = look_up<kThreads>(p, j, ids, count, hit, s.sums);
  renew_order<kThreads>(p, j, count, n_misses, items, hit, s.sums + 2);
  if (!is_only) {
    gpu::sync_threads();
    assign_slots<kThreads>(p, j, count, n_misses);
  }
  if (threadIdx.x != 0) return;
  const int32_t n_hits = count - n_misses;
  p.hit_counts[j] = n_hits;
  p.miss_counts[j] = n_misses;
  if (p.totals != nullptr) {
    p.totals[j * 3] += count;
    p.totals[j * 3 + 1] += n_hits;
    p.totals[j * 3 + 2] += n_misses;
  }
}

// By a block of kThreads.
template <int kThreads>
GPU void map_head(const MapSlotsParams& p, int64_t j, const int32_t* ids, int32_t count,
                  MapShared& s) {
  OrderItems items = begin_map<kThreads>(p, j, s);
  gpu::sync_threads();
  finish_map<kThreads>(p, j, ids, count, items, s);
}

}  // namespace tiercel::cuda
