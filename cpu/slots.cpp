#include "cpu/slots.h"

#include <algorithm>

#include "engine/base/check.h"

namespace tiercel::cpu {
namespace {

// Phases: find the hits; give the misses the oldest slots that are not hit; renew the order.
void map_head(const MapSlotsParams& p, int64_t j) {
  const int64_t n_slots = p.state.n_slots;
  int32_t* slot_of_chunk = p.state.slot_of_chunk + j * p.state.chunk_capacity;
  int32_t* chunk_of_slot = p.state.chunk_of_slot + j * n_slots;
  int32_t* order = p.state.order + j * n_slots;
  const int32_t* ids = p.ids + j * p.stride;
  int32_t* hit_slots = p.hit_slots + j * p.stride;
  int32_t* miss_chunks = p.miss_chunks + j * p.stride;
  int32_t* miss_slots = p.miss_slots + j * p.stride;
  int32_t* is_hit = p.scratch + j * n_slots;
  const int32_t count = p.counts[j];
  CHECK(count >= 0 && count <= n_slots && count <= p.stride, "{} chunks for {} slots, lists of {}",
        count, n_slots, p.stride);

  std::fill(is_hit, is_hit + n_slots, 0);
  int32_t n_hits = 0, n_misses = 0;
  for (int32_t i = 0; i < count; ++i) {
    DCHECK(ids[i] >= 0 && ids[i] < p.state.chunk_capacity, "chunk {}", ids[i]);
    const int32_t slot = slot_of_chunk[ids[i]];
    if (slot >= 0) {
      DCHECK(is_hit[slot] == 0, "chunk {} twice", ids[i]);
      is_hit[slot] = 1;
      hit_slots[n_hits++] = slot;
    } else {
      miss_chunks[n_misses++] = ids[i];
    }
  }

  // One walk over order: the first n_misses slots that are not hit are taken, the other ones close
  // up to the front, hits wait behind the misses' slots (n_hits + n_misses = count: there is room).
  int32_t taken = 0, kept = 0, waiting = n_misses;
  for (int64_t i = 0; i < n_slots; ++i) {
    const int32_t slot = order[i];
    if (is_hit[slot] != 0) {
      miss_slots[waiting++] = slot;
    } else if (taken < n_misses) {
      miss_slots[taken++] = slot;
    } else {
      order[kept++] = slot;
    }
  }
  std::copy(miss_slots + n_misses, miss_slots + waiting, order + kept);
  std::copy(miss_slots, miss_slots + n_misses, order + kept + n_hits);

  for (int32_t i = 0; i < n_misses; ++i) {
    const int32_t slot = miss_slots[i];
    if (chunk_of_slot[slot] >= 0) slot_of_chunk[chunk_of_slot[slot]] = -1;
    chunk_of_slot[slot] = miss_chunks[i];
    slot_of_chunk[miss_chunks[i]] = slot;
  }
  p.hit_counts[j] = n_hits;
  p.miss_counts[j] = n_misses;
  if (p.totals != nullptr) {
    int64_t* totals = p.totals + j * 3;
    totals[0] += count;
    totals[1] += n_hits;
    totals[2] += n_misses;
  }
}

}  // namespace

// A few microseconds per KV head: waking other threads would cost as much.
void map_slots(Queue&, const MapSlotsParams& p) {
  for (int64_t j = 0; j < p.n_kv_heads; ++j) map_head(p, j);
}

}  // namespace tiercel::cpu
