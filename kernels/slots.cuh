// The slot map of one KV head, by one block: cpu/slots.cpp in strips of 4096. Shared by map_slots
// and by the last kernel of a selection.
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

inline constexpr int kMapThreads = kScanThreads;
inline constexpr int kMapItems = 4;  // of a thread in a strip
inline constexpr int kMapStrip = kMapThreads * kMapItems;
inline constexpr int kMapWords = 2048;  // of a bit map over slots in shared memory

struct MapShared {
  uint32_t sums[kMapThreads / 32];
  uint32_t hit[kMapWords];
};

// Phase 1: slots of hits and chunks of misses, in the order of ids; a bit for every slot hit.
// Returns the number of misses.
GPU int32_t look_up(const MapSlotsParams& p, int64_t j, int32_t count, uint32_t* hit,
                    uint32_t* sums) {
  const int32_t* ids = p.ids + j * p.stride;
  const int32_t* slot_of_chunk = p.state.slot_of_chunk + j * p.state.chunk_capacity;
  int32_t n_misses = 0;
  for (int32_t strip = 0; strip < count; strip += kMapStrip) {
    const int32_t first = strip + static_cast<int32_t>(threadIdx.x) * kMapItems;
    int32_t chunk[kMapItems], slot[kMapItems];
    uint32_t missed = 0, total;
#pragma unroll
    for (int i = 0; i < kMapItems; ++i) chunk[i] = first + i < count ? ids[first + i] : -1;
#pragma unroll
    for (int i = 0; i < kMapItems; ++i) {
      slot[i] = chunk[i] >= 0 ? slot_of_chunk[chunk[i]] : 0;
      missed += slot[i] < 0;
    }
    int32_t at = n_misses + static_cast<int32_t>(block_scan(missed, sums, total));
#pragma unroll
    for (int i = 0; i < kMapItems; ++i) {
      if (chunk[i] < 0) continue;
      if (slot[i] < 0) {
        p.miss_chunks[j * p.stride + at++] = chunk[i];
      } else {
        p.hit_slots[j * p.stride + first + i - at] = slot[i];
        gpu::atomic_or(hit + slot[i] / 32, 1u << slot[i] % 32);
      }
    }
    n_misses += static_cast<int32_t>(total);
  }
  gpu::sync_threads();
  return n_misses;
}

// Phase 2, one walk over order: of the slots that are not hit the first n_misses go to the misses,
// the others close up to the front; hits wait behind the misses' slots.
GPU void renew_order(const MapSlotsParams& p, int64_t j, int32_t n_misses, const uint32_t* hit,
                     uint32_t* sums) {
  const int32_t n_slots = static_cast<int32_t>(p.state.n_slots);
  int32_t* order = p.state.order + j * p.state.n_slots;
  int32_t* miss_slots = p.miss_slots + j * p.stride;
  int32_t n_free = 0;
  for (int32_t strip = 0; strip < n_slots; strip += kMapStrip) {
    const int32_t first = strip + static_cast<int32_t>(threadIdx.x) * kMapItems;
    int32_t slot[kMapItems];
    bool is_hit[kMapItems];
    uint32_t free = 0, total;
#pragma unroll
    for (int i = 0; i < kMapItems; ++i) slot[i] = first + i < n_slots ? order[first + i] : -1;
#pragma unroll
    for (int i = 0; i < kMapItems; ++i) {
      is_hit[i] = slot[i] >= 0 && (hit[slot[i] / 32] >> slot[i] % 32 & 1) != 0;
      free += slot[i] >= 0 && !is_hit[i];
    }
    int32_t at = n_free + static_cast<int32_t>(block_scan(free, sums, total));
#pragma unroll
    for (int i = 0; i < kMapItems; ++i) {
      if (slot[i] < 0) continue;
      if (is_hit[i]) {
        miss_slots[n_misses + first + i - at] = slot[i];
      } else if (at < n_misses) {
        miss_slots[at++] = slot[i];
      } else {
        order[at++ - n_misses] = slot[i];
      }
    }
    n_free += static_cast<int32_t>(total);
  }
  gpu::sync_threads();
}

// Phase 3: the tail of order, and the two maps of the misses' slots.
GPU void assign_slots(const MapSlotsParams& p, int64_t j, int32_t count, int32_t n_misses) {
  const int64_t n_slots = p.state.n_slots;
  int32_t* slot_of_chunk = p.state.slot_of_chunk + j * p.state.chunk_capacity;
  int32_t* chunk_of_slot = p.state.chunk_of_slot + j * n_slots;
  int32_t* tail = p.state.order + j * n_slots + (n_slots - count);
  const int32_t* miss_slots = p.miss_slots + j * p.stride;
  const int32_t* miss_chunks = p.miss_chunks + j * p.stride;
  const int32_t n_hits = count - n_misses;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += kMapThreads) {
    const int32_t slot = miss_slots[i];
    tail[i < n_misses ? n_hits + i : i - n_misses] = slot;
    if (i >= n_misses) continue;
    const int32_t before = chunk_of_slot[slot], now = miss_chunks[i];
    if (before >= 0) slot_of_chunk[before] = -1;  // it was resident, so it is no miss
    chunk_of_slot[slot] = now;
    slot_of_chunk[now] = slot;
  }
  if (threadIdx.x != 0) return;
  p.hit_counts[j] = n_hits;
  p.miss_counts[j] = n_misses;
  if (p.totals != nullptr) {
    p.totals[j * 3] += count;
    p.totals[j * 3 + 1] += n_hits;
    p.totals[j * 3 + 2] += n_misses;
  }
}

GPU void map_head(const MapSlotsParams& p, int64_t j, MapShared& s) {
  const int64_t n_words = (p.state.n_slots + 31) / 32;
  uint32_t* hit =
      n_words <= kMapWords ? s.hit : reinterpret_cast<uint32_t*>(p.scratch + j * p.state.n_slots);
  for (int64_t i = threadIdx.x; i < n_words; i += kMapThreads) hit[i] = 0;
  gpu::sync_threads();
  const int32_t count = p.counts[j];
  const int32_t n_misses = look_up(p, j, count, hit, s.sums);
  renew_order(p, j, n_misses, hit, s.sums);
  assign_slots(p, j, count, n_misses);
}

}  // namespace tiercel::cuda
