// The codecs of weights that are measured: of each code one, and the two ends of four bits' groups.
#pragma once

#include "engine/base/weight_matrix.h"

namespace tiercel::bench {

inline constexpr WeightCodec kMeasuredCodecs[] = {{WeightCode::kInt4, 128},   {WeightCode::kInt4, 32},
                                                  {WeightCode::kInt4Min, 32}, {WeightCode::kInt8, 128},
                                                  {WeightCode::kInt8Min, 32}, {WeightCode::kInt8x16, 32},
                                                  {WeightCode::kE4M3, 128}};

}  // namespace tiercel::bench
