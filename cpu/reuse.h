// Whether the selection of a step serves the next one too: the two queries' cosine decides.
#pragma once

#include "cpu/queue.h"
#include "engine/base/ops.h"

namespace tiercel::cpu {

// The selection stays if it has served at least one step, fewer than `every` (unless that is 0),
// and cosine >= min_cosine; with min_cosine <= -1 no cosine is taken. A zero query has cosine NaN.
// It stays: state = {1, steps + 1}. Else state = {0, 1}, and q becomes previous.
void decide_reuse(Queue& queue, const ReuseParams& params);

}  // namespace tiercel::cpu
