// Mixtures of experts. Which tokens an expert has is known to the device only: launches have as many blocks
// as any choice may need, and blocks that have nothing to do end.
//
// Few rows: an expert's weights are streamed into matrix instructions for eight of its rows at a time, as
// linear does it; a row's bits are those that linear and gated_linear give it alone. More rows: tiles of 128 of
// an expert's rows by mma.sync, on every architecture.
#pragma once

#include "engine/base/ops.h"
#include "kernels/stream.h"

namespace tiercel::cuda {

void route_experts(Stream& stream, const RouteParams& p);
// The experts' matrices lie at equal distances; everything at multiples of 16 bytes.
void mix_experts(Stream& stream, const MixExpertsParams& p);

}  // namespace tiercel::cuda
