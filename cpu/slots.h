// The selection cache's bookkeeping: which slot holds which chunk, least recently used out first.
#pragma once

#include "cpu/queue.h"
#include "engine/base/ops.h"

namespace tiercel::cpu {

// O(n_slots + counts[j]) per KV head. ids of one KV head are distinct. Lists are in the order of
// ids, except that the slots used now are appended to order as: hits in their old order, then
// misses. Behind miss_counts[j] entries miss_slots is scratch.
void map_slots(Queue& queue, const MapSlotsParams& params);

}  // namespace tiercel::cpu
