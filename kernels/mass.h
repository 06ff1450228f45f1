// The attention that chunks got from some queries, as far as landmarks tell.
#pragma once

#include "engine/base/ops.h"
#include "kernels/stream.h"

namespace tiercel::cuda {

// Scores are made twice, so that none are kept: sums first, weights then. The bits depend on shapes
// only.
void accumulate_mass(Stream& stream, const MassParams& params);

}  // namespace tiercel::cuda
