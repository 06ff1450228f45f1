// The chunks that got most (or least) attention, once per layer at the end of prefill.
#pragma once

#include "engine/base/ops.h"
#include "kernels/stream.h"

namespace tiercel::cuda {

// Bits of excluded are set, never cleared.
void pick_chunks(Stream& stream, const PickParams& params);

}  // namespace tiercel::cuda
