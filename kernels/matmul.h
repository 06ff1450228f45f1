// Products of many rows by the matrix library (cuBLASLt). tests/simt/matmul.cpp has plain loops.
#pragma once

#include "engine/base/ops.h"
#include "kernels/stream.h"

namespace tiercel::cuda {

// As linear. False, and nothing is enqueued, where the library has no algorithm for these types and
// alignments. The algorithm for a shape is chosen at its first use (which allocates) and kept; none
// uses atomics, so the same shape gives the same bits.
[[nodiscard]] bool matmul(Stream& stream, const LinearParams& p);

}  // namespace tiercel::cuda
