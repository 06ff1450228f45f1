// The selection cache's bookkeeping: which slot holds which chunk, least recently used out first.
#pragma once

#include "engine/base/ops.h"
#include "kernels/stream.h"

namespace tiercel::cuda {

// ids of one KV head are distinct, and no more than there are slots: counts live on the device, so
// nothing can check it. Behind miss_counts[j] entries miss_slots is scratch, as in cpu/slots.h.
void map_slots(Stream& stream, const MapSlotsParams& params);

}  // namespace tiercel::cuda
