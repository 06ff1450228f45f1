// What a synthetic run needs: random weights and imposed selections. Same bits as on every backend.
#pragma once

#include "cpu/queue.h"
#include "engine/base/ops.h"

namespace tiercel::cpu {

void fill_random(Queue& queue, const RandomParams& params);
void impose_selection(Queue& queue, const ImposeParams& params);

}  // namespace tiercel::cpu
