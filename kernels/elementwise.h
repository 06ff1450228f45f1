// Ops whose cost is memory: embedding lookup, RMS norm, SwiGLU, RoPE with the append to the KV
// planes, log probabilities. Semantics stand with the parameter structs in engine/base/ops/layers.h.
//
// Every pointer is a device pointer, ids and targets included. Where the CPU's ops stop the program
// for an id or a target outside the vocabulary, these write NaN. Arithmetic is fp32 with one
// rounding at the end; sums are taken in a fixed order, so that the same input gives the same bits.
#pragma once

#include "engine/base/ops.h"
#include "kernels/stream.h"

namespace tiercel::cuda {

void embed(Stream& stream, const EmbedParams& p);
void rms_norm(Stream& stream, const NormParams& p);
void swiglu(Stream& stream, const SwigluParams& p);
void rope_append(Stream& stream, const RopeAppendParams& p);
void token_logprobs(Stream& stream, const LogprobParams& p);

}  // namespace tiercel::cuda
