// Coded rows: planes of values and keys, and coefficients, in 8 or 4 bits (RowCodec). From the same
// fp32 rows every level makes the same bytes; keys are turned back by the level's own arithmetic,
// whose last bit may differ. (Values are decoded by fetch, coefficients by rebuild_keys.)
#pragma once

#include "cpu/queue.h"
#include "cpu/row_codec.h"
#include "engine/base/ops.h"

namespace tiercel::cpu {

void encode_rows(Queue& queue, const EncodeParams& p);

// Allocates a few sums of a row; meant for the end of a layer's prefill.
void mean_keys(Queue& queue, const MeanKeysParams& p);

// Allocates nothing.
void decode_keys(Queue& queue, const DecodeKeysParams& p);

// n_rows rows as the kernels of row_codec.h want them.
constexpr CodedRows coded_rows(RowCodec codec, int64_t width, int64_t n_rows) {
  return {n_rows, width, static_cast<int32_t>(code_bits(codec)),
          static_cast<int32_t>(code_group(width))};
}

}  // namespace tiercel::cpu
