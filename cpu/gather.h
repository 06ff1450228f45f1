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

// Puts pages of a file where this tier's memory is, inside a block of allocate(); they are read
// when they are first touched, and private when they are written. All four are multiples of a page.
// Throws Error(kDoesNotFit) when the system refuses.
void map_file(Queue& queue, void* target, int64_t bytes, int descriptor, int64_t offset);

}  // namespace tiercel::cpu
