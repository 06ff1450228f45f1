// The half of decode attention that needs the keys (KeyWeightsParams): for values that the host
// holds.
#pragma once

#include "engine/base/ops.h"
#include "kernels/stream.h"

namespace tiercel::cuda {

// Queries, keys, lists and biases are read by the device; weights and maxima may be in pinned host
// memory. A NaN score weighs NaN and never is a maximum; one of +inf weighs NaN too. Where a row
// does not begin at a multiple of 16 bytes: right but slow.
void key_weights(Stream& stream, const KeyWeightsParams& params);

}  // namespace tiercel::cuda
