// How a kernel, and what launches it, is told of coded weights (engine/base/weight_matrix.h).
#pragma once

#include <cstdint>

#include "engine/base/weight_code.h"

namespace tiercel::cuda {

template <WeightCode kCode>
inline constexpr int kBitsOf = bits_of(kCode);
template <WeightCode kCode>
inline constexpr bool kHasMinima = has_minima(kCode);

struct CodeLayout {
  WeightCode code = WeightCode::kBf16;  // with which nothing else matters
  int64_t row_bytes = 0;
  int32_t code_bytes = 0;  // of a row; then come its params
  int32_t shift = 0;       // groups have 2^shift columns
};

// What `launch` returns, whose template argument is the code.
template <typename Launch>
auto with_code(WeightCode code, const Launch& launch) {
  switch (code) {
    case WeightCode::kInt4: return launch.template operator()<WeightCode::kInt4>();
    case WeightCode::kInt8: return launch.template operator()<WeightCode::kInt8>();
    case WeightCode::kE4M3: return launch.template operator()<WeightCode::kE4M3>();
    case WeightCode::kInt4Min: return launch.template operator()<WeightCode::kInt4Min>();
    case WeightCode::kInt8Min: return launch.template operator()<WeightCode::kInt8Min>();
    case WeightCode::kInt8x16: return launch.template operator()<WeightCode::kInt8x16>();
    case WeightCode::kBf16: break;
  }
  return launch.template operator()<WeightCode::kBf16>();
}

}  // namespace tiercel::cuda
