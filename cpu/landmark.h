// Landmarks of chunks: means (ShadowKV, arXiv 2410.21465) or bounds (Quest, arXiv 2406.10774),
// their int8 codes, and the chunks that a mean describes worst (ShadowKV). Every instruction-set
// level gives the same bits: sums run in a fixed order, without fused multiply-adds.
#pragma once

#include "cpu/queue.h"
#include "engine/base/ops.h"

namespace tiercel::cpu {

// Of bounds: -0 is below +0, and a NaN is 0x7fc0.
void build_landmarks(Queue& queue, const LandmarkParams& params);

void encode_landmarks(Queue& queue, const EncodeLandmarksParams& params);

// A zero key or landmark has cosine 0 with everything. A NaN cosine counts as the lowest: such a
// chunk is exact from then on. Bits of excluded are set, never cleared.
void find_outliers(Queue& queue, const OutlierParams& params);

// Cosines as there.
void keep_late_outliers(Queue& queue, const LateOutlierParams& params);

}  // namespace tiercel::cpu
