// The chunks of a prompt that stay exact because of a number that each of them has: its attention
// mass.
#pragma once

#include "cpu/queue.h"
#include "engine/base/ops.h"

namespace tiercel::cpu {

// 0 and -0 are equal. Bits of excluded are set, never cleared. Allocates nothing.
void pick_chunks(Queue& queue, const PickParams& params);

}  // namespace tiercel::cpu
