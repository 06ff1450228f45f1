// How a kernel, and what launches it, is told of coded weights (engine/base/weight_matrix.h).
#pragma once

#include <cstdint>

namespace tiercel::cuda {

struct CodeLayout {
  int32_t bits = 16;  // 16: bf16, and nothing else matters
  int64_t row_bytes = 0;
  int32_t code_bytes = 0;  // of a row; then come its params
  int32_t shift = 0;       // groups have 2^shift columns
};

}  // namespace tiercel::cuda
