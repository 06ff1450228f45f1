// Landmarks of chunks, and the chunks that a landmark describes worst (ShadowKV, arXiv 2410.21465).
// Every instruction-set level gives the same bits: sums run in a fixed order, without fused
// multiply-adds.
#pragma once

#include "cpu/queue.h"
#include "engine/base/ops.h"

namespace tiercel::cpu {

void build_landmarks(Queue& queue, const LandmarkParams& params);

// A zero key or landmark has cosine 0 with everything. A NaN cosine counts as the lowest: such a
// chunk is exact from then on. Bits of excluded are set, never cleared.
void find_outliers(Queue& queue, const OutlierParams& params);

}  // namespace tiercel::cpu
