// The half of decode attention that needs the values (WeightedValuesParams), after key_weights.
#pragma once

#include "cpu/queue.h"
#include "engine/base/ops.h"

namespace tiercel::cpu {

// Lists are cut into ranges as attend_decode cuts them, and merged in order: the bits depend on
// counts and shapes, not on the number of threads. Coded values have the bits of the bf16 plane
// that they decode to. Allocates nothing.
void weighted_values(Queue& queue, const WeightedValuesParams& params);

}  // namespace tiercel::cpu
