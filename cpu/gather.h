// Small data movements inside the device tier.
#pragma once

#include "cpu/queue.h"
#include "engine/base/ops.h"

namespace tiercel::cpu {

void gather_chunks(Queue& queue, const GatherParams& params);

// Marks every slot empty.
void reset_slots(Queue& queue, const SlotState& state, int32_t n_kv_heads);

// Zeroed memory of this tier. Throws Error(kDoesNotFit) when the system refuses.
void* allocate(Queue& queue, int64_t bytes);
void release(Queue& queue, void* address, int64_t bytes) noexcept;

}  // namespace tiercel::cpu
