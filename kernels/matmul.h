// Products of many rows by the matrix library (cuBLASLt). tests/simt/matmul.cpp has plain loops.
#pragma once

#include "engine/base/ops.h"
#include "kernels/stream.h"

namespace tiercel::cuda {

// As linear. False, and nothing is enqueued, where the library has no algorithm for these types and
// alignments. The algorithm for a shape is chosen at its first use (which allocates) and kept; none
// uses atomics, so the same shape gives the same bits. The weight is bf16. out_stride: elements from a row of out
// to the next.
[[nodiscard]] bool matmul(Stream& stream, const LinearParams& p, int64_t out_stride);

}  // namespace tiercel::cuda
