// Ops whose cost is memory: embedding lookup, RMS norm, SwiGLU, RoPE with the append to the KV
// planes, log probabilities. Semantics stand with the parameter structs in engine/base/ops/layers.h.
//
// Arithmetic is fp32 with one rounding at the end, also where a norm precedes RoPE (Qwen3). Sums of
// squares and exponentials are added in vector lanes, so the last bits differ between levels.
#pragma once

#include "cpu/queue.h"
#include "engine/base/ops.h"

namespace tiercel::cpu {

void embed(Queue& queue, const EmbedParams& p);
void rms_norm(Queue& queue, const NormParams& p);
void swiglu(Queue& queue, const SwigluParams& p);
void rope_append(Queue& queue, const RopeAppendParams& p);
void token_logprobs(Queue& queue, const LogprobParams& p);

}  // namespace tiercel::cpu
