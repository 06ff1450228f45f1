// Steps since a recording, for kernels whose params have `later`.
#pragma once

#include "engine/base/ops.h"
#include "kernels/gpu.cuh"

namespace tiercel::cuda {

// After wait_for_predecessors(): the step before advances the clock.
GPU int64_t steps_later(const int64_t* later) { return later != nullptr ? *later : 0; }

}  // namespace tiercel::cuda
