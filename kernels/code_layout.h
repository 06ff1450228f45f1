// How a kernel is told of coded weights (engine/base/weight_matrix.h).
#pragma once

#include <cstdint>

namespace tiercel::cuda {

struct CodeLayout {
  int64_t row_bytes = 0;
  int32_t code_bytes = 0;  // of a row; then come its params
  int32_t shift = 0;       // groups have 2^shift columns
};

}  // namespace tiercel::cuda
