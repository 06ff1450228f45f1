// The attention that chunks get from the last queries of a prompt, as far as landmarks tell.
#pragma once

#include "cpu/queue.h"
#include "engine/base/ops.h"

namespace tiercel::cpu {

// Scores are made twice, once for the sums of softmax and once for the masses: all queries of a
// group meet a strip of landmarks while it is in cache, and no score is kept. Allocates nothing.
void accumulate_mass(Queue& queue, const MassParams& params);

}  // namespace tiercel::cpu
