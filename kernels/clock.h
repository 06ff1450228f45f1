// The clock of recorded steps (engine/base/ops/position.h).
#pragma once

#include "engine/base/ops.h"
#include "kernels/stream.h"

namespace tiercel::cuda {

void move_clock(Stream& stream, const ClockParams& params);

}  // namespace tiercel::cuda
