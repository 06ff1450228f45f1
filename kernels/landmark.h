// Landmarks of chunks, and the chunks that a landmark describes worst (ShadowKV, arXiv 2410.21465).
// They give the bits of cpu/landmark.h (but for the payload of a mean's NaN): sums run in the same
// order, and the product of two bf16 is exact in fp32, so that fused and separate rounding agree.
#pragma once

#include "engine/base/ops.h"
#include "kernels/stream.h"

namespace tiercel::cuda {

void build_landmarks(Stream& stream, const LandmarkParams& params);
void encode_landmarks(Stream& stream, const EncodeLandmarksParams& params);

// A zero key or landmark has cosine 0 with everything. A NaN cosine counts as the lowest: such a
// chunk is exact from then on. Bits of excluded are set, never cleared.
void find_outliers(Stream& stream, const OutlierParams& params);

// Cosines as there.
void keep_late_outliers(Stream& stream, const LateOutlierParams& params);

}  // namespace tiercel::cuda
