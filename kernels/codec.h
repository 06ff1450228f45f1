// Rows in few bits: values, keys before RoPE without their mean, coefficients of low-rank keys.
//
// The codes of values and coefficients have the bits of cpu/codec.h; those of keys as well, where
// the CPU has fused multiplication and addition (AVX2 and up) and the mean is the same. Decoding of
// values and coefficients is part of fetch and rebuild_keys.
#pragma once

#include "engine/base/ops.h"
#include "kernels/stream.h"

namespace tiercel::cuda {

void encode_rows(Stream& stream, const EncodeParams& params);
void mean_keys(Stream& stream, const MeanKeysParams& params);
void decode_keys(Stream& stream, const DecodeKeysParams& params);

}  // namespace tiercel::cuda
