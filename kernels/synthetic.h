// What a synthetic run needs: random weights and imposed selections. Same bits as on every backend.
#pragma once

#include "kernels/stream.h"
#include "engine/base/ops.h"

namespace tiercel::cuda {

void fill_random(Stream& stream, const RandomParams& params);
void impose_selection(Stream& stream, const ImposeParams& params);

}  // namespace tiercel::cuda
