// Small data movements inside the device tier. (Memory itself: kernels/stream.h.)
#pragma once

#include "engine/base/ops.h"
#include "kernels/stream.h"

namespace tiercel::cuda {

void gather_chunks(Stream& stream, const GatherParams& params);

// Marks every slot empty.
void reset_slots(Stream& stream, const SlotState& state, int32_t n_kv_heads);

}  // namespace tiercel::cuda
