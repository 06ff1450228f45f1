// Bytes from one place to another.
#pragma once

#include "cpu/queue.h"
#include "engine/base/ops.h"

namespace tiercel::cpu {

// Source and target do not overlap.
void copy(Queue& queue, const CopyParams& params);

void fetch(Queue& queue, const FetchParams& params);

}  // namespace tiercel::cpu
