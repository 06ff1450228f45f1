// Coded weights to bf16 in plain C++.
#include <algorithm>

#include "cpu/gemm.h"
#include "engine/base/weight_matrix.h"

namespace tiercel::cpu {
namespace {

// 32 neighbouring elements from `column` on: code `place` of each word of a unit.
void decode_run(const uint8_t* unit, WeightCodec codec, int place, const uint32_t* params, int64_t column,
                uint16_t* out) {
  const int bits = codec.bits();
  const int32_t mask = (1 << bits) - 1;
  for (int j = 0; j < kUnitWords; ++j) {
    const int32_t word = unit[2 * j] | unit[2 * j + 1] << 8;
    out[j] = value_of_code(codec, word >> (place * bits) & mask, params, column + j).bits;
  }
}

}  // namespace

void decode_weights_portable(const DecodeWeights& p) {
  const int runs = 16 / bits_of(p.code);  // of a unit
  for (int64_t row = 0; row < p.n_rows; ++row) {
    const uint8_t* codes = p.codes + row * p.row_bytes;
    const uint32_t* params = p.params + row * p.row_bytes / 4;
    uint16_t* out = p.out + row * p.out_stride;
    for (int64_t run = 0; run < p.n_columns / kUnitWords; ++run) {
      decode_run(codes + run / runs * kUnitBytes, {p.code, p.group}, static_cast<int>(run % runs), params,
                 run * kUnitWords, out + run * kUnitWords);
    }
  }
}

}  // namespace tiercel::cpu
